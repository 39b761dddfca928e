"""What the tests in this folder start: hook processes from a real program file, a root, a container's process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import compat, hookproc, proc, session

HERE = Path(__file__).resolve().parent
_ENTRY = """#!{python} -ISB
import sys
sys.path.insert(0, {hooks!r})
{extra}
from nvoci.hook.main import {function}
{function}()
"""
_FAKE = f"""
sys.path.insert(1, {str(HERE)!r})
import fakehook
fakehook.register()
"""


def snapshot(root: str | Path) -> dict[str, tuple[Any, ...]]:
    """Everything below `root` but times and inode numbers: type, mode, owner, link text, content."""
    seen: dict[str, tuple[Any, ...]] = {}
    for folder, dirs, files in os.walk(os.fsencode(root)):
        for name in [*dirs, *files, b"."]:
            path = os.path.join(folder, name)
            st = os.lstat(path)
            content: bytes = b""
            if os.path.islink(path):
                content = os.readlink(path)
            elif os.path.isfile(path) and st.st_size < 1 << 20:
                content = Path(os.fsdecode(path)).read_bytes()
            seen[os.fsdecode(path)] = (st.st_mode, st.st_uid, st.st_gid, st.st_rdev, content)
    return seen


def wrapper() -> list[str]:
    """In a compat run, the program that blocks the newer system calls."""
    return compat.prefix() if os.environ.get(hookproc.COMPAT_SWITCH) else []


@dataclass
class Program:
    """An entry file, a root for a container, and a journal for the fake hook."""

    folder: Path
    root: Path

    @property
    def journal_file(self) -> Path:
        return self.folder / "journal"

    def entry(self, extra: str = "", *, function: str = "cdi_hook", fake: bool = False) -> Path:
        name = self.folder / session.unique("entry")
        name.write_text(
            _ENTRY.format(
                python=session.ENTRY_PYTHON,
                hooks=str(session.HOOKS),
                extra=(_FAKE if fake else "") + extra,
                function=function,
            )
        )
        name.chmod(0o755)
        return name

    def state(self, **fields: Any) -> bytes:
        doc = {"ociVersion": "1.0.2", "id": "c1", "status": "creating", "bundle": str(self.folder),
               "root": str(self.root), **fields}  # fmt: skip
        return json.dumps(doc).encode()

    def run(self, *words: str | bytes, extra: str = "", function: str = "cdi_hook", **how: Any) -> proc.Result:
        """The hook program with `words`; stdin is a good state unless given."""
        how.setdefault("stdin", self.state())
        return proc.run([*wrapper(), self.entry(extra, function=function), *map(os.fsdecode, words)], **how)

    def do(self, *actions: str, words: Sequence[str] = (), extra: str = "", **how: Any) -> proc.Result:
        """The fake hook with these actions."""
        how.setdefault("stdin", self.state())
        argv = [*wrapper(), self.entry(extra, fake=True), *self.fake(*actions), *words]
        return proc.run(argv, **how)

    def fake(self, *actions: str) -> list[str]:
        return ["fake", "--journal", str(self.journal_file), *[w for a in actions for w in ("--do", a)]]

    def journal(self) -> list[str]:
        return self.journal_file.read_text().splitlines() if self.journal_file.exists() else []

    def start(self, *actions: str, words: Sequence[str] = (), extra: str = "", stdin: bytes | None = None,
              preexec: Any = None) -> subprocess.Popen[bytes]:  # fmt: skip
        """The fake hook, left running; wait for it with `wait_for`."""
        given = self.folder / session.unique("state")
        given.write_bytes(self.state() if stdin is None else stdin)
        with given.open("rb") as source:
            return subprocess.Popen(
                [*wrapper(), self.entry(extra, fake=True), *self.fake(*actions), *words],
                stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(proc.PLAIN_ENV),
                start_new_session=True, preexec_fn=preexec,
            )  # fmt: skip

    def wait_for(self, line: str, seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while line not in self.journal():
            assert time.monotonic() < deadline, f"{line!r} is not in {self.journal()}"
            time.sleep(0.01)


def one_error(result: proc.Result) -> str:
    """The only line of stderr, which must be an error, and exit status 1."""
    lines = result.stderr.split("\n")
    assert (result.rc, result.timed_out, result.survivors, len(lines)) == (1, False, [], 2), (result.rc, result.stderr)
    assert " level=error " in lines[0], lines[0]
    assert "internal error" not in lines[0], lines[0]
    assert "Traceback" not in lines[0], lines[0]
    return lines[0]


@dataclass
class Container:
    """A process in a mount and pid namespace of its own, where a tmpfs is mounted on the root."""

    pid: int
    inside: Path  # the root as the container's mount namespace has it


@contextlib.contextmanager
def running_container(root: Path, *, ns: str = "-mp", mounted: bool = True) -> Iterator[Container]:
    script = 'mount -t tmpfs tmpfs "$1"; ' if mounted else ""
    argv = ["/usr/bin/unshare", ns, "--fork", "--kill-child", "--propagation", "private",
            "/bin/sh", "-c", script + "echo ready; exec sleep 300", "sh", str(root)]  # fmt: skip
    outer = subprocess.Popen(argv, stdout=subprocess.PIPE, env=dict(proc.PLAIN_ENV))
    assert outer.stdout is not None
    try:
        assert outer.stdout.readline() == b"ready\n"
        (pid,) = proc.children(outer.pid)
        yield Container(pid, Path(f"/proc/{pid}/root{root}"))
    finally:
        outer.stdout.close()
        for each in [*proc.descendants(outer.pid), outer.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        outer.wait()
