"""`docker run --gpus` on simulated nodes: Docker finds the installed prestart hook and says what to ask it for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.dockernode import DockerNode
from e2e.prestartnode import REPORT
from e2e.prestartview import (
    ALLOWED,
    COMPUTE,
    DENIED,
    MODESET,
    NODE,
    OTHERS,
    PROC,
    PROGRAMS,
    SOCKET,
    SOCKETS,
    UTILITY,
    UVM,
    V,
    check,
    clean,
    driver_mounts,
    gpu_mounts,
    gpu_nodes,
    mounts,
    part,
    refused,
)
from lib import session

pytestmark = pytest.mark.e2e

PROFILES = "/etc/nvidia/nvidia-application-profiles-rc.d"
# dockerd hands its whole environment to the hook. What is asked for stands in the container's, and what an interpreter
# would take up is not taken up.
DAEMON = {"NVIDIA_VISIBLE_DEVICES": "7", "NVIDIA_DRIVER_CAPABILITIES": "video", "PYTHONPATH": "/nonexistent",
          "PYTHONHOME": "/nonexistent", "CUDA_VERSION": "12.4", "NVIDIA_REQUIRE_CUDA": "cuda>=99.0"}  # fmt: skip
BOTH = UTILITY + COMPUTE
UUID = "GPU-12345678-1234-1234-1234-12345678000{}"


@pytest.fixture(scope="module")
def node(hook: Path) -> Iterator[DockerNode]:
    """Eight GPUs."""
    found = DockerNode(hook, env=DAEMON)
    yield found
    found.close()


# --- what the options ask for ----------------------------------------------------------------------------------------

# --gpus -> the GPUs
DEVICES = {
    "all": range(8),
    "2": range(2),
    "device=3": [3],
    '"device=0,1"': [0, 1],
    f'"device={UUID.format(5)},{UUID.format(2)}"': [2, 5],
}


@pytest.mark.parametrize("gpus", DEVICES)
def test_the_gpus_that_are_asked_for(node: DockerNode, gpus: str) -> None:
    indices = DEVICES[gpus]
    seen = node.start("--gpus", gpus, "-e", "others=195:7" if 7 not in indices else "others=195:9")
    check(seen, {**driver_mounts(BOTH), **gpu_mounts(*indices)}, {**gpu_nodes(*indices), **UVM})
    assert list(part(seen, "other").values()) == [DENIED]
    assert part(seen, "library")["libnvidia-ml.so.1"].endswith("/libnvidia-ml.so.1")
    assert part(seen, "link")["/usr/lib/x86_64-linux-gnu/libcuda.so.1"] == f"libcuda.so.{V}"


GRAPHICS = [name for name in OTHERS if name not in ("libnvidia-ngx", "libnvidia-encode", "libnvidia-opticalflow",
                                                    "libnvcuvid")]  # fmt: skip
# --gpus -> libraries, programs, nodes beside those of the GPU
CAPABILITIES: dict[str, tuple[list[str], list[str], dict[str, str]]] = {
    "utility": (UTILITY, PROGRAMS[:3], {}),
    "compute": (COMPUTE, PROGRAMS[3:], UVM),
    "graphics": (GRAPHICS, [], {}),
}


@pytest.mark.parametrize("name", CAPABILITIES)
def test_the_capabilities_that_are_asked_for(node: DockerNode, name: str) -> None:
    libraries, programs, nodes = CAPABILITIES[name]
    seen = node.start("--gpus", f"device=1,capabilities={name}")
    wanted = driver_mounts(libraries, programs)
    for socket in SOCKETS if name != "utility" else ():
        wanted.pop(socket)
    assert seen.result.rc == 0, seen.result.stderr
    found = mounts(seen)
    found.pop(PROFILES, None)
    assert found == {**wanted, **gpu_mounts(1), **dict.fromkeys({**gpu_nodes(1), **nodes}, NODE)}
    assert (seen.said["profile"] != "-") == (name == "graphics")
    clean(seen)


def test_all_capabilities_which_docker_itself_does_not_know(node: DockerNode) -> None:
    seen = node.start("--gpus", "all", "-e", "NVIDIA_DRIVER_CAPABILITIES=all")
    wanted = {**driver_mounts(BOTH + OTHERS), **gpu_mounts(*range(8)), PROFILES: SOCKET}
    check(seen, wanted, {**gpu_nodes(*range(8)), **UVM, **MODESET})


def test_what_is_asked_for_beats_the_image(node: DockerNode) -> None:
    """And without --gpus Docker calls no hook, whatever the image says."""
    says = {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "all", "CUDA_VERSION": "99.0"}
    image = node.docker.load(node.rootfs, env=says)
    plain = node.start(image=image)
    assert (plain.result.rc, mounts(plain), part(plain, "node")) == (0, {}, {}), plain.result.stderr
    clean(plain)
    seen = node.start("--gpus", "device=1,capabilities=utility", "-e", "NVIDIA_DISABLE_REQUIRE=1", image=image)
    assert seen.result.rc == 0, seen.result.stderr
    assert part(seen, "node") == {path: f"{number} {ALLOWED}" for path, number in gpu_nodes(1).items()}


REFUSED = {
    "index": (["--gpus", "device=8"], ["device error: 8: unknown device", "GPU 0 to 7"]),
    "more than there are": (["--gpus", "9"], ["device error: 8: unknown device"]),
    "UUID": (["--gpus", "device=GPU-00000000"], ["device error: GPU-00000000: unknown device"]),
    "requirement": (["--gpus", "all", "-e", "NVIDIA_REQUIRE_CUDA=cuda>=99.0"], ["requirement error", "cuda>=99.0"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_given_starts_no_container(node: DockerNode, case: str) -> None:
    words, messages = REFUSED[case]
    seen = node.start(*words)
    own = [line for line in seen.result.stderr.splitlines() if "level=error" in line and "context canceled" not in line]
    assert (seen.result.rc, len(own)) == (125, 1), seen.result.stderr
    refused(seen, "error running hook", *messages)


# --- containers of other kinds ---------------------------------------------------------------------------------------


def test_a_read_only_container(node: DockerNode) -> None:
    seen = node.start("--gpus", "device=2", "--read-only", script=f"{REPORT}\n: >/x")
    assert "Read-only file system" in seen.result.stderr
    seen.result.rc = 0
    check(seen, {**driver_mounts(BOTH), **gpu_mounts(2)}, {**gpu_nodes(2), **UVM})


def test_a_privileged_container(node: DockerNode) -> None:
    """Docker gives it every device of the host; what is ours is that of one GPU."""
    seen = node.start("--gpus", "device=2", "--privileged", "-e", "others=195:1")
    assert seen.result.rc == 0, seen.result.stderr
    nodes = {**gpu_nodes(2), **UVM}
    assert mounts(seen) == {**driver_mounts(BOTH), **gpu_mounts(2), **dict.fromkeys(nodes, NODE)}
    assert set(gpu_nodes(*range(8))) <= set(part(seen, "node"))
    assert {text.partition(" ")[2] for text in part(seen, "node").values()} == {ALLOWED}
    assert part(seen, "other") == {"195:1": ALLOWED}
    assert seen.said["params"] == "0"
    clean(seen)


def test_a_user_who_is_not_root(node: DockerNode) -> None:
    seen = node.start("--gpus", '"device=0,1"', "--user", "1000:1000", "--cap-drop=ALL")
    check(seen, {**driver_mounts(BOTH), **gpu_mounts(0, 1)}, {**gpu_nodes(0, 1), **UVM})


def test_volumes_stay_as_they_are_and_the_driver_s_files_are_on_top(node: DockerNode) -> None:
    data, program = session.new_dir("data"), session.new_dir("data") / "smi"
    (data / "kept").write_text("kept\n")
    program.write_text("of the user\n")
    words = ["-v", f"{data}:/data", "-v", f"{program}:/usr/bin/nvidia-smi", "--tmpfs", "/run", "--tmpfs", "/tmp"]
    script = f'{REPORT}\nsay data "$(cat /data/kept)"; say smi "$(head -c 4 /usr/bin/nvidia-smi | tail -c 3)"'
    seen = node.start("--gpus", "device=0", *words, script=script)
    check(seen, {**driver_mounts(BOTH), **gpu_mounts(0)}, {**gpu_nodes(0), **UVM})
    assert (seen.said["data"], seen.said["smi"]) == ("kept", "ELF")
    assert ([path.name for path in data.iterdir()], program.read_text()) == (["kept"], "of the user\n")


def test_a_container_that_runs_on_and_starts_again(node: DockerNode) -> None:
    """The device stays open to it over an update of its limits; a second start finds the mount points of the first."""
    name, call = session.unique("docker"), node.docker.call
    words = ["--network=none", f"--name={name}", "--gpus", "device=4", node.image, "/bin/sleep", "60"]
    done = call("run", "--detach", *words)
    assert done.ok, done.stderr
    opens = ("exec", name, "/bin/sh", "-c", ": </dev/nvidia4")
    assert ALLOWED in call(*opens).stderr
    assert call("update", "--cpu-shares=512", name).ok
    assert ALLOWED in call(*opens).stderr
    restarted = call("restart", "--time=0", name)
    assert restarted.ok, restarted.stderr
    assert ALLOWED in call(*opens).stderr
    listed = call("exec", name, "/bin/sh", "-c", "ls /dev | grep nvidia").stdout.split()
    assert sorted(listed) == sorted(path.rpartition("/")[2] for path in {**gpu_nodes(4), **UVM})
    call("rm", "--force", name)
    node.settle(done)
    assert done.survivors == []


# --- device programs, MIG --------------------------------------------------------------------------------------------


def test_with_cgroup_v2(hook: Path) -> None:
    node = DockerNode(hook, cgroups="v2")
    try:
        seen = node.start("--gpus", '"device=0,6"')
        check(seen, {**driver_mounts(BOTH), **gpu_mounts(0, 6)}, {**gpu_nodes(0, 6), **UVM})
        assert part(seen, "other") == {"195:1": DENIED}
    finally:
        node.close()


MIG = {"/dev/nvidia-caps/nvidia-cap12": "236:12", "/dev/nvidia-caps/nvidia-cap13": "236:13"}
ACCESS = [f"/proc/driver/nvidia/capabilities/gpu0/mig/{name}/access" for name in ("gi1", "gi1/ci0")]


def test_a_mig_device_by_each_of_its_names(hook: Path) -> None:
    node = DockerNode(hook, "a100-mig")
    try:
        for name in ("0:0", "MIG-GPU-12345678-1234-1234-1234-123456780000/1/0"):
            seen = node.start("--gpus", f"device={name}", "-e", "others=236:48")
            wanted = {**driver_mounts(BOTH), **gpu_mounts(0), **dict.fromkeys(ACCESS, PROC)}
            check(seen, wanted, {**gpu_nodes(0), **UVM, **MIG})
            assert part(seen, "other") == {"236:48": DENIED}
        refused(node.start("--gpus", "device=0:77"), "device error: 0:77: unknown device")
    finally:
        node.close()
