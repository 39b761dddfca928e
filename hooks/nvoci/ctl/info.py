"""`nvoci info`: the GPUs of this node and their driver."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from nvoci.ctl import node
from nvoci.errors import printable

if TYPE_CHECKING:
    from nvoci.discover.look import Look, Place
    from nvoci.discover.model import Driver, Found, Gpu, MigDevice

FORMAT = 1
_MOUNTS = {
    "library": ("library", "libraries"),
    "binary": ("program", "programs"),
    "firmware": ("firmware file", "firmware files"),
    "socket": ("socket", "sockets"),
    "config": ("configuration file", "configuration files"),
    "directory": ("directory", "directories"),
    "file": ("other file", "other files"),
}


@click.command("info")
@node.looks
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
def command(*, place: Place, phases: node.Phases, as_json: bool) -> None:
    """Show the GPUs and MIG devices of this node, its driver, and what is wrong with them.

    The node is looked at anew; the inventory is neither used nor written. A GPU that does not answer is left out, and
    told on stderr.

    Exit status: 0, or 1 if there is no driver that works, and so no GPU for a container.
    """
    from nvoci.discover.look import failure, look, warnings

    with look(place, phases.done) as seen:
        error = failure(seen)
        if as_json:
            click.echo(json.dumps(document(seen), indent=2))
        elif not error or seen.found.driver.version or seen.found.driver.module_version:
            click.echo("\n".join(lines(seen)))
        phases.done("print")
        phases.total()
        for problem in warnings(seen):
            if error is None or problem.line() != error.line():
                node.warn(problem.line())
    if error:
        raise error


# -- JSON -------------------------------------------------------------------------------------------------------------


def document(seen: Look) -> dict[str, Any]:
    """What is printed as JSON: `Found` with every field, and some words that are worked out from it."""
    found = seen.found
    out = found.to_json()
    for gpu, row in zip(found.gpus, out["gpus"]):
        row["brand_name"] = gpu.brand_name
        for mig, each in zip(gpu.mig_devices, row["mig_devices"]):
            each["name"] = mig.name
    kind = seen.discovery.platform
    return {
        "nvoci-info": FORMAT,
        "platform": {"kind": kind.kind, "evidence": list(kind.evidence)},
        "gpu_count": seen.answer.count if seen.answer else None,
        **out,
    }


# -- tables -----------------------------------------------------------------------------------------------------------


def lines(seen: Look) -> list[str]:
    """The tables. Nothing in them has a control character."""
    found = seen.found
    kind = seen.discovery.platform
    out = node.table([
        *_driver(found.driver), ("platform", printable(f"{kind.kind} ({', '.join(kind.evidence)})")), *_files(found)
    ])  # fmt: skip
    out += ["", *(node.table([_GPU, *map(_gpu, found.gpus)]) if found.gpus else [f"no GPUs: {_why_none(seen)}"])]
    count = seen.answer.count if seen.answer else 0
    if found.gpus and count > len(found.gpus):
        out.append(f"{count - len(found.gpus)} of {count} GPUs do not answer")
    migs = found.mig_devices()
    if migs:
        out += ["", *node.table([_MIG, *map(_mig, migs)])]
    empty = [str(gpu.index) for gpu in found.gpus if gpu.mig_enabled and not gpu.mig_devices]
    if empty:
        out += ["", f"no MIG devices on GPU {', '.join(empty)}, though MIG mode is on: make some with nvidia-smi mig"]
    if found.problems:
        out += ["", "problems:", *[f"  {each.line()}" for each in found.problems]]
    return out


def _why_none(seen: Look) -> str:
    if seen.refusal:
        return "NVML does not answer"
    if seen.answer is None:
        return "there is no NVML to tell of them"
    return "NVML knows of none" if seen.answer.count == 0 else "none of them answers"


def _driver(driver: Driver) -> list[tuple[str, str]]:
    cuda = "{}.{}".format(*driver.cuda_version) if driver.cuda_version else ""
    rows = [
        ("driver", driver.version),
        ("kernel module", driver.module_version),
        ("NVML", driver.nvml_version),
        ("CUDA", cuda),
        ("driver root", driver.root),
        ("dev root", "" if driver.dev_root == driver.root else driver.dev_root),
        ("libraries in", ", ".join(driver.library_dirs)),
        ("NVML library", driver.nvml_path),
    ]
    shown = ("driver", "kernel module")
    return [(name, printable(text or "-")) for name, text in rows if text or name in shown]


def _files(found: Found) -> list[tuple[str, str]]:
    """How much there is for containers."""
    kinds = [each.kind for each in found.mounts]
    nodes = len({each.container_path for each in found.device_nodes})
    counts = [(nodes, "device node", "device nodes"), *[(kinds.count(kind), *words) for kind, words in _MOUNTS.items()]]
    words = [f"{count} {one if count == 1 else many}" for count, one, many in counts if count]
    return [("for containers", ", ".join(words) or "nothing")]


_GPU = ("GPU", "NAME", "UUID", "PCI", "MINOR", "MEMORY", "COMPUTE", "BRAND", "MIG")


def _gpu(gpu: Gpu) -> tuple[str, ...]:
    cells = (
        str(gpu.index),
        gpu.name,
        gpu.uuid,
        gpu.pci_bus_id,
        "" if gpu.minor is None else str(gpu.minor),
        "" if gpu.memory is None else f"{gpu.memory >> 20} MiB",
        gpu.architecture,
        gpu.brand_name,
        ("on" if gpu.mig_enabled else "off") if gpu.mig_capable else "",
    )
    return tuple([printable(cell) or "-" for cell in cells])


_MIG = ("MIG", "GI/CI", "PROFILE", "UUID", "NODES")


def _mig(mig: MigDevice) -> tuple[str, ...]:
    cells = (
        mig.name,
        f"{mig.gpu_instance}/{mig.compute_instance}",
        mig.profile,
        mig.uuid,
        ", ".join(mig.cap_nodes),
    )
    return tuple([printable(cell) or "-" for cell in cells])
