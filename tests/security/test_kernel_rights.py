"""Rows K6, K11 and K12: root without a capability, the kernel's own protections of links, and every interpreter."""

from __future__ import annotations

import fcntl
import functools
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kernel import devcgroups
from lib import proc, rootfs, session
from security import arena as arenas
from security.arena import LDCACHE, Arena, attempt, settled
from security.test_devices import without
from security.test_kernel_calls import ALL, done

FOREIGN = 1000
CHMOD = ["chmod", "--mode", "710", "--path", "/usr/share/nvidia/file"]
LINK = ["create-symlinks", "--link", "t::/usr/share/nvidia/link"]


@functools.cache
def params() -> Path:
    return rootfs.tree(session.new_dir("params"), "file nvidia/params ModifyDeviceFiles: 1\\n")


# --- K6: root without a capability -----------------------------------------------------------------------------------


class Lacking(NamedTuple):
    """What is missing, the call, and what the one line then says; nothing: it is not needed. foreign: the directory
    belongs to somebody else."""

    names: tuple[str, ...]
    args: list[str]
    stages: tuple[str, ...]
    says: str = ""
    foreign: bool = False


BOTH = ("outside", "inside")
OUTSIDE, INSIDE = BOTH[:1], BOTH[1:]
LACKING: Mapping[str, Lacking] = {
    "K6-SYS_ADMIN": Lacking(("sys_admin",), CHMOD, OUTSIDE, "CAP_SYS_ADMIN and CAP_SYS_CHROOT are needed"),
    "K6-SYS_CHROOT": Lacking(("sys_chroot",), CHMOD, OUTSIDE, "CAP_SYS_ADMIN and CAP_SYS_CHROOT are needed"),
    "K6-SYS_ADMIN-confined": Lacking(("sys_admin",), LDCACHE["ldconfig"], INSIDE, "CAP_SYS_ADMIN"),
    "K6-SYS_PTRACE": Lacking(("sys_ptrace",), CHMOD, OUTSIDE, "CAP_SYS_PTRACE is needed"),
    "K6-DAC_OVERRIDE": Lacking(("dac_override",), LINK, BOTH, "without CAP_DAC_OVERRIDE", foreign=True),
    "K6-DAC": Lacking(("dac_override", "dac_read_search"), CHMOD, BOTH, "without CAP_DAC_OVERRIDE", foreign=True),
    "K6-SYS_ADMIN-not-needed": Lacking(("sys_admin",), CHMOD, INSIDE),
    "K6-MKNOD-not-needed": Lacking(("mknod",), LDCACHE["builtin"], BOTH),
    "K6-SYS_PTRACE-not-needed": Lacking(("sys_ptrace",), CHMOD, INSIDE),
    "K6-DAC-not-needed": Lacking(("dac_override", "dac_read_search"), LINK, BOTH),
}
CASES = [pytest.param(case, stage, id=f"{case}-{stage}") for case in LACKING for stage in LACKING[case].stages]


@pytest.mark.parametrize(("case", "stage"), CASES)
def test_k6_a_missing_capability_is_named_or_not_needed(arena: Arena, case: str, stage: str) -> None:
    one = LACKING[case]
    if one.foreign:
        folder = arena.root / "usr/share/nvidia"
        for path in (folder, folder / "file"):
            os.chown(path, FOREIGN, FOREIGN)
        folder.chmod(0o700)
    planned = [] if one.says else ["usr/share/nvidia/*", "etc/**", f"{arenas.LIBDIR}/*"]
    parts = [one.says] if one.says else []
    found = attempt(arena, one.args, stage, ok=not one.says, parts=parts, planned=planned, prefix=without(*one.names))
    assert settled(arena, found) == []


# --- K11: protected_symlinks and its like ----------------------------------------------------------------------------

PROTECTED = ("symlinks", "hardlinks", "fifos", "regular")


@pytest.fixture
def sysctls() -> Iterator[ExitStack]:
    """Of the whole machine: one session at a time changes them, for a moment."""
    with ExitStack() as stack:
        lock = stack.enter_context(open("/run/lock/nvoci-test-sysctl", "w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield stack


@pytest.mark.long
@pytest.mark.parametrize("stage", BOTH)
def test_k11_protections_of_sticky_directories_change_nothing(sysctls: ExitStack, stage: str) -> None:
    """The image's /tmp has somebody's files where a hook reads, replaces and follows."""
    words = [*ALL, "--", "create-symlinks", "--link", "t::/tmp/file"]
    told = {}
    for value in "012":
        with ExitStack() as stack:
            for name in PROTECTED:
                most = "1" if name.endswith("links") else "2"
                stack.enter_context(devcgroups.sysctl(f"fs/protected_{name}", min(value, most)))
            arena = arenas.make(session.new_dir("sticky"))
            spec = "file etc/ld.so.conf include /tmp/x.conf\\n\nfile tmp/x.conf /opt/lib\\n\nfile tmp/file x"
            rootfs.tree(arena.root, f"{spec}\nfifo tmp/pipe\nsymlink tmp/link /usr/share/nvidia")
            for name in ("x.conf", "file", "pipe", "link"):
                os.chown(arena.root / "tmp" / name, FOREIGN, FOREIGN, follow_symlinks=False)
            told[value] = done(arena, params(), stage, words)
    assert told["0"][:3] == (0, "", [])
    assert told["1"] == told["0"]
    assert told["2"] == told["0"]


@pytest.mark.long
@pytest.mark.parametrize("value", ["0", "1"])
def test_k11_a_link_in_a_sticky_directory_is_followed_in_the_root_or_refused(
    sysctls: ExitStack, arena: Arena, value: str
) -> None:
    """The kernel may forbid it to root too, and does for openat2(2): then it is one line."""
    sysctls.enter_context(devcgroups.sysctl("fs/protected_symlinks", value))
    rootfs.tree(arena.root, f"symlink tmp/link {arena.canary}\ndir {str(arena.canary)[1:]}")
    (arena.canary / "file").touch()
    os.chown(arena.root / "tmp/link", FOREIGN, FOREIGN, follow_symlinks=False)
    args = ["create-symlinks", "--link", "t::/tmp/link/new"]
    found = attempt(
        arena, args, ok=None if value == "1" else True, planned=[str(arena.canary).split("/")[1] + "/**", "."]
    )
    assert found == []


# --- K12: interpreters -----------------------------------------------------------------------------------------------

VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")


def interpreter(version: str) -> str:
    places = [*sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}")), *Path("/usr/bin").glob(
        f"python{version}"), *Path("/usr/local/bin").glob(f"python{version}")]  # fmt: skip
    if not places:
        pytest.skip(f"there is no Python {version} here")
    return os.path.realpath(places[0])


@functools.cache
def whole() -> tuple[Any, ...]:
    return done(arenas.make(session.new_dir("whole")), params(), "outside")


@pytest.mark.parametrize("version", VERSIONS)
def test_k12_every_interpreter_runs_all_hooks(
    arena: Arena, version: str, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole()
    monkeypatch.setattr(session, "PYTHON", interpreter(version))
    assert done(arena, params(), "outside") == expected
    assert expected[:3] == (0, "", [])


@pytest.mark.parametrize("version", VERSIONS)
def test_k12_every_interpreter_says_one_line(arena: Arena, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "PYTHON", interpreter(version))
    rootfs.tree(arena.root, "symlink usr/share/loop loop")
    args = ["chmod", "--mode", "710", "--path", "/usr/share/loop/x"]
    assert attempt(arena, args, ok=False, parts=["ELOOP"]) == []


PROGRAMS = {
    "nvidia-cdi-hook": ("nvoci.hook.main", "cdi_hook", CHMOD),
    "nvidia-container-runtime-hook": ("nvoci.prestart.main", "main", ["prestart"]),
    "nvidia-container-cli": ("nvoci.prestart.cli", "main", ["info"]),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("version", ["", "3.9", "3.13"])
def test_k12_without_ctypes_it_is_one_line(name: str, version: str) -> None:
    """As an interpreter that was built without libffi has none."""
    module, function, words = PROGRAMS[name]
    path = session.new_dir("entry") / name
    path.write_text(f"import sys\nsys.modules['_ctypes'] = None\nsys.path.insert(0, {str(session.HOOKS)!r})\n"
                    f"from {module} import {function}\n{function}()\n")  # fmt: skip
    bundle = session.new_dir("bundle")
    (bundle / "config.json").write_text(
        '{"ociVersion": "1.0.2", "process": {"env": ["NVIDIA_VISIBLE_DEVICES=0"]}, "root": {"path": "r"}}'
    )
    state = f'{{"ociVersion": "1.0.2", "id": "x", "status": "creating", "pid": 4711, "bundle": "{bundle}"}}'
    python = interpreter(version) if version else session.PYTHON
    result = proc.run([python, "-ISB", path, *words], stdin=state.encode())
    assert (result.rc, result.stdout, result.survivors) == (1, "", [])
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "_ctypes" in result.stderr
    assert "install nvoci with another" in result.stderr


def test_naive_k12_without_ctypes_it_is_a_traceback() -> None:
    code = "import sys; sys.modules['_ctypes'] = None; import ctypes"
    told = subprocess.run([session.PYTHON, "-ISBc", code], capture_output=True, check=False).stderr
    assert len(told.splitlines()) > 1
