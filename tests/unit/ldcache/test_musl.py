"""musl's path file: added to, remembered, taken out again. The witness is musl's own way to read it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from nvoci.ldcache import musl
from nvoci.ldcache.conf import CONF, conf_directories
from nvoci.linux import abi
from nvoci.linux.rootfs import Rootfs


def searched(text: bytes) -> list[bytes]:
    """ldso/dynlink.c, path_open(): strspn and strcspn of `:\\n`."""
    return [part for part in text.replace(b":", b"\n").split(b"\n") if part]


MERGED = {
    "default": (musl.DEFAULT, [b"/opt"], b"/lib\n/usr/local/lib\n/usr/lib\n/opt\n"),
    "there already": (b"/a\n/opt\n", [b"/opt"], b"/a\n/opt\n"),
    "there, by colons": (b"/a:/opt:/b", [b"/opt"], b"/a:/opt:/b"),
    "no newline at the end": (b"/a", [b"/opt"], b"/a\n/opt\n"),
    "empty": (b"", [b"/opt"], b"/opt\n"),
    "twice": (b"/a\n", [b"/opt", b"/opt"], b"/a\n/opt\n"),
    "several, in order": (b"/a\n", [b"/z", b"/a", b"/b"], b"/a\n/z\n/b\n"),
    "nothing to add": (b"/a", [], b"/a"),
    "a part of a name is none": (b"/opt2\n/x/opt\n", [b"/opt"], b"/opt2\n/x/opt\n/opt\n"),
    "a comment is a name to musl": (b"# /opt\n", [b"/opt"], b"# /opt\n/opt\n"),
}


@pytest.mark.parametrize("shape", MERGED)
def test_directories_are_added_behind_the_images_own(shape: str) -> None:
    old, directories, wanted = MERGED[shape]
    new, added = musl.merge(old, directories)
    assert new == wanted
    assert added == [d for d in dict.fromkeys(directories) if d not in searched(old)]
    assert searched(new) == searched(old) + added


def test_a_second_call_changes_nothing() -> None:
    for old, directories, _ in MERGED.values():
        new, added = musl.merge(old, directories)
        assert musl.merge(new, directories, added) == (new, added)


def test_the_folder_of_an_earlier_driver_is_taken_out() -> None:
    old, added = musl.merge(b"/a:/b", [b"/driver-1", b"/c"])
    assert musl.merge(old, [b"/driver-2", b"/c"], added) == (b"/a:/b\n/driver-2\n/c\n", [b"/driver-2", b"/c"])


def test_the_images_own_line_of_the_same_name_stays() -> None:
    """It was there before: nothing was added, so nothing is taken out."""
    new, added = musl.merge(b"/driver\n/a\n", [b"/driver"])
    assert (new, added) == (b"/driver\n/a\n", [])
    assert musl.merge(new, [], added)[0] == b"/driver\n/a\n"


def test_only_the_last_line_of_a_name_is_ours() -> None:
    assert musl.merge(b"/x\n/a\n/x\n", [], [b"/x"])[0] == b"/x\n/a\n"


def test_a_file_that_somebody_has_changed_meanwhile_is_taken_as_it_is() -> None:
    new, added = musl.merge(b"/a\n", [b"/x", b"/y"])
    assert musl.merge(b"/a\n/y\n/new\n", [b"/z"], added) == (b"/a\n/new\n/z\n", [b"/z"])
    assert musl.merge(b"", [b"/z"], added) == (b"/z\n", [b"/z"])
    assert musl.merge(new + b"/x:/q", [], added)[0] == b"/a\n/x:/q"


@pytest.mark.parametrize("seed", range(30))
def test_any_sequence_of_drivers_leaves_what_the_last_one_alone_leaves(seed: int) -> None:
    source = random.Random(seed)
    names = [b"/%c" % c for c in b"abcdefg"]
    separators = [b"\n", b":", b"\n\n"]
    image = b"".join(source.choice(names) + source.choice(separators) for _ in range(source.randrange(5)))
    image += source.choice([b"", b"/end", b"/end\n"])
    text, added = image, []
    for _ in range(6):
        last = source.sample(names, source.randrange(4))
        text, added = musl.merge(text, last, added)
        assert set(last) <= set(searched(text))
    assert searched(text) == searched(musl.merge(image, last)[0])


def test_the_note_is_read_back_and_is_a_comment_to_ldconfig(tmp_path: Path) -> None:
    added = [b"/opt/nv", b"/with space", b"/\xff", b"/a: b"]
    text = musl.note(added) + b"/opt/nv\n"
    assert musl.noted(text) == added
    (tmp_path / "etc").mkdir()
    (tmp_path / CONF.decode()[1:]).write_bytes(text)
    assert conf_directories(Rootfs.open(str(tmp_path))) == [b"/opt/nv"]
    assert musl.noted(b"/opt\n# something else\n") == []
    assert musl.note([]) == b""


def test_the_file_is_named_as_musl_names_it() -> None:
    assert f"etc/ld-musl-{abi.MACHINE}.path".encode() == musl.PATH
