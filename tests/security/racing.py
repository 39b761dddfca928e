"""What is done again and again while a flipper exchanges what leads to it: mounts and where they end, whole hooks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernel import namespaced
from lib.flipper import Flipper
from lib.mignode import MigNode

from nvoci.errors import HookError
from nvoci.hook import main, migcaps, migmounts
from nvoci.hook.operation import Transaction
from nvoci.hook.settings import Settings
from nvoci.linux import rootfs as in_root

# attempt(n): yields what mounts, and takes everything back at its end.
Attempt = Callable[[int], AbstractContextManager[Callable[[], object]]]


def race(root: Path, count: int, attempt: Attempt) -> tuple[int, int, list[str]]:
    """(mounted, refused, mounts outside of `root` or left behind) of `count` attempts, in a mount namespace of its own.
    A flipper runs meanwhile."""
    mounted, refused, bad = 0, 0, []
    home = {line.split()[0] for line in namespaced.mountinfo()}
    for n in range(count):
        with attempt(n) as mount:
            try:
                mount()
                mounted += 1
            except (OSError, HookError):
                refused += 1
            new = [line for line in namespaced.mountinfo() if line.split()[0] not in home]
            bad += [line for line in new if not line.split()[4].startswith(f"{root}/")]
        bad += [f"left: {line}" for line in namespaced.mountinfo() if line.split()[0] not in home]
    return mounted, refused, bad


@dataclass
class Tally:
    """What came of a hook that was run again and again in this process. lookups: paths that were resolved in a root;
    each is one round against the flipper. worst: seconds of the slowest run."""

    done: int = 0
    refused: int = 0
    lookups: int = 0
    worst: float = 0.0


def tries(count: int, enough: Callable[[], bool], limit: float = 60.0) -> Iterator[int]:
    """So many numbers, and more where a busy machine has not let the other side run: until `enough()`, or that many
    seconds have passed."""
    deadline = time.monotonic() + limit
    n = 0
    while n < count or (not enough() and time.monotonic() < deadline):
        yield n
        n += 1


def hook_once(root: Path, words: Sequence[str]) -> None:
    """The hook that `words` name, in this process and mount namespace, on `root`. Raises HookError, OSError."""
    container = namespaced.make_container(root, "outside")
    transaction = Transaction()
    try:
        for name, plan, prepared in main.prepare(main.select(list(words))[1], Settings()):
            for operation in plan(prepared, container):
                transaction.perform(name, operation)
        transaction.commit()
    except BaseException:
        transaction.undo()
        raise
    finally:
        container.rootfs.close()


def until(rounds: int, once: Callable[[], object], flipper: Flipper | None = None) -> Tally:
    """once() until that many paths have been looked up in a root, something was not refused, and the flipper has run
    meanwhile. Anything but a HookError or OSError is a failure of the test."""
    found = Tally()
    real = in_root.lookup
    start = flipper.rounds if flipper else 0

    def counted(*args: Any) -> int:
        found.lookups += 1
        return real(*args)

    in_root.lookup = counted

    def enough() -> bool:
        return found.lookups >= rounds and found.done > 0 and (flipper is None or flipper.rounds >= start + 50)

    try:
        for _ in tries(0, enough, 60 if rounds < 1000 else 1200):
            began, before = time.monotonic(), found.lookups
            try:
                once()
                found.done += 1
            except (OSError, HookError):
                found.refused += 1
            found.worst = max(found.worst, time.monotonic() - began)
            found.lookups += found.lookups == before  # of whatever looks nothing up: one run, one round
    finally:
        in_root.lookup = real
    return found


def capability(root: Path, node: MigNode, file: str) -> Attempt:
    """To mount a MIG capability's access file, "proc/...", and its node in `root`."""

    @contextmanager
    def once(_: int) -> Iterator[Callable[[], object]]:
        container = namespaced.make_container(root, "outside")
        with migcaps.Host(str(node.root)) as host:
            taken = host.capability(file.removeprefix("proc/").encode())
        transaction = Transaction()
        yield lambda: [transaction.perform("race", each) for each in migmounts.capability(container, taken)]
        transaction.undo()
        taken.file.close()
        if taken.node is not None:
            taken.node.tree.close()
        container.rootfs.close()

    return once
