"""How musl finds a library (ldso/dynlink.c): by file name, in the directories of its path file; it has no cache."""

from __future__ import annotations

from errno import ENOENT, ENOTDIR
from typing import TYPE_CHECKING, Any

from nvoci.ctl import ldroot, ldso
from nvoci.ctl.ldtext import raw, text
from nvoci.ldcache import conf, musl
from nvoci.linux import abi

if TYPE_CHECKING:
    from nvoci.linux.rootfs import Rootfs

_LOADER = f"lib/ld-musl-{abi.MACHINE}.so.1".encode()
# Names that are the loader itself: lib + one of these + a dot.
_OWN = (b"c", b"pthread", b"rt", b"m", b"dl", b"util", b"xnet")


def is_musl(rootfs: Rootfs) -> bool:
    """Alpine, or a root with musl's loader and no other."""
    if ldroot.is_file(rootfs, b"etc/alpine-release"):
        return True
    return ldroot.is_file(rootfs, _LOADER) and not any(rootfs.exists(a.loader) for a in ldso.ABIS.values())


def explain(rootfs: Rootfs, name: bytes) -> dict[str, Any]:
    """The facts, as nvoci.ctl.ldexplain has them. Raises OSError."""
    directories, origin = _directories(rootfs)
    doc: dict[str, Any] = {"name": text(name), "loader": "musl", "path_file": origin, "directories": []}
    doc["files"] = files = []
    for i, directory in enumerate(directories, 1):
        state = "searched" if rootfs.exists(directory) else "no such directory"
        doc["directories"].append({"rank": i, "path": text(directory), "from": origin, "state": state})
    doc["found"], doc["because"] = None, "no directory of the path has it"
    last = name.rpartition(b"/")[2]
    if last[:3] == b"lib" and last[3:].split(b".")[0] in _OWN and b"." in last:
        doc["found"] = {"path": "/" + text(_LOADER), "how": "the loader itself"}
        doc["because"] = "musl has this library in its loader"
        return doc
    for directory in directories:
        path = directory + b"/" + last
        header = ldso.header(rootfs, path)
        if header.wrong == ldso.ABSENT:
            continue
        files.append({"path": text(path), "elf": header.text()})
        if len(files) == 1 and header.loads(ldso.NATIVE):
            doc["found"] = {"path": text(path), "how": "path"}
            doc["because"] = "first directory that has a file of this name"
        elif len(files) == 1:
            doc["because"] = f"musl takes the first file of this name and no other: {text(path)}: {header.text()}"
    if b"/" in name:
        _judge_path(rootfs, name, doc)
    return doc


def _judge_path(rootfs: Rootfs, name: bytes, doc: dict[str, Any]) -> None:
    """Asked for one file: is it the one?"""
    try:
        wanted = rootfs.stat(name)
    except OSError as e:
        if e.errno not in (ENOENT, ENOTDIR):
            raise
        doc["because"] = "there is no such file"
        doc["found"] = None
        return
    if doc["found"] is not None:
        st = rootfs.stat(raw(doc["found"]["path"]))
        if (st.st_dev, st.st_ino) != (wanted.st_dev, wanted.st_ino):
            doc["because"] = f"musl takes {doc['found']['path']} instead"
            doc["found"] = None


def _directories(rootfs: Rootfs) -> tuple[list[bytes], str]:
    """What musl searches, and where that stands. An empty path file means no directory at all."""
    try:
        content = rootfs.read_file(musl.PATH, conf.MAX_CONF)
    except OSError as e:
        if e.errno not in (ENOENT, ENOTDIR):
            raise
        return [d for d in musl.DEFAULT.split(b"\n") if d], "built into musl"
    content = content.partition(b"\0")[0].replace(b":", b"\n")
    return [d for d in content.split(b"\n") if d], f"/{musl.PATH.decode()}"
