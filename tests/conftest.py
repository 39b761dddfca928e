"""Options and set-up of the whole suite."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
for source in (HERE, HERE.parent / "hooks"):
    if str(source) not in sys.path:
        sys.path.insert(0, str(source))
sys.dont_write_bytecode = True

from lib import arcs  # noqa: E402  (the path is set above)

if arcs.SWITCH in os.environ:
    arcs.start(os.environ[arcs.SWITCH], files=True)  # before anything of the package is imported

from lib import hookproc, proc, session  # noqa: E402

CLONE_NEWNS = 0x00020000
MS_REC, MS_PRIVATE = 0x4000, 1 << 18


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run tests marked long")
    parser.addoption("--compat", action="store_true", help="run every hook with the newer system calls blocked")
    parser.addoption("--fuzz", type=float, metavar="SECONDS", help="tests/fuzz: new inputs, so long for each target")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--compat"):
        os.environ[hookproc.COMPAT_SWITCH] = "1"
    session.tmp()  # made here, so that a test's forked child has none of its own, which nobody would remove
    proc.become_subreaper()
    _own_mount_namespace()


@pytest.fixture(autouse=True)
def _close_what_a_test_leaves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A hook's process ends soon and closes little; in ours what it opens below a test's directory adds up, until a
    limit of descriptors that some test sets is met."""
    top = str(tmp_path_factory.getbasetemp().parent)
    before = _descriptors(top)
    arcs.again()
    yield
    for fd in _descriptors(top) - before:
        os.close(fd)


def _descriptors(top: str) -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith(top):
                found.add(int(name))
        except OSError:
            continue  # that of the listing itself
    return found


def _own_mount_namespace() -> None:
    """What a test mounts and forgets dies with pytest; what others on the machine mount, the oracle does not see."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0 and libc.unshare(CLONE_NEWNS) == 0:
        libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="long: give --long"))
