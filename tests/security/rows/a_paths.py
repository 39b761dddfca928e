"""A: resolution of paths, every component of every path that is worked on."""

from __future__ import annotations

from security.rows.row import Row

_P, _ODD = "security/test_paths.py::", "security/test_paths_odd.py::"
_ROOTS, _NAMES = "security/test_paths_roots.py::", "security/test_paths_names.py::"
_INJECT, _MIG = "security/test_inject.py::", "security/test_mig.py::"

ROWS: dict[str, Row] = {
    "A1": Row(
        "a component is an absolute link to the host: it leads inside the root, or to an error",
        (
            f"{_P}test_a_link_to_the_host_resolves_in_the_root",
            f"{_P}test_naive_a_link_to_the_host_is_followed",
            f"{_INJECT}test_a_link_to_the_host_resolves_in_the_root",
            f"{_MIG}test_a_link_to_the_host_resolves_in_the_root_or_is_refused",
            "security/test_prestart_targets.py::test_every_mount_target_of_another_kind_is_covered_and_not_touched",
        ),
    ),
    "A2": Row(
        "a component leads up out of the root: as A1",
        (
            f"{_P}test_a_link_to_the_host_resolves_in_the_root",
            f"{_P}test_naive_a_link_to_the_host_is_followed",
            f"{_INJECT}test_a_link_to_the_host_resolves_in_the_root",
            f"{_MIG}test_a_link_to_the_host_resolves_in_the_root_or_is_refused",
            "e2e/test_prestart_odd.py::test_links_and_odd_files_in_the_place_of_mount_points",
        ),
    ),
    "A3": Row(
        "a component is a link to the root of another process: ELOOP",
        (
            f"{_P}test_a3_the_root_of_another_process_is_not_entered",
            f"{_P}test_naive_a3_the_root_of_another_process_is_entered",
            f"{_INJECT}test_a_magic_link_is_an_error_and_nothing_is_made",
            f"{_MIG}test_a_magic_link_is_an_error_and_nothing_is_left",
        ),
    ),
    "A4": Row(
        "a component is one of the hook's own links in procfs: never entered",
        (
            f"{_P}test_a4_the_hooks_own_links_in_procfs_are_not_entered",
            f"{_P}test_naive_a4_the_hooks_own_links_in_procfs_are_entered",
            f"{_INJECT}test_a_link_into_proc_does_not_hide_anything_from_the_runtime",
            f"{_MIG}test_a_link_into_proc_does_not_hide_anything_from_the_runtime",
        ),
    ),
    "A5": Row(
        "links to themselves, circles of two, chains of 41: ELOOP; chains of 39 are followed",
        (
            f"{_ODD}test_a_parent_that_leads_in_circles_far_or_nowhere",
            f"{_ODD}test_a5_inject_refuses_a_loop",
            f"{_ODD}test_a5_mount_mig_devices_refuses_a_loop",
            "security/test_prestart_targets.py::test_what_cannot_be_mounted_or_made",
            "kernel/test_lookup.py::test_path_resolves_inside_the_root",
        ),
    ),
    "A6": Row(
        "a parent is a dangling link: an error, or made inside the root",
        (
            f"{_ODD}test_a_parent_that_leads_in_circles_far_or_nowhere",
            f"{_P}test_a_link_to_the_host_resolves_in_the_root",
            f"{_P}test_naive_a_link_to_the_host_is_followed",
        ),
    ),
    "A7": Row(
        "a dangling link where a file is to be made: replaced, and not written through",
        (
            f"{_P}test_a7_a_dangling_link_is_replaced_and_not_written_through",
            f"{_P}test_naive_a7_a_dangling_link_is_written_through",
        ),
    ),
    "A8": Row(
        "merged directories (usr is `.`, lib is usr/lib, lib64 is lib): as good as others",
        (
            f"{_ODD}test_a8_merged_directories_are_as_good_as_others",
            "kernel/test_lookup.py::test_path_resolves_inside_the_root",
        ),
    ),
    "A9": Row(
        "the root through a link, dots, relative: taken; the host's, empty, missing, a file, a link itself: refused",
        (
            f"{_ROOTS}test_a9_a_root_however_it_is_given",
            f"{_ROOTS}test_a9_an_empty_root_is_refused",
            f"{_ROOTS}test_naive_a9_a_link_is_a_root",
            "security/test_state.py::test_g6_the_hosts_root_is_refused",
            "kernel/test_rootfs.py::test_root_that_is_none_is_refused",
        ),
    ),
    "A10": Row(
        "the root is hidden by another mount: the visible one is worked on throughout",
        (
            f"{_ROOTS}test_a10_what_hides_the_root_is_the_root",
            "kernel/test_rootfs.py::test_root_hidden_by_a_mount_is_the_visible_one_throughout",
        ),
    ),
    "A11": Row(
        "components of 255 and paths of 4095 bytes are taken, longer ones are ENAMETOOLONG",
        (
            f"{_NAMES}test_a11_a_link_with_a_long_path",
            f"{_NAMES}test_a11_chmod_of_a_long_path",
            f"{_NAMES}test_a11_a_long_folder",
            f"{_NAMES}test_a11_a_long_line_in_ld_so_conf",
            f"{_NAMES}test_a11_a_link_of_the_image_with_a_long_text",
        ),
    ),
    "A12": Row(
        "names with newlines, bytes that are no UTF-8, controls, right-to-left marks: made as they are, one line of it",
        (
            f"{_NAMES}test_a12_a_hostile_name_is_made_as_it_is_or_named_in_one_line",
            f"{_NAMES}test_a12_two_colons_in_a_name_are_refused",
            f"{_NAMES}test_a12_hostile_names_in_the_image",
            f"{_NAMES}test_naive_a12_a_hostile_name_acts",
        ),
    ),
    "A13": Row(
        "dots, double and trailing slashes in the paths of a plan: the same path",
        (
            f"{_ODD}test_a13_odd_spellings_are_the_same_path",
            "kernel/test_lookup.py::test_path_resolves_inside_the_root",
        ),
    ),
    "A14": Row(
        "a link of the image leads into a volume: an error that names it; a volume that the path itself names is meant",
        (
            "security/test_attacks_volumes.py::test_a_link_of_the_image_leads_into_no_volume",
            "security/test_attacks_volumes.py::test_a_link_in_a_named_volume_is_nobody_s_word",
            "security/test_attacks_volumes.py::test_the_driver_s_profile_goes_into_no_volume",
            "security/test_attacks_volumes_userns.py::test_a_link_leads_into_no_volume_that_the_container_s_root_owns",
            "security/test_attacks_staging.py::test_a_mount_with_our_name_is_not_emptied",
            f"{_ROOTS}test_a14_a_link_into_a_volume_is_an_error_that_names_it",
            f"{_ROOTS}test_naive_a14_a_link_into_a_volume_is_followed",
            f"{_ROOTS}test_a14_a_volume_that_is_named_is_meant",
            "kernel/test_hostmounts.py::test_a_link_does_not_lead_into_a_volume",
            "kernel/test_prestart_points.py::test_a_link_into_a_volume_of_the_host_is_refused_to_host_s_root_too",
        ),
    ),
    "A15": Row(
        "a directory that the root of a user namespace may not enter: EACCES that names it",
        (
            f"{_ROOTS}test_a15_a_directory_that_may_not_be_entered_is_named",
            "e2e/test_userns.py::test_from_inside_a_root_of_host_root_is_a_clear_error",
        ),
    ),
    "A16": Row(
        "the root is mounted in itself: one root",
        (f"{_ROOTS}test_a16_a_root_in_itself_is_one_root",),
    ),
    "A17": Row(
        "a directory where a file is expected, and the reverse: EISDIR or ENOTDIR, and not removed",
        (
            f"{_ODD}test_a17_the_wrong_kind_is_an_error_that_names_it",
            "security/test_special_files.py::test_a_special_file_neither_holds_the_hook_nor_is_lost",
            f"{_INJECT}test_what_is_at_the_mount_point_is_covered_or_refused_and_never_touched",
            f"{_MIG}test_what_is_no_directory_is_an_error",
            "security/test_prestart_targets.py::test_every_mount_target_that_is_a_directory_is_an_error_that_names_it",
            "security/test_prestart_targets.py::test_every_mount_target_below_something_else_is_an_error_that_names_it",
        ),
    ),
}
