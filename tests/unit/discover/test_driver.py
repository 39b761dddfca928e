"""The version of the driver, and which files are its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from lib.rootfs import tree
from unit.discover.looktools import LIB, V, answer, driver, library, lines, link, look, module

from nvoci.discover.driver import FIND_STAGE, MATCH_STAGE, DriverFiles, find_driver, library_mount
from nvoci.discover.libraries import Libraries
from nvoci.discover.search import Search

OLD = "535.183.01"


def find(root: Path, nvml: str = "", explicit: bool = False) -> tuple[DriverFiles, list[str]]:
    """The driver, and the problems met."""
    with look(root) as node:
        search = Search()
        found = find_driver(node, search, Libraries(node, search), answer(version=nvml) if nvml else None, explicit)
    return found, lines(search, root)


# versions on disk, module, NVML -> version, what the one problem says ("" for none)
VERSIONS = {
    "one": ([V], V, V, V, ""),
    "one, no module": ([V], "", "", V, ""),
    "one, NVML silent": ([V], V, "", V, ""),
    "two: the module's": ([OLD, V], OLD, "", OLD, ""),
    "two: the module's, the other way": ([OLD, V], V, "", V, ""),
    "two: NVML's": ([OLD, V], V, V, V, ""),
    "two, no module: where libcuda.so.1 leads": ([OLD, V], "", "", V, f"{OLD}, {V}: several versions, {V} is taken"),
    "module of another": ([V], OLD, "", V, f"kernel module {OLD}, libraries {V}: the versions differ (reboot, or"),
    "two, module of a third": (
        [OLD, V],
        "570.1",
        "",
        V,
        f"kernel module 570.1, libraries {OLD}, {V}: the versions differ",
    ),
    "NVML of another": (
        [V],
        "",
        OLD,
        V,
        f"NVML {OLD}, libraries {V}: the versions differ (install all of the driver {OLD}",
    ),
    "NVML of another than the module": (
        [V, OLD],
        V,
        OLD,
        OLD,
        f"NVML {OLD}, kernel module {V}: the versions differ (reboot",
    ),
}


@pytest.mark.parametrize("case", VERSIONS)
def test_the_version_is_that_of_the_files_that_fit_the_module(tmp_path: Path, case: str) -> None:
    there, loaded, nvml, expected, words = VERSIONS[case]
    for version in there:
        driver(tmp_path, version)
    if loaded:
        module(tmp_path, loaded)
    found, problems = find(tmp_path, nvml)
    assert (found.driver.version, found.driver.module_version) == (expected, loaded)
    assert {each.name for each in found.libraries} == {
        f"{stem}.so.{expected}" for stem in ("libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler")
    }
    assert len(problems) == bool(words), problems
    if words:
        assert problems[0].startswith(MATCH_STAGE)
        assert words in problems[0]


def test_without_a_link_the_greater_version_is_taken(tmp_path: Path) -> None:
    for version in ("550.9.01", "550.163.01"):
        driver(tmp_path, version)
    for stem in ("libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler"):
        (tmp_path / LIB[1:] / f"{stem}.so.1").unlink()
    assert find(tmp_path)[0].driver.version == "550.163.01"


def test_library_directories_are_those_of_64_bit_libraries(tmp_path: Path) -> None:
    driver(tmp_path)
    library(tmp_path, f"{LIB}/vdpau/libvdpau_nvidia.so.{V}", "libvdpau_nvidia.so.1")
    library(tmp_path, f"/usr/lib/i386-linux-gnu/libcuda.so.{V}", "libcuda.so.1", "i386")
    library(tmp_path, f"/usr/lib64/libnvidia-cfg.so.{V}", "libnvidia-cfg.so.1")
    assert find(tmp_path)[0].driver.library_dirs == ("/usr/lib64", LIB)


def test_32_bit_libraries_tell_no_version(tmp_path: Path) -> None:
    driver(tmp_path)
    library(tmp_path, f"/usr/lib/i386-linux-gnu/libcuda.so.{OLD}", "libcuda.so.1", "i386")
    found, problems = find(tmp_path)
    assert found.driver.version == V
    assert problems == []


def test_no_driver_is_one_problem_that_says_where_it_was_looked_for(tmp_path: Path) -> None:
    tree(tmp_path, "dir usr/lib64")
    found, problems = find(tmp_path)
    assert (found.driver.version, found.libraries) == ("", [])
    (told,) = problems
    assert told.startswith(
        f"{FIND_STAGE} : no libcuda.so.*.* and no libnvidia-ml.so.*.* (install the NVIDIA driver, or"
    )
    assert "/usr/lib64" in told


def test_a_removed_libcuda_is_named(tmp_path: Path) -> None:
    driver(tmp_path)
    (tmp_path / f"{LIB[1:]}/libcuda.so.{V}").unlink()
    found, problems = find(tmp_path)
    assert found.driver.version == V
    missing, dangling = problems
    assert missing.startswith(
        f"{FIND_STAGE} libcuda.so.{V} in : not there (reinstall the driver {V}; `nvoci why libcuda`"
    )
    assert dangling.startswith(
        f"{FIND_STAGE} {LIB}: libcuda.so.1: links that lead nowhere (the driver is partly removed"
    )


def test_of_a_driver_whose_needed_libraries_are_gone_the_rest_is_found(tmp_path: Path) -> None:
    driver(tmp_path)
    module(tmp_path, V)
    for stem in ("libcuda", "libnvidia-ml"):
        (tmp_path / f"{LIB[1:]}/{stem}.so.{V}").unlink()
    found, problems = find(tmp_path)
    assert found.driver.version == V
    assert [each.name for each in found.libraries] == [f"libnvidia-ptxjitcompiler.so.{V}"]
    assert problems[0].startswith(f"{FIND_STAGE} libcuda.so.{V}, libnvidia-ml.so.{V} in ")


MODULES = {
    "no version": ("file proc/driver/nvidia/version NVRM version: none\\n", "no version in its first line"),
    "empty": ("file proc/driver/nvidia/version ", "no version in its first line"),
    "not text": ("file proc/driver/nvidia/version \\xff\\xfe\\n", "no version in its first line"),
    "version in a later line": ("file proc/driver/nvidia/version x\\n550.163.01\\n", "no version in its first line"),
    "a FIFO": ("fifo proc/driver/nvidia/version", "EINVAL: not a regular file"),
    "a directory": ("dir proc/driver/nvidia/version", "EISDIR: not a regular file"),
    "endless": ("sparse proc/driver/nvidia/version 2M", "EFBIG: larger than 1048576 bytes"),
}


@pytest.mark.parametrize("case", MODULES)
def test_what_the_module_says_of_itself_may_be_nonsense(tmp_path: Path, case: str) -> None:
    spec, words = MODULES[case]
    driver(tmp_path)
    tree(tmp_path, spec)
    found, (told,) = find(tmp_path)
    assert (found.driver.version, found.driver.module_version) == (V, "")
    assert told.startswith(f"read the module's version /proc/driver/nvidia/version: {words} (")


def test_libraries_with_a_version_of_their_own_belong_to_it(tmp_path: Path) -> None:
    driver(tmp_path)
    library(tmp_path, f"{LIB}/libnvidia-nvvm70.so.4", "libnvidia-nvvm70.so.4")
    assert "libnvidia-nvvm70.so.4" in {each.name for each in find(tmp_path)[0].libraries}


def test_vendor_neutral_libraries_only_where_asked_for(tmp_path: Path) -> None:
    driver(tmp_path)
    library(tmp_path, f"{LIB}/libEGL.so.1.1.0", "libEGL.so.1")
    link(tmp_path, f"{LIB}/libEGL.so.1", "libEGL.so.1.1.0")
    link(tmp_path, f"{LIB}/libEGL.so", "libEGL.so.1")
    assert not any("EGL" in each.name for each in find(tmp_path)[0].libraries)
    asked = [each for each in find(tmp_path, explicit=True)[0].libraries if "EGL" in each.name]
    with look(tmp_path) as node:
        (mount,) = [library_mount(node, each) for each in asked]
    assert mount.container_path == f"{LIB}/libEGL.so.1.1.0"
    assert mount.capabilities == ("graphics",)
    assert mount.links == (("libEGL.so.1.1.0", f"{LIB}/libEGL.so.1"), ("libEGL.so.1", f"{LIB}/libEGL.so"))


def test_nvml_adds_what_only_it_knows(tmp_path: Path) -> None:
    driver(tmp_path)
    found = find(tmp_path, V)[0].driver
    assert (found.cuda_version, found.root, found.dev_root) == ((12, 4), str(tmp_path), str(tmp_path))
