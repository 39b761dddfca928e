"""What scripts/bench measures: the cases, on which image each runs, and what each must have done.

Standard library only, Python >= 3.9.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Callable, NamedTuple

from _bench_images import COMPAT, DRIVER, LDCONFIG, LIBRARIES, PARAMS, driver_sonames, listed

PROFILE = "etc/nvidia/nvidia-application-profiles-rc.d/10-container.conf"
SMALL, LARGE = 73, 1155  # lines of `ldconfig -p`: a minimal Debian, an image with a CUDA toolkit and a framework
MANY = 5_000, 10_000
START, LDCACHE, LINEAR, DISCOVER, CDI, PRESTART = "start", "ldcache", "many", "discover", "cdi", "prestart"
GROUPS = {
    START: "small hooks",
    LDCACHE: "update-ldcache alone and with the others, by both engines",
    LINEAR: "update-ldcache on 5,000 and 10,000 libraries",
    DISCOVER: "a look at a simulated node of 8 GPUs, and an inventory of it",
    CDI: "containers started by runc with GPUs by CDI name, and specifications made and read",
    PRESTART: "the prestart hook on a simulated node of 8 GPUs",
}
START_RSS_MIB, LDCACHE_RSS_MIB, DISCOVER_RSS_MIB = 20.0, 24.0, 24.0


class Case(NamedTuple):
    """Arguments of nvidia-cdi-hook, the proof that it did its work, and what is to be reached: the ratio (0: for
    information) and the peak of memory. libraries: of the image; with `driver` the runtime has just made the mount
    targets of a driver's libraries and mounted them. words of DISCOVER: the name of a program that proves its own work;
    of CDI and PRESTART: see _bench_cdi and _bench_prestart."""

    name: str
    what: str
    words: tuple[str, ...]
    done: Callable[[Path], bool]
    target: float
    group: str = START
    libraries: int = SMALL
    driver: bool = False
    rss_mib: float = START_RSS_MIB


def _links(count: int) -> list[str]:
    """`--link` options of the kind a driver needs: most beside the libraries, some where plugins and DRM look."""
    folders = (LIBRARIES,) * 5 + (f"{LIBRARIES}/gbm", f"{LIBRARIES}/vdpau", "dev/dri/by-path")
    words = []
    for number in range(count):
        words += ["--link", f"libnvidia-{number}.so.1::/{folders[number % len(folders)]}/libnvidia-{number}.so"]
    return words


def _driver_links(count: int) -> list[str]:
    """`--link` options of a CDI spec: a development link for each library of the driver, and those of its plugins."""
    links = [f"{soname}::/{LIBRARIES}/{file.partition('.so')[0]}.so" for file, soname in driver_sonames().items()]
    links.append(f"libGLX_nvidia.so.{DRIVER}::/{LIBRARIES}/libGLX_indirect.so.0")
    links.append(f"../libnvidia-allocator.so.1::/{LIBRARIES}/gbm/nvidia-drm_gbm.so")
    links += [f"../card{number}::/dev/dri/by-path/pci-0000:0{number}:00.0-card" for number in range(count - len(links))]
    return [word for link in links[:count] for word in ("--link", link)]


def _are_links(words: list[str]) -> Callable[[Path], bool]:
    target, _, path = words[-1].partition("::/")
    return lambda root: os.path.lexists(root / path) and os.readlink(root / path) == target


def _mode_set(root: Path) -> bool:
    return stat.S_IMODE((root / "dev/dri").stat().st_mode) == 0o755


def _profile(root: Path) -> bool:
    path = root / PROFILE
    return path.exists() and "0x3" in path.read_text()


def _compat(root: Path) -> bool:
    found = list((root / "etc/ld.so.conf.d").glob("00-compat-*.conf"))
    return [path.read_text() for path in found] == [f"/{COMPAT}\n"]


def _params(root: Path) -> bool:
    return "ModifyDeviceFiles: 0\n" in (root / PARAMS).read_text()


def _all(*proofs: Callable[[Path], bool]) -> Callable[[Path], bool]:
    return lambda root: all(proof(root) for proof in proofs)


def _cached(libraries: int, *, compat: bool = False) -> Callable[[Path], bool]:
    """ldconfig lists what the image had and the driver's libraries; each soname leads to the very file mounted."""

    def proof(root: Path) -> bool:
        found = listed(root)
        for file, soname in driver_sonames().items():
            path = found.get(soname, "")
            if compat and soname == "libcuda.so.1":
                if path != f"/{COMPAT}/{soname}":
                    return False
            elif os.path.basename(os.path.realpath(root / path[1:])) != file or (root / path[1:]).stat().st_size == 0:
                return False
        return len(found) >= libraries + len(driver_sonames()) and "libc.so.6" in found

    return proof


_CHMOD = ("chmod", "--mode", "755", "--path", "/dev/dri")
_COMPAT = ("enable-cuda-compat", "--host-driver-version", DRIVER, "--host-cuda-version", "12.4")
_OTHERS = ("--", "disable-device-node-modification", "--", "update-application-profile")
_UPDATE = ("update-ldcache", "--folder", f"/{LIBRARIES}")
_BY_LDCONFIG = (*_UPDATE, "--engine", "ldconfig", "--ldconfig-path", LDCONFIG)
_RUN = ("run", "--", "create-symlinks", *_links(32), "--", *_CHMOD, "--", *_COMPAT, *_OTHERS)
_SIX = ("run", "--", "create-symlinks", *_driver_links(32), "--", *_CHMOD, "--", *_COMPAT, "--", *_UPDATE, *_OTHERS)


def _ldcache(name: str, what: str, words: tuple[str, ...], target: float, libraries: int, group: str = LDCACHE) -> Case:
    proof = _cached(libraries)
    if words is _SIX:
        others = _mode_set, _profile, _compat, _params
        proof = _all(_cached(libraries, compat=True), _are_links(_driver_links(32)), *others)
    return Case(name, what, words, proof, target, group, libraries, True, LDCACHE_RSS_MIB)


CASES = (
    Case("noop", "noop", ("noop",), lambda root: True, 1.6),
    Case("link", "create-symlinks, one link", ("create-symlinks", *_links(1)), _are_links(_links(1)), 1.6),
    Case("chmod", "chmod, one path", _CHMOD, _mode_set, 1.6),
    Case("profile", "update-application-profile", ("update-application-profile",), _profile, 1.6),
    Case("compat", "enable-cuda-compat, it applies", _COMPAT, _compat, 1.6),
    Case("run", "`run`, five hooks, 32 links", _RUN,
         _all(_are_links(_links(32)), _mode_set, _profile, _compat, _params), 1.9),
    Case("links", "create-symlinks, 1,000 links", ("create-symlinks", *_links(1000)), _are_links(_links(1000)), 6.0),
    _ldcache("ldcache", "update-ldcache, 73 libraries", _UPDATE, 2.1, SMALL),
    _ldcache("ldcache-large", "update-ldcache, 1,155 libraries", _UPDATE, 4.0, LARGE),
    _ldcache("ldconfig", "by ldconfig, 73 libraries", _BY_LDCONFIG, 0.0, SMALL),
    _ldcache("ldconfig-large", "by ldconfig, 1,155 libraries", _BY_LDCONFIG, 0.0, LARGE),
    _ldcache("six", "`run`, six hooks, 73 libraries", _SIX, 2.6, SMALL),
    _ldcache("six-large", "`run`, six hooks, 1,155 libr.", _SIX, 4.5, LARGE),
    _ldcache("ldcache-half", "update-ldcache, 5,000 libraries", _UPDATE, 0.0, MANY[0], LINEAR),
    _ldcache("ldcache-many", "update-ldcache, 10^4 libraries", _UPDATE, 25.0, MANY[1], LINEAR),
    Case("discover", "discovery, 8 GPUs", ("discover",), lambda root: True, 12.0, DISCOVER, rss_mib=DISCOVER_RSS_MIB),
    Case("info", "nvoci info --json, 8 GPUs", ("info",), lambda root: True, 0.0, DISCOVER, rss_mib=DISCOVER_RSS_MIB),
    Case("inventory", "inventory that holds, used", ("inventory",), lambda root: True, 0.0, DISCOVER),
)  # fmt: skip


class Relation(NamedTuple):
    """A ratio between two cases of one stage, and the most it may be. net: of what each takes beyond the floor."""

    what: str
    case: str
    to: str
    most: float
    net: bool


RELATIONS = (
    Relation("builtin engine to ldconfig's, 1,155 libraries", "ldcache-large", "ldconfig-large", 0.4, False),
    Relation("10,000 libraries to 5,000, less the floor", "ldcache-many", "ldcache-half", 2.2, True),
)
