"""The MIG part of the simulated node a100-mig: access files, tables of minors and majors, and the capability nodes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib import session, simnode

MAJOR = 236
# Instance -> minor of its node, as in the sample.
GI, CI = "0:1", "0:1:0"
MINORS = {GI: 12, CI: 13, "1:2": 156, "1:2:0": 157, "1:2:1": 158}
CAPABILITIES = "proc/driver/nvidia/capabilities"
CONFIG, MONITOR = 1, 2
_WANTED = ("/proc", "/dev/nvidia-caps")
_FLAG = {2: "--gpu-instance", 3: "--compute-instance"}


def access(instance: str) -> str:
    """The access file of `0:1` or `0:1:0`, below a root."""
    gpu, *rest = instance.split(":")
    return "/".join([CAPABILITIES, f"gpu{gpu}", "mig", *(f"{k}{i}" for k, i in zip(("gi", "ci"), rest)), "access"])


def node(instance: str) -> str:
    """Its node, below a root."""
    return f"dev/nvidia-caps/nvidia-cap{MINORS[instance]}"


@dataclass
class MigNode:
    """`root` has `dev/nvidia-caps` and `proc`; `clean` is an empty directory."""

    root: Path
    clean: Path

    @property
    def proc(self) -> Path:
        """What is seen at /proc/driver."""
        return self.root / "proc/driver"

    def setup(self) -> str:
        """Set-up of the host: its procfs shows the node, always the same files. A second procfs that nothing covers is
        mounted too: without one the kernel lets no user namespace mount its own."""
        proc = shlex.quote(str(self.root / "proc"))
        mounts = [f"mount --bind {proc}/{name} /proc/{name}" for name in ("driver", "devices")]
        return "\n".join([f"mount -t proc proc {self.clean}", *mounts, ""])

    def in_container(self, root: str = '"$R"') -> str:
        """Set-up of a container below `root`: its procfs shows the driver's tree, as any procfs does."""
        source = shlex.quote(str(self.proc))
        return f"mount -t tmpfs -o mode=555 driver {root}/proc/driver\ncp -a {source}/. {root}/proc/driver/\n"

    def words(self, *instances: str, options: Sequence[str] = ()) -> list[str]:
        """The hook's command line."""
        named = [word for each in instances for word in (_FLAG[len(each.split(":"))], each)]
        return ["mount-mig-devices", *named, "--driver-root", str(self.root), *options]

    def without_nodes(self) -> None:
        """As a driver before 450: capabilities have no device nodes."""
        table = self.root / "proc/devices"
        table.write_text("".join(line for line in table.read_text().splitlines(True) if "nvidia-caps" not in line))


def make(folder: Path, changes: Mapping[str, str] | None = None) -> MigNode:
    """Below `folder`, which is made. changes: other contents of files, by their paths below the root."""
    document = simnode.sample("a100-mig")
    files = [entry for entry in document["files"] if entry["path"] == "/dev" or entry["path"].startswith(_WANTED)]
    built = simnode.build(simnode.load({"files": files}), folder)
    for name, text in (changes or {}).items():
        path = built.root / name
        path.chmod(0o644)
        path.write_text(text)
    return MigNode(built.root, session.new_dir("proc"))
