"""Podman on a simulated node, with the prestart hook's entry in a hooks directory (`nvoci hooksd install`)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from e2e.gpunode import Seen, make_image, seen
from e2e.prestartnode import REPORT, PrestartNode
from e2e.prestartview import (
    COMPUTE,
    DENIED,
    UTILITY,
    UVM,
    check,
    clean,
    driver_mounts,
    gpu_mounts,
    gpu_nodes,
    mounts,
    part,
    refused,
)
from lib import jail, oracle, runtimes, session

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not runtimes.available("podman"), reason="podman is not installed"),
]
BOTH = UTILITY + COMPUTE
# Podman's own mounts beside those of a runtime.
OWN = ("/etc/resolv.conf", "/etc/hostname", "/etc/hosts", "/run/.containerenv", "/run/secrets")


class PodmanNode:
    """Eight GPUs; a hooks directory with what a driver does (it shows in every procfs), and our entry."""

    def __init__(self, installed: Path, *conditions: str) -> None:
        self.node = PrestartNode(installed.with_name("nvidia-container-runtime-hook"))
        self.root = make_image(session.new_dir("image"))
        self.hooks = session.new_dir("hooks")
        self.nvoci = installed.with_name("nvoci")
        driver = {"version": "1.0.0", "hook": self.node.driver_hook(self.root), "when": {"always": True}}
        (self.hooks / "00-driver.json").write_text(json.dumps({**driver, "stages": ["prestart"]}))
        words = ["install", "--dir", self.hooks, *conditions, "prestart"]
        done = subprocess.run([self.nvoci, "hooksd", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def start(
        self,
        runtime: str,
        devices: str | None,
        *flags: str,
        script: str = REPORT,
        files: Mapping[str, str] | None = None,
    ) -> Seen:
        """files: of the host, with their contents."""
        asked = [f"--env=NVIDIA_VISIBLE_DEVICES={devices}"] if devices is not None else []
        argv, setup = ["/bin/sh", "-c", script], jail.host_files(files or {}) + self.node.setup()
        options = [*asked, *flags]
        found = seen(
            runtimes.podman(self.root, argv, runtime=runtime, hooks_dir=self.hooks, flags=options, setup=setup)
        )
        for path in OWN:
            found.said.pop(f"mount {path}", None)
        # What Podman keeps until it is told to remove a container that did not start.
        own = f"{session.tmp()}/podman"
        added = found.result.mounts_added
        found.result.mounts_added = [line for line in added if not line.split()[4].startswith(own)]
        return found


@pytest.fixture(scope="module")
def node(installed: Path) -> PodmanNode:
    made = PodmanNode(installed)
    made.start("runc", None, script="true")  # Podman's own mount points stay
    return made


# NVIDIA_VISIBLE_DEVICES -> the GPUs
ASKED = {"0": [0], "all": range(8), "none": []}


@pytest.mark.parametrize("devices", ASKED)
def test_what_the_environment_asks_for(node: PodmanNode, runtime: str, devices: str) -> None:
    indices = ASKED[devices]
    other = "195:1" if 1 not in indices else "195:9"
    seen = node.start(runtime, devices, f"--env=others={other}", "--cap-add=MKNOD")
    check(seen, {**driver_mounts(BOTH), **gpu_mounts(*indices)}, {**gpu_nodes(*indices), **UVM})
    assert part(seen, "other") == {other: DENIED}
    assert part(seen, "library")["libnvidia-ml.so.1"].endswith("/libnvidia-ml.so.1")


@pytest.mark.parametrize("devices", [None, "void"])
def test_who_asks_for_nothing_is_left_as_it_is(node: PodmanNode, runtime: str, devices: str | None) -> None:
    before = oracle.content_only(oracle.snapshot(node.root))
    seen = node.start(runtime, devices)
    assert (seen.result.rc, mounts(seen), part(seen, "node")) == (0, {}, {}), seen.result.stderr
    assert oracle.content_only(oracle.snapshot(node.root)) == before
    clean(seen)


def test_a_read_only_container(node: PodmanNode, runtime: str) -> None:
    seen = node.start(runtime, "2", "--read-only", "--read-only-tmpfs=false", script=f"{REPORT}\n: >/x")
    assert "Read-only file system" in seen.result.stderr
    seen.result.rc = 0
    check(seen, {**driver_mounts(BOTH), **gpu_mounts(2)}, {**gpu_nodes(2), **UVM})


def test_a_device_that_is_not_there_starts_no_container(node: PodmanNode, runtime: str) -> None:
    """With one line, which crun drops: it is in the log file."""
    log = session.new_dir("out") / "log"
    settings = json.dumps({"log": {"file": str(log)}})
    seen = node.start(runtime, "8", files={"/etc/nvoci/hook.json": settings})
    said = [line for line in log.read_text().splitlines() if "level=error" in line]
    words = ["device error: 8: unknown device", "GPU 0 to 7"]
    assert (len(said), [word for word in words if word not in said[0]]) == (1, []), said
    refused(seen, *(words if runtime == "runc" else []))


def test_only_containers_with_an_annotation(installed: Path, runtime: str) -> None:
    node = PodmanNode(installed, "--annotation", "^gpu$=^yes$")
    seen = node.start(runtime, "0")
    assert (seen.result.rc, mounts(seen), part(seen, "node")) == (0, {}, {}), seen.result.stderr
    seen = node.start(runtime, "0", "--annotation=gpu=yes")
    check(seen, {**driver_mounts(BOTH), **gpu_mounts(0)}, {**gpu_nodes(0), **UVM})


@pytest.mark.parametrize("engine", ["podman", "cri-o"])
def test_the_entry_that_podman_read_is_valid(node: PodmanNode, engine: str) -> None:
    words = ["hooksd", "validate", "--engine", engine, "--dir", node.hooks]
    done = subprocess.run([node.nvoci, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
