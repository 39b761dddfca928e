"""lib.oracle sees what a bad hook does, and nothing else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from lib import proc, rootfs
from lib.oracle import Oracle, content_only, snapshot


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    canary = rootfs.tree(tmp_path / "canary", "dir d\nfile d/f data\nsymlink l d\nfifo p\nsparse s 1T")
    return canary, rootfs.busybox_rootfs(tmp_path / "r")


def oracle(trees: tuple[Path, Path], *planned: str) -> Oracle:
    return Oracle(canary=trees[0], rootfs=trees[1], planned=planned)


def test_nothing_done_is_nothing_found(trees: tuple[Path, Path]) -> None:
    with oracle(trees) as o:
        result = proc.run(["true"])
    assert o.check(result, ok=True) == []


def test_a_planned_change_is_allowed_with_its_directory_time(trees: tuple[Path, Path]) -> None:
    with oracle(trees, "etc/new", "opt/**") as o:
        (trees[1] / "etc/new").write_text("x")
        (trees[1] / "opt/a").mkdir(parents=True)
    assert o.check() == []


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "content": lambda c, r: (c / "d/f").write_text("DATA"),
    "mode": lambda c, r: (c / "d/f").chmod(0o600),
    "owner": lambda c, r: os.chown(c / "d/f", 1, 1),
    "mtime": lambda c, r: os.utime(c / "d/f", (1, 1)),
    "xattr": lambda c, r: os.setxattr(c / "d/f", "user.x", b"1"),
    "inode": lambda c, r: [(c / "n").write_text("data"), (c / "n").rename(c / "d/f")],
    "link": lambda c, r: subprocess.run(["ln", "-sfn", "e", c / "l"], check=True),
    "new name": lambda c, r: (c / "d/g").touch(),
    "gone": lambda c, r: (c / "p").unlink(),
    "image file": lambda c, r: (r / "etc/hosts").write_text("x"),
    "temporary": lambda c, r: (r / "etc/.nvoci-1").touch(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_seen(trees: tuple[Path, Path], damage: str) -> None:
    with oracle(trees) as o:
        DAMAGE[damage](*trees)
    assert o.check() != []


def test_a_temporary_is_a_violation_even_under_a_planned_directory(trees: tuple[Path, Path]) -> None:
    with oracle(trees, "etc/**") as o:
        (trees[1] / "etc/.nvoci-1").touch()
    assert [v for v in o.check() if "temporary" in v]


def test_mounts_processes_and_descriptors_left_are_seen(trees: tuple[Path, Path], tmp_path: Path) -> None:
    point = tmp_path / "m"
    point.mkdir()
    with oracle(trees) as o:
        subprocess.run(["mount", "-t", "tmpfs", "x", point], check=True)
        sleeper = subprocess.Popen(["sleep", "30"])
        fd = os.open(__file__, os.O_RDONLY)
    found = " ".join(o.check())
    subprocess.run(["umount", point], check=True)
    sleeper.kill()
    sleeper.wait()
    os.close(fd)
    assert "host mount added" in found
    assert "process left" in found
    assert "descriptor left" in found
    assert o.check() == []


def test_the_message_is_one_line_with_its_parts(trees: tuple[Path, Path]) -> None:
    with oracle(trees) as o:
        result = proc.run(["sh", "-c", "echo open etc/x: ELOOP >&2; exit 1"])
        silent = proc.run(["false"])
        chatty = proc.run(["sh", "-c", "echo a >&2; echo b >&2; exit 1"])
    assert o.check(result, ok=False, rc=1, parts=["etc/x", "ELOOP"]) == []
    assert o.check(result, ok=False, parts=["EPERM"]) != []
    assert o.check(result, ok=True) != []
    assert o.check(silent, ok=False) == ["failed without a message"]
    assert o.check(chatty, ok=False) != []


def test_a_deadline_passed_is_a_violation(trees: tuple[Path, Path]) -> None:
    with oracle(trees) as o:
        result = proc.run(["sleep", "10"], timeout=0.2)
    assert any("deadline" in v for v in o.check(result))


def test_content_only_is_equal_for_two_equal_trees(tmp_path: Path) -> None:
    one, two = (rootfs.busybox_rootfs(tmp_path / n) for n in "12")
    assert content_only(snapshot(one)) == content_only(snapshot(two))
    assert snapshot(one) != snapshot(two)
