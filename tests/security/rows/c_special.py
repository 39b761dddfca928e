"""Letter C: something that is no file, or not an ordinary one, where a file is expected."""

from __future__ import annotations

from security.rows.row import Row

ROWS: dict[str, Row] = {
    "C1": Row(
        "a FIFO in place of any file that is read or made: an error or a warning in less than a "
        "second, and the FIFO stays",
        (
            "security/test_special_files.py::test_a_special_file_neither_holds_the_hook_nor_is_lost",
            "security/test_special_files.py::test_naive_a_special_file_holds_the_hook_or_is_lost",
            "security/test_inject.py::test_what_is_at_the_mount_point_is_covered_or_refused_and_never_touched",
            "security/test_mig.py::test_what_is_at_the_mount_point_is_covered_or_refused_and_never_touched",
            "security/test_prestart_targets.py::test_every_mount_target_of_another_kind_is_covered_and_not_touched",
            "security/test_prestart.py::test_a_configuration_that_cannot_be_used",
        ),
    ),
    "C2": Row(
        "a FIFO whose writer sends a byte now and then: nobody waits for it, and nothing is taken from it",
        (
            "security/test_special_files_kept.py::test_c2_a_fifo_with_a_slow_writer_holds_nobody",
            "security/test_special_files_kept.py::test_naive_c2_a_fifo_with_a_slow_writer_holds_the_hook",
        ),
    ),
    "C3": Row(
        "character devices in place of a file: never opened for reading or writing",
        (
            "security/test_special_files.py::test_a_special_file_neither_holds_the_hook_nor_is_lost",
            "security/test_special_files.py::test_naive_a_special_file_holds_the_hook_or_is_lost",
            "security/test_inject.py::test_what_is_at_the_mount_point_is_covered_or_refused_and_never_touched",
            "security/test_mig.py::test_what_is_at_the_mount_point_is_covered_or_refused_and_never_touched",
            "security/test_prestart_targets.py::test_every_mount_target_of_another_kind_is_covered_and_not_touched",
            "security/test_prestart_targets.py::test_a_node_of_the_image_is_never_taken_for_the_host_s",
            "kernel/test_rootfs.py::test_special_files_are_never_opened",
        ),
    ),
    "C4": Row(
        "block devices and sockets in place of a file: an error",
        (
            "security/test_special_files.py::test_a_special_file_neither_holds_the_hook_nor_is_lost",
            "security/test_special_files.py::test_naive_a_special_file_holds_the_hook_or_is_lost",
            "security/test_inject.py::test_what_is_at_the_mount_point_is_covered_or_refused_and_never_touched",
            "security/test_mig.py::test_what_is_at_the_mount_point_is_covered_or_refused_and_never_touched",
            "security/test_prestart_targets.py::test_every_mount_target_of_another_kind_is_covered_and_not_touched",
        ),
    ),
    "C5": Row(
        "a directory in place of a file: an error, and it is not removed",
        (
            "security/test_special_files.py::test_a_special_file_neither_holds_the_hook_nor_is_lost",
            "security/test_special_files.py::test_naive_a_special_file_holds_the_hook_or_is_lost",
            "security/test_inject.py::test_what_is_at_the_mount_point_is_covered_or_refused_and_never_touched",
            "security/test_mig.py::test_what_is_at_the_mount_point_is_covered_or_refused_and_never_touched",
            "security/test_prestart_targets.py::test_every_mount_target_that_is_a_directory_is_an_error_that_names_it",
        ),
    ),
    "C6": Row(
        "links to /dev/zero, /proc/kmsg, /proc/self/mem and their like: not read; replaced where a "
        "file of ours belongs",
        (
            "security/test_special_files_kept.py::test_c6_a_link_to_what_never_ends_is_not_read",
            "security/test_special_files_kept.py::test_naive_c6_a_link_to_what_never_ends_is_read",
            "security/test_inject.py::test_a_link_into_proc_does_not_hide_anything_from_the_runtime",
        ),
    ),
    "C7": Row(
        "one inode by several names in the plan: each gets a file of its own; chmod changes the one mode there is",
        (
            "security/test_special_files_kept.py::test_c7_one_inode_in_the_place_of_every_file_of_ours",
            "security/test_special_files_kept.py::test_naive_c7_one_inode_is_written_by_its_other_name",
            "security/test_special_files_kept.py::test_c7_chmod_of_one_name_is_chmod_of_the_inode",
        ),
    ),
    "C8": Row(
        "a sparse file of 1 TiB as configuration, cache or library: a limit of size, and less than 64 MiB of memory",
        (
            "security/test_special_files.py::test_a_special_file_neither_holds_the_hook_nor_is_lost",
            "security/test_inject.py::test_what_is_at_the_mount_point_is_covered_or_refused_and_never_touched",
            "security/test_mig.py::test_what_is_at_the_mount_point_is_covered_or_refused_and_never_touched",
            "security/test_prestart.py::test_a_configuration_that_cannot_be_used",
            "kernel/test_builtin_limits.py::test_1_tib_with_an_elf_header_costs_no_more_than_its_header",
            "unit/hook/test_enable_cuda_compat.py::test_sparse_library_of_1_tib_is_judged_by_its_version",
        ),
    ),
    "C9": Row(
        "immutable and append-only files and directories: EPERM by name and nothing changed; an "
        "append-only directory keeps the empty temporary one until it may go",
        (
            "security/test_special_files_kept.py::test_c9_what_may_not_be_changed_is_one_error_and_everything_is_as_it_was",
            "security/test_special_files_kept.py::test_c9_a_directory_that_only_takes_more_keeps_the_temporary_one_until_it_may_go",
            "unit/hook/test_chmod.py::test_an_immutable_file_is_passed_over_as_the_reference_does",
        ),
    ),
    "C10": Row(
        "mode 0000, setuid, setgid, file capabilities, other attributes: kept on what is not in the "
        "plan, not carried over to what replaces a file",
        (
            "security/test_special_files_kept.py::test_c10_modes_and_attributes_of_the_image_are_kept",
            "security/test_special_files_kept.py::test_c10_what_replaces_a_file_has_neither_its_setuid_bit_nor_its_attributes",
            "kernel/test_musl_path.py::test_a_setuid_bit_of_the_image_is_not_carried_over",
        ),
    ),
    "C11": Row(
        "overlay whiteouts, opaque directories, metacopy and redirected files where the plan has its "
        "files: as on any root",
        ("security/test_filesystems.py::test_c11_an_overlay_that_has_changed_its_lower_layer",),
    ),
    "C12": Row(
        "a FUSE server that never answers at a directory of the image: the hook ends within its "
        "limit, and who is stuck in the kernel holds no pipe of the runtime's",
        (
            "security/test_attacks_time.py::test_a_daemon_that_never_answers_holds_no_hook_inside",
            "security/test_attacks_time.py::test_naive_without_a_process_of_its_own_for_the_work_it_hangs",
            "security/test_special_files_kept.py::test_c12_a_server_that_never_answers_does_not_hold_the_runtime",
            "unit/hook/test_worker.py::test_a_worker_stuck_in_the_kernel_is_left_behind",
            "kernel/test_early_deadline.py::test_a_bundle_on_a_file_system_that_does_not_answer",
        ),
        open="createContainer in a pid namespace of the container's own, where the server has taken the request and "
        "never answers: the hook ends, and runc and crun wait for its worker, which not even SIGKILL ends",
        risk="such a container's start waits until the server answers or its mount goes; at createRuntime it does not",
    ),
    "C13": Row(
        "an automount trigger: not asked where it stands for a file; an error in time where it must be passed",
        (
            "security/test_special_files_kept.py::test_c13_an_automount_trigger_in_the_place_of_a_file_is_not_triggered",
            "security/test_special_files_kept.py::test_c13_a_trigger_that_must_be_passed_is_an_error_in_time",
        ),
    ),
}
