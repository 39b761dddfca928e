"""A whole computation of the cache: on an image with a hostile cache, and on one with hostile files."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from errno import E2BIG
from pathlib import Path

from fuzz import target_cache, target_conf
from fuzz.registry import Target, register
from fuzz.trees import build, rooted

from nvoci.ldcache.cache import Cache, CacheError, Entry, encode, parse
from nvoci.ldcache.compute import Link, Result, compute, is_name
from nvoci.ldcache.conf import conf_directories
from nvoci.linux.rootfs import Rootfs

PATHS = [b"/l", b"/m", b"/n/"]
IMAGE = b"""\
/l
@lib l/liba.so.1.0 liba.so.1
@link l/liba.so.1 liba.so.1.0
@lib l/libb.so.2.0 libb.so.2
@lib l/glibc-hwcaps/x86-64-v3/liba.so.1.0 liba.so.1
@link m /l
@lib o/libc.so.3 libc.so.3
@link l/libd.so.4 /nowhere
@file l/libe.so
"""
SONAMES = {b"liba.so.1", b"libb.so.2"}


@functools.cache
def _image() -> Path:
    """Made once: a computation changes nothing."""
    root = Path(tempfile.mkdtemp(prefix="nvoci-fuzz-image-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    build(root, IMAGE, target_conf.CONF)
    return root


@contextlib.contextmanager
def image() -> Iterator[Rootfs]:
    """The image, as a root."""
    rootfs = Rootfs.open(str(_image()))
    try:
        yield rootfs
    finally:
        rootfs.close()


@contextlib.contextmanager
def _with_cache(data: bytes) -> Iterator[tuple[Rootfs, bytes]]:
    with image() as rootfs:
        yield rootfs, data


def _extend(case: tuple[Rootfs, bytes]) -> tuple[Result, bytes, Cache]:
    rootfs, data = case
    cache = parse(data)
    result = compute(rootfs, PATHS, cache)
    return result, encode(result.entries), cache


def _only_a_limit(error: Exception) -> bool:
    return not isinstance(error, OSError) or error.errno == E2BIG


def _check_extended(data: bytes, case: tuple[Rootfs, bytes], answer: tuple[Result, bytes, Cache]) -> None:
    """Nothing of the image's libraries is lost; everything listed is there, or will be by a link; it is written as it
    is read; and once more it is the same."""
    rootfs, _ = case
    result, new, _ = answer
    _check_entries(rootfs, result)
    found = {e.unsafe_soname for e in result.entries if e.hwcap == 0}
    assert found >= SONAMES, f"lost: {SONAMES - found}"
    again = compute(rootfs, PATHS, parse(new))
    assert encode(again.entries) == new, "extended a second time it is another"


def _check_entries(rootfs: Rootfs, result: Result) -> None:
    planned = {link.unsafe_path for link in result.links}
    for link in result.links:
        assert is_name(link.unsafe_path.rpartition(b"/")[2])
        assert b"/" not in link.unsafe_target
        assert link.target_path() in planned or rootfs.exists(link.target_path()), link.target_path()
    for e in result.entries:
        assert e.unsafe_path.startswith(b"/"), e.unsafe_path
        assert e.unsafe_path in planned or _is_there(rootfs, e.unsafe_path), e.unsafe_path


def _is_there(rootfs: Rootfs, path: bytes) -> bool:
    """A link that leads nowhere yet counts."""
    try:
        rootfs.lstat(path)
    except OSError:
        return False
    return True


def _cache_seeds() -> list[bytes]:
    with image() as rootfs:
        own = encode(compute(rootfs, PATHS).entries)
    entry = Entry(0x303, b"libc.so.3", b"/o/libc.so.3")
    other = [entry, *(Entry(0x303, b"liba.so.1", path) for path in (b"/m/liba.so.1", b"/l/../l/liba.so.1"))]
    long = [Entry(0x303, b"liba.so.1", b"/" + b"x" * size + b"/liba.so.1") for size in (255, 256, 4080)]
    odd = [Entry(0x303, b"liba.so.1", b"liba.so.1"), Entry(3, b"", b""), Entry(0x303, b"/", b"/o/libc.so.3/../x")]
    return [own, encode([entry]), encode(other), encode([*long, *odd]), *target_cache.PARSE.seeds()]


register(
    Target(
        "image-cache", parse=_extend, prepare=_with_cache, errors=(CacheError, OSError), allowed=_only_a_limit,
        check=_check_extended, seeds=_cache_seeds, fields=target_cache.fields, max_size=1 << 13, executions=2000,
        seconds=0.025,
        tokens=(b"/l/", b"/m/", b"..", b"/", b"\0", b"liba.so.1\0", b"/o/libc.so.3\0", b"/l/libd.so.4\0", b"\n"),
    )
)  # fmt: skip


def _full(rootfs: Rootfs) -> tuple[Result, bytes]:
    result = compute(rootfs, conf_directories(rootfs))
    return result, encode(result.entries)


def _check_full(data: bytes, rootfs: Rootfs, answer: tuple[Result, bytes]) -> None:
    result, new = answer
    _check_entries(rootfs, result)
    for e in result.entries:
        assert is_name(e.unsafe_soname), e.unsafe_soname
    for link in result.links:
        _make(rootfs, link)
    for e in result.entries:
        assert rootfs.exists(e.unsafe_path), e.unsafe_path
    paths = conf_directories(rootfs)
    again = compute(rootfs, paths)
    assert [target_cache.plain(e) for e in again.entries] == [target_cache.plain(e) for e in result.entries]
    assert not again.links
    extended = compute(rootfs, paths, parse(new))
    assert (encode(extended.entries), extended.links) == (new, []), "extended, it is not what was computed"


def _make(rootfs: Rootfs, link: Link) -> None:
    folder, _, name = link.unsafe_path.rpartition(b"/")
    fd = rootfs.dir(folder).fileno()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=fd)
    os.symlink(link.unsafe_target, name, dir_fd=fd)


def _named(error: Exception) -> bool:
    return target_conf._names_what_is_wrong(error) if isinstance(error, OSError) else True


_ODD_NAMES = b"""\
/l
/m
include /etc/c/*
@lib l/libx.so ../../etc/x
@lib l/liby.so /abs
@lib m/libz.so.1 libz.so.1
@link m/libz.so libz.so.1
@link l/libl.so libl.so
@file etc/c/a
/n
@link n ../../../m
"""
_MANY_KINDS = b"""\
/l
@lib l/lib1.so.10 liba.so
@lib l/lib1.so.9 liba.so
@lib l/liba.so liba.so
@fifo l/libf.so
@device l/libd.so
@dir l/libe.so
@link l/liba.so.5 lib1.so.9
@lib l/libq.so
"""

register(
    Target(
        "image", parse=_full, prepare=rooted(target_conf.CONF), errors=(CacheError, OSError), allowed=_named,
        check=_check_full, seeds=lambda: [IMAGE, _ODD_NAMES, _MANY_KINDS], max_size=1 << 12, executions=800,
        seconds=0.050, tokens=(
            *target_conf.TOKENS, b"\n@lib l/libn.so.1 libn.so.1\n", b"@lib ", b" lib.so\n", b"\n@link l/libm.so.1 ",
            b"glibc-hwcaps/x86-64-v3/", b".so", b".so.1", b"lib", b"ld-",
        ),
    )
)  # fmt: skip
