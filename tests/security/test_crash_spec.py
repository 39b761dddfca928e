"""Row L8: who writes CDI specifications killed, or told an error, at each call: a reader finds the old or the new."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lib import callpoints, session
from lib.callpoints import Fault, Zygote

from nvoci.cdi.specdir import Registry

ERRORS = (errno.ENOSPC, errno.EIO, errno.EINTR, errno.ENOMEM, errno.EAGAIN, errno.EPERM)
SPECS = ("gpu.json", "gpu.coherent.yaml")
_PROGRAM = """
import os, sys
word = os.read(0, 100).decode()
from nvoci.cdi.model import ContainerEdits, Device, Mount, Spec
from nvoci.ctl import specout
from nvoci.errors import HookError

def spec(name):
    mounts = tuple([Mount(f"/{word}{i}", f"/{word}{i}") for i in range(60)])
    devices = (Device("all", ContainerEdits(env=(f"WORD={word}",), mounts=mounts)),)
    return Spec("0.5.0", "nvoci.test/" + name.replace(".", "-"), devices, ContainerEdits())

try:
    specout.write([specout.Output(os.path.join(sys.argv[1], name), spec(name)) for name in sys.argv[2:]])
except HookError as e:
    print(e.line(), file=sys.stderr)
    os._exit(1)
os._exit(0)
"""


@pytest.fixture(scope="module")
def writer() -> Iterator[Zygote]:
    why = callpoints.missing()
    if why:
        pytest.skip(why)
    program = session.new_dir("writer") / "writer.py"
    program.write_text(_PROGRAM)
    with Zygote(("cdi", "ctl.specout"), program=program) as zygote:
        yield zygote


class Folder:
    """The directory, with two specifications in it."""

    def __init__(self, writer: Zygote, path: Path) -> None:
        self.writer = writer
        self.path = path
        self.words = [str(self.path), *SPECS]
        self.contents = {word: self.write(word) for word in ("new", "old")}
        self.points = writer.run(self.words, b"new", traced=True).points()
        self.write("old")

    def write(self, word: str) -> dict[str, bytes]:
        """From the beginning."""
        for path in self.path.iterdir():
            path.unlink()
        assert self.writer.run(self.words, word.encode()).rc == 0
        return self.read()

    def read(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.path.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def folder(writer: Zygote) -> Iterator[Folder]:
    """On a tmpfs: hundreds of times it is synchronized to its disk."""
    with tempfile.TemporaryDirectory(prefix=session.TOKEN, dir="/dev/shm") as path:
        yield Folder(writer, Path(path))


def half(folder: Folder) -> list[str]:
    """What a reader would not take, or has never been there whole."""
    found = folder.read()
    out = [
        name for name in SPECS if found.get(name) not in (folder.contents["old"][name], folder.contents["new"][name])
    ]
    registry = Registry([str(folder.path)])
    registry.refresh()
    return out + list(registry.errors) + ([] if len(registry.devices()) == len(SPECS) else [str(registry.devices())])


def test_l8_killed_at_any_call_it_leaves_the_old_or_the_new(
    folder: Folder, record_property: Callable[[str, object], None]
) -> None:
    record_property("points", len(folder.points))
    seen = set()
    for point in folder.points:
        ran = folder.writer.run(folder.words, b"new", fault=Fault(point))
        assert (point, ran.rc, half(folder)) == (point, -9, [])
        seen.add(tuple(folder.read()[name] == folder.contents["new"][name] for name in SPECS))
        assert folder.writer.run(folder.words, b"new").rc == 0
        assert folder.read() == folder.contents["new"]
        folder.write("old")
    assert seen == {(False, False), (True, False), (True, True)}


def test_l8_an_error_at_any_call_is_success_or_leaves_no_temporary(folder: Folder, long: bool) -> None:
    failures = 0
    for n, point in enumerate(folder.points):
        for error in ERRORS if long else [ERRORS[n % len(ERRORS)]]:
            ran = folder.writer.run(folder.words, b"new", fault=Fault(point, error))
            if not ran.call or ran.call in ("exit_group", "read"):
                continue
            failures += ran.rc != 0
            left = [path.name for path in folder.path.iterdir() if path.name.startswith(".")]
            kept = [] if ran.call in ("unlinkat", "unlink") else left
            assert (point, ran.call, error, half(folder), kept) == (point, ran.call, error, [], [])
            assert ran.rc or folder.read() == folder.contents["new"], ran.stderr
            folder.write("old")
    assert failures > 10
