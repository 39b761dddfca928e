"""What the tests of mounting share: a params file, operations performed, the mount table seen from inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nvoci.hook.container import Container
from nvoci.hook.mounts import GeneratedMount
from nvoci.hook.operation import Transaction
from tests.kernel import namespaced

PARAMS = b"proc/driver/nvidia/params"
TEXT = b"ModifyDeviceFiles: 0\nOther: 1\n"
FLAGS = {"ro", "nosuid", "nodev", "noexec"}


def with_params(root: Path) -> str:
    """Set-up: the container's procfs has the driver's params, as it has on a host with the driver."""
    return (
        f"mount -t tmpfs driver {root}/proc/driver; mkdir {root}/proc/driver/nvidia\n"
        f"echo 'ModifyDeviceFiles: 1' > {root}/{PARAMS.decode()}\n"
    )


def perform(*operations: Any) -> Transaction:
    transaction = Transaction()
    for operation in operations:
        transaction.perform("test", operation)
    return transaction


def params_mount(container: Container, data: bytes = TEXT) -> GeneratedMount:
    return GeneratedMount(container, PARAMS, data, 0o444, "params")


def options_at(pid: int, target: str) -> list[set[str]]:
    """Per-mount options of the mounts at `target`, lowest first, from the container's mountinfo."""
    return [set(line.split()[5].split(",")) for line in namespaced.mountinfo(pid) if line.split()[4] == target]


def tree(root: Path) -> list[str]:
    return sorted(str(p) for p in root.rglob("*") if "proc" not in p.parts)


# -- generated files ------------------------------------------------------------------------------------------------
