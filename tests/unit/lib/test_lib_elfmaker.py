"""lib.elfmaker, with readelf, ld.so and ldconfig as witnesses."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from pathlib import Path

import pytest
from lib import elfmaker, rootfs

NOTE = (".note.cuda.fwd_compatibility", "NVIDIA Corporation", 0x100, b"\1\2\3\4")


def readelf(path: Path) -> str:
    done = subprocess.run(
        ["readelf", "-W", "-h", "-l", "-d", "-n", "-S", path], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("endian", ["little", "big"])
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("machine", elfmaker.MACHINES)
def test_readelf_accepts_every_machine_class_and_order(tmp_path: Path, machine: str, bits: int, endian: str) -> None:
    path = elfmaker.make_so(
        tmp_path / "lib.so", "libx.so.1", ["liby.so.2"], machine, bits, endian=endian, notes=[NOTE], symbols={"z": 1}
    )
    text = readelf(path)
    assert "Library soname: [libx.so.1]" in text
    assert "Shared library: [liby.so.2]" in text
    assert f"ELF{bits}" in text
    assert f"{endian} endian" in text
    assert "NVIDIA Corporation" in text
    assert ".note.cuda.fwd_compatibility NOTE" in text


def test_a_file_without_soname_has_none(tmp_path: Path) -> None:
    assert "SONAME" not in readelf(elfmaker.make_so(tmp_path / "lib.so"))


def test_the_object_can_be_loaded_and_called(tmp_path: Path) -> None:
    machine = platform.machine()
    path = elfmaker.make_so(
        tmp_path / "lib.so", "lib.so", machine=machine, symbols={"n": 42}, functions={"f": 7, "g": 9}
    )
    library = ctypes.CDLL(str(path))
    assert ctypes.c_int64.in_dll(library, "n").value == 42
    assert (library.f(), library.g()) == (7, 9)


def test_host_ldconfig_puts_it_into_a_cache_under_its_soname(tmp_path: Path) -> None:
    elfmaker.make_so(tmp_path / "usr/lib/libq.so.5.1", "libq.so.5", ["libc.so.6"], platform.machine())
    rootfs.tree(tmp_path, "symlink lib usr/lib\ndir etc\nfile etc/ld.so.conf")
    subprocess.run(["/sbin/ldconfig", "-r", tmp_path], check=True)
    shown = subprocess.run(["/sbin/ldconfig", "-r", tmp_path, "-p"], capture_output=True, text=True, check=True).stdout
    assert "libq.so.5 (libc6" in shown


def test_a_probe_exits_0_only_where_its_library_is_found(tmp_path: Path) -> None:
    machine = platform.machine()
    probe = elfmaker.make_probe(tmp_path / "probe", ["libq.so.5"], rootfs.LOADER, machine)
    assert subprocess.run([probe], stderr=subprocess.DEVNULL).returncode == 127
    elfmaker.make_so(tmp_path / "libq.so.5", "libq.so.5", machine=machine)
    assert subprocess.run([probe], env={"LD_LIBRARY_PATH": str(tmp_path)}).returncode == 0
