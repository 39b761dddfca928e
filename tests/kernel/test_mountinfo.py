"""nvoci.linux.mountinfo against findmnt and statx."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nvoci.linux import mountinfo, syscalls
from nvoci.linux.fd import Fd
from tests.kernel import namespaced
from tests.kernel.namespaced import isolated

pytestmark = pytest.mark.kernel


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_own_mounts_agree_with_findmnt(tmp_path: Path) -> None:
    target = tmp_path / "a b\tc\\d\ne"
    target.mkdir()

    def body() -> None:
        syscalls.mount(b"so urce", os.fsencode(target), b"tmpfs", 0, None)
        mine = next(m for m in mountinfo.own_mounts() if m.target == os.fsencode(target))
        assert (mine.source, mine.fstype, mine.root) == (b"so urce", b"tmpfs", b"/")
        with Fd(os.open(target, os.O_PATH)) as fd:
            assert mountinfo.mount_id(fd.fileno()) == mine.id == syscalls.statx_mount(fd.fileno())[0]
        assert mountinfo.own_targets() == [m.target for m in mountinfo.own_mounts()]
        assert os.fsencode(target) in mountinfo.own_targets()
        listed = namespaced.sh("findmnt --kernel --noheadings --raw --output ID").split()
        assert sorted(map(int, listed)) == sorted(m.id for m in mountinfo.own_mounts())

    isolated(body)


def test_mountinfo_parser_takes_optional_fields_and_refuses_garbage() -> None:
    line = rb"36 35 98:0 /m\040n /mnt\011\134\012 rw,noatime master:1 shared:2 - ext3 /dev/\043root rw,errors=continue"
    (m,) = mountinfo.parse(line + b"\n")
    assert (m.id, m.parent, m.device, m.root, m.target) == (36, 35, b"98:0", b"/m n", b"/mnt\t\\\n")
    assert (m.options, m.propagation) == ([b"rw", b"noatime"], [b"master:1", b"shared:2"])
    assert (m.fstype, m.source, m.super_options) == (b"ext3", b"/dev/#root", b"rw,errors=continue")
    assert mountinfo.unescape(rb"\9\04\777\04x") == rb"\9\04\777\04x"
    for bad in (b"36", b"a b c d e f - g h i", b"36 35 98:0 / /mnt rw ext3 x y", b"1 2 3 4 5 6 - 7"):
        with pytest.raises(ValueError, match=r"mountinfo|invalid literal"):
            list(mountinfo.parse(bad))


def test_one_mount_is_found_in_a_table_and_what_it_lies_on() -> None:
    table = b"".join(
        b"%d %d 0:1 / /m%d rw - tmpfs 12 rw\n" % pair
        for pair in ((1, 1, 1), (12, 1, 12), (2, 12, 2), (120, 2, 120), (20, 1, 20))
    )
    for whole in (table, table.rstrip(b"\n")):
        found = [mountinfo.find(number, whole) for number in (1, 2, 12, 20, 120)]
        assert [one.target for one in found if one is not None] == [b"/m1", b"/m2", b"/m12", b"/m20", b"/m120"]
        assert [mountinfo.find(number, whole) for number in (0, 3, 112, 200)] == [None] * 4
        assert mountinfo.lineage(120, whole) == [120, 2, 12, 1]
        assert mountinfo.lineage(7, whole) == [7]
        assert mountinfo.tree_of(12, whole) == [12, 2, 120]
        assert mountinfo.ids(whole) == {1: 1, 12: 1, 2: 12, 120: 2, 20: 1}
    assert mountinfo.find(1, b"") is None


def test_every_mount_of_ours_is_found() -> None:
    table = mountinfo.own_table()
    parents = {one.id: one.parent for one in mountinfo.own_mounts()}
    for number, parent in parents.items():
        found = mountinfo.find(number, table)
        assert found is not None
        assert (found.id, found.parent) == (number, parent)
        assert mountinfo.lineage(number)[:2] in ([number, parent], [number])


def test_own_targets_are_read_of_any_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is asked of a line than that it has its fifth field: the rest is not looked at."""
    table = (
        b"36 35 98:0 /m /mnt\\040a rw - ext3 /dev/root rw\n37 35 98:0 / /mnt/b rw,noatime master:1 - x y z\n"
        b"38 35 0:5 / /mnt\\134\\012\\011x ro\n39 35 98:0 /\n\n"
    )
    monkeypatch.setattr(mountinfo.procfs, "read", lambda name, limit: table)
    assert mountinfo.own_targets() == [b"/mnt a", b"/mnt/b", b"/mnt\\\n\tx"]
    monkeypatch.setattr(mountinfo.procfs, "read", lambda name, limit: b"")
    assert mountinfo.own_targets() == []
