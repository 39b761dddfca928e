"""The prestart hook on simulated nodes, in containers of runc and crun: what these have then, and have not."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from e2e.gpunode import LIBDIR
from e2e.prestartnode import PrestartNode
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
    asks_nvml,
    check,
    clean,
    driver_mounts,
    gpu_mounts,
    gpu_nodes,
    image,
    mounts,
    no_hook,
    part,
    refused,
)
from lib import oracle, rootfs, session, simnode

pytestmark = pytest.mark.e2e


@pytest.fixture
def node(hook: Path) -> PrestartNode:
    """Eight GPUs."""
    return PrestartNode(hook)


@pytest.fixture
def mig_node(hook: Path) -> PrestartNode:
    """Who asks for a MIG device by name always asks NVML."""
    return PrestartNode(hook, "a100-mig")


# --- the view of a container -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cgroups", ["v1", "v2"])
def test_two_gpus(node: PrestartNode, runtime: str, cgroups: str) -> None:
    seen = node.start(runtime, "0,3", cgroups=cgroups)
    check(seen, {**driver_mounts(UTILITY + COMPUTE), **gpu_mounts(0, 3)}, {**gpu_nodes(0, 3), **UVM})
    assert part(seen, "other") == {"195:1": DENIED}
    links = part(seen, "link")
    assert (links[f"{LIBDIR}/libcuda.so"], links[f"{LIBDIR}/libcuda.so.1"]) == ("libcuda.so.1", f"libcuda.so.{V}")
    ml = f"{LIBDIR}/libnvidia-ml.so.1"
    assert part(seen, "library")["libnvidia-ml.so.1"].removeprefix("/usr") == ml.removeprefix("/usr")
    files = part(seen, "file")
    assert {name: files[f"/proc/driver/nvidia/{name}"] for name in ("params", "version", "registry")} == {
        "params": "-r--r--r-- 0:0", "version": "-rw-r--r-- 0:0", "registry": "-rw-r--r-- 0:0",
    }  # fmt: skip
    assert files["/proc/driver/nvidia"] == "dr-xr-xr-x 0:0"
    assert "profile" in seen.said
    assert seen.said["profile"] == "-"


def test_all_of_everything(node: PrestartNode, runtime: str) -> None:
    seen = node.start(runtime, "all", "all", cgroups="v2" if runtime == "runc" else "v1")
    profiles = "/etc/nvidia/nvidia-application-profiles-rc.d"
    wanted = {**driver_mounts(UTILITY + COMPUTE + OTHERS), **gpu_mounts(*range(8)), profiles: SOCKET}
    check(seen, wanted, {**gpu_nodes(*range(8)), **UVM, **MODESET})
    assert seen.said["profile"] == (
        '{ "profiles": [{"name": "_container_", "settings": ["EGLVisibleDGPUDevices", 0xff]}], '
        '"rules": [{"pattern": [], "profile": "_container_"}]}'
    )
    assert part(seen, "file")[f"{profiles}/10-container.conf"] == "-r-xr-xr-x 0:0"
    assert part(seen, "link")[f"{LIBDIR}/libGLX_indirect.so.0"] == f"libGLX_nvidia.so.{V}"
    assert part(seen, "link")[f"{LIBDIR}/libnvidia-opticalflow.so"] == "libnvidia-opticalflow.so.1"


# capabilities -> libraries, programs, nodes beside those of the GPU
NARROW: dict[str, tuple[list[str], list[str], dict[str, str]]] = {
    "utility": (UTILITY, PROGRAMS[:3], {}),
    "video": ([*COMPUTE, "libnvidia-encode", "libnvidia-opticalflow", "libnvcuvid"], [], UVM),
}


@pytest.mark.parametrize("capabilities", NARROW)
def test_capabilities_choose_files_and_nodes(node: PrestartNode, capabilities: str) -> None:
    libraries, programs, nodes = NARROW[capabilities]
    seen = node.start("runc", "0", capabilities)
    sockets = {} if capabilities == "utility" else dict.fromkeys(SOCKETS, None)
    wanted = {k: v for k, v in driver_mounts(libraries, programs).items() if k not in sockets}
    assert mounts(seen) == {**wanted, **gpu_mounts(0), **dict.fromkeys({**gpu_nodes(0), **nodes}, NODE)}


def test_the_driver_without_a_gpu(node: PrestartNode) -> None:
    seen = node.start("runc", "none")
    check(seen, driver_mounts(UTILITY + COMPUTE), {**gpu_nodes(), **UVM})


def test_names_of_every_form_and_some_twice(node: PrestartNode) -> None:
    seen = node.start("runc", "GPU-12345678-1234-1234-1234-123456780002,0000:4E:00.0,2,1,3")
    check(seen, {**driver_mounts(UTILITY + COMPUTE), **gpu_mounts(1, 2, 3)}, {**gpu_nodes(1, 2, 3), **UVM})


NOTHING: dict[str, dict[str, Any]] = {
    "nothing": {"devices": None},
    "not allowed": {"devices": "0", "config": "accept-nvidia-visible-devices-envvar-when-unprivileged = false\n"},
}  # fmt: skip


@pytest.mark.parametrize("case", NOTHING)
def test_a_container_that_gets_no_gpu_is_left_as_it_is(node: PrestartNode, case: str) -> None:
    root, plain = image(), image()
    seen = node.start("runc", root=root, **NOTHING[case])
    node.start("runc", None, root=plain, entries=[no_hook()])
    assert (seen.result.rc, mounts(seen), part(seen, "node")) == (0, {}, {}), seen.result.stderr
    assert oracle.content_only(oracle.snapshot(root)) == oracle.content_only(oracle.snapshot(plain))


def test_without_the_newer_system_calls(hook: Path, runtime: str) -> None:
    node = PrestartNode(hook, filtered=True)
    seen = node.start(runtime, "0,3", "utility,graphics", entries=[node.entry(), node.entry()])
    assert seen.result.rc == 0, seen.result.stderr
    libraries = [*UTILITY, *[name for name in OTHERS if name not in [*NARROW["video"][0], "libnvidia-ngx"]]]
    wanted = {**driver_mounts(libraries, PROGRAMS[:3]), **gpu_mounts(0, 3)}
    wanted["/etc/nvidia/nvidia-application-profiles-rc.d"] = SOCKET
    assert mounts(seen) == {**wanted, **dict.fromkeys(gpu_nodes(0, 3), NODE)}
    assert part(seen, "node") == {path: f"{number} {ALLOWED}" for path, number in gpu_nodes(0, 3).items()}
    assert (seen.said["params"], seen.said["write"]) == ("0", "Read-only file system")
    clean(seen)


# --- MIG, IMEX -------------------------------------------------------------------------------------------------------

MIG = {"/dev/nvidia-caps/nvidia-cap12": "236:12", "/dev/nvidia-caps/nvidia-cap13": "236:13"}
ACCESS = [f"/proc/driver/nvidia/capabilities/gpu0/mig/{name}/access" for name in ("gi1", "gi1/ci0")]


@asks_nvml
@pytest.mark.parametrize("name", ["0:0", "MIG-GPU-12345678-1234-1234-1234-123456780000/1/0"])
def test_one_mig_device(mig_node: PrestartNode, name: str) -> None:
    seen = mig_node.start("runc", name, env={"others": "236:48 236:1"})
    wanted = {**driver_mounts(UTILITY + COMPUTE), **gpu_mounts(0), **dict.fromkeys(ACCESS, PROC)}
    check(seen, wanted, {**gpu_nodes(0), **UVM, **MIG})
    assert part(seen, "other") == {"236:48": DENIED, "236:1": DENIED}
    files = [path for path in part(seen, "file") if path.startswith("/proc/driver/nvidia/capabilities/")]
    assert sorted(path for path in files if path.endswith("access")) == sorted(ACCESS)


def test_all_gpus_and_mig_devices(mig_node: PrestartNode, runtime: str) -> None:
    seen = mig_node.start(runtime, "all")
    own = instances("a100-mig")
    assert len(own) == 25  # 13 compute instances in 12 GPU instances
    access = [f"/proc/driver/nvidia/capabilities/{name.replace('/', '/mig/', 1)}/access" for name in own]
    wanted = {**driver_mounts(UTILITY + COMPUTE), **gpu_mounts(*range(8)), **dict.fromkeys(access, PROC)}
    check(seen, wanted, {**gpu_nodes(*range(8)), **UVM, **mig_node.capability_nodes(*own)})


def instances(sample: str) -> list[str]:
    """Of all MIG devices of the sample, such as `gpu0/gi1` and `gpu0/gi1/ci0`. A GPU's minor is its index there."""
    found = set()
    for index, gpu in enumerate(simnode.load(simnode.sample(sample)).nvml["gpus"]):
        for mig in gpu["mig_devices"]:
            parent = f"gpu{index}/gi{mig['gpu_instance_id']}"
            found |= {parent, f"{parent}/ci{mig['compute_instance_id']}"}
    return sorted(found)


@pytest.mark.parametrize("cgroups", ["v1", "v2"])
def test_who_manages_mig_devices_has_all_of_them(mig_node: PrestartNode, cgroups: str) -> None:
    """Also those that are still to be made: GPU 0 has no instance 9 yet, GPU 2 is not the container's."""
    privileged = ["CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_DAC_OVERRIDE", "CAP_CHOWN"]
    env = {"NVIDIA_MIG_CONFIG_DEVICES": "all", "others": "236:84 236:1 236:2 236:300"}
    seen = mig_node.start("runc", "0,1", caps=privileged, env=env, cgroups=cgroups)
    assert seen.result.rc == 0, seen.result.stderr
    assert mounts(seen)["/proc/driver/nvidia/capabilities"] == PROC
    assert mounts(seen)["/dev/nvidia-caps"] == "rw,nosuid,noexec"
    assert part(seen, "other") == {"236:84": ALLOWED, "236:1": ALLOWED, "236:2": DENIED, "236:300": DENIED}
    assert "/proc/driver/nvidia/capabilities/mig/config" in part(seen, "file")


@asks_nvml
@pytest.mark.parametrize(("change", "told"), [
    ("mv $caps/nvidia-cap1 $caps/away", "nvidia-cap1: ENOENT (make it: nvidia-modprobe -f /proc/driver/nvidia/cap"),
    ("rm $caps/nvidia-cap1; mknod $caps/nvidia-cap1 c 236 2", "nvidia-cap1: is c 236:2, should be c 236:1 (remove it"),
    ("mount -o remount,bind,nodev $caps", "lies on a mount with nodev, where no device can be opened"),
], ids=["no node", "another node", "nodev"])  # fmt: skip
def test_mig_management_that_would_not_work_is_refused(mig_node: PrestartNode, change: str, told: str) -> None:
    """Whoever may mount it has no use of it."""
    env = {"NVIDIA_MIG_CONFIG_DEVICES": "all"}
    caps = session.new_dir("caps")
    setup = f"caps=/dev/nvidia-caps; cp -a $caps/. {caps}; mount --bind {caps} $caps; {change}\n"
    refused(mig_node.start("runc", "0", caps=["CAP_SYS_ADMIN", "CAP_MKNOD"], env=env, setup=setup), told)


@asks_nvml
def test_an_imex_channel_and_one_that_is_not_there(hook: Path) -> None:
    node = PrestartNode(hook, "imex")
    seen = node.start("runc", "0", env={"NVIDIA_IMEX_CHANNELS": "0"})
    channel = "/dev/nvidia-caps-imex-channels/channel0"
    assert part(seen, "node")[channel].endswith(ALLOWED), seen.result.stderr
    refused(node.start("runc", "0", env={"NVIDIA_IMEX_CHANNELS": "0,77"}), "channel77", "ENOENT", "nvidia-modprobe")


# --- user namespaces, read-only roots --------------------------------------------------------------------------------

FIRST = 100000


@pytest.mark.parametrize("owner", [FIRST, 0])
def test_in_a_user_namespace_mount_points_are_its_root_s(node: PrestartNode, runtime: str, owner: int) -> None:
    root = image()
    node.start("runc", None, root=root)  # the runtime's own mount points, which a mapped user cannot make
    subprocess.run(["chown", "-hR", f"{owner}:{owner}", root], check=True)
    seen = node.start(runtime, "0", root=root, userns=(FIRST, 65536))
    check(seen, {**driver_mounts(UTILITY + COMPUTE), **gpu_mounts(0)}, {**gpu_nodes(0), **UVM})
    assert (seen.said["uid"], part(seen, "file")["/proc/driver/nvidia/params"]) == (str(FIRST), "-r--r--r-- 0:0")
    made = [root / f"{LIBDIR[1:]}/libcuda.so.{V}", root / "usr/bin/nvidia-smi", root / "usr/lib/firmware",
            root / SOCKETS[0][1:]]  # fmt: skip
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in made} == {(FIRST, FIRST)}
    assert (root / f"{LIBDIR[1:]}/libcuda.so").lstat().st_uid == owner  # a link's is nobody's matter
    modes = [oct(path.lstat().st_mode & 0o7777) for path in made]
    assert modes == ["0o755", "0o755", "0o755", "0o644"]


def read_only(root: Path) -> str:
    return f"mount --bind {root} {root}\nmount -o remount,ro,bind {root}\n"


def test_a_root_that_cannot_be_written_to(node: PrestartNode) -> None:
    """What has a mount point is mounted; what has none is an error that names it."""
    root = image()
    assert node.start("runc", "0", root=root).result.rc == 0
    seen = node.start("runc", "0", root=root, setup=read_only(root))
    assert seen.result.rc == 0, seen.result.stderr
    assert {**driver_mounts(UTILITY + COMPUTE), **gpu_mounts(0)}.items() <= mounts(seen).items()
    assert seen.said["loads"] == "0"
    (root / f"{LIBDIR[1:]}/libnvidia-ml.so.{V}").unlink()
    seen = node.start("runc", "0", root=root, setup=read_only(root))
    refused(seen, f"make mount point {LIBDIR}/libnvidia-ml.so.{V}: EROFS", "make it in the image")


@pytest.mark.parametrize("kind", ["rhel", "static"])
def test_in_an_image_that_is_not_debian_s(node: PrestartNode, kind: str) -> None:
    if kind == "rhel":
        root = image()
        (root / "etc/debian_version").unlink()
    else:
        root = rootfs.busybox_rootfs(session.new_dir("image") / "rootfs")
    seen = node.start("runc", "0", root=root)
    assert seen.result.rc == 0, seen.result.stderr
    assert f"/usr/lib64/libcuda.so.{V}" in part(seen, "mount")
    assert (seen.said["params"], part(seen, "node")["/dev/nvidia0"]) == ("0", f"195:0 {ALLOWED}")
