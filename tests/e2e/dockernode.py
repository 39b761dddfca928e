"""A simulated node with a Docker daemon, whose `--gpus` finds the installed prestart hook."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from e2e.gpunode import Seen, make_image, seen
from e2e.prestartnode import REPORT, PrestartNode
from lib import docker, proc, runtimes, session

# Docker's own mounts beside those of a runtime.
_OWN = ("/etc/resolv.conf", "/etc/hostname", "/etc/hosts")


class DockerNode:
    """hook: the installed `nvidia-container-runtime-hook`. sample: of lib.simnode. One small glibc image is loaded."""

    def __init__(
        self, hook: Path, sample: str = "a100", cgroups: str = "v1", env: Mapping[str, str] | None = None
    ) -> None:
        node = PrestartNode(hook, sample)
        self.docker = docker.Docker(
            path=[hook.parent],
            setup=node.setup(),
            env=env,
            add_runtimes={"node": docker.node_runtime(node.root / "proc/driver")},
            cgroups=cgroups,
        )
        self.rootfs = make_image(session.new_dir("image"))
        self.image = self.docker.load(self.rootfs)

    def start(self, *words: str | Path, image: str = "", script: str = REPORT) -> Seen:
        """`docker run WORDS IMAGE sh -c SCRIPT`. What the container left in Docker's directories, processes and cgroups
        is among the survivors of the result."""
        found = seen(self.docker.run([*words, image or self.image, "/bin/sh", "-c", script]))
        for path in _OWN:
            found.said.pop(f"mount {path}", None)
        self.settle(found.result)
        return found

    def settle(self, result: proc.Result) -> None:
        """Wait until Docker has cleared up, and note what it has not."""
        result.survivors += self.docker.leftovers()
        runtimes.remove_cgroups()  # the parent of all

    def close(self) -> None:
        self.docker.close()
