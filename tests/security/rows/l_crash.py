"""L: killed, told to end, or lied to by the kernel."""

from __future__ import annotations

from security.rows.row import Row

_KILLED = (
    "security/test_crash.py::test_l1_a_rerun_after_a_kill_at_any_call_completes_it",
    "security/test_prestart_crash.py::test_l1_a_rerun_after_a_kill_completes_it",
)

ROWS = {
    "L1": Row(
        "SIGKILL at each system call of each process of a hook, from the first read of the state on, then a rerun: "
        "what an undisturbed run gives, in tree, mounts and device rules",
        (
            *_KILLED,
            "security/test_crash.py::test_naive_l1_a_kill_leaves_files",
            "security/test_prestart_crash.py::test_naive_l1_a_rerun_mounts_it_twice",
        ),
        open="kernels before 5.2: a kill while a generated file is made leaves a tmpfs on the directory of its mount "
        "point, in that container's mount namespace, a rerun there says ENOENT",
        risk="none for a runtime, which never starts a container whose hook was killed, and gives the next one a "
        "namespace of its own; a script that reruns by hand makes the container anew",
    ),
    "L2": Row(
        "the same kills without a rerun: each file of the root is the old one or the new one",
        (*_KILLED, "security/test_crash.py::test_naive_l2_a_file_is_half_written"),
    ),
    "L3": Row(
        "SIGKILL of the parent, the worker or the confined ldconfig alone: the others end within a second",
        (
            *_KILLED,
            "unit/hook/test_watchdog.py::test_a_worker_dies_with_its_parent",
            "kernel/test_device_rules.py::test_a_parent_that_is_killed_takes_the_worker_along_and_a_rerun_completes",
        ),
    ),
    "L4": Row(
        "power cut at each flush: the old file or the new one",
        open="a replay of a device's writes needs dm-log-writes or dm-flakey, which this kernel has not; that host "
        "files are synchronized before and after their rename is seen from the calls only",
        risk="a host file (inventory, CDI specification) could be empty after a power cut on a file system that "
        "reorders a rename before the data; readers then refuse it, and the next run writes it anew. A rootfs is never "
        "synchronized: after a power cut its container is made again",
    ),
    "L5": Row(
        "SIGTERM, SIGHUP, SIGINT, SIGXCPU, SIGPIPE or SIGXFSZ with any call of either process: success, or one error "
        "and everything undone",
        (
            "security/test_crash.py::test_l5_a_signal_at_any_call_is_success_or_undone",
            "unit/hook/test_watchdog.py::test_a_signal_while_waiting_undoes_everything",
            "unit/hook/test_watchdog.py::test_a_second_signal_does_not_interrupt_the_undo",
            "unit/hook/test_watchdog.py::test_a_signal_to_the_whole_process_group_is_one_error",
        ),
    ),
    "L6": Row(
        "a temporary directory that a killed run has left: a lock tells a live writer from a dead one, not a pid",
        (
            "security/test_attacks_staging.py::test_what_no_run_has_made_stays",
            "security/test_attacks_staging.py::test_what_a_killed_run_has_replaced_outlives_a_rerun_that_fails",
            *_KILLED,
            "unit/hook/test_create_symlinks.py::test_what_another_run_left_behind_is_removed",
            "kernel/test_staging.py::test_staging_of_a_killed_run_is_cleared",
        ),
    ),
    "L7": Row(
        "an error (ENOSPC, EIO, EINTR, ENOMEM, EAGAIN, EPERM) from each system call of each process: success, or one "
        "error and nothing has changed",
        (
            "security/test_crash.py::test_l7_an_error_at_any_call_is_one_line_or_none",
            "security/test_prestart_crash.py::test_l7_an_error_at_any_call_is_one_line_and_leaves_nothing",
            "security/test_crash.py::test_naive_l7_an_error_leaves_half_of_it",
            "security/test_prestart_crash.py::test_naive_l7_an_error_leaves_half_of_it",
        ),
    ),
    "L8": Row(
        "who writes CDI specifications killed, or told an error, at each call: readers find the old or the new",
        (
            "security/test_crash_spec.py::test_l8_killed_at_any_call_it_leaves_the_old_or_the_new",
            "security/test_crash_spec.py::test_l8_an_error_at_any_call_is_success_or_leaves_no_temporary",
            "e2e/test_cdi_containers.py::test_our_reader_never_sees_half_a_specification",
            "e2e/test_cdi_containers.py::test_podman_never_sees_half_a_specification",
        ),
    ),
}
