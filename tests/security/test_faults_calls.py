"""Rows D7 to D12, D16 and D17: what the kernel refuses while the hook works, and what the hook inherits.

The file systems that refuse are real where the machine has one (FUSE answers with any error number, and a mount table
can be filled); L7 in `test_crash.py` lies to the hook at each of its calls instead.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from lib import rootfs, session, sickfuse
from lib.hookproc import FakeContainer, run_hook
from lib.oracle import Oracle
from security.arena import COMPAT, GPU_NODE, LDCACHE, LIBDIR, PROFILE, STAGES, Arena, attempt, settled
from security.test_faults import ALL
from unit.inject.thing import Thing

PLANNED = (
    "etc/ld.so.cache", "etc/ld.so.conf.d/*-nvoci.conf", f"{LIBDIR}/lib*", PROFILE, f"{COMPAT}/libcuda.so.1",
)  # fmt: skip
LONG = pytest.mark.long
COMPAT_ARGS = ["enable-cuda-compat", "--host-driver-version", "550.54.15"]


def stage_of(profile: str) -> str:
    """Each stage with one of the two kernels."""
    return "outside" if profile == "new" else "inside"


# -- D7, D8 ----------------------------------------------------------------------------------------------------------

# (words, what lies on the sick file system: its name is in the message).
SICK: dict[str, tuple[list[str], str]] = {
    "ld.so.conf": (LDCACHE["builtin"], "etc/ld.so.conf"),
    "included": (LDCACHE["builtin"], "etc/ld.so.conf.d/libc.conf"),
    "conf.d": (LDCACHE["builtin"], "etc/ld.so.conf.d"),
    "cache": (LDCACHE["builtin"], "etc/ld.so.cache"),
    "library": (LDCACHE["builtin"], f"{LIBDIR}/libfoo.so.1.0"),
    "libraries": (LDCACHE["builtin"], LIBDIR),
    "compat-library": (COMPAT_ARGS, f"{COMPAT}/libcuda.so.600.1.2"),
    "compat": (COMPAT_ARGS, COMPAT),
    "profile": (["update-application-profile"], str(Path(PROFILE).parent)),
    "link": (["create-symlinks", "--link", "x::/usr/share/nvidia/new"], "usr/share/nvidia"),
    "deep-link": (["create-symlinks", "--link", "x::/usr/share/nvidia/a/b/new"], "usr/share/nvidia"),
    "chmod": (["chmod", "--mode", "640", "--path", "/usr/share/nvidia/file"], "usr/share/nvidia"),
}


def sick(arena: Arena, place: str, stage: str, error: str) -> list[str]:
    words, path = SICK[place]
    setup = GPU_NODE + sickfuse.setup(arena.root / path, getattr(errno, error))
    return attempt(arena, words, stage, ok=False, parts=[error, Path(path).name], container={"setup": setup})


@pytest.mark.parametrize("place", SICK)
def test_d8_what_cannot_be_read_is_one_error_that_names_it(arena: Arena, place: str) -> None:
    assert settled(arena, sick(arena, place, "inside", "EIO")) == []


WRITTEN = ("profile", "link", "deep-link", "conf.d", "libraries")


@pytest.mark.parametrize("place", WRITTEN)
def test_d7_a_quota_that_is_used_up_is_one_error(arena: Arena, profile: str, place: str) -> None:
    assert settled(arena, sick(arena, place, stage_of(profile), "EDQUOT")) == []


@pytest.mark.parametrize("place", ["ld.so.conf", "compat-library", "link"])
def test_naive_d8_what_cannot_be_read_gets_a_traceback(arena: Arena, place: str) -> None:
    words, path = SICK[place]
    setup = sickfuse.setup(arena.root / path, errno.EIO)
    assert attempt(arena, words, "inside", naive=True, ok=False, lines=None, container={"setup": setup})


def test_d8_a_config_that_cannot_be_read_is_one_error(arena: Arena, profile: str) -> None:
    with (
        FakeContainer(arena.root) as c,
        sickfuse.mounted(c.bundle / "config.json", errno.EIO),
        Oracle(arena.canary, arena.root) as oracle,
    ):
        result = run_hook(ALL["builtin"], container=c)
        assert oracle.check(result, ok=False, parts=["config.json", "EIO"]) == []


# -- D9, D10 ---------------------------------------------------------------------------------------------------------


def limited(kind: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (value, value))


@pytest.mark.parametrize("count", [16, pytest.param(12, marks=LONG), 9])
@pytest.mark.parametrize("stage", list(STAGES))
def test_d9_few_descriptors_are_enough_or_one_error(arena: Arena, profile: str, stage: str, count: int) -> None:
    """Success and the whole result, or EMFILE and an unchanged root."""
    preexec = limited(resource.RLIMIT_NOFILE, count)
    found = attempt(arena, ALL["builtin"], stage, planned=PLANNED, lines=None, container={"setup": GPU_NODE},
                    preexec=preexec)  # fmt: skip
    assert settled(arena, found) == []
    done = (arena.root / "etc/ld.so.cache").read_bytes() != b"old cache\n"
    parts = [] if done else ["EMFILE"]
    found = attempt(arena, ALL["builtin"], stage, ok=done, parts=parts, planned=PLANNED if done else (),
                    container={"setup": GPU_NODE}, lines=None, preexec=preexec)  # fmt: skip
    assert settled(arena, found) == []


@pytest.mark.parametrize("mebibytes", [64, pytest.param(32, marks=LONG)])
@pytest.mark.parametrize("stage", list(STAGES))
def test_d10_64_mib_of_address_space_are_enough(arena: Arena, profile: str, stage: str, mebibytes: int) -> None:
    assert attempt(arena, ALL["builtin"], stage, ok=True, planned=PLANNED, lines=None, container={"setup": GPU_NODE},
                   preexec=limited(resource.RLIMIT_AS, mebibytes << 20)) == []  # fmt: skip


def test_d10_an_image_that_needs_more_than_there_is_is_one_error(arena: Arena) -> None:
    """10,000 directories of long names, and 5 MiB more than a start takes."""
    lines = "".join(f"/{n}{'x' * 90}\\n" for n in range(10_000))
    rootfs.tree(arena.root, f"file etc/ld.so.conf.d/many.conf {lines}")
    outcomes = set()
    for mebibytes in (22, 26):
        with FakeContainer(arena.root) as c, Oracle(arena.canary, arena.root, PLANNED) as oracle:
            result = run_hook(LDCACHE["builtin"], container=c, stage="createContainer",
                              preexec=limited(resource.RLIMIT_AS, mebibytes << 20))  # fmt: skip
            if "Traceback" in result.stderr and "nvoci" not in result.stderr:
                continue  # the interpreter itself did not start
            assert oracle.check(result, lines=1) == []
            outcomes.add(result.rc)
    assert outcomes


# -- D11 -------------------------------------------------------------------------------------------------------------

# Doubles a tree of mounts until no more fit, then adds what still does.
FULL = """
T="$R/tmp"; mount -t tmpfs -o size=1m full "$T"
i=0; while [ $i -lt 40 ]; do mkdir "$T/d$i"; i=$((i+1)); done
i=0; while mount --rbind "$T" "$T/d$i" 2>/dev/null; do i=$((i+1)); done
n=$i
while [ $i -ge 0 ]; do
  n=$((n+1)); mkdir -p "$T/d$n"
  if [ $i -gt 0 ]; then S="$T/d$((i-1))"; else S="$T/d0/d1"; fi
  while mount --rbind "$S" "$T/d$n" 2>/dev/null; do n=$((n+1)); mkdir -p "$T/d$n"; done
  i=$((i-1))
done
while mount --bind "$R/usr" "$R/usr" 2>/dev/null; do :; done
"""


@pytest.fixture(scope="module")
def params() -> Path:
    folder = session.new_dir("driver")
    rootfs.tree(folder, "file nvidia/params ModifyDeviceFiles: 1\\nDeviceFileMode: 438\\n")
    return folder


def test_d11_a_full_mount_table_is_one_error_that_names_the_limit(arena: Arena, params: Path) -> None:
    """fs.mount-max counts for each mount namespace: this container's is filled, with 100,000 mounts."""
    rootfs.tree(arena.root, "dir opt")
    thing = Thing()
    thing.write({"a": {"mounts": [thing.mount("libthing.so", "/opt/thing", "ro", "bind")]}})
    with FakeContainer(arena.root, setup=FULL) as c, Oracle(arena.canary, arena.root) as oracle:
        table = c.mountinfo()
        assert len(table) >= int(Path("/proc/sys/fs/mount-max").read_text()) - 1
        for stage in STAGES.values():
            result = run_hook(thing.words(), container=c, stage=stage)
            found = oracle.check(result, ok=False, parts=["ENOSPC", "fs.mount-max"], lines=None)
            assert [v for v in found if "changed mtime" not in v] == []
        result = run_hook(LDCACHE["builtin"], container=c, stage="createContainer")
        assert result.rc == 0, result.stderr  # what mounts nothing goes on
        assert c.mountinfo() == table


# -- D12 -------------------------------------------------------------------------------------------------------------

BARE = 'mount -o remount,bind,nosuid,nodev,noexec "$R"\n'


def test_d12_a_root_without_devices_programs_and_setuid(arena: Arena, profile: str, engine: str) -> None:
    stage = stage_of(profile)
    assert attempt(arena, ALL[engine], stage, ok=True, planned=PLANNED, lines=None,
                   container={"setup": GPU_NODE + BARE}) == []  # fmt: skip


def test_d12_a_node_on_a_root_without_devices_opens(arena: Arena, profile: str) -> None:
    """It is a mount of the host's, with flags of its own."""
    thing = Thing()
    node = {"path": "/opt/zero", "hostPath": "/dev/zero", "permissions": "none"}
    thing.write({"a": {"deviceNodes": [node]}})
    rootfs.tree(arena.root, "char opt/own 1 5")
    with FakeContainer(arena.root, setup=BARE) as c, Oracle(arena.canary, arena.root, ["opt/zero"]) as oracle:
        result = run_hook(thing.words(), container=c, stage=STAGES[stage_of(profile)])
        assert oracle.check(result, ok=True) == []
        with open(c.path("opt/zero"), "rb", buffering=0) as f:
            assert f.read(2) == b"\0\0"
        with pytest.raises(PermissionError):
            os.open(c.path("opt/own"), os.O_RDONLY)


# -- D16 -------------------------------------------------------------------------------------------------------------

MADE = ["run", "--", "create-symlinks", "--link", "x::/made/by/the/hook", "--", "update-application-profile",
        "--", *LDCACHE["builtin"]]  # fmt: skip


@pytest.mark.parametrize("umask", [0o777, pytest.param(0o077, marks=LONG), 0])
@pytest.mark.parametrize("stage", list(STAGES))
def test_d16_modes_are_those_planned_whatever_umask_is_inherited(
    arena: Arena, profile: str, stage: str, umask: int
) -> None:
    rootfs.tree(arena.root, "file etc/ld.so.conf x")
    (arena.root / "etc/ld.so.conf").unlink()

    def inherit() -> None:
        os.umask(umask)

    planned = [*PLANNED, "made/**", "etc/ld.so.conf"]
    assert attempt(arena, MADE, stage, ok=True, planned=planned, container={"setup": GPU_NODE}, preexec=inherit) == []
    wanted = {"made": 0o755, "made/by/the": 0o755, "etc/ld.so.cache": 0o644, "etc/ld.so.conf": 0o644, PROFILE: 0o444,
              "etc/ld.so.conf.d/zz-nvcr-nvoci.conf": 0o644}  # fmt: skip
    assert {name: stat.S_IMODE(os.lstat(arena.root / name).st_mode) for name in wanted} == wanted


# -- D17 -------------------------------------------------------------------------------------------------------------

CLOCKS = {"1970": 0.0, "before-1970": -1e9, "2038": 2.0**31, "2106": 2.0**32 + 86400, "9999": 253402300799.0}
_CLOCK = """\
import sys, time
time.time = lambda: {now!r}
time.time_ns = lambda: int({now!r}) * 10 ** 9
sys.path.insert(0, {hooks!r})
from nvoci.hook.main import cdi_hook
cdi_hook()
"""


def entry_at(now: float) -> Path:
    path = session.new_dir("entry") / "nvidia-cdi-hook"
    path.write_text(_CLOCK.format(now=now, hooks=str(session.HOOKS)))
    return path


@pytest.mark.parametrize("clock", [pytest.param(c, marks=[] if c in ("1970", "2106") else LONG) for c in CLOCKS])
def test_d17_a_wrong_clock_and_files_of_then(arena: Arena, profile: str, clock: str) -> None:
    """The clock is the interpreter's; nobody may set the machine's. The image's files are of that time as well."""
    now = CLOCKS[clock]
    for folder, names, files in os.walk(arena.root):
        for name in (*names, *files):
            os.utime(os.path.join(folder, name), (now, now), follow_symlinks=False)
    found = attempt(arena, ALL["builtin"], stage_of(profile), ok=True, planned=PLANNED, lines=None,
                    container={"setup": GPU_NODE}, program=entry_at(now))  # fmt: skip
    assert found == []
    again = attempt(arena, ALL["builtin"], stage_of(profile), ok=True, lines=None, container={"setup": GPU_NODE},
                    program=entry_at(-now))  # fmt: skip
    assert again == []
