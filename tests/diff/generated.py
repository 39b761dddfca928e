"""Random images: what a generated case holds, and how it becomes files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from diff import judge, layouts
from hypothesis import strategies as st
from lib import elfmaker, rootfs

MULTIARCH, LIB64 = layouts.MULTIARCH, layouts.LIB64
OWN = ("/opt/a", "/opt/b", "/usr/local/lib")
BELOW = (
    "/opt/a/glibc-hwcaps/x86-64-v2", "/opt/b/glibc-hwcaps/x86-64-v3", "/opt/b/glibc-hwcaps/x86-64-v2", "/opt/a/tls",
    "/opt/a/sub", "/opt/b/haswell",
)  # fmt: skip
NAMES = (
    "libx.so.1.2", "libx.so.1.10", "libx.so.1", "libx.so", "liby.so.2", "liby.so.2.0", "liby.so", "libx-1.0.so",
    "ld-x.so.1", "libz.so.09", "libz.so.9", "libz.so.9.1", "lib\udce9.so.1", "other.so.1", "libx.txt",
    "libx.so.1.#prelink#", "libx.so-gdb.py", "libX.so.1", "libc.so.6",
)  # fmt: skip
SONAMES = (
    None, "libx.so.1", "libx.so.1", "libx.so", "liby.so.2", "libx-1.0.so", "libz.so.9", "libother.so.3", "ld-x.so.1",
    "libx.so.1.2", "no/x", "", ".", "libc.so.6",
)  # fmt: skip
CONF_LINES = (
    "# a comment", "", "/opt/a # behind", "  /opt/b/  ", "/opt/b=libc6", "/opt/a/=glibc2", "hwcap 1 nosegneg",
    "relative/dir", "/opt/alias", "/opt/missing", "/opt/a//", "include /etc/none.conf", "include\t/etc/more.conf",
    "include ld.so.conf.d/a.conf", "include /etc/ld.so.conf.d/*.conf", "include ld.so.conf.d/[ab].conf",
    "include /etc/ld.so.conf.d/?.conf /etc/more.conf", "/opt/a/sub", "/usr/lib",
)  # fmt: skip
INCLUDED_LINES = tuple(line for line in CONF_LINES if not line.startswith("include"))
_EVERY = "include /etc/ld.so.conf.d/*.conf"


@dataclass(frozen=True)
class File:
    """kind: elf, link, text, empty, short or dir. what: (soname, machine, class) of an ELF file, or a link's text."""

    kind: str
    what: tuple[str | None, str, int | None] | str = ""
    removed: bool = False


@dataclass(frozen=True)
class Image:
    """files: below (directory, name), those that were there when the image's cache was made; later: those that came
    after. conf: file name below /etc -> lines; new_conf: what it is when the hook runs. rounds: runs of ldconfig that
    made the image's cache, 0 for none."""

    debian: bool
    merged: bool
    alias: str
    files: dict[tuple[str, str], File]
    later: dict[tuple[str, str], File]
    conf: dict[str, list[str]]
    new_conf: dict[str, list[str]] | None
    rounds: int
    folders: list[str]


_elf = st.builds(
    lambda soname, kind: File("elf", (soname, *kind)),
    st.sampled_from(SONAMES),
    st.sampled_from([("x86_64", None)] * 5 + [("i386", None), ("x86_64", 32), ("aarch64", None), ("s390x", None)]),
)
_elsewhere = st.builds("{}/{}".format, st.sampled_from((*OWN, "../b", "sub", "..")), st.sampled_from(NAMES))
_targets = st.sampled_from(NAMES) | _elsewhere
_link = st.builds(lambda text: File("link", text), _targets | st.sampled_from(["nowhere", "/nowhere", "/etc", "/"]))
_other = st.sampled_from([File("text"), File("empty"), File("short"), File("dir")])
_file = st.one_of(_elf, _elf, _link, _other)


@st.composite
def images(draw: st.DrawFn) -> Image:
    debian = draw(st.booleans())
    system = MULTIARCH if debian else LIB64
    folders = draw(st.lists(st.sampled_from((*OWN, *OWN, *BELOW, system, "/lib")), min_size=1, max_size=4))
    names = ["libx.so.1.2", *draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=6))]
    places = st.tuples(st.sampled_from(folders), st.sampled_from(names))
    files = draw(st.dictionaries(places, _file, max_size=14))
    later = draw(st.dictionaries(places, _file, max_size=6))
    removed = draw(st.lists(st.sampled_from(sorted(files)), max_size=3)) if files else []
    files = {k: File(f.kind, f.what, k in removed) for k, f in files.items()}
    lines = st.lists(st.sampled_from((*CONF_LINES, *OWN, system, _EVERY, _EVERY)), max_size=5)
    included = st.lists(st.sampled_from((*INCLUDED_LINES, *OWN, system)), max_size=3)
    parts = dict.fromkeys(("ld.so.conf.d/a.conf", "ld.so.conf.d/b.conf", "more.conf"), included)
    conf = st.fixed_dictionaries({}, optional={"ld.so.conf": lines, **parts})
    hooks = st.sampled_from(["/opt/a", "/opt/b", "/opt/alias", "/opt/new", system])
    return Image(
        debian,
        draw(st.booleans()),
        draw(st.sampled_from(["", "a", "b", "/usr/lib"])),
        files,
        {k: f for k, f in later.items() if k not in files},
        draw(conf),
        draw(st.none() | conf),
        draw(st.sampled_from([0, 1, 2, 2])),
        draw(st.lists(hooks, max_size=3, unique=True)),
    )


def build(root: Path, image: Image) -> None:
    rootfs.tree(root, "dir etc\ndir proc\ndir tmp\ndir usr/lib")
    rootfs.tree(root, "symlink lib usr/lib\nsymlink lib64 usr/lib64" if image.merged else "dir lib\ndir lib64")
    if image.debian:
        rootfs.tree(root, "file etc/debian_version 12.11\\n")
    _lay(root, image.files)
    if image.alias:
        rootfs.tree(root, f"symlink opt/alias {image.alias}")
    _configure(root, image.conf)
    for _ in range(image.rounds):
        judge.ldconfig(root)
    for (folder, name), file in image.files.items():
        path = judge.inside(root, folder) / name
        if file.removed and os.path.lexists(path):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    _lay(root, image.later)
    if image.new_conf is not None:
        for name in image.conf:
            (root / "etc" / name).unlink()
        _configure(root, image.new_conf)


def _configure(root: Path, conf: dict[str, list[str]]) -> None:
    for name, lines in conf.items():
        layouts.conf(root, name, *lines)


def _lay(root: Path, files: dict[tuple[str, str], File]) -> None:
    for (folder, name), file in files.items():
        place = judge.inside(root, folder)
        place.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(place / name):
            _one(place / name, file)


def _one(path: Path, file: File) -> None:
    if file.kind == "elf":
        soname, machine, bits = file.what
        assert machine is not None
        elfmaker.make_so(path, soname, ["libc.so.6"] if len(path.name) % 2 else [], str(machine), bits)  # type: ignore[arg-type]
    elif file.kind == "link":
        path.symlink_to(str(file.what))
    elif file.kind == "dir":
        path.mkdir()
    else:
        path.write_bytes({"text": b"INPUT(libx.so.1) /* a script for the linker, longer than an ELF header */\n" * 2,
                          "empty": b"", "short": b"\x7fELF\2\1\1"}[file.kind])  # fmt: skip
