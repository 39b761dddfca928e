"""Q: configuration, specifications, and how the programs come to the host."""

from __future__ import annotations

from security.rows.row import Row

SPECS, INSTALL = "security/test_config_specs.py", "security/test_config_install.py"

ROWS = {
    "Q1": Row(
        "a specification or its directory another's, for all to write, a FIFO, link, 1 GiB, not UTF-8: named, not read",
        (
            f"{SPECS}::test_q1_a_specification_that_is_not_to_be_trusted_gives_no_device",
            f"{SPECS}::test_q1_a_link_to_one_of_root_s_is_one",
            "unit/cdi/test_specdir_refusals.py::test_what_is_no_file_of_ours_is_refused_at_once",
            "unit/cdi/test_specdir_refusals.py::test_a_directory_that_others_can_write_is_refused",
            "unit/ctl/test_cdi_check.py::test_one_that_cannot_be_read_is_broken",
            "unit/ctl/test_cdi_generate.py::test_a_directory_that_others_can_write_is_refused_before_the_node_is_looked_at",
        ),
    ),
    "Q2": Row(
        "one device in two specifications of one directory: in neither, and both are named",
        (
            f"{SPECS}::test_q2_a_device_in_two_files_of_one_directory_is_in_neither",
            "unit/cdi/test_specdir.py::test_a_device_in_two_files_of_one_priority_is_in_neither",
            "unit/ctl/test_cdi_check.py::test_two_of_one_priority_are_broken",
        ),
    ),
    "Q3": Row(
        "hook programs that others could change are told and not run; LD_PRELOAD in the env of ours does nothing",
        (
            f"{SPECS}::test_q3_a_hook_program_that_is_not_the_host_s_is_not_run",
            f"{SPECS}::test_q3_the_environment_of_a_hook_of_ours_in_a_specification_loads_nothing",
            "unit/ctl/test_cdi_programs.py::test_a_directory_that_others_can_write_is_told_and_nothing_run",
            "unit/inject/test_program.py::test_a_program_that_others_could_change_is_refused",
            "simnode/test_generate.py::test_on_a_sample_the_output_is_that_of_the_reference_to_the_byte",
        ),
        open="a specification of root's that mounts `/` or gives /dev/sda is obeyed, by us as by every engine",
        risk="who writes to a directory of specifications, root alone, gives containers whatever they like",
    ),
    "Q4": Row(
        "config.toml: wrong types, relative paths, an ldconfig without `@` are refused by key, unknown keys told once",
        (
            "security/test_prestart.py::test_a_configuration_that_cannot_be_used",
            "unit/prestart/test_compile.py::test_a_value_of_another_type_is_refused_by_name",
            "unit/prestart/test_compile.py::test_a_value_that_cannot_be_is_refused_by_name",
            "unit/prestart/test_compile.py::test_unknown_keys_are_warned_about_once",
            "unit/ctl/test_tomlconfig.py::test_a_bad_file_is_one_error",
            "security/test_cves.py::test_cve_2024_0135_ldconfig_runs_from_a_sealed_copy",
        ),
    ),
    "Q5": Row(
        "a driver root by a link or with `..`, or none; its links to secrets of the host lead nowhere",
        (
            f"{SPECS}::test_q5_no_link_of_a_driver_root_leads_to_the_host",
            "unit/discover/test_search.py::test_a_root_may_be_named_through_a_link",
            "unit/discover/test_search.py::test_a_root_that_is_none_is_one_line",
            "unit/discover/test_libraries.py::test_absolute_links_stay_in_the_driver_root",
        ),
    ),
    "Q6": Row(
        "the programs are removed, replaced or taken back to an older version while a hook runs: all or nothing",
        (
            f"{INSTALL}::test_q6_a_hook_that_runs_while_it_is_removed_does_all_or_nothing",
            "install/test_install.py::test_a_running_hook_sees_one_version_all_its_life",
            "install/test_install.py::test_going_back_to_the_version_before_only_moves_the_link",
            "install/test_units.py::test_uninstall_leaves_nothing_and_says_what_else_there_may_be",
        ),
        open="specifications that name the programs are not removed with them: told, since they may be anybody's",
        risk="a container of a specification that is left does not start, and the runtime names the missing program",
    ),
    "Q7": Row(
        "what is installed is root's, 0755 and 0644, without setuid or attributes, and the same each time",
        (
            f"{INSTALL}::test_q7_what_is_installed_is_root_s_and_without_special_modes_and_twice_the_same",
            "install/test_install.py::test_owner_and_modes_do_not_depend_on_umask",
            "install/test_install.py::test_wheels_and_venv_give_the_same",
            "install/test_install.py::test_manifest_lists_every_file_with_hash_and_mode",
        ),
    ),
}
