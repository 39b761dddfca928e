"""Attacks by volumes in a user namespace, with real runtimes: who owns a volume does not make it the image's."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from lib import bundle, hookproc, proc, rootfs, session
from lib.oracle import snapshot
from lib.runtimes import Runtime

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runtimes need root")

FIRST = 100_000
REFUSED = "leads into a volume of the host"
OWNERS = {"shifted": FIRST, "identity": 0}  # whom the container's root is on the host
LINK = ["create-symlinks", "--link", "other::/opt/x/file"]
ASKED = {
    "a link": LINK,
    "a new directory": ["create-symlinks", "--link", "other::/opt/x/a/b"],
    "a mode": ["chmod", "--mode", "4777", "--path", "/opt/x/file"],
}


# Mounts a directory on itself, where what is root's is shown as FIRST's.
IDMAP = f"""
import ctypes, os, signal, struct, sys
path, libc = os.fsencode(sys.argv[1]), ctypes.CDLL(None, use_errno=True)
ready, done = os.pipe()
child = os.fork()
if not child:
    libc.unshare(0x10000000)  # CLONE_NEWUSER
    os.write(done, b"!")
    signal.pause()
os.read(ready, 1)
for name in ("uid_map", "gid_map"):
    with open(f"/proc/{{child}}/{{name}}", "w") as file:
        file.write("0 {FIRST} 65536")
userns = os.open(f"/proc/{{child}}/ns/user", os.O_RDONLY)
tree = libc.syscall(428, -100, path, 1)  # open_tree(2), OPEN_TREE_CLONE
attr = struct.pack("=4Q", 0x100000, 0, 0, userns)  # struct mount_attr, MOUNT_ATTR_IDMAP
bad = libc.syscall(442, tree, b"", 0x1000, attr, len(attr)) or libc.syscall(429, tree, b"", -100, path, 4)
os.kill(child, 9)
sys.exit(bad and f"idmap: errno {{ctypes.get_errno()}}")
"""


def check_refused(result: proc.Result, runtime: str, why: str = REFUSED) -> None:
    """crun does not show what a hook says."""
    assert result.rc != 0
    assert why in result.stderr or runtime == "crun", result.stderr


@pytest.fixture
def image() -> Path:
    root = rootfs.busybox_rootfs(session.new_dir("image") / "rootfs")
    return rootfs.tree(root, "dir vol\nsymlink opt/x /vol\n" + "".join(
        f"dir {name}\n" for name in ("proc", "dev", "sys", "dev/pts", "dev/shm", "dev/mqueue")
    ))  # fmt: skip


def volume(owner: int) -> Path:
    """Open to who knows its name, as a file system of its own may be."""
    top = rootfs.tree(session.new_dir("volume"), "file file precious")
    top.chmod(0o755)
    give(top, owner)
    return top


def give(top: Path, owner: int) -> None:
    subprocess.run(["chown", "-hR", f"{owner}:{owner}", top], check=True)


def start(
    runtime: str, root: Path, args: list[str], theirs: Path, owner: int, *, stage: str = "createRuntime",
    setup: str = "", script: str = "true",
) -> proc.Result:  # fmt: skip
    give(root, owner)
    mounts = [bundle.bind(theirs, "/vol")]
    hooks = {stage: [hookproc.hook_entry(args)]}
    made = bundle.make_bundle(
        session.new_dir("bundle"), root, ["/bin/sh", "-c", script], hooks, userns=(owner, 65_536), mounts=mounts
    )
    return Runtime(runtime).run(made, setup=setup)


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("asked", ASKED)
def test_a_link_leads_into_no_volume_that_the_container_s_root_owns(
    runtime: str, image: Path, asked: str, owner: str
) -> None:
    """With an identity map that is all that root owns."""
    theirs = volume(OWNERS[owner])
    before = snapshot(theirs)
    check_refused(start(runtime, image, ASKED[asked], theirs, OWNERS[owner]), runtime)
    assert snapshot(theirs) == before


def test_nor_from_inside(runtime: str, image: Path) -> None:
    theirs = volume(FIRST)
    before = snapshot(theirs)
    result = start(runtime, image, LINK, theirs, FIRST, stage="createContainer")
    assert result.rc != 0
    assert snapshot(theirs) == before


@pytest.mark.parametrize("asked", ASKED)
def test_an_idmapped_volume_is_the_host_s_too(runtime: str, image: Path, asked: str) -> None:
    """What is root's on the disk is shown as the container's root's."""
    theirs = volume(0)
    before = snapshot(theirs)
    script = session.new_dir("idmap") / "idmap.py"
    script.write_text(IDMAP)
    setup = f"timeout 10 {session.PYTHON} -IS {script} {theirs}\ntest $(stat -c %u {theirs}/file) = {FIRST}\n"
    check_refused(start(runtime, image, ASKED[asked], theirs, FIRST, setup=setup), runtime)
    assert snapshot(theirs) == before


@pytest.mark.parametrize("owner", OWNERS)
def test_a_named_volume_of_the_container_s_root_is_changed(runtime: str, image: Path, owner: str) -> None:
    theirs = volume(OWNERS[owner])
    result = start(runtime, image, ["chmod", "--mode", "640", "--path", "/vol/file"], theirs, OWNERS[owner])
    assert result.rc == 0, result.stderr
    assert stat.S_IMODE((theirs / "file").stat().st_mode) == 0o640


def test_a_named_volume_of_another_is_not(runtime: str, image: Path) -> None:
    theirs = volume(0)
    result = start(runtime, image, ["chmod", "--mode", "640", "--path", "/vol/file"], theirs, FIRST)
    check_refused(result, runtime, "is not root of the container")


def test_what_the_engine_makes_is_the_container_s(runtime: str, image: Path) -> None:
    """A link of the image to /dev, a tmpfs; of another map its root would be nobody to the hook."""
    (image / "opt/dev").symlink_to("/dev")
    words = ["create-symlinks", "--link", "other::/opt/dev/nvidia/new"]
    result = start(runtime, image, words, volume(0), OWNERS["identity"], script="readlink /dev/nvidia/new")
    assert (result.rc, result.stdout) == (0, "other\n"), result.stderr


def test_what_root_alone_can_read_is_not_copied(runtime: str, image: Path) -> None:
    """The path file of musl is made anew from the image's."""
    name = f"ld-musl-{os.uname().machine}.path"
    rootfs.tree(image, f"file etc/alpine-release 3.20\\n\nsymlink etc/{name} /vol/private/secret")
    theirs = rootfs.tree(session.new_dir("volume"), "file private/secret hunter2\nmode private 700")
    theirs.chmod(0o755)
    words = ["update-ldcache", "--folder", "/opt/nvidia/lib"]
    check_refused(start(runtime, image, words, theirs, FIRST), runtime, "leads out of the image")
    assert os.readlink(image / "etc" / name) == "/vol/private/secret"
