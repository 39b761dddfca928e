"""Container edits applied to an OCI runtime configuration: same input, same output, and the input is left as it was.

Semantics of the CDI project's library. `process`, `linux` and the lists in them are made where they are missing or
null; what has another type is a ConfigError. Applied twice, edits leave variables, device nodes, network devices,
mounts, resource director settings and group ids as once; hooks and rules of the device cgroup are appended each time,
since two devices may well ask for the same hook.

The result is a new dict that shares with the old one whatever was not edited.
"""

from __future__ import annotations

from itertools import chain
from posixpath import normpath

from nvoci.cdi import hostnodes, validate
from nvoci.cdi.error import SpecError
from nvoci.cdi.model import ContainerEdits
from nvoci.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from nvoci.cdi.model import DeviceNode, Hook, IntelRdt, Mount
    from nvoci.cdi.specdir import Entry, Registry

    Config = dict[str, Any]
    Fill = Callable[[ContainerEdits], ContainerEdits]

_ALL_ACCESS = "rwm"
_WORDS = {dict: "an object", list: "a list", str: "a string", int: "a number"}


class ConfigError(SpecError):
    """The OCI configuration is not one that edits can be applied to. where: as in `linux.devices[2].path`."""

    def __init__(self, why: str, where: str = "", file: str = "") -> None:
        super().__init__(why, where, file, "check the container's config.json")
        parts = [f"OCI config {self.file}".rstrip(), *([self.where] if self.where else []), self.why]
        self.message = ": ".join(parts)
        self.args = (self.message,)

    def with_file(self, file: str) -> ConfigError:
        return ConfigError(self.why, self.where, file)


def inject(registry: Registry, config: Config, names: Iterable[str], fill: Fill = hostnodes.fill_in) -> Config:
    """`config` with the devices of these qualified names in it. All or nothing: raises SpecError, among others for
    names that the registry does not know, and for device nodes that `fill` does not find."""
    return apply(combined(registry.resolve(names), fill), config)


def combined(entries: Iterable[Entry], fill: Fill | None = None) -> ContainerEdits:
    """The edits of several devices as one: for each device those that its specification makes for any of its devices,
    unless they are there already, then its own. A device that is named twice counts once. `fill` is applied to each
    part, and its errors are told of the specification. Raises SpecError."""
    return joined(_filled(*part, fill) if fill else part[-1] for part in _parts(entries))


def _parts(entries: Iterable[Entry]) -> Iterator[tuple[Entry, bool, ContainerEdits]]:
    """(entry, whether these are its own edits, edits), in the order of their application."""
    specs: set[str] = set()
    devices: set[str] = set()
    for entry in entries:
        if entry.path not in specs:
            specs.add(entry.path)
            yield entry, False, entry.spec.container_edits
        if entry.name not in devices:
            devices.add(entry.name)
            yield entry, True, entry.device.container_edits


def _filled(entry: Entry, own: bool, edits: ContainerEdits, fill: Fill) -> ContainerEdits:
    try:
        return fill(edits)
    except SpecError as e:
        place = f"devices[{entry.spec.devices.index(entry.device)}].containerEdits" if own else "containerEdits"
        where = f"{place}.{e.where}" if e.where else place
        raise SpecError(e.why, where, entry.path, e.hint) from None


def joined(parts: Iterable[ContainerEdits]) -> ContainerEdits:
    """Several edits one after the other; of `intel_rdt` the last."""
    edits = list(parts)
    rdt = [each.intel_rdt for each in edits if each.intel_rdt is not None]
    return ContainerEdits(
        env=tuple(chain.from_iterable(each.env for each in edits)),
        device_nodes=tuple(chain.from_iterable(each.device_nodes for each in edits)),
        net_devices=tuple(chain.from_iterable(each.net_devices for each in edits)),
        hooks=tuple(chain.from_iterable(each.hooks for each in edits)),
        mounts=tuple(chain.from_iterable(each.mounts for each in edits)),
        intel_rdt=rdt[-1] if rdt else None,
        additional_gids=tuple(chain.from_iterable(each.additional_gids for each in edits)),
    )


def apply(edits: ContainerEdits, config: Config) -> Config:
    """`config` with the edits made. Their device nodes have a type and numbers: see `hostnodes.fill_in`. Raises
    SpecError for edits that are not valid, also where only several devices together make them so, and ConfigError for
    an odd `config`."""
    for problem in validate.edits_problems(edits):
        raise problem
    draft = _Draft(config)
    _env(draft, edits)
    _device_nodes(draft, edits)
    if edits.net_devices:
        interfaces = draft.object("linux", "netDevices")
        for each in edits.net_devices:
            interfaces[each.host_interface_name] = {"name": each.name}
    _mounts(draft, edits)
    _hooks(draft, edits)
    if edits.intel_rdt is not None:
        draft.object("linux")["intelRdt"] = _intel_rdt(edits.intel_rdt)
    _additional_gids(draft, edits)
    return draft.config


class _Draft:
    """A configuration under change. What is asked for is copied the first time, and missing things are made."""

    def __init__(self, config: Config) -> None:
        if not isinstance(config, dict):
            raise ConfigError("not an object")
        self.config: Config = dict(config)
        self._own: dict[tuple[str, ...], Any] = {(): self.config}

    def object(self, *path: str) -> Config:
        """The object there, for writing."""
        found: Config = self._at(path, dict)
        return found

    def list(self, *path: str) -> list[Any]:
        """The list there, for writing."""
        found: list[Any] = self._at(path, list)
        return found

    def _at(self, path: tuple[str, ...], kind: type) -> Any:
        if path not in self._own:
            parent = self._at(path[:-1], dict)
            value = typed(parent.get(path[-1]), kind, ".".join(path))
            self._own[path] = parent[path[-1]] = kind() if value is None else kind(value)
        return self._own[path]

    def look(self, kind: type, *path: str) -> Any:
        """What is there, for reading; None where it is missing or null."""
        at: Any = self.config
        for depth, key in enumerate(path, 1):
            at = typed(at.get(key), kind if depth == len(path) else dict, ".".join(path[:depth]))
            if at is None:
                return None
        return at


def typed(value: Any, kind: type, where: str) -> Any:
    """`value`, which is None or of that JSON type. Raises ConfigError."""
    if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise ConfigError(f"not {_WORDS[kind]}", where)
    return value


def clean(path: str) -> str:
    """The path as it is compared: no double, inner or last slash that says nothing, no `.` and no `..`."""
    found = normpath(path)
    return found[1:] if found.startswith("//") else found


def _paths(objects: list[Any], key: str, where: str) -> list[str]:
    """The cleaned path that each object has under `key`."""
    found = []
    for i, each in enumerate(objects):
        if each is None:
            raise ConfigError("null", f"{where}[{i}]")
        typed(each, dict, f"{where}[{i}]")
        found.append(clean(typed(each.get(key), str, f"{where}[{i}].{key}") or ""))
    return found


def _env(draft: _Draft, edits: ContainerEdits) -> None:
    """A variable takes the place of an older one of that name; where there are several, of the first one, and the
    others go, since runtimes do not agree on which of them counts."""
    if not edits.env:
        return
    new: dict[str, str] = {}
    for text in edits.env:
        new[text.partition("=")[0]] = text
    env = draft.list("process", "env")
    kept: dict[str, str] = {}
    out = []
    for i, text in enumerate(env):
        if not isinstance(text, str):
            raise ConfigError("not a string", f"process.env[{i}]")
        name = text.partition("=")[0]
        if name not in new:
            out.append(text)
        elif name not in kept:
            kept[name] = new[name]
            out.append(new[name])
    env[:] = [*out, *(text for name, text in new.items() if name not in kept)]


def _device_nodes(draft: _Draft, edits: ContainerEdits) -> None:
    if not edits.device_nodes:
        return
    uid = draft.look(int, "process", "user", "uid") or 0
    gid = draft.look(int, "process", "user", "gid") or 0
    devices = draft.list("linux", "devices")
    old = _paths(devices, "path", "linux.devices")
    new: dict[str, Config] = {}
    rules = []
    for node in edits.device_nodes:
        path = clean(node.path)
        new.pop(path, None)
        new[path] = _device(node, uid, gid)
        if node.type != "p" and node.permissions != validate.NO_PERMISSIONS:
            rules.append(_rule(node))
    devices[:] = [each for each, path in zip(devices, old) if path not in new] + list(new.values())
    if rules:
        draft.list("linux", "resources", "devices").extend(rules)


def _device(node: DeviceNode, uid: int, gid: int) -> Config:
    """runtime-spec, config-linux.md, "Devices"; uid and gid: of the container's process."""
    if not node.type:
        why = f"device node {printable(node.path)}: its type is not known"
        raise SpecError(why, hint="look it up on the host first")
    device: Config = {"path": node.path, "type": node.type}
    if node.type != "p":
        device.update(major=node.major, minor=node.minor)
    if node.file_mode is not None:
        device["fileMode"] = node.file_mode
    for key, given, default in (("uid", node.uid, uid), ("gid", node.gid, gid)):
        if given is not None or default > 0:
            device[key] = default if given is None else given
    return device


def _rule(node: DeviceNode) -> Config:
    """For the device cgroup. An unbuffered character device, `u`, is `c` there; a runtime refuses empty access."""
    kind = "c" if node.type == "u" else node.type
    access = node.permissions or _ALL_ACCESS
    return {"allow": True, "type": kind, "major": node.major, "minor": node.minor, "access": access}


def _mounts(draft: _Draft, edits: ContainerEdits) -> None:
    """Mounts that another one hides for good go; parents come before what is mounted below them."""
    if not edits.mounts:
        return
    mapped = _has_user_namespace(draft)
    mounts = draft.list("mounts")
    old = _paths(mounts, "destination", "mounts")
    new: dict[str, Config] = {}
    for mount in edits.mounts:
        path = clean(mount.container_path)
        new.pop(path, None)
        new[path] = _mount(mount, mapped=mapped)
    pairs = [(path, each) for path, each in zip(old, mounts) if path not in new] + list(new.items())
    mounts[:] = [each for _, each in sorted(pairs, key=lambda pair: pair[0].count("/"))]


def _has_user_namespace(draft: _Draft) -> bool:
    namespaces = draft.look(list, "linux", "namespaces") or []
    for i, each in enumerate(namespaces):
        typed(each, dict, f"linux.namespaces[{i}]")
    return any(each and each.get("type") == "user" for each in namespaces)


def _mount(mount: Mount, *, mapped: bool) -> Config:
    """mapped: the container has a user namespace, and sees the owners of the host's files through its mappings."""
    options = list(mount.options)
    if mapped and not {"idmap", "ridmap"} & set(options):
        if "rbind" in options:
            options.append("ridmap")
        elif "bind" in options or mount.type == "bind":
            options.append("idmap")
    out: Config = {"destination": mount.container_path, "source": mount.host_path}
    if mount.type:
        out["type"] = mount.type
    if options:
        out["options"] = options
    return out


def _hooks(draft: _Draft, edits: ContainerEdits) -> None:
    for hook in edits.hooks:
        draft.list("hooks", hook.hook_name).append(_hook(hook))


def _hook(hook: Hook) -> Config:
    """A timeout that is not greater than zero, which runtime-spec wants, is left out: it would end the hook at once."""
    out: Config = {"path": hook.path}
    if hook.args:
        out["args"] = list(hook.args)
    if hook.env:
        out["env"] = list(hook.env)
    if hook.timeout and hook.timeout > 0:
        out["timeout"] = hook.timeout
    return out


def _intel_rdt(rdt: IntelRdt) -> Config:
    """runtime-spec, config-linux.md, "IntelRdt"."""
    out = {
        "closID": rdt.clos_id,
        "l3CacheSchema": rdt.l3_cache_schema,
        "memBwSchema": rdt.mem_bw_schema,
        "schemata": list(rdt.schemata or ()),
        "enableMonitoring": rdt.enable_monitoring,
    }
    return {key: value for key, value in out.items() if value}


def _additional_gids(draft: _Draft, edits: ContainerEdits) -> None:
    new = [gid for gid in dict.fromkeys(edits.additional_gids) if gid]
    if not new:
        return
    gids = draft.list("process", "user", "additionalGids")
    for i, gid in enumerate(gids):
        if gid is None or typed(gid, int, f"process.user.additionalGids[{i}]") is None:
            raise ConfigError("null", f"process.user.additionalGids[{i}]")
    gids += [gid for gid in new if gid not in gids]
