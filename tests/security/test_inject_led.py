"""A device's own hooks, which run in one process with its mounts, and links of the image that lead them to what was
just mounted: nothing of the host's is made, changed or removed."""

from __future__ import annotations

import platform
import shutil

import pytest
from lib import elfmaker, rootfs
from lib.hookproc import FakeContainer, run_hook
from lib.oracle import snapshot
from security.arena import STAGES, Arena, attempt, settled
from unit.inject.thing import Thing, hook


@pytest.fixture
def thing() -> Thing:
    return Thing()


OURS = "/usr/bin/nvidia-cdi-hook"
DROP_INS = ("00-nvcr-nvoci.conf", "00-compat-nvoci.conf")
# The host's files and the image's links to where they are mounted.
HOSTS = """
socket sock
mode sock 600
dir data/ld.so.conf.d
file data/ld.so.conf include /etc/ld.so.conf.d/*.conf\\n
"""
LINKS = """
symlink usr/lib/vendorlib /opt/data
symlink usr/lib/below /opt/data/sub
symlink var/lib/vendor /run/vendor/sock
"""
# What a hook of the same device is told to do -> what it then says that it would have changed.
LED = {
    "create-symlinks": (["create-symlinks", "--link", "../evil::/usr/lib/vendorlib/model"], "/usr/lib/vendorlib"),
    "create-symlinks, new": (["create-symlinks", "--link", "../evil::/usr/lib/vendorlib/new"], "/usr/lib/vendorlib"),
    "create-symlinks, folder": (["create-symlinks", "--link", "x::/usr/lib/vendorlib/d/new"], "/usr/lib/vendorlib"),
    "create-symlinks, below": (["create-symlinks", "--link", "x::/usr/lib/below/new"], "/usr/lib/below"),
    "chmod, socket": (["chmod", "--mode", "0777", "--path", "/var/lib/vendor"], "/var/lib/vendor"),
    "chmod, folder": (["chmod", "--mode", "0777", "--path", "/usr/lib/vendorlib"], "/usr/lib/vendorlib"),
    "update-ldcache": (["update-ldcache", "--folder", "/opt/vendor"], "/etc/ld.so.conf.d"),
    "update-ldcache, removal": (["update-ldcache"], "/etc/ld.so.conf.d"),
    "enable-cuda-compat": (["enable-cuda-compat", "--host-driver-version", "500.1.2"], "/etc/ld.so.conf.d"),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("case", LED)
def test_a_hook_of_a_device_is_not_led_into_what_the_device_has_mounted(
    arena: Arena, thing: Thing, case: str, stage: str
) -> None:
    """Where a directory and a socket of the host can be written to, and links of the image lead there."""
    argv, led = LED[case]
    rootfs.tree(thing.folder, HOSTS)
    for name in DROP_INS:
        (thing.folder / "data/ld.so.conf.d" / name).write_text("/host\n")
    if led.startswith("/etc/"):
        shutil.rmtree(arena.root / "etc")
        rootfs.tree(arena.root, "symlink etc /opt/data")
    rootfs.tree(arena.root, LINKS)
    given = [thing.mount("data", "/opt/data", "rw", "rbind"), thing.mount("sock", "/run/vendor/sock", "rw", "bind")]
    thing.write({"a": {"mounts": given, "hooks": [hook("createContainer", OURS, *argv)]}})
    before = snapshot(thing.folder)
    parts = [f"change {led}: leads into what was mounted from the host"]
    assert settled(arena, attempt(arena, thing.words(), stage, ok=False, parts=parts)) == []
    assert snapshot(thing.folder) == before


RIGHT = {
    "a link": ["create-symlinks", "--link", "model::/usr/lib/vendorlib/link"],
    "no file to remove": ["enable-cuda-compat", "--host-driver-version", "700.1.2"],
    "a library without its link": ["update-ldcache", "--folder", "/usr/lib/vendorlib"],
    "a mode": ["chmod", "--mode", "0755", "--path", "/usr/lib/vendorlib"],
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_right_already_in_what_was_mounted_is_no_error(arena: Arena, thing: Thing, case: str) -> None:
    rootfs.tree(thing.folder, HOSTS + "symlink data/link model\nmode data 755")
    elfmaker.make_so(thing.folder / "data/libhost.so.1.2", "libhost.so.1", machine=platform.machine())
    rootfs.tree(arena.root, LINKS)
    if case == "no file to remove":
        shutil.rmtree(arena.root / "etc")
        rootfs.tree(arena.root, "symlink etc /opt/data")
    given = [thing.mount("data", "/opt/data", "rw", "rbind")]
    thing.write({"a": {"mounts": given, "hooks": [hook("createContainer", OURS, *RIGHT[case])]}})
    before = snapshot(thing.folder)
    assert attempt(arena, thing.words(), ok=True, planned=[".", "opt", "opt/data", "etc", "etc/**", "usr/lib/**"]) == []
    assert snapshot(thing.folder) == before


def test_what_is_mounted_read_only_is_left_to_the_kernel(arena: Arena, thing: Thing) -> None:
    """As elsewhere in a root that is read-only: a warning, or an error with --strict."""
    rootfs.tree(arena.root, LINKS)
    links = hook("createContainer", OURS, "create-symlinks", "--link", "x::/usr/lib/vendorlib/new")
    thing.write({"a": {"mounts": [thing.mount("data", "/opt/data", "ro", "rbind")], "hooks": [links]}})
    before = snapshot(thing.folder)
    with FakeContainer(arena.root) as c:
        result = run_hook(thing.words(), container=c, stage="createContainer")
    assert (result.rc, "EROFS" in result.stderr, "level=warning" in result.stderr) == (0, True, True)
    assert snapshot(thing.folder) == before
