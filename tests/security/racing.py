"""Mounts made again and again while a flipper exchanges what leads to their place, and where they ended."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from kernel import namespaced

from nvoci.errors import HookError

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
