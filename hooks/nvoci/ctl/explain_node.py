"""What of the node the hook would act on, for `nvoci explain`: the inventory or a look, the devices that words mean,
and what was not found, with the places where it was looked for.

Nothing is changed: an inventory is used but not written, kernel modules are not loaded, device nodes not made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvoci.discover import inventory
from nvoci.discover.model import DeviceNode, Mount
from nvoci.errors import HookError
from nvoci.prestart import devices
from nvoci.prestart.choose import MissingNode, all_library_names, choose, stem
from nvoci.prestart.node import look, sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypeVar

    from nvoci.discover.found import Discovery
    from nvoci.discover.model import Found
    from nvoci.discover.node import Node
    from nvoci.discover.search import Lookup, Step
    from nvoci.prestart.choose import Chosen
    from nvoci.prestart.wanted import Wanted

    Json = dict[str, Any]
    T = TypeVar("T")

INVENTORY, LOOK = "inventory", "look"
_MAKES = (
    "the hook would load kernel modules and make device nodes first, and look again "
    "(nvidia-container-cli.load-kmods of config.toml); explain does neither"
)
# Kinds of lookups, and what they are called here.
_NAMES = {"binary": "program", "socket": "socket", "firmware": "firmware", "device": "device"}
_DIRECTORY = "the directory: "  # of a step of Libraries.story
_BEHIND = " ("  # what stands behind a place, in its `where`


class Seen:
    """found: what the node has; source: INVENTORY or LOOK; reason: why the inventory is not used. note: what the hook
    would do beside, and is not done here; "" for nothing."""

    def __init__(self, found: Found, source: str, reason: str = "") -> None:
        self.found = found
        self.source = source
        self.reason = reason
        self.note = ""

    def to_json(self) -> Json:
        """Where the knowledge comes from, and the driver."""
        driver = self.found.driver.to_json()
        return {"source": self.source, "inventory": inventory.PATH, "reason": self.reason, "driver": driver,
                "problems": [problem.line() for problem in self.found.problems]}  # fmt: skip


def use(wanted: Wanted, action: Callable[[Seen], T]) -> T:
    """action(what the node has), as `prestart.node.use` decides on it. Raises HookError."""
    reason = "a MIG device is asked for by name"
    if not inventory.needs_nvml(wanted.devices):
        loaded = inventory.current(sources(wanted), inventory.PATH)
        reason = loaded.reason
        if loaded.inventory is not None:
            try:
                seen = Seen(loaded.inventory.found, INVENTORY)
                if seen.found.gpus or is_wsl(seen.found) or not wanted.load_kmods:
                    return action(seen)
                reason = "look for a GPU: there was none"
            except (inventory.Stale, ValueError) as e:
                reason = str(e)
            except MissingNode as e:
                if not wanted.load_kmods:
                    raise
                reason = e.message
    seen = Seen(look(wanted.replace(load_kmods=False)), LOOK, reason)
    if wanted.load_kmods and not (seen.found.gpus or is_wsl(seen.found)):
        seen.note = _MAKES
    try:
        return action(seen)
    except MissingNode:
        seen.note = _MAKES if wanted.load_kmods else ""
        raise
    except inventory.Stale as e:
        raise HookError(f"{e}, though it was found a moment ago", "is the driver being reloaded? try again") from None


def is_wsl(found: Found) -> bool:
    """Whether all GPUs are behind one node."""
    return any(node.kind == "wsl" for node in found.device_nodes)


# -- devices ----------------------------------------------------------------------------------------------------------


def selected(found: Found, words: Iterable[str]) -> list[Json]:
    """What each of the words means. Raises HookError."""
    rows = []
    for word in words:
        chosen = devices.select(found, [word])
        gpus = [{"index": gpu.index, "uuid": gpu.uuid, "minor": gpu.minor, "pci_bus_id": gpu.pci_bus_id,
                 "name": gpu.name} for gpu in chosen.gpus]  # fmt: skip
        migs = [{"name": mig.name, "uuid": mig.uuid, "parent": mig.parent, "profile": mig.profile,
                 "gpu_instance": mig.gpu_instance, "compute_instance": mig.compute_instance}
                for mig in chosen.mig_devices]  # fmt: skip
        rows.append({"word": word, "gpus": gpus, "mig_devices": migs})
    return rows


# -- what is not there ------------------------------------------------------------------------------------------------


def not_found(chosen: Chosen, wanted: Wanted) -> tuple[list[Json], list[Json]]:
    """(what the container would get were it there, the directories in which libraries are looked for). The files of the
    node are looked at for that, NVML is not asked. Raises HookError."""
    from nvoci.discover import look as looking
    from nvoci.discover.found import discover
    from nvoci.discover.node import Node, Options

    # A library cache of its own stands for the usual directories.
    directories = chosen.found.driver.library_dirs if wanted.ldcache else ()
    options = Options(mps_directory=wanted.mps_directory, library_search_path=directories)
    with Node.open(wanted.driver_root, proc=looking.PROC, sys=looking.SYS) as node:
        trace = discover(node, None, options)
        if chosen.wsl:
            return [_row(each.kind, each.name, each.steps) for each in _failed(trace, "library", "directory")], []
        rows = _missing(chosen, _everything(chosen.found, wanted, trace), wanted, trace)
        return rows, _directories(node, trace)


def _failed(trace: Discovery, *kinds: str) -> list[Lookup]:
    return [each for each in trace.search.lookups if each.kind in kinds and not each.used]


def _everything(found: Found, wanted: Wanted, trace: Discovery) -> Found:
    """A node that has all that was looked for in vain. What is chosen of it, by the rules for any other node, is what
    this container misses."""
    files = [_mount("library", f"/{name}.so.{found.driver.version}", *marks)
             for name in all_library_names() for marks in ((), ("compat32",))]  # fmt: skip
    known = {mount.kind for mount in found.mounts}
    lookups = [each for each in _failed(trace, "binary", "socket", "firmware")
               if each.kind != "firmware" or each.kind not in known]  # fmt: skip
    files += [_mount(*_file_of(each, wanted)) for each in lookups]
    nodes = [DeviceNode(host_path=each.name, container_path=each.name, kind="control")
             for each in _failed(trace, "device")]  # fmt: skip
    return found.replace(mounts=files, device_nodes=(*found.device_nodes, *nodes))


def _file_of(lookup: Lookup, wanted: Wanted) -> tuple[str, str]:
    """Kind, and a path, of what was looked for."""
    if lookup.kind == "device":
        return lookup.kind, lookup.name
    if lookup.kind == "socket" and "/" not in lookup.name:
        return "directory", wanted.mps_directory  # where its daemon has sockets
    return lookup.kind, f"/run/{lookup.name}" if lookup.kind == "socket" else f"/{lookup.name}"


def _mount(kind: str, path: str, *capabilities: str) -> Mount:
    return Mount(host_path=path, container_path=path, kind=kind, capabilities=capabilities)


def _missing(chosen: Chosen, everything: Found, wanted: Wanted, trace: Discovery) -> list[Json]:
    ideal = choose(everything, wanted)
    rows = []
    for kind, all_of_them, there in (("library", ideal.libraries, chosen.libraries),
                                     ("library32", ideal.compat32, chosen.compat32)):  # fmt: skip
        names = {stem(mount.host_path) for mount in there}
        for name in [stem(mount.host_path) for mount in all_of_them]:
            if name not in names:
                steps = trace.libraries.story(name).steps if kind == "library" else []
                rows.append(_row(kind, f"{name}.so", [step for step in steps if _is_file(step, name)]))
    wanted_files = [mount.host_path for mount in (*ideal.programs, *ideal.sockets, *ideal.firmware)]
    known = {node.container_path for node in chosen.control}
    devices_too = [node.container_path for node in ideal.control if node.container_path not in known]
    for each in _failed(trace, *_NAMES):
        kind, path = _file_of(each, wanted)
        if path in (devices_too if kind == "device" else wanted_files):
            name = path if kind == "directory" else each.name
            rows.append(_row(_NAMES.get(kind, kind), name, each.steps))
    return _joined(rows)


def _joined(rows: list[Json]) -> list[Json]:
    """One row for what was looked for more than once."""
    found: dict[tuple[str, str], Json] = {}
    for row in rows:
        kept = found.setdefault((row["kind"], row["name"]), row)
        if kept is not row:
            kept["looked"] += row["looked"]
    return list(found.values())


def _is_file(step: Step, name: str) -> bool:
    return step.where.partition(_BEHIND)[0].rpartition("/")[2].startswith(f"{name}.so")


def _row(kind: str, name: str, steps: Iterable[Step]) -> Json:
    words = "there, but not of the driver's version, or not where the dynamic linker looks"
    looked = [{"where": step.where, "outcome": words if step.outcome.startswith("used") else step.outcome}
              for step in steps]  # fmt: skip
    return {"kind": kind, "name": name, "looked": looked}


def _directories(node: Node, trace: Discovery) -> list[Json]:
    """Those that were listed, then those that could not be."""
    listed = [{"path": node.root.host(each.path) or "/", "state": "searched",
               "because": "ld.so.cache or a link" if each.cached else "usual"}
              for each in trace.libraries.directories]  # fmt: skip
    steps = trace.libraries.story(all_library_names()[0]).steps
    return listed + [{"path": step.where, "state": step.outcome[len(_DIRECTORY) :], "because": "usual"}
                     for step in steps if step.outcome.startswith(_DIRECTORY)]  # fmt: skip
