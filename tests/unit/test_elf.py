"""ELF files as they are made, and as a stranger may make them. Second witness: readelf."""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lib import elfmaker

from nvoci import elf
from nvoci.elf import Elf, ElfError

OWNER = "NVIDIA Corporation"
NOTE = (".note.cuda.fwd_compatibility", OWNER, 1, b'{"format":1}')
MACHINES = [*elfmaker.MACHINES]


def notes(path: Path) -> list[tuple[bytes, int, bytes]]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return [(n.name, n.type, n.desc) for n in Elf(fd).section_notes(NOTE[0].encode())]
    finally:
        os.close(fd)


def open_elf(path: Path) -> Elf:
    """Without its needed libraries, which are read when they are asked for."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return Elf(fd)
    finally:
        os.close(fd)


def needed(path: Path) -> list[bytes]:
    with path.open("rb") as f:
        return Elf(f.fileno()).unsafe_needed()


def readelf(path: Path, *flags: str) -> str:
    if shutil.which("readelf") is None:
        pytest.skip("no readelf to ask")
    return subprocess.run(["readelf", "-W", *flags, path], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("machine", MACHINES)
def test_names_are_those_that_readelf_shows(tmp_path: Path, machine: str) -> None:
    path = elfmaker.make_so(tmp_path / "lib.so", "libx.so.1", ["liba.so.2", "libb.so"], machine)
    found, text = open_elf(path), readelf(path, "-d")
    assert [found.unsafe_soname] == [s.encode() for s in re.findall(r"soname: \[(.*)\]", text)] == [b"libx.so.1"]
    assert needed(path) == [s.encode() for s in re.findall(r"Shared library: \[(.*)\]", text)]
    em, bits, _, flags = elfmaker.MACHINES[machine]
    assert (found.machine, found.bits, found.flags, found.type, found.interp) == (em, bits, flags, 3, False)
    assert (found.endian, found.dynamic) == (elfmaker.MACHINES[machine][2], True)


@pytest.mark.parametrize("machine", MACHINES)
def test_notes_of_a_section_are_found_by_its_name(tmp_path: Path, machine: str) -> None:
    other = (".note.other", "Else", 7, b"x")
    path = elfmaker.make_so(tmp_path / "lib.so", "libx.so.1", machine=machine, notes=[other, NOTE])
    assert notes(path) == [(OWNER.encode(), 1, b'{"format":1}')]
    assert OWNER in readelf(path, "-n")


def test_notes_of_segments_are_found(tmp_path: Path) -> None:
    path = elfmaker.make_so(tmp_path / "lib.so", "libx.so.1", notes=[NOTE, (".note.b", "B", 2, b"abcde")])
    with open(path, "rb") as f:
        found = Elf(f.fileno()).segment_notes()
    assert [(n.name, n.type, n.desc) for n in found] == [(OWNER.encode(), 1, NOTE[3]), (b"B", 2, b"abcde")]


def test_interpreter_is_seen(tmp_path: Path) -> None:
    program = elfmaker.make_probe(tmp_path / "p", ["liba.so"], "/lib64/ld.so")
    assert open_elf(program).interp
    assert not open_elf(elfmaker.make_so(tmp_path / "s", "s")).interp


def test_libraries_of_this_host_read_as_readelf_reads_them() -> None:
    folder = Path("/usr/lib/x86_64-linux-gnu")
    paths = [p for p in sorted(folder.glob("lib*.so.*")) if p.is_file() and not p.is_symlink()][:25]
    for path in paths:
        found, text = open_elf(path), readelf(path, "-d")
        sonames = [s.encode() for s in re.findall(r"soname: \[(.*)\]", text)]
        assert [found.unsafe_soname] == (sonames or [None])
        assert needed(path) == [s.encode() for s in re.findall(r"Shared library: \[(.*)\]", text)]


# -- malformed --------------------------------------------------------------------------------------------------


def put(offset: int, fmt: str, value: int) -> Callable[[bytearray], None]:
    return lambda data: struct.pack_into("<" + fmt, data, offset, value)


def segment(kind: int, field: int, fmt: str, value: int) -> Callable[[bytearray], None]:
    """Change a field (its offset in Elf64_Phdr) of the first segment of a kind."""

    def change(data: bytearray) -> None:
        start, count = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 56)[0]
        for i in range(count):
            at = start + 56 * i
            if struct.unpack_from("<I", data, at)[0] == kind:
                struct.pack_into("<" + fmt, data, at + field, value)
                return
        raise AssertionError(kind)

    return change


def dynamic(tag: int, value: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        at = data.index(struct.pack("<QQ", 14, 1)[:8])  # DT_SONAME is made first, or found by tag below
        while struct.unpack_from("<Q", data, at)[0] != tag:
            at += 16
        struct.pack_into("<Q", data, at + 8, value)

    return change


def note_field(field: int, value: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        at = data.index(OWNER.encode()) - 12
        struct.pack_into("<I", data, at + 4 * field, value)

    return change


def cut(size: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        del data[size:]

    return change


HUGE = (1 << 64) - 1
MALFORMED: dict[str, Callable[[bytearray], None]] = {
    "empty": cut(0), "one byte": cut(1), "magic only": cut(4), "half an ident": cut(10), "half a header": cut(63),
    "header only": cut(64), "wrong magic": put(0, "B", 0x7E), "class 0": put(4, "B", 0), "class 3": put(4, "B", 3),
    "byte order 0": put(5, "B", 0), "other byte order": put(5, "B", 2),
    "version 9": put(6, "B", 9), "phoff beyond the file": put(32, "Q", 1 << 40), "phoff huge": put(32, "Q", HUGE),
    "phnum 0xffff": put(56, "H", 0xFFFF), "phentsize 0": put(54, "H", 0), "phentsize 1": put(54, "H", 1),
    "dynamic beyond the file": segment(2, 8, "Q", 1 << 40), "dynamic offset huge": segment(2, 8, "Q", HUGE),
    "dynamic huge": segment(2, 32, "Q", HUGE), "dynamic 1 GiB": segment(2, 32, "Q", 1 << 30),
    "strtab wild": dynamic(5, 0xDEAD0000), "strtab huge": dynamic(5, HUGE), "strsz 0": dynamic(10, 0),
    "soname outside": dynamic(14, 1 << 32), "soname at the end": dynamic(14, HUGE),
    "load segment elsewhere": segment(1, 16, "Q", 1 << 50), "load segment empty": segment(1, 32, "Q", 0),
}  # fmt: skip
MALFORMED_NOTES: dict[str, Callable[[bytearray], None]] = {
    "shoff beyond the file": put(40, "Q", 1 << 40), "shoff huge": put(40, "Q", HUGE), "shentsize 1": put(58, "H", 1),
    "shnum 0xffff": put(60, "H", 0xFFFF), "shnum 0 without extension": put(60, "H", 0),
    "shstrndx outside": put(62, "H", 999), "shstrndx extended to nothing": put(60, "I", 0xFFFF0000),
    "namesz 2^32-1": note_field(0, 0xFFFFFFFF), "descsz 2^32-1": note_field(1, 0xFFFFFFFF),
}  # fmt: skip


MALFORMED_NEEDED = {"outside": 1 << 32, "at the end": HUGE}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return elfmaker.make_so(tmp_path / "lib.so", "libx.so.1", notes=[NOTE])


def changed(path: Path, change: Callable[[bytearray], None]) -> Path:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("shape", MALFORMED)
def test_malformed_file_is_one_error(good: Path, shape: str) -> None:
    path = changed(good, MALFORMED[shape])
    start = time.monotonic()
    with pytest.raises(ElfError):
        open_elf(path)
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("shape", MALFORMED_NOTES)
def test_malformed_notes_are_one_error(good: Path, shape: str) -> None:
    with pytest.raises(ElfError):
        notes(changed(good, MALFORMED_NOTES[shape]))


@pytest.mark.parametrize("shape", MALFORMED_NEEDED)
def test_malformed_needed_library_is_an_error_for_who_asks(tmp_path: Path, shape: str) -> None:
    """The soname is good, and most who read a file want no more."""
    path = elfmaker.make_so(tmp_path / "lib.so", needed=["liba.so.2"])
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<QQ", 1, 1))
    struct.pack_into("<Q", data, at + 8, MALFORMED_NEEDED[shape])
    path.write_bytes(data)
    assert open_elf(path).unsafe_soname is None
    with pytest.raises(ElfError, match="outside of its table"):
        needed(path)


def test_program_without_a_dynamic_section_has_none() -> None:
    found = open_elf(Path("/bin/busybox"))
    assert (found.dynamic, found.unsafe_soname, found.unsafe_needed()) == (False, None, [])


def test_empty_dynamic_segment_counts_as_none(good: Path) -> None:
    assert not open_elf(changed(good, segment(2, 32, "Q", 0))).dynamic


def test_section_number_that_does_not_fit_is_in_section_0(good: Path) -> None:
    def extend(data: bytearray) -> None:
        shoff = struct.unpack_from("<Q", data, 40)[0]
        count, index = struct.unpack_from("<HH", data, 60)
        struct.pack_into("<HH", data, 60, 0, 0xFFFF)
        struct.pack_into("<Q", data, shoff + 32, count)
        struct.pack_into("<I", data, shoff + 40, index)

    assert notes(changed(good, extend)) == [(OWNER.encode(), 1, NOTE[3])]


def test_file_without_section_headers_has_no_section_notes(good: Path) -> None:
    assert notes(changed(good, put(40, "Q", 0))) == []


def test_string_without_end_and_too_long_string_are_errors(tmp_path: Path) -> None:
    long = elfmaker.make_so(tmp_path / "a", "x" * (elf.MAX_STRING + 1))
    with pytest.raises(ElfError, match="without end"):
        open_elf(long)
    unterminated = elfmaker.make_so(tmp_path / "b", "libx.so.1")
    data = bytearray(unterminated.read_bytes())
    at = data.index(b"libx.so.1\0")
    struct.pack_into("<Q", data, data.index(struct.pack("<QQ", 10, len(b"\0libx.so.1\0"))) + 8, len(b"\0libx.so.1"))
    assert at > 0
    unterminated.write_bytes(data)
    with pytest.raises(ElfError, match="without end"):
        open_elf(unterminated)


@pytest.mark.parametrize("name", ["../../etc/x", "/etc/x", "", ".", "a b", "a\nb"])
def test_names_are_given_as_they_are(tmp_path: Path, name: str) -> None:
    assert open_elf(elfmaker.make_so(tmp_path / "lib.so", name)).unsafe_soname == name.encode()


def test_sparse_file_of_1_tib_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as f:
        f.truncate(1 << 40)
    with pytest.raises(ElfError, match="magic"):
        open_elf(path)


def test_every_truncation_is_an_error_or_the_whole_answer(good: Path) -> None:
    data = good.read_bytes()
    for size in range(len(data)):
        good.write_bytes(data[:size])
        try:
            assert open_elf(good).unsafe_soname == b"libx.so.1"
            found = notes(good)
        except ElfError:
            continue
        assert found == [(OWNER.encode(), 1, NOTE[3])]


def test_random_damage_is_never_another_exception(good: Path) -> None:
    source, original = random.Random(7), good.read_bytes()
    for _ in range(2000):
        data = bytearray(original)
        for _ in range(source.randint(1, 8)):
            data[source.randrange(len(data))] = source.choice((0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)))
        good.write_bytes(data)
        try:
            notes(good)
            with good.open("rb") as f:
                Elf(f.fileno()).segment_notes()
        except ElfError:
            continue
    assert elf.MAX_SECTIONS <= 4096
