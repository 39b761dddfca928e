"""ld.so.conf as it is written, and as a stranger may write it. Second witness: ldconfig -v."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from lib.rootfs import tree

from nvoci.ldcache import conf
from nvoci.ldcache.conf import conf_directories
from nvoci.linux.pattern import match
from nvoci.linux.rootfs import Rootfs
from tests.kernel.namespaced import os_error

LDCONFIG = "/sbin/ldconfig"
needs_ldconfig = pytest.mark.skipif(not os.path.exists(LDCONFIG), reason="no ldconfig on this host")


def read(root: Path, spec: str, **how: object) -> list[bytes]:
    tree(root, spec)
    return conf_directories(Rootfs.open(str(root)), **how)  # type: ignore[arg-type]


CONFS = {
    "plain": ("file etc/ld.so.conf /a\\n/b/\\n  /c  \\n", [b"/a", b"/b", b"/c"]),
    "comments": ("file etc/ld.so.conf # x\\n\\n/a # y\\n#/b\\n", [b"/a"]),
    "no newline": ("file etc/ld.so.conf /a", [b"/a"]),
    "crlf": ("file etc/ld.so.conf /a\\r\\n/b\\r\\n", [b"/a", b"/b"]),
    "byte order mark": ("file etc/ld.so.conf \\xef\\xbb\\xbf/a\\n/b\\n", [b"/b"]),
    "nul": ("file etc/ld.so.conf /a\\x00/x\\n/b\\n", [b"/b"]),
    "not utf-8": ("file etc/ld.so.conf /\\xff\\n", [b"/\xff"]),
    "flavour": ("file etc/ld.so.conf /a=libc6\\n", [b"/a"]),
    "hwcap": ("file etc/ld.so.conf hwcap 1 x\\n/a\\n", [b"/a"]),
    "relative directory": ("file etc/ld.so.conf a/b\\n/c\\n", [b"/c"]),
    "include without argument": ("file etc/ld.so.conf include\\ninclude \\n/a\\n", [b"/a"]),
    "twice": ("file etc/ld.so.conf /a\\n/b\\n/a\\n", [b"/a", b"/b"]),
    "include": (
        """
        file etc/ld.so.conf /a\\ninclude /etc/c/*.conf\\n/z\\n
        file etc/c/2.conf /2\\n
        file etc/c/1.conf /1\\n
        file etc/c/x /no\\n
        file etc/c/.h.conf /no\\n
        """,
        [b"/a", b"/1", b"/2", b"/z"],
    ),
    "relative include": ("file etc/ld.so.conf include c/*\\n\nfile etc/c/x /1\\n\nfile c/x /no\\n", [b"/1"]),
    "two patterns": ("file etc/ld.so.conf include /etc/a /etc/b\\n\nfile etc/a /1\nfile etc/b /2", [b"/1", b"/2"]),
    "self include": ("file etc/ld.so.conf include /etc/ld.so.conf\\n/a\\n", [b"/a"]),
    "link in the root": ("symlink etc/ld.so.conf /usr/x\nfile usr/x /a\\n", [b"/a"]),
    "link out of the root": ("symlink etc/ld.so.conf ../../../../etc/ld.so.conf\ndir etc", []),
    "dangling include": ("file etc/ld.so.conf include /etc/none /etc/c/*\\n/a\\n\nsymlink etc/c/x /none", [b"/a"]),
    "included directory": ("file etc/ld.so.conf include /etc/c/*\\n/a\\n\ndir etc/c/x.conf", [b"/a"]),
    "pattern for directories": ("file etc/ld.so.conf include /e*/?/x\\n\nfile etc/c/x /1\nfile etc/dd/x /2", [b"/1"]),
    "none": ("dir etc", []),
}


@pytest.mark.parametrize("shape", CONFS)
def test_directories_are_found_in_order(tmp_path: Path, shape: str) -> None:
    spec, wanted = CONFS[shape]
    assert read(tmp_path, spec) == wanted


@needs_ldconfig
@pytest.mark.parametrize("shape", CONFS)
def test_ldconfig_finds_the_same(tmp_path: Path, shape: str) -> None:
    spec, wanted = CONFS[shape]
    tree(tmp_path, spec)
    for directory in wanted:
        os.makedirs(os.fsencode(tmp_path) + directory, exist_ok=True)
    run = [LDCONFIG, "-r", tmp_path, "-v", "-N", "-X"]
    text = subprocess.run(run, check=True, capture_output=True, env={}).stdout
    found = re.findall(rb"^(/.*): \(from /etc", text, re.MULTILINE)
    assert found == wanted


def test_a_mutual_include_of_many_files_ends_at_once(tmp_path: Path) -> None:
    files = "".join(f"file etc/c/{i} include /etc/c/*\\n/d{i}\\n\n" for i in range(8))
    start = time.monotonic()
    assert sorted(read(tmp_path, files + "file etc/ld.so.conf include /etc/c/*\\n")) == [b"/d%d" % i for i in range(8)]
    assert time.monotonic() - start < 2


REFUSED = {
    "fifo": ("fifo etc/ld.so.conf", errno.EINVAL, b"/etc/ld.so.conf"),
    "socket": ("socket etc/ld.so.conf", errno.EINVAL, b"/etc/ld.so.conf"),
    "zero": ("char etc/ld.so.conf 1 5", errno.EINVAL, b"/etc/ld.so.conf"),
    "directory": ("dir etc/ld.so.conf", errno.EISDIR, b"/etc/ld.so.conf"),
    "1 TiB": ("sparse etc/ld.so.conf 1T", errno.EFBIG, b"/etc/ld.so.conf"),
    "included fifo": ("file etc/ld.so.conf include /etc/c/*\\n\nfifo etc/c/x.conf", errno.EINVAL, b"/etc/c/x.conf"),
    "link to a device": ("char dev/zero 1 5\nsymlink etc/ld.so.conf /dev/zero", errno.EINVAL, b"/etc/ld.so.conf"),
    "deep": (
        "".join(f"file etc/{i} include /etc/{i + 1}\n" for i in range(200)) + "file etc/ld.so.conf include /etc/0",
        errno.E2BIG,
        b"/etc/64",
    ),
    "many directories": (
        "file etc/ld.so.conf " + "".join(f"/d{i}\\n" for i in range(conf.MAX_DIRECTORIES + 1)),
        errno.E2BIG,
        b"/etc/ld.so.conf",
    ),
    "glob bomb": (
        "".join(f"dir {a}/{b}/{c}\n" for a in "abcdefgh" for b in "abcdefgh" for c in "abcdefgh")
        + "file etc/ld.so.conf include /*/*/*/*/*/*\\n",
        errno.E2BIG,
        None,
    ),
}


@pytest.mark.parametrize("shape", REFUSED)
def test_what_cannot_be_read_is_named(tmp_path: Path, shape: str) -> None:
    spec, number, name = REFUSED[shape]
    start = time.monotonic()
    with os_error() as e:
        read(tmp_path, spec)
    assert e.value.errno == number
    assert name is None or e.value.filename == name
    assert time.monotonic() - start < 2


def test_too_many_files_are_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conf, "MAX_FILES", 10)
    files = "".join(f"file etc/c/{i} /d\n" for i in range(9)) + "file etc/ld.so.conf include /etc/c/*\\n\n"
    assert read(tmp_path, files) == [b"/d"]
    with os_error() as e:
        read(tmp_path, files + "file etc/c/9 /d")
    assert (e.value.errno, e.value.filename) == (errno.E2BIG, b"/etc/c/9")


def test_as_many_directories_as_are_allowed_are_read(tmp_path: Path) -> None:
    wanted = [b"/d%d" % i for i in range(conf.MAX_DIRECTORIES)]
    assert read(tmp_path, "file etc/ld.so.conf " + "".join(f"{d.decode()}\\n" for d in wanted)) == wanted


MARKED = {
    "included": ("file etc/ld.so.conf include /etc/ld.so.conf.d/*.conf\\n/z\\n", [b"/a", b"\0m.conf", b"/n", b"/z"]),
    "included by a relative name": ("file etc/ld.so.conf include ld.so.conf.d/*.conf\\n", [b"/a", b"\0m.conf", b"/n"]),
    "included by its name": ("file etc/ld.so.conf /x\\ninclude /etc/ld.so.conf.d/m.conf\\n", [b"/x", b"\0m.conf"]),
    "included twice": (
        "file etc/ld.so.conf include /etc/ld.so.conf.d/m* /etc/ld.so.conf.d/*\\n", [b"\0m.conf", b"/a", b"/n"],
    ),
    "not included": ("file etc/ld.so.conf /x\\ninclude /etc/ld.so.conf.d/n.conf\\n", [b"/x", b"/n"]),
    "a link to the folder": (
        "file etc/ld.so.conf include /etc/other/*\\n\nsymlink etc/other ld.so.conf.d\nfile etc/other/m.conf /o\\n",
        [b"/a", b"\0m.conf", b"/n"],
    ),
    "no ld.so.conf": ("dir etc", [b"/a", b"\0m.conf", b"/n"]),
}  # fmt: skip


@pytest.mark.parametrize("there", [False, True], ids=["missing", "from an earlier run"])
@pytest.mark.parametrize("shape", MARKED)
def test_a_file_that_is_yet_to_be_written_is_marked_where_ldconfig_would_read_it(
    tmp_path: Path, shape: str, there: bool
) -> None:
    spec, wanted = MARKED[shape]
    tree(tmp_path, "file etc/ld.so.conf.d/a.conf /a\\n\nfile etc/ld.so.conf.d/n.conf /n\\n")
    if there:
        tree(tmp_path, "file etc/ld.so.conf.d/m.conf /old\\n")
    assert read(tmp_path, spec, marks=(b"m.conf",)) == wanted


def test_a_missing_ld_so_conf_counts_as_the_one_that_is_written_then(tmp_path: Path) -> None:
    assert read(tmp_path, "file etc/ld.so.conf.d/a.conf /a\\n") == [b"/a"]
    assert read(tmp_path, f"file etc/ld.so.conf {conf.DEFAULT.decode().strip()}") == [b"/a"]


def test_the_origin_of_each_directory_is_told(tmp_path: Path) -> None:
    spec = "file etc/ld.so.conf # x\\n/a\\ninclude /etc/c/*\\n/b\\n/d\\n\nfile etc/c/1 \\n/a\\n/b\\n"
    tree(tmp_path, spec)
    assert conf.conf_origins(Rootfs.open(str(tmp_path))) == {
        b"/a": (b"/etc/ld.so.conf", 2), b"/b": (b"/etc/c/1", 3), b"/d": (b"/etc/ld.so.conf", 5),
    }  # fmt: skip


PATTERNS = ["*", "a*", "*a", "a*b*c", "?", "[abc]", "[!abc]", "[a-c]x", "[]]", "[!]]", "[", "a[", "*.conf", "\\*", "**"]
NAMES = ["", "a", "b", "abc", "aXbYc", "x", "ax", "bx", "]", "[", "a[", "a.conf", "*", "-", "ab.conf.x", "dd"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_as_the_shells_do(pattern: str) -> None:
    if pattern == "\\*":
        assert [n for n in NAMES if match(pattern.encode(), n.encode())] == ["*"]
        return
    wanted = [n for n in NAMES if fnmatch.fnmatchcase(n, pattern)]
    assert [n for n in NAMES if match(pattern.encode(), n.encode())] == wanted


def test_hidden_names_are_matched_by_a_dot_only() -> None:
    assert not match(b"*", b".a")
    assert not match(b"?a", b".a")
    assert match(b".*", b".a")


def test_a_pattern_with_many_stars_is_quick() -> None:
    start = time.monotonic()
    assert not match(b"*a" * 120 + b"b", b"a" * 255)
    assert time.monotonic() - start < 1


def test_an_include_with_a_carriage_return_includes_nothing_as_with_ldconfig(tmp_path: Path) -> None:
    spec = "file etc/ld.so.conf include /etc/a.conf\\r\\n/b\\n\nfile etc/a.conf /a\\n"
    assert read(tmp_path, spec) == [b"/b"]


@pytest.mark.parametrize(("spec", "found"), [("symlink etc/ld.so.conf none", []), ("dir etc", [b"/a"])])
def test_only_a_missing_file_counts_as_the_default(tmp_path: Path, spec: str, found: list[bytes]) -> None:
    """For a link that leads nowhere none is written, and an ldconfig in the container reads none."""
    assert read(tmp_path, spec + "\nfile etc/ld.so.conf.d/x.conf /a\\n") == found
