"""Mount options of specifications, and what becomes of them."""

from __future__ import annotations

import pytest

from nvoci.inject import mountopts
from nvoci.linux import abi

RO, NOSUID, NODEV, NOEXEC = abi.MS_RDONLY, abi.MS_NOSUID, abi.MS_NODEV, abi.MS_NOEXEC

# options -> (flags, flags of the whole tree, recursive, propagation, left out)
CASES = {
    "": (0, 0, False, "private", ""),
    "bind": (0, 0, False, "private", ""),
    "rbind": (0, 0, True, "private", ""),
    "ro nosuid nodev rbind rprivate": (RO | NOSUID | NODEV, 0, True, "private", ""),
    "nosuid nodev rbind rprivate noexec": (NOSUID | NODEV | NOEXEC, 0, True, "private", ""),
    "rro rbind": (0, RO, True, "private", ""),
    "rro rnosuid rnodev rnoexec rbind": (0, RO | NOSUID | NODEV | NOEXEC, True, "private", ""),
    "ro rw": (0, 0, False, "private", ""),
    "rw ro": (RO, 0, False, "private", ""),
    "noexec exec nosuid suid nodev dev": (0, 0, False, "private", ""),
    "rro rrw": (0, 0, False, "private", ""),
    "slave": (0, 0, False, "slave", ""),
    "rslave rbind": (0, 0, True, "slave", ""),
    "rslave private": (0, 0, False, "private", ""),
    "rshared bind": (0, 0, False, "private", "rshared"),
    "runbindable": (0, 0, False, "private", "runbindable"),
    "defaults async relatime": (0, 0, False, "private", ""),
    "noatime sync ro": (RO, 0, False, "private", "noatime sync"),
    "idmap rbind": (0, 0, True, "private", "idmap"),
    "size=64k": (0, 0, False, "private", "size=64k"),
    "r": (0, 0, False, "private", "r"),
}


@pytest.mark.parametrize("text", CASES)
def test_options_of_a_bind_mount(text: str) -> None:
    found = mountopts.parse(text.split())
    propagation = {abi.MS_PRIVATE: "private", abi.MS_SLAVE: "slave"}[found.propagation]
    left_out = " ".join(found.left_out)
    assert (found.flags, found.all_flags, found.recursive, propagation, left_out) == CASES[text]
    assert found.data == []


TMPFS = {
    "size=64k mode=0700 uid=5 nr_inodes=10": ("size=64k mode=0700 uid=5 nr_inodes=10", ""),
    "size=50% ro": ("size=50%", ""),
    "size=": ("", "size="),
    "size=1k,mode=777": ("", "size=1k,mode=777"),
    "context=system_u:object_r:x:s0": ("", "context=system_u:object_r:x:s0"),
    "mpol=interleave tmpcopyup": ("", "mpol=interleave tmpcopyup"),
    "size=1k size=2k": ("size=1k size=2k", ""),
}


@pytest.mark.parametrize("text", TMPFS)
def test_options_of_a_tmpfs_are_those_that_cannot_smuggle_in_others(text: str) -> None:
    found = mountopts.parse(text.split(), tmpfs=True)
    assert (" ".join(found.data), " ".join(found.left_out)) == TMPFS[text]


BINDS = {
    ("", ""): True,
    ("", "ro"): True,
    ("none", "bind"): True,
    ("bind", ""): True,
    ("tmpfs", "rbind ro"): True,
    ("tmpfs", "size=1k"): False,
    ("proc", ""): False,
    ("overlay", "lowerdir=/a"): False,
}


@pytest.mark.parametrize(("kind", "options"), BINDS)
def test_what_is_a_bind_mount(kind: str, options: str) -> None:
    assert mountopts.is_bind(kind, options.split()) is BINDS[kind, options]


WORDS = {"": "rw", "ro": "ro", "ro nosuid": "ro,nosuid", "nodev": "rw,nodev", "rro rnoexec rbind": "ro,noexec"}


@pytest.mark.parametrize("text", WORDS)
def test_options_in_words(text: str) -> None:
    assert mountopts.parse(text.split()).words() == WORDS[text]
