"""The hooks of the table on an image that gives each of them something to do, for `crashing`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lib import jail, mignode, session
from lib.compat import NEW_CALLS
from security.arena import GPU_NODE, LDCACHE, LIBDIR
from security.crashing import IMAGE, Scene
from unit.inject.thing import Thing, hook

LINKS = [
    "create-symlinks", "--link", f"libcuda.so.1::/{LIBDIR}/libcuda.so", "--link", "target::/made/by/the/hook",
    "--link", "target::/etc/hostname",
]  # fmt: skip
CHMOD = ["chmod", "--mode", "640", "--path", "/usr/share/nvidia/file"]
PROFILE = ["update-application-profile"]
CUDA = ["enable-cuda-compat", "--host-driver-version", "550.54.15"]
WORDS = {
    "create-symlinks": LINKS,
    "chmod": CHMOD,
    "update-application-profile": PROFILE,
    "enable-cuda-compat": CUDA,
    "disable-device-node-modification": ["disable-device-node-modification"],
    "update-ldcache": LDCACHE["builtin"],
    "update-ldcache-ldconfig": LDCACHE["ldconfig"],
    "run": ["run", "--", *LINKS, "--", *CHMOD, "--", *PROFILE, "--", *CUDA],
}
HOOKS = (*WORDS, "mount-mig-devices", "inject")
# What changes when the host's ldconfig, lied to itself, passes over a library that it cannot look at, and says 0.
OF_LDCONFIG = frozenset({f"{LIBDIR}/libfoo.so.1", "etc/ld.so.cache"})
COVER = 'mount -t tmpfs -o mode=555 cover "$R/proc/driver"\n'
ROOMS = ("hook", "linux", "oci", "ldcache")


def scene(name: str, stage: str, *, compat: bool = False) -> Scene:
    """Of a hook of HOOKS. compat: the kernel has none of the newer calls."""
    made = _SPECIAL.get(name, _plain)(name, stage)
    if compat:
        made.zygote["blocked"] = NEW_CALLS
        made.covered = True
    return made


def _plain(name: str, stage: str) -> Scene:
    return Scene(WORDS[name], stage, zygote={"rooms": ROOMS})


def _ldconfig(name: str, stage: str) -> Scene:
    """Without a link that leads nowhere, which would have ldconfig run twice."""
    spec = IMAGE.partition("\n")[2]
    return Scene(WORDS[name], stage, spec, zygote={"rooms": ROOMS}, ignored=OF_LDCONFIG)


def _params(name: str, stage: str) -> Scene:
    folder = session.new_dir("driver")
    (folder / "nvidia").mkdir()
    (folder / "nvidia/params").write_text("ModifyDeviceFiles: 1\nDeviceFileUID: 0\n")
    setup = jail.driver_proc(folder)
    zygote = {"rooms": ROOMS, "prefix": jail.prefix(setup)}
    return Scene(WORDS[name], stage, setup=GPU_NODE + setup + _of_container(folder), zygote=zygote)


def _of_container(folder: Path) -> str:
    """What the driver shows in every procfs."""
    return f'mount -t tmpfs -o mode=555 driver "$R/proc/driver"\ncp -a {folder}/. "$R/proc/driver/"\n'


def _mig(name: str, stage: str) -> Scene:
    """On a simulated host, in a container whose procfs something empty covers, and whose /dev is the image's own: the
    mount points have to be made."""
    node = mignode.make(session.new_dir("mig") / "node")
    zygote = {"rooms": ROOMS, "prefix": jail.prefix(node.setup())}
    words = node.words(mignode.GI, mignode.CI)
    return Scene(words, stage, setup=node.setup() + COVER, options={"dev": False}, zygote=zygote)


def _inject(name: str, stage: str) -> Scene:
    """Mounts, a node and a hook of ours, on mount points that are missing."""
    thing = Thing()
    links = hook("createContainer", "/usr/bin/nvidia-cdi-hook", "create-symlinks", "--link", "thing::/opt/vendor/link")
    node = {"path": "/opt/node/new/thing", "hostPath": "/dev/zero", "permissions": "none"}
    mounts = [{"hostPath": "tmpfs", "containerPath": "/opt/tmpfs/new/thing", "type": "tmpfs"},
              thing.mount("libthing.so", "/opt/file/new/thing", "ro", "bind"),
              thing.mount("data", "/opt/directory/new/thing", "ro", "bind")]  # fmt: skip
    thing.write({"a": {"mounts": mounts, "deviceNodes": [node], "hooks": [links]}})
    return Scene(thing.words(), stage, zygote={"rooms": (*ROOMS, "inject", "cdi")})


_SPECIAL: dict[str, Callable[[str, str], Scene]] = {
    "update-ldcache-ldconfig": _ldconfig,
    "disable-device-node-modification": _params,
    "mount-mig-devices": _mig,
    "inject": _inject,
}
