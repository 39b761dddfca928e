"""A program in a real container dlopens every injected soname, whatever the layout, on writable and read-only roots."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from diff import layouts, story
from diff.differences import BUILTIN, LDCONFIG
from lib import driver, hookproc, rootfs, runtimes, session
from lib.bundle import make_bundle

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc to build the probe with")]
PROBE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        void *handle = dlopen(argv[i], RTLD_NOW | RTLD_LOCAL);
        struct link_map *map = NULL;
        if (handle && !dlinfo(handle, RTLD_DI_LINKMAP, &map)) printf("%s\t%s\n", argv[i], map->l_name);
        else printf("%s\t!%s\n", argv[i], dlerror());
    }
    return 0;
}
"""


@pytest.fixture(scope="session")
def probe() -> Path:
    out = session.new_dir("probe") / "probe"
    subprocess.run(["gcc", "-O1", "-x", "c", "-o", out, "-", "-ldl"], input=PROBE.encode(), check=True)
    return out


def _loader_and_libc(root: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("libc.so.6", "libdl.so.2"):
        (folder / name).unlink(missing_ok=True)
        shutil.copy2(os.path.realpath(f"/lib/{rootfs.TRIPLET}/{name}"), folder / name)
    loader = root / rootfs.LOADER[1:]
    loader.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(os.path.realpath(rootfs.LOADER), loader)


def debian(root: Path) -> None:
    rootfs.glibc_rootfs(root)


def lib64(root: Path) -> None:
    """The loader is Debian's, which does not search lib64 by itself: all depends on the cache."""
    layouts._lib64_frame(root)
    _loader_and_libc(root, root / "usr/lib64")
    layouts.conf(root, "ld.so.conf", "include ld.so.conf.d/*.conf")
    layouts.conf(root, "ld.so.conf.d/own.conf", "/opt/own")
    layouts._cached_with(root, "/lib64", "/usr/lib64")


def distroless(root: Path) -> None:
    layouts.distroless(root)
    _loader_and_libc(root, root / layouts.MULTIARCH[1:])


def nixos(root: Path) -> None:
    """libc is found by its place in the store alone: the cache names it."""
    layouts.nixos_with_cache(root)
    store = next(root.glob("nix/store/*glibc*/lib"))
    _loader_and_libc(root, store)


IMAGES = {
    "debian": (debian, layouts.MULTIARCH),
    "debian, another folder": (debian, "/opt/driver/lib"),
    "lib64": (lib64, layouts.LIB64),
    "distroless": (distroless, layouts.MULTIARCH),
    "nixos": (nixos, layouts.NIX),
}

# ldconfig forgets what its configuration does not name; here that is libc.
CASES = [(name, engine) for name in IMAGES for engine in (BUILTIN, LDCONFIG) if (name, engine) != ("nixos", LDCONFIG)]


def start(runtime: str, root: Path, made: driver.Driver, folder: str, engine: str, readonly: bool) -> dict[str, str]:
    """What dlopen found by each soname: {soname: path, or ! and the loader's words}."""
    wanted = [*sonames(made), *(["libcuda.so"] if engine == BUILTIN else [])]
    entry = hookproc.hook_entry(story.words(engine, [folder]))
    bundle = make_bundle(session.new_dir("bundle"), root, ["/probe", *wanted], {"createContainer": [entry]},
                         mounts=made.mounts(folder), readonly=readonly)  # fmt: skip
    result = runtimes.Runtime(runtime).run(bundle)
    assert (result.rc, result.stderr, result.survivors) == (0, "", [])
    found = dict(line.split("\t", 1) for line in result.stdout.splitlines())
    assert list(found) == wanted
    return found


def sonames(made: driver.Driver) -> Sequence[str]:
    return [soname.format(v=made.version) for soname in driver.SONAMES.values()]


@pytest.fixture(params=runtimes.NAMES)
def runtime(request: pytest.FixtureRequest) -> str:
    if not runtimes.available(request.param):
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


@pytest.mark.parametrize(("name", "engine"), CASES)
def test_every_injected_soname_loads(
    node: story.Node, probe: Path, tmp_path: Path, runtime: str, name: str, engine: str
) -> None:
    """Started, stopped, and started again with a newer driver."""
    make, folder = IMAGES[name]
    root = tmp_path / "root"
    make(root)
    shutil.copy2(probe, root / "probe")
    for version in (story.OLD, story.NEW):
        made = node.driver(version)
        seen = start(runtime, root, made, folder, engine, readonly=False)
        assert {s: os.path.dirname(p) for s, p in seen.items()} == dict.fromkeys(seen, spelt(root, folder))
        for soname in sonames(made):
            assert (root / folder[1:] / soname).resolve().name.endswith(f".so.{version}")


def spelt(root: Path, folder: str) -> str:
    """Debian's configuration names /lib before /usr/lib, which is the same directory where /usr is merged."""
    merged = folder.removeprefix("/usr")
    return merged if merged != folder and (root / "lib").is_symlink() and "lib" in merged else folder


@pytest.mark.parametrize(("name", "engine"), [c for c in CASES if c[0] in {"debian", "lib64", "nixos"}])
def test_every_injected_soname_loads_on_a_read_only_root(
    node: story.Node, probe: Path, tmp_path: Path, runtime: str, name: str, engine: str
) -> None:
    """runc makes it read-only after the hooks, crun before: there links cannot be made, and the cache is a mount."""
    make, folder = IMAGES[name]
    root, made = tmp_path / "root", node.driver(story.OLD)
    make(root)
    shutil.copy2(probe, root / "probe")
    rootfs.tree(root, "".join(f"file {folder}/{p.name}\n" for p in made.libraries))
    rootfs.tree(root, "dir proc\ndir dev\ndir sys\ndir tmp")
    for _ in range(2):
        seen = start(runtime, root, made, folder, engine, readonly=True)
        assert not [s for s, path in seen.items() if path.startswith("!")], seen
        names = {os.path.basename(path) for path in seen.values()}
        assert len(names) >= len(set(sonames(made)))
