"""J: cgroups and devices."""

from __future__ import annotations

from security.rows.row import Row

_D, _PRESTART = "security/test_devices.py::", "security/test_prestart.py::"
_BPF, _REFUSED = "kernel/test_bpf.py::", "kernel/test_bpf_refusals.py::"
_CGROUP, _V1, _RULES = "kernel/test_cgroup.py::", "kernel/test_cgroup_v1.py::", "kernel/test_device_rules.py::"
_E2E, _NODES = "e2e/test_device_rules.py::", "kernel/test_devices.py::"

ROWS: dict[str, Row] = {
    "J1": Row(
        "a v1 device list: exactly `c MAJOR:MINOR rw` in the container's cgroup alone",
        (
            f"{_V1}test_the_listed_device_opens_and_no_other",
            f"{_V1}test_what_the_cgroup_above_forbids_is_an_error_that_names_it",
            f"{_RULES}test_nodes_and_rules_are_given_and_nothing_more",
            f"{_E2E}test_listed_nodes_open_and_no_others",
        ),
    ),
    "J2": Row(
        "a hybrid host: the v1 list is changed, and the unified cgroup only if it forbids anything",
        (f"{_CGROUP}test_whatever_restricts_a_process_is_changed_and_nothing_else",),
    ),
    "J3": Row(
        "programs of runc and crun are replaced by ones that allow the listed device too, and no other opens",
        (
            f"{_E2E}test_listed_nodes_open_and_no_others",
            f"{_BPF}test_the_listed_device_opens_and_no_other",
            f"{_BPF}test_bpftool_sees_one_program_with_our_instructions_in_front",
        ),
    ),
    "J4": Row(
        "0, 1, 2, 63 and 64 programs, attached alone, with OVERRIDE or MULTI, one of them not to be merged: rules are "
        "in front of all of them, or all are as they were",
        (
            f"{_D}test_j4_rules_go_before_every_program",
            f"{_D}test_j4_without_a_program_there_is_nothing_to_do",
            f"{_D}test_j4_as_many_as_there_can_be_are_left_as_they_are",
            f"{_D}test_j4_one_that_cannot_be_merged_leaves_all_as_they_are",
            f"{_D}test_naive_j4_one_more_program_opens_nothing",
            f"{_BPF}test_attach_flags_stay_what_they_were",
            f"{_REFUSED}test_what_was_replaced_is_put_back_when_a_later_one_fails",
            f"{_REFUSED}test_a_program_attached_by_a_link_is_named",
        ),
    ),
    "J5": Row(
        "no BPF_F_REPLACE: the new program is attached before the old one goes, so that nothing more is open meanwhile",
        (
            f"{_BPF}test_without_replace_the_new_one_is_attached_before_the_old_goes",
            f"{_BPF}test_without_replace_a_killed_run_is_completed",
        ),
    ),
    "J6": Row(
        "programs with other registers or 6000 instructions are kept whole; with maps, helpers, functions: an error",
        (
            f"{_D}test_j6_a_program_of_another_shape_is_kept_whole_behind_the_rules",
            f"{_D}test_j6_what_would_not_be_the_same_program_is_not_merged",
            f"{_REFUSED}test_a_foreign_program_is_named_and_all_is_as_before",
            f"{_E2E}test_a_program_that_cannot_be_merged_keeps_the_container_from_starting",
        ),
    ),
    "J7": Row(
        "access is never `m`: making a node stays as allowed or refused as it was",
        (
            f"{_D}test_j7_making_a_node_stays_refused",
            f"{_D}test_j7_a_runtime_that_allows_making_nodes_still_does",
            f"{_BPF}test_exactly_the_access_of_the_rule_is_given",
            f"{_CGROUP}test_a_rule_for_more_than_one_device_or_for_mknod_is_refused",
        ),
    ),
    "J8": Row(
        "update, pause and resume of a running container keep the access",
        (
            f"{_E2E}test_access_outlives_update_and_pause_and_bpftool_sees_it",
            "e2e/test_prestart_docker.py::test_a_container_that_runs_on_and_starts_again",
        ),
        open="`podman update` itself: what it calls, the runtime's update, is what is tested",
        risk="a podman that writes the device list anew would take the access away until the next start",
    ),
    "J9": Row(
        "daemon-reload with the systemd driver writes the device list anew",
        open="no systemd runs here; devices of a CDI specification are in the OCI configuration, and so the runtime's",
        risk="with the prestart hook alone a container may lose its GPUs when systemd is reloaded, until it restarts",
    ),
    "J10": Row(
        "cgroup namespaces, `..` in the root of a mount, nested cgroups and scopes: the right cgroup, or an error",
        (
            f"{_D}test_j10_in_a_cgroup_namespace_whose_mounts_lie_above_it",
            f"{_E2E}test_in_a_cgroup_namespace_too",
            f"{_CGROUP}test_a_mount_of_a_part_of_the_hierarchy_serves_what_is_in_it",
            f"{_CGROUP}test_from_inside_the_cgroup_is_found_without_the_hosts_mounts",
            f"{_CGROUP}test_a_cgroup_outside_of_our_namespace_is_an_error",
            f"{_CGROUP}test_programs_of_the_containers_own_scope_are_changed",
        ),
    ),
    "J11": Row(
        "a node that is exchanged between plan and use: what is allowed is the number of the node that was opened",
        (
            f"{_D}test_j11_a_node_that_is_exchanged_before_it_is_mounted_is_the_opened_one",
            "kernel/test_devnode.py::test_a_node_stays_what_it_was_when_the_name_is_given_to_another",
            f"{_NODES}test_another_device_on_the_target_is_noticed",
            f"{_PRESTART}test_a_device_that_is_not_what_it_should_be",
            "security/test_mig.py::test_a_node_of_another_number_is_never_given",
        ),
    ),
    "J12": Row(
        "no locked memory and no CAP_SYS_RESOURCE: programs are loaded all the same",
        (
            f"{_D}test_j12_no_locked_memory_is_needed",
            f"{_BPF}test_the_limit_of_locked_memory_is_raised_where_the_kernel_counts",
        ),
    ),
    "J13": Row(
        "no CAP_SYS_ADMIN and CAP_BPF, bpf(2) blocked or for root alone: an error that says so, or it works",
        (
            f"{_D}test_j13_without_the_capability_it_is_named",
            f"{_D}test_j13_a_kernel_that_lets_nobody_else_load_programs_lets_us",
            f"{_PRESTART}test_device_rules_that_cannot_be_given",
            f"{_RULES}test_bpf_that_is_refused_is_one_line",
            f"{_REFUSED}test_bpf_that_is_refused_is_one_line",
        ),
    ),
    "J14": Row(
        "a node that is missing, a link, a file, a FIFO, a block device, or has another number: an error",
        (
            f"{_PRESTART}test_a_device_that_is_not_what_it_should_be",
            "kernel/test_devnode.py::test_anything_else_is_named",
        ),
    ),
    "J15": Row(
        "GPUs that are not there or not granted, `all` of none, MIG without nodes, an IMEX channel too many",
        (
            f"{_PRESTART}test_variables_that_mean_nothing",
            "unit/prestart/test_devices.py::test_a_node_without_a_gpu_gives_all_of_none",
            "unit/prestart/test_devices.py::test_imex_channels_have_an_end",
            "e2e/test_prestart.py::test_an_imex_channel_and_one_that_is_not_there",
            "e2e/test_mount_mig_devices.py::test_a_driver_without_capability_nodes",
        ),
    ),
    "J16": Row(
        "a container with CAP_MKNOD makes a node for another GPU: it does not open",
        (
            f"{_E2E}test_listed_nodes_open_and_no_others",
            f"{_D}test_j7_a_runtime_that_allows_making_nodes_still_does",
            "e2e/test_prestart.py::test_two_gpus",
        ),
    ),
}
