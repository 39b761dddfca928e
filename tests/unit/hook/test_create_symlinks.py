"""create-symlinks: `ln -sf` in the container's root, idempotent, undone by exchange."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lib import jail, proc, rootfs
from unit.hook.hooktools import Program, one_error, snapshot

HOOK = "create-symlinks"


def links(*values: str) -> list[str]:
    return [HOOK, *(word for value in values for word in ("--link", value))]


# -- what is made --------------------------------------------------------------------------------------------------

# value: (path below the root, text)
MADE: dict[str, tuple[str, str]] = {
    "libcuda.so.1::/usr/lib/libcuda.so": ("usr/lib/libcuda.so", "libcuda.so.1"),
    "/abs/target::/l": ("l", "/abs/target"),
    "../../up::/a/b/l": ("a/b/l", "../../up"),
    "dangling::relative/l": ("relative/l", "dangling"),
    "t::l": ("l", "t"),
    "t:://a//b/./l": ("a/b/l", "t"),
    "t::/l/": ("l", "t"),
    "/host/canary::/l": ("l", "/host/canary"),
    "a:b::/c:d": ("c:d", "a:b"),
    "-t::/-l": ("-l", "-t"),
    "a b::/c d": ("c d", "a b"),
    ".::/l": ("l", "."),
    "t::/...": ("...", "t"),
}


@pytest.mark.parametrize("value", MADE)
def test_a_link_is_made_with_its_text_verbatim(program: Program, value: str) -> None:
    path, text = MADE[value]
    result = program.run(*links(value))
    assert (result.rc, result.stdout, result.stderr) == (0, "", "")
    assert os.readlink(program.root / path) == text


INVALID = {
    "no separator": "a",
    "three parts": "a::b::c",
    "empty": "",
    "empty target": "::/l",
    "empty link": "t::",
    "link is the root": "t::/",
    "link is slashes": "t::///",
    "link ends in a dot": "t::/a/.",
    "link ends in two dots": "t::/a/..",
    "link is two dots and a slash": "t::../",
    "single colon": "t:/l",
    "three colons": "x:::y::z",
    "cut by a comma": "x,y::/a",
    "target of 4096 bytes": "x" * 4096 + "::/l",
}


@pytest.mark.parametrize("value", INVALID.values(), ids=INVALID)
def test_an_invalid_value_is_an_error_before_anything_is_made(program: Program, value: str) -> None:
    line = one_error(program.run(*links("good::/good", value, "good::/good2")))
    assert "invalid symlink specification" in line
    assert not any(program.root.iterdir())


def test_values_are_split_at_commas(program: Program) -> None:
    assert program.run(*links("a::/x, b::/y")).ok
    assert (os.readlink(program.root / "x"), os.readlink(program.root / "y")) == ("a", "b")


def test_the_same_value_twice_is_one_link_and_the_last_of_two_texts_stays(program: Program) -> None:
    result = program.run("--debug", *links("a::/l", "a::/l"))
    assert result.stderr.count("link made") == 1
    assert program.run(*links("b::/m", "c::/m")).ok
    assert os.readlink(program.root / "m") == "c"


def test_names_and_texts_at_the_limits(program: Program) -> None:
    assert program.run(*links("x" * 4095 + "::/" + "n" * 255)).ok
    assert os.readlink(program.root / ("n" * 255)) == "x" * 4095
    assert "ENAMETOOLONG" in one_error(program.run(*links("t::/" + "n" * 256)))
    assert "ENAMETOOLONG" in one_error(program.run(*links("t::/" + "d/" * 2048 + "l")))


# -- idempotence ---------------------------------------------------------------------------------------------------


def test_a_second_run_changes_no_inode_and_no_time(program: Program) -> None:
    words = links("a::/d/x", "../b::/d/y")
    assert program.run(*words).ok
    before = [(p, os.lstat(p).st_ino, os.lstat(p).st_ctime_ns) for p in sorted(program.root.rglob("*"))]
    assert program.run(*words).ok
    assert [(p, os.lstat(p).st_ino, os.lstat(p).st_ctime_ns) for p in sorted(program.root.rglob("*"))] == before
    assert len(before) == 3


@pytest.mark.security
def test_existence_is_asked_in_the_container_not_on_the_host(program: Program) -> None:
    canary = program.folder / "canary"
    canary.mkdir()
    (canary / "l").symlink_to("t")
    (program.root / "d").symlink_to(canary)  # the reference sees the host's link here, and makes none
    (program.root / str(canary).lstrip("/")).mkdir(parents=True)
    assert program.run(*links("t::/d/l")).ok
    assert os.readlink(program.root / str(canary).lstrip("/") / "l") == "t"


# -- what is in the way --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", ["symlink d/l other", "symlink d/l /dangling", "file d/l content", "symlink d/l l"])
def test_a_link_or_file_is_replaced(program: Program, old: str) -> None:
    rootfs.tree(program.root, old)
    result = program.run(*links("t::/d/l"))
    assert (result.rc, result.stderr) == (0, "")
    assert os.readlink(program.root / "d/l") == "t"
    assert os.listdir(program.root / "d") == ["l"]


@pytest.mark.parametrize("old", ["symlink d/l other", "file d/l content 0600", "symlink d/l /dangling"])
def test_a_later_failure_brings_the_very_old_object_back(program: Program, old: str) -> None:
    rootfs.tree(program.root, old)
    (program.root / "dir").mkdir()
    before, inode = snapshot(program.root), os.lstat(program.root / "d/l").st_ino
    one_error(program.run(*links("t::/d/l", "u::/d/l", "new::/d/n", "t::/dir")))
    assert snapshot(program.root) == before
    assert os.lstat(program.root / "d/l").st_ino == inode


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(os.path.relpath(path))


IN_THE_WAY: dict[str, tuple[Callable[[Path], object], str]] = {
    "an empty directory": (lambda path: path.mkdir(), "EISDIR"),
    "a full directory": (lambda path: (path / "x").mkdir(parents=True), "EISDIR"),
    "a FIFO": (os.mkfifo, "EEXIST"),
    "a socket": (_socket, "EEXIST"),
    "a device": (lambda path: os.mknod(path, 0o20666, os.makedev(1, 3)), "EEXIST"),
}


@pytest.mark.parametrize(("make", "errno"), IN_THE_WAY.values(), ids=IN_THE_WAY)
def test_anything_else_in_the_way_is_an_error_and_stays(
    program: Program, make: Callable[[Path], object], errno: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(program.root)
    make(program.root / "l")
    before = snapshot(program.root)
    result = program.run(*links("t::/first/x", "t::/l"), timeout=3)
    line = one_error(result)
    assert f"create-symlinks: symlink /l -> t: {errno}" in line
    assert snapshot(program.root) == before


@pytest.mark.parametrize("spec", ["file d content", "symlink d dangling", "symlink d d", "fifo d", "null d"])
def test_a_parent_that_is_no_directory_is_an_error(program: Program, spec: str) -> None:
    rootfs.tree(program.root, spec.replace("null d", "char d 1 3"))
    before = snapshot(program.root)
    line = one_error(program.run(*links("t::/new/l", "t::/d/l"), timeout=3))
    assert "ENOTDIR" in line or "ELOOP" in line
    assert snapshot(program.root) == before


@pytest.fixture
def proc_in(program: Program) -> Iterator[Path]:
    """A procfs in the root, as runtimes mount one; its `1` and `self` are processes whose root is the host's."""
    (program.root / "proc").mkdir()
    subprocess.run(["mount", "--bind", "/proc", program.root / "proc"], check=True)
    yield program.root / "proc"
    subprocess.run(["umount", program.root / "proc"], check=True)


LEADING_OUT = [
    "/canary",
    "../../../../../../canary",
    "/proc/1/root/canary",
    f"/proc/{os.getpid()}/root/canary",
    "/proc/self/root/canary",
    "/proc/thread-self/root/canary",
    "/proc/self/cwd",
]


@pytest.mark.security
@pytest.mark.parametrize("link", LEADING_OUT, ids=lambda text: re.sub(r"\d\d+", "PID", text))
@pytest.mark.parametrize("at", ["a", "a/b"])
def test_a_parent_that_leads_out_never_touches_the_host(program: Program, link: str, at: str, proc_in: Path) -> None:
    canary = program.folder / "canary"
    canary.mkdir()
    (program.root / at).parent.mkdir(exist_ok=True)
    (program.root / at).symlink_to(link.replace("/canary", str(canary)))
    for path in (f"/{at}/l", f"/{at}/deep/l"):
        result = program.run(*links(f"t::{path}"))
        assert "/proc/" not in link or re.search("ELOOP|EACCES", one_error(result))  # pid 1 may be hidden from us
    assert not any(canary.iterdir())
    assert not (program.root / "l").is_symlink()


# -- parents -------------------------------------------------------------------------------------------------------


def test_missing_parents_are_made_0755_and_root_owned(program: Program) -> None:
    assert program.run(*links("t::/a/b/c/l")).ok
    for name in ("a", "a/b", "a/b/c"):
        st = (program.root / name).stat()
        assert (st.st_mode & 0o7777, st.st_uid, st.st_gid) == (0o755, 0, 0)


def test_made_parents_are_unmade_and_others_stay(program: Program) -> None:
    rootfs.tree(program.root, "dir a 700\ndir dir")
    before = snapshot(program.root)
    one_error(program.run(*links("t::/a/b/c/l", "t::/x/y/l", "t::/dir")))
    assert snapshot(program.root) == before


def test_links_below_a_usr_merged_parent_are_made_where_it_leads(program: Program) -> None:
    rootfs.tree(program.root, "dir usr/lib\nsymlink lib usr/lib\nsymlink lib64 /lib")
    assert program.run(*links("t::/lib/x", "t::/lib64/y")).ok
    assert sorted(os.listdir(program.root / "usr/lib")) == ["x", "y"]


# -- --link-if -----------------------------------------------------------------------------------------------------

NODES = {
    "present": ("/dev/nvidia0", "file dev/nvidia0", True),
    "a directory": ("/dev/dri", "dir dev/dri", True),
    "through a link": ("/dev/nv", "file dev/nvidia0\nsymlink dev/nv /dev/nvidia0", True),
    "absent": ("/dev/nvidia1", "file dev/nvidia0", False),
    "no parent": ("/none/nvidia0", "dir dev", False),
    "below a file": ("/dev/nvidia0/x", "file dev/nvidia0", False),
    "dangling link": ("/dev/nv", "dir dev\nsymlink dev/nv gone", False),
    "looping link": ("/dev/nv", "dir dev\nsymlink dev/nv nv", False),
    "a FIFO": ("/dev/f", "fifo dev/f", True),
    "exists only on the host": ("/dev/null", "dir dev", False),
    "link to the host's": ("/dev/nv", "dir dev\nsymlink dev/nv /proc/1/root/dev/null", False),
}


@pytest.mark.parametrize(("node", "tree", "made"), NODES.values(), ids=NODES)
def test_link_if_asks_for_its_node_in_the_container(program: Program, node: str, tree: str, made: bool) -> None:
    rootfs.tree(program.root, tree)
    result = program.run(HOOK, "--link-if", f"{node}=t::/l", timeout=3)
    assert (result.rc, result.stderr) == (0, "")
    assert os.path.lexists(program.root / "l") is made


@pytest.mark.parametrize("value", ["t::/l", "dev=t::/l", "=t::/l", "/dev/x=", "/dev/x=t", "/dev/x=a::b::c", "/dev/x"])
def test_an_invalid_link_if_is_an_error(program: Program, value: str) -> None:
    line = one_error(program.run(HOOK, "--link", "a::/a", "--link-if", value))
    assert "invalid symlink specification" in line
    assert not any(program.root.iterdir())


def test_the_text_of_a_link_if_may_hold_an_equals_sign(program: Program) -> None:
    (program.root / "n").touch()
    assert program.run(HOOK, "--link-if", "/n=a=b::/l=m").ok
    assert os.readlink(program.root / "l=m") == "a=b"


# -- --dry-run -----------------------------------------------------------------------------------------------------


def test_dry_run_prints_what_is_left_to_do_and_changes_nothing(program: Program) -> None:
    rootfs.tree(program.root, "symlink right t\nsymlink wrong x\ndir dir")
    before = snapshot(program.root)
    result = program.run(*links("t::/right", "t::/wrong", "t::/new/l", "t:://new//l"), "--dry-run")
    assert (result.rc, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "create-symlinks: symlink /wrong -> t",
        "create-symlinks: symlink /new/l -> t",
    ]
    refused = program.run(*links("t::/dir"), "--dry-run")
    assert (refused.rc, refused.stdout) == (1, "")
    assert "symlink /dir -> t: EISDIR" in refused.stderr
    assert snapshot(program.root) == before


# -- numbers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tmpfs(program: Program) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m,nr_inodes=200000", "tmpfs", program.root], check=True)
    yield program.root
    subprocess.run(["umount", program.root], check=True)


@pytest.mark.kernel
@pytest.mark.parametrize("per_word", [1, 5000], ids=["one a word", "in lists"])
def test_a_hundred_thousand_links_take_seconds(program: Program, tmpfs: Path, per_word: int) -> None:
    count = 100_000 if per_word > 1 else 40_000  # as many words as one command line takes
    values = [f"t::d/{i:x}" for i in range(count)]
    lists = [",".join(values[i : i + per_word]) for i in range(0, count, per_word)]
    words = [w for text in lists for w in ("-link", text)] if per_word > 1 else [f"-link={v}" for v in values]
    start = time.monotonic()
    result = program.run(HOOK, *words, timeout=60)
    assert (result.rc, result.stderr) == (0, "")
    assert time.monotonic() - start < 30
    assert len(os.listdir(tmpfs / "d")) == count


@pytest.mark.kernel
def test_a_full_file_system_is_one_error_and_everything_is_unmade(program: Program) -> None:
    with rootfs.tmpfs(program.root, "size=1m,nr_inodes=20"):
        before = snapshot(program.root)
        line = one_error(program.run(*links(*(f"t::/d/{i}" for i in range(40)))))
        assert "ENOSPC (the file system is full, or out of inodes)" in line
        assert snapshot(program.root) == before


@pytest.mark.kernel
def test_a_read_only_root_is_a_warning_for_each_link_and_an_error_with_strict(program: Program) -> None:
    rootfs.tree(program.root, "symlink right t\nfile wrong x")
    mount = f"mount --bind {program.root} {program.root}; mount -o remount,bind,ro {program.root}"
    state, values = program.state(), links("t::/right", "t::/wrong", "t::/new/l")
    soft = jail.run([program.entry(), *values], setup=mount, stdin=state)
    assert soft.rc == 0
    lines = soft.stderr.splitlines()
    assert [line.split("create-symlinks: ")[1].split(":")[0] for line in lines] == [
        "symlink /wrong -> t", "symlink /new/l -> t"]  # fmt: skip
    assert all("left out, read-only file system (EROFS)" in line and "level=warning" in line for line in lines)
    strict = jail.run([program.entry(), *values, "--strict"], setup=mount, stdin=state)
    assert "EROFS" in one_error(strict)


def test_what_another_run_left_behind_is_removed(program: Program) -> None:
    rootfs.tree(program.root, "dir d/.nvoci-tmp 700\nsymlink d/.nvoci-tmp/0 x\nfile d/.nvoci-tmp/1 y\nsymlink d/l old")
    assert program.run(*links("t::/d/l")).ok
    assert os.listdir(program.root / "d") == ["l"]


def test_two_runs_at_once_both_succeed(program: Program) -> None:
    values = [f"t::/d/{i}" for i in range(200)]
    rootfs.tree(program.root, "\n".join(f"symlink d/{i} old" for i in range(200)))
    (program.folder / "state").write_bytes(program.state())
    entry = program.entry()
    with (program.folder / "state").open("rb") as a, (program.folder / "state").open("rb") as b:
        both = [subprocess.Popen([entry, *links(*values)], stdin=s, env=dict(proc.PLAIN_ENV)) for s in (a, b)]
        assert [p.wait(20) for p in both] == [0, 0]
    assert {os.readlink(p) for p in (program.root / "d").iterdir()} == {"t"}
    assert len(os.listdir(program.root / "d")) == 200
