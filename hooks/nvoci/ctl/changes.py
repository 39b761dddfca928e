"""What discovery found, one fact a line, and what is another in a second one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvoci.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvoci.discover.model import Found
    from nvoci.discover.record import Record

    Facts = dict[str, Record]

_DRIVER = "driver"


def _facts(found: Found) -> Facts:
    """Each record by what it is called, in the order in which people look for them."""
    facts: Facts = {_DRIVER: found.driver}
    for gpu in found.gpus:
        facts[f"GPU {gpu.uuid}"] = gpu.replace(mig_devices=())
        for mig in gpu.mig_devices:
            facts[f"MIG device {mig.uuid}"] = mig
    for node in found.device_nodes:
        facts[f"device node {node.container_path}" + (f" of {node.owner}" if node.owner else "")] = node
    for mount in found.mounts:
        facts[f"{mount.kind} {mount.container_path}"] = mount
    for variable in found.variables:
        facts[f"variable {variable.name}" + (f" of {variable.owner}" if variable.owner else "")] = variable
    for hook in found.hooks:
        facts[f"hook {hook.name}" + (f" of {hook.owner}" if hook.owner else "")] = hook
    for problem in found.problems:
        facts[f"problem: {problem.line()}"] = problem
    return facts


def listing(found: Found) -> list[str]:
    """All of it."""
    return _printable(_told(name, each) for name, each in _facts(found).items())


def between(old: Found, new: Found) -> list[str]:
    """`- ` gone, `+ ` new, `~ ` another than before, with the fields that are."""
    before, now = _facts(old), _facts(new)
    lines = [f"- {name}" for name in before if name not in now]
    for name, each in now.items():
        if name not in before:
            lines.append(f"+ {name}")
        elif each != before[name]:
            lines.append(f"~ {name}: {_fields(before[name], each)}")
    return _printable(lines)


def _fields(old: Record, new: Record) -> str:
    """`minor 0 -> 1, mode 438 -> 432`."""
    was, now = old.to_json(), new.to_json()
    return ", ".join([f"{key} {_word(was[key])} -> {_word(now[key])}" for key in now if was[key] != now[key]])


def _word(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_word, value)) + "]"
    return "none" if value in (None, "") else str(value)


_TOLD = {
    "Driver": ("version", "module_version", "root"),
    "Gpu": ("index", "name", "pci_bus_id"),
    "MigDevice": ("parent_index", "index", "profile"),
    "DeviceNode": ("type", "major", "minor"),
    "Variable": ("value",),
    "Hook": ("args",),
}


def _told(name: str, record: Record) -> str:
    """The name, and what else is worth a word."""
    row = record.to_json()
    words = [f"{key} {_word(row[key])}" for key in _TOLD.get(type(record).__name__, ()) if row[key] != ""]
    return f"{name}: {', '.join(words)}" if words else name


def _printable(lines: Iterable[str]) -> list[str]:
    return [printable(line) for line in lines]
