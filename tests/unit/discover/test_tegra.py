"""Tegra systems: what the CSV files name, and nothing that is not what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
from lib.rootfs import tree
from unit.discover.looktools import answer, by_name, gpu, library, lines, link, look, needs_mknod, paths

from nvoci.discover.found import Discovery, discover
from nvoci.discover.model import Gpu
from nvoci.discover.node import Options
from nvoci.discover.search import Search
from nvoci.discover.tegra import Tegra, parse

CSV = "etc/nvidia-container-runtime/host-files-for-container.d"
LIB = "/usr/lib/aarch64-linux-gnu/tegra"
THOR = gpu(0, name="NVIDIA Thor", pci_bus_id="")
DISCRETE = gpu(1, name="NVIDIA RTX 6000 Ada Generation", pci_bus_id="0000:07:00.0")


def csv(root: Path, text: str, name: str = "drivers") -> Path:
    path = root / CSV / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return root


def read(root: Path, text: str, options: Options | None = None) -> tuple[Tegra, list[str]]:
    """What comes of one file, and the problems."""
    csv(root, text)
    with look(root) as node:
        search = Search()
        found = Tegra(node, search, options or Options(csv_files=[f"/{CSV}/drivers.csv"]))
        found.mounts()
    return found, lines(search, root)


def mounts(root: Path, text: str, options: Options | None = None) -> dict[str, tuple[str, tuple[tuple[str, str], ...]]]:
    """Container path -> (kind, links)."""
    csv(root, text)
    with look(root) as node:
        found = Tegra(node, Search(), options or Options(csv_files=[f"/{CSV}/drivers.csv"])).mounts()
    return {path: (mount.kind, mount.links) for path, mount in by_name(found).items()}


def find(root: Path, gpus: tuple[Gpu, ...] | None) -> Discovery:
    with look(root) as node:
        return discover(node, answer(gpus) if gpus is not None else None, Options("csv"))


LINES = {
    "lib, /a": [("lib", "/a")],
    "  dev  ,  /dev/x  ": [("dev", "/dev/x")],
    "dir,/a,b": [("dir", "/a,b")],
    "sym, /a\nlib, /b": [("sym", "/a"), ("lib", "/b")],
    "lib, /a\r\nlib, /b\r\n": [("lib", "/a"), ("lib", "/b")],
    "# lib, /a": [],
    "bogus, /a": [],
    "LIB, /a": [],
    "lib /a": [],
    "lib,": [],
    "": [],
}


@pytest.mark.parametrize("text", LINES)
def test_a_line_is_a_type_and_a_path(text: str) -> None:
    assert parse(text) == LINES[text]


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_library_is_mounted_where_its_links_lead(tmp_path: Path) -> None:
    library(tmp_path, f"{LIB}/libnvcuda.so.1.1", "libnvcuda.so.1")
    link(tmp_path, f"{LIB}/libnvcuda.so.1", "libnvcuda.so.1.1")
    link(tmp_path, "/usr/lib/libnvcuda.so.1", f"{LIB}/libnvcuda.so.1")
    found = mounts(tmp_path, f"lib, /usr/lib/libnvcuda.so.1\nlib, {LIB}/libnvcuda.so.1.1")
    assert found == {f"{LIB}/libnvcuda.so.1.1": ("library", (("libnvcuda.so.1.1", f"{LIB}/libnvcuda.so.1"),))}


def test_other_files_come_as_libraries_too(tmp_path: Path) -> None:
    tree(tmp_path, "file usr/share/x.json {}")
    assert mounts(tmp_path, "lib, /usr/share/x.json") == {"/usr/share/x.json": ("file", ())}


def test_patterns_name_many_files(tmp_path: Path) -> None:
    for name in ("liba.so", "libb.so", "other.so"):
        library(tmp_path, f"{LIB}/{name}")
    assert list(mounts(tmp_path, f"lib, {LIB}/lib*.so")) == [f"{LIB}/liba.so", f"{LIB}/libb.so"]


def test_a_symlink_brings_its_target_and_every_link_on_the_way(tmp_path: Path) -> None:
    library(tmp_path, f"{LIB}/libx.so.1.0", "libx.so.1.0")
    link(tmp_path, f"{LIB}/libx.so", "libx.so.1.0")
    link(tmp_path, "/usr/lib/libx.so", f"{LIB}/libx.so")
    link(tmp_path, "/usr/lib/y.so", "../lib/libx.so")
    (where,) = mounts(tmp_path, "sym, /usr/lib/y.so").items()
    assert where[0] == f"{LIB}/libx.so.1.0"
    assert set(where[1][1]) == {
        ("../lib/libx.so", "/usr/lib/y.so"),
        (f"{LIB}/libx.so", "/usr/lib/libx.so"),
        ("libx.so.1.0", f"{LIB}/libx.so"),
    }


def test_where_rule_and_list_differ_the_link_of_the_host_is_made(tmp_path: Path) -> None:
    library(tmp_path, f"{LIB}/libcuda.so.1.1", "libcuda.so.1")
    link(tmp_path, f"{LIB}/libcuda.so", "libcuda.so.1.1")
    lib = f"lib, {LIB}/libcuda.so.1.1\n"
    assert mounts(tmp_path, lib)[f"{LIB}/libcuda.so.1.1"][1] == (("libcuda.so.1", f"{LIB}/libcuda.so"),)
    both = mounts(tmp_path, lib + f"sym, {LIB}/libcuda.so")
    assert both[f"{LIB}/libcuda.so.1.1"][1] == (("libcuda.so.1.1", f"{LIB}/libcuda.so"),)


def test_what_the_reference_makes_in_two_steps_is_kept_as_two_lists(tmp_path: Path) -> None:
    library(tmp_path, f"{LIB}/libcuda.so.1.1", "libcuda.so.1")
    link(tmp_path, f"{LIB}/libcuda.so", "libcuda.so.1.1")
    library(tmp_path, f"{LIB}/libx.so.1.0", "libx.so.1")
    for name in ("libx.so", "libx.so.1"):
        link(tmp_path, f"{LIB}/{name}", "libx.so.1.0")
    csv(tmp_path, f"sym, {LIB}/libx.so\nsym, {LIB}/libcuda.so\nlib, {LIB}/libcuda.so.1.1\nlib, {LIB}/libcuda.so")
    rules, lists = find(tmp_path, None).link_lists
    assert list(rules) == [("libcuda.so.1", f"{LIB}/libcuda.so")]
    # a library that only a link leads to has no links by rule there
    assert list(lists) == [("libx.so.1.0", f"{LIB}/libx.so"), ("libcuda.so.1.1", f"{LIB}/libcuda.so")]
    assert find(csv(tmp_path, "dir, /usr/lib"), None).link_lists == ()


IGNORED = {
    f"{LIB}/libx.so": True,
    "**/libx.so": True,
    "**/lib*.so": True,
    "/usr/lib/*/tegra/libx.so": True,
    "/usr/lib/*": False,
    "**/liby.so": False,
    "libx.so": False,
}


@pytest.mark.parametrize("pattern", IGNORED)
def test_patterns_take_symlinks_out(tmp_path: Path, pattern: str) -> None:
    library(tmp_path, f"{LIB}/libx.so.1.0")
    link(tmp_path, f"{LIB}/libx.so", "libx.so.1.0")
    options = Options(csv_files=[f"/{CSV}/drivers.csv"], csv_ignore=[pattern])
    assert (mounts(tmp_path, f"sym, {LIB}/libx.so", options) == {}) is IGNORED[pattern]


def test_a_library_search_path_comes_before_the_root(tmp_path: Path) -> None:
    for top in ("", "/other"):
        library(tmp_path, f"{top}{LIB}/liba.so")
    library(tmp_path, f"{LIB}/libb.so")
    options = Options(csv_files=[f"/{CSV}/drivers.csv"], library_search_path=["/other"])
    found = mounts(tmp_path, f"lib, {LIB}/liba.so\nlib, {LIB}/libb.so", options)
    assert list(found) == [f"/other{LIB}/liba.so", f"{LIB}/libb.so"]


def test_directories_are_mounted_by_their_own_name(tmp_path: Path) -> None:
    tree(tmp_path, "dir usr/lib/firmware/tegra19x\nsymlink lib usr/lib")
    assert mounts(tmp_path, "dir, /lib/firmware/tegra19x") == {"/lib/firmware/tegra19x": ("directory", ())}


BAD = {
    "relative": ("lib, etc/passwd", "use CSV entry lib, etc/passwd: not a plain absolute path (correct the CSV file)"),
    "out of the root": ("lib, /usr/../../etc/x", "not a plain absolute path"),
    "with a separator": ("sym, /a::/b", "not a plain absolute path"),
    "control character": ("lib, /a\x1b[2J", "not a plain absolute path"),
    "a FIFO as a library": ("lib, /fifo", "use csv lib /fifo: a FIFO, not a regular file"),
    "a FIFO as a symlink": ("sym, /fifo", "use CSV entry /fifo: a FIFO, not a regular file"),
    "a file as a directory": ("dir, /etc/x", "use csv dir /etc/x: a regular file, not a directory"),
    "a link that loops": ("sym, /loop", "use csv sym /loop: ELOOP"),
    "a dangling link": ("sym, /dangling", "use csv sym /dangling: a link that leads nowhere"),
    "a file as a device": ("dev, /etc/x", "use device /etc/x: a regular file, not a character device"),
    "missing": (
        "lib, /gone\nlib, /gone2\ndev, /dev/gone3\nsym, /gone4",
        "4 of 4 entries are not there: /gone, /gone2, /dev/gone3, … (usual",
    ),
    "nothing matches": ("lib, /gone*.so", "1 of 1 entries are not there: /gone*.so (usual"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_entry_is_one_line_and_left_out(tmp_path: Path, case: str) -> None:
    text, words = BAD[case]
    tree(tmp_path, "fifo fifo\nfile etc/x x\nsymlink loop loop\nsymlink dangling gone")
    found, (told,) = read(tmp_path, text)
    assert words in told
    assert told.isprintable()
    assert found.devices == {}
    assert mounts(tmp_path, text) == {}


# what there is, what is told of it; each once
FILES = {
    "missing": ("dir etc", "ENOENT ("),
    "no directory": ("file etc/nvidia-container-runtime x", "ENOTDIR ("),
    "empty": (f"file {CSV}/drivers.csv ", "no entries ("),
    "a FIFO": (f"fifo {CSV}/drivers.csv", ""),
    "endless": (f"sparse {CSV}/drivers.csv 5M", "EFBIG: larger than "),
    "not text": (f"file {CSV}/drivers.csv \\xff\\xfe\\n", "no entries ("),
}


@pytest.mark.parametrize("case", FILES)
def test_a_list_that_is_none_is_told(tmp_path: Path, case: str) -> None:
    line, why = FILES[case]
    tree(tmp_path, line)
    with look(tmp_path) as node:
        search = Search()
        assert Tegra(node, search, Options(csv_files=[f"/{CSV}/drivers.csv"])).mounts() == []
    (told,) = [each for each in lines(search, tmp_path) if "drivers.csv" in each]
    assert told.startswith(f"read CSV file /{CSV}/drivers.csv: {why}")


# -- devices ----------------------------------------------------------------------------------------------------------

NODES = """
char dev/nvidia0 195 0
char dev/nvidia1 195 1
char dev/nvidia2 195 2
char dev/nvmap 500 3 660
char dev/nvidiactl 195 255
"""
LIST = "dev, /dev/nvidia0\ndev, /dev/nvidia1\ndev, /dev/nvmap\ndev, /dev/nvidiactl\ndev, /dev/dri/*\n"


@needs_mknod
def test_device_patterns_name_nodes_and_no_links(tmp_path: Path) -> None:
    tree(tmp_path, "char dev/dri/card0 226 0\nsymlink dev/dri/card1 card0\nfile dev/dri/x x")
    found, problems = read(tmp_path, "dev, /dev/dri/card*")
    assert list(found.devices) == ["/dev/dri/card0"]
    assert len(problems) == 1
    assert "a link, not a character device" in problems[0]


@needs_mknod
def test_without_nvml_all_is_one_device(tmp_path: Path) -> None:
    found = find(csv(tree(tmp_path, NODES), LIST, "devices"), None).found
    assert paths(found.device_nodes, "tegra", "") == ["/dev/nvidia0", "/dev/nvidia1", "/dev/nvmap", "/dev/nvidiactl"]
    assert found.hooks == ()


@needs_mknod
def test_the_only_gpu_owns_it_all(tmp_path: Path) -> None:
    orin = gpu(0, name="Orin (nvgpu)", pci_bus_id="")
    found = find(csv(tree(tmp_path, NODES), LIST, "devices"), (orin,)).found
    assert {n.owner for n in found.device_nodes} == {orin.uuid}
    (hook,) = found.hooks
    assert hook.name == "enable-cuda-compat"
    assert hook.args == ("--host-cuda-version=12.4", "--cuda-compat-container-root=/usr/local/cuda/compat_orin")


@needs_mknod
def test_integrated_and_discrete_gpu_are_told_apart(tmp_path: Path) -> None:
    drm = "char dev/dri/card0 226 0\nchar dev/dri/card1 226 1\ndir sys/bus/pci/devices/0000:07:00.0/drm/card1"
    found = find(csv(tree(tmp_path, f"{NODES}\n{drm}"), LIST, "devices"), (THOR, DISCRETE)).found
    assert sorted(paths(found.device_nodes, owner=THOR.uuid)) == [
        "/dev/dri/card0",
        "/dev/nvidia0",
        "/dev/nvidia2",
        "/dev/nvidiactl",
        "/dev/nvmap",
    ]
    assert sorted(paths(found.device_nodes, owner=DISCRETE.uuid)) == [
        "/dev/dri/card0",
        "/dev/dri/card1",
        "/dev/nvidia1",
        "/dev/nvidiactl",
        "/dev/nvmap",
    ]
    assert paths(found.device_nodes, owner="") == []
    assert found.gpus[1].drm_nodes == ("/dev/dri/card1",)
    assert found.hooks[0].args == ("--host-cuda-version=12.4",)


@needs_mknod
def test_all_of_it_is_one_device_if_that_is_asked_for(tmp_path: Path) -> None:
    root = csv(tree(tmp_path, NODES), LIST, "devices")
    with look(root) as node:
        seen = discover(node, answer((THOR, DISCRETE)), Options("csv", single_device=True))
    listed = ["/dev/nvidia0", "/dev/nvidia1", "/dev/nvmap", "/dev/nvidiactl"]
    assert paths(seen.found.device_nodes, owner="") == listed
    assert len(seen.found.device_nodes) == 4
    assert not any(each.startswith("tell GPUs apart") for each in lines(seen))


@needs_mknod
@pytest.mark.parametrize("gpus", [(THOR, DISCRETE.replace(mig_capable=True, mig_enabled=True)), (DISCRETE, gpu(2))])
def test_gpus_that_can_not_be_told_apart_are_one_device(tmp_path: Path, gpus: tuple[Gpu, ...]) -> None:
    found = find(csv(tree(tmp_path, NODES), LIST, "devices"), gpus)
    assert {n.owner for n in found.found.device_nodes} == {""}
    assert any(each.startswith("tell GPUs apart ") for each in lines(found))
