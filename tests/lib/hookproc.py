"""One hook process, run as a runtime would run it but without a runtime."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lib import compat, jail, proc, session

Stage = Literal["prestart", "createRuntime", "createContainer"]
COMPAT_SWITCH = "NVOCI_TEST_COMPAT"
_BODY = """\
import sys
sys.path.insert(0, {hooks!r})
from {module} import {function}
{function}()
"""


def entry(function: str = "cdi_hook", module: str = "nvoci.hook.main", name: str = "nvidia-cdi-hook") -> Path:
    """An entry file for this checkout, as scripts/install lays one down."""
    path = session.tmp() / f"entry-{module}-{function}" / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(_BODY.format(hooks=str(session.HOOKS), module=module, function=function))
    return path


def command(args: Sequence[str | Path], program: Path | None = None, prefix: Sequence[str] = ()) -> list[str]:
    """[prefix] python -ISB ENTRY ARGS; in a compat run the filter comes between prefix and interpreter."""
    wrapper = compat.prefix() if os.environ.get(COMPAT_SWITCH) else []
    return [*prefix, *wrapper, session.ENTRY_PYTHON, "-ISB", str(program or entry()), *map(str, args)]


def hook_entry(
    args: Sequence[str | Path],
    *,
    env: Sequence[str] | None = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin",),
    timeout: int | None = None,
    program: Path | None = None,
    prefix: Sequence[str] = (),
) -> dict[str, Any]:
    """The same command as an entry for `hooks` of config.json or a hooks.d file. env=None leaves the key out."""
    argv = command(args, program, prefix)
    out: dict[str, Any] = {"path": shutil.which(argv[0]) or argv[0], "args": argv}
    if env is not None:
        out["env"] = list(env)
    if timeout is not None:
        out["timeout"] = timeout
    return out


class FakeContainer:
    """A process in namespaces like those a runtime has made at createRuntime.

    The root is bound on itself, /proc and /dev are mounted below it. Not pivoted yet: `/` in it
    is the host's tree. Use it as a context manager, or close() it.
    """

    def __init__(
        self,
        rootfs: str | Path,
        *,
        readonly: bool = False,
        dev: bool = True,
        proc_mount: bool = True,
        setup: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """setup: shell lines run in the container's mount namespace, with $R the root. config: for the bundle."""
        self.rootfs = Path(rootfs).absolute()
        self.pid = 0
        self.bundle = session.new_dir("bundle")
        default = {"ociVersion": "1.0.2", "root": {"path": str(self.rootfs), "readonly": readonly}}
        (self.bundle / "config.json").write_text(json.dumps(default if config is None else config))
        lines = ["set -e", 'mount --bind "$R" "$R"']
        if proc_mount:
            lines += ['mkdir -p "$R/proc"', 'mount -t proc -o nosuid,nodev,noexec proc "$R/proc"']
        if dev:
            lines += ['mkdir -p "$R/dev"', 'mount -t tmpfs -o nosuid,mode=755 tmpfs "$R/dev"']
            lines += ['mkdir "$R/dev/pts" "$R/dev/shm"', 'mknod -m 666 "$R/dev/null" c 1 3']
        lines += [setup]
        if readonly:
            lines += ['mount -o remount,bind,ro "$R"']
        lines += ["echo ready", "exec cat >/dev/null"]
        self._start("\n".join(lines))

    def _start(self, script: str) -> None:
        unshare = ["/usr/bin/unshare", "--mount", "--pid", "--ipc", "--uts", "--propagation", "private", "--fork"]
        argv = [*unshare, "--kill-child", "/bin/sh", "-c", script]
        env = {**proc.PLAIN_ENV, "R": str(self.rootfs)}
        self._proc = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd="/")
        assert self._proc.stdout is not None
        if self._proc.stdout.readline() != b"ready\n":
            self.close()
            raise RuntimeError(f"make container of {self.rootfs}: set-up failed")
        self.pid = proc.children(self._proc.pid)[0]

    def state(self, stage: Stage = "createRuntime", runtime: str = "runc") -> dict[str, Any]:
        """What `runtime` writes to the stdin of a hook at `stage`."""
        inside = stage == "createContainer"
        out: dict[str, Any] = {"ociVersion": "1.0.2", "id": "fake", "bundle": str(self.bundle), "pid": self.pid}
        if runtime == "crun":
            out |= {"ociVersion": "1.0", "root": str(self.rootfs), "status": "created"}
            out["pid"] = 0 if inside else self.pid
        else:
            out |= {"status": "creating", "pid": 1 if inside else self.pid}
        return out

    def path(self, name: str = "") -> Path:
        """`name` below the container's root, as seen in its mount namespace (links are the reader's business)."""
        return Path(f"/proc/{self.pid}/root{self.rootfs}/{name.lstrip('/')}")

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def listdir(self, name: str = "") -> list[str]:
        return sorted(os.listdir(self.path(name)))

    def mountinfo(self) -> list[str]:
        return proc.mountinfo(self.pid)

    def mounts_at(self, name: str) -> list[str]:
        """mountinfo lines of mounts at `name` in the container, the visible one last."""
        point = f"{self.rootfs}/{name.strip('/')}".rstrip("/")
        return [m for m in self.mountinfo() if m.split()[4] == point]

    def run(self, argv: Sequence[str], timeout: float = 10.0) -> proc.Result:
        """Run a program of the image in the container (chroot in its namespaces)."""
        return proc.run(["chroot", str(self.path()), *argv], timeout=timeout)

    def close(self) -> None:
        for pipe in (self._proc.stdin, self._proc.stdout):
            if pipe:
                pipe.close()
        try:
            self._proc.wait(timeout=2)  # the init ends with its stdin, and unshare with it
        except subprocess.TimeoutExpired:
            if self.pid:
                os.kill(self.pid, signal.SIGKILL)
            self._proc.kill()
            self._proc.wait()
        shutil.rmtree(self.bundle, ignore_errors=True)

    def __enter__(self) -> FakeContainer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def inside(container: FakeContainer, argv: Sequence[str], cwd: str | Path | None = None) -> list[str]:
    """`argv` as at createContainer: in the container's namespaces, `/` still the host's tree, cwd the rootfs."""
    enter = ["/usr/bin/nsenter", "--target", str(container.pid), "--mount", "--pid", "--ipc", "--uts", "--"]
    return [*enter, "/bin/sh", "-c", 'cd "$1"; shift; exec "$@"', "sh", str(cwd or container.rootfs), *argv]


def run_hook(
    args: Sequence[str | Path],
    state: Mapping[str, Any] | bytes | None = None,
    *,
    container: FakeContainer | None = None,
    stage: Stage = "createRuntime",
    runtime: str = "runc",
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    prefix: Sequence[str] = (),
    setup: str = "",
    program: Path | None = None,
    timeout: float = 10.0,
    measure_rss: bool = False,
    pass_fds: Sequence[int] = (),
    preexec: Callable[[], None] | None = None,
    stdin: int | None = -1,
    stderr: int | None = None,
) -> proc.Result:
    """Run `nvidia-cdi-hook ARGS` as `runtime` does at `stage`. Make the container before the Oracle, which counts it.

    state: the stdin; from `container` when not given. cwd: the bundle, or the rootfs (runc, createContainer).
    prefix: a wrapper (strace.*, compat.prefix). setup: jail set-up in a private mount namespace around the hook.
    stdin: a descriptor in place of the state, or None for closed.
    """
    argv = command(args, program, prefix)
    if container is not None:
        state = container.state(stage, runtime) if state is None else state
        if stage == "createContainer":
            argv = inside(container, argv, cwd or (container.bundle if runtime == "crun" else container.rootfs))
        cwd = cwd or container.bundle
    if setup:
        argv = [*jail.prefix(setup), *argv]
    data = state if isinstance(state, bytes) else json.dumps(state or {}).encode()
    return proc.run(
        argv,
        stdin=data if stdin == -1 else stdin,
        env=env,
        cwd=cwd,
        timeout=timeout,
        measure_rss=measure_rss,
        pass_fds=pass_fds,
        preexec=preexec,
        stderr=stderr,
    )
