"""One temporary directory and one name prefix for everything that a test session makes on the host."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import tempfile
from pathlib import Path

TOKEN = f"nvoci-test-{os.getpid()}"
CHECKOUT = Path(__file__).resolve().parents[2]
HOOKS = CHECKOUT / "hooks"
LIB = Path(__file__).resolve().parent
PYTHON = os.environ.get("NVOCI_TEST_PYTHON") or os.path.realpath("/usr/bin/python3")
ENTRY_PYTHON = os.environ.get("NVOCI_TEST_ENTRY_PYTHON") or PYTHON
"""What runs entry files of this checkout: see arcs.wrapper."""

_numbers = itertools.count(1)
_tmp: Path | None = None


def unique(prefix: str = "c") -> str:
    """A name no other session on this host uses: container ids, cgroups, sockets."""
    return f"{TOKEN}-{prefix}{next(_numbers)}"


def tmp() -> Path:
    """The directory of this session, removed at exit. Root's alone is too strict: mapped users must pass through."""
    global _tmp
    if _tmp is None:
        _tmp = Path(tempfile.mkdtemp(prefix=f"{TOKEN}-"))
        _tmp.chmod(0o755)
        atexit.register(_remove, _tmp, os.getpid())
    return _tmp


def new_dir(prefix: str = "d") -> Path:
    """Also in a forked child, whose numbers are those of its siblings."""
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=tmp()))
    path.chmod(0o755)
    return path


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)
