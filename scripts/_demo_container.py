"""The container of scripts/demo: its image, its hooks, what it says about itself, and the run through runc."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _demo_node import LIBDIR, SOCKET, Node
from _private import ToolError

if TYPE_CHECKING:
    from collections.abc import Callable

COMPAT = "/usr/local/cuda-13/compat"
CACHE = "/var/cache/nvidia"
PROFILE = "/etc/nvidia/nvidia-application-profiles-rc.d/10-container.conf"
PARAMS = "/proc/driver/nvidia/params"
# An absolute link in the image: a hook that resolved it on the host would write there.
IMAGE_LINK, IMAGE_TARGET = f"{LIBDIR}/gbm", "/opt/nvoci-demo/gbm"
ML, CUDA = "libnvidia-ml.so.1", "libcuda.so.1"
TIMEOUT = 30.0

# Prints `key TAB value` lines; the variables are set by the lines before it.
_REPORT = r"""
say() { printf '%s\t%s\n' "$1" "$2"; }
link() { readlink "$1" || echo -; }
content() { cat "$1" 2>/dev/null || echo -; }
finds() {
    path=$("$loader" --list "/usr/bin/probe-$1" 2>&1 | sed -n "s/.*$1 => //p" | sed 's/ (0x.*//')
    echo "${path:-not found}"
}
runs() { "$@" >/dev/null 2>&1 && echo runs || echo "exit status $?"; }
# Each line of ldconfig -p has a name and a path: the directory of that, and the file it leads to.
lines() {
    ldconfig -p | sed -n 's/^[[:space:]]*\([^ ]*\) (.*) => \(.*\)$/\1 \2/p' | while read -r name path; do
        file=$(readlink -f "$path")
        say "line:$name:${path%/*}" "${file##*/}"
    done
}
writes() {
    error=$( (echo 'ModifyDeviceFiles: 1' >"$1") 2>&1 ) && echo possible || echo "refused: ${error##*: }"
}

say link "$(link "$libdir/libcuda.so")"
say image_link "$(link "$linked/nvidia-drm_gbm.so")"
say mode "$(stat -c %a "$cache")"
say profile "$(content "$profile")"
say params "$(sed -n 's/^ModifyDeviceFiles: //p' "$params")"
say write "$(writes "$params")"
lines
say finds_ml "$(finds "$ml")"
say finds_cuda "$(finds "$cuda")"
say runs "$(runs $program)"
for node in $nodes; do
    test -c "$node" && numbers=$(printf '%d:%d' "0x$(stat -c %t "$node")" "0x$(stat -c %T "$node")") || numbers=-
    say "node:$node" "$numbers"
done
say mounts "$(cut -d ' ' -f 5 /proc/self/mountinfo | tr '\n' ' ')"
for file in $firmware; do
    say "firmware:$file" "$(wc -c <"$file")"
done
say socket "$(test -S "$socket" && echo there || echo -)"
"""


def name_session() -> None:
    """Containers and cgroups are named after the demo; and whatever outlives its parent is the demo's child."""
    importlib.import_module("lib.proc").become_subreaper()
    importlib.import_module("lib.session").TOKEN = f"nvoci-demo-{os.getpid()}"  # type: ignore[attr-defined]


def forget_session() -> None:
    """What an interrupted step left running ends, lest it make anything anew; then cgroups go, also those whose runtime
    was interrupted in the middle of making them."""
    descendants, until = importlib.import_module("lib.proc").descendants, time.monotonic() + TIMEOUT
    while (found := list(descendants(os.getpid()))) and time.monotonic() < until:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)
    importlib.import_module("lib.runtimes").remove_cgroups(5.0)


def make_image(root: Path, node: Node) -> Path:
    """A small glibc image with a CUDA forward compatibility library that is newer than the driver."""
    elfmaker, rootfs = importlib.import_module("lib.elfmaker"), importlib.import_module("lib.rootfs")
    rootfs.glibc_rootfs(root)
    major = int(node.version.partition(".")[0])
    note = {"format": 1, "CUDA version": "13.9", "driver": [major], "device": []}
    sections = [(".note.cuda.fwd_compatibility", "NVIDIA Corporation", 1, json.dumps(note).encode())]
    newer = root / COMPAT[1:] / f"libcuda.so.{major + 10}.20.30"
    elfmaker.make_so(newer, CUDA, machine=rootfs.MACHINE, notes=sections)
    lines = (f"symlink usr/local/cuda {COMPAT.rpartition('/')[0]}", f"dir {CACHE[1:]} 700", f"dir {IMAGE_TARGET[1:]}")
    rootfs.tree(root, "\n".join((*lines, f"symlink {IMAGE_LINK[1:]} {IMAGE_TARGET}")))
    rootfs.add_probe(root, ML)
    rootfs.add_probe(root, CUDA)
    library = Path(LIBDIR, "librt.so.1")  # nvidia-smi is linked with it
    if library.exists():
        shutil.copy2(library, root / LIBDIR[1:])
        subprocess.run(["/sbin/ldconfig", "-r", root], check=True)
    return root


def hook(program: Path, node: Node) -> dict[str, Any]:
    """The one hook entry: six hooks in one process."""
    links = (f"{CUDA}::{LIBDIR}/libcuda.so", f"../libnvidia-allocator.so.1::{IMAGE_LINK}/nvidia-drm_gbm.so")
    words = ["nvidia-cdi-hook", "run", "--", "create-symlinks", "--link", links[0], "--link", links[1]]
    words += ["--", "chmod", "--mode", "1777", "--path", CACHE]
    words += ["--", "enable-cuda-compat", "--host-driver-version", node.version]
    words += ["--", "disable-device-node-modification", "--", "update-application-profile"]
    words += ["--", "update-ldcache", "--folder", LIBDIR]
    return {"path": str(program), "args": words, "env": ["NVOCI_HOOK=demo"]}


def script(node: Node, more: str = "") -> str:
    """What runs in the container; `more` is run after it."""
    names = {
        "libdir": LIBDIR, "cache": CACHE, "profile": PROFILE, "params": PARAMS, "linked": IMAGE_TARGET,
        "socket": SOCKET, "ml": ML, "cuda": CUDA, "loader": importlib.import_module("lib.rootfs").LOADER,
        "program": "nvidia-smi -L" if node.smi else f"probe-{ML}",
        "nodes": " ".join(name for name, _, _ in node.devices()),
        "firmware": " ".join(node.firmware_path(path) for path in node.firmware),
    }  # fmt: skip
    return "\n".join([*(f"{name}={shlex.quote(value)}" for name, value in names.items()), _REPORT, more])


def said(done: Any, engine: str) -> dict[str, str]:
    """What a container's script printed, by key. done: lib.proc's Result of the engine that started it."""
    if not done.ok:
        raise ToolError(f"start a container through {engine}: {done.stderr.strip()[-600:] or done}")
    return dict(line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line)


def left(done: Any) -> str:
    """Processes and mounts that a runtime left on what is its host, as a claim has them."""
    return ", ".join([*done.survivors, *done.mounts_added]) or "nothing"


def run(
    place: Path, image: Path, node: Node, hooks: list[dict[str, Any]], edit: Callable[[Path], None] | None = None
) -> dict[str, str]:
    """Start the container through runc with `hooks` at createContainer; what it says, by key. edit: called with the
    path of config.json, which has no mount and no device of the driver then."""
    bundle, runtimes = importlib.import_module("lib.bundle"), importlib.import_module("lib.runtimes")
    root = place / "rootfs"
    shutil.copytree(image, root, symlinks=True)
    setup, entries = "", hooks
    if node.proc:
        # What a driver's kernel module adds to every procfs: here a mount, on the host and in the container.
        setup = importlib.import_module("lib.jail").driver_proc(node.proc)
        there = shlex.quote(f"{root}/proc/driver")
        copy = f"mount -t tmpfs -o mode=555 driver {there} && cp -a {shlex.quote(str(node.proc))}/. {there}"
        entries = [bundle.shell_hook(copy), *hooks]
    argv = ["/bin/sh", "-c", script(node)]
    stages = {"createContainer": entries} if entries else None
    if edit:
        edit(bundle.make_bundle(place, root, argv, stages) / "config.json")
    else:
        bundle.make_bundle(place, root, argv, stages, mounts=node.mounts(), devices=node.devices())
    done = runtimes.Runtime("runc").run(place, timeout=TIMEOUT, setup=setup)
    return {**said(done, "runc"), "left": left(done)}
