"""Rows O1, O3, O4 and O7: what a hook process is started with: variables, entry, working directory, descriptors."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from lib import elfmaker, hookproc, proc, rootfs, runtimes, session
from lib.hookproc import FakeContainer
from lib.oracle import Oracle
from lib.runtimes import Runtime, make_bundle
from security.arena import LIBDIR, NAIVE, Arena, attempt

LINK = ["create-symlinks", "--link", "target::/made/link"]
SHADOWS = (
    "json os sys re site sitecustomize usercustomize encodings encodings/__init__ ctypes ctypes/__init__ posix errno "
    "stat struct fcntl select _json _ctypes nvoci nvoci/__init__ subprocess codecs io "
    "abc importlib/__init__ collections/__init__"
).split()

# -- O1, O4 on real runtimes ------------------------------------------------------------------------------------------


def hostile_image(root: Path, canary: Path) -> list[str]:
    """Modules that betray their import, and a library that makes symlink(2) do nothing. The image's environment."""
    for name in SHADOWS:
        target = root / f"{name}.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            f"open({str(canary / 'imported')!r}, 'a').write({name!r} + '\\n')\nraise ImportError({name!r})\n"
        )
    rootfs.tree(root, "file hook.pth import os; os.mkdir('pth')\nfile pyvenv.cfg home = /\nfile python311._pth .\n")
    elfmaker.make_so(root / "x.so", machine=platform.machine(), functions={"symlinkat": 0, "symlink": 0})
    here = "/proc/self/cwd"
    return [
        "PATH=/bin:/usr/bin", f"LD_PRELOAD={here}/x.so", f"LD_LIBRARY_PATH={here}", f"PYTHONPATH={here}",
        "PYTHONSAFEPATH=",
        f"PYTHONSTARTUP={here}/site.py", "PYTHONINSPECT=1", f"PYTHONPLATLIBDIR={here}",
        f"GCONV_PATH={here}", f"TMPDIR={here}",
        "PYTHONWARNINGS=error", "PYTHONBREAKPOINT=json.x", "GLIBC_TUNABLES=glibc.malloc.check=3", f"BASH_ENV={here}/x",
        "NVIDIA_CTK_DEBUG=maybe",
    ]  # fmt: skip


def start_hostile(runtime: str, stage: str, entry: dict[str, Any]) -> tuple[proc.Result, list[str]]:
    """A container from that image; what it found at /made/link, and violations."""
    top = session.new_dir("hostile")
    root, canary = rootfs.busybox_rootfs(top / "rootfs"), top / "canary"
    canary.mkdir()
    env = hostile_image(root, canary)
    bundle = make_bundle(top / "bundle", root, ["readlink", "/made/link"], {stage: [entry]}, env=env)
    with Oracle(canary, root, ["made/**"]) as oracle:
        result = Runtime(runtime).run(bundle)
        return result, oracle.check(result, lines=None)


@pytest.mark.parametrize("stage", ["prestart", "createRuntime", "createContainer"])
def test_o1_o4_nothing_of_the_image_is_loaded(profile: str, runtime: str, stage: str) -> None:
    result, found = start_hostile(runtime, stage, hookproc.hook_entry(LINK, env=["NVOCI_HOOK=1"]))
    assert found == []
    assert (result.rc, result.stdout) == (0, "target\n"), result.stderr


def naive_entry(kind: str) -> dict[str, Any]:
    """preload: the environment is inherited. import: code is given on the command line, so that the path begins with
    the working directory."""
    if kind == "preload":
        return hookproc.hook_entry(LINK, env=None, program=NAIVE)
    code = f"import json, sys; exec(open({str(NAIVE)!r}).read())"
    return {"path": session.PYTHON, "args": [session.PYTHON, "-c", code, *LINK], "env": ["PATH=/usr/bin:/bin"]}


@pytest.mark.parametrize("kind", ["preload", "import"])
def test_naive_o1_o4_the_image_is_loaded(kind: str) -> None:
    if not runtimes.available("runc"):
        pytest.skip("runc is not installed")
    version = re.search(r"version (\d+)\.(\d+)", proc.run(["runc", "--version"]).stdout)
    if kind == "preload" and version and (int(version[1]), int(version[2])) >= (1, 3):
        pytest.skip("runc 1.3 and later clear the environment themselves")
    result, found = start_hostile("runc", "createContainer", naive_entry(kind))
    assert found or result.stdout != "target\n"
    assert kind == "preload" or any("imported" in v for v in found)


# -- O4, directly -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hook", "engine"), [("link", "builtin"), ("run", "builtin"), ("run", "ldconfig")])
def test_o4_the_working_directory_is_never_imported_from(
    arena: Arena, profile: str, hook: str, engine: str
) -> None:
    """With every hook's modules, and with what a hook imports late."""
    hostile_image(arena.root, arena.canary)
    words = LINK if hook == "link" else [
        "run", "--", *LINK, "--", "update-application-profile",
        "--", "chmod", "--mode", "644", "--path", "/etc/hostname",
        "--", "enable-cuda-compat", "--host-driver-version", "550.1",
        "--", "update-ldcache", "--engine", engine, "--folder", "/opt",
    ]  # fmt: skip
    planned = ["made/**", "etc/**", f"{LIBDIR}/libfoo.so.1", "usr/local/cuda/compat/libcuda.so.1"]
    for cwd in (arena.root, None):
        assert attempt(arena, words, "inside", ok=True, planned=planned, cwd=cwd) == []


# -- O3 ---------------------------------------------------------------------------------------------------------------


def check_entry(hook: dict[str, Any]) -> list[str]:
    """Why a hook entry is not one that we may hand out."""
    env = hook.get("env")
    out = []
    if not isinstance(env, list) or not env or not all(isinstance(e, str) and "=" in e[1:] for e in env):
        out.append(f"env is {env!r}: libraries drop an empty list, and the image's environment is inherited")
    elif any(e.startswith(("LD_", "PYTHON", "GLIBC_TUNABLES")) for e in env):
        out.append(f"env is dangerous: {env!r}")
    if not str(hook.get("path", "")).startswith(("/", "@PROGRAM@")):
        out.append(f"path is not absolute: {hook.get('path')!r}")
    if hook.get("timeout", 1) == 0:
        out.append("timeout 0: runc ends the hook at once")
    return out


ENTRIES = sorted((session.CHECKOUT / "oci-hooks.d").glob("*.json*"))


@pytest.mark.parametrize("path", ENTRIES, ids=[p.name for p in ENTRIES])
def test_o3_every_entry_has_an_environment_of_its_own(path: Path) -> None:
    assert check_entry(json.loads(path.read_text())["hook"]) == []


def test_o3_there_are_entries() -> None:
    assert len(ENTRIES) >= 5


@pytest.mark.parametrize("env", [None, [], [""], ["LD_PRELOAD=/x"]])
def test_naive_o3_an_entry_without_an_environment_is_found(env: list[str] | None) -> None:
    entry = hookproc.hook_entry(LINK)
    assert check_entry(entry) == []
    entry["env"] = env
    assert check_entry(entry)


# -- O7 ---------------------------------------------------------------------------------------------------------------


def look(pid: int) -> tuple[dict[int, str], str]:
    """A process's descriptors and working directory, as far as they stay while they are looked at."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
    return found, os.readlink(f"/proc/{pid}/cwd")


def open_descriptors(arena: Arena, *, naive: bool = False) -> dict[int, str]:
    """What a hook that waits for its state has open, when it was started with descriptors 3 to 60."""
    fds = [os.open(arena.canary, os.O_RDONLY)]
    fds += [os.dup(fds[0]) for _ in range(57)]
    command = hookproc.command(LINK, NAIVE if naive else None)
    read, write = os.pipe()
    hook = subprocess.Popen(
        command, stdin=read, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=fds, cwd=arena.root
    )
    os.close(read)
    for fd in fds:
        os.close(fd)
    try:
        deadline = time.monotonic() + 6
        while True:
            found, cwd = look(hook.pid)
            if ({0, 1, 2} <= set(found) <= {0, 1, 2, 3} and cwd == "/") or time.monotonic() > deadline:
                return found
            time.sleep(0.02)
    finally:
        os.close(write)
        hook.communicate(timeout=10)


def test_o7_foreign_descriptors_are_closed(arena: Arena, profile: str) -> None:
    found = open_descriptors(arena)
    assert {n: t for n, t in found.items() if n > 2 and t != "/proc"} == {}
    assert set(found) >= {0, 1, 2}


def test_naive_o7_foreign_descriptors_stay_open(arena: Arena) -> None:
    assert str(arena.canary) in open_descriptors(arena, naive=True).values()


CLOSED = {"1": "exec 1>&-", "2": "exec 2>&-", "1-2": "exec 1>&- 2>&-", "all": "exec 0<&- 1>&- 2>&-"}


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("words", [LINK, ["create-symlinks", "--link", "x::/etc/hostname/x"]], ids=["works", "fails"])
def test_o7_closed_standard_descriptors_are_not_reused(
    arena: Arena, profile: str, closed: str, words: list[str]
) -> None:
    """A message must not go into whatever was opened as descriptor 1 or 2."""
    script = CLOSED[closed] + '; exec "$@"'
    ok = words is LINK and closed != "all"
    planned = ["made/**"] if ok else []
    with FakeContainer(arena.root) as c, Oracle(arena.canary, arena.root, planned) as oracle:
        result = hookproc.run_hook(words, container=c, prefix=["/bin/sh", "-c", script, "sh"])
        lines = None if "2" in closed or closed == "all" else 1
        assert oracle.check(result, ok=ok, lines=lines) == []
