"""What counts as a library, and as which. Second witness: what ldconfig enters in a cache for the same files."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from lib import elfmaker
from lib.rootfs import MACHINE, tree

from nvoci.ldcache import library
from nvoci.ldcache.cache import HWCAP_EXTENSION, parse
from nvoci.ldcache.library import Library, NotALibraryError, examine

LDCONFIG = "/sbin/ldconfig"
needs_ldconfig = pytest.mark.skipif(not os.path.exists(LDCONFIG), reason="no ldconfig on this host")
on_x86_64 = pytest.mark.skipif(MACHINE != "x86_64", reason="the table of ldconfig on x86-64")


def read(path: Path, machine: str = MACHINE, *, isa: bool = False) -> Library:
    with path.open("rb") as f:
        return examine(f.fileno(), isa, machine)


def ask(root: Path) -> dict[bytes, tuple[int, int]]:
    """What ldconfig makes of the libraries in /opt: soname -> (flags, hwcap)."""
    tree(root, "file etc/ld.so.conf /opt\\n")
    subprocess.run([LDCONFIG, "-r", root, "-C", "/etc/ld.so.cache"], check=True, capture_output=True, env={})
    entries = parse((root / "etc/ld.so.cache").read_bytes()).entries
    return {e.unsafe_soname: (e.flags, e.hwcap) for e in entries}


# name: (machine, class, needed libraries, interpreter)
KINDS = {
    "x86-64": ("x86_64", 64, [], None),
    "x32": ("x86_64", 32, [], None),
    "i386": ("i386", 32, [], None),
    "i386, of libc6": ("i386", 32, ["libx.so", "libc.so.6"], None),
    "i386, of libm": ("i386", 32, ["libm.so.6"], None),
    "i386, of the loader": ("i386", 32, ["ld-linux.so.2"], None),
    "i386, of libc5": ("i386", 32, ["libc.so.5"], None),
    "i386, a program": ("i386", 32, [], "/lib/ld-linux.so.2"),
    "i386, a program of musl": ("i386", 32, [], "/lib/ld-musl-i386.so.1"),
    "i386, libc5's program": ("i386", 32, [], "/lib/ld-linux.so.1"),
    "i386, as 64 bits": ("i386", 64, [], None),
    "aarch64": ("aarch64", 64, [], None),
    "ilp32": ("aarch64", 32, [], None),
    "arm": ("arm", 32, [], None),
    "ppc64le": ("ppc64le", 64, [], None),
    "riscv64": ("riscv64", 64, [], None),
    "s390x": ("s390x", 64, [], None),
    "mips": ("mips", 32, [], None),
}


def make(path: Path, kind: str, soname: str) -> Path:
    machine, bits, needed, interp = KINDS[kind]
    return elfmaker.make_so(path, soname, needed, machine, bits, interp=interp)


def ours(path: Path) -> int:
    """The flags; 0 where it is none."""
    try:
        return read(path).flags
    except NotALibraryError:
        return 0


@needs_ldconfig
@on_x86_64
def test_flags_are_those_of_ldconfig_where_ld_so_would_load_the_library(tmp_path: Path) -> None:
    names = {f"lib{i}.so.1".encode(): kind for i, kind in enumerate(KINDS)}
    paths = {s: make(tmp_path / "opt" / s.decode(), kind, s.decode()) for s, kind in names.items()}
    theirs = ask(tmp_path)
    found = {names[soname]: ours(path) for soname, path in paths.items()}
    wanted = {names[soname]: theirs.get(soname, (0, 0))[0] for soname in paths}
    foreign = {k for k in KINDS if KINDS[k][0] not in ("x86_64", "i386")} | {"i386, as 64 bits"}
    assert {k: v for k, v in found.items() if k not in foreign} == {k: v for k, v in wanted.items() if k not in foreign}
    assert {k for k, v in found.items() if v == 0} == foreign


@needs_ldconfig
@on_x86_64
def test_the_names_of_libc_itself_count_as_any_other(tmp_path: Path) -> None:
    names = ("libc.so.6", "libm.so.6", "ld-linux.so.2")
    paths = {n.encode(): elfmaker.make_so(tmp_path / "opt" / n, n, machine="i386") for n in names}
    assert {n: ours(path) for n, path in paths.items()} == {n: flags for n, (flags, _) in ask(tmp_path).items()}


FLAGS = {
    ("x86_64", "x86-64"): 0x303, ("x86_64", "x32"): 0x803, ("x86_64", "i386"): 0x1, ("x86_64", "i386, of libc6"): 0x3,
    ("aarch64", "aarch64"): 0xA03, ("aarch64", "arm"): 0x903,
}  # fmt: skip


@pytest.mark.parametrize(("machine", "kind"), FLAGS, ids=str)
def test_flags_by_machine(tmp_path: Path, machine: str, kind: str) -> None:
    found = read(make(tmp_path / "x", kind, "libx.so.1"), machine)
    assert (found.flags, found.unsafe_soname) == (FLAGS[machine, kind], b"libx.so.1")


ARM = {"hard": (0x05000400, 0x903), "soft": (0x05000200, 0xB03), "old": (0x04000000, 0x1), "neither": (0x05000000, 0x1)}


@pytest.mark.parametrize("abi", ARM)
def test_32_bit_arm_tells_its_floats(tmp_path: Path, abi: str) -> None:
    path = elfmaker.make_so(tmp_path / "x", "libx.so.1", machine="arm")
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 36, ARM[abi][0])
    path.write_bytes(data)
    assert read(path, "aarch64").flags == ARM[abi][1]


FOREIGN = [("x86_64", "aarch64"), ("aarch64", "x86-64"), ("aarch64", "i386"), ("x86_64", "ppc64le"),
           ("x86_64", "s390x"), ("aarch64", "ilp32")]  # fmt: skip


@pytest.mark.parametrize(("machine", "kind"), FOREIGN)
def test_another_machine_is_named(tmp_path: Path, machine: str, kind: str) -> None:
    with pytest.raises(NotALibraryError, match="for another machine"):
        read(make(tmp_path / "x", kind, "libx.so.1"), machine)


def test_a_library_without_a_soname_has_none(tmp_path: Path) -> None:
    assert read(elfmaker.make_so(tmp_path / "x", machine=MACHINE)).unsafe_soname is None


# -- what is none ---------------------------------------------------------------------------------------------------


def put(offset: int, layout: str, value: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        out = bytearray(data)
        struct.pack_into("<" + layout, out, offset, value)
        return bytes(out)

    return change


def without_dynamic(data: bytes) -> bytes:
    """PT_DYNAMIC becomes PT_NULL."""
    out, start = bytearray(data), struct.unpack_from("<Q", data, 32)[0]
    for at in range(start, start + 56 * struct.unpack_from("<H", data, 56)[0], 56):
        if struct.unpack_from("<I", data, at)[0] == elfmaker.PT_DYNAMIC:
            struct.pack_into("<I", out, at, 0)
    return bytes(out)


NONE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "text": (lambda data: b"INPUT(libx.so.1)" * 8, "no ELF magic"),
    "empty": (lambda data: b"", "no ELF magic"),
    "cut": (lambda data: data[:60], "truncated"),
    "relocatable": (put(16, "H", 1), r"not a shared object \(e_type 1\)"),
    "executable": (put(16, "H", 2), r"not a shared object \(e_type 2\)"),
    "core": (put(16, "H", 4), r"not a shared object \(e_type 4\)"),
    "no dynamic section": (without_dynamic, "no dynamic section"),
    "soname beyond the end": (
        lambda data: data.replace(struct.pack("<QQ", 14, 1), struct.pack("<QQ", 14, 1 << 40)), "outside",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", NONE)
def test_what_is_none_is_told_why(tmp_path: Path, kind: str) -> None:
    change, why = NONE[kind]
    path = elfmaker.make_so(tmp_path / "libx.so.1", "libx.so.1", machine=MACHINE)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(NotALibraryError, match=why):
        read(path)


@needs_ldconfig
@on_x86_64
def test_ldconfig_takes_none_of_them_either(tmp_path: Path) -> None:
    for i, (change, _) in enumerate(NONE.values()):
        path = elfmaker.make_so(tmp_path / f"opt/lib{i}.so.1", f"lib{i}.so.1")
        path.write_bytes(change(path.read_bytes()))
    elfmaker.make_so(tmp_path / "opt/libgood.so.1", "libgood.so.1")
    assert set(ask(tmp_path)) == {b"libgood.so.1"}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_other_byte_order_is_none(tmp_path: Path, machine: str) -> None:
    path = elfmaker.make_so(tmp_path / "x", "libx.so.1", machine=machine, endian="big")
    with pytest.raises(NotALibraryError, match="big endian"):
        read(path, machine)


# -- ISA levels -----------------------------------------------------------------------------------------------------

LEVELS = {"baseline": 0, "v2": 1, "v3": 2, "v4": 3}


def linked(path: Path, level: str) -> Path:
    """By the real linker, which writes .note.gnu.property."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = f"-Wl,-z,x86-64-{level},-soname,libq.so.1"
    argv = ["gcc", "-shared", "-nostdlib", "-o", path, flags, "-x", "c", "/dev/null"]
    if shutil.which("gcc") is None or subprocess.run(argv, capture_output=True).returncode:
        pytest.skip("no linker that marks ISA levels")
    return path


@needs_ldconfig
@on_x86_64
def test_isa_levels_are_those_of_ldconfig(tmp_path: Path) -> None:
    tree(tmp_path, "file etc/ld.so.conf /opt\\n")
    for level, value in LEVELS.items():
        path = linked(tmp_path / f"opt/glibc-hwcaps/x86-64-{level}/libq.so.1", level)
        assert read(path, isa=True).isa_level == value
        assert read(path).isa_level == 0, "not asked for"
    subprocess.run([LDCONFIG, "-r", tmp_path, "-C", "/etc/ld.so.cache"], check=True, capture_output=True, env={})
    entries = parse((tmp_path / "etc/ld.so.cache").read_bytes()).entries
    assert {e.hwcaps_name: e.hwcap for e in entries} == {
        f"x86-64-{name}".encode(): HWCAP_EXTENSION | value << 32 for name, value in LEVELS.items()
    }


def note(*properties: tuple[int, bytes]) -> tuple[str, str, int, bytes]:
    """NT_GNU_PROPERTY_TYPE_0 with {u32 type, u32 size, data padded to 8}."""
    desc = b"".join(struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8) for kind, data in properties)
    return ".note.gnu.property", "GNU", 5, desc


NEEDED = 0xC0008002
NOTES = {
    "none": ([], 0),
    "v3": ([note((NEEDED, struct.pack("<I", 0b111)))], 2),
    "only the bit of v4": ([note((NEEDED, struct.pack("<I", 0b1000)))], 3),
    "no bit": ([note((NEEDED, struct.pack("<I", 0)))], 0),
    "behind another property": ([note((0xC0000002, struct.pack("<I", 3)), (NEEDED, struct.pack("<I", 0b11)))], 1),
    "behind one of odd size": ([note((1, b"x" * 5), (NEEDED, struct.pack("<I", 0b11)))], 1),
    "of eight bytes": ([note((NEEDED, struct.pack("<Q", 0b11)))], 0),
    "size beyond the note": ([(".note.gnu.property", "GNU", 5, struct.pack("<III", NEEDED, 1 << 31, 3))], 0),
    "of another owner": ([(".note.gnu.property", "XYZ", 5, note((NEEDED, struct.pack("<I", 7)))[3])], 0),
    "of another type": ([(".note.gnu.property", "GNU", 4, note((NEEDED, struct.pack("<I", 7)))[3])], 0),
}


PT_GNU_PROPERTY = 0x6474E553


def with_notes(path: Path, notes: list[tuple[str, str, int, bytes]], align: int = 8, machine: str = "x86_64") -> Path:
    """A library whose notes are in PT_GNU_PROPERTY segments of this alignment."""
    elfmaker.make_so(path, path.name, notes=notes, machine=machine)
    data = bytearray(path.read_bytes())
    start = struct.unpack_from("<Q", data, 32)[0]
    for at in range(start, start + 56 * struct.unpack_from("<H", data, 56)[0], 56):
        if struct.unpack_from("<I", data, at)[0] == elfmaker.PT_NOTE:
            struct.pack_into("<I", data, at, PT_GNU_PROPERTY)
            struct.pack_into("<Q", data, at + 48, align)
    path.write_bytes(data)
    return path


@needs_ldconfig
@on_x86_64
def test_isa_levels_of_hand_made_notes_are_those_of_ldconfig(tmp_path: Path) -> None:
    """The kernel's rule: one alignment counts, that of a word."""
    folder = "opt/glibc-hwcaps/any"
    paths = {f"lib{i}.so.1".encode(): (shape, with_notes(tmp_path / f"{folder}/lib{i}.so.1", NOTES[shape][0]))
             for i, shape in enumerate(NOTES)}  # fmt: skip
    elsewhere = with_notes(tmp_path / f"{folder}/libalign.so.1", NOTES["v3"][0], align=4)
    theirs = ask(tmp_path)
    assert {s: read(path, isa=True).isa_level for s, path in paths.values()} == {
        shape: theirs[soname][1] >> 32 & 0x3FF for soname, (shape, _) in paths.items()
    }
    assert {shape: theirs[soname][1] >> 32 & 0x3FF for soname, (shape, _) in paths.items()} == {
        shape: level for shape, (_, level) in NOTES.items()
    }
    assert read(elsewhere, isa=True).isa_level == theirs[b"libalign.so.1"][1] >> 32 & 0x3FF == 0


def test_no_other_machine_has_isa_levels(tmp_path: Path) -> None:
    path = with_notes(tmp_path / "libx.so.1", NOTES["v3"][0], machine="aarch64")
    assert read(path, "aarch64", isa=True).isa_level == 0


def test_flags_are_those_of_the_header() -> None:
    """sysdeps/generic/ldconfig.h"""
    assert library.FLAG_ELF_LIBC6 | library.FLAG_X8664_LIB64 == 0x303
    assert library.FLAG_ELF_LIBC6 | library.FLAG_AARCH64_LIB64 == 0xA03
