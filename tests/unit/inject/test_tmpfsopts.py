"""What a mounted tmpfs has, on the real kernel."""

from __future__ import annotations

import os

import pytest
from kernel import namespaced
from lib import session

from nvoci.inject import tmpfsopts
from nvoci.linux import mountinfo, syscalls
from nvoci.linux.fd import Fd

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

SAME = {
    "none": ("", ""),
    "size": ("size=64k", "size=65536"),
    "size, rounded up": ("size=1", "size=4096"),
    "hexadecimal": ("size=0x10000", "size=64k"),
    "octal": ("size=0200000", "size=64K"),
    "no limit": ("size=0", "size=0"),
    "per cent": ("size=10%", "size=10%"),
    "blocks": ("nr_blocks=16", "size=64k"),
    "inodes": ("nr_inodes=1k", "nr_inodes=1024"),
    "mode": ("mode=700", "mode=0700"),
    "default mode": ("", "mode=1777"),
    "owner": ("uid=7,gid=8", "gid=8,uid=7"),
    "the last wins": ("size=64k", "size=1m,size=64k"),
    "all": ("size=1m,mode=755,nr_inodes=5,uid=1", "uid=1,nr_inodes=5,size=1024k,mode=755"),
}
OTHER = {
    "smaller": ("size=64k", "size=128k"),
    "limited": ("size=64k", ""),
    "not limited": ("", "size=64k"),
    "inodes": ("nr_inodes=10", "nr_inodes=11"),
    "inodes limited": ("nr_inodes=10", ""),
    "mode": ("mode=700", "mode=755"),
    "mode given": ("mode=700", ""),
    "owner": ("uid=7", "uid=8"),
    "group given": ("gid=7", ""),
    "per cent": ("size=10%", "size=11%"),
    "not a number": ("size=64k", "size=x"),
}


@pytest.mark.parametrize(
    ("given", "asked", "expected"),
    [(*case, True) for case in SAME.values()] + [(*case, False) for case in OTHER.values()],
    ids=[*(f"same-{name}" for name in SAME), *(f"other-{name}" for name in OTHER)],
)
def test_a_tmpfs_has_the_options_or_not(given: str, asked: str, expected: bool) -> None:
    folder = os.fsencode(session.new_dir("tmpfs"))

    def body() -> bool:
        syscalls.mount(b"nvoci", folder, b"tmpfs", 0, given.encode())
        with Fd(os.open(folder, os.O_PATH)) as fd:
            one = mountinfo.find(mountinfo.mount_id(fd.fileno()))
            assert one is not None
            return tmpfsopts.has(one.super_options, os.fstatvfs(fd.fileno()), [w for w in asked.split(",") if w])

    assert namespaced.isolated(body) is expected
