"""O: what a hook process is started with, and the interpreter."""

from __future__ import annotations

from security.rows.row import Row

ENVIRONMENT = "security/test_environment.py::"
PROGRAMS = "security/test_environment_programs.py::"
INSTALLED = "security/test_environment_installed.py::"

ROWS = {
    "O1": Row(
        "LD_PRELOAD of the image, which leads into the container: not loaded",
        (f"{ENVIRONMENT}test_o1_o4_nothing_of_the_image_is_loaded",
         f"{ENVIRONMENT}test_naive_o1_o4_the_image_is_loaded",
         "e2e/test_hostile_environment.py::test_with_an_env_in_the_entry_nothing_of_the_image_arrives"),
        open="containerd is not on the machine of the tests",
        risk="it starts the same runc; what it writes into config.json is covered by O3",
    ),
    "O2": Row(
        "variables of loader, C library, interpreter, shell, NVIDIA and CUDA, for all three programs: no effect",
        (f"{PROGRAMS}test_o2_variables_have_no_effect", f"{PROGRAMS}test_naive_o2_the_trap_betrays_its_use",
         f"{INSTALLED}test_o2_on_real_runtimes",
         "e2e/test_hostile_environment.py::test_without_it_no_module_of_the_image_is_imported",
         "e2e/test_hostile_environment.py::test_the_environment_of_the_runtime_does_no_harm",
         "unit/hook/test_process.py::test_a_dangerous_environment_is_named_in_one_bounded_warning"),
        open="LD_PRELOAD, LD_AUDIT and, from Python 3.11 on, PYTHONEXECUTABLE act before the program does",
        risk="an entry without env at createContainer, with runc before 1.3, runs what the image names: ours have env",
    ),
    "O3": Row(
        "every hook entry that is handed out has an environment of its own",
        (f"{ENVIRONMENT}test_o3_every_entry_has_an_environment_of_its_own", f"{ENVIRONMENT}test_o3_there_are_entries",
         f"{ENVIRONMENT}test_naive_o3_an_entry_without_an_environment_is_found"),
    ),
    "O4": Row(
        "modules of every name in the working directory: none is imported",
        (f"{ENVIRONMENT}test_o1_o4_nothing_of_the_image_is_loaded",
         f"{ENVIRONMENT}test_o4_the_working_directory_is_never_imported_from",
         f"{ENVIRONMENT}test_naive_o1_o4_the_image_is_loaded",
         "install/test_install.py::test_environment_and_directory_do_not_reach_a_hook"),
    ),
    "O5": Row(
        "a working directory that is deleted, closed, unmounted, or on a file system that hangs: no effect",
        (f"{PROGRAMS}test_o5_the_working_directory_has_no_effect",
         f"{PROGRAMS}test_naive_o5_a_hung_directory_hangs"),
    ),
    "O6": Row(
        "odd first words, no words, very long ones, values that look like options: one bounded error, or just a name",
        (f"{INSTALLED}test_o6_words_that_are_wrong_are_one_error", f"{INSTALLED}test_o6_names_are_names",
         f"{INSTALLED}test_o6_many_words_are_taken", f"{INSTALLED}test_o6_the_first_word_has_no_effect",
         f"{INSTALLED}test_o6_the_others_refuse_such_words_too"),
    ),
    "O7": Row(
        "descriptors 3 and up are closed first; 0 to 2, where closed, are not used for anything else",
        (f"{ENVIRONMENT}test_o7_foreign_descriptors_are_closed",
         f"{ENVIRONMENT}test_o7_closed_standard_descriptors_are_not_reused",
         f"{ENVIRONMENT}test_naive_o7_foreign_descriptors_stay_open",
         "unit/hook/test_process.py::test_a_thousand_inherited_descriptors_are_closed_first"),
    ),
    "O8": Row(
        "no core, and no process of the same user can look into it",
        (f"{PROGRAMS}test_o8_others_of_the_same_user_cannot_look_into_it", f"{PROGRAMS}test_o8_it_leaves_no_core",
         f"{PROGRAMS}test_naive_o8_another_program_leaves_one",
         "unit/hook/test_process.py::test_the_process_cannot_be_dumped_and_leaves_no_core"),
    ),
    "O9": Row(
        "files of the hooks that others can change or exchange: not run",
        ("security/test_attacks_races.py::test_no_directory_that_a_hook_loads_from_may_be_anybody_s",
         f"{INSTALLED}test_o9_what_others_can_change_is_not_run",
         f"{INSTALLED}test_o9_nor_what_lies_behind_a_link_where_others_can_exchange_it",
         f"{INSTALLED}test_o9_as_it_is_it_runs",
         "install/test_hot.py::test_a_bundle_that_others_can_write_is_refused",
         "install/test_refusals.py::test_a_prefix_that_others_can_write",
         "install/test_check_and_uninstall.py::test_check_finds_damage_and_its_command_mends_it"),
        open="a start looks at the directories and the first files, not at every file",
        risk="a single file that root gave away is found by `scripts/install --check` alone",
    ),
    "O10": Row(
        "compiled files that are stale or somebody else's: not used, and none is written",
        (f"{INSTALLED}test_o10_compiled_files_of_others_are_not_used",
         f"{INSTALLED}test_o10_a_compiled_file_that_is_stale_does_no_harm",
         f"{INSTALLED}test_naive_o10_a_compiled_file_elsewhere_is_used",
         "install/test_install.py::test_a_pyc_is_used_and_none_is_written",
         "install/test_install.py::test_every_source_has_an_unchecked_hash_pyc"),
    ),
    "O11": Row(
        "no locale, C, one that is not there, no UTF-8: no effect",
        (f"{PROGRAMS}test_o11_the_locale_has_no_effect",
         "unit/hook/test_process.py::test_names_reach_the_container_byte_for_byte_in_every_locale"),
    ),
    "O12": Row(
        "after the container's root is entered every import raises",
        (f"{PROGRAMS}test_o12_after_sealing_no_import_succeeds",
         "unit/hook/test_process.py::test_after_sealing_no_import_succeeds_and_none_was_off_the_list"),
    ),
}  # fmt: skip
