"""Letter F: what is parsed. Each parser is a target of tests/fuzz as well."""

from __future__ import annotations

from security.rows.row import Row

ROWS: dict[str, Row] = {
    "F1": Row(
        "an ld.so.conf that includes itself: read once",
        (
            "security/test_parsers.py::test_f2_includes_in_a_circle_end",
            "fuzz/test_conf_cases.py::test_it_ends_soon_with_what_is_there_or_one_named_limit",
        ),
    ),
    "F2": Row(
        "files that include each other by a glob: they end at once",
        (
            "security/test_parsers.py::test_f2_includes_in_a_circle_end",
            "security/test_parsers.py::test_naive_f2_includes_in_a_circle_do_not_end",
            "unit/ldcache/test_conf.py::test_a_mutual_include_of_many_files_ends_at_once",
        ),
    ),
    "F3": Row(
        "includes 10,000 deep, bombs of globs and classes: one error that names the limit",
        (
            "security/test_attacks_time.py::test_six_kilobytes_of_configuration_are_not_worth_half_a_minute",
            "security/test_attacks_time.py::test_the_processor_s_time_has_a_limit",
            "security/test_parsers_files.py::test_f3_f4_an_odd_ld_so_conf_is_passed_over_or_one_error",
            "fuzz/test_conf_cases.py::test_it_ends_soon_with_what_is_there_or_one_named_limit",
            "fuzz/test_conf_cases.py::test_it_takes_no_more_memory_than_one_file_and_its_lines",
        ),
    ),
    "F4": Row(
        "lines of 10 MiB, without end, with NUL, CR, a byte order mark, hwcap, an empty include, no "
        "UTF-8: passed over, or one error",
        (
            "security/test_parsers_files.py::test_f3_f4_an_odd_ld_so_conf_is_passed_over_or_one_error",
            "fuzz/test_conf_cases.py::test_it_ends_soon_with_what_is_there_or_one_named_limit",
            "fuzz/test_targets.py::test_every_cut_and_every_number_at_its_limits_holds",
        ),
    ),
    "F5": Row(
        "malformed ELF of every kind: less than 10 ms each, left out of the cache, and the others are in it",
        (
            "security/test_parsers.py::test_f5_a_malformed_library_is_no_obstacle",
            "security/test_parsers.py::test_naive_f5_a_malformed_library_ends_the_hook",
            "fuzz/test_elf_cases.py::test_an_odd_file_is_one_error_or_an_answer_in_little_time",
            "fuzz/test_elf_cases.py::test_the_same_of_what_the_cache_would_say_of_it",
            "unit/test_elf.py::test_every_truncation_is_an_error_or_the_whole_answer",
        ),
    ),
    "F6": Row(
        "sonames that are paths, absolute, empty, dots, or too long: no link is made",
        (
            "security/test_parsers.py::test_f6_a_soname_that_is_a_path_makes_no_link",
            "security/test_parsers.py::test_naive_f6_a_soname_that_is_a_path_makes_a_link",
            "kernel/test_builtin_limits.py::test_a_soname_that_is_no_file_name_is_neither_linked_nor_listed",
        ),
    ),
    "F7": Row(
        "an ld.so.cache that is cut at any byte, counts wrong, leads out of itself, is old or of the "
        "other byte order: made anew, byte by byte as without it",
        (
            "security/test_parsers_files.py::test_f7_a_damaged_cache_is_made_anew",
            "security/test_parsers_files.py::test_f7_a_cache_cut_anywhere_is_made_anew",
            "unit/ldcache/test_cache.py::test_every_truncation_and_random_damage_is_one_error_or_an_answer",
            "fuzz/test_cache_cases.py::test_a_cache_that_lies_is_an_error_or_an_answer",
            "fuzz/test_cache_cases.py::test_entries_out_of_order_are_read_in_the_files_order",
        ),
    ),
    "F8": Row(
        "any aux-cache: neither read nor made",
        ("security/test_parsers_files.py::test_f8_the_auxiliary_cache_is_neither_read_nor_made",),
    ),
    "F9": Row(
        "os-release, debian_version, alpine-release with shell code, of 1 MiB, with duplicates: data only",
        ("security/test_parsers_files.py::test_f9_what_the_image_says_it_is_is_data_only",),
    ),
    "F10": Row(
        "the driver's parameters, mountinfo with octal escapes and with 100,000 lines, device tables: read right",
        (
            "security/test_parsers_files.py::test_f10_the_drivers_parameters_may_be_anything",
            "security/test_parsers_files.py::test_f10_mounts_of_names_that_mountinfo_escapes",
            "security/test_faults_calls.py::test_d11_a_full_mount_table_is_one_error_that_names_the_limit",
            "kernel/test_mountinfo.py::test_own_mounts_agree_with_findmnt",
            "kernel/test_mountinfo.py::test_mountinfo_parser_takes_optional_fields_and_refuses_garbage",
            "fuzz/test_targets.py::test_every_cut_and_every_number_at_its_limits_holds",
        ),
    ),
    "F11": Row(
        "CSV, TOML and CDI inputs with bombs of aliases, tags, duplicate or unknown keys, huge "
        "numbers: refused by name, in time",
        (
            "unit/cdi/test_yaml.py::test_aliases_count_as_what_they_stand_for",
            "unit/cdi/test_yaml.py::test_what_cannot_be_json_is_refused_by_line",
            "unit/cdi/test_yaml.py::test_nesting_without_end_is_refused_early",
            "unit/cdi/test_yaml.py::test_anchors_are_counted",
            "unit/cdi/test_document.py::test_an_unknown_field_is_named_with_its_place",
            "unit/cdi/test_document.py::test_a_number_has_the_range_of_its_type",
            "unit/prestart/test_compile.py::test_a_value_of_another_type_is_refused_by_name",
            "unit/discover/test_tegra.py::test_a_bad_entry_is_one_line_and_left_out",
            "security/test_prestart.py::test_a_configuration_that_cannot_be_used",
        ),
    ),
    "F12": Row(
        "versions, UUIDs, MIG ids, NVIDIA_VISIBLE_DEVICES of 1 MiB, with NUL, .., all with none, "
        "duplicates: the grammar, or one error",
        (
            "security/test_prestart.py::test_variables_that_mean_nothing",
            "security/test_prestart.py::test_all_and_none_are_all_and_a_name_given_twice_counts_once",
            "unit/prestart/test_devices.py::test_a_name_that_no_device_has",
            "unit/prestart/test_devices.py::test_thousands_of_names_take_milliseconds",
            "security/test_mig.py::test_a_number_that_is_none_is_refused_before_anything_is_done",
        ),
    ),
    "F13": Row(
        "NVIDIA_REQUIRE expressions of the greatest length and worst form: less than 10 ms",
        (
            "unit/prestart/test_requirements.py::test_an_expression_is_read_in_less_than_ten_milliseconds",
            "unit/prestart/test_requirements.py::test_limits",
        ),
    ),
}
