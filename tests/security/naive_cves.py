"""Mistakes of published vulnerabilities that the other naive programs do not have, one by one: `naive_cves.py WHICH …`,
as a hook at createRuntime. The cases of test_cves_programs.py must fail on this program."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

LIBRARY = "usr/local/cuda/compat/libcuda.so.600.1"
TARGET = "usr/lib/libcuda.so.600.1"


def enter(pid: int) -> list[str]:
    return ["nsenter", "-t", str(pid), "-m"] if pid > 1 else []


def compat_mount(root: str, pid: int, *check: str) -> None:
    """A library of the image is mounted by its joined name; `check`: after a look whether it leads out."""
    source, target = f"{root}/{LIBRARY}", f"{root}/{TARGET}"
    if check and not os.path.realpath(source).startswith(root):
        raise SystemExit("leads out of the image")
    subprocess.run([*enter(pid), "touch", target], check=True)
    subprocess.run([*enter(pid), "mount", "--bind", source, target], check=True)


def ldconfig(root: str, pid: int, path: str) -> None:
    """A path without `@` is the container's, and is run with everything the hook has."""
    subprocess.run([path.removeprefix("@") if path.startswith("@") else root + "/" + path.lstrip("/")], check=True)


def wildcard(root: str, pid: int) -> None:
    """All GPUs, and mknod."""
    with open(f"/proc/{pid}/cgroup") as f:
        cgroup = next(line.split(":")[2].strip() for line in f if ":devices:" in line)
    with open(f"/sys/fs/cgroup/devices{cgroup}/devices.allow", "w") as f:
        f.write("c 195:* rwm")


def chroot_import(root: str, pid: int, module: str) -> None:
    """What is loaded late comes from the image."""
    os.chroot(root)
    os.chdir("/")
    importlib.import_module(module)


def confined(root: str, pid: int) -> None:
    """A helper with the hook's capabilities, descriptors and working directory."""
    subprocess.run(["/sbin/ldconfig", "-r", root], check=True, close_fds=False)


def main() -> None:
    state = json.load(sys.stdin)
    root = state.get("root")
    if not root:
        with open(state["bundle"] + "/config.json") as f:
            root = json.load(f)["root"]["path"]
    globals()[sys.argv[1].replace("-", "_")](root, state.get("pid", 0), *sys.argv[2:])


if __name__ == "__main__":
    main()
