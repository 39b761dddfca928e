"""runc, as an engine calls it on a simulated node: DRIVER RUNC ARGUMENTS..., where DRIVER holds nvidia/params.

A driver's kernel module shows /proc/driver/nvidia in every procfs; here a hook before all others mounts it. And an
engine's privileged container names every capability of the kernel, of which this machine may lack some.
"""

from __future__ import annotations

import json
import os
import shlex
import sys

# <linux/capability.h>, by number
_CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN "
    "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE "
    "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split()


def here() -> set[str]:
    """The capabilities of the bounding set."""
    with open("/proc/self/status") as lines:
        mask = next(int(line.split()[1], 16) for line in lines if line.startswith("CapBnd:"))
    return {f"CAP_{name}" for number, name in enumerate(_CAPABILITIES) if mask >> number & 1}


def driver_hook(source: str, root: str) -> dict[str, object]:
    there = shlex.quote(f"{root}/proc/driver")
    copy = f"mount -t tmpfs -o mode=555 driver {there} && cp -r {shlex.quote(source)}/. {there}"
    script = """pid=$(tr -d '\\n' | sed 's/.*"pid": *\\([0-9]*\\).*/\\1/'); """
    script += f'exec nsenter --target "$pid" --mount /bin/sh -ec {shlex.quote(copy)}'
    return {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}


def edit(config: dict[str, object], source: str, bundle: str) -> None:
    hooks = config.setdefault("hooks", {})
    root = os.path.join(bundle, config["root"]["path"])  # type: ignore[index]
    hooks["prestart"] = [driver_hook(source, root), *(hooks.get("prestart") or ())]  # type: ignore[index,attr-defined]
    sets, known = config["process"].get("capabilities") or {}, here()  # type: ignore[attr-defined]
    for kind, names in sets.items():
        sets[kind] = [name for name in names or () if name in known]


def main() -> None:
    source, runc, *words = sys.argv[1:]
    if "create" in words:
        bundle = words[words.index("--bundle") + 1]
        with open(f"{bundle}/config.json") as file:
            config = json.load(file)
        edit(config, source, bundle)
        with open(f"{bundle}/config.json", "w") as file:
            json.dump(config, file)
    os.execvp(runc, [runc, *words])


if __name__ == "__main__":
    main()
