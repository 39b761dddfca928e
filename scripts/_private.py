"""A program of this directory run again in a private mount namespace, its files on a tmpfs there.

Whatever ends it, what it mounted and wrote goes with the namespace; the host keeps one empty directory at worst.
Standard library only; the caller has put hooks/ on sys.path.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from nvoci.linux import abi
from nvoci.linux.syscalls import mount, prctl

if TYPE_CHECKING:
    from collections.abc import Sequence

CHECKOUT = Path(__file__).resolve().parent.parent
WITHIN = "--within"
UNSHARE = "/usr/bin/unshare"
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ToolError(Exception):
    """One line for a person: verb, `object`, errno name or reason, what to do."""


def run_again(name: str, words: Sequence[str]) -> int:
    """Run scripts/`name` with `words` and `--within DIR` in a new mount namespace; its exit status."""
    own = [UNSHARE, "--mount", "--propagation", "private"]
    if subprocess.run([*own, "/bin/true"], capture_output=True, check=False).returncode:
        raise ToolError("make a mount namespace: EPERM (CAP_SYS_ADMIN is needed: not in an unprivileged container)")
    plain = name.strip("_").removesuffix(".py")
    place = tempfile.mkdtemp(prefix=f"nvoci-{plain}-")
    program = [sys.executable, "-IS", str(CHECKOUT / "scripts" / name), WITHIN, place]
    inner = None
    _catch_signals()
    # Ignored is inherited: until the inner program has handlers of its own, a terminal's SIGINT is the outer one's.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        inner = subprocess.Popen([*own, *program, *words])
        _catch_signals()
        return inner.wait()
    finally:
        if inner is not None and inner.poll() is None:
            inner.terminate()
            inner.wait()
        os.rmdir(place)


def enter(place: str) -> Path:
    """The inner program's first step: mount the tmpfs, put temporary files there, end when the outer program does."""
    prctl(abi.PR_SET_PDEATHSIG, signal.SIGTERM)
    _catch_signals()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        mount(b"nvoci", os.fsencode(place), b"tmpfs", 0, b"mode=0755")
    except OSError as e:
        raise ToolError(f"mount a tmpfs on `{place}`: {errno.errorcode.get(e.errno or 0)} (CAP_SYS_ADMIN is needed)")
    tempfile.tempdir = place
    return Path(place)


def _catch_signals() -> None:
    """Every way to be told to end is a KeyboardInterrupt, once: a terminal tells both programs, and the outer one the
    inner one again, which is then tidying up."""
    for number in _ENDING:
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def require_root(what: str) -> None:
    """Mounts and namespaces are root's."""
    if os.geteuid() != 0:
        raise ToolError(f"{what}: EPERM (it mounts and makes namespaces: run as root)")


def set_up_venv() -> None:
    """scripts/install takes third-party packages from the project's venv."""
    done = subprocess.run([CHECKOUT / "scripts/setup-venv"], stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise ToolError("run `scripts/setup-venv`: it failed (its own message stands above)")


def install(prefix: Path, python: str) -> Path:
    """Lay this checkout down below `prefix`; the path of nvidia-cdi-hook there."""
    command = [sys.executable, "-IS", str(CHECKOUT / "scripts/install"), "--prefix", str(prefix), "--python", python]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(f"install nvoci in `{prefix}`: {done.stderr.strip().removeprefix('install: ')}")
    return prefix / "bin/nvidia-cdi-hook"
