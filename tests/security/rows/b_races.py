"""B: races. A round is one lookup, read or mount under a process that exchanges two names as fast as it can."""

from __future__ import annotations

from security.rows.row import Row

_R, _HOOKS = "security/test_races.py::", "security/test_races_hooks.py::"
_FILES, _STATE = "security/test_races_files.py::", "security/test_races_state.py::"
_MADE = "test_b3_a_mount_point_that_is_made_while_its_directory_flips_is_in_the_root"

ROWS: dict[str, Row] = {
    "B1": Row(
        "a parent, target or file is a link out every other moment: 0 escapes in 500 rounds each, 20,000 with --long",
        (
            f"{_R}test_a_flipping_parent_never_leads_out_of_the_root",
            f"{_R}test_naive_a_flipping_parent_leads_out",
            f"{_HOOKS}test_what_is_exchanged_is_taken_in_the_root_or_refused",
            f"{_HOOKS}test_naive_what_is_exchanged_is_followed",
            f"{_HOOKS}test_the_builtin_engine_while_what_it_works_on_is_exchanged",
            "security/test_ldcache_races.py::test_what_is_exchanged_is_taken_or_refused",
            "security/test_ldcache_races.py::test_naive_what_is_exchanged_is_written_through",
        ),
    ),
    "B2": Row(
        "a parent flips while directories are made: none outside",
        (
            "security/test_attacks_races.py::test_a_directory_put_in_the_place_of_a_new_one_keeps_its_mode",
            f"{_R}test_a_flipping_parent_never_leads_out_of_the_root",
            f"{_R}test_naive_a_flipping_parent_leads_out",
            "security/test_cves_images.py::test_cve_2024_45310_directories_made_in_a_volume_that_flips",
        ),
    ),
    "B3": Row(
        "a mount point, or a directory above it, flips: mounted on what was opened, or refused",
        (
            f"{_R}test_b3_a_flipping_mount_target_is_the_opened_one_or_refused",
            f"{_R}test_b3_hook_processes_with_a_flipping_target",
            f"{_R}test_naive_b3_a_flipping_target_is_mounted_on_the_host_path",
            f"security/test_inject.py::{_MADE}",
            "security/test_inject.py::test_naive_b3_a_flipping_directory_leads_out",
            f"security/test_mig.py::{_MADE}",
            "security/test_prestart_races.py::test_b3_what_is_mounted_while_a_directory_above_flips_is_in_the_root",
            "security/test_prestart_races.py::test_b3_a_mount_point_that_flips_itself_is_mounted_on_or_refused",
            "security/test_races_targets.py::test_b3_a_mount_point_that_flips_itself_is_mounted_on_or_refused",
            "security/test_races_targets.py::test_naive_b3_a_mount_point_that_flips_is_the_host_s",
            "kernel/test_mount_races.py::test_target_swapped_while_mounting_is_never_missed",
        ),
    ),
    "B4": Row(
        "a file or node under the driver root flips: what was opened and judged is what is mounted",
        (
            f"{_FILES}test_b4_what_was_opened_under_the_driver_root_is_what_is_mounted",
            f"{_FILES}test_b4_a_node_that_flips_has_its_number_or_is_not_given",
            "kernel/test_prestart_sources.py::test_in_a_race_for_a_directory_no_other_is_mounted",
        ),
    ),
    "B5": Row(
        "a file is a FIFO every other moment: nothing waits",
        (
            f"{_R}test_b5_a_file_that_becomes_a_fifo_is_never_opened",
            f"{_R}test_b5_a_library_that_becomes_a_fifo_blocks_nothing",
            f"{_R}test_naive_b5_a_library_that_becomes_a_fifo_blocks",
            "security/test_ldcache_races.py::test_what_is_exchanged_is_taken_or_refused",
            "security/test_ldcache_races.py::test_naive_what_is_exchanged_holds_it",
        ),
    ),
    "B6": Row(
        "a file is cut off while it is read: an error, or what it is by then",
        (f"{_FILES}test_b6_a_file_that_is_cut_off_while_it_is_read",),
    ),
    "B7": Row(
        "a directory is carried out of the root while `..` is walked: never outside",
        (
            f"{_FILES}test_b7_a_directory_that_is_carried_out_while_it_is_walked",
            f"{_FILES}test_naive_b7_dots_lead_out",
            "kernel/test_lookup.py::test_directory_moved_out_while_walking_is_not_followed",
        ),
    ),
    "B8": Row(
        "what a hook made was changed between two runs: the second leaves what the first one left",
        (f"{_FILES}test_b8_a_second_run_is_consistent",),
    ),
    "B9": Row(
        "a neighbour removes our temporaries, or their directory, all the time: success or an error, soon",
        (
            "security/test_attacks_staging.py::test_another_user_s_directory_is_not_used",
            f"{_FILES}test_b9_b10_a_neighbour_at_our_temporaries",
        ),
    ),
    "B10": Row(
        "a neighbour puts a hard link to another file in the place of our temporary: that file is not changed",
        (
            f"{_FILES}test_b9_b10_a_neighbour_at_our_temporaries",
            f"{_FILES}test_naive_b10_a_temporary_is_written_by_name",
        ),
    ),
    "B11": Row(
        "a storm of renames elsewhere: always a success",
        (
            f"{_R}test_b11_renames_elsewhere_never_make_a_hook_fail",
            f"{_R}test_naive_b11_one_try_is_not_enough",
            "kernel/test_lookup.py::test_eagain_is_retried_and_then_walked",
        ),
    ),
    "B12": Row(
        "a storm of mounts elsewhere: always a success",
        (f"{_STATE}test_b12_a_storm_of_mounts_never_makes_a_hook_fail",),
    ),
    "B13": Row(
        "a peer deletes or replaces ld.so.cache at each step: never half a file",
        (
            f"{_STATE}test_b13_the_cache_is_whole_whatever_a_peer_does_at_each_step",
            f"{_STATE}test_b13_a_reader_never_sees_half_a_cache",
            f"{_STATE}test_naive_b13_a_cache_that_is_written_in_place_is_seen_half",
        ),
    ),
    "B14": Row(
        "config.json or the bundle is exchanged: one read, one root",
        (
            f"{_STATE}test_b14_config_json_is_read_once",
            f"{_STATE}test_b14_a_process_works_on_one_root",
            f"{_STATE}test_naive_b14_a_fifo_in_its_place_is_waited_for",
        ),
    ),
}
