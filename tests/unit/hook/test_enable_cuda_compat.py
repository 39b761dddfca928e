"""Which forward compatibility library is used on which host, and what is left in the container."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from lib import elfmaker
from lib.rootfs import tree

from nvoci import log
from nvoci.errors import HookError
from nvoci.hook import enable_cuda_compat as hook
from nvoci.hook.enable_cuda_compat import CompatNote, Host, applies, canonical, parse_note, parse_version
from nvoci.hook.operation import Transaction
from nvoci.hook.settings import Settings
from nvoci.linux.rootfs import Rootfs
from tests.kernel.namespaced import make_container, os_error

DROP_IN = "etc/ld.so.conf.d/00-compat-nvoci.conf"
OWNER = "NVIDIA Corporation"
NOTE_575 = b'{"format":1,"CUDA version":"12.9","driver":[535,550,560,565,570,575],"device":[]}'
NOTE_590 = b'{"format":1,"CUDA Version":"13.1","Driver":[535,550,570,575,580,590],"Device":["x"]}'
N575, N590 = parse_note(OWNER.encode(), NOTE_575), parse_note(OWNER.encode(), NOTE_590)


def decide(note: CompatNote | None, library: str, driver: str = "", cuda: str = "") -> bool:
    host = Host(parse_version(driver), parse_version(cuda), bool(cuda), b"/")
    return applies(note, parse_version(library), host)


# (note, library, host driver, host CUDA): used
DECISIONS = {
    "older branch named": (N575, "575.57.08", "570.1", "", True),
    "the same version": (N575, "575.57.08", "575.57.08", "", False),
    "a newer patch of the same branch": (N575, "575.57.08", "575.57.09", "", False),
    "an older patch of the same branch": (N575, "575.57.08", "575.51.03", "", True),
    "newer branch": (N575, "575.57.08", "580.1", "", False),
    "still newer branch": (N575, "575.57.08", "590.44.01", "", False),
    "oldest branch named": (N575, "575.57.08", "535.1.2", "", True),
    "branch not named": (N575, "575.57.08", "545.23.08", "", False),
    "driver not understood": (N575, "575.57.08", "garbage", "", False),
    "driver not understood, older CUDA": (N575, "575.57.08", "garbage", "12.8", True),
    "590 on 570": (N590, "590.44.01", "570.1", "", True),
    "590 on 575": (N590, "590.44.01", "575.57.08", "", True),
    "590 on 580": (N590, "590.44.01", "580.1", "", True),
    "590 on an older 590": (N590, "590.44.01", "590.1", "", True),
    "590 on itself": (N590, "590.44.01", "590.44.01", "", False),
    "590 on 535": (N590, "590.44.01", "535.1.2", "", True),
    "older CUDA": (N575, "575.57.08", "", "12.8", True),
    "newer CUDA": (N575, "575.57.08", "", "13.1", False),
    "the same CUDA": (N575, "575.57.08", "", "12.9", False),
    "590, older CUDA": (N590, "590.44.01", "", "12.8", True),
    "590, the same CUDA": (N590, "590.44.01", "", "13.1", False),
    "library version not understood": (N575, "575.x.1", "570.1", "12.8", True),
    "library version not understood, no CUDA": (N575, "575.x.1", "570.1", "", False),
    "driver decides before CUDA": (N575, "575.57.08", "580.1", "12.8", False),
    "note without CUDA": (CompatNote(None, [570]), "575.1.1", "", "12.8", False),
    "no note, older branch": (None, "600.1.2", "550.1", "", True),
    "no note, CUDA given": (None, "600.1.2", "550.1", "12.0", False),
    "no note, CUDA given and not understood": (None, "600.1.2", "550.1", "x", False),
    "no note, same branch": (None, "600.1.2", "600.0.1", "", False),
    "no note, newer branch": (None, "600.1.2", "610.1", "", False),
    "no note, driver not understood": (None, "600.1.2", "x", "", False),
    "no note, library not understood": (None, "600.1.2.3", "550.1", "", False),
}


@pytest.mark.parametrize("case", DECISIONS)
def test_decision(case: str) -> None:
    note, library, driver, cuda, wanted = DECISIONS[case]
    assert decide(note, library, driver, cuda) is wanted


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("575.57.08", (575, 57, 8)), ("v1.2", (1, 2, 0)), ("12", (12, 0, 0)), ("007.08", (7, 8, 0)), ("", None),
        ("v", None), ("1.", None), (".1", None), ("1.2.3.4", None), ("1.-2", None), ("1.x", None), ("\u0661.2", None),
        (" 1", None), ("1" * 5000, None), ("1.2\n", None),
    ],
)  # fmt: skip
def test_versions_are_read_loosely(text: str, version: tuple[int, int, int] | None) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize(
    "desc",
    [
        b"", b"{", b"[]", b"null", b'"x"', b'{"driver":{}}', b'{"driver":["570"]}', b'{"driver":[5.5]}', b"\xff",
        b'{"driver":[true]}', b'{"driver":[1],"driver":[2]}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_malformed_note_is_one_error(desc: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_note(OWNER.encode(), desc)


def test_note_of_another_owner_is_an_error() -> None:
    with pytest.raises(ValueError, match="owner"):
        parse_note(b"Somebody", NOTE_575)


def test_note_keys_match_in_any_case() -> None:
    note = parse_note(OWNER.encode(), b'{"cuda VERSION":"13.0","DRIVER":[1,2],"more":0}\0\0')
    assert (note.cuda, note.drivers) == ((13, 0, 0), [1, 2])


# -- in a root --------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    links = "symlink usr/local/cuda cuda-12.9\ndir usr/local/cuda-12.9/compat"
    return tree(tmp_path / "rootfs", "dir etc/ld.so.conf.d\n" + links)


def library(root: Path, version: str, desc: bytes | None = NOTE_575, at: str = "usr/local/cuda-12.9/compat") -> Path:
    notes = [] if desc is None else [(".note.cuda.fwd_compatibility", OWNER, 1, desc)]
    return elfmaker.make_so(root / at / f"libcuda.so.{version}", "libcuda.so.1", notes=notes)


def run(root: Path, driver: str = "570.1", cuda: str = "", directory: str = "/usr/local/cuda/compat") -> str | None:
    """What the drop-in holds afterwards."""
    options = {"host-driver-version": driver, "host-cuda-version": cuda, "cuda-compat-container-root": directory}
    prepared = hook.prepare(options, Settings())
    assert prepared is not None
    transaction = Transaction()
    for operation in hook.plan(prepared, make_container(root)):
        transaction.perform("enable-cuda-compat", operation)
    transaction.commit()
    path = root / DROP_IN
    return path.read_text() if path.exists() else None


def test_without_versions_there_is_nothing_to_do() -> None:
    options = {"host-driver-version": "", "host-cuda-version": "", "cuda-compat-container-root": "/x"}
    assert hook.prepare(options, Settings()) is None


def test_resolved_directory_is_written_once(root: Path) -> None:
    library(root, "575.57.08")
    assert run(root) == "/usr/local/cuda-12.9/compat\n"
    first = (root / DROP_IN).stat()
    assert run(root) == "/usr/local/cuda-12.9/compat\n"
    assert (root / DROP_IN).stat().st_ino == first.st_ino
    assert first.st_mode & 0o7777 == 0o644
    assert os.listdir(root / "etc/ld.so.conf.d") == ["00-compat-nvoci.conf"]


def test_drop_in_is_removed_when_the_host_has_a_newer_driver(root: Path) -> None:
    library(root, "575.57.08")
    assert run(root) is not None
    assert run(root, "580.1") is None
    assert os.listdir(root / "etc/ld.so.conf.d") == []


def test_drop_in_is_removed_when_the_library_is_gone(root: Path) -> None:
    path = library(root, "575.57.08")
    assert run(root) is not None
    path.unlink()
    assert run(root) is None


def test_drop_in_directory_is_made(tmp_path: Path) -> None:
    root = tmp_path / "rootfs"
    library(root, "575.57.08", at="usr/local/cuda/compat")
    assert run(root) == "/usr/local/cuda/compat\n"
    assert (root / "etc/ld.so.conf.d").stat().st_mode & 0o7777 == 0o755


COMPAT = "usr/local/cuda-12.9/compat"
NOT_USED = {
    "no directory": "dir x",
    "a file in its place": "file usr/local/cuda-12.9/compat x",
    "dangling link": "symlink usr/local/cuda-12.9/compat /none",
    "loop": "symlink usr/local/cuda-12.9/compat compat",
    "empty": "dir usr/local/cuda-12.9/compat",
    "only a link": "file x y\nsymlink usr/local/cuda-12.9/compat/libcuda.so.600.1.2 /x",
    "a directory": "dir usr/local/cuda-12.9/compat/libcuda.so.600.1.2",
    "a fifo": "fifo usr/local/cuda-12.9/compat/libcuda.so.600.1.2",
    "a device": "char usr/local/cuda-12.9/compat/libcuda.so.600.1.2 1 5",
    "one part": "file usr/local/cuda-12.9/compat/libcuda.so.1 x",
    "two libraries": f"file {COMPAT}/libcuda.so.600.1 x\nfile {COMPAT}/libcuda.so.600.2 x",
}


@pytest.mark.parametrize("shape", NOT_USED)
def test_nothing_is_written_where_there_is_no_one_library(root: Path, shape: str) -> None:
    (root / "usr/local/cuda-12.9/compat").rmdir()
    tree(root, NOT_USED[shape])
    start = time.monotonic()
    assert run(root, "550.1") is None
    assert time.monotonic() - start < 2


def test_more_than_one_library_is_a_warning(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    library(root, "575.57.08")
    library(root, "575.57.09")
    assert run(root) is None
    assert "more than one libcuda" in capfd.readouterr().err


@pytest.mark.parametrize("data", [b"", b"text", b"\x7fELF", b"\x7fELF\2\1\1" + b"\xff" * 200])
def test_bad_elf_file_is_a_warning_and_judged_by_its_version(
    root: Path, data: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    (root / "usr/local/cuda-12.9/compat/libcuda.so.600.1.2").write_bytes(data)
    assert run(root, "550.1") == "/usr/local/cuda-12.9/compat\n"
    assert "not a usable ELF file" in capfd.readouterr().err
    assert run(root, "550.1", "12.0") is None


def test_bad_note_is_a_warning_and_judged_by_its_version(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    library(root, "600.1.2", b"{nonsense")
    assert run(root, "550.1") == "/usr/local/cuda-12.9/compat\n"
    assert "compatibility note is malformed" in capfd.readouterr().err


def test_version_that_is_none_is_a_warning(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    library(root, "575.57.08")
    assert run(root, "garbage", "12.8") == "/usr/local/cuda-12.9/compat\n"
    assert "host-driver-version is not a version" in capfd.readouterr().err
    assert "host-cuda-version" not in capfd.readouterr().err


def test_sparse_library_of_1_tib_is_judged_by_its_version(root: Path) -> None:
    tree(root, "sparse usr/local/cuda-12.9/compat/libcuda.so.600.1.2 1T")
    assert run(root, "550.1") == "/usr/local/cuda-12.9/compat\n"


LINKS = {
    "absolute": ("symlink c /usr/local/cuda/compat", "/c", b"/usr/local/cuda-12.9/compat"),
    "out of the root": ("symlink c ../../../../usr/local/cuda/compat", "/c", b"/usr/local/cuda-12.9/compat"),
    "dots": ("dir x", "/x/.././usr//local/cuda/compat/../compat/", b"/usr/local/cuda-12.9/compat"),
    "chain": ("symlink a b\nsymlink b /d\nsymlink d usr/local", "/a/cuda", b"/usr/local/cuda-12.9"),
    "the root": ("dir x", "/", b"/"),
}


@pytest.mark.parametrize("shape", LINKS)
def test_path_is_resolved_inside_the_root(root: Path, shape: str) -> None:
    spec, path, wanted = LINKS[shape]
    tree(root, spec)
    assert canonical(Rootfs.open(str(root)), path.encode()) == wanted


def test_long_chains_and_loops_of_links_are_errors(root: Path) -> None:
    tree(root, "symlink loop loop\n" + "".join(f"symlink l{i} l{i + 1}\n" for i in range(60)) + "dir l60")
    for path in (b"/loop", b"/l0"):
        with os_error() as e:
            canonical(Rootfs.open(str(root)), path)
        assert e.value.errno == 40


def test_directory_with_a_newline_in_its_name_is_not_written(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (root / "usr/local/cuda").unlink()
    (root / "usr/local/cuda").symlink_to("a\nb")
    library(root, "575.57.08", at="usr/local/a\nb/compat")
    assert run(root) is None
    assert "cannot hold" in capfd.readouterr().err


def test_undo_brings_the_old_drop_in_back(root: Path) -> None:
    library(root, "575.57.08")
    tree(root, f"file {DROP_IN} old")
    prepared = Host((570, 1, 0), None, False, b"/usr/local/cuda/compat")
    transaction = Transaction()
    for operation in hook.plan(prepared, make_container(root)):
        transaction.perform("x", operation)
    assert (root / DROP_IN).read_text() == "/usr/local/cuda-12.9/compat\n"
    transaction.undo()
    assert (root / DROP_IN).read_text() == "old"


def test_unreadable_root_is_one_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> list[bytes]:
        raise OSError(5, "I/O error", b"/x")

    monkeypatch.setattr(Rootfs, "list", broken)
    with pytest.raises((OSError, HookError)):
        run(root)
    assert log.WARNING == 30
