"""The simulated NVML library of a node: compiled by gcc from nvml.c and the node's answers."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lib import elfmaker
from lib.simnode import header
from lib.simnode.description import MACHINES, Entry, Node

SOURCES = Path(__file__).resolve().parent
COMPILER = "gcc"
HINT = "apt-get install gcc libc6-dev"
HOST = next((name for name, machine in MACHINES.items() if machine == platform.machine()), "")
_LIBC = "libc.so.6"
_DEADLINE = 60
_FLAGS = (
    *("-std=gnu11", "-O0", "-fPIC", "-shared", "-nostdlib", "-s", "-fvisibility=hidden", "-Wall", "-Wextra"),
    *("-Wno-missing-field-initializers", "-Wno-missing-braces", "-Wno-type-limits"),
    *("-Wl,--build-id=none", "-Wl,--no-as-needed", "-Wl,-z,noexecstack"),
)
_NO_NOTES = {"EM_X86_64": ("-fcf-protection=none",), "EM_AARCH64": ("-mbranch-protection=none",)}

_compiled: dict[tuple[str, ...], bytes] = {}


class BuildError(Exception):
    """A node that can not be built here: verb, `object`, errno name or reason, what to do; one line."""


def can_answer(entry: Entry) -> bool:
    """Whether this machine can load (and gcc make) a library like `entry`; others are made without functions."""
    return entry.elf is not None and entry.elf.machine == HOST and entry.elf.bits == 64


def image(node: Node, entry: Entry) -> bytes:
    """The bytes of the library at `entry`. What was compiled once is kept."""
    assert entry.elf is not None
    text = header.text(entry, node.nvml or {})
    beside = {
        PurePosixPath(e.path).name
        for e in node.files
        if PurePosixPath(e.path).parent == PurePosixPath(entry.path).parent
    }
    runpath = "$ORIGIN" if beside & (set(entry.elf.needed) - {_LIBC}) else ""
    key = (text, entry.elf.soname or "", runpath, *entry.elf.needed)
    if key not in _compiled:
        _compiled[key] = _compile(text, entry, runpath)
    return _compiled[key]


def _compile(text: str, entry: Entry, runpath: str) -> bytes:
    assert entry.elf is not None
    with tempfile.TemporaryDirectory(prefix="nvoci-simnode-") as folder:
        place = Path(folder)
        (place / "answers.h").write_text(text)
        libraries = [_library(place, name, entry.elf.machine) for name in entry.elf.needed]
        link = [f"-Wl,-soname,{entry.elf.soname}", *([f"-Wl,-rpath,{runpath}"] if runpath else [])]
        out = place / "out.so"
        command = [COMPILER, *_FLAGS, *_NO_NOTES.get(HOST, ()), "-I", folder, *link, "-o", str(out)]
        _run([*command, str(SOURCES / "nvml.c"), *libraries])
        return out.read_bytes()


def _library(place: Path, name: str, machine: str) -> str:
    """What to link for one needed library: the C library, or a stand-in, since only the name is wanted."""
    if name == _LIBC:
        return f"-l:{_LIBC}"
    return str(elfmaker.make_so(place / "needed" / PurePosixPath(name).name, name, machine=MACHINES[machine]))


def _run(command: list[str]) -> None:
    env: Mapping[str, Any] = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_DEADLINE
        )
    except FileNotFoundError:
        raise BuildError(f"compile the NVML library: ENOENT (`{command[0]}` is not there: {HINT})")
    except subprocess.TimeoutExpired:
        raise BuildError(f"compile the NVML library: ETIMEDOUT (`{command[0]}` took more than {_DEADLINE} s)")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
        raise BuildError(f"compile the NVML library: `{command[0]}` fails: {lines[0]} ({HINT})")
