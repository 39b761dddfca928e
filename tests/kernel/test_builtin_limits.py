"""The builtin engine on images that have too much of something, or what is no library. Bounded, and never opened."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lib import elfmaker, proc
from lib.rootfs import TRIPLET, glibc_rootfs, tree

from nvoci.ldcache import conf
from tests.kernel.ldcaches import (
    MARKS,
    driver,
    fails,
    lines,
    listed,
    process,
    reference,
    run_ldconfig,
    snapshot,
    update,
)
from tests.kernel.namespaced import make_container

pytestmark = MARKS
LIBDIR = f"usr/lib/{TRIPLET}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = glibc_rootfs(tmp_path / "rootfs")
    driver(path)
    return path


def run(root: Path, seconds: float = 10.0) -> None:
    start = time.monotonic()
    update(make_container(root), "/opt/nv", engine="builtin")
    assert time.monotonic() - start < seconds
    assert listed(root)["libnva.so.1"] == "/opt/nv/libnva.so.1"


# -- what is no library ---------------------------------------------------------------------------------------------

SPECIAL = {
    "fifo": "fifo {}", "device": "char {} 1 5", "block device": "block {} 7 0", "socket": "socket {}",
    "directory": "dir {}", "1 TiB": "sparse {} 1T", "empty": "file {}", "51 bytes": "file {} " + "x" * 51,
    "text": "file {} " + "INPUT(x) " * 20,
    "link to itself": "symlink {} libspecial.so.1", "link to a fifo": "fifo opt/nv/f\nsymlink {} f",
    "link to a device": "symlink {} /dev/zero\nchar dev/zero 1 5", "link to the root": "symlink {} /",
    "link to procfs": "symlink {} /proc/self/fd/0", "long link": "symlink {} " + "a/" * 2000,
    "link through a file": "symlink {} /etc/hostname/x",
}  # fmt: skip


@pytest.mark.parametrize("name", ["libspecial.so.1", "ld-special.so"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_library_is_left_out(root: Path, kind: str, name: str) -> None:
    tree(root, SPECIAL[kind].replace("{}", f"opt/nv/{name}"))
    before = os.lstat(root / "opt/nv" / name)
    run(root, 5)
    assert name not in listed(root)
    assert os.lstat(root / "opt/nv" / name).st_ino == before.st_ino


@pytest.mark.parametrize("kind", ["fifo", "device", "socket", "1 TiB", "text", "51 bytes"])
def test_ldconfig_leaves_the_same_out(root: Path, kind: str) -> None:
    tree(root, SPECIAL[kind].replace("{}", "opt/nv/libspecial.so.1"))
    run(root)
    found = lines(root)
    assert reference(root, "/opt/nv") == found


def test_1_tib_with_an_elf_header_costs_no_more_than_its_header(root: Path) -> None:
    path = elfmaker.make_so(root / "opt/nv/libbig.so.1.0", "libbig.so.1")
    os.truncate(path, 1 << 40)
    run(root, 2)
    assert listed(root)["libbig.so.1"] == "/opt/nv/libbig.so.1"


# -- links ----------------------------------------------------------------------------------------------------------


def test_loops_and_long_chains_of_links_end(root: Path) -> None:
    spec = "".join(f"symlink opt/nv/libloop{i}.so.1 libloop{(i + 1) % 50}.so.1\n" for i in range(50))
    spec += "".join(f"symlink opt/nv/libchain{i}.so.1 libchain{i + 1}.so.1\n" for i in range(60))
    tree(root, spec + "symlink opt/nv/libchain60.so.1 libnva.so.1.2")
    run(root)
    assert not any(name.startswith("libloop") for name in listed(root))
    found = lines(root)
    assert reference(root, "/opt/nv") == found


def many_links(root: Path, count: int) -> None:
    folder = os.open(root / "opt/nv", os.O_DIRECTORY)
    for i in range(count):
        os.symlink("libnva.so.1.2", f"liblink{i}.so", dir_fd=folder)
    os.close(folder)


def test_100_000_links_to_one_file_take_seconds(root: Path) -> None:
    many_links(root, 100_000)
    result = process(root, "/opt/nv", timeout=30.0, measure_rss=True)
    assert (result.rc, result.stderr) == (0, "")
    assert listed(root)["libnva.so.1"] == "/opt/nv/libnva.so.1"
    assert result.wall < 15
    assert result.maxrss < 256 << 10


def test_a_file_is_opened_once_however_many_links_lead_to_it(root: Path, tmp_path: Path) -> None:
    many_links(root, 300)
    log = tmp_path / "trace"
    trace = ["strace", "-f", "-qqq", "-y", "-e", "trace=pread64", "-o", str(log)]
    assert process(root, "/opt/nv", prefix=trace, timeout=30.0).rc == 0
    reads = [line for line in log.read_text().splitlines() if "libnva.so.1.2" in line]
    assert 3 <= len(reads) <= 8, reads


# -- many ------------------------------------------------------------------------------------------------------------


def test_17_000_configured_directories_are_one_error(root: Path) -> None:
    (root / "etc/ld.so.conf").write_text("".join(f"/d{i}\n" for i in range(17_000)))
    error = fails(root, "builtin")
    assert "E2BIG" in error.message
    assert "/etc/ld.so.conf" in error.message


def test_4_000_existing_directories_are_searched(root: Path) -> None:
    assert conf.MAX_DIRECTORIES > 4000
    for i in range(4000):
        (root / f"d/{i}").mkdir(parents=True)
    elfmaker.make_so(root / "d/3999/liblast.so.1", "liblast.so.1")
    (root / "etc/ld.so.conf").write_text("".join(f"/d/{i}\n" for i in range(4000)))
    run(root)
    assert listed(root)["liblast.so.1"] == "/d/3999/liblast.so.1"


def test_10_000_libraries_are_found(root: Path) -> None:
    data = elfmaker.make_so(root / "opt/nv/x", "libmany00000.so.1").read_bytes()
    for i in range(10_000):
        (root / f"opt/nv/libmany{i:05}.so.1").write_bytes(data.replace(b"libmany00000", b"libmany%05d" % i))
    result = process(root, "/opt/nv", timeout=60.0, measure_rss=True)
    assert (result.rc, result.stderr) == (0, "")
    found = listed(root)
    assert sum(found.get(f"libmany{i:05}.so.1") == f"/opt/nv/libmany{i:05}.so.1" for i in range(10_000)) == 10_000
    assert result.wall < 20
    assert result.maxrss < 128 << 10
    again = process(root, "/opt/nv", timeout=60.0)
    assert (again.rc, again.stderr) == (0, "")
    assert again.wall < result.wall, "what the cache has was opened again"


def test_many_glibc_hwcaps_subdirectories_are_one_error_or_all_searched(root: Path) -> None:
    for i in range(60):
        elfmaker.make_so(root / f"opt/nv/glibc-hwcaps/x{i}/libh.so.1", "libh.so.1")
    run(root)
    assert sum("libh.so.1 " in line for line in lines(root)) == 60
    for i in range(60, 200):
        (root / f"opt/nv/glibc-hwcaps/x{i}").mkdir()
    assert "E2BIG" in fails(root, "builtin").message


# -- sonames --------------------------------------------------------------------------------------------------------

BAD_SONAMES = [
    "", ".", "..", "/", "a/b", "../../etc/x", "/etc/x", "a\nb", "a\tb", "\x1b[2J", "a\x7f", "x" * 256, "x" * 4000,
]  # fmt: skip
GOOD_SONAMES = ["libx y.so", "x -> y", "-rf", "libé.so", "x" * 255, "*", "'", "lib.so (libc6) => x"]


@pytest.mark.parametrize("soname", BAD_SONAMES, ids=ascii)
def test_a_soname_that_is_no_file_name_is_neither_linked_nor_listed(root: Path, soname: str) -> None:
    elfmaker.make_so(root / "opt/nv/libevil.so.1", soname)
    before = set(snapshot(root))
    result = process(root, "/opt/nv")
    assert result.rc == 0
    assert "left out" in result.stderr
    assert result.stderr.count("\n") == 1
    made = set(snapshot(root)) - before
    assert made == {f"etc/ld.so.conf.d/{n}-nvcr-nvoci.conf" for n in ("00", "zz")} | {
        "opt/nv/libnva.so.1", "opt/nv/libnvb.so.2",
    }  # fmt: skip
    assert not any("libevil" in line for line in lines(root))


@pytest.mark.parametrize("soname", GOOD_SONAMES, ids=ascii)
def test_an_odd_soname_is_one(root: Path, soname: str) -> None:
    elfmaker.make_so(root / "opt/nv/libodd.so.1", soname)
    run(root)
    assert os.readlink(root / "opt/nv" / soname) == "libodd.so.1"
    found = lines(root)
    assert reference(root, "/opt/nv") == found
    assert any(line.endswith(f"=> /opt/nv/{soname}") for line in found)


# -- the host is short of something -----------------------------------------------------------------------------------


def limited(kind: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (value, value))


@pytest.mark.parametrize("files", [8, 10, 12, 14, 16, 20, 24, 32])
def test_few_descriptors_are_enough_or_one_error_that_changes_nothing(root: Path, files: int) -> None:
    for i in range(40):
        elfmaker.make_so(root / f"opt/{i}/libx{i}.so.1.0", f"libx{i}.so.1")
    folders = [f"/opt/{i}" for i in range(40)]
    before = snapshot(root)
    result = process(root, *folders, preexec=limited(resource.RLIMIT_NOFILE, files))
    assert not result.timed_out
    if result.rc == 0:
        assert {f"libx{i}.so.1" for i in range(40)} <= set(listed(root))
        return
    assert result.stderr.count("\n") == 1
    assert "EMFILE" in result.stderr
    assert snapshot(root) == before


def test_a_file_size_limit_is_one_error_that_changes_nothing(root: Path) -> None:
    """RLIMIT_FSIZE also sends SIGXFSZ."""
    before = snapshot(root)
    result = process(root, "/opt/nv", preexec=limited(resource.RLIMIT_FSIZE, 100))
    assert result.rc != 0
    assert "EFBIG" in result.stderr
    assert {k: v[1:] for k, v in snapshot(root).items()} == {k: v[1:] for k, v in before.items()}


def test_as_a_user_without_rights_it_is_one_error_that_changes_nothing(root: Path) -> None:
    before = snapshot(root)
    result = process(root, "/opt/nv", preexec=lambda: os.setuid(65534))
    assert result.rc != 0
    assert result.stderr.count("\n") == 1
    assert snapshot(root) == before


def test_the_images_own_ldconfig_finds_the_driver_afterwards(root: Path) -> None:
    """The drop-ins are there for it."""
    run(root)
    found = listed(root)
    run_ldconfig(root)
    assert listed(root) == found
    chroot = proc.run(["/usr/sbin/chroot", root, "/usr/sbin/ldconfig"])
    assert chroot.rc == 0
    assert listed(root) == found
    assert subprocess.run([root / "usr/sbin/ldconfig", "-V"], capture_output=True).returncode == 0
