"""The hook's plan as JSON values, for `nvoci explain`: what would be mounted where, with which options and rules.

The operations are those that the hook would carry out, made by the same functions for a `Preview` of the container's
root. They are asked what they are for, and thrown away. What only doing finds out is not foreseen: a mount point in the
way, the soname links beside libraries that are not mounted yet.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from stat import S_ISSOCK
from typing import TYPE_CHECKING, Any

from nvoci.errors import HookError, hook_error
from nvoci.hook.container import OUTSIDE, Container
from nvoci.hook.enter import Place
from nvoci.hook.operations import WriteFile
from nvoci.hook.preview import Preview
from nvoci.linux import abi
from nvoci.linux.rootfs import Rootfs
from nvoci.prestart import overlay, plan
from nvoci.prestart.binds import Bind, KeepLink
from nvoci.prestart.choose import library_names, stem
from nvoci.prestart.config import LDCONFIG, MOUNT

if TYPE_CHECKING:
    from nvoci.hook.operation import Operation
    from nvoci.hook.settings import Settings
    from nvoci.oci.state import State
    from nvoci.prestart.hostfiles import Source
    from nvoci.prestart.plan import Prepared

    Json = dict[str, Any]

_WORDS = ((abi.MS_NOSUID, "nosuid"), (abi.MS_NODEV, "nodev"), (abi.MS_NOEXEC, "noexec"))
_GENERATED = ("nosuid", "nodev", "noexec")


class Planned:
    """What is prepared on the host, and with a root in the container: operations, in order, and folders for the library
    cache. root: its path, "" where there is none. Close it."""

    def __init__(self, prepared: Prepared, root: str, state: State, settings: Settings) -> None:
        """Raises HookError as the hook would."""
        self.prepared = prepared
        self.operations: list[Operation] = []
        self.folders: list[str] = []
        self.compat: list[Operation] = []  # of enable-cuda-compat
        self._there = bool(root)
        try:
            if root:
                self._plan(root, state, settings)
        except BaseException:
            self.close()
            raise

    def _plan(self, root: str, state: State, settings: Settings) -> None:
        with ExitStack() as stack:
            rootfs = stack.enter_context(closing(Rootfs.open(root)))
            view = stack.enter_context(closing(Preview(rootfs)))
            container = Container(view, OUTSIDE, state, settings)
            for name, function, own in self.prepared.steps(state, Place(OUTSIDE)):
                made = _made(name, function, own, container)
                for operation in made:
                    try:
                        operation.preview(view)
                    except OSError as e:
                        raise hook_error(f"{name}:", operation.describe(), e) from None
                self.operations += made
                if function is plan.plan_compat:
                    self.compat = made
            self.folders = [_text(folder) for folder in self.prepared.cache(view).folders]

    def close(self) -> None:
        """What is open of the host's files."""
        own = self.prepared
        placed = [source for source, _ in (*own.files, *own.nodes, *own.procs, *own.directories)]
        for source in (*own.programs, *own.libraries, *own.compat32, *placed, *[each.source for each in self._binds()]):
            source.close()

    def _binds(self) -> list[Bind]:
        return [each for each in self.operations if isinstance(each, Bind)]

    # -- as JSON ------------------------------------------------------------------------------------------------------

    def to_json(self) -> Json:
        """See docs/explain.md."""
        allowed = self.prepared.wanted.cgroups
        nodes = [source.rule for source, _ in self.prepared.nodes if source.rule is not None]
        rules = dict.fromkeys([str(rule) for rule in (*nodes, *self.prepared.rules)])
        return {
            "device_nodes": [self._node(source, path) for source, path in self.prepared.nodes],
            "device_rules": list(rules) if allowed else [],
            "mounts": self._mounts(),
            "generated": self._generated(),
            "links": [{"path": _text(each.link), "target": _text(each.target)}
                      for each in self.operations if isinstance(each, KeepLink)],
            "cuda_compat": self._compat(),
        }  # fmt: skip

    def _node(self, source: Source, path: bytes) -> Json:
        chosen = self.prepared.chosen
        records = [*chosen.control, *[node for _, node in chosen.gpu_nodes], *chosen.channels,
                   *[node for _, _, nodes in chosen.mig_nodes for node in nodes]]  # fmt: skip
        record = next(node for node in records if node.host_path == source.path)
        rule = str(source.rule) if self.prepared.wanted.cgroups else None
        return {"host_path": source.path, "container_path": _text(path), "options": _options(source), "rule": rule,
                "kind": record.kind, "owner": record.owner}  # fmt: skip

    def _mounts(self) -> list[Json]:
        own = self.prepared
        places = {id(each.source): _text(each.path) for each in self._binds()}
        rows = [self._file("program", each, places) for each in own.programs]
        rows += [self._file("library", each, places) for each in own.libraries]
        rows += [self._file("library32", each, places) for each in own.compat32]
        for source, path in own.files:
            rows.append(_mount("socket" if S_ISSOCK(source.st.st_mode) else "firmware", source, _text(path)))
        rows += [_mount("procfs", source, _text(path)) for source, path in own.procs]
        rows += [_mount("directory", source, _text(path)) for source, path in own.directories]
        known = {id(source) for source in (*own.programs, *own.libraries, *own.compat32)}
        known |= {id(source) for source, _ in (*own.files, *own.procs, *own.directories, *own.nodes)}
        compat = [each for each in self._binds() if id(each.source) not in known]
        return rows + [_mount("cuda-compat", each.source, _text(each.path)) for each in compat]

    def _file(self, kind: str, source: Source, places: dict[int, str]) -> Json:
        """A program or library: where it goes is a matter of the image."""
        path = places.get(id(source))
        if path is None and self.prepared.chosen.wsl:
            path = source.path
        elif path is None and kind == "program":
            path = f"{_text(plan.PROGRAMS)}/{_text(source.name)}"
        row = _mount(kind, source, path)
        if kind == "program":
            marks = [m.capabilities for m in self.prepared.chosen.programs if m.host_path == source.path]
            row["for"] = [each for each in self.prepared.wanted.capabilities if marks and each in marks[0]]
        else:
            name = stem(source.path)
            row["for"] = [each for each in sorted(self.prepared.wanted.parts()) if name in library_names([each])]
        return row

    def _generated(self) -> list[Json]:
        trees = ((overlay.DRIVER, self.prepared.driver), (overlay.PROFILES, self.prepared.profiles))
        return [
            {"container_path": "/" + _text(path), "options": ["ro" if tree.read_only else "rw", *_GENERATED],
             "files": [name for name, (data, _) in tree.entries.items() if data]}
            for path, tree in trees if tree is not None
        ]  # fmt: skip

    def _compat(self) -> Json:
        """used: whether libraries of the image come before the driver's; None where that is not known."""
        mode = self.prepared.wanted.compat_mode
        files = [row["container_path"] for row in self._mounts() if row["kind"] == "cuda-compat"]
        directory = next((_text(each.data.rstrip(b"\n")) for each in self.compat if isinstance(each, WriteFile)), "")
        asked = mode in (MOUNT, LDCONFIG) and "compute" in self.prepared.wanted.parts()
        used = bool(files or directory) if self._there or not asked else None
        return {"mode": mode, "used": used, "directory": directory, "files": files}


def _made(name: str, function: Any, own: Any, container: Container) -> list[Operation]:
    """The operations of a step; an error as `nvoci.hook.work` would tell it."""
    try:
        made: list[Operation] = function(own, container)
    except OSError as e:
        raise hook_error(f"{name}: plan", e.filename or "", e) from None
    except HookError as e:
        if e.message.startswith(name):
            raise
        raise HookError(f"{name}: {e.message}", e.hint) from None
    return made


def _mount(kind: str, source: Source, path: str | None) -> Json:
    return {"kind": kind, "host_path": source.path, "container_path": path, "options": _options(source), "for": []}


def _options(source: Source) -> list[str]:
    """In the words of mount(8)."""
    words = ["ro" if source.flags & abi.MS_RDONLY else "rw"]
    return words + [word for bit, word in _WORDS if source.flags & bit]


def _text(unsafe_path: bytes) -> str:
    return unsafe_path.decode("utf-8", "backslashreplace")
