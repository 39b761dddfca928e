"""G: the state on stdin, and config.json."""

from __future__ import annotations

from security.rows.row import Row

DOCS = "security/test_state_documents.py"
STATE = "security/test_state.py"
FINE, REFUSED = f"{DOCS}::test_what_the_hook_need_not_know_is_data", f"{DOCS}::test_what_no_runtime_says_is_one_error"

ROWS = {
    "G1": Row(
        "stdin empty, closed, a terminal, a directory, or a pipe that nobody closes: one error, after 5 s at most",
        (
            f"{STATE}::test_g2_a_stdin_without_a_state_is_one_error",
            f"{STATE}::test_g2_a_stdin_that_is_never_closed_is_given_up",
            f"{DOCS}::test_g1_a_stdin_of_another_kind_is_one_error",
            f"{DOCS}::test_g1_a_directory_is_refused_by_the_interpreter_itself",
            f"{DOCS}::test_g1_a_stdin_that_says_nothing_is_given_up_after_five_seconds",
            "unit/oci/test_state.py::test_a_writer_that_drips_does_not_move_the_deadline",
        ),
    ),
    "G2": Row(
        "100 MiB on stdin, or no end at all: refused after 1 MiB",
        (
            f"{STATE}::test_g2_a_stdin_without_a_state_is_one_error",
            f"{DOCS}::test_g3_a_document_that_is_no_state_is_one_error",
            f"{DOCS}::test_g3_white_space_may_follow_and_1_mib_is_read",
        ),
    ),
    "G3": Row(
        "nested 100,000 deep, numbers of a million digits, NaN, keys twice, a mark, UTF-16, two documents: refused",
        (
            f"{DOCS}::test_g3_a_document_that_is_no_state_is_one_error",
            f"{DOCS}::test_naive_g3_it_is_taken_or_falls_through",
            "unit/test_jsonfile.py::test_a_document_is_refused_with_a_short_reason",
        ),
    ),
    "G4": Row(
        "pid missing, 0, 1, negative, too large, no number, a kernel thread's, the hook's own, by stage and program",
        (
            f"{STATE}::test_g4_a_pid_that_is_none_is_refused_outside",
            f"{STATE}::test_g4_a_kernel_thread_is_refused",
            f"{STATE}::test_g4_without_a_pid_files_are_worked_on_in_the_root",
            f"{STATE}::test_g4_inside_the_pid_is_never_used",
            "unit/hook/test_enter.py::test_the_hooks_own_pid_is_refused",
            "security/test_prestart.py::test_a_process_that_is_not_the_container_s",
            "unit/prestart/test_cliconfigure.py::test_one_that_is_gone",
        ),
    ),
    "G5": Row(
        "bundle missing, relative, `/`, with NUL or surrogate, of 10 KiB, by its old name: one error where needed",
        (
            f"{DOCS}::test_g5_a_bundle_that_is_none_is_one_error",
            f"{DOCS}::test_g5_the_bundle_by_its_old_name_is_checked_as_well",
            f"{DOCS}::test_g5_with_a_root_of_the_state_the_bundle_is_not_needed",
        ),
    ),
    "G6": Row(
        "root of the state relative, absolute or missing: it wins, and config.json is opened only without it",
        (
            f"{STATE}::test_g6_the_states_root_wins_and_config_is_not_opened",
            f"{STATE}::test_g6_the_hosts_root_is_refused",
            f"{STATE}::test_g6_without_a_root_config_is_read_once_and_carefully",
            "e2e/test_stages.py::test_the_root_as_config_json_names_it",
            "e2e/test_stages.py::test_each_stage_gives_what_the_hook_is_made_for",
        ),
    ),
    "G7": Row(
        "config.json missing, a FIFO, a link, 1 GiB, another's, or for all to write: one error that names it",
        (
            f"{STATE}::test_g6_without_a_root_config_is_read_once_and_carefully",
            f"{STATE}::test_g7_config_json_is_refused_by_both_programs",
            f"{STATE}::test_g7_a_config_json_that_cannot_be_read_is_named",
            "unit/oci/test_config.py::test_a_file_that_the_runtime_did_not_make_is_refused",
            "unit/oci/test_config.py::test_a_config_that_gives_no_path_is_refused_by_name",
        ),
    ),
    "G8": Row("a status that runtimes say is taken, any other refused", (FINE, REFUSED)),
    "G9": Row(
        "100,000 annotations, hostile text in them, ours twice in different case: data, and time and memory bounded",
        (
            FINE,
            "unit/inject/test_main.py::test_a_bad_annotation_is_one_error",
            "unit/inject/test_main.py::test_annotations_count_only_when_asked_for_and_add_to_the_devices_named",
        ),
    ),
    "G10": Row(
        "ociVersion 0.x, 9.9, missing or no text in the state: not looked at, and not warned of",
        (FINE, "unit/oci/test_spec.py::test_a_config_without_sound_variables_is_refused"),
    ),
    "G11": Row("a container id with `/`, `..`, a newline, of 4 KiB: part of no path, and of no line", (FINE, REFUSED)),
    "G12": Row(
        "hooks that were injected twice: the second run changes nothing",
        (
            f"{DOCS}::test_g12_a_hook_that_is_injected_twice_leaves_what_one_leaves",
            "e2e/test_run.py::test_two_stages_of_one_start_leave_what_one_leaves",
            "e2e/test_run.py::test_a_second_start_changes_nothing",
            "e2e/test_prestart_odd.py::test_two_calls_leave_what_one_leaves",
            "e2e/test_inject.py::test_two_stages_of_one_start_leave_what_one_leaves",
        ),
    ),
}
