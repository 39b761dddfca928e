"""config.json of a test container: the usual mounts and limits, and the hooks under test."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib import session

Json = dict[str, Any]
CAPS = [
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID SYS_CHROOT"
    ).split()
]
STANDARD_ENV = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root")
STAGES = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")


def mount(destination: str, kind: str, source: str, *options: str) -> Json:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def bind(source: str | Path, destination: str, *options: str) -> Json:
    return mount(destination, "bind", str(source), "bind", *options)


def standard_mounts() -> list[Json]:
    quiet = ("nosuid", "noexec", "nodev")
    return [
        mount("/proc", "proc", "proc"),
        mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
        mount("/dev/shm", "tmpfs", "shm", *quiet, "mode=1777", "size=8m"),
        mount("/dev/mqueue", "mqueue", "mqueue", *quiet),
        bind("/sys", "/sys", "rbind", *quiet, "ro"),
    ]


def make_bundle(
    folder: str | Path,
    rootfs: str | Path,
    args: Sequence[str],
    hooks: Mapping[str, Sequence[Json]] | None = None,
    *,
    env: Sequence[str] = STANDARD_ENV,
    mounts: Sequence[Json] = (),
    readonly: bool = False,
    userns: tuple[int, int] | None = None,
    annotations: Mapping[str, str] | None = None,
    devices: Sequence[tuple[str, int, int]] = (),
    caps: Sequence[str] = CAPS,
    propagation: str | None = None,
    edit: Callable[[Json], None] | None = None,
) -> Path:
    """Write `folder`/config.json and return `folder`.

    hooks: {stage: [entry, …]}. userns: (host id, count). devices: char (path, major, minor), allowed rw; in a userns
    runc binds the host's node of that path. edit: changes the finished configuration in place before it is written.
    """
    config: Json = {
        "ociVersion": "1.0.2",
        "process": _process(args, env, caps),
        "root": {"path": str(rootfs), "readonly": readonly},
        "hostname": "test",
        "mounts": [*standard_mounts(), *mounts],
        "linux": _linux(userns, devices),
    }
    if propagation:
        config["linux"]["rootfsPropagation"] = propagation
    if hooks:
        config["hooks"] = {stage: list(entries) for stage, entries in hooks.items()}
    if annotations:
        config["annotations"] = dict(annotations)
    if edit:
        edit(config)
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=1))
    return out


def shell_hook(
    script: str, *, env: Sequence[str] = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin",), timeout: int | None = None
) -> Json:
    """A hook entry that runs a line of the host's /bin/sh; the state is on its stdin."""
    entry: Json = {"path": "/bin/sh", "args": ["sh", "-c", script], "env": list(env)}
    if timeout is not None:
        entry["timeout"] = timeout
    return entry


def _process(args: Sequence[str], env: Sequence[str], caps: Sequence[str]) -> Json:
    return {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": list(args),
        "env": list(env),
        "cwd": "/",
        "capabilities": {kind: list(caps) for kind in ("bounding", "effective", "permitted")},
        "noNewPrivileges": True,
    }


def _linux(userns: tuple[int, int] | None, devices: Sequence[tuple[str, int, int]]) -> Json:
    deny = {"allow": False, "access": "rwm"}
    allow = [{"allow": True, "type": "c", "major": ma, "minor": mi, "access": "rw"} for _, ma, mi in devices]
    kinds = ["pid", "ipc", "uts", "mount"]
    linux: Json = {
        "cgroupsPath": f"/{session.TOKEN}/{session.unique('cg')}",
        "namespaces": [{"type": k} for k in kinds],
        "resources": {"devices": [deny, *allow]},
        "devices": [
            {"path": p, "type": "c", "major": ma, "minor": mi, "fileMode": 0o666, "uid": 0, "gid": 0}
            for p, ma, mi in devices
        ],
        "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/scsi"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    }
    if userns:
        linux["namespaces"].append({"type": "user"})
        mapping = [{"containerID": 0, "hostID": userns[0], "size": userns[1]}]
        linux["uidMappings"] = linux["gidMappings"] = mapping
    return linux
