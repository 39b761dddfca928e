"""What is known of the host's mounts: those remembered, and whatever lies below them."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from kernel import namespaced
from lib import oracle, rootfs

from nvoci.errors import HookError
from nvoci.hook.hostmounts import HostMounts
from nvoci.hook.operation import Transaction
from nvoci.hook.operations import Chmod, MakeLink, RemoveFile, WriteFile
from nvoci.linux import mountinfo, userns
from nvoci.linux.fd import Fd
from nvoci.linux.rootfs import Made, Rootfs

TREE = """
dir rootfs/usr/bin/x
symlink rootfs/bin usr/bin
symlink rootfs/sbin opt/data
dir rootfs/opt/data
dir rootfs/opt/own
file rootfs/run/sock x
mode rootfs/run/sock 600
symlink rootfs/lib opt/data
symlink rootfs/own /opt/own
dir rootfs/run/own
symlink rootfs/var/run /run
symlink host/inner sub
dir host/sub
file host/file x
mode host/file 600
symlink host/link right
file other/sock x
mode other/sock 600
"""
MOUNTS = """
cd {0}
mount --bind host rootfs/opt/data; mount -t tmpfs -o mode=755 t rootfs/opt/data/sub
mount --bind other/sock rootfs/run/sock
"""


def guarded(top: Path) -> Rootfs:
    """A root with a directory and a file of the host, which are remembered."""
    namespaced.sh(MOUNTS.format(top))
    root = Rootfs.open(str(top / "rootfs"))
    for path in (b"opt/data", b"run/sock"):
        with root.lookup(path) as fd:
            HostMounts.of(root).add(root, fd.fileno())
    return root


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return rootfs.tree(tmp_path, TREE)


def test_what_lies_on_or_below_a_mount_of_the_host(top: Path) -> None:
    def body() -> dict[str, bool]:
        root = guarded(top)
        found = {}
        for path in ("opt", "opt/own", "opt/data", "opt/data/sub", "lib", "lib/file", "run", "run/sock", "."):
            with root.lookup(path.encode()) as fd:
                found[path] = HostMounts.of(root).holds(fd.fileno())
        return found

    own, hosts = ("opt", "opt/own", "run", "."), ("opt/data", "opt/data/sub", "lib", "lib/file", "run/sock")
    assert namespaced.isolated(body) == {**dict.fromkeys(own, False), **dict.fromkeys(hosts, True)}


def test_the_table_of_mounts_is_read_once_for_many_directories(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def body() -> int:
        root, calls = guarded(top), []
        own_table = mountinfo.own_table
        monkeypatch.setattr(mountinfo, "own_table", lambda: calls.append(1) or own_table())
        for n in range(50):
            MakeLink(root, b"x", b"opt/own/%d/link" % n).execute(Transaction())
        return len(calls)

    assert namespaced.isolated(body) == 1


def test_without_one_nothing_is_asked(top: Path) -> None:
    root = Rootfs.open(str(top / "rootfs"))
    with root.lookup(b"opt") as fd:
        assert not HostMounts.of(root).holds(fd.fileno())
    assert root.guard is None


# Each leads to the host, and is refused; and, beside it, what would change nothing.
OPERATIONS = {
    "link": lambda r: MakeLink(r, b"x", b"lib/new"),
    "link in the way": lambda r: MakeLink(r, b"x", b"lib/link"),
    "link below": lambda r: MakeLink(r, b"x", b"lib/sub/new"),
    "link in a new directory": lambda r: MakeLink(r, b"x", b"lib/a/new"),
    "file": lambda r: WriteFile(r, b"lib/file", b"new", 0o600),
    "new file": lambda r: WriteFile(r, b"lib/a/b/new", b"new", 0o600),
    "removal": lambda r: RemoveFile(r, b"lib/file"),
    "mode of a file": lambda r: Chmod(r, b"run/sock", 0o777, 0),
    "mode of a directory": lambda r: Chmod(r, b"lib", 0o777, 0),
}
RIGHT = {
    "link": lambda r: MakeLink(r, b"right", b"lib/link"),
    "file": lambda r: WriteFile(r, b"lib/file", b"x", 0o600),
    "removal": lambda r: RemoveFile(r, b"lib/none"),
    "removal below nothing": lambda r: RemoveFile(r, b"lib/none/none"),
    "mode": lambda r: Chmod(r, b"run/sock", 0o600, 0),
}


def outcome(top: Path, make: Any) -> tuple[str, list[str]]:
    """(what was said, what was changed)."""

    def body() -> tuple[str, list[str]]:
        root = guarded(top)
        folders = (top / "host", top / "rootfs/opt/data/sub", top / "other")
        before = [oracle.snapshot(folder) for folder in folders]
        transaction, said = Transaction(), ""
        try:
            transaction.perform("test", make(root))
        except HookError as e:
            said = e.message
        changed = [c for folder, old in zip(folders, before) for c in oracle.changes(old, oracle.snapshot(folder))]
        transaction.undo()
        return said, changed

    found: tuple[str, list[str]] = namespaced.isolated(body)
    return found


@pytest.mark.parametrize("case", OPERATIONS)
def test_operations_do_not_change_the_host(top: Path, case: str) -> None:
    said, changed = outcome(top, OPERATIONS[case])
    assert "leads into what was mounted from the host" in said
    assert changed == []


@pytest.mark.parametrize("case", RIGHT)
def test_operations_that_would_change_nothing_say_nothing(top: Path, case: str) -> None:
    assert outcome(top, RIGHT[case]) == ("", [])


def test_a_directory_is_not_made_where_the_guard_forbids_it(top: Path) -> None:
    def body() -> bool:
        root = guarded(top)
        with pytest.raises(HookError, match="leads into"):
            root.mkdirs(b"lib/a/b", 0o755, Made())
        return (top / "host/a").exists()

    assert not namespaced.isolated(body)


# --- mounts that were there before -----------------------------------------------------------------------------------

# A root that is a mount of its own, a volume of the host in it, and what an engine makes for each container.
CONTAINER = """
cd {0}
mount --bind rootfs rootfs; mount --bind host rootfs/opt/data
mount -t tmpfs -o mode=755 t rootfs/opt/own
mount -t tmpfs -o mode=755 t rootfs/run/own
mount --bind other rootfs/usr/bin/x
"""
REFUSED = "leads into a volume of the host"
PATHS = {
    "a link of the image leads into the volume": ("lib/new", REFUSED),
    "and one with more to go": ("lib/sub/new", REFUSED),
    "dots after the link": ("lib/../data/new", REFUSED),
    "the volume lies on the path": ("opt/data/new", ""),
    "and below it": ("/opt//data/sub/./new", ""),
    "below a link of the distribution's own": ("bin/x/new", ""),
    "and not where it leads elsewhere": ("sbin/new", REFUSED),
    "a link in the volume": ("opt/data/inner/new", REFUSED),
    "and below it, by another name of the distribution's": ("bin/x/../x/new", REFUSED),
    "a tmpfs on the path": ("opt/own/new", ""),
    "and behind a link": ("own/new", REFUSED),
    "one where engines make them": ("var/run/own/new", ""),
    "the root's own mount": ("opt/new", ""),
    "in directories that are not there": ("opt/a/b/new", ""),
}


def written(top: Path, path: str, guard: HostMounts, mounts: str = CONTAINER) -> tuple[str, bool]:
    """(what was said, whether a file was made)."""

    def body() -> tuple[str, bool]:
        namespaced.sh(mounts.format(top))
        root = Rootfs.open(str(top / "rootfs"))
        guard.protect(root)
        transaction, said = Transaction(), ""
        try:
            transaction.perform("test", WriteFile(root, path.encode(), b"x", 0o644))
        except HookError as e:
            said = e.message
        return said, any("new" in names for _, _, names in os.walk(top / "rootfs"))

    found: tuple[str, bool] = namespaced.isolated(body)
    return found


@pytest.mark.parametrize("case", PATHS)
def test_a_link_does_not_lead_into_a_volume(top: Path, case: str) -> None:
    path, words = PATHS[case]
    said, made = written(top, path, HostMounts())
    assert (words in said, bool(said), made) == (True, bool(words), not words), said


def test_a_volume_that_was_named_once_is_not_open_to_links(top: Path) -> None:
    def body() -> str:
        namespaced.sh(CONTAINER.format(top))
        root = Rootfs.open(str(top / "rootfs"))
        HostMounts().protect(root)
        transaction = Transaction()
        transaction.perform("test", WriteFile(root, b"opt/data/new", b"x", 0o644))
        with pytest.raises(HookError) as e:
            transaction.perform("test", WriteFile(root, b"lib/other", b"x", 0o644))
        return e.value.message

    assert REFUSED in namespaced.isolated(body)


def test_a_tmpfs_that_came_after_the_first_look_is_the_container_s(top: Path) -> None:
    def body() -> bool:
        namespaced.sh(CONTAINER.format(top))
        root = Rootfs.open(str(top / "rootfs"))
        HostMounts().protect(root)
        transaction = Transaction()
        transaction.perform("test", WriteFile(root, b"opt/own/new", b"x", 0o644))
        namespaced.sh(f"mount -t tmpfs later {top}/rootfs/usr")
        transaction.perform("test", WriteFile(root, b"usr/new", b"x", 0o644))
        return (top / "rootfs/usr/new").exists()

    assert namespaced.isolated(body)


def test_a_volume_of_an_earlier_run_is_known(top: Path) -> None:
    """What the first call of a start mounted is no secret to the second."""
    said, made = written(top, "lib/new", HostMounts(), CONTAINER + "mount -o remount,bind,rw rootfs/opt/data\n")
    assert (REFUSED in said, made) == (True, False)


def test_a_read_only_volume_is_left_to_the_kernel(top: Path) -> None:
    mounts = CONTAINER + "mount -o remount,bind,ro rootfs/opt/data\n"
    assert written(top, "lib/new", HostMounts(), mounts) == ("", False)  # EROFS: left out with a warning


@pytest.mark.parametrize("own_root", [True, False], ids=["of an engine", "of a process that somebody named"])
@pytest.mark.parametrize("path", ["opt/data/new", "lib/new", "opt/own/new", "opt/new"])
def test_a_user_namespace_changes_what_its_root_owns(top: Path, path: str, own_root: bool) -> None:
    """Also where the volume lies on the path: the hook has rights that the container has not."""
    theirs = {"opt/own/new"} | ({"opt/new"} if own_root else set())
    mounts = CONTAINER + "chown 100000:100000 rootfs/opt/own\n"
    said, made = written(top, path, HostMounts((100000, 100000), own_root=own_root), mounts)
    assert ("is not root of the container" in said, made) == (path not in theirs, path in theirs), said


# What lies where, if the container's root owns all of it: by what paths it may be changed.
OWNED = {
    "opt/data/new": "", "lib/new": REFUSED, "opt/data/inner/new": REFUSED, "opt/own/new": "", "own/new": REFUSED,
    "var/run/own/new": "", "opt/new": "",
}  # fmt: skip


@pytest.mark.parametrize("owner", [0, 100000], ids=["identity", "shifted"])
@pytest.mark.parametrize("path", OWNED)
def test_what_the_root_of_a_user_namespace_owns_is_a_volume_all_the_same(top: Path, path: str, owner: int) -> None:
    mounts = CONTAINER + f"chown {owner}:{owner} host host/sub rootfs/opt/own rootfs/run/own rootfs/opt\n"
    said, made = written(top, path, HostMounts((owner, owner)), mounts)
    assert (OWNED[path] in said, bool(said), made) == (True, bool(OWNED[path]), not OWNED[path]), said


def test_a_user_namespace_reads_the_table_of_mounts_once(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not at all while nothing but the root's own mount is changed."""

    def body() -> list[int]:
        namespaced.sh(CONTAINER.format(top))
        root, calls, found = Rootfs.open(str(top / "rootfs")), [], []
        own_table = mountinfo.own_table
        monkeypatch.setattr(mountinfo, "own_table", lambda: calls.append(1) or own_table())
        HostMounts((0, 0)).protect(root)
        for folder in (b"opt", b"opt/data", b"opt/own", b"var/run/own", b"usr/bin/x"):
            for n in range(5):
                MakeLink(root, b"x", b"%s/%d/link" % (folder, n)).execute(Transaction())
            found.append(len(calls))
        return found

    assert namespaced.isolated(body) == [0, 1, 1, 1, 1]


# What may be copied to where all can read it: path -> whether.
COPIED = {
    "opt/file": True, "copy": True, "opt/data/file": True, "lib/file": False, "lib/link": False, "opt/data/link": False,
    "var/run/own/file": False, "run/own/file": True,
}  # fmt: skip
FILES = """
echo x >rootfs/opt/file; ln -s opt/file rootfs/copy; echo x >rootfs/run/own/file; echo x >host/right
"""


@pytest.mark.parametrize("path", COPIED)
def test_what_is_copied_is_the_image_s_or_lies_on_the_path(top: Path, path: str) -> None:
    def body() -> str:
        namespaced.sh(CONTAINER.format(top) + FILES)
        root, guard = Rootfs.open(str(top / "rootfs")), HostMounts()
        guard.protect(root)
        with root.open_file(path.encode()) as fd:
            try:
                guard.check_copy(path.encode(), fd.fileno())
            except HookError as e:
                return e.message
        return ""

    assert namespaced.isolated(body) == ("" if COPIED[path] else f"copy /{path}: leads out of the image")


@pytest.mark.parametrize("own_root", [True, False], ids=["of an engine", "of a process that somebody named"])
@pytest.mark.parametrize("owner", [None, 0, 100000])
def test_of_a_root_that_anybody_mounted_only_its_root_s_files_are_copied(
    top: Path, own_root: bool, owner: int | None
) -> None:
    def body() -> bool:
        namespaced.sh(CONTAINER.format(top) + FILES)
        root = Rootfs.open(str(top / "rootfs"))
        guard = HostMounts(None if owner is None else (owner, owner), own_root=own_root)
        with root.open_file(b"opt/file") as fd:
            guard.check_copy(b"opt/file", fd.fileno())  # nobody has said what this root is
            guard.protect(root)
            try:
                guard.check_copy(b"opt/file", fd.fileno())
            except HookError:
                return False
        return True

    assert namespaced.isolated(body) == (own_root or owner != 100000)


def test_the_root_of_a_user_namespace_on_the_host() -> None:
    """A process' own is none; another's is what its maps say."""
    held = Fd(os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY))
    assert userns.root_of(held.fileno()) is None
    child = subprocess.Popen(["unshare", "--user", "sleep", "60"], stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while os.readlink(f"/proc/{child.pid}/ns/user") == os.readlink("/proc/self/ns/user"):
            assert time.monotonic() < deadline
        process = Fd(os.open(f"/proc/{child.pid}", os.O_RDONLY | os.O_DIRECTORY))
        assert userns.root_of(process.fileno()) == (userns.NOBODY, userns.NOBODY)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child.pid}/{name}").write_text("0 100000 65536\n")
        assert userns.root_of(process.fileno()) == (100000, 100000)
    finally:
        child.kill()
        child.wait()
