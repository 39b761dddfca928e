"""ld.so.conf with whatever it includes, in a tree of files; and one glob pattern against one name."""

from __future__ import annotations

import ctypes
from errno import E2BIG, EFBIG, EINVAL, EISDIR

from fuzz.registry import Target, register
from fuzz.trees import rooted

from nvoci.ldcache.conf import MAX_DIRECTORIES, conf_directories
from nvoci.linux.pattern import match
from nvoci.linux.rootfs import Rootfs

CONF = b"etc/ld.so.conf"
_FNM_PERIOD = 4
_libc = ctypes.CDLL(None)

TOKENS = (
    b"include ", b"include\t", b"include", b"hwcap 1 x\n", b"hwcap", b"/etc/*", b"/*/*/*/*", b"[a-z]", b"[!", b"[]]",
    b"[^", b"*", b"**", b"?", b"\\", b"..", b"/", b"\n", b"\r\n", b"#", b"=libc6", b"\0", b"\xef\xbb\xbf", b"\xff",
    b"/etc/ld.so.conf", b"ld.so.conf.d/*.conf", b"\n@file ", b"\n@link ", b"\n@dir ", b"\n@fifo ", b"\n@device ",
    b"\n@file etc/c/a\n", b"\n@link etc/c/b /etc/c/a\n", b"include /etc/c/*\n",
)  # fmt: skip


_DEBIAN = b"""\
include /etc/ld.so.conf.d/*.conf
@file etc/ld.so.conf.d/libc.conf
# libc default configuration
/usr/local/lib
@file etc/ld.so.conf.d/x86_64-linux-gnu.conf
/usr/local/lib/x86_64-linux-gnu
/lib/x86_64-linux-gnu
"""


def _seeds() -> list[bytes]:
    deep = b"".join(b"\n@file etc/c/%d\n/d%d\ninclude %d\n" % (i, i, i + 1) for i in range(20))
    return [
        _DEBIAN,
        b"/a\n/b/ # b\n  /c=libc6\nhwcap 0 nosegneg\ninclude c/* /etc/d/?\n@file etc/c/1\n/1\n@file etc/d/2\n/2\n",
        b"include /etc/ld.so.conf /etc/c/[ab]\n@file etc/c/a\ninclude b\n@link etc/c/b a\n@link etc/c/x /etc/c\n",
        b"\xef\xbb\xbf/a\r\n/b\r\ninclude\ninclude \n/\xff\n/\0\n",
        b"include /etc/c/*\n@fifo etc/c/a\n",
        b"include /etc/c/*\n@dir etc/c/a\n@device etc/c/b\n",
        b"@link etc/ld.so.conf ../../../../etc/passwd\n@link etc/c loop\n@link etc/loop c\n",
        b"include /etc/c/0\n" + deep,
        b"include /*/*/*/*/*\n@dir a/b/c/d/e\n@dir a/c/b/d/e\n@dir b/b/b/b/b\n@link b/b/l /\n",
    ]


def _names_what_is_wrong(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (E2BIG, EFBIG, EINVAL, EISDIR) and bool(error.strerror)


def _check(data: bytes, rootfs: Rootfs, found: list[bytes]) -> None:
    """Absolute, each once, no more than allowed; a name that one line can hold; the same at a second reading."""
    assert len(set(found)) == len(found) <= MAX_DIRECTORIES
    for directory in found:
        assert directory.startswith(b"/")
        assert not set(directory) & set(b"\0\n#")
        assert directory == b"/" or not directory.endswith(b"/")
    assert conf_directories(rootfs) == found


register(
    Target(  # each include is a lookup, and each of a thousand files may be opened: more than 10 ms
        "ld.so.conf", parse=conf_directories, prepare=rooted(CONF), errors=(OSError,), allowed=_names_what_is_wrong,
        check=_check, seeds=_seeds, tokens=TOKENS, max_size=1 << 13, executions=1500, seconds=0.025,
    )
)  # fmt: skip


def _pattern_seeds() -> list[bytes]:
    simple = [b"*.conf\0a.conf", b"[a-c]?[!x]\0bbb", b"*a*a*a*b\0aaaaaaaaaaaa", b".*\0.a"]
    return [*simple, b"\\*[]]\0*]", b"[\0[", b"*[a\0x[a"]


def _match(data: bytes) -> bool:
    pattern, _, name = data.partition(b"\0")
    return match(pattern, name)


def _as_fnmatch(data: bytes, case: bytes, answer: bool) -> None:
    """libc's own answer, where bytes are characters and no bracket has a class, a backslash or no end in it."""
    pattern, _, name = data.partition(b"\0")
    if not data.isascii() or b"\0" in name or b"/" in data or (b"[" in pattern and _is_odd(pattern)):
        return
    if pattern.endswith(b"\\"):
        return  # an escape of nothing: the standard leaves it open
    assert answer == (_libc.fnmatch(pattern, name, _FNM_PERIOD) == 0)


def _is_odd(pattern: bytes) -> bool:
    return any(c in pattern for c in (b"\\", b"[:", b"[.", b"[=")) or pattern.count(b"[") != pattern.count(b"]")


register(
    Target(
        "pattern", parse=_match, errors=(), check=_as_fnmatch, seeds=_pattern_seeds, max_size=512, executions=12_000,
        tokens=(b"*", b"?", b"[", b"]", b"[!", b"[^", b"-", b"a-z", b"[]", b"[]a]", b"\\", b".", b"**", b"\0", b"[[]"),
    )
)  # fmt: skip
