"""K: rights and calls that the kernel, or a seccomp profile, does not give."""

from __future__ import annotations

from security.rows.row import Row

_CALLS, _RIGHTS = "security/test_kernel_calls.py::", "security/test_kernel_rights.py::"
_MISSING = f"{_CALLS}test_k1_k2_k4_a_missing_call_changes_nothing"

ROWS: dict[str, Row] = {
    "K1": Row(
        "openat2 is ENOSYS, EPERM or E2BIG: the walk gives the same, hostile links included",
        (
            _MISSING,
            f"{_CALLS}test_k1_links_are_followed_in_the_root_whatever_openat2_says",
            "kernel/test_lookup.py::test_blocked_openat2_leads_to_the_walk",
            "kernel/test_lookup.py::test_path_resolves_inside_the_root",
            "security/test_paths.py::test_a_link_to_the_host_resolves_in_the_root",
        ),
    ),
    "K2": Row(
        "each call of the mount API is missing, and all of them: the same mounts by descriptors in procfs",
        (
            _MISSING,
            "kernel/test_mount.py::test_host_file_is_mounted_read_only_and_private",
            "kernel/test_prestart_mounts.py::test_everything_is_mounted_with_its_flags_once",
            "e2e/test_prestart.py::test_without_the_newer_system_calls",
            "e2e/test_inject.py::test_without_the_newer_system_calls",
        ),
    ),
    "K3": Row(
        "mount_setattr alone is missing: flags follow the mount, before the container's process starts",
        (
            _MISSING,
            "kernel/test_mount.py::test_container_root_cannot_write_to_a_generated_file",
            "kernel/test_mount.py::test_flags_that_did_not_take_are_an_error_and_the_mount_is_gone",
        ),
    ),
    "K4": Row(
        "pidfd_open, setns by pidfd, close_range, memfd_create, renameat2 or timers are missing: the same result",
        (
            _MISSING,
            f"{_CALLS}test_k4_without_renameat2_there_are_links",
            f"{_CALLS}test_k4_a_kernel_whose_setns_takes_no_pidfd",
            f"{_CALLS}test_k4_where_setns_does_not_work_at_all_it_is_one_line",
            f"{_CALLS}test_k4_what_nothing_replaces_is_one_line_and_leaves_nothing",
        ),
    ),
    "K5": Row(
        "memfd_noexec is 1 or 2: the confined helper runs from a file without a name",
        (f"{_CALLS}test_k5_memfds_that_cannot_be_executed",),
    ),
    "K6": Row(
        "root without SYS_ADMIN, SYS_CHROOT, SYS_PTRACE, DAC_OVERRIDE or MKNOD: it is named, or not needed",
        (
            f"{_RIGHTS}test_k6_a_missing_capability_is_named_or_not_needed",
            "security/test_devices.py::test_j13_without_the_capability_it_is_named",
            "kernel/test_devices.py::test_where_no_node_may_be_made_the_hosts_is_mounted",
        ),
    ),
    "K7": Row(
        "no_new_privs and a seccomp profile that knows no call newer than Linux 5.0: the same result",
        (f"{_CALLS}test_k7_k8_no_new_privs_and_a_strict_profile",),
    ),
    "K8": Row(
        "landlock is there or not: no hook asks for it",
        (f"{_CALLS}test_k8_landlock_is_not_asked_for", f"{_CALLS}test_k7_k8_no_new_privs_and_a_strict_profile"),
    ),
    "K9": Row(
        "kernels 4.18, 5.4, 5.15, 6.8 and 6.18",
        (_MISSING,),
        open="one kernel (6.18) runs here, and no machine can be started in it: of the others only the missing calls",
        risk="calls that an older kernel has, and that behave otherwise there, are not seen",
    ),
    "K10": Row(
        "a kernel older than 5.2 with parts of the mount API: they are not used",
        (f"{_CALLS}test_k10_backports_of_the_mount_api_are_not_used",),
    ),
    "K11": Row(
        "fs.protected_symlinks, hardlinks, fifos and regular at 0, 1 and 2: the same results",
        (
            f"{_RIGHTS}test_k11_protections_of_sticky_directories_change_nothing",
            f"{_RIGHTS}test_k11_a_link_in_a_sticky_directory_is_followed_in_the_root_or_refused",
        ),
    ),
    "K12": Row(
        "every interpreter from 3.9 up runs all hooks; one without ctypes is one line",
        (
            f"{_RIGHTS}test_k12_every_interpreter_runs_all_hooks",
            f"{_RIGHTS}test_k12_every_interpreter_says_one_line",
            f"{_RIGHTS}test_k12_without_ctypes_it_is_one_line",
            f"{_RIGHTS}test_naive_k12_without_ctypes_it_is_a_traceback",
            "static/test_import_budget.py::test_a_hook_imports_the_hot_list_only",
        ),
        open="a build for FIPS: there is none here; hooks import no module that hashes",
        risk="only what such a build changes in the interpreter itself",
    ),
}
