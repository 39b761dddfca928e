"""Generated well-formed inputs, and the same with a little damage: a good one is read as it was made, a damaged one
keeps the target's contract. A normal run generates the same inputs each time."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import pytest
from fuzz import target_elf
from fuzz.registry import Target, load
from fuzz.target_cache import plain
from fuzz.trees import rooted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lib import elfmaker

from nvoci.ldcache.cache import HWCAP_EXTENSION, CacheError, Entry, encode, parse, redirected
from nvoci.ldcache.conf import conf_directories

TARGETS = load()
GENERATED = settings(
    max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
Damage = list[tuple[int, bytes]]

strings = st.binary(max_size=40).map(lambda b: b.replace(b"\0", b"."))
damage = st.lists(
    st.tuples(st.integers(0, 1 << 12), st.sampled_from([b"\0", b"\xff", b"\xff" * 4, bytes(4), b"\x80", b""])),
    min_size=1,
    max_size=4,
)
entries = st.builds(
    lambda flags, soname, path, osversion, legacy, level, name: Entry(
        flags, soname, path, osversion, legacy if name is None else HWCAP_EXTENSION | level << 32, name
    ),
    st.integers(-(1 << 31), (1 << 31) - 1), strings, strings, st.integers(0, (1 << 32) - 1),
    st.integers(0, (1 << 62) - 1), st.integers(0, 1023), st.none() | strings,
)  # fmt: skip


def damaged(data: bytes, places: Damage) -> bytes:
    """The bytes put over the data's own at each place; an empty piece cuts it there."""
    out = bytearray(data)
    for place, piece in places:
        at = place % (len(out) + 1)
        if piece:
            out[at : at + len(piece)] = piece
        else:
            del out[at:]
    return bytes(out)


def keeps_its_contract(target: Target, data: bytes, places: Damage) -> None:
    target.run(data)
    target.run(damaged(data, places))


@GENERATED
@given(st.lists(entries, max_size=12), strings, damage)
def test_a_cache_is_read_as_it_was_written(made: list[Entry], generator: bytes, places: Damage) -> None:
    data = encode(made, generator)
    cache = parse(data)
    assert [plain(e) for e in cache.entries] == [plain(e) for e in made]
    assert cache.known
    assert cache.unsafe_generator == generator
    keeps_its_contract(TARGETS["ld.so.cache"], data, places)


@GENERATED
@given(st.lists(entries, max_size=8), st.dictionaries(strings, strings, max_size=4))
def test_a_redirected_cache_differs_in_its_paths_alone(made: list[Entry], other: dict[bytes, bytes]) -> None:
    other |= {e.unsafe_path: b"/new" for e in made[:2]}
    found = parse(redirected(encode(made), other)).entries
    assert [e.unsafe_path for e in found] == [other.get(e.unsafe_path, e.unsafe_path) for e in made]
    assert [plain(e)[:2] + plain(e)[3:] for e in found] == [plain(e)[:2] + plain(e)[3:] for e in made]


@GENERATED
@given(st.lists(entries, min_size=1, max_size=4))
def test_the_other_byte_order_says_the_same(made: list[Entry]) -> None:
    made = [Entry(e.flags, e.unsafe_soname, e.unsafe_path, e.osversion, e.hwcap & ~HWCAP_EXTENSION) for e in made]
    try:
        found = parse(swapped(encode(made)))
    except CacheError:
        pytest.fail("the other byte order is refused")
    assert found.order == (">" if parse(encode(made)).order == "<" else "<")
    assert [plain(e) for e in found.entries] == [plain(e) for e in made]


def swapped(data: bytes) -> bytes:
    """A cache of this machine without an extension, in the other byte order."""
    own, other = ("<", ">") if data[28] & 3 == 2 else (">", "<")
    magic, count, length, _, _ = struct.unpack_from(own + "20sIIB3xI12x", data)
    out = struct.pack(other + "20sIIB3xI12x", magic, count, length, 3 if other == ">" else 2, 0)
    for entry in struct.iter_unpack(own + "iIIIQ", data[48 : 48 + 24 * count]):
        out += struct.pack(other + "iIIIQ", *entry)
    return out + data[len(out) :]


names = st.text(st.characters(min_codepoint=1, max_codepoint=0x7E), max_size=30)


@GENERATED
@given(
    st.none() | names, st.lists(names, max_size=5), st.sampled_from(sorted(elfmaker.MACHINES)),
    st.lists(st.tuples(names, st.integers(0, (1 << 32) - 1), st.binary(max_size=50)), max_size=3), damage,
)  # fmt: skip
def test_an_elf_file_is_read_as_it_was_made(
    soname: str | None, needed: list[str], machine: str, notes: list[tuple[str, int, bytes]], places: Damage
) -> None:
    section = target_elf.NOTE_SECTION.decode()
    with tempfile.TemporaryDirectory() as folder:
        made = [(section, *note) for note in notes]
        data = elfmaker.make_so(Path(folder) / "x", soname, needed, machine, notes=made).read_bytes()
    with target_elf.in_memory(data) as fd:
        elf, found, names_of, by_section, by_segment = target_elf.parse(fd)
    assert (elf.machine, elf.bits) == elfmaker.MACHINES[machine][:2]
    assert found == (None if soname is None else soname.encode())
    assert names_of == [name.encode() for name in needed]
    wanted = [(owner.encode(), kind, desc) for owner, kind, desc in notes]
    assert [(n.name, n.type, n.desc) for n in by_section] == wanted
    assert [(n.name, n.type, n.desc) for n in by_segment] == wanted
    keeps_its_contract(TARGETS["elf"], data, places)


parts = st.text("abcdefgh.-_0123456789", min_size=1, max_size=12).filter(lambda s: s.strip("."))
folders = st.lists(parts, min_size=1, max_size=4).map(lambda p: "/" + "/".join(p))
blanks = st.text(" \t\r\v\f", max_size=3)
noise = st.sampled_from(["", "# a comment", "hwcap 1 x", "relative/path", "\t", "include", "\r"])


@GENERATED
@given(st.lists(st.tuples(blanks, folders, blanks, noise), max_size=12), st.integers(0, 12), damage)
def test_directories_are_found_in_order_whatever_stands_between(
    lines: list[tuple[str, str, str, str]], split: int, places: Damage
) -> None:
    """Those from `split` on stand in another file that is included."""
    wanted = list(dict.fromkeys(folder.encode() for _, folder, _, _ in lines))
    own, other = lines[:split], lines[split:]
    text = "".join(f"{a}{folder}{b}\n{between}\n" for a, folder, b, between in own) + "include sub/*.conf\n@file "
    text += "etc/sub/x.conf\n" + "".join(f"{a}{folder}{b} #\n{between}\n" for a, folder, b, between in other)
    with rooted(b"etc/ld.so.conf")(text.encode()) as rootfs:
        assert conf_directories(rootfs) == wanted
    keeps_its_contract(TARGETS["ld.so.conf"], text.encode(), places)


@GENERATED
@given(st.lists(folders, max_size=5), st.lists(folders, max_size=5), st.sampled_from([":", "\n", ":\n"]), damage)
def test_a_path_file_of_musl_keeps_what_it_had(old: list[str], new: list[str], separator: str, places: Damage) -> None:
    data = (separator.join(old) + "\0\0" + "\0".join(new)).encode()
    keeps_its_contract(TARGETS["ld-musl.path"], data, places)
