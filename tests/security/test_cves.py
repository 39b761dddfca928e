"""Published vulnerabilities of tools of this kind, by name, on real containers.

test_cves_images.py and test_cves_programs.py have the others; those that a hook cannot have are in `NOT_OURS`.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest
from lib import driver, hookproc, rootfs, session
from lib.flipper import Flipper
from lib.hookproc import FakeContainer, run_hook
from lib.oracle import Oracle
from lib.runtimes import Runtime, make_bundle
from security import test_environment, test_races
from security.arena import COMPAT, LDCACHE, LIBDIR, NAIVE, STAGES, Arena, escapes, settled

COMPAT_ARGS = ["enable-cuda-compat", "--host-driver-version", "550.54.15"]
GPU = ("/dev/nvidia0", 195, 0)
HOSTILE = ["{canary}", "../" * 25 + "{canary}", "/proc/1/root{canary}", "/proc/self/root{canary}"]
KINDS = ["absolute", "relative", "procfs-1", "procfs-self"]


def start(arena: Arena, spec: str, words: list[str], runtime: str, stage: str, *, naive: bool = False) -> list[str]:
    """A container from a small image with `spec` in it; violations. Whether it starts is not asked."""
    shutil.copy2("/bin/busybox", arena.root / "busybox")
    rootfs.tree(arena.root, spec.format(canary=arena.canary))
    entry = hookproc.hook_entry(words, program=NAIVE if naive else None)
    bundle = make_bundle(arena.top / "bundle", arena.root, ["/busybox", "true"], {stage: [entry]}, devices=[GPU])
    planned = ["etc/ld.so.c*", "etc/ld.so.conf.d/*", f"{LIBDIR}/*", f"{COMPAT}/*", "dev/**", "etc/nvidia/**"]
    planned += [".", f"{str(arena.canary).split('/')[1]}/**"]  # what a link leads to may be made, inside the root
    with Oracle(arena.canary, arena.root, planned) as oracle:
        return settled(arena, oracle.check(Runtime(runtime).run(bundle), lines=None))


STAGE = pytest.mark.parametrize("stage", ["createRuntime", "createContainer"])
TEXT = pytest.mark.parametrize("text", HOSTILE, ids=KINDS)
PROFILE_AND_COMPAT = ["run", "--", "update-application-profile", "--", *COMPAT_ARGS]


@STAGE
@TEXT
def test_cve_2024_0133_no_file_is_made_on_the_host(arena: Arena, runtime: str, stage: str, text: str) -> None:
    """Parents of generated files are links out of the image."""
    driver.compat_library(arena.root / COMPAT, "600.1.2")
    spec = f"symlink etc/nvidia {text}\nsymlink etc/ld.so.conf.d {text}"
    for words in (PROFILE_AND_COMPAT, COMPAT_ARGS):
        assert start(arena, spec, words, runtime, stage) == []
    assert sorted(os.listdir(arena.canary)) == ["secret"]


def test_naive_cve_2024_0133(arena: Arena, runtime: str) -> None:
    assert escapes(start(arena, "symlink etc/ld.so.conf.d {canary}", COMPAT_ARGS, runtime, "createRuntime", naive=True))


LINK = ["create-symlinks", "--link", f"libcuda.so.1::/{LIBDIR}/libcuda.so"]


@STAGE
@TEXT
def test_cve_2024_0134_no_link_is_made_on_the_host(
    arena: Arena, profile: str, runtime: str, stage: str, text: str
) -> None:
    assert start(arena, f"symlink {LIBDIR} {text}", LINK, runtime, stage) == []


@STAGE
def test_naive_cve_2024_0134(arena: Arena, runtime: str, stage: str) -> None:
    assert escapes(start(arena, f"symlink {LIBDIR} {{canary}}", LINK, runtime, stage, naive=True))


@STAGE
def test_cve_2025_23266_the_images_environment_does_nothing(runtime: str, stage: str) -> None:
    result, found = test_environment.start_hostile(runtime, stage, hookproc.hook_entry(test_environment.LINK))
    assert (found, result.rc, result.stdout) == ([], 0, "target\n")


PLACES = ["etc", "etc/ld.so.cache", "etc/ld.so.cache~", "etc/ld.so.conf", "etc/ld.so.conf.d", LIBDIR]


@pytest.mark.parametrize("place", PLACES)
@TEXT
def test_cve_2025_23267_ldconfig_does_not_leave_the_image(
    arena: Arena, profile: str, engine: str, runtime: str, place: str, text: str
) -> None:
    stage = "createContainer" if profile == "new" else "createRuntime"
    assert start(arena, f"symlink {place} {text}", LDCACHE[engine], runtime, stage) == []


def test_naive_cve_2025_23267(arena: Arena, runtime: str) -> None:
    words = LDCACHE["builtin"]
    assert escapes(start(arena, "symlink etc/ld.so.conf.d {canary}", words, runtime, "createContainer", naive=True))


def test_cve_2026_24260_a_swapped_parent_is_not_followed(arena: Arena, profile: str, long: bool) -> None:
    assert test_races.race(arena, "B1-create", "inside", test_races.rounds(profile, long=long)) == []


def compat_race(arena: Arena, stage: str, count: int, *, naive: bool = False) -> list[str]:
    """The directory of ld.so.conf's drop-ins is every other moment a link to the canary."""
    rootfs.tree(arena.root, f"dir {str(arena.canary)[1:]}\nsymlink etc/other {arena.canary}")
    with FakeContainer(arena.root) as c, Oracle(arena.canary) as oracle:
        with Flipper(arena.root / "etc/ld.so.conf.d", arena.root / "etc/other"):
            for _ in range(count):
                run_hook(COMPAT_ARGS, container=c, stage=STAGES[stage], program=NAIVE if naive else None)
        return oracle.check()


def test_cve_2026_24260_a_swapped_drop_in_directory_is_not_followed(arena: Arena, profile: str, long: bool) -> None:
    assert compat_race(arena, "inside" if profile == "new" else "outside", 300 if long else 25) == []


def test_naive_cve_2026_24260(arena: Arena) -> None:
    assert escapes(compat_race(arena, "outside", 25, naive=True))


@pytest.mark.parametrize("stage", ["outside", "inside"])
def test_cve_2024_0135_ldconfig_runs_from_a_sealed_copy(arena: Arena, stage: str) -> None:
    """What a container can reach by /proc/PID/exe of the running ldconfig is no file of the host."""
    host = Path("/sbin/ldconfig.real" if Path("/sbin/ldconfig.real").exists() else "/sbin/ldconfig")
    before = hashlib.sha256(host.read_bytes()).hexdigest()
    log = session.tmp() / session.unique("trace")
    trace = ["strace", "-f", "-qqq", "-e", "trace=execve,execveat,memfd_create,fcntl", "-o", str(log)]
    with FakeContainer(arena.root) as c:
        result = run_hook(LDCACHE["ldconfig"], container=c, stage=STAGES[stage], prefix=trace)
    assert result.ok, result.stderr
    calls = log.read_text()
    assert re.search(r"memfd_create\(.*MFD_ALLOW_SEALING", calls)
    assert re.search(r"F_ADD_SEALS, F_SEAL_SEAL\|F_SEAL_SHRINK\|F_SEAL_GROW\|F_SEAL_WRITE", calls)
    started = [
        line for line in calls.splitlines() if "execve" in line and "ldconfig" in line and "AT_EMPTY_PATH" in line
    ]
    assert len(started) == 1, calls
    assert not re.search(r'execve\("[^"]*ldconfig', calls)
    assert hashlib.sha256(host.read_bytes()).hexdigest() == before


# -- all of them ------------------------------------------------------------------------------------------------------

OURS = """
2016-9962 2017-1002101 2018-15664 2019-5736 2019-14271 2019-16884 2019-18837 2019-19921 2020-2026 2021-1056 2021-25741
2021-30465 2022-0811 2022-23648 2022-29162 2023-27561 2023-28642 2024-0132 2024-0133 2024-0134 2024-0135 2024-0136
2024-0137 2024-1753 2024-5154 2024-9341 2024-21626 2024-45310 2025-0750 2025-4437 2025-9566 2025-23266 2025-23267
2025-23359 2025-24965 2025-31133 2025-52565 2025-52881 2026-24260 2026-41579 2026-47766
""".split()
# Of the same published lists: why no case of a hook's can be made of it.
NOT_OURS = {
    "2022-27650": "crun: inheritable capabilities of the container's own process, which a hook does not start",
    "2023-25809": "runc: a writable cgroup hierarchy in rootless containers; no hook mounts one or leaves one behind",
    "2024-3154": "CRI-O: an annotation becomes a systemd property; hooks read no annotation but to log it",
    "2024-9407": "buildah: the propagation option of a bind in a build file; mounts here have fixed propagation",
    "2024-9675": "buildah: a cache mount named in a build file; nothing here is named by a build",
    "2024-9676": "containers/storage: a link at /etc/passwd in automatic user namespaces; as 2025-4437 here",
    "2024-11218": "buildah: parallel builds exchange a bind source; sources here are the host's: row B4",
    "2024-12747": "rsync: a race of links in a copy of host directories; nothing is copied",
    "2026-29518": "rsync: as 2024-12747",
    "2026-30892": "crun: a user given as text; hooks change to no user of the container",
    "2026-33711": "incus: paths of images on the host, the class of 2025-9566, in its own daemon",
    "2026-33897": "incus: as 2026-33711",
    "2026-33945": "incus: as 2026-33711",
    "2026-39860": "nix: build output moved through a link, by its own daemon",
    "2026-48749": "incus: as 2026-33711",
    "2026-48750": "incus: as 2026-33711",
    "2026-48752": "incus: as 2026-33711",
    "2026-48769": "incus: as 2026-33711",
    "2026-55686": "podman: joined paths, the class of 2025-9566, in its own copy command",
}


def test_every_published_one_has_a_test_of_its_name_or_a_reason() -> None:
    functions = {
        node.name
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    names = [f"test_cve_{cve.replace('-', '_')}_" for cve in OURS]
    assert [name for name in names if not any(function.startswith(name) for function in functions)] == []
    assert not {*OURS} & {*NOT_OURS}
    assert all(NOT_OURS.values())
