"""Containers started by the real runc, crun and podman, each in a jail of its own and gone afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib import elfmaker, jail, proc, session
from lib.bundle import bind, make_bundle, shell_hook

__all__ = ["NAMES", "Runtime", "available", "bind", "leftovers", "make_bundle", "podman", "remove_cgroups"]
__all__ += ["shell_hook"]

NAMES = ("runc", "crun")


def available(name: str) -> bool:
    return shutil.which(name) is not None


@dataclass
class Runtime:
    """runc or crun. cgroups: "v1" (or what the host has), or "v2": device programs instead of device lists."""

    name: str
    cgroups: str = "v1"

    def run(
        self,
        bundle: str | Path,
        timeout: float = 30.0,
        *,
        setup: str = "",
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        cwd: str | Path | None = None,
    ) -> proc.Result:
        """Create, start, wait for and delete one container. stdout and stderr are the container's (and the runtime's).

        survivors and mounts_added of the result are those of the jail, i.e. what the runtime sees as the host.
        """
        container = session.unique(self.name)
        state = session.new_dir("state")
        base = [shutil.which(self.name) or self.name, "--root", str(state)]
        path = Path(bundle).resolve()
        command = [*base, "run", "--bundle", str(path), container]
        environment = {**proc.PLAIN_ENV, **(env or {}), **self._memlock()}
        try:
            return jail.run(
                command,
                setup=self._cgroup_setup() + setup,
                post=[[*base, "delete", "--force", container]],
                env=environment,
                stdin=stdin,
                cwd=cwd,
                timeout=timeout,
            )
        finally:
            remove_cgroups()
            shutil.rmtree(state, ignore_errors=True)

    def _cgroup_setup(self) -> str:
        if self.cgroups == "v2":
            return jail.cgroup_v2_only()
        return jail.cgroup_v1_only() if self.name == "crun" else ""

    def _memlock(self) -> dict[str, str]:
        """crun 1.8 raises RLIMIT_MEMLOCK for its device program and gives up where CAP_SYS_RESOURCE is missing."""
        if self.name != "crun" or self.cgroups != "v2" or os.uname().machine not in elfmaker.EXIT_CODE:
            return {}
        stub = session.tmp() / "setrlimit.so"
        if not stub.exists():
            functions = {"setrlimit": 0, "setrlimit64": 0}
            elfmaker.make_so(stub, machine=os.uname().machine, functions=functions)
        return {"LD_PRELOAD": str(stub)}


def podman(
    rootfs: str | Path,
    args: Sequence[str],
    *,
    runtime: str = "runc",
    hooks_dir: str | Path | Sequence[str | Path] | None = None,
    flags: Sequence[str] = (),
    setup: str = "",
    cdi_specs: Mapping[str, str | Mapping[str, object]] | None = None,
    timeout: float = 60.0,
) -> proc.Result:
    """`podman run --rm --rootfs` with storage, state and /run of its own; flags go before the root.

    cdi_specs: {"nvidia.json": spec}, seen at /etc/cdi for this run only (podman 4.3 reads versions up to 0.5.0).
    """
    storage = session.new_dir("podman")
    name = session.unique("podman")
    folders = [hooks_dir] if isinstance(hooks_dir, (str, Path)) else list(hooks_dir or ())
    command = ["podman", f"--root={storage}/root", f"--runroot={storage}/run", f"--tmpdir={storage}/tmp"]
    command += ["--cgroup-manager=cgroupfs", f"--runtime={shutil.which(runtime) or runtime}", "--events-backend=none"]
    command += [f"--hooks-dir={folder}" for folder in folders]
    command += ["run", "--rm", "--network=none", "--ulimit=nofile=512:512", "--ulimit=nproc=256:256", f"--name={name}"]
    command += [f"--cgroup-parent=/{session.TOKEN}", *flags, "--rootfs", str(rootfs), *args]
    private = "mount -t tmpfs run /run\nmount -t tmpfs shm /dev/shm\n"
    if cdi_specs:
        texts = {f"/etc/cdi/{n}": s if isinstance(s, str) else json.dumps(s) for n, s in cdi_specs.items()}
        private += jail.host_files(texts)
    cgroup = jail.cgroup_v1_only() if Path(runtime).name == "crun" else ""
    try:
        return jail.run(command, setup=cgroup + private + setup, timeout=timeout, grace=3.0)
    finally:
        remove_cgroups()
        shutil.rmtree(storage, ignore_errors=True)


def cgroups() -> list[Path]:
    """cgroup directories of this session, deepest first."""
    tops = [p for h in Path("/sys/fs/cgroup").glob("*") for p in [h / session.TOKEN] if p.is_dir()]
    tops += [p for p in [Path("/sys/fs/cgroup") / session.TOKEN] if p.is_dir()]
    found = [p for top in tops for p in [top, *(d for d in top.rglob("*") if d.is_dir())]]
    return sorted(found, key=lambda p: -len(p.parts))


def leftovers() -> list[str]:
    """What test containers of this session left on the host; empty is good."""
    states = [p for d in session.tmp().glob("state*") for p in [d, *d.iterdir()]]
    states += [p for d in ("/run/runc", "/run/crun") for p in Path(d).glob(f"{session.TOKEN}*")]
    mounts = [m for m in proc.mountinfo() if f"{session.tmp()}/" in m]
    return [f"cgroup {c}" for c in cgroups()] + [f"state {s}" for s in states] + [f"mount {m}" for m in mounts]


def remove_cgroups(patience: float = 2.0) -> None:
    """Of this session. EBUSY means that a killed process is not quite gone: asked again for `patience` seconds."""
    until = time.monotonic() + patience
    while True:
        for path in cgroups():
            with contextlib.suppress(OSError):
                path.rmdir()
        if not cgroups() or time.monotonic() > until:
            return
        time.sleep(0.02)
