"""The hooks as one would write them in an afternoon. Every case of this folder must fail on this program.

Same command lines as nvidia-cdi-hook. The root is a string that paths are joined to; what is looked at is looked up
again when it is used; files are opened whatever they are and read whole; whoever is named in the state is believed;
the environment, the descriptors and the working directory stay as they came.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from typing import Any

State = dict[str, Any]
Options = dict[str, list[str]]
TRIPLET = f"{os.uname().machine}-linux-gnu"
PARAMS = "/proc/driver/nvidia/params"
PROFILE = "/etc/nvidia/nvidia-application-profiles-rc.d/10-container.conf"
CONF_D = "/etc/ld.so.conf.d"


def options(words: list[str]) -> Options:
    """--name value pairs; a name may come again."""
    found = {}
    for name, value in zip(words[::2], words[1::2]):
        found.setdefault(name.lstrip("-"), []).append(value)
    return found


def write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        f.write(text)


def create_symlinks(root: str, state: State, given: Options) -> None:
    for value in given["link"]:
        target, link = value.split("::")
        path = os.path.join(root, link.lstrip("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.isdir(path):  # as `ln -sf` does
            path = os.path.join(path, os.path.basename(target))
        elif os.path.exists(path) and os.path.realpath(path) == target:
            continue
        temporary = f"{path}.{os.getpid()}"
        os.symlink(target, temporary)
        os.rename(temporary, path)


def chmod(root: str, state: State, given: Options) -> None:
    for path in given["path"]:
        os.chmod(os.path.join(root, path.lstrip("/")), int(given["mode"][0], 8))


def update_application_profile(root: str, state: State, given: Options) -> None:
    mask = 0
    for name in os.listdir(root + "/dev"):
        if name.startswith("nvidia") and name[6:].isdigit():
            mask |= 1 << int(name[6:])
    if mask:
        write(root + PROFILE, f'{{"EGLVisibleDGPUDevices": {mask:#x}}}')


def enable_cuda_compat(root: str, state: State, given: Options) -> None:
    folder = given.get("cuda-compat-container-root", ["/usr/local/cuda/compat"])[0]
    names = os.listdir(root + folder) if os.path.isdir(root + folder) else []
    for name in names:
        if name.startswith("libcuda.so.") and name.count(".") > 2:
            with open(f"{root}{folder}/{name}", "rb") as f:
                f.read()
            if int(name.split(".")[2]) > int(given["host-driver-version"][0].split(".")[0]):
                write(f"{root}{CONF_D}/00-compat-nvoci.conf", folder + "\n")


def disable_device_node_modification(root: str, state: State, given: Options) -> None:
    with open(PARAMS) as f:
        text = f.read().replace("ModifyDeviceFiles: 1", "ModifyDeviceFiles: 0")
    copy = state["bundle"] + "/params"
    write(copy, text)
    pid = state.get("pid", 0)
    enter = ["nsenter", "-t", str(pid), "-m"] if pid > 1 else []
    subprocess.run([*enter, "mount", "--bind", copy, root + PARAMS], check=True)


def soname(data: bytes) -> str:
    """DT_SONAME of a 64-bit library, wherever its offsets lead."""
    phoff, phentsize, phnum = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQ", data, phoff + i * phentsize) for i in range(phnum)]
    at, size = next((s[2], s[5]) for s in segments if s[0] == 2)
    tags = dict(struct.iter_unpack("<QQ", data[at : at + size]))
    where = next(s[2] + tags[5] - s[3] for s in segments if s[0] == 1 and s[3] <= tags[5])
    start = where + tags[14]
    return data[start : data.index(b"\0", start)].decode()


def soname_links(folder: str) -> None:
    for name in os.listdir(folder):
        if ".so." in name and not os.path.islink(os.path.join(folder, name)):
            with open(os.path.join(folder, name), "rb") as f:
                link = os.path.join(folder, soname(f.read()))
            if not os.path.lexists(link):
                os.symlink(name, link)


def update_ldcache(root: str, state: State, given: Options) -> None:
    soname_links(f"{root}/usr/lib/{TRIPLET}")
    folders = "".join(f + "\n" for f in given.get("folder", []))
    write(f"{root}{CONF_D}/zz-nvcr-nvoci.conf", folders)
    write(f"{root}{CONF_D}/zz-nvcr-{os.urandom(4).hex()}.conf", f"/lib/{TRIPLET}\n/usr/lib/{TRIPLET}\n")
    subprocess.run([given.get("ldconfig-path", ["/sbin/ldconfig"])[0], "-r", root], check=True)


def main() -> None:
    text = sys.stdin.read()
    state = json.loads(text)
    root = state.get("root")
    if not root:
        with open(state["bundle"] + "/config.json") as f:
            root = json.load(f)["root"]["path"]
    root = os.path.join(state["bundle"], root)
    words = sys.argv[1:]
    groups = [words]
    if words[0] == "run":
        groups = []
        for word in words[1:]:
            groups.append([]) if word == "--" else groups[-1].append(word)
    for name, *rest in groups:
        if name != "noop":
            globals()[name.replace("-", "_")](root, state, options(rest))


if __name__ == "__main__":
    main()
