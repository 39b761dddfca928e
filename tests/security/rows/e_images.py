"""Letter E: what kind of image it is."""

from __future__ import annotations

from security.rows.row import Row

ROWS: dict[str, Row] = {
    "E1": Row(
        "no /etc: it is made inside the root",
        (
            "security/test_images.py::test_an_image_of_this_shape_starts",
            "security/test_images.py::test_naive_an_image_without_etc_does_not_start",
        ),
    ),
    "E2": Row(
        "neither ld.so.cache nor ld.so.conf: both are made",
        (
            "security/test_images.py::test_an_image_of_this_shape_starts",
            "kernel/test_update_ldcache.py::test_image_without_any_configuration",
        ),
    ),
    "E3": Row(
        "musl: its path file gets the folders once, the image's own entries stay and come first",
        (
            "security/test_attacks_volumes_read.py::test_what_root_alone_can_read_is_not_copied_for_all",
            "security/test_images.py::test_an_image_of_this_shape_starts",
            "kernel/test_musl_path.py::test_a_second_run_changes_nothing",
            "kernel/test_musl_path.py::test_the_folder_of_an_earlier_driver_is_forgotten_and_the_images_entries_stay",
            "diff/test_layouts.py::test_musl_searches_what_the_image_says_and_then_the_drivers_folder",
        ),
    ),
    "E4": Row(
        "distroless: no shell and no configuration of the loader: as usual",
        (
            "security/test_images.py::test_an_image_of_this_shape_starts",
            "diff/test_layouts.py::test_the_cache_is_ldconfigs",
        ),
    ),
    "E5": Row(
        "scratch with one static program: as usual",
        ("security/test_images.py::test_an_image_of_this_shape_starts",),
    ),
    "E6": Row(
        "layouts of distributions: the cache is that of their ldconfig, in its order",
        (
            "diff/test_layouts.py::test_the_cache_is_ldconfigs",
            "diff/test_layouts.py::test_every_injected_soname_is_found_and_of_this_driver",
            "diff/test_layouts.py::test_a_second_run_changes_nothing",
            "diff/test_containers.py::test_every_injected_soname_loads",
        ),
    ),
    "E7": Row(
        "libraries of another machine: left out by name",
        (
            "security/test_images.py::test_an_image_of_this_shape_starts",
            "unit/ldcache/test_library.py::test_another_machine_is_named",
        ),
    ),
    "E8": Row(
        "an image that has our library as a file, a link or an older version: covered by the mount, and not lost",
        (
            "security/test_images.py::test_an_image_of_this_shape_starts",
            "security/test_inject.py::test_what_is_at_the_mount_point_is_covered_or_refused_and_never_touched",
            "kernel/test_builtin_engine.py::test_after_an_upgrade_and_a_downgrade_the_mounted_driver_is_found",
            "e2e/test_prestart_odd.py::test_links_and_odd_files_in_the_place_of_mount_points",
        ),
    ),
    "E9": Row(
        "/etc/ld.so.preload in the image: nothing of ours reads it",
        ("security/test_images.py::test_an_image_of_this_shape_starts",),
    ),
    "E10": Row(
        "compatibility libraries that are newer, older, two, or of no version: the documented rule, "
        "and a drop-in instead of a mount",
        (
            "security/test_images.py::test_e10_compat_libraries_are_configured_and_never_mounted",
            "unit/hook/test_enable_cuda_compat.py::test_decision",
            "unit/hook/test_enable_cuda_compat.py::test_more_than_one_library_is_a_warning",
            "e2e/test_prestart_odd.py::test_compatibility_libraries_of_the_image",
        ),
    ),
    "E11": Row(
        "100,000 links and 1,000,000 names in one directory: bounded time and memory",
        (
            "security/test_images.py::test_e11_a_crowded_directory_takes_bounded_time_and_memory",
            "kernel/test_builtin_limits.py::test_100_000_links_to_one_file_take_seconds",
            "kernel/test_builtin_limits.py::test_a_file_is_opened_once_however_many_links_lead_to_it",
        ),
    ),
    "E12": Row(
        "10,000 directories in ld.so.conf: as usual; more than are allowed is one error",
        (
            "security/test_images.py::test_e12_ten_thousand_configured_directories",
            "kernel/test_builtin_limits.py::test_17_000_configured_directories_are_one_error",
            "kernel/test_builtin_limits.py::test_4_000_existing_directories_are_searched",
        ),
    ),
    "E13": Row(
        "a container without /dev, /proc and /sys, as mounts or at all: as usual",
        ("security/test_images.py::test_e13_a_container_without_the_usual_mounts",),
    ),
    "E14": Row(
        "the host's own root as the container's: refused, however it is spelled",
        (
            "security/test_images.py::test_e14_the_hosts_own_root_is_refused",
            "kernel/test_rootfs.py::test_root_that_is_none_is_refused",
        ),
    ),
    "E15": Row(
        "/etc/tunables.conf in the image: nothing of ours reads it",
        ("security/test_images.py::test_an_image_of_this_shape_starts",),
    ),
}
