"""Roots whose libraries are known, and ldconfig run in them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib import elfmaker, proc
from lib.rootfs import tree

from nvoci.ctl import ldso

LDCONFIG, LD_SO = "/sbin/ldconfig", "/lib64/ld-linux-x86-64.so.2"
Invoke = Callable[..., proc.Result]
Make = Callable[[Path], None]
NEEDS_LDCONFIG = [
    pytest.mark.skipif(ldso.NATIVE.name != "x86-64", reason="the prepared libraries are for x86-64"),
    pytest.mark.skipif(os.geteuid() != 0, reason="ldconfig -r needs root"),
    pytest.mark.skipif(not os.path.exists(LDCONFIG), reason="no ldconfig on this host"),
]


def so(root: Path, path: str, soname: str | None = None, machine: str = "x86_64", **how: Any) -> None:
    elfmaker.make_so(root / path, soname, ["libc.so.6"] if machine == "i386" else [], machine, **how)


def ldconfig(root: Path, *words: str) -> str:
    argv = [LDCONFIG, "-r", str(root), "-C", "/etc/ld.so.cache", *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True, env={"LC_ALL": "C"}).stdout


def plain(root: Path) -> None:
    """Debian-like: two directories of ld.so.conf, hwcaps, 32 bits, a link for ld(1)."""
    tree(root, "file etc/debian_version 12\nfile etc/ld.so.conf include /etc/ld.so.conf.d/*.conf\\n/opt/b\\n")
    tree(root, "file etc/ld.so.conf.d/a.conf # first\\n/opt/a\\n/opt/none\\n/opt/again\\n\nsymlink opt/again a")
    for directory in ("opt/a", "opt/b", "usr/lib/x86_64-linux-gnu"):
        so(root, f"{directory}/libone.so.1.2", "libone.so.1")
    so(root, "opt/b/libone.so.1.10", "libone.so.1")
    so(root, "opt/b/libtwo.so.2", "libtwo.so.2")
    tree(root, "symlink opt/b/libtwo.so libtwo.so.2")
    so(root, "lib/i386-linux-gnu/libtwo.so.2", "libtwo.so.2", "i386")
    tree(root, "file etc/ld.so.conf.d/i386.conf /lib/i386-linux-gnu\\n")
    for level in (2, 3):
        so(root, f"opt/b/glibc-hwcaps/x86-64-v{level}/libthree.so.3.0", "libthree.so.3")
    so(root, "opt/a/libthree.so.3", "libthree.so.3")


def red_hat(root: Path) -> None:
    tree(root, "file etc/ld.so.conf include ld.so.conf.d/*.conf\\n\ndir lib64\ndir usr/lib64\ndir lib")
    tree(root, "file etc/ld.so.conf.d/64.conf /lib64\\n/usr/lib64\\n")  # built into the ldconfig of such a system
    for i in range(40):
        so(root, f"usr/lib64/libx{i}.so.{i}.1", f"libx{i}.so.{i}")


def without_conf(root: Path) -> None:
    tree(root, "dir etc\ndir usr/lib")
    so(root, "lib/libonly.so")


LAYOUTS: dict[str, Make] = {"Debian": plain, "RHEL": red_hat, "no ld.so.conf": without_conf}


def prepared(path: Path) -> Path:
    """The Debian-like root with its cache."""
    plain(path)
    ldconfig(path)
    return path


def facts(result: proc.Result) -> list[str]:
    return result.stdout.splitlines()
