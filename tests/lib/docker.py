"""A Docker daemon of a test's own: in private mount and pid namespaces, with its own socket, data and /run.

    with Docker(path=[installed / "bin"]) as docker:
        image = docker.load(rootfs)
        docker.run(["--gpus", "all", image, "nvidia-smi"])

Nothing of a daemon that the host may have is used or touched. A start takes a second, a container half of one: start
it once for many containers.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lib import jail, proc, runtimes, session

UNPACKED = session.CHECKOUT / ".venv/docker"  # by scripts/_packages.sh
PR_SET_PDEATHSIG = 1
_NEEDED = ("dockerd", "docker", "containerd", "containerd-shim-runc-v2")


class DockerError(Exception):
    """The daemon does not start, or there is none; the message says why."""


def programs() -> list[Path]:
    """The directories of dockerd, its client and containerd: the distribution's if they are installed, else those that
    scripts/test unpacked. Raises DockerError."""
    for root in (Path("/"), UNPACKED):
        found = [root / "usr/sbin", root / "usr/bin"]
        if all(shutil.which(name, path=os.pathsep.join(map(str, found))) for name in _NEEDED):
            return found
    raise DockerError(f"find dockerd: neither installed nor in {UNPACKED} (scripts/test unpacks it)")


class Docker:
    """A running daemon; close() or leaving the `with` ends it and everything it started.

    path: directories that come first in its PATH, in which it finds nvidia-container-runtime-hook. setup: shell lines
    that run in its mount namespace before it. env: added to its environment, which it hands to that hook.
    add_runtimes: {name: program}, beside runc; the first one is the default. cgroups: "v1" (or what the host has) or
    "v2".
    """

    def __init__(
        self,
        *,
        path: Sequence[str | Path] = (),
        setup: str = "",
        env: Mapping[str, str] | None = None,
        add_runtimes: Mapping[str, str | Path] | None = None,
        cgroups: str = "v1",
        timeout: float = 60.0,
    ) -> None:
        """Raises DockerError where it does not start within `timeout` seconds."""
        self.bin = programs()
        self.folder = session.new_dir("docker")
        self.socket = self.folder / "S"
        self._log = self.folder / "log"
        self._images = 0
        # Else it makes one in /etc/docker. There is no option for it.
        (self.folder / "daemon.json").write_text(json.dumps({"deprecated-key-path": f"{self.folder}/key.json"}))
        others = [Path(each) for each in proc.PLAIN_ENV["PATH"].split(":")]
        words = os.pathsep.join(map(str, dict.fromkeys([*map(Path, path), *self.bin, *others])))
        environ = {**proc.PLAIN_ENV, "HOME": str(self.folder), **(env or {}), "PATH": words}
        whole = jail.cgroup_v2_only() if cgroups == "v2" else ""
        whole += "mount -t tmpfs run /run\nmount -t tmpfs shm /dev/shm\n" + setup
        self._process = self._start(whole, self._daemon(add_runtimes or {}), environ)
        try:
            self._wait(timeout)
        except BaseException:
            self.close()
            raise

    def _daemon(self, others: Mapping[str, str | Path]) -> list[str]:
        """Without a network: no bridge, no rules of a firewall. With no name of the host's own files."""
        at = self.folder
        words = [
            self._program("dockerd"),
            f"--data-root={at}/data",
            f"--exec-root={at}/exec",
            f"--host=unix://{self.socket}",
        ]
        words += [
            f"--pidfile={at}/pid",
            f"--config-file={at}/daemon.json",
        ]
        words += ["--iptables=false", "--ip-forward=false", "--ip-masq=false", "--bridge=none", "--ip6tables=false"]
        words += ["--storage-driver=overlay2", "--exec-opt=native.cgroupdriver=cgroupfs", "--oom-score-adjust=0"]
        words += [f"--cgroup-parent=/{session.TOKEN}", "--log-level=info"]
        words += [f"--add-runtime={name}={program}" for name, program in others.items()]
        return words + [f"--default-runtime={name}" for name in list(others)[:1]]

    def _program(self, name: str) -> str:
        found = shutil.which(name, path=os.pathsep.join(map(str, self.bin)))
        assert found is not None, name
        return found

    def _start(self, setup: str, words: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """The first process of the pid namespace is a shell, which reaps; all dies with it, and it with us."""
        unshare = ["/usr/bin/unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
        script = f'set -eu\n{setup}\n"$@" &\nwait $!'
        prctl = ctypes.CDLL(None).prctl
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [*unshare, "--mount-proc", "/bin/sh", "-c", script, "sh", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(env),
                start_new_session=True,
                preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
            )

    def _wait(self, timeout: float) -> None:
        """Until it answers."""
        until = time.monotonic() + timeout
        while time.monotonic() < until and self._process.poll() is None:
            if self.socket.exists() and self.call("version", timeout=max(1.0, until - time.monotonic())).ok:
                return
            time.sleep(0.05)
        raise DockerError(f"start dockerd: it {'ended' if self._process.poll() is not None else 'gives no answer'}: "
                          + "\n".join(self.log().splitlines()[-20:]))  # fmt: skip

    def log(self) -> str:
        """What the daemon wrote."""
        return self._log.read_text(errors="replace")

    def call(self, *words: str | Path, stdin: bytes | int = b"", timeout: float = 60.0) -> proc.Result:
        """The client, with any words: `call("ps", "-a")`."""
        env = {**proc.PLAIN_ENV, "HOME": str(self.folder), "DOCKER_CONFIG": str(self.folder / "config")}
        client = [self._program("docker"), f"--host=unix://{self.socket}"]
        return proc.run([*client, *words], stdin=stdin, env=env, timeout=timeout)

    def load(self, rootfs: str | Path, *, env: Mapping[str, str] | None = None) -> str:
        """Make an image of a directory and return its name. env: of the image."""
        self._images += 1
        name = f"{session.TOKEN}:{self._images}"
        changes = [f"--change=ENV {key}={_quoted(value)}" for key, value in (env or {}).items()]
        archive = self.folder / "image.tar"
        try:
            packed = proc.run(["tar", "--numeric-owner", "-C", rootfs, "-cf", archive, "."], timeout=120)
            done = packed if not packed.ok else self.call("import", *changes, archive, name, timeout=120)
            if not done.ok:
                raise DockerError(f"import {rootfs}: {done.stderr.strip()}")
        finally:
            archive.unlink(missing_ok=True)
        return name

    def run(self, words: Sequence[str | Path], *, timeout: float = 60.0) -> proc.Result:
        """`docker run --rm --network=none WORDS`; at the deadline the container is killed and removed."""
        name = session.unique("docker")
        result = self.call("run", "--rm", "--network=none", f"--name={name}", *words, timeout=timeout)
        if result.timed_out:
            self.call("rm", "--force", name)
        return result

    def containers(self) -> list[str]:
        """Their names, also of those that ended or never started."""
        return self.call("ps", "--all", "--format={{.Names}}").stdout.split()

    def leftovers(self, patience: float = 3.0) -> list[str]:
        """What containers left behind: themselves, their processes, bundles, mounts and cgroups; empty is good.
        Docker clears up a little later than `docker run` ends: asked again for `patience` seconds."""
        until = time.monotonic() + patience
        while (left := self._left()) and time.monotonic() < until:
            time.sleep(0.05)
        return left

    def _left(self) -> list[str]:
        left = [f"container {name}" for name in self.containers()]
        pids = list(proc.descendants(self._process.pid))
        lines = [(pid, proc.command_line(pid)) for pid in pids]
        own = ("/bin/sh -c", self._program("dockerd"), "containerd --config", "?")
        left += [f"process {pid} {line}" for pid, line in lines if line and not line.startswith(own)]
        bundles = self.folder / "exec/containerd/daemon/io.containerd.runtime.v2.task/moby"
        left += [f"bundle {each}" for each in (bundles.iterdir() if bundles.is_dir() else ())]
        for line in proc.mountinfo(pids[0]) if pids else []:
            if "/overlay2/" in line.split()[4] or "/netns/" in line.split()[4]:
                left.append(f"mount {line}")
        return left + [f"cgroup {each}" for each in runtimes.cgroups() if each.name != session.TOKEN]

    def close(self) -> None:
        """Kill it and all it started, and remove every file of it."""
        if self._process.poll() is None:
            # The first process of the namespace; unshare ends when all of them are gone.
            for pid in proc.children(self._process.pid) or [self._process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10.0)
        self._process.kill()
        self._process.wait()
        runtimes.remove_cgroups()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Docker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _quoted(value: str) -> str:
    """As a Dockerfile reads it: a variable is put in for `$`."""
    escaped = "".join(f"\\{c}" if c in '"\\$' else c for c in value)
    return f'"{escaped}"'


def node_runtime(driver: str | Path, runtime: str = "runc") -> Path:
    """For add_runtimes, on a simulated node: `runtime`, with `driver`, a directory such as the node's proc/driver, in
    the /proc of each container."""
    path = session.new_dir("runtime") / runtime
    words = [session.PYTHON, "-IS", session.LIB / "_noderunc.py", driver, shutil.which(runtime) or runtime]
    path.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n')
    path.chmod(0o755)
    return path
