"""A simulated GPU node for the tests in this folder: a driver, an image, the installed hook program, and what a
container started there says about itself."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import compat, driver, hookproc, jail, proc, rootfs, runtimes, session
from lib.bundle import Json, make_bundle, shell_hook

STAGES = ("prestart", "createRuntime", "createContainer")
LIBDIR = f"/usr/lib/{rootfs.TRIPLET}"
CUDA, ML = "libcuda.so.1", "libnvidia-ml.so.1"
PARAMS = "/proc/driver/nvidia/params"
PROFILE = "/etc/nvidia/nvidia-application-profiles-rc.d/10-container.conf"
CACHE_DIR = "/var/cache/nvidia"
COMPAT_VERSION, COMPAT_DIR = "575.57.08", "/usr/local/cuda-12.9/compat"
COMPAT_CONF = "/etc/ld.so.conf.d/00-compat-nvoci.conf"
IMAGE_LINK, IMAGE_TARGET = f"{LIBDIR}/gbm", "/opt/gbm"
DEVICES = (("/dev/nvidia0", 195, 0), ("/dev/nvidia3", 195, 3))
ENV = ("NVOCI_HOOK=e2e",)

MASK_9 = (
    '{"profiles":[{"name":"_container_","settings":["EGLVisibleDGPUDevices",0x9]}],'
    '"rules":[{"pattern":[],"profile":"_container_"}]}'
)
COMPAT_WORDS = ("enable-cuda-compat", "--host-driver-version", driver.VERSION, "--host-cuda-version", "12.4")
HOOKS: Mapping[str, Sequence[str]] = {
    "create-symlinks": (
        "create-symlinks",
        "--link",
        f"{CUDA}::{LIBDIR}/libcuda.so,../libnvidia-allocator.so.1::{IMAGE_LINK}/nvidia-drm_gbm.so",
        "--link-if",
        f"/dev/nvidia3=three::{IMAGE_TARGET}/device,/dev/nvidia1=one::{IMAGE_TARGET}/device",
    ),
    "chmod": ("chmod", "--mode", "1777", "--path", CACHE_DIR),
    "enable-cuda-compat": COMPAT_WORDS,
    "disable-device-node-modification": ("disable-device-node-modification",),
    "update-application-profile": ("update-application-profile",),
    "update-ldcache": ("update-ldcache", "--folder", LIBDIR),
}
# What a container says without any hook, and what each hook changes in it.
PLAIN = {
    "link": "-", "image_link": "-", "device": "-", "mode": "700", "compat": "-", "params": "1", "params_mount": "-",
    "params_write": "possible", "profile": "-", "cuda": "-", "ml": "-", "cuda_loads": "127", "ml_loads": "127",
}  # fmt: skip
CHANGES: Mapping[str, Mapping[str, str]] = {
    "create-symlinks": {"link": CUDA, "image_link": "../libnvidia-allocator.so.1", "device": "three"},
    "chmod": {"mode": "1777"},
    "enable-cuda-compat": {"compat": COMPAT_DIR},
    "disable-device-node-modification": {
        "params": "0",
        "params_mount": "ro,nosuid,nodev,noexec",
        "params_write": "Read-only file system",
    },
    "update-application-profile": {"profile": MASK_9},
    "update-ldcache": {
        "link": "libcuda.so.1",
        "cuda": f"{LIBDIR}/libcuda.so.{driver.VERSION}",
        "ml": f"{LIBDIR}/libnvidia-ml.so.{driver.VERSION}",
        "cuda_loads": "0",
        "ml_loads": "0",
    },
}
ALL = {k: v for change in CHANGES.values() for k, v in change.items()} | {
    "link": CUDA,  # made by create-symlinks before update-ldcache could
    "cuda": f"{COMPAT_DIR}/libcuda.so.{COMPAT_VERSION}",
}

_REPORT = r"""
say() { printf '%s\t%s\n' "$1" "$2"; }
link() { readlink "$1" || echo -; }
content() { cat "$1" 2>/dev/null || echo -; }
cached() {
    path=$(ldconfig -p 2>/dev/null | sed -n "s/.*\t$1 .*=> //p" | head -n 1)
    test -n "$path" && readlink -f "$path" || echo -
}
loads() { "/usr/bin/probe-$1" >/dev/null 2>&1; echo $?; }
writes() { error=$( (echo 'ModifyDeviceFiles: 1' >"$1") 2>&1 ) && echo possible || echo "${error##*: }"; }

say link "$(link "$libdir/libcuda.so")"
say image_link "$(link "$linked/nvidia-drm_gbm.so")"
say device "$(link "$linked/device")"
say mode "$(stat -c %a "$cache")"
say compat "$(content "$compat")"
say params "$(sed -n 's/^ModifyDeviceFiles: //p' "$params" 2>/dev/null)"
mounted=$(sed -n "s|.* $params \([^ ]*\) .*|\1|p" /proc/self/mountinfo)
say params_mount "${mounted%,relatime}"
say params_write "$(writes "$params")"
say profile "$(content "$profile")"
say cuda "$(cached "$cuda")"
say ml "$(cached "$ml")"
say cuda_loads "$(loads "$cuda")"
say ml_loads "$(loads "$ml")"
"""


def report_script(more: str = "") -> str:
    """The shell script that prints what `Seen.said` then holds; `more` runs after it."""
    names = {
        "libdir": LIBDIR, "linked": IMAGE_TARGET, "cache": CACHE_DIR, "compat": COMPAT_CONF, "params": PARAMS,
        "profile": PROFILE, "cuda": CUDA, "ml": ML,
    }  # fmt: skip
    return "\n".join([*(f"{name}={shlex.quote(value)}" for name, value in names.items()), _REPORT, more])


def run_words(*hooks: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """`run OPTIONS -- HOOK -- HOOK …`; every hook where none is named."""
    words = ["run", *options]
    for hook in hooks or HOOKS.values():
        words += ["--", *hook]
    return words


@dataclass(frozen=True)
class Program:
    """An installed `nvidia-cdi-hook`. compat: called through a filter that forbids the newer system calls."""

    path: Path
    compat: bool = False

    def entry(self, *words: str, env: Sequence[str] | None = ENV, timeout: int | None = None, shell: str = "") -> Json:
        """The hook as an entry of config.json, hooks.d or a CDI spec. shell: a line that ends in `exec "$@"`."""
        argv = [str(self.path), *words]
        if self.compat or os.environ.get(hookproc.COMPAT_SWITCH):
            argv = [*compat.prefix(), *argv]
        if shell:
            argv = ["/bin/sh", "-c", shell, "sh", *argv]
        out: Json = {"path": argv[0], "args": argv if argv[0] != str(self.path) else ["nvidia-cdi-hook", *words]}
        if env is not None:
            out["env"] = list(env)
        if timeout is not None:
            out["timeout"] = timeout
        return out


@dataclass
class Seen:
    """What came of one container: the runtime's result, and the report's lines by key (empty: it did not start)."""

    result: proc.Result
    said: dict[str, str]


class Node:
    """A driver and an image; containers of it are started by runc, crun or podman."""

    def __init__(self, folder: Path, program: Program, version: str = driver.VERSION) -> None:
        self.folder = folder
        self.program = program
        self.driver = driver.make(folder / "driver", gpus=4, version=version)
        self.root = make_image(folder / "rootfs")

    def close(self) -> None:
        self.driver.close()

    def params_hook(self, root: Path | str | None = None) -> Json:
        """What a driver's kernel module adds to every procfs: mounted in the container by a hook before ours."""
        there = shlex.quote(f"{root or self.root}/proc/driver")
        copy = f"mount -t tmpfs -o mode=555 driver {there} && cp -r {shlex.quote(str(self.driver.proc))}/. {there}"
        pid = """pid=$(tr -d '\\n' | sed 's/.*"pid": *\\([0-9]*\\).*/\\1/')"""
        return shell_hook(f'{pid}; exec nsenter --target "$pid" --mount /bin/sh -ec {shlex.quote(copy)}')

    def hooks(self, stage: str, *entries: Json, root: Path | str | None = None) -> dict[str, list[Json]]:
        """`hooks` of config.json, the driver's params first."""
        first = "prestart" if stage == "prestart" else "createRuntime"
        out: dict[str, list[Json]] = {first: [self.params_hook(root)]}
        out.setdefault(stage, []).extend(entries)
        return out

    def setup(self) -> str:
        return jail.driver_proc(self.driver.proc)

    def start(
        self,
        runtime: str,
        stage: str,
        *entries: Json,
        root: Path | str | None = None,
        config_root: str | None = None,
        bundle: Path | None = None,
        setup: str = "",
        more: str = "",
        cgroups: str = "v1",
        environ: Mapping[str, str] | None = None,
        **config: Any,
    ) -> Seen:
        """Start a container with every library and two GPUs, and our hook entries at `stage`.

        root: the root, if not the node's. config_root: what config.json says of it. more: lines after the report.
        environ: the runtime's own. config: for make_bundle().
        """
        where = bundle or session.new_dir("bundle")
        argv = ["/bin/sh", "-c", report_script(more)]
        config.setdefault("devices", DEVICES)
        config.setdefault("mounts", self.driver.mounts())
        hooks = self.hooks(stage, *entries, root=root)
        make_bundle(where, config_root or root or self.root, argv, hooks, **config)
        result = runtimes.Runtime(runtime, cgroups).run(where, setup=self.setup() + setup, env=environ)
        return seen(result)

    def podman(self, runtime: str, more: str = "", setup: str = "", **options: Any) -> Seen:
        """The same by podman; our hooks come by `hooks_dir` or `cdi_specs`."""
        argv = ["/bin/sh", "-c", report_script(more)]
        return seen(runtimes.podman(self.root, argv, runtime=runtime, setup=self.setup() + setup, **options))


def seen(result: proc.Result) -> Seen:
    lines = (line.partition("\t") for line in result.stdout.splitlines())
    return Seen(result, {key: value or "-" for key, tab, value in lines if tab})


def make_image(root: Path) -> Path:
    """A small glibc image with links of its own and a forward compatibility library newer than the driver."""
    rootfs.glibc_rootfs(root)
    note = {"format": 1, "CUDA version": "12.9", "driver": [535, 550, 560, 565, 570, 575], "device": []}
    notes = [(".note.cuda.fwd_compatibility", "NVIDIA Corporation", 1, json.dumps(note).encode())]
    driver.compat_library(root / COMPAT_DIR[1:], COMPAT_VERSION, notes)
    rootfs.tree(
        root,
        f"symlink usr/local/cuda {Path(COMPAT_DIR).parent.name}\ndir {CACHE_DIR[1:]} 700\n"
        f"dir {IMAGE_TARGET[1:]}\nsymlink {IMAGE_LINK[1:]} {IMAGE_TARGET}",
    )
    rootfs.add_probe(root, CUDA)
    rootfs.add_probe(root, ML)
    return root
