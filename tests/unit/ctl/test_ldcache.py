"""`nvoci ldcache show` and `diff`, and what all three refuse. Second witness: ldconfig, run in the same root."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest
from lib import proc
from lib.rootfs import tree
from unit.ctl.ldcachetools import LAYOUTS, LDCONFIG, NEEDS_LDCONFIG, Invoke, facts, ldconfig, prepared, so

from nvoci.ldcache.cache import HWCAP_EXTENSION, Entry, encode, parse

pytestmark = NEEDS_LDCONFIG


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return prepared(tmp_path / "root")


# --- show -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["new", "compat"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_show_prints_what_ldconfig_prints(nvoci: Invoke, tmp_path: Path, layout: str, form: str) -> None:
    LAYOUTS[layout](tmp_path)
    ldconfig(tmp_path, "-c", form)
    result = nvoci("ldcache", "show", tmp_path)
    assert (result.rc, result.stderr) == (0, "")
    shown, witness = result.stdout, ldconfig(tmp_path, "-p")
    if form == "compat":  # ldconfig counts these names from the wrong header then, and prints something else
        shown, witness = (re.sub('hwcap: "[^"]*"', "hwcap", text) for text in (shown, witness))
    assert shown.splitlines() == witness.splitlines()
    assert len(shown.splitlines()) >= 3


def test_every_kind_of_library_has_ldconfigs_words(nvoci: Invoke, tmp_path: Path) -> None:
    kinds = [required | kind for required in range(0, 0x1400, 0x100) for kind in (0, 1, 2, 3, 4, 255)]
    entries = [Entry(flags, b"liba.so.1", b"/x/liba.so.1") for flags in [*kinds, -1, 0x7FFFFF03]]
    entries += [Entry(0x303, b"liba.so.1", b"/x/b", hwcap=bits) for bits in (1, 1 << 63, 0xFFFF)]
    entries.append(Entry(0x303, b"liba.so.1", b"/c", 0x20600, HWCAP_EXTENSION | 2 << 32, b"x86-64-v3"))
    cache = tmp_path / "cache"
    cache.write_bytes(encode(entries, b"somebody 1.0"))
    text = subprocess.run([LDCONFIG, "-p", "-C", cache], check=True, capture_output=True, text=True).stdout
    known = [line for line in text.splitlines() if ",4352)" not in line and ",4608)" not in line]
    shown = facts(nvoci("ldcache", "show", "--cache", cache))
    assert [line for line in shown if ",4352)" not in line and ",4608)" not in line] == known
    assert len(known) > 100


def big_endian(soname: bytes, path: bytes) -> bytes:
    """A cache as a big-endian machine writes it: one 64-bit PowerPC library, no extension."""
    at = 48 + 24
    text = path + b"\0"
    head = struct.pack(">20sIIBxxxIxxxxxxxxxxxx", b"glibc-ld.so.cache1.1", 1, len(text), 3, 0)
    return head + struct.pack(">iIIIQ", 0x503, at + len(path) - len(soname), at, 0, 0) + text


@pytest.mark.parametrize("old", [b"", b"ld.so-1.7.0\0" + struct.pack("<I", 0)], ids=["alone", "old header in front"])
def test_show_reads_the_cache_of_another_machine(nvoci: Invoke, tmp_path: Path, old: bytes) -> None:
    tree(tmp_path, "dir etc")
    (tmp_path / "etc/ld.so.cache").write_bytes(old + big_endian(b"libx.so.1", b"/lib/libx.so.1"))
    result = nvoci("ldcache", "show", tmp_path)
    assert result.rc == 0
    assert result.stdout == "1 libs found in cache `/etc/ld.so.cache'\n\tlibx.so.1 (libc6,64bit) => /lib/libx.so.1\n"
    assert json.loads(nvoci("ldcache", "show", tmp_path, "--json").stdout)["byte_order"] == "big"
    other = nvoci("ldcache", "diff", tmp_path)
    assert (other.rc, facts(other)[0]) == (1, "/etc/ld.so.cache has the other byte order: ld.so passes over it")
    why = nvoci("ldcache", "explain", tmp_path, "libx.so.1")
    assert (why.rc, "cache: of the other byte order: ld.so passes over it" in facts(why)) == (1, True)


def test_control_characters_do_not_reach_the_terminal(nvoci: Invoke, tmp_path: Path) -> None:
    evil = Entry(0x303, b"lib\x1b[2J\r.so", b"/x\n\tlibgood.so (libc6) => \xff\xe2\x80\xae\x07")
    cache = tmp_path / "cache"
    cache.write_bytes(encode([evil], b"\x1b]0;x\x07"))
    result = nvoci("ldcache", "show", "--cache", cache)
    assert len(facts(result)) == 3
    assert all(c.isprintable() for line in facts(result) for c in line.removeprefix("\t"))
    assert r"lib\x1b[2J\r.so" in result.stdout
    text = nvoci("ldcache", "show", "--json", "--cache", cache).stdout
    assert text.isascii()
    library = json.loads(text)["libraries"][0]
    assert os.fsencode(library["path"]) == evil.unsafe_path
    tree(tmp_path / "r", "dir etc\ndir lib")
    shutil.copy(cache, tmp_path / "r/etc/ld.so.cache")
    for words in (("diff",), ("explain", "lib\x1b[2J\r.so")):
        result = nvoci("ldcache", words[0], tmp_path / "r", *words[1:])
        assert result.rc == 1
        assert all(c.isprintable() for line in facts(result) for c in line)


def test_show_as_json_has_each_library(nvoci: Invoke, root: Path) -> None:
    found = json.loads(nvoci("ldcache", "show", root, "--json").stdout)
    assert found["cache"] == "/etc/ld.so.cache"
    assert found["generator"].startswith("ldconfig ")
    cached = parse((root / "etc/ld.so.cache").read_bytes()).entries
    assert [(e["soname"], e["path"]) for e in found["libraries"]] == [
        (e.unsafe_soname.decode(), e.unsafe_path.decode()) for e in cached
    ]
    assert {e["hwcaps"] for e in found["libraries"]} == {None, "x86-64-v2", "x86-64-v3"}


def test_the_hosts_own_root_is_a_root(nvoci: Invoke) -> None:
    if not os.path.exists("/etc/ld.so.cache"):
        pytest.skip("this host has no ld.so.cache")
    text = subprocess.run([LDCONFIG, "-p"], check=True, capture_output=True, text=True, env={"LC_ALL": "C"}).stdout
    assert nvoci("ldcache", "show", "/").stdout == text
    result = nvoci("ldcache", "explain", "/", "libc.so.6")
    assert result.rc == 0
    assert facts(result)[-1].startswith("found: /")


# --- diff -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cache_of_ldconfig_is_equal(nvoci: Invoke, tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path)
    ldconfig(tmp_path)
    ldconfig(tmp_path)  # only the second run sees a link that the first one has made lead somewhere
    result = nvoci("ldcache", "diff", tmp_path)
    listed = len(ldconfig(tmp_path, "-p").splitlines()) - 2
    assert (result.rc, result.stdout) == (0, f"equal: {listed} libraries\n")
    found = json.loads(nvoci("ldcache", "diff", tmp_path, "--json").stdout)
    assert found["equal"] is True
    assert found["libraries"] == listed


def test_what_only_one_has_is_told(nvoci: Invoke, root: Path) -> None:
    (root / "opt/a/libthree.so.3").unlink()
    so(root, "opt/b/libnew.so.1", "libnew.so.1")
    result = nvoci("ldcache", "diff", root)
    assert result.rc == 1
    assert facts(result) == [
        "- libthree.so.3 (libc6,x86-64) => /opt/a/libthree.so.3",
        "+ libnew.so.1 (libc6,x86-64) => /opt/b/libnew.so.1",
    ]
    found = json.loads(nvoci("ldcache", "diff", root, "--json").stdout)
    assert found["equal"] is False
    assert [e["path"] for e in found["only_in_cache"]] == ["/opt/a/libthree.so.3"]
    assert [e["path"] for e in found["only_computed"]] == ["/opt/b/libnew.so.1"]
    ldconfig(root)
    assert nvoci("ldcache", "diff", root).rc == 0


def test_a_library_that_has_moved_is_one_line(nvoci: Invoke, root: Path) -> None:
    shutil.move(root / "opt/b/libtwo.so.2", root / "opt/a/libtwo.so.2")
    (root / "opt/b/libtwo.so").unlink()
    assert facts(nvoci("ldcache", "diff", root)) == [
        "- libtwo.so (libc6,x86-64) => /opt/b/libtwo.so",
        "~ libtwo.so.2 (libc6,x86-64) => /opt/b/libtwo.so.2, computed: /opt/a/libtwo.so.2",
    ]


def test_a_link_that_is_to_be_made_is_told(nvoci: Invoke, root: Path) -> None:
    (root / "opt/b/libone.so.1.10").unlink()
    result = nvoci("ldcache", "diff", root)
    assert (result.rc, facts(result)) == (1, ["> /opt/b/libone.so.1 -> libone.so.1.2"])
    found = json.loads(nvoci("ldcache", "diff", root, "--json").stdout)
    assert found["links"] == [{"path": "/opt/b/libone.so.1", "target": "libone.so.1.2"}]
    ldconfig(root)
    assert nvoci("ldcache", "diff", root).rc == 0


def test_another_order_of_directories_is_told(nvoci: Invoke, root: Path) -> None:
    tree(root, "file etc/ld.so.conf /opt/b\\ninclude /etc/ld.so.conf.d/*.conf\\n")
    line = "libone.so.1 (libc6,x86-64) => /opt/{}/libone.so.1"
    assert facts(nvoci("ldcache", "diff", root)) == [f"! {line.format('a')} stands before {line.format('b')}"]


def test_a_cache_out_of_order_and_doubled_is_told(nvoci: Invoke, root: Path) -> None:
    cache = root / "etc/ld.so.cache"
    entries = parse(cache.read_bytes()).entries
    cache.write_bytes(encode([*entries[::-1], entries[0]]))
    lines = facts(nvoci("ldcache", "diff", root))
    assert len([line for line in lines if line.startswith("! ")]) == len(entries) - 1
    assert len([line for line in lines if line.startswith("- ")]) == 1


def test_a_root_without_a_cache_lacks_all(nvoci: Invoke, root: Path) -> None:
    (root / "etc/ld.so.cache").unlink()
    result = nvoci("ldcache", "diff", root)
    assert result.rc == 1
    assert facts(result)[0] == "there is no /etc/ld.so.cache"
    assert all(line.startswith("+ ") for line in facts(result)[1:])
    assert len(facts(result)) > 5


def test_folders_are_searched_as_by_update_ldcache(nvoci: Invoke, root: Path) -> None:
    so(root, "opt/nv/libnv.so.1", "libnv.so.1")
    tree(root, "file etc/ld.so.conf /opt/b\\ninclude /etc/ld.so.conf.d/*.conf\\n")
    ldconfig(root)
    assert nvoci("ldcache", "diff", root).rc == 0
    result = nvoci("ldcache", "diff", root, "--folder", "/opt/nv,/opt/b")
    assert facts(result) == ["+ libnv.so.1 (libc6,x86-64) => /opt/nv/libnv.so.1"]
    tree(root, "file etc/ld.so.conf.d/00-nvcr-nvoci.conf /opt/nv\\n")
    ldconfig(root)
    assert nvoci("ldcache", "diff", root).rc == 0
    assert nvoci("ldcache", "diff", root, "--folder", "/opt/nv").rc == 0


# --- what cannot be read --------------------------------------------------------------------------------------------

CACHE = "etc/ld.so.cache"
DEEP = "".join(f"file etc/{i} include /etc/{i + 1}\n" for i in range(200)) + "file etc/ld.so.conf include /etc/0"
BAD: dict[str, tuple[str, str]] = {
    "fifo": (f"fifo {CACHE}", "read cache ROOT/etc/ld.so.cache: EINVAL (it must be a regular file of at most 16 MiB)"),
    "directory": (f"dir {CACHE}", "read cache ROOT/etc/ld.so.cache: EISDIR (it must be a regular file"),
    "1 GiB": (f"sparse {CACHE} 1G", "read cache ROOT/etc/ld.so.cache: EFBIG (it must be a regular file"),
    "text": (f"file {CACHE} hello", "read cache ROOT/etc/ld.so.cache: malformed: truncated (5 bytes) ("),
    "link loop": (f"symlink {CACHE} ld.so.cache", "read cache ROOT/etc/ld.so.cache: ELOOP"),
}


@pytest.mark.parametrize("command", [["show"], ["diff"], ["explain", "libone.so.1"]], ids=lambda words: words[0])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_cache_is_one_line_and_exit_status_2(nvoci: Invoke, root: Path, case: str, command: list[str]) -> None:
    spec, message = BAD[case]
    tree(root, spec)
    start = time.monotonic()
    result = nvoci("ldcache", command[0], root, *command[1:])
    assert time.monotonic() - start < 5
    assert (result.rc, result.stdout) == (2, "")
    assert result.stderr.startswith("nvoci: " + message.replace("ROOT", str(root)))
    assert result.stderr.count("\n") == 1


def test_a_malformed_cache_is_told_with_its_place(nvoci: Invoke, root: Path) -> None:
    cache = root / CACHE
    data = bytearray(cache.read_bytes())
    struct.pack_into("<I", data, 48 + 24 * 2 + 8, 1 << 31)
    cache.write_bytes(data)
    count = struct.unpack_from("<I", data, 20)[0]
    what = f"malformed: string outside of the file, or without end, entry 3 of {count} at byte 96 ("
    assert what in nvoci("ldcache", "show", root).stderr
    struct.pack_into("<I", data, 20, 1 << 20)
    cache.write_bytes(data)
    assert f"({1 << 20} entries in {len(data)} bytes)" in nvoci("ldcache", "show", "--cache", cache).stderr


CONFS = {
    "fifo": ("fifo etc/ld.so.conf", "read /etc/ld.so.conf: EINVAL: not a regular file ("),
    "deep": (DEEP, "read /etc/64: E2BIG: included more than 64 deep ("),
    "1 TiB": ("sparse etc/ld.so.conf 1T", "read /etc/ld.so.conf: EFBIG: larger than 1048576 bytes ("),
}


@pytest.mark.parametrize("case", CONFS)
def test_a_bad_conf_is_one_line_and_exit_status_2(nvoci: Invoke, root: Path, case: str) -> None:
    spec, message = CONFS[case]
    tree(root, spec)
    for command in (["diff"], ["explain", "libone.so.1"]):
        start = time.monotonic()
        result = nvoci("ldcache", command[0], root, *command[1:])
        assert time.monotonic() - start < 5
        assert (result.rc, result.stdout) == (2, "")
        assert result.stderr.startswith("nvoci: " + message)
        assert result.stderr.count("\n") == 1


def test_circles_of_includes_end(nvoci: Invoke, root: Path) -> None:
    tree(root, "file etc/ld.so.conf.d/loop.conf include /etc/ld.so.conf /etc/ld.so.conf.d/*\\n")
    assert nvoci("ldcache", "diff", root).rc == 0


USAGE = {
    "show without a root": (["show"], "Error: give ROOT, or --cache FILE"),
    "show with two": (["show", "/", "--cache", "x"], "Error: give ROOT, or --cache FILE"),
    "no such root": (["show", "/no/such"], "nvoci: open root /no/such: ENOENT"),
    "a file for a root": (["diff", "/etc/passwd"], "nvoci: open root /etc/passwd: ENOTDIR"),
    "no such file": (["show", "--cache", "/no/such"], "nvoci: read cache /no/such: ENOENT"),
    "a device for a file": (["show", "--cache", "/dev/zero"], "nvoci: read cache /dev/zero: not a regular file"),
    "no name": (["explain", "/"], "Error: Missing argument 'NAME'."),
    "an empty name": (["explain", "/", ""], "Error: NAME is empty"),
    "an unknown abi": (["explain", "/", "x", "--abi", "vax"], "Error: Invalid value for '--abi'"),
    "a relative folder": (["diff", "/", "--folder", "x"], "nvoci: update-ldcache: folder `x` is not an absolute path"),
}


@pytest.mark.parametrize("case", USAGE)
def test_bad_arguments_are_exit_status_2(nvoci: Invoke, case: str) -> None:
    words, message = USAGE[case]
    result = nvoci("ldcache", *words)
    assert (result.rc, result.stdout) == (2, "")
    assert message in result.stderr


COMPLETED = {
    "commands": ("nvoci ldcache ", 2, {"show", "diff", "explain"}),
    "options": ("nvoci ldcache diff --", 3, {"--folder", "--json", "--help"}),
    "programs": ("nvoci ldcache explain --abi i", 4, {"i386"}),
}


@pytest.mark.parametrize("case", COMPLETED)
def test_completion_knows_the_commands(bin_dir: Path, case: str) -> None:
    line, at, expected = COMPLETED[case]
    env = {"_NVOCI_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(at), "PATH": "/usr/bin"}
    result = proc.run([bin_dir / "nvoci"], env=env)
    assert {word.partition(",")[2] for word in result.stdout.split()} == expected


def test_a_root_completes_as_a_directory(bin_dir: Path) -> None:
    env = {"_NVOCI_COMPLETE": "bash_complete", "COMP_WORDS": "nvoci ldcache show /et", "COMP_CWORD": "3"}
    assert proc.run([bin_dir / "nvoci"], env={**env, "PATH": "/usr/bin"}).stdout.split() == ["dir,/et"]


def test_a_locale_without_the_letters_is_no_error(bin_dir: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_bytes(encode([Entry(0x303, "lib\u0142.so".encode(), b"/x")]))
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1", "PATH": "/usr/bin"}
    result = proc.run([bin_dir / "nvoci", "ldcache", "show", "--cache", str(cache)], env=env)
    assert (result.rc, len(result.stdout.splitlines())) == (0, 2)
