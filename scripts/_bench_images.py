"""The root file systems that scripts/bench runs hooks on, and the driver that is mounted into them.

The libraries of an image are real ELF files, with the sonames, soname links, development links and sizes that
distributions have, and its ld.so.cache is the host's ldconfig's. The same numbers make the same image.
Standard library only, Python >= 3.9.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from _private import ToolError

if TYPE_CHECKING:
    from collections.abc import Iterator

MACHINE = os.uname().machine
LIBRARIES = f"usr/lib/{MACHINE}-linux-gnu"
CUDA_HOME = "usr/local/cuda-12.9"
COMPAT = f"{CUDA_HOME}/compat"
CUDA_LIBRARIES = f"{CUDA_HOME}/targets/{MACHINE}-linux/lib"
PARAMS = "proc/driver/nvidia/params"
PARAMS_TEXT = "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 1\nDeviceFileUID: 0\nDeviceFileMode: 438\n"
DRIVER = "550.54.14"
LDCONFIG = "/sbin/ldconfig"
_COMPAT_NOTE = {"format": 1, "CUDA version": "12.9", "driver": [535, 550, 560, 565, 570, 575], "device": []}
# Beside those of tests/lib/driver: with them a container gets as many as from a full driver package.
_MORE_SONAMES = {
    "libnvoptix.so": "libnvoptix.so.1",
    "libnvidia-fbc.so": "libnvidia-fbc.so.1",
    "libnvidia-ngx.so": "libnvidia-ngx.so.1",
    "libGLESv2_nvidia.so": "libGLESv2_nvidia.so.2",
}

# --- the driver -----------------------------------------------------------------------------------------------------


def driver_sonames() -> dict[str, str]:
    """Soname by file name of each library that is mounted into a container."""
    sonames = {**importlib.import_module("lib.driver").SONAMES, **_MORE_SONAMES}
    return {f"{stem}.{DRIVER}": soname.format(v=DRIVER) for stem, soname in sonames.items()}


def make_driver(place: Path) -> dict[Path, str]:
    """The host's libraries of a driver, and where each goes in a container."""
    elfmaker = importlib.import_module("lib.elfmaker")
    sizes = random.Random(DRIVER)
    found = {}
    for name, soname in driver_sonames().items():
        path = elfmaker.make_so(place / name, soname, ["libc.so.6"], MACHINE, mode=0o755)
        os.truncate(path, sizes.randrange(1 << 20, 100 << 20))
        found[path] = f"{LIBRARIES}/{name}"
    return found


# --- images ---------------------------------------------------------------------------------------------------------


def make_image(root: Path, count: int) -> Path:
    """The image below every overlay: glibc, two GPUs' nodes, a CUDA compat library, a params file, and as many other
    libraries as it takes for `count` lines in `ldconfig -p`."""
    elfmaker = importlib.import_module("lib.elfmaker")
    rootfs = importlib.import_module("lib.rootfs")
    rootfs.glibc_rootfs(root)
    lines = (
        *("char dev/nvidia0 195 0", "char dev/nvidia1 195 1", "char dev/nvidiactl 195 255", "dir dev/dri 700"),
        *("dir dev/dri/by-path", f"dir {LIBRARIES}/gbm", f"dir {LIBRARIES}/vdpau"),
        f"symlink usr/local/cuda /{CUDA_HOME}",
    )
    rootfs.tree(root, "\n".join(lines))
    (root / PARAMS).parent.mkdir(parents=True)
    (root / PARAMS).write_text(PARAMS_TEXT)
    note = (".note.cuda.fwd_compatibility", "NVIDIA Corporation", 1, json.dumps(_COMPAT_NOTE).encode())
    compat = elfmaker.make_so(root / COMPAT / "libcuda.so.575.57.08", "libcuda.so.1", machine=MACHINE, notes=[note])
    (compat.parent / "libcuda.so.1").symlink_to(compat.name)
    _fill(root, count - len(listed(root)))
    for _ in range(2):  # a development link to a soname link that the first run makes is seen by the second
        subprocess.run([LDCONFIG, "-r", root], check=True)
    if len(listed(root)) != count:
        raise ToolError(f"make an image of {count} libraries: {LDCONFIG} lists {len(listed(root))}")
    return root


def listed(root: Path) -> dict[str, str]:
    """`ldconfig -p` of a root: path by name; the first where a name is there several times."""
    command = [LDCONFIG, "-p", "-C", str(root / "etc/ld.so.cache")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, str] = {}
    for line in output.splitlines():
        name, arrow, path = line.strip().partition(" => ")
        if arrow:
            found.setdefault(name.partition(" ")[0], path)
    return found


def _fill(root: Path, lines: int) -> None:
    """Libraries for so many lines of `ldconfig -p`: every fourth library has a development link, too, and where there
    are hundreds, a toolkit of its own has some of them. Its directories hold other files as well."""
    elfmaker = importlib.import_module("lib.elfmaker")
    sizes = random.Random(lines)
    folders = [LIBRARIES] * 16
    if lines > 200:
        folders += [CUDA_LIBRARIES, CUDA_LIBRARIES, f"{LIBRARIES}/blas", "usr/local/lib"]
        text = f"/{CUDA_LIBRARIES}\n/{LIBRARIES}/blas\n"
        (root / "etc/ld.so.conf.d/000_bench.conf").write_text(text)
    for number, (stem, soname, file) in enumerate(_names()):
        if not lines:
            return
        folder = root / folders[number % len(folders)]
        elfmaker.make_so(folder / file, soname, ["libm.so.6", "libc.so.6"], MACHINE)
        os.truncate(folder / file, int(sizes.lognormvariate(11.5, 1.2)) + 8192)  # 100 KiB in the middle, sparse
        lines -= 1
        if number % 4 == 1 and lines and soname != file:
            (folder / f"{stem}.so").symlink_to(soname if number % 8 == 1 else file)
            (folder / f"{stem}.a").write_bytes(b"!<arch>\n")
            lines -= 1


_WORDS = (
    "avahi boost bz2 cairo client common core crypt curl db dbus drm edit event expat ffi fontconfig gcc gdk glib gmp "
    "gnutls graph harfbuzz hdf5 icu image jpeg json krb5 ldap lz4 mpi nccl ncurses nghttp nss opencv openjp panel pcre "
    "perl pixman png python qt readline sasl soup sqlite ssh ssl stdc systemd thread tiff udev uuid vorbis webp xcb "
    "xml2 zstd"
).split()


def _names() -> Iterator[tuple[str, str, str]]:
    """(stem, soname, file name) of one library after the other; no stem twice."""
    for form in ("{a}-{b}", "{a}{b}", "{a}_{b}{n}", "{a}{n}{b}"):
        for step in range(len(_WORDS)):
            for at, word in enumerate(_WORDS):
                number = at * len(_WORDS) + step
                stem = "lib" + form.format(a=word, b=_WORDS[(at + step) % len(_WORDS)], n=number % 300)
                major = number * 7 % 31
                if number % 10 == 0:  # as Boost does: the file's name is the soname
                    soname = file = f"{stem}.so.1.{major}.0"
                elif number % 10 == 1:  # as GLib does
                    stem += f"-{number % 4}.0"
                    soname, file = f"{stem}.so.0", f"{stem}.so.0.{number % 8000}.{major}"
                else:
                    soname, file = f"{stem}.so.{major}", f"{stem}.so.{major}.{number % 13}.{number % 7}"
                yield stem, soname, file
