"""Root file systems for test containers, made from this host's own files."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from lib import elfmaker, session

TOOLS = (
    "sh cat ls ln mkdir rm rmdir mv cp touch stat readlink realpath grep sed awk head tail sleep true false echo env "
    "id mount umount mknod chmod chown dd find sort wc test hostname cut tr printf printenv od cmp diff tar df ps kill "
    "mkfifo uname"
).split()
LOADERS = {"x86_64": "/lib64/ld-linux-x86-64.so.2", "aarch64": "/lib/ld-linux-aarch64.so.1"}
MACHINE = platform.machine()
TRIPLET = f"{MACHINE}-linux-gnu"
LOADER = LOADERS.get(MACHINE, "")

COMMON = """
dir proc
dir sys
dir dev
dir run
dir tmp 1777
dir root 700
dir var/lib
dir var/tmp 1777
file etc/passwd root:x:0:0:root:/root:/bin/sh\\n
file etc/group root:x:0:\\n
file etc/hostname image\\n
file etc/hosts 127.0.0.1 localhost\\n
file etc/resolv.conf
"""

GLIBC = """
symlink bin usr/bin
symlink sbin usr/sbin
symlink lib usr/lib
symlink lib64 usr/lib64
dir usr/bin
dir usr/sbin
dir usr/lib64
dir usr/local/lib
file etc/debian_version 12.0\\n
file etc/os-release ID=debian\\nVERSION_ID="12"\\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\\n
file etc/ld.so.conf include /etc/ld.so.conf.d/*.conf\\n
file etc/ld.so.conf.d/libc.conf # libc default configuration\\n/usr/local/lib\\n
"""

_bases: dict[str, Path] = {}


def glibc_rootfs(dest: str | Path) -> Path:
    """A small Debian-like root: busybox as shell and tools, ld.so, libc, a few dynamic programs, ldconfig, a cache."""
    return _copy(_base("glibc", _make_glibc), dest)


def busybox_rootfs(dest: str | Path) -> Path:
    """Static programs only: no loader, no ld.so.conf, no ld.so.cache."""
    return _copy(_base("busybox", _make_busybox), dest)


@contextlib.contextmanager
def overlay_rootfs(dest: str | Path, kind: str = "glibc", *, options: str = "") -> Iterator[Path]:
    """The same root as an overlay mount at `dest` (fresh upper directory), as docker and podman give it."""
    base = _base(kind, _make_glibc if kind == "glibc" else _make_busybox)
    upper, work, out = session.new_dir("upper"), session.new_dir("work"), Path(dest)
    upper.chmod(0o755)
    out.mkdir(parents=True, exist_ok=True)
    layers = f"lowerdir={base},upperdir={upper},workdir={work}" + (f",{options}" if options else "")
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", out], check=True)
    try:
        yield out
    finally:
        subprocess.run(["umount", "-l", out], check=True)


@contextlib.contextmanager
def tmpfs(dest: str | Path, options: str = "size=64m") -> Iterator[Path]:
    """A tmpfs at `dest`, e.g. "size=16k" or "nr_inodes=20" for a full disk."""
    out = Path(dest)
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", out], check=True)
    try:
        yield out
    finally:
        subprocess.run(["umount", "-l", out], check=True)


def add_probe(root: Path, soname: str, at: str = "usr/bin") -> str:
    """Put a program into `root` that exits 0 only if ld.so finds `soname` there; its path in the container."""
    name = f"{at}/probe-{soname}"
    elfmaker.make_probe(root / name, [soname], LOADER, MACHINE)
    return f"/{name}"


def tree(root: str | Path, spec: str) -> Path:
    """Build files from one-line specs; the last octal word, where optional, is the mode.

    dir NAME [MODE] | file NAME TEXT… (\\n, \\0, \\x.. understood) | exec NAME TEXT… (mode 755) | symlink NAME TARGET |
    hardlink NAME EXISTING | char NAME MAJOR MINOR [MODE] | block… | fifo NAME [MODE] | socket NAME | sparse NAME SIZE
    | mode NAME MODE | owner NAME UID GID
    """
    base = Path(root)
    base.mkdir(parents=True, exist_ok=True)
    for line in spec.strip("\n").splitlines():
        words = line.strip().split(" ", 2)
        if not words[0] or words[0].startswith("#"):
            continue
        name = shlex.split(words[1])[0] if "'" in words[1] else words[1]
        target = base / name.lstrip("/")
        _clear_the_way(words[0], target)
        _MAKERS[words[0]](target, words[2] if len(words) > 2 else "", base)
    return base


def _clear_the_way(kind: str, target: Path) -> None:
    if kind in {"mode", "owner"}:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        target.unlink()
    elif target.is_dir() and kind != "dir":
        shutil.rmtree(target)


def _dir(target: Path, rest: str, base: Path) -> None:
    target.mkdir(exist_ok=True)
    target.chmod(int(rest or "755", 8))


def _file(target: Path, rest: str, base: Path) -> None:
    target.write_bytes(rest.encode("utf-8", "surrogateescape").decode("unicode_escape").encode("latin-1"))
    target.chmod(0o644)


def _exec(target: Path, rest: str, base: Path) -> None:
    _file(target, rest, base)
    target.chmod(0o755)


def _node(kind: int) -> Callable[[Path, str, Path], None]:
    def make(target: Path, rest: str, base: Path) -> None:
        major, minor, *mode = rest.split()
        os.mknod(target, kind | 0o600, os.makedev(int(major), int(minor)))
        target.chmod(int(mode[0], 8) if mode else 0o666)

    return make


def _fifo(target: Path, rest: str, base: Path) -> None:
    os.mkfifo(target)
    target.chmod(int(rest or "644", 8))


def _socket(target: Path, rest: str, base: Path) -> None:
    """mknod and not bind(): a path may be longer than sun_path."""
    os.mknod(target, stat.S_IFSOCK | 0o666)


def _sparse(target: Path, rest: str, base: Path) -> None:
    unit = {"K": 10, "M": 20, "G": 30, "T": 40}.get(rest[-1:])
    with open(target, "wb") as f:
        f.truncate(int(rest[:-1]) << unit if unit else int(rest))


_MAKERS: dict[str, Callable[[Path, str, Path], None]] = {
    "dir": _dir,
    "file": _file,
    "exec": _exec,
    "symlink": lambda target, rest, base: target.symlink_to(rest),
    "hardlink": lambda target, rest, base: os.link(base / rest.lstrip("/"), target, follow_symlinks=False),
    "char": _node(stat.S_IFCHR),
    "block": _node(stat.S_IFBLK),
    "fifo": _fifo,
    "socket": _socket,
    "sparse": _sparse,
    "mode": lambda target, rest, base: target.chmod(int(rest, 8)),
    "owner": lambda target, rest, base: os.lchown(target, *map(int, rest.split())),
}


def listening(path: str | Path) -> socket.socket:
    """A Unix socket that accepts (what a daemon has); close it."""
    s = socket.socket(socket.AF_UNIX)
    Path(path).unlink(missing_ok=True)
    s.bind(str(path))
    s.listen()
    return s


def _base(kind: str, make: Callable[[Path], None]) -> Path:
    if kind not in _bases:
        base = session.new_dir(f"base-{kind}")
        make(base)
        _bases[kind] = base
    return _bases[kind]


def _copy(base: Path, dest: str | Path) -> Path:
    out = Path(dest)
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", "--reflink=auto", f"{base}/.", out], check=True)
    return out


def _make_busybox(root: Path) -> None:
    tree(root, COMMON + "dir bin\ndir usr/bin\ndir lib\n")
    _tools(root / "bin")


def _make_glibc(root: Path) -> None:
    tree(root, GLIBC + COMMON)
    lib = root / "usr/lib" / TRIPLET
    lib.mkdir(parents=True)
    folders = [f"{top}/{TRIPLET}" for top in ("/usr/local/lib", "/lib", "/usr/lib")]
    (root / f"etc/ld.so.conf.d/{TRIPLET}.conf").write_text("\n".join(folders) + "\n")
    for name in ("libc.so.6", "libdl.so.2", "libpthread.so.0", "libm.so.6"):
        shutil.copy2(os.path.realpath(f"/lib/{TRIPLET}/{name}"), lib / name)
    loader = lib / Path(LOADER).name
    shutil.copy2(os.path.realpath(LOADER), loader)
    folder = "../lib/" if LOADER.startswith("/lib64/") else ""
    (root / LOADER[1:]).symlink_to(f"{folder}{TRIPLET}/{loader.name}")
    _tools(root / "usr/bin")
    for name in ("getent", "env", "true"):
        (root / "usr/bin" / name).unlink(missing_ok=True)
        shutil.copy2(f"/usr/bin/{name}", root / "usr/bin" / name)
    shutil.copy2("/sbin/ldconfig", root / "usr/sbin/ldconfig")
    subprocess.run(["/sbin/ldconfig", "-r", root], check=True)
    shutil.rmtree(root / "var/cache", ignore_errors=True)


def _tools(folder: Path) -> None:
    shutil.copy2("/bin/busybox", folder / "busybox")
    for tool in TOOLS:
        (folder / tool).symlink_to("busybox")
