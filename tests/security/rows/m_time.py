"""M: time."""

from __future__ import annotations

from security.rows.row import Row

_T = "security/test_time_limits.py::"

ROWS: dict[str, Row] = {
    "M1": Row(
        "an entry with a timeout of a second and something that blocks: an end in time, and no process is left",
        (
            f"{_T}test_m1_a_fifo_does_not_cost_the_second_that_the_entry_has",
            f"{_T}test_m1_a_runtime_that_ends_the_hook_ends_all_of_it",
            "security/test_special_files.py::test_a_special_file_neither_holds_the_hook_nor_is_lost",
        ),
    ),
    "M2": Row(
        "no timeout in the entry: the hook's own deadline, half a minute unless it is told",
        (
            f"{_T}test_m2_without_a_timeout_in_the_entry_the_hook_has_its_own",
            f"{_T}test_m2_half_a_minute_is_the_hook_s_own_limit",
            "kernel/test_early_deadline.py::test_what_hangs_early_is_ended",
            "unit/hook/test_watchdog.py::test_a_wait_that_no_handler_ends_is_ended_by_sigkill",
        ),
    ),
    "M3": Row(
        "a timeout of 0, at which runc fails at once: no generated and no shipped entry has one",
        (
            f"{_T}test_m3_no_generated_hook_has_a_limit_of_nothing",
            f"{_T}test_m3_no_entry_that_is_shipped_has_one",
            f"{_T}test_naive_m3_a_limit_of_nothing_lets_no_container_start",
            "unit/oci/test_hooksd.py::test_a_rule_that_does_not_hold_names_the_key",
        ),
    ),
    "M4": Row(
        "a helper that ignores signals, forks twice and keeps its output open: it ends with its pid namespace",
        (
            f"{_T}test_m4_m5_a_helper_that_does_not_end_is_ended",
            f"{_T}test_m4_the_runtime_does_not_wait_for_it",
            "kernel/test_confine.py::test_a_daemon_does_not_outlive_the_call_even_without_seccomp",
            "kernel/test_nvml_child.py::test_who_it_leaves_behind_does_not_hold_us_up",
            "kernel/test_nvml_confined.py::test_who_it_leaves_behind_in_another_session_dies_too",
        ),
    ),
    "M5": Row(
        "a stopped helper or worker, a frozen cgroup: it is killed, or left behind, and the hook returns",
        (
            f"{_T}test_m4_m5_a_helper_that_does_not_end_is_ended",
            f"{_T}test_m5_a_stopped_worker_is_ended",
            f"{_T}test_m5_a_frozen_worker_is_ended_or_left_behind",
            "unit/hook/test_worker.py::test_a_worker_stuck_in_the_kernel_is_left_behind",
        ),
    ),
    "M6": Row(
        "what a container start costs with the hooks, and without them, is measured",
        (
            "e2e/test_bench.py::test_what_the_hooks_of_a_container_add_is_set_in_relation",
            "e2e/test_bench.py::test_every_case_is_measured_at_its_stages",
        ),
        open="no test judges the slowest percentile, which on a busy machine is the others'; N1, `scripts/bench` "
        "and docs/costs.md have the figures",
        risk="a rare slow start is seen only by who measures",
    ),
    "M7": Row(
        "a driver root on a file system that does not answer: the look at the node is given up",
        (
            f"{_T}test_m7_a_driver_root_that_does_not_answer_is_given_up",
            f"{_T}test_m7_a_driver_root_of_mig_devices_that_does_not_answer_is_given_up",
            "kernel/test_early_deadline.py::test_a_bundle_on_a_file_system_that_does_not_answer",
        ),
        open="a driver root where even SIGKILL ends no wait (a FUSE daemon that has taken the request)",
        risk="the hook waits until that daemon ends, and the runtime with it; NFS and autofs let themselves be killed",
    ),
}
