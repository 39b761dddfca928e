"""What an outsider changed under a hook: whom a pid means, which directory a name means, and the files that it runs
from."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from struct import pack
from typing import Any

import pytest
from lib import proc, session
from lib.hookproc import FakeContainer, run_hook
from security.arena import LDCACHE, Arena

from nvoci.inject.targets import MountPoint
from nvoci.linux.rootfs import Made, Rootfs

USER = ["/usr/bin/setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
LINK = ["create-symlinks", "--link", "evil::/etc/foo"]

# -- a pid that is a user's process by now ----------------------------------------------------------------------------

HOST_ETC = {"ld.so.cache": "the host's", "ld.so.conf": "/usr/lib\n"}
# config.json of the container that the pid was of, and what the hook says.
NO_USER_NAMESPACE: dict[str, Any] = {"linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]}}
OF_ITS_OWN: dict[str, Any] = {
    "linux": {
        "namespaces": [{"type": "user"}],
        "uidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
    }
}
JOINED: dict[str, Any] = {"linux": {"namespaces": [{"type": "user", "path": "/proc/self/ns/user"}]}}
REUSED = "is in another user namespace than config.json says"
NOT_ITS = "its owner, uid 0, is not root of the container"
BUNDLES: dict[str, tuple[dict[str, Any] | str | None, str]] = {
    "no user namespace": (NO_USER_NAMESPACE, REUSED),
    "no namespaces at all": ({}, REUSED),
    "a user namespace of its own": (OF_ITS_OWN, REUSED),
    "a user namespace that is joined": (JOINED, REUSED),
    "one without a map": ({"linux": {"namespaces": [{"type": "user"}]}}, NOT_ITS),
    "a config.json that is none": ("{", NOT_ITS),
    "no bundle": (None, NOT_ITS),
}


@contextmanager
def reused(top: Path, rootfs: Path) -> Iterator[tuple[int, Path]]:
    """A process of a user in namespaces of their own, who has mounted a directory of the host's root where the root of
    the container was. Yields its pid and that directory."""
    host = top / "host"
    (host / "etc").mkdir(parents=True)
    for name, text in HOST_ETC.items():
        (host / "etc" / name).write_text(text)
    script = f"mount --bind {host} {rootfs} && echo ready && exec cat >/dev/null"
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "sh", "-c", script]
    with subprocess.Popen([*USER, *unshare], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/") as user:
        assert user.stdin is not None
        assert user.stdout is not None
        assert user.stdout.readline() == b"ready\n"
        yield proc.children(user.pid)[0], host
        user.stdin.close()


@pytest.mark.parametrize("words", [LINK, [*LDCACHE["builtin"]]], ids=["create-symlinks", "update-ldcache"])
@pytest.mark.parametrize(("config", "told"), BUNDLES.values(), ids=BUNDLES)
def test_a_pid_that_was_reused_changes_nothing_of_the_host(
    config: dict[str, Any] | str | None, told: str, words: Sequence[str]
) -> None:
    top = session.new_dir("reused")
    rootfs = top / "bundle/rootfs"
    rootfs.mkdir(parents=True)
    state: dict[str, Any] = {"ociVersion": "1.0.2", "id": "x", "status": "created", "root": str(rootfs)}
    if config is not None:
        state["bundle"] = str(top / "bundle")
        whole = config if isinstance(config, str) else json.dumps({"root": {"path": str(rootfs)}, **config})
        (top / "bundle/config.json").write_text(whole)
    with reused(top, rootfs) as (pid, host):
        result = run_hook(words, {**state, "pid": pid}, cwd="/")
        assert result.rc == 1
        assert told in result.stderr.splitlines()[-1]
        assert {path.name: path.read_text() for path in (host / "etc").iterdir()} == HOST_ETC


# -- a directory that is exchanged between its making and its opening --------------------------------------------------

SLOW_MKDIR = [
    "strace", "-f", "-qqq", "-o", "/dev/null", "-e", "trace=mkdirat,mkdir", "-e", "inject=mkdirat:delay_exit=300000",
]  # fmt: skip
EXCHANGE = """
import ctypes, os, time
libc = ctypes.CDLL(None)
while libc.renameat2(-100, b"secret", -100, b"foo", 2):
    time.sleep(0.001)
"""
# What root has in the directory that others may write.
SECRETS = {"a key in it": ("key", 0o700), "nothing in it": ("", 0o700), "more open than ours": ("key", 0o2775)}


@pytest.mark.parametrize(("name", "mode"), SECRETS.values(), ids=SECRETS)
def test_a_directory_put_in_the_place_of_a_new_one_keeps_its_mode(arena: Arena, name: str, mode: int) -> None:
    shared = arena.root / "shared"
    secret = shared / "secret"
    secret.mkdir(parents=True)
    if name:
        (secret / name).write_text("k")
    os.utime(secret, (1, 1))
    secret.chmod(mode)
    shared.chmod(0o777)
    with (
        subprocess.Popen([*USER, session.PYTHON, "-ISc", EXCHANGE], cwd=shared) as user,
        FakeContainer(arena.root) as c,
    ):
        words = ["create-symlinks", "--link", "x::/shared/foo/link"]
        result = run_hook(words, container=c, prefix=SLOW_MKDIR, timeout=30)
        user.send_signal(signal.SIGKILL)
    assert {path.name for path in (shared / "foo").iterdir()} >= ({name} if name else set())
    assert (result.rc, (shared / "foo").stat().st_mode & 0o7777) == (0, mode)


def test_it_is_not_taken_away_by_undo_either(tmp_path: Path) -> None:
    """Of another owner: it was not made here."""
    root = Rootfs.open(str(tmp_path))
    above, made, mkdir = root.dir(b"."), Made(), os.mkdir

    def exchanged(name: bytes, mode: int, *, dir_fd: int) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        os.chown(name, 1000, 1000, dir_fd=dir_fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nvoci.linux.rootfs.posix.mkdir", exchanged)
        root._mkdir(above, b"new", b"new", 0o755, made)
    made.undo()
    root.close()
    assert (tmp_path / "new").is_dir()


def test_a_file_put_in_the_place_of_a_new_mount_point_is_not_taken_away_by_undo(tmp_path: Path) -> None:
    root, point, opened = Rootfs.open(str(tmp_path)), MountPoint(Made()), os.open

    def exchanged(name: bytes, flags: int, mode: int, *, dir_fd: int) -> int:
        fd = opened(name, flags, mode, dir_fd=dir_fd)
        (tmp_path / "new").rename(tmp_path / "ours")
        (tmp_path / "new").write_text("")
        return fd

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nvoci.inject.targets.posix.open", exchanged)
        point._create(root.dir(b"."), b"new", directory=False)
    point.undo()
    root.close()
    assert sorted(os.listdir(tmp_path)) == ["new", "ours"]


# struct posix_acl_xattr_header {le32 version 2}, entries of {le16 tag, le16 perm, le32 id}: USER_OBJ, GROUP_OBJ, OTHER.
PRIVATE = pack("<I", 2) + b"".join(pack("<HHI", tag, perm, 0xFFFFFFFF) for tag, perm in ((1, 7), (4, 0), (0x20, 0)))


def test_where_an_acl_takes_bits_away_a_new_directory_has_them_nevertheless(arena: Arena) -> None:
    shared = arena.root / "shared"
    shared.mkdir()
    try:
        os.setxattr(shared, "system.posix_acl_default", PRIVATE)
    except OSError:
        pytest.skip("this file system has no access control lists")
    (shared / "plain").mkdir()
    assert (shared / "plain").stat().st_mode & 0o777 == 0o700
    with FakeContainer(arena.root) as c:
        assert run_hook(["create-symlinks", "--link", "x::/shared/a/b/link"], container=c).rc == 0
    assert [(shared / name).stat().st_mode & 0o777 for name in ("a", "a/b")] == [0o755, 0o755]


# -- files of the package that others may write -----------------------------------------------------------------------

ROOMS = ("hook", "linux", "oci", "ldcache", "prestart", "discover")
ENTRY = "import sys\nsys.path.insert(0, {!r})\nfrom nvoci.hook.main import cdi_hook\ncdi_hook()\n"


@pytest.fixture(scope="module")
def package() -> Path:
    """A copy of the hooks and an entry file for it."""
    top = session.new_dir("package")
    shutil.copytree(session.HOOKS, top / "hooks", ignore=shutil.ignore_patterns("__pycache__"))
    (top / "nvidia-cdi-hook").write_text(ENTRY.format(str(top / "hooks")))
    return top


@pytest.mark.parametrize(
    "name", [*ROOMS, *(f"{room}/__pycache__" for room in ROOMS), "__pycache__", "hook/main.py", ""]
)
def test_no_directory_that_a_hook_loads_from_may_be_anybody_s(package: Path, name: str) -> None:
    place = package / "hooks/nvoci" / name
    made = not place.exists()
    if made:
        place.mkdir()
    assert run_hook(["noop"], program=package / "nvidia-cdi-hook").rc == 0
    before = place.stat().st_mode
    try:
        place.chmod(0o777)
        result = run_hook(["noop"], program=package / "nvidia-cdi-hook")
    finally:
        place.chmod(before)
        if made:
            place.rmdir()
    assert result.rc == 1
    assert f"start: {str(place).rstrip('/')}: owned by uid 0, mode 0777" in result.stderr


def test_those_are_all_that_a_hook_may_load_from() -> None:
    """The rooms of the tables of imports."""
    from static.layering import HOT

    from nvoci.hook import process

    rooms = {name.partition(".")[0] for name in HOT if (session.HOOKS / "nvoci" / name.partition(".")[0]).is_dir()}
    assert rooms - {""} == set(process._ROOMS) == set(ROOMS)
