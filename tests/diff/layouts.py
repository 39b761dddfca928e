"""Root file systems as distributions lay them out, with real ELF libraries, and the cache that each one's own ldconfig
would have left."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diff import judge
from lib import driver, elfmaker, rootfs

MULTIARCH = f"/usr/lib/{rootfs.TRIPLET}"
I386 = "/usr/lib/i386-linux-gnu"
LIB64, NIX = "/usr/lib64", "/run/opengl-driver/lib"
ISA_NEEDED = 0xC0008002  # linux/elf.h and the psABI: GNU_PROPERTY_X86_ISA_1_NEEDED
COMPAT, COMPAT_DROP_IN = "/usr/local/cuda-12.9/compat", "etc/ld.so.conf.d/00-compat-nvoci.conf"
# Libraries of a small Debian image: file name, soname (None: it has none), links beside it.
SMALL: Sequence[tuple[str, str | None, Sequence[str]]] = (
    ("libc.so.6", "libc.so.6", ()),
    ("libm.so.6", "libm.so.6", ()),
    ("libz.so.1.2.13", "libz.so.1", ("libz.so.1",)),
    ("libssl.so.3", "libssl.so.3", ()),
    ("libstdc++.so.6.0.30", "libstdc++.so.6", ("libstdc++.so.6",)),
    ("libncursesw.so.6.4", "libncursesw.so.6", ("libncursesw.so.6",)),
    ("libpcre2-8.so.0.11.2", "libpcre2-8.so.0", ("libpcre2-8.so.0", "libpcre2-8.so")),
    ("libproc2.so.0", "libproc2.so.0", ()),
    ("libnosoname-1.0.so", None, ("libnosoname.so",)),
    ("libdl.so.2", "libdl.so.2", ()),
)


@dataclass(frozen=True)
class Layout:
    """fill: writes the files below an empty directory; None: the host's own root, as the lowest layer of an overlay.
    folder: where a runtime puts the driver's libraries, which is the hook's --folder; folder_i386: those of 32 bits.
    without: files of the lowest layer that are removed."""

    name: str
    folder: str
    fill: Callable[[Path], None] | None
    folder_i386: str = ""
    without: tuple[str, ...] = ()


def library(path: Path, soname: str | None, machine: str = "x86_64", isa: int = 0) -> None:
    """One library; isa: bits of x86-64-baseline, -v2, -v3, -v4 that it says it needs."""
    desc = struct.pack("<III4x", ISA_NEEDED, 4, isa)
    notes = [(".note.gnu.property", "GNU", 5, desc)] * 2 if isa else []
    elfmaker.make_so(path, soname, () if soname == "libc.so.6" else ("libc.so.6",), machine, notes=notes)
    if isa:
        path.write_bytes(_with_property_segment(path.read_bytes()))


def _with_property_segment(data: bytes) -> bytes:
    """The first PT_NOTE becomes PT_GNU_PROPERTY, aligned to eight: linkers make both, ldconfig reads only this one."""
    out = bytearray(data)
    start, count = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 56)[0]
    at = next(a for a in range(start, start + 56 * count, 56) if data[a : a + 4] == b"\4\0\0\0")
    struct.pack_into("<I", out, at, 0x6474E553)
    struct.pack_into("<Q", out, at + 48, 8)
    return bytes(out)


def libraries(folder: Path, machine: str = "x86_64") -> None:
    for name, soname, links in SMALL:
        library(folder / name, soname, machine)
        for link in links:
            (folder / link).symlink_to(name)


def conf(root: Path, name: str, *lines: str) -> None:
    path = root / "etc" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))


def _cached(root: Path) -> None:
    """As the last package installation left it. It runs twice: packages bring their links."""
    (root / "etc").mkdir(exist_ok=True)
    for _ in range(2):
        judge.ldconfig(root)


def _debian_frame(root: Path) -> Path:
    """Merged /usr, the multiarch configuration; the multiarch directory."""
    rootfs.tree(root, rootfs.GLIBC)
    folders = [f"{top}/{rootfs.TRIPLET}" for top in ("/usr/local/lib", "/lib", "/usr/lib")]
    conf(root, f"ld.so.conf.d/{rootfs.TRIPLET}.conf", "# Multiarch support", *folders)
    return root / MULTIARCH[1:]


def minbase(root: Path) -> None:
    """Debian 12 minbase, and what a distribution's directories hold beside well-behaved libraries."""
    lib = _debian_frame(root)
    libraries(lib)
    _curiosities(root, lib)
    _cached(root)


def _curiosities(root: Path, lib: Path) -> None:
    for version in ("1.9", "1.10"):  # two files of one soname
        library(lib / f"libtwo.so.{version}", "libtwo.so.1")
    # libblas.so.3 -> /etc/alternatives/… -> ../blas/libblas.so.3: a library whose file lies elsewhere
    library(lib / "blas/libblas.so.3.11.0", "libblas.so.3")
    library(lib / "libforeign.so.1", "libforeign.so.1", "aarch64")
    rootfs.tree(
        lib,
        "symlink blas/libblas.so.3 libblas.so.3.11.0\nsymlink libblas.so.3 /etc/alternatives/libblas.so.3\n"
        "file libscript.so INPUT(libtwo.so.1)\\n\nfile libempty.so.1\nfile libshort.so.1 \\x7fELF\n"
        "dir libdirectory.so.1\nfifo libpipe.so.1\nsymlink libgone.so.1 libgone.so.1.2\n"
        "symlink libloop.so.1 libloop.so.1",
    )
    rootfs.tree(root, f"symlink etc/alternatives/libblas.so.3 {MULTIARCH}/blas/libblas.so.3")


def large(root: Path) -> None:
    """Debian with 1,155 libraries: soname and file each, every fifth with a link for ld(1)."""
    lib = _debian_frame(root)
    libraries(lib)
    for i in range(1155 - len(SMALL)):
        name = f"libpackage{i % 400}-{i // 400}.so.{i % 7}"
        library(lib / f"{name}.{i % 13}.{i % 3}", name)
        (lib / name).symlink_to(f"{name}.{i % 13}.{i % 3}")
        if i % 5 == 0:
            (lib / name).with_name(name.partition(".so")[0] + ".so").symlink_to(f"{name}.{i % 13}.{i % 3}")
    _cached(root)


def multiarch(root: Path) -> None:
    """Ubuntu with i386 as a second architecture, whose directories come by a drop-in of its own."""
    libraries(_debian_frame(root))
    lib = root / I386[1:]
    libraries(lib, "i386")
    # Which count as libraries of libc6: by a needed libc.so.6 or libm.so.6, or a loader that ldconfig knows.
    loaders = {"libc.so.6": "/lib/ld-linux.so.2", "libown.so.1": "/lib/ld-own.so.1", "libm.so.6": None}
    for name, loader in loaders.items():
        elfmaker.make_so(lib / name, name, ["ld-linux.so.2"], "i386", interp=loader)
    for name, needed in {"libby-m.so.1": "libm.so.6", "libby-dl.so.1": "libdl.so.2", "libby-none.so.1": None}.items():
        elfmaker.make_so(lib / name, name, [needed] if needed else [], "i386")
    folders = [f"{top}/i386-linux-gnu" for top in ("/usr/local/lib", "/lib", "/usr/lib")]
    conf(root, "ld.so.conf.d/i386-linux-gnu.conf", *folders, "/lib/i686-linux-gnu", "/usr/lib/i686-linux-gnu")
    library(root / "usr/lib/x86_64-linux-gnu/libfakeroot/libfakeroot-0.so", "libfakeroot-0.so")
    conf(root, "ld.so.conf.d/fakeroot-x86_64-linux-gnu.conf", "/usr/lib/x86_64-linux-gnu/libfakeroot")
    _cached(root)


def _lib64_frame(root: Path) -> Path:
    spec = "symlink lib usr/lib\nsymlink lib64 usr/lib64\ndir usr/lib\ndir usr/lib64\ndir etc\ndir proc\ndir tmp 1777"
    rootfs.tree(root, spec)
    return root / LIB64[1:]


def rhel(root: Path) -> None:
    """lib64, a relative include, one directory per drop-in; nothing names lib64 itself."""
    lib = _lib64_frame(root)
    libraries(lib)
    library(lib / "mysql/libmysqlclient.so.21.2", "libmysqlclient.so.21")
    (lib / "mysql/libmysqlclient.so.21").symlink_to("libmysqlclient.so.21.2")
    library(root / "usr/lib/libold.so.1", "libold.so.1", "i386")
    conf(root, "ld.so.conf", "include ld.so.conf.d/*.conf")
    conf(root, "ld.so.conf.d/mysql-x86_64.conf", "/usr/lib64/mysql")
    conf(root, "ld.so.conf.d/kernel-5.14.conf", "# Placeholder file, no vDSO hwcap entries used in this kernel.")
    rootfs.tree(root, 'file etc/os-release ID="rhel"\\n')
    _cached_with(root, "/lib64", "/usr/lib64")


def _cached_with(root: Path, *directories: str) -> None:
    """By a distribution's ldconfig that knows `directories` by itself."""
    (root / "etc").mkdir(exist_ok=True)
    for _ in range(2):
        judge.ldconfig(root, directories=directories)


def suse(root: Path) -> None:
    """Directories in ld.so.conf itself, the drop-ins after them."""
    lib = _lib64_frame(root)
    libraries(lib)
    library(root / "usr/local/lib64/liblocal.so.2.1", "liblocal.so.2")
    library(root / "usr/X11R6/lib64/libXaw.so.7", "libXaw.so.7")
    own = ("/usr/local/lib64", "/usr/local/lib", "/usr/X11R6/lib64=libc6", "include /etc/ld.so.conf.d/*.conf")
    conf(root, "ld.so.conf", *own, "# /lib64, /lib, /usr/lib64 and /usr/lib gets added", "# automatically by ldconfig")
    conf(root, "ld.so.conf.d/graphviz.conf", "/usr/lib64/graphviz", "hwcap 0 nosegneg")
    library(root / "usr/lib64/graphviz/libgvplugin.so.6", "libgvplugin.so.6")
    _cached_with(root, "/lib64", "/usr/lib64", "/lib", "/usr/lib")


def _alpine(root: Path) -> None:
    libraries(root / "usr/lib")
    rootfs.tree(root, "dir lib\ndir etc\ndir proc\nfile etc/alpine-release 3.20.1\\n")
    elfmaker.make_so(root / "lib/ld-musl-x86_64.so.1", "libc.musl-x86_64.so.1")
    (root / "lib/libc.musl-x86_64.so.1").symlink_to("ld-musl-x86_64.so.1")


def alpine_with_path(root: Path) -> None:
    """Its path file has a directory of its own."""
    _alpine(root)
    conf(root, f"ld-musl-{rootfs.MACHINE}.path", "/lib:/usr/local/lib:/usr/lib", "/opt/own/lib")


def distroless(root: Path) -> None:
    """Debian's directories, not merged; no configuration and no cache."""
    libraries(root / MULTIARCH[1:])
    library(root / "lib" / rootfs.TRIPLET / "libpam.so.0.85", "libpam.so.0")
    rootfs.tree(root, "dir proc\ndir tmp 1777\nfile etc/debian_version 12.11\\nfile etc/os-release ID=debian\\n")


def nixos(root: Path) -> None:
    """Everything in the store, found by RUNPATH; no /lib, no configuration. The driver has a directory of its own."""
    store = "nix/store/5m9amsvvh2z8sl7jrnc87hzy21glw6k1-"
    libraries(root / f"{store}glibc-2.40-36/lib")
    library(root / f"{store}zlib-1.3.1/lib/libz.so.1.3.1", "libz.so.1")
    rootfs.tree(root, "dir proc\ndir tmp 1777\ndir etc\ndir run")


def nixos_with_cache(root: Path) -> None:
    """A cache made by hand (with -f) is all that names the store."""
    nixos(root)
    folders = sorted(f"/{p.relative_to(root)}" for p in root.glob("nix/store/*/lib"))
    conf(root, "tmp.conf", *folders)
    for _ in range(2):
        judge.ldconfig(root, "/etc/tmp.conf")
    (root / "etc/tmp.conf").unlink()


def hwcaps(root: Path) -> None:
    """Builds for newer processors in glibc-hwcaps, with and without the note that says so."""
    lib = _debian_frame(root)
    libraries(lib)
    for level, bits in (("x86-64-v2", 3), ("x86-64-v3", 7), ("x86-64-v4", 15)):
        library(lib / f"glibc-hwcaps/{level}/libz.so.1.2.13", "libz.so.1", isa=bits)
        (lib / f"glibc-hwcaps/{level}/libz.so.1").symlink_to("libz.so.1.2.13")
        library(lib / f"glibc-hwcaps/{level}/libonly-{level}.so.2.1", "libonly.so.2")
    library(root / "usr/local/lib/glibc-hwcaps/x86-64-v3/libz.so.1.3", "libz.so.1", isa=4)
    library(lib / "glibc-hwcaps/future/libz.so.1", "libz.so.1")
    note = (".note.gnu.property", "GNU", 5, struct.pack("<III4x", ISA_NEEDED, 4, 7))
    elfmaker.make_so(lib / "glibc-hwcaps/x86-64-v3/libnote.so.1", "libnote.so.1", notes=[note])  # in a PT_NOTE alone
    _cached(root)


def cuda_compat(root: Path) -> None:
    """A newer libcuda in the image, which enable-cuda-compat has put in front."""
    lib = _debian_frame(root)
    libraries(lib)
    driver.compat_library(root / COMPAT[1:], "575.57.08")
    library(root / COMPAT[1:] / "libnvidia-ptxjitcompiler.so.575.57.08", "libnvidia-ptxjitcompiler.so.1")
    rootfs.tree(root, f"symlink usr/local/cuda cuda-12.9\nsymlink {COMPAT}/libcuda.so.1 libcuda.so.575.57.08\n"
                f"symlink {COMPAT}/libcuda.so libcuda.so.1")  # fmt: skip
    library(root / "usr/local/cuda-12.9/lib64/libcudart.so.12.9.37", "libcudart.so.12")
    conf(root, "ld.so.conf.d/000_cuda.conf", "/usr/local/cuda/lib64")
    _cached(root)
    conf(root, Path(COMPAT_DROP_IN).relative_to("etc").as_posix(), COMPAT)


def cuda_compat_not_included(root: Path) -> None:
    """The same, where ld.so.conf does not include the drop-ins."""
    cuda_compat(root)
    conf(root, "ld.so.conf", "/usr/local/lib", MULTIARCH)


def without_etc(root: Path) -> None:
    libraries(root / "usr/lib")
    rootfs.tree(root, "symlink lib usr/lib\ndir proc\ndir tmp 1777")


def static_only(root: Path) -> None:
    """A program and nothing else."""
    rootfs.tree(root, "exec app \\x7fELF\ndir proc\ndir dev")


def stale(root: Path) -> None:
    """A cache that its image has outgrown: libraries were added and removed by hand, and one directory left the
    configuration."""
    lib = _debian_frame(root)
    libraries(lib)
    library(root / "opt/left/libleft.so.1", "libleft.so.1")
    library(root / "opt/left/libz.so.1", "libz.so.1")
    conf(root, "ld.so.conf.d/left.conf", "/opt/left")
    library(lib / "libremoved.so.1", "libremoved.so.1")
    _cached(root)
    for name in ("etc/ld.so.conf.d/left.conf", f"{MULTIARCH[1:]}/libremoved.so.1", f"{MULTIARCH[1:]}/libz.so.1.2.13"):
        os.unlink(root / name)
    library(lib / "libadded.so.1.1", "libadded.so.1")
    library(lib / "libstdc++.so.6.0.33", "libstdc++.so.6")


LAYOUTS = [
    Layout("debian minbase", MULTIARCH, minbase),
    Layout("debian, 1,155 libraries", MULTIARCH, large),
    Layout("this host", MULTIARCH, None),
    Layout("this host, without its cache", "/opt/driver", None, without=(judge.CACHE,)),
    Layout("ubuntu with i386", MULTIARCH, multiarch, I386),
    Layout("ubuntu with i386, without its cache", MULTIARCH, multiarch, I386, (judge.CACHE,)),
    Layout("rhel", LIB64, rhel),
    Layout("suse", LIB64, suse),
    Layout("alpine", "/usr/lib", _alpine),
    Layout("alpine with a path file", "/usr/lib/nvidia", alpine_with_path),
    Layout("distroless", MULTIARCH, distroless),
    Layout("nixos", NIX, nixos),
    Layout("nixos with a cache", NIX, nixos_with_cache),
    Layout("glibc-hwcaps", MULTIARCH, hwcaps),
    Layout("glibc-hwcaps, without its cache", MULTIARCH, hwcaps, without=(judge.CACHE,)),
    Layout("cuda-compat", MULTIARCH, cuda_compat),
    Layout("cuda-compat, not included", "/opt/driver", cuda_compat_not_included),
    Layout("no etc", "/usr/lib", without_etc),
    Layout("static only", "/usr/lib64", static_only),
    Layout("outgrown cache", MULTIARCH, stale),
]
