"""Libraries of a driver root: found in whatever directory, for this machine only, with the links they need."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from lib.rootfs import tree
from unit.discover.looktools import LIB, V, built, driver, library, lines, link, look, needs_gcc, needs_mknod

from nvoci.discover import libnames
from nvoci.discover.libraries import Libraries, Library, so_links
from nvoci.discover.search import Search

LDCONFIG = "/sbin/ldconfig"


def libraries(root: Path, act: Callable[[Libraries], object] | None = None, machine: str = "x86_64") -> list[Library]:
    """All of version V."""
    with look(root, machine=machine) as node:
        found = Libraries(node, Search())
        if act:
            act(found)
        return found.of_version(V)


def names(found: list[Library]) -> list[str]:
    return [each.path for each in found]


# -- names ------------------------------------------------------------------------------------------------------------

VERSIONS = {
    "libcuda.so.550.163.01": "550.163.01",
    "libcuda.so.390.116": "390.116",
    "libnvidia-glcore.so.36.4.0": "36.4.0",
    "libcuda.so.1.1": "",  # WSL and Tegra: no version of a driver
    "libcuda.so.1": "",
    "libcuda.so": "",
    "libcuda.so.550.163.01-dev": "",
    "libcuda.so.550.163.01.1.1": "",
    "libcuda.so.\u0665\u0665\u0660.\u0661": "",
    "nvidia-smi": "",
}


@pytest.mark.parametrize("name", VERSIONS)
def test_a_version_stands_behind_so(name: str) -> None:
    assert libnames.version_of(name) == VERSIONS[name]


# What nvidia-container-cli gives for each capability.
LEGACY = {
    "utility": "libnvidia-ml libnvidia-cfg libnvidia-nscq",
    "compute": "libcuda libcudadebugger libnvidia-opencl libnvidia-gpucomp libnvidia-ptxjitcompiler "
    "libnvidia-fatbinaryloader libnvidia-allocator libnvidia-compiler libnvidia-pkcs11 libnvidia-pkcs11-openssl3 "
    "libnvidia-nvvm libnvidia-tileiras",
    "ngx": "libnvidia-ngx",
    "video": "libvdpau_nvidia libnvidia-encode libnvidia-opticalflow libnvcuvid",
    "graphics": "libnvidia-eglcore libnvidia-glcore libnvidia-tls libnvidia-glsi libnvidia-fbc libnvidia-ifr "
    "libnvidia-rtcore libnvoptix libGLX_nvidia libEGL_nvidia libGLESv2_nvidia libGLESv1_CM_nvidia libnvidia-glvkspirv "
    "libnvidia-cbl",
}


@pytest.mark.parametrize("capability", LEGACY)
def test_each_capability_has_the_libraries_of_the_reference(capability: str) -> None:
    for stem in LEGACY[capability].split():
        assert capability in Library(f"/x/{stem}.so.{V}", "", False).capabilities, stem


def test_what_vulkan_loads_is_there_for_graphics_alone() -> None:
    assert libnames.CAPABILITIES["libnvidia-gpucomp"] == ("compute", "graphics")
    assert libnames.CAPABILITIES["libnvidia-allocator"] == ("compute", "graphics")


OURS = {
    "libcuda.so.1": True,
    "libnvidia-new.so.9": True,
    "libGL.so.1": False,
    "libc.so.6": False,
    "libcudart.so.12": False,
}


@pytest.mark.parametrize("name", OURS)
def test_a_driver_is_told_by_its_own_names(name: str) -> None:
    assert libnames.is_ours(name) is OURS[name]


def test_folders_are_those_of_libraries_in_order() -> None:
    some = [
        "/b/libx.so.1",
        "/a/liby.so",
        "/b/libz.so.2",
        "/c/nvidia_drv.so",
        "/d/lib.so",
        "/e/libx.so.9",
        "/f/libx.son",
    ]
    assert libnames.folders(some) == ["/b", "/a", "/e"]


# -- directories ------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "Debian": "/usr/lib/x86_64-linux-gnu",
    "Debian, alternatives": "/usr/lib/x86_64-linux-gnu/nvidia/current",
    "RHEL": "/usr/lib64",
    "RHEL before the merge": "/lib64",
    "Arch": "/usr/lib",
    "NixOS": "/run/opengl-driver/lib",
    "COS, in its own root": "/lib64",
    "root itself": "/",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_distribution_is_searched(tmp_path: Path, layout: str) -> None:
    directory = LAYOUTS[layout].rstrip("/")
    driver(tmp_path, directory=directory)
    assert f"{directory}/libcuda.so.{V}" in names(libraries(tmp_path))


def test_a_merged_usr_gives_each_library_once(tmp_path: Path) -> None:
    driver(tmp_path, directory="/usr/lib64")
    link(tmp_path, "lib64", "usr/lib64")
    found = names(libraries(tmp_path))
    assert sorted(found) == sorted(set(found))
    assert all(each.startswith("/usr/lib64/") for each in found)
    assert len(found) == 3


def test_the_vdpau_directory_belongs_to_it(tmp_path: Path) -> None:
    driver(tmp_path)
    library(tmp_path, f"{LIB}/vdpau/libvdpau_nvidia.so.{V}", "libvdpau_nvidia.so.1")
    library(tmp_path, f"{LIB}/vdpau/libvdpau_nvidia.so.535.1", "libvdpau_nvidia.so.1")
    assert f"{LIB}/vdpau/libvdpau_nvidia.so.{V}" in names(libraries(tmp_path))
    assert not any("535" in each for each in names(libraries(tmp_path)))


def test_alternatives_lead_to_a_directory_that_nobody_lists(tmp_path: Path) -> None:
    driver(tmp_path, directory=f"{LIB}/nvidia/tesla-550")
    for stem in ("libcuda", "libnvidia-ml"):
        link(tmp_path, f"/etc/alternatives/glx--{stem}", f"{LIB}/nvidia/tesla-550/{stem}.so.1")
        link(tmp_path, f"{LIB}/{stem}.so.1", f"/etc/alternatives/glx--{stem}")
    assert f"{LIB}/nvidia/tesla-550/libnvidia-ptxjitcompiler.so.{V}" in names(libraries(tmp_path))


def test_absolute_links_stay_in_the_driver_root(tmp_path: Path) -> None:
    root = tmp_path / "drv"
    driver(root, directory="/opt/real")
    (root / "usr/lib64").mkdir(parents=True)
    for name in os.listdir(root / "opt/real"):
        link(root, f"/usr/lib64/{name}", f"/opt/real/{name}")
    link(root, f"/usr/lib64/libnvidia-escape.so.{V}", f"/../../{tmp_path}/outside.so")
    library(tmp_path, "outside.so")
    found = names(libraries(root))
    assert f"/opt/real/libcuda.so.{V}" in found
    assert not any("escape" in each or "outside" in each for each in found)


@pytest.mark.skipif(not os.path.exists(LDCONFIG), reason="no ldconfig on this host")
def test_the_library_cache_leads_to_any_directory(tmp_path: Path) -> None:
    driver(tmp_path, directory="/opt/somewhere/lib")
    tree(tmp_path, "file etc/ld.so.conf /opt/somewhere/lib\\n")
    subprocess.run([LDCONFIG, "-X", "-r", tmp_path], check=True)
    assert (tmp_path / "etc/ld.so.cache").exists()
    assert len(names(libraries(tmp_path))) == 3
    (tmp_path / "etc/ld.so.cache").unlink()
    assert names(libraries(tmp_path)) == []


def test_a_search_path_replaces_directories_and_cache(tmp_path: Path) -> None:
    driver(tmp_path)
    driver(tmp_path, directory="/mine")
    for given in ("/mine", f"{tmp_path}/mine"):
        with look(tmp_path) as node:
            found = Libraries(node, Search(), [given]).of_version(V)
        assert {each.directory for each in found} == {"/mine"}


# -- machines ---------------------------------------------------------------------------------------------------------


def test_libraries_of_another_machine_are_left_out(tmp_path: Path) -> None:
    driver(tmp_path)
    library(tmp_path, f"{LIB}/libnvidia-arm.so.{V}", machine="aarch64")
    library(tmp_path, f"{LIB}/libnvidia-x32.so.{V}", bits=32)
    library(tmp_path, f"{LIB}/libnvidia-mips.so.{V}", machine="mips")
    assert {each.name for each in libraries(tmp_path)} == {
        f"{stem}.so.{V}" for stem in ("libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler")
    }


def test_the_node_says_which_machine_it_is(tmp_path: Path) -> None:
    driver(tmp_path)
    driver(tmp_path, directory="/usr/lib/aarch64-linux-gnu", machine="aarch64")
    assert {each.directory for each in libraries(tmp_path, machine="aarch64")} == {"/usr/lib/aarch64-linux-gnu"}
    assert {each.directory for each in libraries(tmp_path)} == {LIB}


COMPAT32 = {
    "Debian": ("/usr/lib/i386-linux-gnu", "i386", "x86_64"),
    "RHEL": ("/usr/lib", "i386", "x86_64"),
    "Arch": ("/usr/lib32", "i386", "x86_64"),
    "arm": ("/usr/lib/arm-linux-gnueabihf", "arm", "aarch64"),
}


@pytest.mark.parametrize("case", COMPAT32)
def test_libraries_of_the_32_bit_mode_are_marked(tmp_path: Path, case: str) -> None:
    directory, machine, node = COMPAT32[case]
    library(tmp_path, f"{directory}/libcuda.so.{V}", "libcuda.so.1", machine)
    library(tmp_path, f"{directory}/libnvidia-encode.so.{V}", "libnvidia-encode.so.1", machine)
    found = {each.name: each.capabilities for each in libraries(tmp_path, machine=node)}
    assert found == {
        f"libcuda.so.{V}": ("compute", "compat32"),
        f"libnvidia-encode.so.{V}": ("video", "compat32"),
    }


@needs_gcc
@needs_mknod
def test_elftools_reads_the_same_in_every_library_of_the_sample() -> None:
    root = built("i386").root
    found = libraries(root)
    assert len(found) > 30
    for each in found:
        with open(f"{root}{each.path}", "rb") as file:
            elf = ELFFile(file)
            dynamic = elf.get_section_by_name(".dynamic")
            tags = {t.entry.d_tag: t for t in dynamic.iter_tags()}
            soname = tags["DT_SONAME"].soname if "DT_SONAME" in tags else ""
            assert (each.soname, each.compat32) == (soname, elf.elfclass == 32), each.path
            assert elf["e_machine"] in ("EM_386" if each.compat32 else "EM_X86_64")


# -- what is no library -----------------------------------------------------------------------------------------------

BROKEN = {
    "a FIFO": (f"fifo {LIB}/libnvidia-bad.so.{V}", "EINVAL: a FIFO, not a regular file"),
    "a directory": (f"dir {LIB}/libnvidia-bad.so.{V}", "EINVAL: a directory, not a regular file"),
    "no ELF file": (f"file {LIB}/libnvidia-bad.so.{V} #!/bin/sh\\n", "no library: no ELF magic"),
    "empty": (f"file {LIB}/libnvidia-bad.so.{V} ", "no library: no ELF magic"),
    "cut short": (f"file {LIB}/libnvidia-bad.so.{V} \\x7fELF\\x02\\x01\\x01", "no library: truncated"),
    "a loop of links": (
        f"symlink {LIB}/libnvidia-bad.so.{V} bad2\nsymlink {LIB}/bad2 libnvidia-bad.so.{V}",
        "ELOOP",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_library_is_one_problem_and_left_out(tmp_path: Path, case: str) -> None:
    spec, words = BROKEN[case]
    driver(tmp_path)
    tree(tmp_path, spec)
    with look(tmp_path) as node:
        search = Search()
        found = Libraries(node, search).of_version(V)
    assert len(found) == 3
    (told,) = lines(search, tmp_path)
    assert told.startswith(f"use library {LIB}/libnvidia-bad.so.{V}: {words} (")


def test_a_name_that_would_part_an_argument_is_refused(tmp_path: Path) -> None:
    driver(tmp_path)
    for name in (f"libnvidia-x\n.so.{V}", f"libnvidia-x::y.so.{V}", f"libnvidia-\udcff.so.{V}"):
        shutil.copy(tmp_path / f"{LIB[1:]}/libcuda.so.{V}", tmp_path / LIB[1:] / name)
    with look(tmp_path) as node:
        search = Search()
        assert len(Libraries(node, search).of_version(V)) == 3
    (told,) = lines(search)
    assert "a name that is no plain text" in told
    assert told.isprintable()


CACHES = {
    "garbage": "file etc/ld.so.cache garbage",
    "empty": "file etc/ld.so.cache ",
    "a FIFO": "fifo etc/ld.so.cache",
    "a directory": "dir etc/ld.so.cache",
}


@pytest.mark.parametrize("case", CACHES)
def test_a_bad_library_cache_is_one_problem(tmp_path: Path, case: str) -> None:
    driver(tmp_path)
    tree(tmp_path, CACHES[case])
    with look(tmp_path) as node:
        search = Search()
        assert len(Libraries(node, search).of_version(V)) == 3
    (told,) = lines(search, tmp_path)
    assert told.startswith("read the library cache /etc/ld.so.cache: ")
    assert told.endswith("(run ldconfig)")


def test_a_directory_of_very_many_libraries_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(tmp_path)
    driver(tmp_path, directory="/usr/lib64")
    tree(tmp_path, "\n".join(f"file {LIB}/lib{i}.so x" for i in range(20)))
    monkeypatch.setattr("nvoci.discover.node.MAX_NAMES", 19)
    with look(tmp_path) as node:
        search = Search()
        assert {each.directory for each in Libraries(node, search).of_version(V)} == {"/usr/lib64"}
    (told,) = lines(search, tmp_path)
    assert told.startswith(f"list libraries {LIB}: E2BIG: more than 19 entries")


# -- links ------------------------------------------------------------------------------------------------------------

LINKS = {
    "libcuda": (
        f"libcuda.so.{V}",
        "libcuda.so.1",
        "",
        [("libcuda.so.1", "libcuda.so"), (f"libcuda.so.{V}", "libcuda.so.1")],
    ),
    "soname and development link": (
        f"libnvidia-ml.so.{V}",
        "libnvidia-ml.so.1",
        "symlink D/libnvidia-ml.so libnvidia-ml.so.1",
        [(f"libnvidia-ml.so.{V}", "libnvidia-ml.so.1"), ("libnvidia-ml.so.1", "libnvidia-ml.so")],
    ),
    "GLX": (
        f"libGLX_nvidia.so.{V}",
        "libGLX_nvidia.so.0",
        "",
        [(f"libGLX_nvidia.so.{V}", "libGLX_indirect.so.0"), (f"libGLX_nvidia.so.{V}", "libGLX_nvidia.so.0")],
    ),
    "soname is the file name": (f"libnvidia-tls.so.{V}", f"libnvidia-tls.so.{V}", "", []),
    "no soname": (
        f"libnvidia-x.so.{V}",
        None,
        "symlink D/libnvidia-x.so x",
        [(f"libnvidia-x.so.{V}", "libnvidia-x.so")],
    ),
    "soname with a slash": (f"libnvidia-x.so.{V}", "../../etc/passwd", "", []),
    "one dot": ("libnvmm.so", "libother.so", "symlink D/libother.so libnvmm.so", []),
    "a file of that name": (f"libnvidia-x.so.{V}", "libnvidia-x.so.1", "file D/libnvidia-x.so.1 x", []),
}


@pytest.mark.parametrize("case", LINKS)
def test_links_are_those_that_the_host_has_and_three_more(tmp_path: Path, case: str) -> None:
    name, soname, spec, expected = LINKS[case]
    library(tmp_path, f"{LIB}/{name}", soname)
    if soname and soname != name and "/" not in soname and not spec.startswith("file"):
        link(tmp_path, f"{LIB}/{soname}", name)
    tree(tmp_path, spec.replace("D/", f"{LIB}/"))
    with look(tmp_path) as node:
        found = Libraries(node, Search()).library(f"{LIB}/{name}")
        assert found is not None
        assert so_links(node, found) == [(target, f"{LIB}/{to}") for target, to in expected]
