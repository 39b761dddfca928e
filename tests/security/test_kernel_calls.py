"""Rows K1 to K5, K7, K8 and K10: a kernel, or a seccomp profile, without calls that the hooks would like to have.

All hooks in one process. Whatever is missing, and however it says so, the container is what it is with everything.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from kernel import namespaced
from kernel.namespaced import MOUNT_API
from lib import jail, rootfs, session, strace
from lib.hookproc import FakeContainer, run_hook
from lib.oracle import Oracle, content_only, snapshot
from security import arena as arenas
from security.arena import LDCACHE, LIBDIR, PROFILE, STAGES, Arena, attempt, settled

from nvoci.linux import mount, syscalls

ALL = [
    "run",
    *("--", "create-symlinks", "--link", f"libfoo.so.1::/{LIBDIR}/libfoo.so"),
    *("--", "chmod", "--mode", "711", "--path", "/usr/share/nvidia"),
    *("--", "enable-cuda-compat", "--host-driver-version", "550.54.15"),
    *("--", "disable-device-node-modification"),
    *("--", "update-application-profile"),
    *("--", *LDCACHE["ldconfig"]),
]
PARAMS = "proc/driver/nvidia/params"
CHANGED = (LIBDIR + "/libfoo.so", "etc/ld.so.cache", PROFILE)
OLD = ("openat2", *MOUNT_API, "pidfd_open", "close_range", "memfd_create")
MISSING: Mapping[str, tuple[str, ...]] = {
    **{f"K1-{name}": (name,) for name in ("openat2",)},
    **{f"K2-{name}": (name,) for name in MOUNT_API},
    "K2-all of them": MOUNT_API,
    **{f"K4-{name}": (name,) for name in ("pidfd_open", "close_range", "memfd_create", "statx")},
    "K4-timer_create": ("timer_create",),
    "K4-all that a kernel of 2018 has not": OLD,
}
# Which error with which stage; the other two pairs are the long run's.
ERRORS = [
    pytest.param(errno.ENOSYS, "outside", id="ENOSYS-outside"),
    pytest.param(errno.EPERM, "inside", id="EPERM-inside"),
    pytest.param(errno.ENOSYS, "inside", id="ENOSYS-inside", marks=pytest.mark.long),
    pytest.param(errno.EPERM, "outside", id="EPERM-outside", marks=pytest.mark.long),
]


@pytest.fixture(scope="module")
def params() -> Path:
    """What is seen at /proc/driver."""
    folder = session.new_dir("params")
    rootfs.tree(folder, "file nvidia/params ModifyDeviceFiles: 1\\nDeviceFileMode: 438\\n")
    return folder


def container_setup(params: Path) -> str:
    """As a driver's module does it, each procfs has its files."""
    there = f'mount -t tmpfs -o mode=555 driver "$R/proc/driver"\ncp -a {params}/. "$R/proc/driver/"\n'
    return jail.driver_proc(params) + there + arenas.GPU_NODE


def done(arena: Arena, params: Path, stage: str, words: Sequence[str] = ALL, **how: Any) -> tuple[Any, ...]:
    """A start under the oracle: what came of it, what the image is now, and what the container sees of the mount."""
    with FakeContainer(arena.root, setup=container_setup(params)) as c, Oracle(arena.canary) as oracle:
        if stage == "outside":
            how["setup"] = jail.driver_proc(params)
        result = run_hook(words, container=c, stage=STAGES[stage], **how)
        wrong = oracle.check(result, lines=None)
        mounts = [line.split()[5] for line in c.mounts_at(PARAMS)]
        text = c.read(PARAMS) if mounts else b""
    return result.rc, result.stderr, wrong, mounts, text, content_only(snapshot(arena.root))


def blocking(names: Sequence[str], error: int) -> dict[str, Any]:
    return {"preexec": lambda: namespaced.block(tuple(names), error)}


@pytest.fixture(scope="module")
def whole(params: Path) -> Callable[[str], tuple[Any, ...]]:
    """What a start on this kernel gives, with all it has."""
    found: dict[str, tuple[Any, ...]] = {}

    def give(stage: str) -> tuple[Any, ...]:
        if stage not in found:
            found[stage] = done(arenas.make(session.new_dir("whole")), params, stage)
            rc, stderr, wrong, mounts, text, image = found[stage]
            assert (rc, stderr, wrong, len(mounts), b"ModifyDeviceFiles: 0" in text) == (0, "", [], 1, True)
            assert set(CHANGED) <= set(image)
        return found[stage]

    return give


Whole = Callable[[str], tuple[Any, ...]]


@pytest.mark.parametrize(("error", "stage"), ERRORS)
@pytest.mark.parametrize("case", MISSING)
def test_k1_k2_k4_a_missing_call_changes_nothing(
    arena: Arena, params: Path, whole: Whole, case: str, error: int, stage: str
) -> None:
    if "timer_create" in case and error == errno.EPERM:
        pytest.skip("no profile forbids it by that")
    assert done(arena, params, stage, **blocking(MISSING[case], error)) == whole(stage)


def test_k4_without_renameat2_there_are_links(arena: Arena, params: Path, whole: Whole) -> None:
    """Before Linux 3.15, and on file systems that do not exchange."""
    assert done(arena, params, "outside", **blocking(["renameat2"], errno.ENOSYS)) == whole("outside")


NEEDED = {
    "K4-execveat ENOSYS": ("execveat", errno.ENOSYS, LDCACHE["ldconfig"]),
    "K4-execveat EPERM": ("execveat", errno.EPERM, LDCACHE["ldconfig"]),
    "K4-renameat2 EPERM": ("renameat2", errno.EPERM, LDCACHE["builtin"]),
    "K4-mount EPERM": ("mount", errno.EPERM, LDCACHE["ldconfig"]),
    "K4-unshare EPERM": ("unshare", errno.EPERM, LDCACHE["ldconfig"]),
}


@pytest.mark.parametrize("case", NEEDED)
@pytest.mark.parametrize("stage", ["outside", "inside"])
def test_k4_what_nothing_replaces_is_one_line_and_leaves_nothing(arena: Arena, case: str, stage: str) -> None:
    name, error, words = NEEDED[case]
    found = attempt(arena, words, stage, ok=False, parts=[errno.errorcode[error]], **blocking([name], error))
    assert settled(arena, found) == []


# --- K1: lookups -----------------------------------------------------------------------------------------------------

LOOKUPS = {
    "K1-A1-link-inside": ("symlink usr/share/nvidia /opt/there\ndir opt/there\nfile opt/there/file x", True, "opt/**"),
    "K1-A2-link-out": ("symlink usr/share/nvidia {up}{canary}", True, ""),
    "K1-A3-magic": ("symlink usr/share/nvidia /proc/1/root{canary}", False, ""),
    "K1-A5-loop": ("symlink usr/share/nvidia nvidia", False, ""),
}


@pytest.mark.parametrize(
    ("error", "stage"),
    [
        *ERRORS,
        pytest.param(errno.E2BIG, "outside", id="E2BIG-outside"),
        pytest.param(errno.E2BIG, "inside", id="E2BIG-inside", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("case", LOOKUPS)
def test_k1_links_are_followed_in_the_root_whatever_openat2_says(
    arena: Arena, case: str, error: int, stage: str
) -> None:
    spec, ok, planned = LOOKUPS[case]
    (arena.canary / "file").touch()
    (arena.root / "usr/share/nvidia/file").unlink()
    (arena.root / "usr/share/nvidia").rmdir()
    rootfs.tree(arena.root, spec.format(up="../" * 25, canary=arena.canary))
    args = ["chmod", "--mode", "710", "--path", "/usr/share/nvidia/file"]
    how = blocking(["openat2"], error)
    parts = [] if ok else ["ELOOP"]
    assert attempt(arena, args, stage, ok=ok, planned=[planned] if planned else [], parts=parts, **how) == []
    if planned:
        assert (arena.root / "opt/there/file").stat().st_mode & 0o777 == 0o710


# --- K4: setns(2) by a pidfd -----------------------------------------------------------------------------------------


def test_k4_a_kernel_whose_setns_takes_no_pidfd(arena: Arena, params: Path, whole: Whole) -> None:
    """5.3 to 5.7 have the pidfd, and say EINVAL."""
    prefix = strace.inject_error("setns", "EINVAL", "1")
    assert done(arena, params, "outside", prefix=prefix) == whole("outside")


def test_k4_where_setns_does_not_work_at_all_it_is_one_line(arena: Arena) -> None:
    prefix = strace.inject_error("setns", "EPERM")
    args = ["chmod", "--mode", "710", "--path", "/usr/share/nvidia/file"]
    assert attempt(arena, args, ok=False, parts=["CAP_SYS_ADMIN and CAP_SYS_CHROOT"], prefix=prefix) == []


# --- K5: memfd_noexec ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 2])
def test_k5_memfds_that_cannot_be_executed(arena: Arena, params: Path, whole: Whole, value: int) -> None:
    """The setting is one of a pid namespace: here of the container's, in which a createContainer hook is."""
    file = Path("/proc/sys/vm/memfd_noexec")
    if not file.exists():
        pytest.skip("before Linux 6.3 there is no such setting")
    before, setup = file.read_text(), f"{container_setup(params)}echo {value} >{file}\n"
    with FakeContainer(arena.root, setup=setup) as c, Oracle(arena.canary) as oracle:
        probe = "import os; os.write(1, open('/proc/sys/vm/memfd_noexec', 'rb').read())"
        enter = ["nsenter", "-t", str(c.pid), "-p", "-m", session.PYTHON, "-ISc", probe]
        assert namespaced.subprocess.run(enter, capture_output=True, check=True).stdout == b"%d\n" % value
        result = run_hook(ALL, container=c, stage="createContainer")
        assert oracle.check(result, ok=True) == []
    assert content_only(snapshot(arena.root)) == whole("inside")[-1]
    assert file.read_text() == before


# --- K7, K8: a profile that knows little, no_new_privs ---------------------------------------------------------------

FIRST_NEW = 424  # pidfd_send_signal: from here on numbers are the same for every machine


def strict(error: int) -> None:
    """A profile of the time of Linux 5.0: it knows nothing that came later, landlock_create_ruleset(2) included."""
    code = [(0x20, 0, 0, 0), (0x35, 0, 1, FIRST_NEW), (0x06, 0, 0, 0x00050000 | error), (0x06, 0, 0, 0x7FFF0000)]
    syscalls.seccomp_load(b"".join(struct.pack("=HBBI", *one) for one in code))


@pytest.mark.parametrize(("error", "stage"), ERRORS)
def test_k7_k8_no_new_privs_and_a_strict_profile(
    arena: Arena, params: Path, whole: Whole, error: int, stage: str
) -> None:
    prefix = ["/usr/bin/setpriv", "--no-new-privs"]
    assert done(arena, params, stage, prefix=prefix, preexec=lambda: strict(error)) == whole(stage)


def test_k8_landlock_is_not_asked_for(arena: Arena, params: Path) -> None:
    """Whatever ABI a kernel has, or none: no call of it is made."""
    names = "landlock_create_ruleset,landlock_add_rule,landlock_restrict_self"
    log = session.tmp() / session.unique("landlock")
    tracer = ["strace", "-f", "-qqq", "-e", "signal=none", "-o", str(log), "-e", f"trace={names}"]
    assert done(arena, params, "inside", prefix=tracer)[0] == 0
    assert log.read_text() == ""


# --- K10: parts of the mount API in an older kernel -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "refused"),
    [
        ("4.18.0-553.el8_10.x86_64", True), ("4.19.0", True), ("5.0.0", True), ("5.1.21", True),
        ("5.2.0", False), ("5.14.0-427.el9", False), ("6.1", False), ("10.0-rc1", False), ("strange", False),
    ],
)  # fmt: skip
def test_k10_backports_of_the_mount_api_are_not_used(
    monkeypatch: pytest.MonkeyPatch, release: str, refused: bool
) -> None:
    monkeypatch.setattr(mount, "missing", set())
    mount._refuse_backports(release)
    assert mount.missing == ({"fsopen", "open_tree", "move_mount", "mount_setattr"} if refused else set())
