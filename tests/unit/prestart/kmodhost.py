"""A host for --load-kmods: a directory with dev, proc and sys, and a modprobe that is a script."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lib import mignode
from lib.rootfs import tree

from nvoci import log
from nvoci.linux.fd import Fd
from nvoci.prestart import kmods

IDENTITY = "         0          0 4294967295\\n"
HOST = f"""
dir dev/char
file proc/self/uid_map {IDENTITY}
file proc/self/gid_map {IDENTITY}
file proc/self/setgroups allow\\n
dir sys/module
"""
MODULES = ["nvidia", "nvidia_uvm", "nvidia_modeset"]
MAJORS = "Character devices:\n195 nvidia\n234 nvidia-caps-imex-channels\n236 nvidia-caps\n508 nvidia-uvm\n"
# What a modprobe leaves behind: the module in sysfs, and a line that says how it was called.
SCRIPT = """#!/bin/sh
env=$(env | grep -v '^_=\\|^PWD=\\|^SHLVL=' | tr '\\n' ' ')
echo "$* in $(pwd) umask $(umask) env ${{env}}stdin [$(cat)]" >>{host}/log
name=$(echo "$1" | tr - _)
mkdir -p {host}/sys/module/$name && echo live >{host}/sys/module/$name/initstate
"""
INSTANCES = 25  # of the sample, beside config and monitor


class Host:
    """A directory with dev, proc and sys."""

    def __init__(self, folder: Path, gpus: int = 8) -> None:
        self.root = mignode.make(folder / "host").root
        shutil.rmtree(self.root / "dev")  # the nodes are to be made
        tree(self.root, HOST)
        (self.root / "proc/devices").write_text(MAJORS + "\nBlock devices:\n  7 loop\n")
        for n in range(gpus):
            self.pci(f"0000:{n + 1:02x}:00.0", "0x10de", "0x030200")
        self.pci("0000:00:1f.0", "0x8086", "0x030000")  # of another vendor
        self.pci("0000:c0:00.0", "0x10de", "0x068000")  # an NVSwitch
        self.modprobe(SCRIPT.format(host=self.root))
        self.said: list[str] = []

    def pci(self, address: str, vendor: str, kind: str) -> None:
        tree(self.root, f"file sys/bus/pci/devices/{address}/vendor {vendor}\\n\n"
                        f"file sys/bus/pci/devices/{address}/class {kind}\\n")  # fmt: skip

    def modprobe(self, script: str, name: str = "modprobe") -> Path:
        path = self.root / name
        path.write_text(script)
        path.chmod(0o755)
        self.write("proc/sys/kernel/modprobe", f"{path}\n")
        return path

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.chmod(0o644)
        path.write_text(text)

    def loaded(self, *modules: str) -> None:
        for module in modules or MODULES:
            self.write(f"sys/module/{module}/initstate", "live\n")

    def params(self, **changes: object) -> None:
        path = self.root / "proc/driver/nvidia/params"
        lines = [line.partition(": ") for line in path.read_text().splitlines()]
        self.write("proc/driver/nvidia/params",
                   "".join(f"{key}: {changes.get(key, value)}\n" for key, _, value in lines))  # fmt: skip

    def place(self) -> kmods.Place:
        flags = os.O_PATH | os.O_DIRECTORY
        handles = [Fd(os.open(path, flags)) for path in ("/", *(self.root / x for x in ("dev", "proc", "sys")))]
        return kmods.Place(*handles)

    def load(self, *channels: int, **how: Any) -> bool:
        with self.place() as place:
            return kmods.load(place, channels, **how)

    def calls(self) -> list[str]:
        """What modprobe was asked for."""
        path = self.root / "log"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    def nodes(self) -> dict[str, str]:
        """Name below dev -> `c 195:0 666`, with owner where it is not root's; directories and links too."""
        found = {}
        for path in sorted((self.root / "dev").rglob("*")):
            st = path.lstat()
            mode = f"{stat.S_IMODE(st.st_mode):o}"
            if path.is_symlink():
                text = os.readlink(path)
            elif path.is_dir():
                text = f"dir {mode}"
            else:
                kind = "c" if stat.S_ISCHR(st.st_mode) else "?"
                text = f"{kind} {os.major(st.st_rdev)}:{os.minor(st.st_rdev)} {mode}"
            owner = "" if path.is_symlink() or not st.st_uid + st.st_gid else f" {st.st_uid}:{st.st_gid}"
            found[str(path.relative_to(self.root / "dev"))] = text + owner
        return found


def expected(gpus: int = 8) -> dict[str, str]:
    """Everything but the nodes of instances."""
    nodes = {f"nvidia{n}": f"c 195:{n} 666" for n in range(gpus)}
    nodes |= {"nvidiactl": "c 195:255 666", "nvidia-modeset": "c 195:254 666"}
    nodes |= {"nvidia-uvm": "c 508:0 666", "nvidia-uvm-tools": "c 508:1 666"}
    return nodes


@contextlib.contextmanager
def simulated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host below `folder`; what is logged is in `said`, and the umask is one that would be noticed."""
    found = Host(folder)
    monkeypatch.setattr(log, "_sinks", [(log.INFO, found.said.append)])
    monkeypatch.setattr(log, "_stderr_level", log.ERROR)
    old = os.umask(0o077)
    try:
        yield found
    finally:
        os.umask(old)
