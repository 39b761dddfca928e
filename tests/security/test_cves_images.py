"""Published vulnerabilities that an image's files, or another container's, bring about: the same case for the hooks,
on real containers, and for a naive hook, which it gets out of the image.

One class: a path of the image, or below a shared volume, is resolved on the host, or twice.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lib import hookproc, rootfs
from lib.flipper import Flipper
from lib.oracle import Oracle
from lib.runtimes import Runtime, make_bundle, shell_hook
from security import test_inject
from security.arena import LIBDIR, NAIVE, PROFILE, Arena, attempt, escapes, settled
from security.test_cves import COMPAT_ARGS, GPU
from security.test_paths import some_root
from unit.inject.thing import Thing

NAIVE_INJECT = Path(__file__).with_name("naive_inject.py")


def links(*paths: str) -> list[str]:
    return ["create-symlinks", *(word for path in paths for word in ("--link", f"target::{path}"))]


@dataclass(frozen=True)
class Case:
    """spec: what is in the image; {canary} is the host's directory. words: the hook's. kind, target: inject's instead.
    bare: without the runtime's own /dev. flips: the directory and the link that are exchanged meanwhile."""

    spec: str
    words: list[str] = field(default_factory=list)
    kind: str = ""
    target: str = ""
    bare: bool = False
    flips: tuple[str, str] | None = None


FLIP = ("vol/x", "vol/y")
SHARED = "dir vol/x\nsymlink vol/y {canary}\ndir {twin}"
MANY = [f"/vol/x/n{n}/link" for n in range(40)]
CASES: dict[str, Case] = {
    "2018_15664": Case(SHARED, links(*(f"/vol/x/link{n}" for n in range(40))), flips=FLIP),
    "2017_1002101": Case("symlink vol {canary}", links("/vol/sub/link")),
    "2021_25741": Case(SHARED, links(*MANY), flips=FLIP),
    "2021_30465": Case(SHARED, kind="file", target="vol/x/n/thing", flips=FLIP),
    "2024_45310": Case(SHARED, links(*(f"/vol/x/a{n}/b/c/link" for n in range(40))), flips=FLIP),
    "2019_18837": Case("symlink dev {canary}", kind="node", target="dev/thing", bare=True),
    "2026_47766": Case("symlink opt {canary}", kind="directory", target="opt/vendor/thing"),
    "2026_41579": Case("symlink dev {canary}", links("/dev/link"), bare=True),
    "2025_31133": Case("symlink dev/null {canary}/secret", ["chmod", "--mode", "666", "--path", "dev/null"], bare=True),
    "2025_52565": Case("symlink dev/console {canary}/secret", kind="node", target="dev/console/thing", bare=True),
    "2022_23648": Case("", links("/../../../../../../../../../../../..{canary}/link")),
    "2025_9566": Case(f"symlink {PROFILE} {{canary}}/made", ["update-application-profile"]),
    "2024_9341": Case("symlink opt/vendor/thing {canary}/new", kind="file", target="opt/vendor/thing"),
    "2024_5154": Case("symlink etc {canary}", links("/etc/mtab")),
    "2025_24965": Case("symlink etc/ld.so.conf.d {canary}", COMPAT_ARGS),
    "2024_1753": Case("symlink opt/vendor ../../../../../../../../..{canary}", kind="directory",
                      target="opt/vendor/thing"),
    "2020_2026": Case("symlink opt/vendor {canary}", kind="tmpfs", target="opt/vendor/thing"),
    "2025_0750": Case("symlink var/log {canary}", links("/var/log/pods/../link")),
}  # fmt: skip
NO_DEV = ("/dev", "/dev/pts", "/dev/shm", "/dev/mqueue")


def prepared(arena: Arena, name: str) -> tuple[Case, list[str]]:
    """The image is laid; (the case, the hook's words)."""
    case = CASES[name]
    spec = case.spec.format(canary=arena.canary, twin=str(arena.canary)[1:])
    if case.bare and not (arena.root / "dev").is_symlink():
        shutil.rmtree(arena.root / "dev")
    shutil.copy2("/bin/busybox", arena.root / "busybox")
    rootfs.tree(arena.root, spec)
    if not case.kind:
        return case, [word.format(canary=arena.canary) for word in case.words]
    thing = Thing()
    if case.flips is None:
        return case, test_inject.words(thing, case.kind, case.target)
    mounts = [thing.mount("libthing.so", f"/{case.target.replace('/n/', f'/n{n}/')}", "ro", "bind") for n in range(20)]
    thing.write({"a": {"mounts": mounts}})
    return case, thing.words()


def without_dev(config: dict[str, Any]) -> None:
    config["mounts"] = [m for m in config["mounts"] if m["destination"] not in NO_DEV]


def container(arena: Arena, name: str, runtime: str, stage: str, *, naive: bool = False, times: int = 1) -> list[str]:
    """Containers of that image, whether they start or not; violations."""
    case, words = prepared(arena, name)
    program = None if not naive else NAIVE_INJECT if case.kind else NAIVE
    entry = hookproc.hook_entry(words, program=program, timeout=20)
    marker = arena.top / "reached"
    reached = shell_hook(f"echo x >>{marker}")
    bundle = make_bundle(arena.top / "bundle", arena.root, ["/busybox", "true"], {stage: [reached, entry]},
                         devices=[GPU], edit=without_dev if case.bare else None)  # fmt: skip
    out: list[str] = []
    with Oracle(arena.canary) as oracle:
        for _ in range(times):
            if case.flips:
                with Flipper(*(arena.root / path for path in case.flips)):
                    Runtime(runtime).run(bundle)
            else:
                Runtime(runtime).run(bundle)
            assert marker.exists(), "the runtime has not come to the hook"
            marker.unlink()
            out = oracle.check()
            if "symlink dev {" in case.spec:  # these runtimes follow it themselves: what is ours has these names
                out = [v for v in out if v.startswith(("canary: 'link'", "canary: 'thing'"))]
            if out:
                break
        return settled(arena, out)


def safe(arena: Arena, name: str, runtime: str, long: bool) -> None:
    """Every stage, or each with one of the runtimes; of a race, several containers."""
    stages = ("createRuntime", "createContainer")
    race = CASES[name].flips is not None
    for stage in stages if long else [stages[runtime == "crun"]]:
        assert container(arena, name, runtime, stage, times=25 if race and long else 2 if race else 1) == []
    assert not {"link", "thing", "made", "new"} & {*os.listdir(arena.canary)}


def unsafe(arena: Arena, name: str, runtime: str) -> None:
    """The naive hook, with the very same image, entry and flipper. What it mounts is gone with the container: a mount
    leaves its mount point."""
    times = 40 if CASES[name].flips else 1
    assert escapes(container(arena, name, runtime, "createRuntime", naive=True, times=times))


def test_cve_2017_1002101_a_path_below_a_volume(arena: Arena, runtime: str, long: bool) -> None:
    safe(arena, "2017_1002101", runtime, long)


def test_cve_2018_15664_a_parent_renamed_after_it_was_resolved(arena: Arena, runtime: str, long: bool) -> None:
    safe(arena, "2018_15664", runtime, long)


def test_cve_2019_18837_a_device_of_an_image_whose_dev_is_a_link(arena: Arena, runtime: str, long: bool) -> None:
    safe(arena, "2019_18837", runtime, long)


def test_cve_2020_2026_a_mount_below_a_link_of_the_image(arena: Arena, runtime: str, long: bool) -> None:
    safe(arena, "2020_2026", runtime, long)


def test_cve_2021_25741_a_path_below_a_volume_that_flips(arena: Arena, runtime: str, long: bool) -> None:
    safe(arena, "2021_25741", runtime, long)


def test_cve_2021_30465_a_mount_below_a_volume_that_flips(arena: Arena, runtime: str, long: bool) -> None:
    safe(arena, "2021_30465", runtime, long)


def test_cve_2022_23648_dots_in_a_path(arena: Arena, runtime: str, long: bool) -> None:
    safe(arena, "2022_23648", runtime, long)


def test_cve_2024_1753_a_mount_through_a_relative_link(arena: Arena, runtime: str, long: bool) -> None:
    safe(arena, "2024_1753", runtime, long)


def test_cve_2024_5154_a_link_made_in_a_directory_of_the_host(arena: Arena, runtime: str, long: bool) -> None:
    safe(arena, "2024_5154", runtime, long)


def test_cve_2024_9341_a_mount_on_what_the_image_says(arena: Arena, runtime: str, long: bool) -> None:
    safe(arena, "2024_9341", runtime, long)


def test_cve_2024_45310_directories_made_in_a_volume_that_flips(arena: Arena, runtime: str, long: bool) -> None:
    safe(arena, "2024_45310", runtime, long)


def test_cve_2025_0750_dots_below_a_link(arena: Arena, runtime: str, long: bool) -> None:
    safe(arena, "2025_0750", runtime, long)


def test_cve_2025_9566_a_file_written_through_a_link(arena: Arena, runtime: str, long: bool) -> None:
    safe(arena, "2025_9566", runtime, long)


def test_cve_2025_24965_a_configuration_file_made_outside(arena: Arena, runtime: str, long: bool) -> None:
    safe(arena, "2025_24965", runtime, long)


def test_cve_2025_31133_dev_null_is_a_link(arena: Arena, runtime: str, long: bool) -> None:
    safe(arena, "2025_31133", runtime, long)


def test_cve_2025_52565_dev_console_is_a_link(arena: Arena, runtime: str, long: bool) -> None:
    safe(arena, "2025_52565", runtime, long)


def test_cve_2026_41579_dev_is_a_link(arena: Arena, runtime: str, long: bool) -> None:
    safe(arena, "2026_41579", runtime, long)


def test_cve_2026_47766_a_directory_mounted_below_a_link(arena: Arena, runtime: str, long: bool) -> None:
    safe(arena, "2026_47766", runtime, long)


# Where the naive hook does not have the mistake: inject's naive twin knows no tmpfs, and no directory below a file.
@pytest.mark.parametrize("name", sorted(set(CASES) - {"2020_2026", "2025_52565"}))
def test_naive_cve(arena: Arena, runtime: str, name: str) -> None:
    unsafe(arena, name, runtime)


# -- /proc of the image -----------------------------------------------------------------------------------------------

# What is at /proc of the image, where the runtime mounts none: it must be believed in nothing.
PROCS: dict[str, Callable[[Path], str]] = {
    "a directory": lambda canary: "dir proc/driver/nvidia\nfile proc/driver/nvidia/params ModifyDeviceFiles: 1\\n",
    "a link": lambda canary: f"symlink proc {canary}",
    "a link to the host's": lambda canary: f"symlink proc {some_root()}{canary}",
    "links in it": lambda canary: f"dir proc\nsymlink proc/driver {canary}/driver\nsymlink proc/self {canary}\n"
                                  f"symlink proc/thread-self {canary}",
}  # fmt: skip
PARAMS_ARGS = ["disable-device-node-modification"]


def fake_proc(arena: Arena, kind: str, stage: str, *, naive: bool = False) -> list[str]:
    """The hook that mounts below /proc, and all that use a /proc for themselves, on that image."""
    params = rootfs.tree(arena.top / "params", "file nvidia/params ModifyDeviceFiles: 1\\n")
    rootfs.tree(arena.canary, "dir driver/nvidia\nfile driver/nvidia/params host\ndir self/fd\ndir attr")
    shutil.rmtree(arena.root / "proc")
    rootfs.tree(arena.root, PROCS[kind](arena.canary))
    out: list[str] = []
    others = (links("/made/link", f"/{LIBDIR}/link"), ["chmod", "--mode", "600", "--path", "/etc/hostname"])
    for words in (PARAMS_ARGS, *others):
        out += attempt(arena, words, stage, naive=naive, still=False, params=params, lines=None,
                       container={"proc_mount": False})  # fmt: skip
    return out


def check_fake_proc(arena: Arena, profile: str, kind: str) -> None:
    assert fake_proc(arena, kind, "outside" if profile == "new" else "inside") == []
    assert os.readlink(arena.root / "made/link") == "target"
    assert (arena.root / "etc/hostname").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["a directory", "links in it"])
def test_cve_2019_16884_proc_is_a_directory_of_the_image(arena: Arena, profile: str, kind: str) -> None:
    check_fake_proc(arena, profile, kind)


@pytest.mark.parametrize("kind", ["a link", "a link to the host's"])
def test_cve_2019_19921_proc_is_a_link(arena: Arena, profile: str, kind: str) -> None:
    check_fake_proc(arena, profile, kind)


def test_cve_2023_27561_proc_is_a_link_again(arena: Arena, profile: str) -> None:
    check_fake_proc(arena, profile, "a link")


def test_cve_2023_28642_sys_and_proc_are_links(arena: Arena, profile: str) -> None:
    rootfs.tree(arena.root, f"symlink sys {arena.canary}")
    check_fake_proc(arena, profile, "a link")


@pytest.mark.parametrize("stage", ["outside", "inside"])
def test_cve_2025_52881_a_tmpfs_covers_proc_meanwhile(arena: Arena, profile: str, stage: str) -> None:
    """A shared mount has put a tmpfs of fakes over /proc/self/attr, fd and driver of the container."""
    cover = 'mkdir -p "$R/fake/fd" "$R/fake/attr"; mount -t tmpfs fake "$R/proc"; mkdir -p "$R/proc/self/fd"; '
    cover += f'for n in 3 4 5 6 7 8 9; do ln -s {arena.canary} "$R/proc/self/fd/$n"; done'
    words = ["run", "--", *links("/made/link"), "--", "chmod", "--mode", "600", "--path", "/etc/hostname", "--",
             *COMPAT_ARGS]  # fmt: skip
    assert attempt(arena, words, stage, ok=True, still=False, container={"setup": cover}) == []
    assert (arena.root / "etc/hostname").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["a link", "links in it"])
def test_naive_cve_2019_19921_proc_of_the_image_is_followed(arena: Arena, kind: str) -> None:
    assert escapes(fake_proc(arena, kind, "outside", naive=True))


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["etc/passwd", "etc/ld.so.conf", f"{LIBDIR}/libhuge.so.1"])
def test_cve_2025_4437_a_file_of_enormous_size_is_not_read(arena: Arena, profile: str, path: str) -> None:
    rootfs.tree(arena.root, f"sparse {path} 1T")
    words = ["run", "--", *COMPAT_ARGS, "--", "update-ldcache", "--folder", "/opt"]
    found = attempt(arena, words, "outside" if profile == "new" else "inside", still=False, max_wall=4.0,
                    max_rss=64 << 10)  # fmt: skip
    assert found == []


def test_naive_cve_2025_4437_it_is_read_whole(arena: Arena) -> None:
    rootfs.tree(arena.root, "sparse usr/local/cuda/compat/libcuda.so.600.1.2 1T")
    found = attempt(arena, COMPAT_ARGS, naive=True, still=False, max_wall=1.0, max_rss=64 << 10, lines=None)
    assert any("KiB of memory" in v or "traceback" in v or "deadline" in v for v in found)


def test_every_case_has_a_test_of_its_name() -> None:
    names = [name for name in globals() if name.startswith("test_cve_")]
    assert [case for case in CASES if not any(name.startswith(f"test_cve_{case}_") for name in names)] == []
