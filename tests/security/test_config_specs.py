"""Rows Q1 to Q3 and Q5: specifications that are another's, no files, too large or at odds, and a driver root whose
links lead to the host, as `inject` and the look for host files meet them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from lib import rootfs, session
from security.arena import LIBDIR, TREE, Arena, attempt
from unit.inject.thing import KIND, Thing, hook

from nvoci.discover.node import Root
from nvoci.errors import HookError
from nvoci.prestart.hostfiles import Host, Stale

LIB = "/opt/vendor/lib/libthing.so"


@pytest.fixture
def thing() -> Thing:
    return Thing()


def written(thing: Thing) -> Path:
    return thing.write({"a": {"mounts": [thing.mount("libthing.so", LIB)]}})


# -- Q1 -------------------------------------------------------------------------------------------------------------


def moved(path: Path, then: Callable[[Path], object]) -> None:
    """The specification lies elsewhere, changed, and a link leads there."""
    other = session.new_dir("elsewhere") / "spec.json"
    path.rename(other)
    then(other)
    path.symlink_to(other)


def replaced(spec: str) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        path.unlink()
        rootfs.tree(path.parent, f"{spec.replace('NAME', path.name)}")

    return make


# what becomes of the specification's file -> what is said
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "directory-777": (lambda p: p.parent.chmod(0o777), "others can write it"),
    "directory-sticky": (lambda p: p.parent.chmod(0o1777), "others can write it"),
    "directory-of-a-group": (lambda p: p.parent.chmod(0o775), "others can write it"),
    "directory-of-another": (lambda p: os.chown(p.parent, 1000, 1000), "owned by uid 1000"),
    "file-666": (lambda p: p.chmod(0o666), "others can write it"),
    "file-of-another": (lambda p: os.chown(p, 1000, 1000), "owned by uid 1000"),
    "link-to-another-s": (lambda p: moved(p, lambda o: os.chown(o, 1000, 1000)), "owned by uid 1000"),
    "link-to-one-for-all": (lambda p: moved(p, lambda o: o.chmod(0o666)), "others can write it"),
    "FIFO": (replaced("fifo NAME"), "EINVAL"),
    "link-to-itself": (replaced("symlink NAME NAME"), "ELOOP"),
    "endless-device": (replaced("symlink NAME /dev/zero"), "EINVAL"),
    "1-GiB": (replaced("sparse NAME 1G"), "EFBIG"),
    "not-UTF-8": (lambda p: p.write_bytes(b'{"kind": "\xff"}'), "UTF-8"),
    "UTF-16": (lambda p: p.write_bytes(p.read_text().encode("utf-16")), "CDI spec"),
    "deep": (lambda p: p.write_bytes(b"[" * 200_000), "CDI spec"),
}


@pytest.mark.parametrize("stage", ["outside", pytest.param("inside", marks=pytest.mark.long)])
@pytest.mark.parametrize("case", DAMAGES)
def test_q1_a_specification_that_is_not_to_be_trusted_gives_no_device(
    arena: Arena, thing: Thing, case: str, stage: str
) -> None:
    damage, words = DAMAGES[case]
    damage(written(thing))
    parts = [words, f"unresolvable CDI devices {KIND}=a", str(thing.specs)]
    found = attempt(arena, thing.words(), stage, ok=False, lines=2, parts=parts, max_rss=80 << 10)
    assert found == []


def test_q1_a_link_to_one_of_root_s_is_one(arena: Arena, thing: Thing) -> None:
    moved(written(thing), lambda _: None)
    assert attempt(arena, thing.words(), ok=True, lines=0, planned=["opt", "opt/**"]) == []


# -- Q2, Q3 ---------------------------------------------------------------------------------------------------------


def test_q2_a_device_in_two_files_of_one_directory_is_in_neither(arena: Arena, thing: Thing) -> None:
    first = written(thing)
    second = thing.write({"a": {"env": ["OTHER=1"]}}, name="other.json")
    parts = [f"unresolvable CDI devices {KIND}=a", first.name, second.name]
    assert attempt(arena, thing.words(), ok=False, lines=3, parts=parts) == []


def test_q3_the_environment_of_a_hook_of_ours_in_a_specification_loads_nothing(arena: Arena, thing: Thing) -> None:
    """It is done in the same process: no loader reads LD_PRELOAD, no interpreter PYTHONPATH."""
    out = arena.canary / "loaded"
    env = [f"LD_PRELOAD={out}.so", f"PYTHONPATH={arena.canary}", f"LD_AUDIT={out}.so", "PYTHONHOME=/none"]
    words = ["create-symlinks", "--link", f"libcuda.so.1::/{LIBDIR}/libcuda.so"]
    entry = hook("createContainer", "/usr/bin/nvidia-cdi-hook", *words, env=env)
    thing.write({"a": {"hooks": [entry]}})
    assert attempt(arena, thing.words(), ok=True, lines=0, planned=[f"{LIBDIR}/libcuda.so"]) == []
    assert os.readlink(arena.root / LIBDIR / "libcuda.so") == "libcuda.so.1"


@pytest.mark.parametrize("path", ["{root}/hook", "/tmp/hook", "hook", "/usr/bin/../../{root}/hook", "{user}/hook"])
def test_q3_a_hook_program_that_is_not_the_host_s_is_not_run(arena: Arena, thing: Thing, path: str) -> None:
    """One in a directory that others can write, of another's, or by a relative name."""
    user = session.new_dir("user")
    program = f"#!/bin/sh\ntouch {arena.canary}/run\n"
    for folder in (arena.root, user):
        (folder / "hook").write_text(program)
        (folder / "hook").chmod(0o755)
    os.chown(user, 1000, 1000)
    arena.root.chmod(0o777)  # the image's affair
    entry = hook("createRuntime", path.format(root=arena.root, user=user), "x")
    thing.write({"a": {"hooks": [entry]}})
    assert attempt(arena, thing.words(), ok=False, lines=2) == []
    assert not (arena.canary / "run").exists()


# -- Q5 -------------------------------------------------------------------------------------------------------------

# links of a driver root -> what is found of etc/secret by way of `here`
LINKS = {
    "absolute": "symlink here {canary}",
    "dots": "symlink here ../../../../../../../../../../../..{canary}",
    "proc-root": "symlink here /proc/1/root{canary}",
    "proc-self": "symlink here /proc/self/root{canary}",
    "two-links": "symlink here there\nsymlink there {canary}",
    "loop": "symlink here there\nsymlink there here",
}


@pytest.mark.parametrize("by_link", [False, True], ids=["named", "named-by-a-link"])
@pytest.mark.parametrize("case", LINKS)
def test_q5_no_link_of_a_driver_root_leads_to_the_host(arena: Arena, case: str, *, by_link: bool) -> None:
    top = rootfs.tree(session.new_dir("driver") / "root", TREE)
    rootfs.tree(top, LINKS[case].format(canary=arena.canary))
    name = str(top)
    if by_link:
        name = f"{top}-link"
        os.symlink(top, name)
    assert seen(name, "/etc/hostname")
    for path in ("/here/secret", "/here", f"/here/..{arena.canary}/secret", f"/../..{arena.canary}/secret"):
        assert not seen(name, path), path


def seen(root: str, path: str) -> bool:
    """By those who look for the driver's files, or who would mount them."""
    top = Root.open(root)
    try:
        top.resolve(path)
        looked = True
    except OSError:
        looked = False
    finally:
        top.close()
    with Host(root) as host:
        try:
            host.file(path, resolve=True).close()
        except (OSError, HookError, Stale):
            return looked
    return True
