"""P: what a mount is, who sees it, what is left."""

from __future__ import annotations

from security.rows.row import Row

_M = "security/test_mounts.py::"
_INJECT, _POINTS = "unit/inject/test_mounts.py::", "kernel/test_prestart_points.py::"

ROWS: dict[str, Row] = {
    "P1": Row(
        "containers with shared or slave propagation on a host with shared mounts: the host's table is unchanged",
        (
            f"{_M}test_p1_the_host_s_mounts_stay_as_they_are",
            f"{_M}test_naive_p1_the_host_sees_it",
            "kernel/test_propagation.py::test_a_target_that_shares_its_mount_with_the_host_is_refused",
            f"{_INJECT}test_propagation_is_private_or_slave_and_never_to_the_host",
        ),
    ),
    "P2": Row(
        "injected files have exactly their flags in mountinfo",
        (
            f"{_M}test_p2_the_flags_are_those_asked_for",
            "kernel/test_prestart_mounts.py::test_everything_is_mounted_with_its_flags_once",
            "e2e/test_prestart.py::test_two_gpus",
            "e2e/test_inject.py::test_a_device_of_any_vendor",
        ),
    ),
    "P3": Row(
        "root of a user namespace, with and without CAP_SYS_ADMIN, cannot write, change or remove an injected file",
        (
            f"{_M}test_p3_root_of_a_user_namespace_cannot_write_what_it_mounts_writable",
            f"{_M}test_p3_without_the_capability_nothing_of_it_works",
        ),
        open="with CAP_SYS_ADMIN it may mount it writable, or take it away for itself: the kernel locks only mounts "
        "that come with a copy of a mount namespace",
        risk="such a container loses what it was given; the files are the host's root's, whom it cannot write as",
    ),
    "P4": Row(
        "a target below a read-only volume, or one of another file system: mounted on what is there, or an error",
        (
            f"{_POINTS}test_what_is_there_in_a_volume_is_used",
            f"{_POINTS}test_a_volume_that_the_path_names_is_for_that",
            f"{_POINTS}test_a_link_into_a_volume_of_the_host_is_refused_to_host_s_root_too",
            "kernel/test_prestart_mounts.py::test_a_root_that_does_not_allow_it",
            "kernel/test_prestart_mounts.py::test_a_mount_point_on_a_read_only_root_is_used",
            "security/test_inject.py::test_nothing_is_made_in_a_directory_of_the_host",
            "kernel/test_hostmounts.py::test_a_read_only_volume_is_left_to_the_kernel",
        ),
    ),
    "P5": Row(
        "a source that is a chain of links: the file at its end is mounted, and links are made by themselves",
        (
            f"{_M}test_p5_a_chain_of_links_ends_at_the_file",
            "kernel/test_prestart_mounts.py::test_links_of_a_driver_root_stay_inside_of_it",
            "e2e/test_prestart_odd.py::test_links_and_odd_files_in_the_place_of_mount_points",
        ),
    ),
    "P6": Row(
        "a source on tmpfs, overlay or ext4, with mounts below it: one mount, not recursive",
        (
            f"{_M}test_p6_a_source_on_another_file_system_is_one_mount",
            f"{_INJECT}test_bind_leaves_what_is_mounted_below_and_rbind_takes_it_along",
            "kernel/test_mount.py::test_host_directory_is_mounted_without_what_is_mounted_below",
        ),
        open="NFS and squashfs: no server and no program that makes one are here",
        risk="a bind mount does not look at what it binds; only an inode number that changes could be a difference",
    ),
    "P7": Row(
        "the same target twice, and one below another: the order is defined, and a rerun adds nothing",
        (
            f"{_M}test_p7_the_same_target_twice_shows_the_later_and_a_rerun_adds_nothing",
            f"{_M}test_p7_a_target_under_another_is_mounted_after_it",
            f"{_INJECT}test_the_order_of_mounts",
            f"{_INJECT}test_a_second_run_finds_everything_there",
        ),
    ),
    "P8": Row(
        "sockets of the host's daemons: only with the capability that has them, and not if left out",
        (
            "e2e/test_prestart.py::test_capabilities_choose_files_and_nodes",
            "unit/prestart/test_choose.py::test_what_can_be_left_out",
            "kernel/test_prestart_sources.py::test_a_daemon_does_not_choose_which_socket_of_the_host_is_mounted",
        ),
    ),
    "P9": Row(
        "no way into the container by /proc/PID/root: a worker enters its mount namespace",
        (f"{_M}test_p9_the_container_s_namespace_is_entered_and_not_reached_through_procfs",),
    ),
    "P10": Row(
        "no hook of ours is one of startContainer",
        (f"{_M}test_p10_no_hook_of_ours_is_one_of_startcontainer",),
    ),
    "P11": Row(
        "an image that is committed after a start has the named mount points, empty, and nothing else",
        (
            f"{_M}test_p11_an_image_that_is_committed_has_the_mount_points_and_nothing_else",
            f"{_M}test_p11_a_hook_that_fails_leaves_no_mount_point",
            "e2e/test_run.py::test_modes_and_links_survive_in_the_image",
        ),
        open="checkpoint and restore (no criu here) and `podman cp`, which no hook takes part in",
        risk="a restored container has its mounts from the checkpoint: the driver must be the same then",
    ),
}
