"""chmod: twelve bits, resolved in the container's root, the first error, undone."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
from lib import jail, rootfs
from unit.hook.hooktools import Program, one_error, snapshot


def chmod(mode: str, *paths: str) -> list[str]:
    return ["chmod", "--mode", mode, *(word for path in paths for word in ("--path", path))]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


MODES = {"755": 0o755, "0": 0, "0644": 0o644, "4755": 0o4755, "2755": 0o2755, "1777": 0o1777, "7777": 0o7777,
         "00000640": 0o640, " 600 ": 0o600}  # fmt: skip


@pytest.mark.parametrize("text", MODES)
@pytest.mark.parametrize("kind", ["file x", "dir x", "fifo x", "char x 1 3"])
def test_all_twelve_bits_are_set(program: Program, text: str, kind: str) -> None:
    rootfs.tree(program.root, kind)
    (program.root / "x").chmod(0o123)
    result = program.run(*chmod(text, "/x"), timeout=3)
    assert (result.rc, result.stderr) == (0, "")
    assert mode_of(program.root / "x") == MODES[text]


BAD_MODES = {
    "missing": (["chmod", "--path", "/x"], "a non-empty mode must be specified"),
    "empty": (chmod("", "/x"), "a non-empty mode must be specified"),
    "white space": (chmod(" \t", "/x"), "a non-empty mode must be specified"),
    **{text: (chmod(text, "/x"), "failed to parse mode")
       for text in ("8", "rwx", "-1", "+755", "0o755", "0x1ff", "u+x", "10000", "77777777777777777777", "7 5", "\u0667",
                    "1.5", "755\n644")},
    "no path in a list": (chmod("755", ""), "paths must not be empty"),
    "an empty path in a list": (chmod("755", "/x,,/y"), "paths must not be empty"),
    "a path of white space": (chmod("755", " "), "paths must not be empty"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "reason"), BAD_MODES.values(), ids=BAD_MODES)
def test_a_wrong_mode_or_path_is_an_error_and_nothing_changes(program: Program, words: list[str], reason: str) -> None:
    rootfs.tree(program.root, "file x\nfile y")
    before = snapshot(program.root)
    assert f"chmod: {reason}" in one_error(program.run(*words))
    assert snapshot(program.root) == before


def test_paths_are_split_at_commas_and_may_be_relative(program: Program) -> None:
    rootfs.tree(program.root, "file x\nfile d/y\nfile z")
    assert program.run(*chmod("700", "x, /d/y", "//z")).ok
    assert [mode_of(program.root / n) for n in ("x", "d/y", "z")] == [0o700] * 3


def test_no_path_is_nothing_to_do(program: Program) -> None:
    assert program.run(*chmod("755")).ok


@pytest.mark.parametrize("path", ["/none", "/none/x", "/file/x", "/dangling"])
def test_a_path_that_is_not_there_is_passed_over(program: Program, path: str) -> None:
    rootfs.tree(program.root, "file file\nsymlink dangling gone\nfile x")
    result = program.run(*chmod("700", path, "/x"))
    assert (result.rc, result.stderr) == (0, "")
    assert mode_of(program.root / "x") == 0o700


def test_the_right_mode_is_left_alone(program: Program) -> None:
    rootfs.tree(program.root, "file x")
    (program.root / "x").chmod(0o4711)
    before = os.lstat(program.root / "x").st_ctime_ns
    assert program.run(*chmod("4711", "/x")).ok
    assert os.lstat(program.root / "x").st_ctime_ns == before


# -- never the host ------------------------------------------------------------------------------------------------


@pytest.mark.security
@pytest.mark.parametrize("text", ["{canary}", "../../../../../../../../{canary}", "/proc/1/root{canary}",
                                  "/proc/self/root{canary}", "/proc/thread-self/root{canary}"])  # fmt: skip
@pytest.mark.parametrize("at", ["l", "d/l", "parent"])
def test_a_link_of_the_image_never_leads_to_the_host(program: Program, text: str, at: str) -> None:
    canary = program.folder / "canary"
    canary.mkdir()
    (canary / "secret").write_text("x")
    (canary / "secret").chmod(0o600)
    (program.root / "d").mkdir()
    (program.root / "proc").mkdir()
    subprocess.run(["mount", "--bind", "/proc", program.root / "proc"], check=True)
    aim = canary if at == "parent" else canary / "secret"
    (program.root / at).symlink_to(text.format(canary=aim))
    path = "/parent/secret" if at == "parent" else f"/{at}"
    try:
        result = program.run(*chmod("777", path))
    finally:
        subprocess.run(["umount", program.root / "proc"], check=True)
    assert "/proc/" not in text or re.search("ELOOP|EACCES", one_error(result))  # pid 1 may be hidden from us
    assert mode_of(canary / "secret") == 0o600


def test_a_link_inside_the_root_is_followed_there(program: Program) -> None:
    rootfs.tree(program.root, "file etc/x\nsymlink l /etc/x\nsymlink up ../../../etc/x")
    assert program.run(*chmod("600", "/l")).ok
    assert mode_of(program.root / "etc/x") == 0o600
    assert program.run(*chmod("640", "/up")).ok
    assert mode_of(program.root / "etc/x") == 0o640


@pytest.mark.security
@pytest.mark.kernel
def test_the_hosts_own_device_node_is_refused(program: Program) -> None:
    setup = f"touch {program.root}/null; mount --bind /dev/null {program.root}/null"
    before = mode_of(Path("/dev/null"))
    result = jail.run([program.entry(), *chmod("600", "/null")], setup=setup, stdin=program.state())
    assert "is the host's own device node" in one_error(result)
    assert mode_of(Path("/dev/null")) == before


# -- the first error, and undo -------------------------------------------------------------------------------------


def test_the_first_error_wins_and_what_was_done_is_undone(program: Program) -> None:
    rootfs.tree(program.root, "file a\nfile b\nsymlink loop loop\nfile c")
    for name, mode in (("a", 0o4711), ("b", 0o1644), ("c", 0o600)):
        (program.root / name).chmod(mode)
    before = snapshot(program.root)
    line = one_error(program.run(*chmod("755", "/a", "/b", "/loop", "/" + "n" * 256, "/c")))
    assert "chmod: chmod 0755 /loop: ELOOP" in line
    assert snapshot(program.root) == before


@pytest.mark.kernel
def test_a_read_only_root_is_a_warning_and_an_error_with_strict(program: Program) -> None:
    rootfs.tree(program.root, "file x")
    setup = f"mount --bind {program.root} {program.root}; mount -o remount,bind,ro {program.root}"
    soft = jail.run([program.entry(), *chmod("700", "/x")], setup=setup, stdin=program.state())
    assert soft.rc == 0
    assert "chmod 0700 /x: left out, read-only file system (EROFS)" in soft.stderr
    strict = jail.run([program.entry(), *chmod("700", "/x"), "--strict"], setup=setup, stdin=program.state())
    assert "EROFS" in one_error(strict)


def test_an_immutable_file_is_passed_over_as_the_reference_does(program: Program) -> None:
    rootfs.tree(program.root, "file x\nfile y")
    before = mode_of(program.root / "x")
    import subprocess

    if subprocess.run(["chattr", "+i", program.root / "x"], capture_output=True).returncode:
        pytest.skip("the file system of the temporary directory has no immutable attribute")
    try:
        result = program.run(*chmod("700", "/x", "/y"))
    finally:
        subprocess.run(["chattr", "-i", program.root / "x"], check=True)
    assert result.rc == 0
    assert (mode_of(program.root / "x"), mode_of(program.root / "y")) == (before, 0o700)


def test_dry_run_prints_what_would_change(program: Program) -> None:
    rootfs.tree(program.root, "file a\nfile b\nsymlink l a")
    (program.root / "a").chmod(0o700)
    (program.root / "b").chmod(0o600)
    before = snapshot(program.root)
    result = program.run(*chmod("700", "/a", "/b", "/l", "/none"), "--dry-run")
    assert (result.rc, result.stdout) == (0, "chmod: chmod 0700 /b\n")
    assert snapshot(program.root) == before
