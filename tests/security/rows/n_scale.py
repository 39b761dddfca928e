"""N: many starts at once, and large nodes."""

from __future__ import annotations

from security.rows.row import Row

ROWS = {
    "N1": Row(
        "1,024 starts, 32 at a time, on runc and crun, merged hooks and prestart: none fails, nothing is left",
        ("security/test_scale.py::test_n1_every_start_succeeds_and_leaves_nothing",
         "security/test_scale.py::test_naive_n1_starts_leave_files"),
    ),
    "N2": Row(
        "2 and 16 hooks at once on one root: what one leaves, and no link that was reported made is missing",
        ("security/test_scale_shared.py::test_n2_hooks_at_once_leave_what_one_leaves",
         "security/test_scale_shared.py::test_n2_no_update_is_lost",
         "security/test_scale_shared.py::test_n2_no_link_of_sixteen_is_lost",
         "security/test_scale_shared.py::test_n2_sixteen_starts_at_once_on_one_root",
         "security/test_scale_shared.py::test_naive_n2_hooks_at_once_leave_more",
         "unit/hook/test_create_symlinks.py::test_two_runs_at_once_both_succeed"),
        open="a hook that fails takes back a directory it made, and one that was about to use it fails too (ENOENT)",
        risk="a start on a root shared with a failing one has to be repeated; it says so and nothing is left",
    ),
    "N3": Row(
        "two containers of one root with different GPUs, both running: each sees its own nodes, files and profile",
        ("security/test_scale_shared.py::test_n3_two_containers_of_one_root_have_their_own_gpus",
         "security/test_scale_shared.py::test_n2_sixteen_starts_at_once_on_one_root"),
        open="update-application-profile writes a file of the root, by its contract: on a shared root the last counts",
        risk="a graphics library offers GPUs of the other container, whose nodes this one does not have",
    ),
    "N4": Row(
        "a container is killed or deleted while its hook works: nothing is left, the next start is as any other",
        ("security/test_scale_shared.py::test_n4_a_container_that_goes_while_its_hook_works",),
    ),
    "N5": Row(
        "64 GPUs and 200 libraries: prestart, generate and inject against a node with one GPU, in time and memory",
        ("security/test_scale_wide.py::test_n5_prestart_on_a_wide_node",
         "security/test_scale_wide.py::test_n5_generate_and_inject_of_a_wide_node",
         "security/test_scale_wide.py::test_n5_more_than_inject_can_hold_is_refused_at_once"),
        open="inject holds at most 800 descriptors, a device node counting for 3: 64 GPUs with DRM nodes are refused",
        risk="such a node, of which none is built, needs its engine's own CDI or fewer GPUs for one container",
    ),
    "N6": Row(
        "a hook process takes at most 25 MiB",
        ("security/test_scale.py::test_n1_every_start_succeeds_and_leaves_nothing",
         "security/test_scale.py::test_n6_the_measure_is_not_deaf",
         "security/test_scale_wide.py::test_n5_prestart_on_a_wide_node"),
    ),
    "N7": Row(
        "a process that has a lock is killed: the next has it at once; one that keeps it stops no start",
        ("security/test_scale_shared.py::test_n7_the_lock_of_a_killed_process_is_free",
         "security/test_scale_shared.py::test_n7_a_lock_that_is_kept_stops_no_start",
         "unit/discover/test_inventory.py::test_a_lock_that_is_never_given_back_costs_a_while"),
    ),
    "N8": Row(
        "CDI specifications are replaced while starts read them: the old or the new one, never a part",
        ("security/test_scale_changes.py::test_n8_a_reader_sees_the_old_one_or_the_new",
         "security/test_scale_changes.py::test_n8_starts_read_it_while_it_is_refreshed",
         "security/test_scale_changes.py::test_naive_n8_a_file_that_is_written_in_place_is_read_half"),
    ),
    "N9": Row(
        "the hooks are upgraded while they are started: each start is of one version",
        ("security/test_scale_changes.py::test_n9_a_start_sees_one_version",
         "security/test_scale_changes.py::test_n9_containers_start_during_an_upgrade",
         "install/test_install.py::test_a_running_hook_sees_one_version_all_its_life"),
    ),
}  # fmt: skip
