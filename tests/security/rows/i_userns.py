"""I: user namespaces, and engines that are not root."""

from __future__ import annotations

from security.rows.row import Row

MAPS, USERNS = "security/test_userns_maps.py", "e2e/test_userns.py"

ROWS = {
    "I1": Row(
        "uid map 0 to 100000: from outside every root can be written, from inside what is the container's own",
        (
            f"{USERNS}::test_from_outside_every_root_can_be_written",
            f"{USERNS}::test_from_inside_a_root_of_the_mapped_user_can_be_written",
            "e2e/test_inject.py::test_in_a_user_namespace_from_outside",
            "e2e/test_inject.py::test_in_a_user_namespace_from_inside",
            "e2e/test_prestart.py::test_in_a_user_namespace_mount_points_are_its_root_s",
            "e2e/test_mount_mig_devices.py::test_in_a_user_namespace",
        ),
    ),
    "I2": Row(
        "a root of the host's 0 under a map: createContainer gets EACCES with what to do, createRuntime works",
        (
            "security/test_faults.py::test_i2_a_mapped_root_writes_where_it_may",
            f"{USERNS}::test_from_inside_a_root_of_host_root_is_a_clear_error",
            "security/test_faults.py::test_naive_i2_a_mapped_root_gets_a_traceback",
        ),
    ),
    "I3": Row(
        "a root of 100000 under that map: works at both stages, on both runtimes",
        (
            "security/test_faults.py::test_i2_a_mapped_root_writes_where_it_may",
            f"{USERNS}::test_from_inside_a_root_of_the_mapped_user_can_be_written",
            "e2e/test_container_cli.py::test_of_a_user_namespace_files_belong_to_its_root",
        ),
    ),
    "I4": Row(
        "the maps of keep-id, nomap and auto, of one id, of several lines; an idmapped root: works, or one error",
        (
            f"{MAPS}::test_i4_maps_of_every_shape",
            f"{MAPS}::test_i4_from_inside_a_root_that_is_not_mapped_is_refused",
            f"{MAPS}::test_i4_an_idmapped_root_that_has_no_number_for_the_hook_is_one_error",
        ),
        open="Podman itself as another user: it needs subordinate ids, a session and a storage of that user's; its "
        "maps are tried by config.json, and programs as root of a namespace of another user's elsewhere",
        risk="what rootless Podman changes beside maps, as its own mount namespace, could need another stage",
    ),
    "I5": Row(
        "procfs with hidepid=2 or subset=pid, on the host or in the container: enough, or never asked",
        (
            f"{MAPS}::test_i5_a_host_proc_that_shows_less_is_enough",
            f"{MAPS}::test_i5_a_container_s_proc_that_shows_less_is_never_asked",
        ),
    ),
    "I6": Row(
        "additionalGids of a specification are the engine's to set, and told of; our own groups open nothing",
        (
            "unit/cdi/test_apply.py::test_edits_are_made",
            "kernel/test_acting.py::test_root_s_groups_open_nothing_and_are_there_again",
            "kernel/test_nvml_confined.py::test_the_groups_of_device_nodes_are_kept",
        ),
    ),
    "I7": Row(
        "where mknod is refused, as in a user namespace, the host's node is bound",
        (
            "kernel/test_devices.py::test_where_no_node_may_be_made_the_hosts_is_mounted",
            "e2e/test_mount_mig_devices.py::test_in_a_user_namespace",
            "e2e/test_prestart.py::test_in_a_user_namespace_mount_points_are_its_root_s",
        ),
    ),
    "I8": Row(
        "a security module that says no: EACCES in one line, with what to look at, and nothing changed",
        (
            f"{MAPS}::test_i8_what_a_security_module_denies_is_one_error_with_a_hint",
            "unit/oci/test_config.py::test_mount_label",
        ),
        open="SELinux and AppArmor themselves: this kernel has neither; their answer is given by a filter of calls",
        risk="a policy may forbid what no test does, such as a label for a generated file; the start then fails with "
        "that line",
    ),
}
