"""Rows I4, I5 and I8: user namespaces of other shapes than 0 -> 100000, a /proc that shows less, idmapped roots, and a
security module that says no."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kernel import namespaced
from lib import hookproc, proc, rootfs, session
from lib.bundle import Json
from lib.oracle import Oracle
from lib.runtimes import Runtime, make_bundle
from security.arena import LIBDIR, Arena, attempt, settled
from security.test_process import WORDS

LINK = ["create-symlinks", "--link", "target::/made/by/the/hook"]
FIRST = 100_000

# -- I4 -------------------------------------------------------------------------------------------------------------

Line = tuple[int, int, int]
# As Podman writes them for these words; and which host id is root of the container.
MAPS: dict[str, tuple[list[Line], int]] = {
    "keep-id": ([(0, FIRST + 1, 1000), (1000, FIRST, 1), (1001, FIRST + 1001, 64535)], FIRST + 1),
    "nomap": ([(0, FIRST + 1, 65535)], FIRST + 1),
    "auto": ([(0, FIRST + 500_000, 1024)], FIRST + 500_000),
    "auto-of-one": ([(0, FIRST, 1)], FIRST),
    "host-uid": ([(0, 0, 1), (1, FIRST, 65535)], 0),
    "root-last": ([(1, FIRST + 1, 65535), (0, FIRST, 1)], FIRST),
}


def in_maps(runtime: str, stage: str, name: str, owner: int) -> tuple[proc.Result, Path, list[str]]:
    """A container with this map on a root of `owner`, and the hook at `stage`; the container reads what it made."""
    lines, _ = MAPS[name]

    def edit(config: Json) -> None:
        table = [{"containerID": i, "hostID": o, "size": n} for i, o, n in lines]
        config["linux"]["uidMappings"] = config["linux"]["gidMappings"] = table
        config["mounts"] = [m for m in config["mounts"] if m["type"] != "devpts"]  # its gid may have no number

    root = rootfs.busybox_rootfs(session.new_dir("image"))
    for name_ in ("proc", "dev", "sys", "dev/pts", "dev/shm", "dev/mqueue"):
        (root / name_).mkdir(exist_ok=True)
    for path in (root, *root.rglob("*")):
        os.lchown(path, owner, owner)
    args = ["sh", "-c", "readlink /made/by/the/hook; sed -n 1p /proc/self/uid_map"]
    hooks = {stage: [hookproc.hook_entry(LINK)]}
    bundle = make_bundle(session.new_dir("bundle"), root, args, hooks, userns=(FIRST, 65536), edit=edit)
    with Oracle(rootfs=root, planned=["made/**", "dev", "proc", "sys", "dev/*"]) as oracle:
        result = Runtime(runtime).run(bundle)
        return result, root, oracle.check(result, lines=None)


@pytest.mark.parametrize(
    "stage", ["createRuntime", pytest.param("createContainer", marks=pytest.mark.long)],
)  # fmt: skip
@pytest.mark.parametrize("name", MAPS)
def test_i4_maps_of_every_shape(runtime: str, stage: str, name: str) -> None:
    result, root, found = in_maps(runtime, stage, name, MAPS[name][1])
    assert found == []
    assert result.rc == 0, result.stderr
    assert result.stdout.splitlines()[0] == "target"
    assert result.stdout.split()[1:] != ["0", "0", "4294967295"]
    expected = MAPS[name][1] if stage == "createContainer" else 0
    assert (root / "made/by/the/hook").lstat().st_uid == expected


@pytest.mark.parametrize("kind", ["nomap", "auto"])
def test_i4_from_inside_a_root_that_is_not_mapped_is_refused(runtime: str, kind: str) -> None:
    result, root, found = in_maps(runtime, "createContainer", kind, 0)
    assert found == []
    assert result.rc != 0
    assert not (root / "made").exists()


# A root whose ids are shifted as it is mounted: what lies there as 0 is shown as FIRST, and the other way round.
_IDMAP = """
import ctypes, os, struct, sys
path, userns = os.fsencode(sys.argv[1]), os.open(sys.argv[2], os.O_RDONLY)
libc = ctypes.CDLL(None, use_errno=True)
tree = libc.syscall(428, -100, path, 1)  # open_tree(2), OPEN_TREE_CLONE
attr = struct.pack("=4Q", 0x100000, 0, 0, userns)  # struct mount_attr, MOUNT_ATTR_IDMAP
if tree < 0 or libc.syscall(442, tree, b"", 0x1000, attr, len(attr)) < 0:
    sys.exit(f"idmap: errno {ctypes.get_errno()}")
if libc.syscall(429, tree, b"", -100, path, 4) < 0:
    sys.exit(f"move: errno {ctypes.get_errno()}")
"""


@contextmanager
def user_namespace() -> Iterator[str]:
    """The path of one with the map 0 -> FIRST."""
    with subprocess.Popen(["unshare", "--user", "cat"], stdin=subprocess.PIPE) as owner:
        ours = os.stat("/proc/self/ns/user").st_ino
        deadline = time.monotonic() + 10
        while os.stat(f"/proc/{owner.pid}/ns/user").st_ino == ours and time.monotonic() < deadline:
            time.sleep(0.001)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{owner.pid}/{name}").write_text(f"0 {FIRST} 65536")
        yield f"/proc/{owner.pid}/ns/user"
        assert owner.stdin is not None
        owner.stdin.close()


@pytest.mark.parametrize("stage", ["outside", "inside"])
def test_i4_an_idmapped_root_that_has_no_number_for_the_hook_is_one_error(
    arena: Arena, profile: str, stage: str
) -> None:
    """Its files are 0's on the disk and FIRST's as they are seen; what the host's root makes there would be nobody's,
    which the kernel refuses."""
    script = session.new_dir("idmap") / "idmap.py"
    script.write_text(_IDMAP)
    (arena.root / "proc").mkdir(exist_ok=True)
    with user_namespace() as path:
        setup = f'timeout 10 {session.PYTHON} -IS {script} "$R" {path}\n'
        options = {"setup": setup, "proc_mount": False, "dev": False}
        assert attempt(arena, WORDS, stage, ok=False, parts=["EOVERFLOW"], container=options) == []


# -- I5 -------------------------------------------------------------------------------------------------------------

PROCS = {
    "hidepid": "mount -t proc -o hidepid=2 proc /proc",
    "subset": "mount -t proc -o subset=pid proc /proc",
    "both": "mount -t proc -o hidepid=ptraceable,subset=pid proc /proc",
    "read-only": "mount -t proc -o ro proc /proc",
}


@pytest.mark.parametrize("kind", PROCS)
def test_i5_a_host_proc_that_shows_less_is_enough(arena: Arena, profile: str, kind: str) -> None:
    planned = ["etc/ld.so.c*", "etc/ld.so.conf.d/*", f"{LIBDIR}/*", "usr/local/cuda/compat/*"]
    assert attempt(arena, WORDS, ok=True, lines=0, planned=planned, setup=PROCS[kind]) == []
    assert os.readlink(arena.root / LIBDIR / "libcuda.so") == "libcuda.so.1"


@pytest.mark.parametrize("stage", ["outside", "inside"])
@pytest.mark.parametrize("kind", ["hidepid", "subset"])
def test_i5_a_container_s_proc_that_shows_less_is_never_asked(arena: Arena, kind: str, stage: str) -> None:
    setup = PROCS[kind].replace(" /proc", ' "$R/proc"') + "\n"
    planned = ["etc/ld.so.c*", "etc/ld.so.conf.d/*", f"{LIBDIR}/*", "usr/local/cuda/compat/*"]
    options: dict[str, Any] = {"setup": setup, "proc_mount": False}
    (arena.root / "proc").mkdir(exist_ok=True)
    assert attempt(arena, WORDS, stage, ok=True, lines=0, planned=planned, container=options) == []


# -- I8 -------------------------------------------------------------------------------------------------------------

DENIED = ("symlinkat", "openat2", "setns", "mkdirat")


@pytest.mark.parametrize("call", DENIED)
def test_i8_what_a_security_module_denies_is_one_error_with_a_hint(arena: Arena, call: str) -> None:
    """EACCES by a filter, as a module answers; openat2 is denied by old filters, and the walk takes its place."""
    number = {"symlinkat": 266, "mkdirat": 258, "setns": 308}.get(call, namespaced.abi.NR.get(call, -1))
    if call not in namespaced.abi.NR:
        if platform.machine() != "x86_64":
            pytest.skip("numbers of x86_64")
        namespaced.abi.NR[call] = number
    how: dict[str, Callable[[], None]] = {"preexec": lambda: namespaced.block((call,), errno.EACCES)}
    words = ["create-symlinks", "--link", "a::/made/here/b", "--link", f"x::/{LIBDIR}/new"]
    assert settled(arena, attempt(arena, words, ok=False, parts=["EACCES", "("], **how)) == []
