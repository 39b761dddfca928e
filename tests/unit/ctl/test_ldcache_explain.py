"""`nvoci ldcache explain`: which facts it tells of prepared roots."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import time
from pathlib import Path

import pytest
from lib.rootfs import tree
from unit.ctl.ldcachetools import LD_SO, NEEDS_LDCONFIG, Invoke, Make, facts, ldconfig, plain, prepared, so

from nvoci.ctl import ldexplain, ldroot, ldso
from nvoci.ldcache.cache import Entry, encode, parse
from nvoci.ldcache.compute import compute, stands_for
from nvoci.ldcache.library import Library

pytestmark = NEEDS_LDCONFIG


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return prepared(tmp_path / "root")


def shadowed(root: Path) -> None:
    """The default: libone in three directories."""


def wrong_class(root: Path) -> None:
    so(root, "opt/a/libtwo.so.2", "libtwo.so.2", "aarch64")
    (root / "opt/b/libtwo.so.2").unlink()
    ldconfig(root)


def dangling(root: Path) -> None:
    tree(root, "symlink opt/a/libgone.so.1 libgone.so.1.5\nfile opt/b/libgone.so.1.5\nfifo opt/b/libgone.so.1")


def stale(root: Path) -> None:
    (root / "opt/b/libtwo.so.2").unlink()


def new(root: Path) -> None:
    so(root, "opt/b/libnew.so.1.7", "libnew.so.1")


def outside(root: Path) -> None:
    so(root, "opt/nv/libnv.so.1", "libnv.so.1")


def default_directory(root: Path) -> None:
    so(root, "usr/lib/libdef.so.1", "libdef.so.1")


def no_elf(root: Path) -> None:
    tree(root, "file usr/lib/x86_64-linux-gnu/libtext.so.1 " + "INPUT(x)" * 20)


def no_name(root: Path) -> None:
    so(root, "opt/b/libevil.so.1", "../../libevil.so.1")


def upside_down(root: Path) -> None:
    cache = root / "etc/ld.so.cache"
    cache.write_bytes(encode(parse(cache.read_bytes()).entries[::-1]))


def reconfigured(root: Path) -> None:
    tree(root, "file etc/ld.so.conf include /etc/ld.so.conf.d/*.conf\\n")


EXPLAINED: dict[str, tuple[Make, list[str], int, list[str]]] = {
    "shadowed by an earlier directory": (shadowed, ["libone.so.1"], 0, [
        "directory 1: /opt/a (/etc/ld.so.conf.d/a.conf:2)",
        "directory -: /opt/none (/etc/ld.so.conf.d/a.conf:3): no such directory",
        "directory -: /opt/again (/etc/ld.so.conf.d/a.conf:4): the same directory as /opt/a",
        "directory 3: /opt/b (/etc/ld.so.conf:2)",
        ("file /opt/b/libone.so.1.2: 64-bit x86-64, soname libone.so.1, "
         "no: libone.so.1.10 stands for it in this directory: the greater name of two counts"),
        "wins: /opt/a/libone.so.1 (/opt/a/libone.so.1.2): its directory is the first that has it",
        "found: /opt/a/libone.so.1 (/opt/a/libone.so.1.2): the cache names it",
    ]),
    "the shadowed file itself": (shadowed, ["/opt/b/libone.so.1.10"], 1, [
        "soname: libone.so.1",
        "not found: ld.so takes /opt/a/libone.so.1.2 for libone.so.1 instead",
    ]),
    "the winning file by its name": (shadowed, ["libone.so.1.2"], 0, ["soname: libone.so.1"]),
    "a losing file by its name": (shadowed, ["libone.so.1.10"], 1, ["soname: libone.so.1"]),
    "a link for ld(1)": (shadowed, ["libtwo.so"], 0, [
        "file /opt/b/libtwo.so -> libtwo.so.2: 64-bit x86-64, soname libtwo.so.2",
    ]),
    "wrong machine": (wrong_class, ["libtwo.so.2"], 1, [
        "file /opt/a/libtwo.so.2: 64-bit AArch64, soname libtwo.so.2, no: for another machine (e_machine 183, 64 bits)",
        "file /lib/i386-linux-gnu/libtwo.so.2: 32-bit i386, soname libtwo.so.2, no: for other programs (libc6)",
        "not found: it is there only for other programs (libc6)",
    ]),
    "32 bits": (wrong_class, ["libtwo.so.2", "--abi", "i386"], 0, [
        "libtwo.so.2: asked for by i386 programs",
        "loader: /lib/ld-linux.so.2 is not there: no such program runs in this root",
        "found: /lib/i386-linux-gnu/libtwo.so.2: the cache names it",
    ]),
    "dangling, empty and no file": (dangling, ["libgone.so.1"], 1, [
        "file /opt/a/libgone.so.1 -> libgone.so.1.5: no: leads nowhere",
        "file /opt/b/libgone.so.1: no: not a regular file",
        "file /opt/b/libgone.so.1.5: no: too short for an ELF file",
        "cache: does not name it",
        "not found: no directory that is searched has it",
    ]),
    "stale entry": (stale, ["libtwo.so.2"], 1, [
        "cache: libtwo.so.2 (libc6,x86-64) => /opt/b/libtwo.so.2: no such file",
        "cache: libtwo.so.2 (libc6) => /lib/i386-linux-gnu/libtwo.so.2",
        "cache: stale: a new cache would not have it",
    ]),
    "not in the cache yet": (new, ["libnew.so.1"], 1, [
        "wins: /opt/b/libnew.so.1 (/opt/b/libnew.so.1.7): the only one",
        "link: /opt/b/libnew.so.1 -> libnew.so.1.7 is not there yet",
        "cache: stale: a new cache would have /opt/b/libnew.so.1",
        "not found: the cache does not lead to it; update-ldcache or ldconfig would enter /opt/b/libnew.so.1",
    ]),
    "a directory that is not searched": (outside, ["/opt/nv/libnv.so.1"], 1, [
        "file /opt/nv/libnv.so.1: 64-bit x86-64, soname libnv.so.1, no: its directory is not searched",
    ]),
    "with that directory": (outside, ["libnv.so.1", "--folder", "/opt/nv"], 1, [
        "directory 1: /opt/nv (--folder)",
        "wins: /opt/nv/libnv.so.1: the only one",
    ]),
    "found without the cache": (default_directory, ["libdef.so.1"], 0, [
        "cache: does not name it",
        "found: /usr/lib/libdef.so.1: not by the cache, but it lies in a default directory of ld.so",
    ]),
    "text where a library should be": (no_elf, ["libtext.so.1"], 1, [
        "file /usr/lib/x86_64-linux-gnu/libtext.so.1: no: no ELF magic",
        "not found: ld.so stops at /usr/lib/x86_64-linux-gnu/libtext.so.1: no ELF file that can be read: no ELF magic",
    ]),
    "a soname that is no file name": (no_name, ["libevil.so.1"], 1, [
        "file /opt/b/libevil.so.1: 64-bit x86-64, soname ../../libevil.so.1, no: its soname is no file name",
    ]),
    "a cache upside down": (upside_down, ["libtwo.so"], 1, [
        "cache: stale: out of order: ld.so searches it by halves, and misses the entry",
    ]),
    "a directory taken out of the configuration": (reconfigured, ["libtwo.so.2"], 0, [
        ("cache: libtwo.so.2 (libc6,x86-64) => /opt/b/libtwo.so.2: "
         "its directory is not searched any more: ldconfig would drop it"),
        "cache: stale: a new cache would not have it",
    ]),
    "no such path": (shadowed, ["/opt/b/libno.so.1"], 1, ["file /opt/b/libno.so.1: no: no such file"]),
    "a directory for a path": (shadowed, ["/opt/b"], 1, ["file /opt/b: no: not a regular file"]),
    "the root": (shadowed, ["/"], 1, ["not found: no directory that is searched has it"]),
}  # fmt: skip


@pytest.mark.parametrize("case", EXPLAINED)
def test_explain_says_why(nvoci: Invoke, root: Path, case: str) -> None:
    prepare, words, status, expected = EXPLAINED[case]
    prepare(root)
    result = nvoci("ldcache", "explain", root, *words)
    assert [line for line in expected if line not in facts(result)] == [], result.stdout
    assert (result.rc, result.stderr) == (status, "")
    found = json.loads(nvoci("ldcache", "explain", root, *words, "--json").stdout)
    assert (found["found"] is not None) == (status == 0)
    assert {"name", "soname", "directories", "files", "wins", "cache", "found", "because"} <= found.keys()


def level_of_this_cpu() -> int:
    """As the host's ld.so says: 0 for x86-64-v1."""
    text = subprocess.run([LD_SO, "--help"], check=True, capture_output=True, text=True).stdout
    return max((n - 1 for n in (2, 3, 4) if f"x86-64-v{n} (supported" in text), default=0)


def test_the_level_of_the_cpu_is_what_ld_so_says() -> None:
    if not os.path.exists(LD_SO):
        pytest.skip("no ld.so on this host")
    assert ldroot.cpu_level() == level_of_this_cpu()


def test_the_best_subdirectory_for_this_cpu_wins(nvoci: Invoke, root: Path) -> None:
    so(root, "opt/b/glibc-hwcaps/mine/libthree.so.3", "libthree.so.3")
    ldconfig(root)
    level = min(level_of_this_cpu(), 2)
    result = nvoci("ldcache", "explain", root, "libthree.so.3")
    assert result.rc == 0
    path = f"/opt/b/glibc-hwcaps/x86-64-v{level + 1}/libthree.so.3.0" if level else "/opt/a/libthree.so.3"
    assert facts(result)[-1] == f"found: {path}: the cache names it"
    for other in (1, 2):
        applies = "for this CPU" if other <= level else "not for this CPU"
        place = f"/opt/b/glibc-hwcaps/x86-64-v{other + 1} (below /opt/b): {applies}"
        assert any(line.startswith("directory ") and line.endswith(place) for line in facts(result))
    assert any("/mine/libthree.so.3: " in line and "no: glibc-hwcaps/mine is not for" in line for line in facts(result))


def as_property(path: Path) -> None:
    """Make the last PT_NOTE a PT_GNU_PROPERTY, aligned to 8, as linkers add one: there ldconfig looks for the level."""
    data = bytearray(path.read_bytes())
    headers, count = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 56)[0]
    at = max(at for at in range(headers, headers + 56 * count, 56) if struct.unpack_from("<I", data, at)[0] == 4)
    struct.pack_into("<I", data, at, 0x6474E553)
    struct.pack_into("<Q", data, at + 48, 8)
    path.write_bytes(data)


def test_a_file_for_a_better_cpu_than_its_subdirectory_says_is_passed_over(nvoci: Invoke, root: Path) -> None:
    needs = struct.pack("<IIII", 0xC0008002, 4, 1 << 9, 0)  # a level that no CPU has
    path = "opt/b/glibc-hwcaps/x86-64-v2/libfour.so.4"
    so(root, path, "libfour.so.4", notes=[(".note.gnu.property", "GNU", 5, needs)] * 2)
    as_property(root / path)
    so(root, "opt/b/libfour.so.4", "libfour.so.4")
    ldconfig(root)
    result = nvoci("ldcache", "explain", root, "libfour.so.4")
    assert facts(result)[-1] == "found: /opt/b/libfour.so.4: the cache names it"
    if level_of_this_cpu() >= 1:
        assert any("no: it needs x86-64-v10, which this CPU is not" in line for line in facts(result))


def test_files_stand_for_what_the_computation_enters(tmp_path: Path) -> None:
    """In the directories as in the cache."""
    plain(tmp_path)
    so(tmp_path, "opt/b/libplain.so.9")
    tree(tmp_path, "symlink opt/b/libalias.so.9 libplain.so.9\nsymlink opt/b/libone.so libone.so.1.2")
    with ldroot.opened(str(tmp_path)) as rootfs:
        search = ldroot.search(rootfs)
        entries = compute(rootfs, search.paths).entries
        explainer = ldexplain.Explainer(rootfs, search, None, ldso.NATIVE)
        files = [explainer._file(d, n, is_link) for d in explainer.directories for n, is_link in d.names.items()]
    assert {f.soname for f in files} == {e.unsafe_soname for e in entries}
    assert stands_for(b"libx.so", True, Library(0x303, b"liby.so.1", 0)) == (b"liby.so.1", False)


MUSL: dict[str, tuple[str, str, int, str]] = {
    "built-in path": ("", "libone.so.1", 0,
                      "found: /usr/lib/libone.so.1: first directory that has a file of this name"),
    "path file": ("/opt/m:/usr/lib\\n", "libone.so.1", 0,
                  "found: /opt/m/libone.so.1: first directory that has a file of this name"),
    "empty path file": ("\\0", "libone.so.1", 1, "not found: no directory of the path has it"),
    "not ELF in front": ("/opt/bad\\n/usr/lib\\n", "libone.so.1", 1,
                         ("not found: musl takes the first file of this name and no other: /opt/bad/libone.so.1: "
                          "no ELF file that can be read: no ELF magic")),
    "the loader itself": ("", "libc.so.6", 0, "found: /lib/ld-musl-x86_64.so.1: musl has this library in its loader"),
    "another file": ("/opt/m\\n", "/usr/lib/libone.so.1", 1, "not found: musl takes /opt/m/libone.so.1 instead"),
    "this file": ("", "/usr/lib/libone.so.1", 0,
                  "found: /usr/lib/libone.so.1: first directory that has a file of this name"),
    "no file": ("", "/usr/lib/libtwo.so.1", 1, "not found: there is no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", MUSL)
def test_a_musl_root_has_a_path_and_no_cache(nvoci: Invoke, tmp_path: Path, case: str) -> None:
    content, name, status, last = MUSL[case]
    tree(tmp_path, "file etc/alpine-release 3.20\nfile lib/ld-musl-x86_64.so.1 x\nfile opt/bad/libone.so.1 text")
    if content:
        tree(tmp_path, f"file etc/ld-musl-x86_64.path {content}")
    for directory in ("usr/lib", "opt/m"):
        so(tmp_path, f"{directory}/libone.so.1", "libone.so.1")
    result = nvoci("ldcache", "explain", tmp_path, name)
    assert (result.rc, facts(result)[-1]) == (status, last)
    assert facts(result)[0] == f"{name}: asked for by musl programs"
    assert "built into musl" in result.stdout or "/etc/ld-musl-x86_64.path" in result.stdout or "\\0" in content
    for command in ("show", "diff"):
        refused = nvoci("ldcache", command, tmp_path)
        assert refused.rc == 2
        assert "musl has no" in refused.stderr


def test_a_name_with_very_many_files_and_entries_is_quick(nvoci: Invoke, root: Path) -> None:
    so(root, "opt/a/libmany.so.1", "libmany.so.1")
    for i in range(1, 1000):
        os.link(root / "opt/a/libmany.so.1", root / f"opt/a/libmany.so.1.{i}")
    cache = root / "etc/ld.so.cache"
    entries = [Entry(0x303, b"libmany.so.1", b"/opt/a/%d" % i) for i in range(200_000)]
    cache.write_bytes(encode(entries))
    start = time.monotonic()
    result = nvoci("ldcache", "explain", root, "libmany.so.1")
    assert time.monotonic() - start < 10
    assert {"files: 800 more", "cache: 199800 more"} <= set(facts(result))
