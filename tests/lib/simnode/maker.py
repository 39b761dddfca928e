"""A node from its description: real files below one directory."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lib import elfmaker
from lib.simnode import faults as fault_words
from lib.simnode import majors, nvmllib
from lib.simnode.description import MACHINES, ElfFile, Entry, Node
from lib.simnode.nvmllib import BuildError

LDCONFIG = "/sbin/ldconfig"
UNSHARE = "/usr/bin/unshare"
LD_SO_CACHE = "etc/ld.so.cache"
# Where ldconfig looks by itself, on some distribution or other; what ld.so.conf of the node says comes in addition.
_TRIPLETS = ("x86_64-linux-gnu", "aarch64-linux-gnu", "i386-linux-gnu")
SYSTEM_DIRECTORIES = (
    *("/lib64", "/usr/lib64", *(f"/{top}/{t}" for top in ("lib", "usr/lib") for t in _TRIPLETS)),
    *("/lib", "/usr/lib"),
)
# Real device nodes that would hand out the machine whatever their mode says: its memory and ports (mem(4)), its disks
# (sg(4); block nodes are refused altogether). No GPU has them.
_MACHINE_NODES = {(1, 1), (1, 2), (1, 4)}
_SCSI_GENERIC = 21
_TYPES = {"char": stat.S_IFCHR, "block": stat.S_IFBLK, "socket": stat.S_IFSOCK, "fifo": stat.S_IFIFO}


@dataclass(frozen=True)
class Built:
    """A node on disk. nvml: the library that applications get (the file, not a link to it); None if it has none."""

    root: Path
    nvml: Path | None
    node: Node

    def environ(self, faults: Mapping[str, Any] | str | None = None) -> dict[str, str]:
        """For a process that loads libnvidia-ml.so.1 by its name, as pynvml does; with faults, those and no others."""
        out = {"LD_LIBRARY_PATH": str(self.nvml_link.parent)} if self.nvml_link else {}
        return out if faults is None else {**out, fault_words.VARIABLE: fault_words.text(faults)}

    def set_faults(self, faults: Mapping[str, Any] | str | None) -> None:
        """From the next nvmlInit on, in every process whose environment says nothing else; None: no more of them."""
        path = self.root / fault_words.FILE
        if not faults:
            if not path.parent.is_symlink():
                shutil.rmtree(path.parent, ignore_errors=True)
            return
        words = fault_words.text(faults)
        path.parent.mkdir(exist_ok=True)
        if not _is_real_directory(self.root, "/" + path.parent.name):
            raise BuildError(f"write `{path}`: ENOTDIR (`{path.parent}` is a link or no directory: remove it)")
        path.parent.chmod(0o755)
        _write(path, f"{words}\n".encode(), 0o644)

    @property
    def nvml_link(self) -> Path | None:
        """libnvidia-ml.so.1 beside the library."""
        return self.nvml.parent / "libnvidia-ml.so.1" if self.nvml else None


def build(
    node: Node, directory: str | Path, faults: Mapping[str, Any] | str | None = None, *, devices: bool = True
) -> Built:
    """Make the node below `directory`, which is made or must be empty. BuildError: one line. devices=False leaves out
    what only a privileged process can make. Whatever the description says, nothing outside of `directory` is written,
    and nothing below it runs with more than its caller's rights: regular files lose set-user-ID and the like, and
    nodes that would open the machine's memory or disks are refused. On failure what was made stays, for a look."""
    root = Path(directory).resolve()
    fault_words.text(faults)
    for entry in node.files if devices else ():
        _refuse(entry)
    _make_root(root)
    for entry in node.files:
        if devices or entry.kind not in {"char", "block"}:
            _make(root, node, entry)
    _derive_majors(root, node)
    for place in roots(node):
        _write_cache(root, node, place)
    for entry in reversed(node.files):  # at last, since a directory may forbid to write in it
        _set_owner_and_mode(root, entry, devices=devices)
    built = Built(root, _find_nvml(root, node), node)
    built.set_faults(faults)
    return built


def roots(node: Node) -> list[str]:
    """The directories of a node that are a root of their own, with etc and usr in it: "" is the node's."""
    directories = {e.path for e in node.files if e.kind == "dir"}
    found = [path.removesuffix("/etc") for path in sorted(directories) if path.endswith("/etc")]
    return [path for path in found if f"{path}/usr" in directories]


def _refuse(entry: Entry) -> None:
    number = (entry.major, entry.minor)
    if entry.kind == "block" or (entry.kind == "char" and (number in _MACHINE_NODES or number[0] == _SCSI_GENERIC)):
        hint = "this is the machine's own memory or disk, and no GPU: take it out, or leave out devices"
        raise BuildError(f"make {entry.kind} `{entry.path}` ({entry.major}:{entry.minor}): refused ({hint})")


def _make_root(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        used = any(root.iterdir())
    except OSError as e:
        raise BuildError(f"make directory `{root}`: {_name(e)}")
    if used:
        raise BuildError(f"build in `{root}`: ENOTEMPTY (name a new or an empty directory)")


def _make(root: Path, node: Node, entry: Entry) -> None:
    path = root / entry.path[1:]
    try:
        if entry.kind == "dir":
            path.mkdir(mode=0o755)
        elif entry.kind == "symlink":
            path.symlink_to(entry.target)
        elif entry.kind == "file":
            _make_file(path, node, entry)
        else:
            os.mknod(path, _TYPES[entry.kind] | 0o600, os.makedev(entry.major, entry.minor))
    except OSError as e:
        hint = ""
        if entry.kind in {"char", "block"} and e.errno in (errno.EPERM, errno.EACCES):
            hint = (
                " (mknod of a device is refused here, in a user namespace for one: run as root, or leave out devices)"
            )
        number = f" ({entry.major}:{entry.minor})" if entry.kind in {"char", "block"} else ""
        raise BuildError(f"make {entry.kind} `{entry.path}`{number}: {_name(e)}{hint}")


def _make_file(path: Path, node: Node, entry: Entry) -> None:
    if entry in node.nvml_libraries and nvmllib.can_answer(entry):
        path.write_bytes(nvmllib.image(node, entry))
    elif isinstance(entry.content, ElfFile):
        elf = entry.content
        notes = [note.parts for note in elf.notes]
        elfmaker.make_so(path, elf.soname, elf.needed, MACHINES[elf.machine], elf.bits, notes=notes)
    else:
        path.write_bytes(entry.content)


def _set_owner_and_mode(root: Path, entry: Entry, *, devices: bool) -> None:
    if entry.kind == "symlink" or (entry.kind in {"char", "block"} and not devices):
        return
    path = root / entry.path[1:]
    try:
        if (entry.uid or 0, entry.gid or 0) != (path.lstat().st_uid, path.lstat().st_gid) and os.geteuid() == 0:
            os.lchown(path, entry.uid or 0, entry.gid or 0)
        # A description may be a stranger's: its programs get nobody's rights. Of directories these bits are harmless.
        path.chmod(entry.mode & 0o777 if entry.kind == "file" else entry.mode)
    except OSError as e:
        raise BuildError(f"set owner {entry.uid or 0}:{entry.gid or 0} and mode of `{entry.path}`: {_name(e)}")


def _derive_majors(root: Path, node: Node) -> None:
    """/proc/devices follows from the device nodes, unless it is described."""
    described = any(e.path == "/proc/devices" for e in node.files)
    if not described and _is_directory(node, "/proc") and _is_real_directory(root, "/proc"):
        _write(root / "proc/devices", majors.derive(node), 0o444)


def _write_cache(root: Path, node: Node, place: str) -> None:
    """ld.so.cache of one root, by the real ldconfig, in a mount namespace of its own; it makes no links (-X)."""
    if any(e.path == f"{place}/{LD_SO_CACHE}" for e in node.files):
        return
    if not _is_real_directory(root, f"{place}/etc"):
        raise BuildError(f"write `{place}/{LD_SO_CACHE}`: ENOTDIR (`{place}/etc` is no directory of the node)")
    own = root / place[1:]
    conf = "etc/ld.so.conf"
    directories = [name for name in SYSTEM_DIRECTORIES if _is_directory(node, f"{place}{name}")]
    command = [LDCONFIG, "-X", "-i", "-r", str(own), "-f", f"/{conf}", *directories]
    if os.geteuid() == 0:
        private = [UNSHARE, "--mount", "--propagation", "private"]
        command = [*private, *command] if _runs([*private, "/bin/true"]) else command
    had_conf = os.path.lexists(own / conf)
    if not had_conf:
        _write(own / conf, b"", 0o644)  # or it complains
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=60
        )
    except OSError as e:
        raise BuildError(f"run `{command[0]}`: {_name(e)} (apt-get install libc-bin util-linux)")
    finally:
        if not had_conf:
            (own / conf).unlink()
        _forget(node, root, f"{place}/var/cache/ldconfig")
    if done.returncode:
        raise BuildError(
            f"write `{place}/{LD_SO_CACHE}`: ldconfig ends with {done.returncode}: {done.stderr.strip()[:200]}"
        )


def _is_directory(node: Node, path: str) -> bool:
    return any(e.path == path and e.kind == "dir" for e in node.files)


def _runs(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False).returncode == 0


def _forget(node: Node, root: Path, path: str) -> None:
    """ldconfig's own cache, with the directories it has made for it. Where the description has anything but a directory
    on the way, a link above all, the way may lead out of the node: nothing is removed then."""
    kinds = {e.path: e.kind for e in node.files}
    line = (PurePosixPath(path), *PurePosixPath(path).parents[:-1])
    if any(kinds.get(str(each), "dir") != "dir" for each in line):
        return
    for each in line:
        if str(each) in kinds or not _is_real_directory(root, str(each.parent)):
            return
        shutil.rmtree(root / str(each)[1:], ignore_errors=True)


def _is_real_directory(root: Path, path: str) -> bool:
    """Whether `path` and everything above it is a directory on disk, and no link."""
    line = (PurePosixPath(path), *PurePosixPath(path).parents)
    try:
        return all(stat.S_ISDIR((root / str(each)[1:]).lstat().st_mode) for each in line)
    except OSError:
        return False


def _write(path: Path, data: bytes, mode: int) -> None:
    """A file in a directory that was looked at before; a link in its place is an error (ELOOP)."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        os.fchmod(fd, mode)


def _find_nvml(root: Path, node: Node) -> Path | None:
    """Of several libraries the one whose version is the driver's, else the last."""
    able = [e for e in node.nvml_libraries if nvmllib.can_answer(e)]
    version = (node.nvml or {}).get("driver_version")
    best = [e for e in able if isinstance(version, str) and e.path.endswith(f".so.{version}")] or able
    return root / best[-1].path[1:] if best else None


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))
