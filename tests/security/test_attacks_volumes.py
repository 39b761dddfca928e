"""Attacks by volumes: a link of the image, or of a tenant of the volume, leads a hook with root's rights to what is not
the container's; volumes that are mounted in the container alone, and those that a hook was told, are among them.

What a hook reads: test_attacks_volumes_read.py; in a user namespace: test_attacks_volumes_userns.py.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
from lib import rootfs
from lib.hookproc import FakeContainer, run_hook
from lib.oracle import snapshot
from security.arena import GPU_NODE, PROFILE, STAGES, Arena

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

REFUSED = "leads into a volume of the host"
BIND = 'mount --bind {0}/volume "$R/vol"\n'
# The image's own link, and what is asked for through it.
LINK = ["create-symlinks", "--link", "other::/opt/x/file"]
NEW = ["create-symlinks", "--link", "other::/opt/x/a/new"]
MODE = ["chmod", "--mode", "4777", "--path", "/opt/x/file"]
PROFILES = ["update-application-profile"]


def volume(arena: Arena, link: str = "symlink opt/x /vol") -> Path:
    """A volume with a file of somebody else's, and the image's link to it."""
    rootfs.tree(arena.root, f"dir vol\n{link}")
    return rootfs.tree(arena.top / "volume", "file file precious")


def hook(
    arena: Arena, args: Sequence[str], setup: str, stage: str = "outside", *, readonly: bool = False
) -> tuple[int, str, dict[str, bytes]]:
    """(exit status, what was said, content of the files in the container's /vol)."""
    with FakeContainer(arena.root, setup=setup.format(arena.top), readonly=readonly) as c:
        result = run_hook(args, container=c, stage=STAGES[stage])
        found = {}
        for folder, _, names in os.walk(c.path("vol")):
            for path in (Path(folder, name) for name in names):
                name = str(path.relative_to(c.path("vol")))
                found[name] = b"a link" if path.is_symlink() else path.read_bytes()
        assert [m for m in c.mountinfo() if " - tmpfs nvoci " in m and result.rc] == []
    return result.rc, result.stderr, found


# --- a volume that only the container's own table of mounts has ------------------------------------------------------

INSIDE_ONLY = {
    "tmpfs": 'mount -t tmpfs t "$R/vol"; echo precious >"$R/vol/file"\n',
    "image file": 'truncate -s 1M {0}/img; mkfs.ext4 -q {0}/img; mount -o loop {0}/img "$R/vol"\n'
    'echo precious >"$R/vol/file"\n',
    "overlay": 'mkdir {0}/u {0}/w\nmount -t overlay o -o lowerdir={0}/volume,upperdir={0}/u,workdir={0}/w "$R/vol"\n',
    "bind": BIND,
}
ASKED = {"a link": LINK, "a new directory": NEW, "a mode": MODE}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("kind", INSIDE_ONLY)
def test_a_link_of_the_image_leads_into_no_volume(arena: Arena, kind: str, asked: str, stage: str) -> None:
    theirs = volume(arena)
    before = snapshot(theirs)
    rc, said, found = hook(arena, ASKED[asked], INSIDE_ONLY[kind], stage)
    assert (rc, REFUSED in said, said.count("\n")) == (1, True, 1), said
    assert {name for name in found if not name.startswith("lost")} == {"file"}
    assert found["file"].startswith(b"precious")
    assert snapshot(theirs) == before
    assert kind != "overlay" or os.listdir(arena.top / "u") == []


@pytest.mark.parametrize("kind", INSIDE_ONLY)
def test_a_volume_that_is_named_is_where_its_owner_wants_the_change(arena: Arena, kind: str) -> None:
    volume(arena)
    rc, said, found = hook(arena, ["create-symlinks", "--link", "other::/vol/a/new"], INSIDE_ONLY[kind])
    assert (rc, said, found["a/new"]) == (0, "", b"a link")


# What engines mount in every container, with links that distributions have to them.
OWN = {
    "docker's /dev": ("", "symlink opt/x /dev"),
    "podman's /run": ('mount -t tmpfs -o mode=755 tmpfs "$R/run"\n', "dir run\nsymlink opt/x /run"),
    "by /var/run": ('mount -t tmpfs tmpfs "$R/run"\n', "dir run\nsymlink var/run ../run\nsymlink opt/x /var/run"),
    "below /run": (
        'mount -t tmpfs t "$R/run"; mkdir "$R/run/lock"; mount -t tmpfs t "$R/run/lock"\n',
        "dir run\nsymlink opt/x /run/lock",
    ),
    "a --read-only container's /tmp": ('mount -t tmpfs -o mode=1777 t "$R/tmp"\n', "symlink opt/x /tmp"),
    "its /var/tmp": ('mount -t tmpfs t "$R/var/tmp"\n', "dir var/tmp\nsymlink opt/x /var/tmp"),
    "/dev/shm": ('mount -t tmpfs t "$R/dev/shm"\n', "symlink opt/x /dev/shm"),
    "the root's own": ("", "dir srv\nsymlink opt/x /srv"),
}


@pytest.mark.parametrize("case", OWN)
def test_what_an_engine_makes_for_every_container_is_the_container_s(arena: Arena, case: str) -> None:
    setup, spec = OWN[case]
    volume(arena, spec)
    with FakeContainer(arena.root, setup=setup) as c:
        result = run_hook(["create-symlinks", "--link", "other::/opt/x/nvidia/new"], container=c)
        assert (result.rc, result.stderr) == (0, "")
        assert os.readlink(c.path(spec.rpartition(" ")[2] + "/nvidia/new")) == "other"


INSTEAD = 'rmdir "$R/vol"; ln -s {} "$R/vol"\n'
ELSEWHERE = {
    "a tmpfs of another name": ("running", 'mkdir "$R/running"; mount -t tmpfs t "$R/running"\n'),
    "a volume at /run": ("run", 'mkdir "$R/run"; mount --bind {0}/volume "$R/run"\n'),
    "a volume in the engine's /dev": ("dev/v", 'mkdir "$R/dev/v"; mount --bind {0}/volume "$R/dev/v"\n'),
    "the host's /dev": ("dev/host", 'mkdir "$R/dev/host"; mount -t devtmpfs d "$R/dev/host"\n'),
    "a tmpfs that others have too": (
        "run",
        'mkdir "$R/run" {0}/t; mount -t tmpfs t {0}/t; mount --bind {0}/t "$R/run"\n',
    ),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_neither_the_place_nor_the_type_alone_makes_it_so(arena: Arena, case: str) -> None:
    theirs = volume(arena)
    before = snapshot(theirs)
    words = ["create-symlinks", "--link", "other::/opt/x/nvoci-attack/new"]
    place, setup = ELSEWHERE[case]
    with FakeContainer(arena.root, setup=setup.format(arena.top) + INSTEAD.format(place)) as c:
        result = run_hook(words, container=c)
        assert not c.path("vol/nvoci-attack").exists()
    assert (result.rc, REFUSED in result.stderr) == (1, True), result.stderr
    assert snapshot(theirs) == before
    assert not os.path.exists("/dev/nvoci-attack")


KERNEL_S = {
    "procfs": ("/proc", ""),
    "a file of it": ("/proc/sys", ""),
    "cgroup2": ("/vol", 'mount -t cgroup2 c "$R/vol"\n'),
    "sysfs": ("/vol", 'mount -t sysfs s "$R/vol"\n'),
}


@pytest.mark.parametrize("case", KERNEL_S)
def test_a_link_leads_to_no_mode_of_a_file_of_the_kernel_s(arena: Arena, case: str) -> None:
    """A file of procfs has one mode, the host's and every container's."""
    target, setup = KERNEL_S[case]
    volume(arena, f"symlink opt/x {target}")
    with FakeContainer(arena.root, setup=setup) as c:
        before = c.path(target).stat().st_mode
        result = run_hook(["chmod", "--mode", "700", "--path", "/opt/x"], container=c)
        assert c.path(target).stat().st_mode == before
    assert (result.rc, "leads into a file system of the kernel's" in result.stderr) == (1, True), result.stderr


# --- links in a volume -----------------------------------------------------------------------------------------------

TENANTS = """
file t2/secret key
mode t2/secret 600
mode t2 700
symlink t1/f ../t2/secret
symlink t1/d ../t2
symlink t1/abs /vol/t2
"""
IN_VOLUME = {
    "mode by a link": ["chmod", "--mode", "777", "--path", "/vol/t1/f"],
    "mode below a link": ["chmod", "--mode", "777", "--path", "/vol/t1/d/secret"],
    "link below a link": ["create-symlinks", "--link", "x::/vol/t1/d/secret"],
    "new directory below a link": ["create-symlinks", "--link", "x::/vol/t1/d/a/b"],
    "by the container's name": ["create-symlinks", "--link", "x::/vol/t1/abs/new"],
    "dots": ["create-symlinks", "--link", "x::/vol/t1/../t1/new"],
    "dots behind a link": ["chmod", "--mode", "777", "--path", "/vol/t1/d/../t2/secret"],
}


@pytest.mark.parametrize("case", IN_VOLUME)
def test_a_link_in_a_named_volume_is_nobody_s_word(arena: Arena, case: str) -> None:
    """One tenant of a volume may not have a hook change what is another's."""
    rootfs.tree(arena.root, "dir vol")
    theirs = rootfs.tree(arena.top / "volume", TENANTS)
    os.chown(theirs / "t1", 1000, 1000)
    before = snapshot(theirs)
    rc, said, _ = hook(arena, IN_VOLUME[case], BIND)
    assert (rc, REFUSED in said) == (1, True), said
    assert snapshot(theirs) == before


def test_a_path_in_a_named_volume_without_links_is_changed(arena: Arena) -> None:
    rootfs.tree(arena.root, "dir vol")
    theirs = rootfs.tree(arena.top / "volume", TENANTS)
    assert hook(arena, ["chmod", "--mode", "640", "--path", "/vol//t2/./secret"], BIND)[:2] == (0, "")
    assert stat.S_IMODE((theirs / "t2/secret").stat().st_mode) == 0o640


# --- paths that are resolved by name first ---------------------------------------------------------------------------

PROFILE_LINKS = {
    "the folder's parent": ("symlink etc/nvidia /vol", "nvidia-application-profiles-rc.d"),
    "the folder": ("symlink etc/nvidia/nvidia-application-profiles-rc.d /vol", "."),
    "missing in the volume": ("symlink etc/nvidia /vol", ""),
    "by two links": ("symlink etc/nvidia /opt/nv\nsymlink opt/nv ../vol", "nvidia-application-profiles-rc.d"),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("case", PROFILE_LINKS)
def test_the_driver_s_profile_goes_into_no_volume(arena: Arena, case: str, stage: str) -> None:
    link, folder = PROFILE_LINKS[case]
    theirs = volume(arena, link)
    if folder:
        rootfs.tree(theirs, f"file {folder}/{os.path.basename(PROFILE)} somebody else's")
    before = snapshot(theirs)
    rc, said, _ = hook(arena, PROFILES, BIND + GPU_NODE, stage)
    assert (rc, REFUSED in said) == (1, True), said
    assert snapshot(theirs) == before


# --- device nodes ----------------------------------------------------------------------------------------------------

NODE = ["chmod", "--mode", "777", "--path", "/dev/nvidia0"]


@pytest.mark.parametrize("kind", ["c", "b"])
def test_the_host_s_node_from_a_driver_root_keeps_its_mode(arena: Arena, kind: str) -> None:
    """It lies on no devtmpfs, and is bound on the path that the hook was told."""
    setup = (
        f"mkdir {{0}}/driver; mknod -m 600 {{0}}/driver/nvidia0 {kind} 195 0\n"
        ': >"$R/dev/nvidia0"; mount --bind {0}/driver/nvidia0 "$R/dev/nvidia0"\n'
    )
    rc, said, _ = hook(arena, NODE, setup)
    assert (rc, "is the host's own device node" in said) == (1, True), said
    assert stat.S_IMODE((arena.top / "driver/nvidia0").stat().st_mode) == 0o600


def test_nodes_of_a_whole_directory_of_the_host_keep_theirs(arena: Arena) -> None:
    setup = 'mkdir {0}/dri "$R/dev/dri"; mknod -m 600 {0}/dri/card0 c 226 0; mount --bind {0}/dri "$R/dev/dri"\n'
    rc, said, _ = hook(arena, ["chmod", "--mode", "777", "--path", "/dev/dri/card0"], setup)
    assert (rc, "is the host's own device node" in said) == (1, True), said
    assert stat.S_IMODE((arena.top / "dri/card0").stat().st_mode) == 0o600


def test_the_container_s_own_node_gets_the_mode(arena: Arena) -> None:
    with FakeContainer(arena.root, setup='mknod -m 600 "$R/dev/nvidia0" c 195 0\n') as c:
        result = run_hook(NODE, container=c)
        assert (result.rc, result.stderr) == (0, "")
        assert stat.S_IMODE(c.path("dev/nvidia0").stat().st_mode) == 0o777
