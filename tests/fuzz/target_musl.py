"""The path file of musl, with the directories of a host's folders and the notes of an earlier run.

Input: the path file, a NUL, the drop-in that remembers, a NUL, then directories, a NUL between them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fuzz.registry import Target, register

from nvoci.ldcache import musl

Case = tuple[bytes, list[bytes], bytes]


def _seeds() -> list[bytes]:
    return [
        b"\0\0/usr/lib",
        b"/lib\n/usr/local/lib\n/usr/lib\n\0\0/usr/lib\0/opt/nv\0/opt/nv",
        b"/a:/usr/lib\n/b\0" + musl.note([b"/b", b"/c"]) + b"\0/c\0/d",
        b"/lib\n/c\n/c\n\0" + musl.note([b"/c"]) + b"/c\n\0/d",
        b"\xff\r\n::\n\n#\n\0# \0/\xff",
    ]


@contextlib.contextmanager
def _split(data: bytes) -> Iterator[Case]:
    """Directories as the hook lets them pass: absolute, on one line, none that a file would read differently."""
    old, _, rest = data.partition(b"\0")
    drop_in, _, folders = rest.partition(b"\0")
    named = [f for f in folders.split(b"\0") if f.startswith(b"/") and not any(c < 0x20 or c in b"#=:\x7f" for c in f)]
    yield old, named, drop_in


def _merge(case: Case) -> tuple[bytes, list[bytes]]:
    return musl.merge(case[0], case[1], musl.noted(case[2]))


def entries(text: bytes) -> list[bytes]:
    """What musl reads (ldso/dynlink.c, path_open: split at newlines and colons, empty ones passed over)."""
    return [e for e in text.replace(b":", b"\n").split(b"\n") if e]


def _check(data: bytes, case: Case, answer: tuple[bytes, list[bytes]]) -> None:
    old, directories, drop_in = case
    new, added = answer
    found, before = entries(new), entries(old)
    for directory in directories:
        assert directory in found, f"{directory!r} is not searched"
    assert {*directories, *before}.issuperset(found), "something else is searched"
    assert musl.noted(musl.note(added)) == added
    if not musl.noted(drop_in):
        assert new.startswith(old), "entries of the image are changed"
        assert found[: len(before)] == before
    assert musl.merge(new, directories, added) == (new, added), "a second run changes something"
    assert musl.merge(new, directories) == (new, []), "the image's own file is changed"


register(
    Target(
        "ld-musl.path", parse=_merge, prepare=_split, errors=(), check=_check, seeds=_seeds, executions=8000,
        tokens=(b"\n", b":", b"\0", b"/lib", b"/usr/lib\n", b"# added to /" + musl.PATH + b": ", b"\n/opt/nv\n", b"/"),
    )
)  # fmt: skip
