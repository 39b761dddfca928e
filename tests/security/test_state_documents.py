"""Rows G1, G3, G5 and G8 to G12: every way in which the state, and what it names, may be odd; for the hooks of a CDI
specification at both stages, and for the prestart hook.

The document is the state of a container that is there, changed; so whoever takes it would do its work.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from lib import hookproc
from lib.hookproc import FakeContainer
from lib.oracle import Oracle
from security.arena import LIBDIR, Arena, attempt

Json = dict[str, Any]
Change = Callable[[Json], bytes]
LINK = ["create-symlinks", "--link", f"libcuda.so.1::/{LIBDIR}/libcuda.so"]
MADE = [f"{LIBDIR}/libcuda.so"]
WHO = ("outside", "inside", "prestart")


def told(arena: Arena, who: str, change: Change, **how: Any) -> list[str]:
    """One call of the hook, or of the prestart hook, which reads what change(state) gives."""
    words, stage = LINK, who
    container = dict(how.pop("container", {}))
    if who == "prestart":
        words, stage = ["prestart"], "outside"
        how["program"] = hookproc.entry("main", "nvoci.prestart.main", "nvidia-container-runtime-hook")
        root = {"path": str(arena.root)}
        container.setdefault("config", {"ociVersion": "1.0.2", "process": {"env": []}, "root": root})
    fd = os.memfd_create("state")

    def write(c: FakeContainer) -> None:
        (c.bundle / "config.json").chmod(0o644)
        os.pwrite(fd, change({**c.state("createContainer" if who == "inside" else "createRuntime")}), 0)

    try:
        return attempt(arena, words, stage, during=write, stdin=fd, planned=MADE, container=container,
                       **{"max_rss": 80 << 10, "max_wall": 4.0, **how})  # fmt: skip
    finally:
        os.close(fd)


def dumped(**fields: Any) -> Change:
    """The state with these fields; one that is None is left out."""
    return lambda state: json.dumps({k: v for k, v in {**state, **fields}.items() if v is not None},
                                    separators=(",", ":")).encode()  # fmt: skip


def with_text(text: str) -> Change:
    """The state with `text` behind its opening brace."""
    return lambda state: b"{" + text.encode("utf-8", "surrogatepass") + json.dumps(state).encode()[1:]


def test_as_it_is_the_state_is_taken(arena: Arena) -> None:
    for who in WHO:
        assert told(arena, who, dumped(), ok=True) == []
    assert os.readlink(arena.root / MADE[0]) == "libcuda.so.1"


# -- G1 -------------------------------------------------------------------------------------------------------------


@contextmanager
def descriptor(kind: str) -> Iterator[int]:
    with ExitStack() as stack:
        if kind.startswith("tty"):
            master, fd = os.openpty()
            stack.callback(os.close, master)
            if kind == "tty-end":
                os.write(master, b"\x04")
        elif kind == "directory":
            fd = os.open("/", os.O_RDONLY)
        elif kind == "write-only":
            fd = os.open("/dev/null", os.O_WRONLY)
        else:
            fd, write = os.pipe()
            stack.callback(os.close, write)
            os.set_blocking(fd, kind != "silent-pipe-nonblocking")
        stack.callback(os.close, fd)
        yield fd


SILENT = ("tty-silent", "silent-pipe", "silent-pipe-nonblocking")


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("kind", ["tty-end", "write-only"])
def test_g1_a_stdin_of_another_kind_is_one_error(arena: Arena, kind: str, who: str) -> None:
    with descriptor(kind) as fd:
        assert no_state(arena, who, fd, 3.0) == []


def test_g1_a_directory_is_refused_by_the_interpreter_itself(arena: Arena) -> None:
    """In more than one line, before any code of ours."""
    with descriptor("directory") as fd:
        assert attempt(arena, LINK, ok=False, lines=None, parts=["is a directory"], stdin=fd) == []


@pytest.mark.parametrize(
    ("kind", "who"),
    [pytest.param(k, w, marks=() if (k, w) == (SILENT[0], WHO[0]) else pytest.mark.long)
     for k in SILENT for w in WHO],
)  # fmt: skip
def test_g1_a_stdin_that_says_nothing_is_given_up_after_five_seconds(arena: Arena, kind: str, who: str) -> None:
    with descriptor(kind) as fd:
        assert no_state(arena, who, fd, 9.0, ["no end of file within 5 s"]) == []


def no_state(arena: Arena, who: str, fd: int, max_wall: float, parts: list[str] | None = None) -> list[str]:
    """A call with this stdin."""
    how: Json = {"parts": ["read state", *(parts or [])], "max_wall": max_wall, "stdin": fd, "timeout": max_wall + 3}
    if who == "prestart":
        program = hookproc.entry("main", "nvoci.prestart.main", "nvidia-container-runtime-hook")
        return attempt(arena, ["prestart"], ok=False, program=program, **how)
    return attempt(arena, LINK, who, ok=False, **how)


# -- G3 -------------------------------------------------------------------------------------------------------------

DOCUMENTS: dict[str, tuple[Change, str]] = {
    "lists-100000-deep": (with_text('"annotations": ' + "[" * 100_000 + ","), "nested too deeply"),
    "closed-lists-100000-deep": (with_text('"x": ' + "[" * 100_000 + "]" * 100_000 + ","), "nested too deeply"),
    "objects-100000-deep": (with_text('"x": ' + '{"":' * 100_000 + ","), "nested too deeply"),
    "a-million-digits": (with_text('"x": ' + "9" * 1_000_000 + ","), "too many digits"),
    "a-pid-of-100000-digits": (with_text('"x": 1, "pid": ' + "1" * 100_000 + ","), "too many digits"),
    "a-million-digits-behind-a-point": (with_text('"x": 0.' + "9" * 1_000_000 + ","), "too many digits"),
    "NaN": (with_text('"x": NaN,'), "NaN is not JSON"),
    "Infinity": (with_text('"x": -Infinity,'), "-Infinity is not JSON"),
    "too-large-a-number": (with_text('"x": 1e999,'), "too large"),
    "bundle-twice": (with_text('"bundle": "/",'), "`bundle` is given twice"),
    "root-twice": (with_text('"root": "/x", "root": "/y",'), "`root` is given twice"),
    "twice-deeper": (with_text('"annotations": {"a": {"b": 1, "b": 2}},'), "`b` is given twice"),
    "byte-order-mark": (lambda s: b"\xef\xbb\xbf" + json.dumps(s).encode(), "not valid JSON"),
    "UTF-16": (lambda s: json.dumps(s).encode("utf-16"), "not valid JSON"),
    "UTF-16-without-mark": (lambda s: json.dumps(s).encode("utf-16-le"), "not valid JSON"),
    "not-UTF-8": (lambda s: json.dumps(s).encode()[:-1] + b', "x": "\xff"}', "not UTF-8"),
    "two-documents": (lambda s: json.dumps(s).encode() * 2, "more text after the value"),
    "a-document-and-a-NUL": (lambda s: json.dumps(s).encode() + b"\0", "more text after the value"),
    "cut-short": (lambda s: json.dumps(s).encode()[:-1], "not valid JSON"),
    "a-list": (lambda s: json.dumps([s]).encode(), "not a JSON object"),
    "a-string": (lambda s: json.dumps(json.dumps(s)).encode(), "not a JSON object"),
    "null": (lambda s: b"null", "not a JSON object"),
    "a-byte-more-than-1-MiB": (lambda s: json.dumps(s).encode().ljust((1 << 20) + 1), "more than 1048576 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("who", ["outside", "prestart", pytest.param("inside", marks=pytest.mark.long)])
@pytest.mark.parametrize("case", DOCUMENTS)
def test_g3_a_document_that_is_no_state_is_one_error(arena: Arena, case: str, who: str) -> None:
    change, words = DOCUMENTS[case]
    assert told(arena, who, change, ok=False, parts=["read state", words]) == []


@pytest.mark.parametrize("who", WHO)
def test_g3_white_space_may_follow_and_1_mib_is_read(arena: Arena, who: str) -> None:
    assert told(arena, who, lambda s: b" \n" + json.dumps(s).encode().ljust((1 << 20) - 2), ok=True) == []


@pytest.mark.parametrize("case", ["bundle-twice", "twice-deeper", "NaN", "a-list"])
def test_naive_g3_it_is_taken_or_falls_through(arena: Arena, case: str) -> None:
    change, words = DOCUMENTS[case]
    assert told(arena, "outside", change, ok=False, parts=[words], naive=True)


# -- G5 -------------------------------------------------------------------------------------------------------------

BUNDLES: dict[str, tuple[Json, str]] = {
    "missing": ({"bundle": None}, "bundle"),
    "empty": ({"bundle": ""}, "bundle"),
    "relative": ({"bundle": "bundle"}, "not an absolute path"),
    "relative-by-dots": ({"bundle": "../../etc"}, "not an absolute path"),
    "the-hosts-root": ({"bundle": "/"}, "/config.json: ENOENT"),
    "not-there": ({"bundle": "/nowhere"}, "/nowhere/config.json: ENOENT"),
    "NUL": ({"bundle": "/a\0b"}, "holds a NUL"),
    "surrogate": ({"bundle": "/\ud800"}, "a surrogate"),
    "10-KiB": ({"bundle": "/" + "x" * 10240}, "longer than 4096"),
    "4096-long": ({"bundle": "/" * 4096}, "ENAMETOOLONG"),
    "number": ({"bundle": 7}, "`bundle` is not a string"),
    "list": ({"bundle": ["/"]}, "`bundle` is not a string"),
    "newline": ({"bundle": "/a\nb\x1b[0m"}, r"/a\\nb\\x1b"),
    "a-device": ({"bundle": "/dev/zero"}, "/dev/zero/config.json: ENOTDIR"),
}


@pytest.mark.parametrize("who", ["outside", "prestart", pytest.param("inside", marks=pytest.mark.long)])
@pytest.mark.parametrize("case", BUNDLES)
def test_g5_a_bundle_that_is_none_is_one_error(arena: Arena, case: str, who: str) -> None:
    """The state has no root, so config.json is needed."""
    fields, words = BUNDLES[case]
    assert told(arena, who, dumped(**fields, root=None), ok=False, parts=["read ", words]) == []


@pytest.mark.parametrize("old", ["/a\0b", "/\ud800", "/" + "x" * 10240, 7, "", "bundle"], ids=["NUL", "surrogate",
                         "10-KiB", "number", "empty", "relative"])  # fmt: skip
def test_g5_the_bundle_by_its_old_name_is_checked_as_well(arena: Arena, old: Any) -> None:
    """Only the prestart hook reads `bundlePath`."""
    found = told(arena, "prestart", dumped(bundle=None, bundlePath=old), ok=False, parts=["read state: "])
    assert found == []


@pytest.mark.parametrize("stage", ["outside", "inside"])
@pytest.mark.parametrize("bundle", [None, "/", "/nowhere"])
def test_g5_with_a_root_of_the_state_the_bundle_is_not_needed(arena: Arena, stage: str, bundle: str | None) -> None:
    """`/` is what crun says at startContainer."""
    assert told(arena, stage, dumped(bundle=bundle, root=str(arena.root)), ok=True) == []


# -- G8, G9, G10, G11 -----------------------------------------------------------------------------------------------

KEYS_36 = "0123456789abcdefghijklmnopqrstuvwxyz"


def short(n: int) -> str:
    return (short(n // 36) if n >= 36 else "") + KEYS_36[n % 36]


HOSTILE = "\n\x1b]0;x\x07../../../etc/passwd\0\u202e'$(id)'"
FINE: dict[str, Json] = {
    **{f"G8-{s}": {"status": s} for s in ("creating", "created", "starting", "running", "stopped")},
    "G8-none": {"status": None},
    "G9-100000-keys": {"annotations": {short(n): "" for n in range(100_000)}},
    "G9-hostile-text": {"annotations": {HOSTILE: HOSTILE, "": "", "a": "x" * 500_000}},
    "G9-ours-in-two-cases": {"annotations": {"cdi.k8s.io/a_0": "a.org/x=0", "CDI.k8s.io/a_0": "b.org/x=0"}},
    "G9-values-of-other-types": {"annotations": {"a": 1, "b": [], "c": {"d": None}, "e": True}},
    "G9-a-list": {"annotations": [1]},
    "G10-missing": {"ociVersion": None},
    "G10-0.1": {"ociVersion": "0.1.0"},
    "G10-9.9": {"ociVersion": "9.9.9+x"},
    "G10-no-string": {"ociVersion": [1]},
    "G10-hostile": {"ociVersion": HOSTILE},
    "G11-slash": {"id": "a/b"},
    "G11-dots": {"id": "../../../../../../../../tmp/nvoci-id"},
    "G11-dot": {"id": "."},
    "G11-newline": {"id": "a\nlevel=error msg=x\x1b[2J"},
    "G11-4-KiB": {"id": "x" * 4096},
    "G11-none": {"id": None},
}
REFUSED: dict[str, tuple[Json, str]] = {
    "G8-unknown": ({"status": "paused"}, "unknown status `paused`"),
    "G8-other-case": ({"status": "Running"}, "unknown status `Running`"),
    "G8-hostile": ({"status": HOSTILE}, r"unknown status `\\n\\x1b"),
    "G8-number": ({"status": 1}, "unknown status `1`"),
    "G8-list": ({"status": ["created"]}, "unknown status"),
    "G11-NUL": ({"id": "a\0"}, "`id` holds a NUL"),
    "G11-surrogate": ({"id": "\udcff"}, "`id` holds a NUL or a surrogate"),
    "G11-5-KiB": ({"id": "x" * 5120}, "longer than 4096"),
    "G11-number": ({"id": 3}, "`id` is not a string"),
}


@pytest.mark.parametrize("who", ["outside", "prestart", pytest.param("inside", marks=pytest.mark.long)])
@pytest.mark.parametrize("case", FINE)
def test_what_the_hook_need_not_know_is_data(arena: Arena, case: str, who: str) -> None:
    """It works as ever, says nothing, and the only thing made anywhere is the link."""
    there = os.path.exists("/tmp/nvoci-id")
    assert told(arena, who, dumped(**FINE[case]), ok=True, lines=0) == []
    assert os.path.lexists(arena.root / MADE[0]) == (who != "prestart")
    assert os.path.exists("/tmp/nvoci-id") == there


@pytest.mark.parametrize("who", ["outside", "prestart", pytest.param("inside", marks=pytest.mark.long)])
@pytest.mark.parametrize("case", REFUSED)
def test_what_no_runtime_says_is_one_error(arena: Arena, case: str, who: str) -> None:
    fields, words = REFUSED[case]
    assert told(arena, who, dumped(**fields), ok=False, parts=["read state: ", words]) == []


# -- G12 ------------------------------------------------------------------------------------------------------------

TWICE = {
    "one": LINK,
    "run": ["run", "--", *LINK, "--", "enable-cuda-compat", "--host-driver-version", "550.54.15",
            "--", "update-ldcache", "--folder", "/opt/nvidia/lib"],
}  # fmt: skip


@pytest.mark.parametrize("stage", ["outside", "inside"])
@pytest.mark.parametrize("case", TWICE)
def test_g12_a_hook_that_is_injected_twice_leaves_what_one_leaves(
    arena: Arena, profile: str, case: str, stage: str
) -> None:
    at: hookproc.Stage = "createRuntime" if stage == "outside" else "createContainer"
    with FakeContainer(arena.root) as c:
        first = hookproc.run_hook(TWICE[case], container=c, stage=at)
        assert (first.rc, first.stderr) == (0, "")
        mounts = c.mountinfo()
        with Oracle(
            arena.canary, arena.root, [] if case == "one" else ["etc/ld.so.cache", "etc/ld.so.conf.d/*"]
        ) as oracle:
            assert oracle.check(hookproc.run_hook(TWICE[case], container=c, stage=at), ok=True, lines=0) == []
        assert c.mountinfo() == mounts
        made = os.listdir(arena.root / "etc/ld.so.conf.d")
        assert len(made) == {"one": 1, "run": 4}[case], made
