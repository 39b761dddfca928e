"""Files of graphics, wherever a distribution puts them."""

from __future__ import annotations

from pathlib import Path

import pytest
from lib.rootfs import tree
from unit.discover.looktools import LIB, V, by_name, driver, library, lines, link, look

from nvoci.discover.driver import find_driver, library_mount
from nvoci.discover.graphics import driver_links, graphics
from nvoci.discover.libraries import Libraries
from nvoci.discover.model import Mount
from nvoci.discover.node import Options
from nvoci.discover.search import Search

WAYLAND = "egl/egl_external_platform.d/10_nvidia_wayland.json"


def find(root: Path, options: Options | None = None, machine: str = "x86_64") -> tuple[dict[str, Mount], list[str]]:
    """Container path -> mount, and the problems."""
    if not list(root.rglob(f"libcuda.so.{V}")):
        driver(root)
    with look(root, machine=machine) as node:
        search = Search()
        libraries = Libraries(node, search)
        files = find_driver(node, search, libraries, None)
        found = graphics(node, search, libraries, files, options or Options())
    return by_name(found), lines(search, root)


# where it lies -> where it goes
CONFIGS = {
    "/usr/share/vulkan/icd.d/nvidia_icd.json": "/etc/vulkan/icd.d/nvidia_icd.json",
    "/etc/vulkan/icd.d/nvidia_icd.json": "/etc/vulkan/icd.d/nvidia_icd.json",
    "/vulkan/icd.d/nvidia_icd.json": "/etc/vulkan/icd.d/nvidia_icd.json",
    "/run/opengl-driver/share/vulkan/icd.d/nvidia_icd.x86_64.json": "/etc/vulkan/icd.d/nvidia_icd.x86_64.json",
    "/usr/share/vulkan/icd.d/nvidia_icd.x86_64.json": "/etc/vulkan/icd.d/nvidia_icd.x86_64.json",
    "/usr/share/vulkan/icd.d/nvidia_icd.i686.json": "/etc/vulkan/icd.d/nvidia_icd.i686.json",
    "/usr/share/vulkan/implicit_layer.d/nvidia_layers.json": "/etc/vulkan/implicit_layer.d/nvidia_layers.json",
    "/etc/vulkan/icd.d/nvidia_layers.json": "/etc/vulkan/icd.d/nvidia_layers.json",
    "/etc/glvnd/egl_vendor.d/10_nvidia.json": "/usr/share/glvnd/egl_vendor.d/10_nvidia.json",
    f"/usr/local/share/{WAYLAND}": f"/usr/share/{WAYLAND}",
    "/usr/share/nvidia/nvoptix.bin": "/usr/share/nvidia/nvoptix.bin",
    "/usr/share/X11/xorg.conf.d/nvidia-drm-outputclass.conf": "/usr/share/X11/xorg.conf.d/nvidia-drm-outputclass.conf",
    "/etc/OpenCL/vendors/nvidia.icd": "/etc/OpenCL/vendors/nvidia.icd",
    "/usr/share/OpenCL/vendors/nvidia.icd": "/etc/OpenCL/vendors/nvidia.icd",
}


@pytest.mark.parametrize("path", CONFIGS)
def test_configuration_goes_to_one_place(tmp_path: Path, path: str) -> None:
    tree(tmp_path, f"file {path} {{}}")
    found, problems = find(tmp_path)
    assert {CONFIGS[path]: f"{tmp_path}{path}"} == {to: mount.host_path for to, mount in found.items()}
    assert all(mount.kind == "config" for mount in found.values())
    assert problems == []


CAPABILITIES = {
    "/etc/OpenCL/vendors/nvidia.icd": ("compute",),
    "/usr/share/X11/xorg.conf.d/10-nvidia.conf": ("display",),
    "/usr/share/nvidia/nvoptix.bin": ("graphics",),
    "/etc/vulkan/icd.d/nvidia_icd.json": ("graphics", "display"),
    "/etc/vulkan/icd.d/nvidia_icd.i686.json": ("graphics", "compat32"),
}


def test_headless_vulkan_needs_no_display(tmp_path: Path) -> None:
    tree(tmp_path, "\n".join(f"file {path} x" for path in CAPABILITIES))
    found, _ = find(tmp_path)
    assert {path: found[path].capabilities for path in CAPABILITIES} == CAPABILITIES


def test_the_first_directory_wins_and_one_file_goes_once(tmp_path: Path) -> None:
    tree(tmp_path, "file etc/vulkan/icd.d/nvidia_icd.json a\nfile usr/share/vulkan/icd.d/nvidia_icd.json b")
    link(tmp_path, "/usr/share/vulkan/icd.d/nvidia_icd.x86_64.json", "/etc/vulkan/icd.d/nvidia_icd.json")
    found, _ = find(tmp_path)
    assert {m.host_path for m in found.values()} == {f"{tmp_path}/etc/vulkan/icd.d/nvidia_icd.json"}


def test_the_icd_of_another_machine_is_not_looked_for(tmp_path: Path) -> None:
    tree(
        tmp_path,
        "file usr/share/vulkan/icd.d/nvidia_icd.aarch64.json x\nfile usr/share/vulkan/icd.d/nvidia_icd.x86_64.json x",
    )
    driver(tmp_path, machine="aarch64", directory="/usr/lib64")
    assert list(find(tmp_path)[0]) == ["/etc/vulkan/icd.d/nvidia_icd.x86_64.json"]
    assert list(find(tmp_path, machine="aarch64")[0]) == ["/etc/vulkan/icd.d/nvidia_icd.aarch64.json"]


def test_a_search_path_and_data_directories_may_be_set(tmp_path: Path) -> None:
    tree(
        tmp_path,
        "file mine/glvnd/egl_vendor.d/10_nvidia.json x\nfile data/nvidia/nvoptix.bin x\nfile etc/nvidia/nvoptix.bin y",
    )
    found, _ = find(tmp_path, Options(config_search_path=["/mine"]))
    assert list(found) == ["/usr/share/glvnd/egl_vendor.d/10_nvidia.json"]
    found, _ = find(tmp_path, Options(data_dirs=["/data"]))
    assert found["/usr/share/nvidia/nvoptix.bin"].host_path == f"{tmp_path}/etc/nvidia/nvoptix.bin"


BAD = {
    "a FIFO": ("fifo etc/nvidia/nvoptix.bin", "a FIFO, not a regular file"),
    "a directory": ("dir etc/nvidia/nvoptix.bin", "a directory, not a regular file"),
    "a dangling link": ("symlink etc/nvidia/nvoptix.bin /nowhere", "a link that leads nowhere"),
    "a loop": ("symlink etc/nvidia/nvoptix.bin nvoptix.bin", "ELOOP"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_file_is_a_problem_and_the_next_directory_counts(tmp_path: Path, case: str) -> None:
    spec, words = BAD[case]
    tree(tmp_path, spec + "\nfile usr/share/nvidia/nvoptix.bin x")
    found, (told,) = find(tmp_path)
    assert found["/usr/share/nvidia/nvoptix.bin"].host_path == f"{tmp_path}/usr/share/nvidia/nvoptix.bin"
    assert told.startswith(f"use config /etc/nvidia/nvoptix.bin: {words} (")


XORG = {
    "Ubuntu": f"{LIB}/nvidia/xorg",
    "Debian": "/usr/lib/xorg/modules/drivers",
    "RHEL": "/usr/lib64/xorg/modules/drivers",
    "installer": f"{LIB}/xorg/modules/drivers",
    "updates": "/usr/lib/xorg/modules/updates/drivers",
    "X11R6": "/usr/X11R6/lib/modules/drivers",
}


@pytest.mark.parametrize("layout", XORG)
def test_xorg_modules_go_to_where_they_lie(tmp_path: Path, layout: str) -> None:
    directory = XORG[layout]
    library(tmp_path, f"{directory}/nvidia_drv.so")
    library(tmp_path, f"{directory}/libglxserver_nvidia.so.{V}", "libglxserver_nvidia.so")
    found, _ = find(tmp_path)
    assert list(found) == [f"{directory}/nvidia_drv.so", f"{directory}/libglxserver_nvidia.so.{V}"]
    glx = found[f"{directory}/libglxserver_nvidia.so.{V}"]
    assert glx.links == ((f"libglxserver_nvidia.so.{V}", f"{directory}/libglxserver_nvidia.so"),)
    assert (glx.kind, glx.capabilities) == ("file", ("display",))  # no folder for ld.so.cache


def test_platform_libraries_have_versions_of_their_own(tmp_path: Path) -> None:
    driver(tmp_path)
    for name in ("gbm.so.1.1.1", "wayland.so.1.1.13", "wayland2.so.1.0.0", "xcb.so.1.0.1", "xlib.so.1.0.1"):
        library(tmp_path, f"{LIB}/libnvidia-egl-{name}", f"libnvidia-egl-{name[: name.index('.so') + 5]}")
        link(tmp_path, f"{LIB}/libnvidia-egl-{name[: name.index('.so') + 5]}", f"libnvidia-egl-{name}")
    found, _ = find(tmp_path)
    assert len(found) == 5
    assert {m.kind for m in found.values()} == {"library"}
    assert {m.capabilities for m in found.values()} == {("graphics",)}
    assert {m.links for m in found.values()} == {()}


def test_links_by_which_other_libraries_load_the_driver(tmp_path: Path) -> None:
    driver(tmp_path)
    for stem in ("allocator", "vulkan-producer"):
        library(tmp_path, f"{LIB}/libnvidia-{stem}.so.{V}", f"libnvidia-{stem}.so.{V}")
    with look(tmp_path) as node:
        search = Search()
        libraries = find_driver(node, search, Libraries(node, search), None).libraries
        mounts = by_name([library_mount(node, each, driver_links(each)) for each in libraries])
    gbm = ("../libnvidia-allocator.so.1", f"{LIB}/gbm/nvidia-drm_gbm.so")
    assert mounts[f"{LIB}/libnvidia-allocator.so.{V}"].links == (gbm,)
    producer = (f"libnvidia-vulkan-producer.so.{V}", f"{LIB}/libnvidia-vulkan-producer.so")
    assert mounts[f"{LIB}/libnvidia-vulkan-producer.so.{V}"].links == (producer,)


def test_an_absolute_link_of_a_driver_root_is_mounted_from_inside(tmp_path: Path) -> None:
    root = tmp_path / "drv"
    driver(root)
    tree(root, "file opt/share/nvidia/nvoptix.bin x\nsymlink usr/share /opt/share")
    found, _ = find(root)
    assert found["/usr/share/nvidia/nvoptix.bin"].host_path == f"{root}/opt/share/nvidia/nvoptix.bin"
