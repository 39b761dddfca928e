"""What the tests of update-ldcache's two engines share: the call, the witnesses, a driver."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from lib import elfmaker
from lib.hookproc import run_hook

from nvoci.errors import HookError
from nvoci.hook import update_ldcache as hook
from nvoci.hook.container import Container
from nvoci.hook.operation import Transaction
from nvoci.hook.operations import WriteFile
from nvoci.hook.settings import ENGINES, Settings
from tests.kernel.namespaced import make_container

LDCONFIG = "/sbin/ldconfig"
MARKS = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
    pytest.mark.skipif(not os.path.exists(LDCONFIG), reason="no ldconfig on this host"),
]
BOTH = pytest.mark.parametrize("engine", ENGINES)
ZERO, ZZ = "etc/ld.so.conf.d/00-nvcr-nvoci.conf", "etc/ld.so.conf.d/zz-nvcr-nvoci.conf"
CACHE = "etc/ld.so.cache"
Snapshot = dict[str, tuple[Any, ...]]


def driver(root: Path, version: str = "1.2", at: str = "opt/nv") -> None:
    for name in ("libnva.so.1", "libnvb.so.2"):
        elfmaker.make_so(root / at / f"{name.partition('.so')[0]}.so.{version}", name)


def update(
    c: Container, *folders: str, engine: str, strict: bool = False, timeout: float = 30.0, path: str = LDCONFIG
) -> None:
    c.settings.strict, c.settings.timeout = strict, timeout
    options = {"folder": list(folders), "engine": engine, "ldconfig-path": path}
    prepared = hook.prepare(options, c.settings)
    transaction = Transaction(strict)
    try:
        for operation in hook.plan(prepared, c):
            transaction.perform("update-ldcache", operation)
    except BaseException:
        transaction.undo()
        raise
    finally:
        if prepared.program is not None:
            prepared.program.fd.close()  # a hook leaves that to its end
    transaction.commit()


def process(root: Path, *folders: str, engine: str = "builtin", **how: Any) -> Any:
    """The same as a process of its own, in the mount namespace of the tests. how: for run_hook."""
    words = ["update-ldcache", "--engine", engine, *(w for f in folders for w in ("--folder", f))]
    return run_hook(words, {"bundle": "/", "root": str(root)}, **how)


def lines(root: Path) -> list[str]:
    """What `ldconfig -p` tells of the libraries, in the cache's order."""
    argv = [LDCONFIG, "-p", "-r", root, "-C", f"/{CACHE}"]
    text = subprocess.run(argv, check=True, capture_output=True, text=True, errors="surrogateescape", env={}).stdout
    return [line[1:] for line in text.split("\n") if line.startswith("\t")]


def pairs(root: Path) -> list[tuple[str, str]]:
    """(soname, path) of each entry."""
    return [(m[1], m[2]) for line in lines(root) if (m := re.match(r"(.*) \([^()]*\) => (.*)$", line))]


def listed(root: Path) -> dict[str, str]:
    return dict(reversed(pairs(root)))  # the first one counts


def run_ldconfig(root: Path, cache: str = f"/{CACHE}") -> None:
    """The host's own, with all rights, in the root, by the root's configuration."""
    argv = [LDCONFIG, "-r", root, "-i", "-f", "/etc/ld.so.conf", "-C", cache]
    subprocess.run(argv, check=True, capture_output=True, env={})


def reference(root: Path, *folders: str) -> list[str]:
    """Our drop-ins, then ldconfig itself until it finds nothing new; what it lists."""
    options = {"folder": list(folders), "engine": "builtin", "ldconfig-path": LDCONFIG}
    prepared = hook.prepare(options, Settings())
    transaction = Transaction()
    for operation in hook.plan(prepared, make_container(root)):
        if isinstance(operation, WriteFile) and operation.path != CACHE.encode():
            transaction.perform("reference", operation)
    transaction.commit()
    found: list[str] = []
    for _ in range(4):
        before = found
        run_ldconfig(root)
        found = lines(root)
        if found == before:
            break
    return found


def snapshot(root: Path) -> Snapshot:
    """All that a second run must leave alone, inode numbers included."""
    seen = {}
    for folder, dirs, files in os.walk(root):
        for name in (*dirs, *files):
            path = os.path.join(folder, name)
            st = os.lstat(path)
            text = os.readlink(path) if os.path.islink(path) else ""
            seen[os.path.relpath(path, root)] = (st.st_ino, st.st_mode, st.st_size, st.st_mtime_ns, text)
    return {k: v for k, v in seen.items() if not os.path.isdir(root / k) or os.path.islink(root / k)}


def links(root: Path, below: str) -> dict[str, str]:
    """The text of each link, "" for what is none, by path."""
    return {k: v[4] for k, v in snapshot(root).items() if k.startswith(below)}


def fails(root: Path, engine: str, **how: Any) -> HookError:
    """The one error of a run that changes nothing."""
    before = snapshot(root)
    start = time.monotonic()
    with pytest.raises(HookError) as e:
        update(make_container(root), "/opt/nv", engine=engine, **how)
    assert time.monotonic() - start < 10
    assert snapshot(root) == before
    assert "\n" not in e.value.line()
    return e.value
