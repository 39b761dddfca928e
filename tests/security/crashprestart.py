"""The prestart injector, and nvidia-container-cli configure, on a simulated node, for `crashing`.

To be used in `prestartscene.on_node`. The container is in a device cgroup of its own, of v1 or of v2, whose rules are
part of the state.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml
from kernel import devcgroups
from lib.callpoints import Ran
from lib.hookproc import FakeContainer
from security import prestartscene
from security.crashing import Scene, State

ROOMS = ("hook", "linux", "oci", "ldcache", "prestart", "discover.model", "discover.inventory", "discover.record",
         "discover.fingerprint")  # fmt: skip
PRESTART, CLI = "prestart", "configure"
INVENTORY = Path(prestartscene.RUN) / "inventory"
_ENTRY = {
    PRESTART: {"module": "nvoci.prestart.main", "function": "main", "name": "/nvidia-container-runtime-hook"},
    CLI: {"module": "nvoci.prestart.cli", "function": "main", "name": "/nvidia-container-cli", "whole": True},
}


@dataclass
class PrestartScene(Scene):
    """kind: of device cgroup. program: PRESTART or CLI."""

    words: Sequence[str] = ("prestart",)
    spec: str = ""
    kind: str = "devices"
    program: str = PRESTART
    capabilities: str = "utility"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.zygote = {"rooms": ROOMS, "folders": [Path(pynvml.__file__).parent], **_ENTRY[self.program], **self.zygote}
        driver = f'cp -a {prestartscene.proc_driver()}/. "$R/proc/driver/"'
        self.setup = f'mount -t tmpfs -o mode=555 driver "$R/proc/driver"\n{driver}\n'
        env = ["NVIDIA_VISIBLE_DEVICES=0", f"NVIDIA_DRIVER_CAPABILITIES={self.capabilities}"]
        process = {"env": env, "capabilities": {}}
        config = {"ociVersion": "1.0.2", "process": process, "root": {"path": str(self.arena.root)}}
        self.options = {"config": config}
        self.silent = self.program == CLI
        self._groups = ExitStack()

    def prepare(self) -> None:
        """The node was looked at before, with all that this kernel has: NVML's process needs it."""
        prestartscene.ready(prestartscene.Scene(self.kind))
        self._looked = INVENTORY.read_bytes()

    def run(self, **how: Any) -> Ran:
        """A lie about the inventory makes the hook look anew, and write what it found; on an old kernel, where NVML's
        process cannot be, no other look would put that right."""
        if self.zygote.get("blocked") and INVENTORY.read_bytes() != self._looked:
            INVENTORY.write_bytes(self._looked)
        if self.program == CLI:
            words = [f"--{name}" for name in self.capabilities.split(",")]
            self.words = ["configure", f"--pid={self.container.pid}", "--device=0", *words, str(self.arena.root)]
        return super().run(**how)

    @contextmanager
    def made(self) -> Iterator[FakeContainer]:
        with FakeContainer(self.arena.root, setup=self.setup, **self.options) as container:
            self._group(container)
            try:
                yield container
            finally:
                container.close()
                _wait_until_empty(self.cgroup)
                self._groups.close()

    def _group(self, container: FakeContainer) -> None:
        """Into a new cgroup, with a runtime's rules."""
        before = self._groups
        self._groups = ExitStack()
        self.cgroup = self._groups.enter_context(devcgroups.cgroup(self.kind))
        (self.cgroup / "cgroup.procs").write_text(str(container.pid))
        prestartscene.restrict(self.kind, self.cgroup)
        before.close()

    def refused(self, ran: Ran) -> list[str]:
        """configure has the form of libnvidia-container."""
        if self.program == PRESTART:
            return super().refused(ran)
        lines = ran.stderr.splitlines()
        good = ran.rc == 1 and len(lines) == 1 and lines[0].startswith("nvidia-container-cli: ")
        return [] if good and "internal error" not in lines[0] else [f"{ran.rc} said {ran.stderr!r}"]

    def extra(self) -> object:
        return prestartscene.rules(self.kind, self.cgroup)

    def reset(self, now: State) -> None:
        if now.extra != self.before.extra:
            self._group(self.container)
        super().reset(now)


def _wait_until_empty(cgroup: Path) -> None:
    deadline = time.monotonic() + 5
    while (cgroup / "cgroup.procs").read_text() and time.monotonic() < deadline:
        time.sleep(0.002)
