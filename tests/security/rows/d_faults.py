"""Letter D: the file system, or a limit of the kernel, says no."""

from __future__ import annotations

from security.rows.row import Row

ROWS: dict[str, Row] = {
    "D1": Row(
        "a read-only root, by the mount and not by config.json: the cache is mounted, what cannot be "
        "made is told; with --strict an error",
        (
            "security/test_faults.py::test_d1_a_read_only_root_starts",
            "security/test_faults.py::test_d1_strict_refuses_a_read_only_root",
            "security/test_faults.py::test_naive_d1_a_read_only_root_does_not_start",
            "security/test_faults.py::test_d1_every_hook_on_a_read_only_root",
            "security/test_prestart_targets.py::test_what_cannot_be_mounted_or_made",
            "e2e/test_read_only.py::test_where_it_is_read_only_libraries_load_by_soname",
        ),
    ),
    "D2": Row(
        "an image on ext4, squashfs or erofs that cannot be written, or an overlay without an upper layer: as D1",
        ("security/test_filesystems.py::test_d2_an_image_that_cannot_be_written",),
    ),
    "D3": Row(
        "no space: ENOSPC by name, the old cache intact, nothing temporary left",
        (
            "security/test_faults.py::test_a_full_disk_is_one_error_and_changes_nothing",
            "security/test_faults.py::test_naive_a_full_disk_leaves_half_a_file",
            "security/test_prestart_targets.py::test_what_cannot_be_mounted_or_made",
        ),
    ),
    "D4": Row(
        "ENOSPC at a write in the middle: as D3",
        (
            "security/test_crash.py::test_l7_an_error_at_any_call_is_one_line_or_none",
            "security/test_faults.py::test_a_full_disk_is_one_error_and_changes_nothing",
        ),
    ),
    "D5": Row(
        "ENOSPC at fsync, close or rename: as D3",
        (
            "security/test_crash.py::test_l7_an_error_at_any_call_is_one_line_or_none",
            "security/test_filesystems.py::test_d15_a_file_system_that_lacks_something",
        ),
    ),
    "D6": Row(
        "no inodes: ENOSPC, told apart from space",
        (
            "security/test_faults.py::test_a_full_disk_is_one_error_and_changes_nothing",
            "security/test_prestart_targets.py::test_what_cannot_be_mounted_or_made",
        ),
    ),
    "D7": Row(
        "a quota that is used up: EDQUOT, and what was to be written by name",
        ("security/test_faults_calls.py::test_d7_a_quota_that_is_used_up_is_one_error",),
    ),
    "D8": Row(
        "EIO of config.json, configuration, cache, directory or library: one error that names it",
        (
            "security/test_faults_calls.py::test_d8_what_cannot_be_read_is_one_error_that_names_it",
            "security/test_faults_calls.py::test_d8_a_config_that_cannot_be_read_is_one_error",
            "security/test_faults_calls.py::test_naive_d8_what_cannot_be_read_gets_a_traceback",
        ),
    ),
    "D9": Row(
        "16 descriptors and fewer: the whole result, or EMFILE and nothing changed",
        (
            "security/test_faults_calls.py::test_d9_few_descriptors_are_enough_or_one_error",
            "security/test_prestart_targets.py::test_descriptors_that_run_out_anywhere_leave_nothing",
            "kernel/test_builtin_limits.py::test_few_descriptors_are_enough_or_one_error_that_changes_nothing",
        ),
    ),
    "D10": Row(
        "64 MiB of address space are enough; less is one error",
        (
            "security/test_faults_calls.py::test_d10_64_mib_of_address_space_are_enough",
            "security/test_faults_calls.py::test_d10_an_image_that_needs_more_than_there_is_is_one_error",
            "security/test_prestart_targets.py::test_what_cannot_be_mounted_or_made",
            "security/test_crash.py::test_l7_an_error_at_any_call_is_one_line_or_none",
        ),
    ),
    "D11": Row(
        "a full mount table, of as many mounts as fs.mount-max allows: ENOSPC with the limit's name, and no mount more",
        (
            "security/test_faults_calls.py::test_d11_a_full_mount_table_is_one_error_that_names_the_limit",
            "security/test_prestart_targets.py::test_what_cannot_be_mounted_or_made",
        ),
    ),
    "D12": Row(
        "a root with nosuid, nodev, noexec: as usual; a device node is a mount of the host's and opens",
        (
            "security/test_faults_calls.py::test_d12_a_root_without_devices_programs_and_setuid",
            "security/test_faults_calls.py::test_d12_a_node_on_a_root_without_devices_opens",
        ),
    ),
    "D13": Row(
        "a file system without links, modes or attributes: one error that leaves the root as it was, or another way",
        (
            "security/test_filesystems.py::test_d15_a_file_system_that_lacks_something",
            "security/test_filesystems.py::test_d13_vfat_is_one_error_or_what_it_can_do",
        ),
        open="a real vfat, and names that do not tell upper from lower case, where the kernel has neither; "
        "there strace stands in for vfat's refusals, and the test skips",
        risk="two libraries whose names differ in case alone could stand for each other in the cache of such a root",
    ),
    "D14": Row(
        "roots and upper layers on tmpfs, ext2, ext4, xfs and btrfs, lower layers on ext4, squashfs "
        "and erofs: as usual, and the second run changes nothing",
        (
            "security/test_filesystems.py::test_d14_the_root_lies_on_this_file_system",
            "security/test_filesystems.py::test_d14_an_overlay_whose_upper_layer_lies_on_this_file_system",
            "security/test_filesystems.py::test_d14_an_overlay_whose_lower_layer_cannot_be_written",
        ),
    ),
    "D15": Row(
        "a file system that cannot exchange two names, or lock, or sync: the fallback does it (O_TMPFILE is not used)",
        ("security/test_filesystems.py::test_d15_a_file_system_that_lacks_something",),
    ),
    "D16": Row(
        "umask 0777, 0077 or 0 inherited: exactly the planned modes",
        (
            "security/test_faults_calls.py::test_d16_modes_are_those_planned_whatever_umask_is_inherited",
            "kernel/test_staging.py::test_file_mode_does_not_depend_on_the_umask",
            "kernel/test_rootfs.py::test_new_directories_have_exactly_the_mode_and_old_ones_keep_theirs",
        ),
    ),
    "D17": Row(
        "a clock of 1970, 2038, 2106 or 9999, and files of that time: as usual",
        ("security/test_faults_calls.py::test_d17_a_wrong_clock_and_files_of_then",),
    ),
}
