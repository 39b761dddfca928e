"""ld.so.conf as a bomb: includes without end, patterns that take long, files that are large; each bounded in time."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz.limits import cpu_seconds, mebibytes, outcome

from nvoci.ldcache.conf import MAX_CONF, conf_directories
from nvoci.linux.rootfs import Rootfs

KIB, MIB = 1 << 10, 1 << 20
WIDE = 200  # files with long names in /etc/w
Files = dict[str, bytes]


def deep(levels: int) -> Files:
    return {f"etc/c/{i}": b"include %d\n" % (i + 1) for i in range(levels)}


def wide() -> Files:
    return {f"etc/w/{i:03}{'a' * 200}": b"" for i in range(WIDE)}


# (files, CPU seconds, errno or None, directories found)
SHAPES: dict[str, tuple[Files, float, int | None, int]] = {
    "one include deeper than allowed, of 10,000": (
        {"etc/ld.so.conf": b"include c/0\n", **deep(10_000)}, 0.010, errno.E2BIG, 0
    ),
    "a file that includes itself by 99 names": (
        {"etc/ld.so.conf": b"include /etc/ld.so.conf /etc/../etc/ld.so.conf ld.so.conf\n" * 33 + b"/a\n"},
        0.010, None, 1,
    ),
    "two files that include each other by a glob, 500 times": (
        {"etc/ld.so.conf": b"include c/*\n/a\n" * 20, "etc/c/a": b"include *\n/b\n" * 20}, 0.010, None, 2
    ),
    "a pattern of pattern directories": (
        {"etc/ld.so.conf": b"include /*/*/*/*/*\n", **wide()}, 0.100, None, 0
    ),
    "a thousand of them": ({"etc/ld.so.conf": b"include /*/*/*/*\n" * 1000, **wide()}, 0.100, errno.E2BIG, 0),
    "classes without end": (
        {"etc/ld.so.conf": (b"include w/" + b"[" * 200 + b"\n") * 50, **wide()}, 0.100, None, 0
    ),
    "many classes": (
        {"etc/ld.so.conf": (b"include w/" + b"[!-~]*" * 40 + b"b\n") * 50, **wide()}, 0.100, None, 0
    ),
    "classes that never fit": (
        {"etc/ld.so.conf": (b"include w/*" + b"[a-z]" * 100 + b"[0-9]\n") * 50, **wide()}, 0.100, None, 0
    ),
    "many stars": ({"etc/ld.so.conf": (b"include w/" + b"*a" * 100 + b"b\n") * 200, **wide()}, 0.100, None, 0),
    "a component longer than a name can be": (
        {"etc/ld.so.conf": b"include w/" + b"*a" * 1900 + b"b\n", **wide()}, 0.100, None, 0
    ),
    "includes of nothing, 1 MiB": ({"etc/ld.so.conf": b"include " + b"/x " * (MIB // 3 - 8)}, 0.100, None, 0),
    "includes of a directory, 64 KiB": ({"etc/ld.so.conf": b"include " + b"/ " * 32 * KIB}, 0.100, None, 0),
    "empty lines, 1 MiB": ({"etc/ld.so.conf": b"\n" * (MIB - 1)}, 0.100, None, 0),
    "one directory, 1 MiB": ({"etc/ld.so.conf": b"/a\n" * (MIB // 3)}, 0.100, None, 1),
    "20 files of 1 MiB": (
        {"etc/ld.so.conf": b"include c/*\n", **{f"etc/c/{i}": b"\n" * (MIB - 1) for i in range(20)}},
        0.100, errno.EFBIG, 0,
    ),
    "one line, 1 MiB": ({"etc/ld.so.conf": b"/" + b"a" * (MIB - 1)}, 0.010, None, 0),
    "one comment, 1 MiB": ({"etc/ld.so.conf": b"/a#" + b"#" * (MIB - 4) + b"\n"}, 0.010, None, 1),
    "one line, 10 MiB": ({"etc/ld.so.conf": b"a" * 10 * MIB}, 0.010, errno.EFBIG, 0),
    "hwcap lines": ({"etc/ld.so.conf": b"hwcap 1 nosegneg\nhwcap\nhwcap \xff\n" * 200 + b"/a\n"}, 0.010, None, 1),
    "include with a NUL": (
        {"etc/ld.so.conf": b"include /etc/\0c/a\ninclude \0\n/a\n", "etc/c/a": b"/b"}, 0.010, None, 1
    ),
    "include without a blank": ({"etc/ld.so.conf": b"include/etc/c/a\nincludec\n", "etc/c/a": b"/b"}, 0.010, None, 0),
    "include of a name too long for a file": ({"etc/ld.so.conf": b"include " + b"x" * 256 + b"\n/a\n"}, 0.010, None, 1),
    "include of a path too long": ({"etc/ld.so.conf": b"include /" + b"x/" * 2100 + b"y\n/a\n"}, 0.010, None, 1),
    "include of a pattern too long": ({"etc/ld.so.conf": b"include /" + b"*/" * 2100 + b"*\n/a\n"}, 0.010, None, 1),
}  # fmt: skip


@pytest.fixture
def rootfs(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rootfs]:
    for name, content in SHAPES[request.param][0].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    root = Rootfs.open(str(tmp_path))
    yield root
    root.close()


def directories(rootfs: Rootfs) -> list[bytes]:
    return conf_directories(rootfs)


@pytest.mark.parametrize(("rootfs", "shape"), [(s, s) for s in SHAPES], indirect=["rootfs"], ids=list(SHAPES))
def test_it_ends_soon_with_what_is_there_or_one_named_limit(rootfs: Rootfs, shape: str) -> None:
    _, seconds, number, count = SHAPES[shape]
    found = outcome(lambda: directories(rootfs), (OSError,))
    if number is not None:
        assert isinstance(found, OSError)
        assert found.errno == number
        assert found.filename is not None
    elif not (isinstance(found, OSError) and found.errno == errno.E2BIG and seconds > 0.010):
        assert isinstance(found, list), found  # a bomb may as well be refused by name
        assert len(found) == count
    assert cpu_seconds(lambda: directories(rootfs), (OSError,), seconds) < seconds


@pytest.mark.parametrize(("rootfs", "shape"), [(s, s) for s in SHAPES], indirect=["rootfs"], ids=list(SHAPES))
def test_it_takes_no_more_memory_than_one_file_and_its_lines(rootfs: Rootfs, shape: str) -> None:
    assert mebibytes(lambda: directories(rootfs), (OSError,)) < 8 * MAX_CONF / MIB
