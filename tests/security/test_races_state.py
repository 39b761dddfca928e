"""Rows B12 to B14: a storm of mounts, a peer at the library cache at each step, and a bundle that is exchanged."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from kernel import namespaced
from lib import rootfs
from lib.flipper import Flipper
from lib.hookproc import FakeContainer, run_hook
from lib.oracle import Oracle
from security import racing
from security.arena import LDCACHE, LIBDIR, NAIVE, Arena
from security.racing import Tally
from security.test_races import rounds

from nvoci.errors import HookError
from nvoci.hook import disable_device_node_modification as params_hook
from nvoci.hook.mounts import GeneratedMount
from nvoci.hook.operation import Transaction
from nvoci.ldcache.cache import CacheError, parse
from nvoci.linux import abi, procfs, syscalls
from nvoci.oci import config

# -- B12 --------------------------------------------------------------------------------------------------------------


def storm(place: Path) -> Callable[[], None]:
    """What a container start does to the host's mounts, again and again, in a namespace of its own."""
    place.mkdir()

    def body() -> None:
        syscalls.unshare(abi.CLONE_NEWNS)
        syscalls.mount(None, b"/", None, abi.MS_REC | abi.MS_PRIVATE)
        for _ in range(50):
            syscalls.mount(b"t", os.fsencode(place), b"tmpfs", 0)
            syscalls.umount2(os.fsencode(place), abi.MNT_DETACH)

    return body


def test_b12_a_storm_of_mounts_never_makes_a_hook_fail(arena: Arena, profile: str, long: bool) -> None:
    """Paths with `..`, for which openat2 then answers EAGAIN, and mounts of our own."""
    words = ["create-symlinks"]
    for n in range(20):
        (arena.root / f"d{n}").mkdir()
        words += ["--link", f"target::/usr/lib/../share/../../d{n}/../d{n}/link"]
    rootfs.tree(arena.root, "file proc/driver/nvidia/params old")

    def body() -> tuple[Tally, list[str]]:
        procfs.handle()
        namespaced.Kernel("race", () if profile == "new" else ("openat2",)).start()
        bad: list[str] = []

        def once() -> None:
            try:
                racing.hook_once(arena.root, words)
                container = namespaced.make_container(arena.root, "outside")
                mount = GeneratedMount(container, b"proc/" + params_hook.PARAMS, b"new\n", 0o444, "params")
                mount.execute(Transaction())
                mount.undo()
                container.rootfs.close()
            except (OSError, HookError) as e:
                bad.append(str(e))
            for n in range(20):
                os.unlink(arena.root / f"d{n}/link")

        return racing.until(rounds(profile, long=long), once), bad

    with ExitStack() as stack:
        for n in range(4):
            stack.enter_context(namespaced.forked(storm(arena.top / f"storm{n}")))
        tally, bad = namespaced.isolated(body, limit=900)
    assert bad == []
    assert tally.done > 0


# -- B13 --------------------------------------------------------------------------------------------------------------

CACHE = "etc/ld.so.cache"
THEIRS = b"the peer's own cache\n"


def deleted(path: Path) -> None:
    path.unlink(missing_ok=True)


def replaced(path: Path) -> None:
    new = path.with_name("theirs")
    new.write_bytes(THEIRS)
    new.rename(path)


def made_a_directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir(exist_ok=True)


def made_a_link(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("hostname")


PEERS: dict[str, Callable[[Path], None]] = {
    "deletes it": deleted,
    "replaces it": replaced,
    "makes it a directory": made_a_directory,
    "makes it a link": made_a_link,
}


def stepped(update: Callable[[], object], at: int, act: Callable[[], None]) -> tuple[int, str]:
    """update(), with act() before its `at`-th system call or lookup; (calls in all, what it said)."""
    seen = 0

    def watch(frame: Any, event: str, arg: Any) -> None:
        nonlocal seen
        is_call = event == "c_call" and getattr(arg, "__module__", "") == "posix"
        if is_call or (event == "call" and frame.f_code.co_name in ("lookup", "renameat2", "openat2")):
            seen += 1
            if seen == at:
                sys.setprofile(None)
                act()
                sys.setprofile(watch)

    said = ""
    sys.setprofile(watch)
    try:
        update()
    except (OSError, HookError) as e:
        said = str(e) or type(e).__name__
    finally:
        sys.setprofile(None)
    return seen, said


def whole(path: Path) -> str:
    """What is wrong with the cache that is there now, if it is neither ours nor the peer's."""
    if not path.is_file() or path.is_symlink():
        return ""
    data = path.read_bytes()
    try:
        parse(data)
    except CacheError as e:
        return "" if data == THEIRS else f"half a cache: {e}"
    return ""


def clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("peer", PEERS)
def test_b13_the_cache_is_whole_whatever_a_peer_does_at_each_step(
    arena: Arena, profile: str, peer: str, long: bool
) -> None:
    path = arena.root / CACHE

    def body() -> tuple[int, int, list[str]]:
        procfs.handle()
        namespaced.Kernel("race", () if profile == "new" else ("openat2",)).start()
        os.umask(0)

        def update() -> None:
            racing.hook_once(arena.root, LDCACHE["builtin"])

        calls, said = stepped(update, 0, lambda: None)
        assert (said, calls > 40) == ("", True)
        bad, refused = [], 0
        for at in range(1, calls + 1, 1 if long else 3):
            clear(path)
            path.write_bytes(b"old cache\n")
            _, said = stepped(update, at, lambda: PEERS[peer](path))
            refused += said != ""
            bad += [f"{at}: {w}" for w in [whole(path)] if w]
            bad += [f"{at}: left {name}" for name in os.listdir(path.parent) if ".nvoci" in name]
        return calls, refused, bad

    calls, refused, bad = namespaced.isolated(body, limit=600)
    assert bad == []
    assert refused < calls


def test_b13_a_reader_never_sees_half_a_cache(arena: Arena, profile: str, long: bool) -> None:
    """A loader in another container of the same image, while the cache is made again and again."""
    path, report = arena.root / CACHE, arena.top / "report"

    def read() -> None:
        try:
            wrong = whole(path)
        except OSError:
            return
        if wrong:
            report.write_text(wrong)

    def body() -> Tally:
        procfs.handle()
        namespaced.Kernel("race", () if profile == "new" else ("openat2",)).start()
        os.umask(0)

        def once() -> None:
            replaced(path)
            racing.hook_once(arena.root, LDCACHE["builtin"])

        return racing.until(rounds(profile, long=long), once)

    replaced(path)
    with namespaced.forked(read), Oracle(arena.canary) as oracle:
        assert namespaced.isolated(body, limit=600).done > 0
        assert oracle.check() == []
    assert not report.exists(), report.read_text()


def test_naive_b13_a_cache_that_is_written_in_place_is_seen_half(arena: Arena) -> None:
    path, report = arena.root / CACHE, arena.top / "report"
    namespaced.isolated(lambda: racing.hook_once(arena.root, LDCACHE["builtin"]))
    data = path.read_bytes()

    def read() -> None:
        if whole(path):
            report.touch()

    deadline = time.monotonic() + 30
    with namespaced.forked(read):
        while not report.exists() and time.monotonic() < deadline:
            with open(path, "wb", buffering=0) as f:
                f.write(data[:100])
                f.write(data[100:])
    assert report.exists()


# -- B14 --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundles(arena: Arena) -> tuple[Path, Path]:
    """Two bundles, each with a root of its own and a config.json that names it."""
    found = []
    for name in ("one", "two"):
        folder = rootfs.tree(arena.top / name, f"dir rootfs/{LIBDIR}")
        doc = {"ociVersion": "1.0.2", "root": {"path": str(folder / "rootfs")}, "process": {"env": [f"WHO={name}"]}}
        (folder / "config.json").write_text(json.dumps(doc))
        found.append(folder)
    return found[0], found[1]


SWAPS = {
    "another config.json": "config.json",
    "another bundle": "",
    "a FIFO": "fifo",
    "a link": "link",
    "another's file": "stranger",
}


def pair(bundles: tuple[Path, Path], swap: str) -> tuple[Path, Path]:
    """The two that are exchanged."""
    one, two = bundles
    kind = SWAPS[swap]
    if kind in ("config.json", ""):
        return one / kind, two / kind
    spec = {"fifo": "fifo other", "link": f"symlink other {two}/config.json", "stranger": "file other {}"}[kind]
    rootfs.tree(one, spec)
    if kind == "stranger":
        (one / "other").write_text((two / "config.json").read_text())
        os.chown(one / "other", 1234, 1234)
    return one / "config.json", one / "other"


@pytest.mark.parametrize("swap", SWAPS)
def test_b14_config_json_is_read_once(bundles: tuple[Path, Path], swap: str, long: bool) -> None:
    """Whichever was there then is the one that all who ask are told of, and no other kind of file is read."""

    def body() -> tuple[int, int, list[str]]:
        read: list[str] = []
        refused = 0
        bad: list[str] = []
        for _ in racing.tries(20_000 if long else 500, lambda: bool(read)):
            config._loaded.clear()
            try:
                doc = config.load(str(bundles[0]))
            except HookError as e:
                refused += 1
                bad += (
                    [e.line()]
                    if swap in ("another config.json", "another bundle", "a link") and "ENOENT" not in e.line()
                    else []
                )
                continue
            name = doc["process"]["env"][0].removeprefix("WHO=")
            read.append(name)
            if config.root_path(str(bundles[0])) != doc["root"]["path"] or f"/{name}/" not in doc["root"]["path"]:
                bad.append(f"a mixture: {doc}")
            if name == "two" and swap == "another's file":
                bad.append("what is no file of the runtime's was read")
        return len(read), refused, bad

    with Flipper(*pair(bundles, swap)):
        read, _, bad = namespaced.isolated(body, limit=600)
    assert bad == []
    assert read > 0


def swapped(arena: Arena, bundles: tuple[Path, Path], swap: str, count: int, *, naive: bool = False) -> list[str]:
    """Whole processes on the first bundle: the links they made, per run, and deadlines."""
    out = []
    state = {"ociVersion": "1.0.2", "id": "x", "bundle": str(bundles[0])}
    words = ["create-symlinks", "--link", "target::/made/link"]
    names = pair(bundles, swap)
    with FakeContainer(arena.root) as c:
        for _ in range(count):
            with Flipper(*names):
                result = run_hook(words, {**state, "pid": c.pid}, timeout=4, program=NAIVE if naive else None)
            made = [p / "link" for p in arena.top.rglob("made") if os.path.islink(p / "link")]
            if result.timed_out or len(made) > 1 or (result.rc == 0 and not made) or (result.rc != 0 and made):
                out.append(f"{result.rc}: {made} {result.stderr}")
            for link in made:
                link.unlink()
                link.parent.rmdir()
            if naive and out:
                break
    return out


@pytest.mark.parametrize("swap", ["another config.json", "another bundle", "a FIFO"])
def test_b14_a_process_works_on_one_root(
    arena: Arena, bundles: tuple[Path, Path], profile: str, swap: str, long: bool
) -> None:
    assert swapped(arena, bundles, swap, 100 if long else 6) == []


def test_naive_b14_a_fifo_in_its_place_is_waited_for(arena: Arena, bundles: tuple[Path, Path]) -> None:
    assert swapped(arena, bundles, "a FIFO", 60, naive=True)
