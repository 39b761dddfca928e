"""Rows A11 and A12: names and paths as long as they may be and longer, and names that are hostile to who reads them.

What may be made is made with exactly that name; what may not is one line, in which nothing of the name acts.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import pytest
from lib import elfmaker, jail, rootfs, session
from lib.hookproc import FakeContainer, run_hook
from security.arena import COMPAT, LDCACHE, LIBDIR, STAGES, Arena, at_places, attempt
from security.test_paths import CACHE_FILES, COMPAT_ARGS

LONG = pytest.mark.long

PLACE = at_places("new-outside")


# -- A11 --------------------------------------------------------------------------------------------------------------


def dotted(length: int, end: str) -> str:
    """An absolute path of that many bytes which leads to `end`."""
    rest = length - len(end) - 1
    return "/" + "./" * (rest // 2) + "/" * (rest % 2) + end


def deep(length: int) -> str:
    """An absolute path of that many bytes, of directories that are not there."""
    parts = ["d" * 200] * (length // 201)
    return "/" + "/".join(parts) + "/" + "e" * (length - 201 * len(parts) - 1)


# A path, and whether it can be: include/uapi/linux/limits.h, NAME_MAX 255 and PATH_MAX 4096 with the final NUL.
PATHS: dict[str, tuple[str, bool]] = {
    "component-255": ("/made/" + "n" * 255, True),
    "component-256": ("/made/" + "n" * 256, False),
    "parent-255": ("/made/" + "n" * 255 + "/x", True),
    "parent-256": ("/made/" + "n" * 256 + "/x", False),
    "deep-3800": ("/made" + deep(3800), True),
    "dots-4095": (dotted(4095, "made/x"), True),
    "dots-4200": (dotted(4200, "made/x"), False),
    "deep-4200": ("/made" + deep(4200), False),
    "dots-8192": (dotted(8192, "made/x"), False),
    "deep-8192": ("/made" + deep(8192), False),
}


@PLACE
@pytest.mark.parametrize("case", PATHS)
def test_a11_a_link_with_a_long_path(arena: Arena, place: str, case: str) -> None:
    path, ok = PATHS[case]
    words = ["create-symlinks", "--link", f"target::{path}"]
    parts = [] if ok else ["ENAMETOOLONG", "/made"[:3]]
    planned = ["made", "made/**"] if ok else []
    found = attempt(arena, words, place, ok=ok, parts=parts, planned=planned)
    assert [v for v in found if "changed mtime" not in v] == []
    if ok:
        root = os.open(arena.root, os.O_PATH)
        assert os.readlink(os.path.relpath(path, "/"), dir_fd=root) == "target"
        os.close(root)


@PLACE
@pytest.mark.parametrize("length", [4095, 4096, 8192])
def test_a11_chmod_of_a_long_path(arena: Arena, place: str, length: int) -> None:
    ok = length < 4096
    words = ["chmod", "--mode", "640", "--path", dotted(length, "usr/share/nvidia/file")]
    planned = ["usr/share/nvidia/file"] if ok else []
    found = attempt(arena, words, place, ok=ok, parts=[] if ok else ["ENAMETOOLONG"], planned=planned)
    assert found == []


@PLACE
@pytest.mark.parametrize("length", [4095, 4096, 8192])
@pytest.mark.parametrize("engine", LDCACHE)
def test_a11_a_long_folder(arena: Arena, place: str, engine: str, length: int) -> None:
    """A folder that cannot be is none: the start goes on, or is refused, and nothing else is lost."""
    words = ["update-ldcache", "--engine", engine, "--folder", dotted(length, "opt/none")]
    assert attempt(arena, words, place, planned=CACHE_FILES, max_wall=5.0) == []


@PLACE
@pytest.mark.parametrize("length", [255, 4095, 4096, 8192])
def test_a11_a_long_line_in_ld_so_conf(arena: Arena, place: str, length: int) -> None:
    path = "/" + "n" * length if length == 255 else deep(length)
    (arena.root / "etc/ld.so.conf.d/long.conf").write_text(f"{path}\ninclude {path}\n{dotted(length, LIBDIR)}\n")
    words = LDCACHE["builtin"]
    assert attempt(arena, words, place, ok=True, planned=CACHE_FILES, max_wall=5.0) == []
    assert b"libfoo.so.1\0" in (arena.root / "etc/ld.so.cache").read_bytes()


@PLACE
@pytest.mark.parametrize("length", [4095, 4096])
def test_a11_a_link_of_the_image_with_a_long_text(arena: Arena, place: str, length: int) -> None:
    """Of the longest that symlink(2) takes, which leads to a directory, and of a chain of two such."""
    text = dotted(length, LIBDIR)
    if length == 4096:
        text = dotted(4000, "two")
        rootfs.tree(arena.root, f"symlink two {dotted(4000, LIBDIR)}")
    rootfs.tree(arena.root, f"symlink opt {text}")
    words = ["create-symlinks", "--link", "target::/opt/new"]
    assert attempt(arena, words, place, ok=True, planned=[f"{LIBDIR}/new"]) == []
    assert os.readlink(arena.root / LIBDIR / "new") == "target"


# -- A12 --------------------------------------------------------------------------------------------------------------

NAMES = {
    "newline": b"new\nline",
    "forged-line": b'x"\ntime="2026-01-01T00:00:00Z" level=info msg="all is well"',
    "carriage-return": b"over\rwritten",
    "not-utf-8": b"\xff\xfe\xc0\xaf",
    "half-utf-8": b"half\xe2\x80",
    "colon": b"a:b",
    "spaces": b"  a  b  ",
    "dash": b"--help",
    "escape": b"\x1b]0;title\x07\x1b[2J\x1b[31m",
    "controls": bytes(range(1, 32)).replace(b"\n", b"") + b"\x7f",
    "c1-controls": "\u0085\u009b31m".encode(),
    "right-to-left": "\u202egnp.\u202c\u2066\u200f".encode(),
    "line-separators": "a\u2028b\u2029c\ufeff".encode(),
    "quotes": b"'\"`$(id)${IFS}\\",
    "format": b"%s%n{0}{x}",
    "dots": b"...",
}
SAFE = {0x20, *range(0x21, 0x7F)}
BREAKS = ("\u202e", "\u2066", "\u200f", "\u2028", "\u2029", "\u0085", "\u009b", "\x1b", "\x07", "\r", "\x7f")
SOME = [pytest.param(n, marks=LONG) if n in ("half-utf-8", "spaces", "format", "quotes") else n for n in NAMES]


def harmless(said: str, found: Sequence[str]) -> list[str]:
    """What is wrong with a message: more than one line, or characters that act on a terminal or hide others."""
    lines = [line for line in said.split("\n") if line]
    out = list(found)
    if len(lines) > 1 or any(ord(c) < 0x20 for line in lines for c in line):
        out.append(f"not one line, or with controls: {said!r}")
    out += [f"has {c!r}: {said!r}" for c in BREAKS if c in said]
    out += [f"has a surrogate: {said!r}" for c in said[:4000] if 0xDC80 <= ord(c) <= 0xDCFF]
    return out


@PLACE
@pytest.mark.parametrize("name", SOME)
def test_a12_a_hostile_name_is_made_as_it_is_or_named_in_one_line(arena: Arena, place: str, name: str) -> None:
    text = os.fsdecode(NAMES[name])
    path = f"made/{text}"
    with FakeContainer(arena.root) as c:
        made = run_hook(["create-symlinks", "--link", f"target::/{path}"], container=c, stage=STAGES[place])
        assert (made.rc, made.stderr) == (0, "")
        assert os.listdir(os.fsencode(arena.root / "made")) == [NAMES[name]]
        assert os.readlink(os.fsencode(arena.root / path)) == b"target"
        os.unlink(os.fsencode(arena.root / path))
        os.mkdir(os.fsencode(arena.root / path))
        failed = run_hook(["create-symlinks", "--link", f"target::/{path}"], container=c, stage=STAGES[place])
    assert failed.rc == 1
    assert harmless(failed.stderr, [] if "EISDIR" in failed.stderr else [failed.stderr]) == []


@PLACE
def test_a12_two_colons_in_a_name_are_refused(arena: Arena, place: str) -> None:
    words = ["create-symlinks", "--link", "target::/made/a::b"]
    assert attempt(arena, words, place, ok=False, parts=["invalid symlink specification"]) == []


@PLACE
@pytest.mark.parametrize("name", SOME)
def test_a12_hostile_names_in_the_image(arena: Arena, place: str, name: str) -> None:
    """A directory of ld.so.conf, a library, its soname, a compatibility library and a node, all called that."""
    raw = NAMES[name]
    folder = os.fsencode(arena.root) + b"/" + raw
    os.makedirs(folder)
    source = elfmaker.make_so(arena.top / "lib", "libbar.so.1", machine=platform.machine())
    for where in (folder, os.fsencode(arena.root / LIBDIR), os.fsencode(arena.root / COMPAT)):
        os.link(source, where + b"/libbar" + raw + b".so.1")
        os.link(source, where + b"/libcuda.so.700." + raw)
    (arena.root / "etc/ld.so.conf.d/x.conf").write_bytes(b"/" + raw + b"\ninclude /etc/" + raw + b"*\n")
    os.symlink(b"/" + raw, os.fsencode(arena.root) + b"/etc/" + raw + b"x")
    os.mknod(os.fsencode(arena.root / "dev/nvidia") + raw, 0o20666, os.makedev(195, 0))
    words = ["run", "--", "update-application-profile", "--", *COMPAT_ARGS, "--", *LDCACHE["builtin"]]
    log = Path(session.new_dir("log")) / "hook.log"
    setup = jail.host_files({"/etc/nvoci/hook.json": json.dumps({"log": {"file": str(log), "level": "debug"}})})
    with FakeContainer(arena.root) as c:
        done = run_hook(words, container=c, stage=STAGES[place], setup=setup)
    assert harmless(done.stderr, []) == []
    if log.exists():
        for line in log.read_text(errors="surrogateescape").splitlines(keepends=True):
            assert harmless(line, []) == []
            assert line.startswith(("time=", "{"))


@pytest.mark.parametrize("name", ["newline", "not-utf-8", "escape", "right-to-left"])
def test_naive_a12_a_hostile_name_acts(arena: Arena, name: str) -> None:
    """The naive message is Python's traceback with the name as it is, or as a surrogate."""
    place = os.fsencode(arena.root / "made") + b"/" + NAMES[name]
    os.makedirs(place + b"/libcuda.so.1")
    words = ["create-symlinks", "--link", f"libcuda.so.1::/made/{os.fsdecode(NAMES[name])}"]
    with FakeContainer(arena.root) as c:
        from security.arena import run

        done = run(words, c, "outside", naive=True)
    assert done.rc == 1
    assert harmless(done.stderr, [])
