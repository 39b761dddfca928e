"""What is known of the host's mounts: those remembered, and whatever lies below them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kernel import namespaced
from lib import oracle, rootfs

from nvoci.errors import HookError
from nvoci.hook.hostmounts import HostMounts
from nvoci.hook.operation import Transaction
from nvoci.hook.operations import Chmod, MakeLink, RemoveFile, WriteFile
from nvoci.linux import mountinfo
from nvoci.linux.rootfs import Made, Rootfs

TREE = """
dir rootfs/opt/data
dir rootfs/opt/own
file rootfs/run/sock x
mode rootfs/run/sock 600
symlink rootfs/lib opt/data
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
        own_mounts = mountinfo.own_mounts
        monkeypatch.setattr("nvoci.hook.hostmounts.own_mounts", lambda: calls.append(1) or own_mounts())
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
