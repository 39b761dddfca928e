"""H: whose process it is that the state names, and the hook's own processes."""

from __future__ import annotations

from security.rows.row import Row

PROCESS, VIEW = "security/test_process.py", "security/test_process_view.py"
STATE, PRESTART = "security/test_state.py", "security/test_process_prestart.py"

ROWS = {
    "H1": Row(
        "the container's process gone before the start, or at any point until its namespace is entered: ESRCH, by name",
        (
            f"{STATE}::test_g4_a_pid_that_is_gone_is_refused",
            "security/test_prestart.py::test_a_process_that_is_not_the_container_s",
            f"{PROCESS}::test_h1_h5_a_container_that_ends_meanwhile_is_one_error_and_nothing_is_left",
            "unit/prestart/test_cliconfigure.py::test_one_that_is_gone",
        ),
    ),
    "H2": Row(
        "its pid given, by clone3, to a process of the host or of another container while the hook works: found out",
        (
            "security/test_attacks_races.py::test_a_pid_that_was_reused_changes_nothing_of_the_host",
            f"{STATE}::test_h2_a_pid_that_was_reused_is_found_out",
            f"{PROCESS}::test_h2_a_pid_that_becomes_another_s_meanwhile_is_found_out",
            f"{PROCESS}::test_naive_h2_another_container_is_worked_on",
            f"{STATE}::test_naive_h2_a_pid_that_was_reused_is_entered",
        ),
        open="before the hook reads the state, a pid that has become another container's with the same user namespace "
        "looks like its own",
        risk="a runtime whose container has died goes on to the hook only if it does not notice; the other container "
        "then gets links and mounts below the path of this one's root, or an error where it has none",
    ),
    "H3": Row(
        "a process in the mount namespace of the host, or of whoever calls: refused",
        (
            f"{STATE}::test_h2_a_pid_that_was_reused_is_found_out",
            "security/test_prestart.py::test_a_process_that_is_not_the_container_s",
            "unit/hook/test_enter.py::test_on_the_host_a_process_of_the_host_is_refused",
            "e2e/test_container_cli.py::test_a_service_of_the_host_is_not_given_devices",
        ),
    ),
    "H4": Row(
        "a process of another user namespace than config.json says: refused, and no way to files of the host",
        (
            f"{VIEW}::test_h4_a_process_of_another_user_namespace_is_no_way_to_the_host",
            f"{VIEW}::test_h4_the_user_namespace_that_config_says_is_worked_in",
            f"{VIEW}::test_naive_h4_it_is_a_way_to_the_host",
        ),
    ),
    "H5": Row(
        "the container's init is killed while the hook works, at each point and at random: one error, nothing left",
        (
            f"{PROCESS}::test_h1_h5_a_container_that_ends_meanwhile_is_one_error_and_nothing_is_left",
            f"{PROCESS}::test_h5_a_container_that_ends_at_any_time",
            f"{PROCESS}::test_h5_after_the_last_look_it_is_the_runtime_s_affair",
            f"{PROCESS}::test_naive_h5_a_container_that_ends_is_not_noticed",
            f"{PRESTART}::test_h5_h8_a_container_or_worker_that_ends_leaves_nothing",
        ),
    ),
    "H6": Row(
        "ptrace, /proc/PID/mem, fd, root and exe of the hook, from inside the container: refused, or not there",
        (
            f"{VIEW}::test_h6_h7_from_inside_the_container_the_worker_is_not_there",
            f"{VIEW}::test_h6_a_hook_in_the_container_s_pid_namespace_cannot_be_looked_into",
            f"{VIEW}::test_h6_a_tracer_that_attaches_to_the_worker_changes_nothing",
            "unit/hook/test_worker.py::test_a_worker_has_no_descriptor_of_the_runtime",
            "unit/hook/test_process.py::test_the_process_cannot_be_dumped_and_leaves_no_core",
        ),
    ),
    "H7": Row(
        "signals of the container: there is no number for the worker; at createContainer, one error and nothing left",
        (
            f"{VIEW}::test_h6_h7_from_inside_the_container_the_worker_is_not_there",
            f"{VIEW}::test_h7_a_signal_to_a_hook_inside_is_one_error_and_nothing_is_left",
            "unit/hook/test_watchdog.py::test_a_signal_while_waiting_undoes_everything",
        ),
    ),
    "H8": Row(
        "the worker is killed at each point and at random, or stands still: told of, no hang, a rerun completes",
        (
            f"{PROCESS}::test_h8_a_worker_that_is_killed_is_told_of_and_a_rerun_completes",
            f"{PROCESS}::test_h8_a_worker_that_is_killed_at_any_time",
            f"{PROCESS}::test_h8_a_worker_that_stands_still_is_killed_at_the_deadline",
            f"{PRESTART}::test_h5_h8_a_container_or_worker_that_ends_leaves_nothing",
            "unit/hook/test_work.py::test_a_worker_that_dies_is_reported_and_leaves_no_process",
            "unit/hook/test_watchdog.py::test_a_worker_dies_with_its_parent",
        ),
    ),
}
