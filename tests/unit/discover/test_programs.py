"""Programs, firmware and sockets: the right one of several, and nothing that is something else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lib.flipper import Flipper
from lib.rootfs import tree
from unit.discover.looktools import V, by_name, lines, link, look

from nvoci.discover.model import READ_ONLY, SOCKET, Mount
from nvoci.discover.node import Options
from nvoci.discover.programs import binaries, firmware, sockets
from nvoci.discover.search import Search

FIRMWARE = f"lib/firmware/nvidia/{V}"


def find_binaries(root: Path, options: Options | None = None) -> tuple[dict[str, Mount], list[str]]:
    with look(root) as node:
        search = Search()
        return by_name(binaries(node, search, options or Options())), lines(search, root)


def find_firmware(root: Path) -> tuple[dict[str, Mount], list[str]]:
    with look(root) as node:
        search = Search()
        return by_name(firmware(node, search, V)), lines(search, root)


def find_sockets(root: Path, options: Options | None = None) -> tuple[dict[str, Mount], list[str]]:
    with look(root) as node:
        search = Search()
        return by_name(sockets(node, search, options or Options())), lines(search, root)


# -- programs ---------------------------------------------------------------------------------------------------------


def test_the_first_directory_of_the_path_has_the_program(tmp_path: Path) -> None:
    tree(tmp_path, "exec usr/bin/nvidia-smi a\nexec usr/local/bin/nvidia-smi b\nexec opt/bin/nvidia-smi c")
    assert list(find_binaries(tmp_path)[0]) == ["/usr/local/bin/nvidia-smi"]
    assert list(find_binaries(tmp_path, Options(path=["/usr/bin"]))[0]) == ["/usr/bin/nvidia-smi"]
    assert list(find_binaries(tmp_path, Options(path=["relative", "", "/opt/bin/"]))[0]) == ["/opt/bin/nvidia-smi"]


def test_a_path_of_the_host_does_not_hide_the_usual_directories(tmp_path: Path) -> None:
    tree(tmp_path, "exec usr/bin/nvidia-smi a")
    assert list(find_binaries(tmp_path, Options(path=["/nowhere"]))[0]) == ["/usr/bin/nvidia-smi"]


def test_programs_have_capabilities(tmp_path: Path) -> None:
    expected = {
        "nvidia-smi": ("utility",),
        "nvidia-debugdump": ("utility",),
        "nvidia-persistenced": ("utility",),
        "nv-fabricmanager": ("utility",),
        "nvidia-cuda-mps-control": ("compute",),
        "nvidia-cuda-mps-server": ("compute",),
        "nvidia-imex": ("utility",),
        "nvidia-imex-ctl": ("utility",),
        "nvidia-xconfig": ("display",),
    }
    tree(tmp_path, "\n".join(f"exec usr/bin/{name} x" for name in [*expected, "nvidia-settings"]))
    found, problems = find_binaries(tmp_path)
    assert {path[9:]: mount.capabilities for path, mount in found.items()} == expected
    assert problems == []


BAD = {
    "not executable": ("file usr/bin/nvidia-smi x", "not executable"),
    "a directory": ("dir usr/bin/nvidia-smi", "a directory, not a regular file"),
    "a FIFO": ("fifo usr/bin/nvidia-smi", "a FIFO, not a regular file"),
    "a dangling link": ("symlink usr/bin/nvidia-smi gone", "a link that leads nowhere"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_program_is_a_problem_and_the_next_directory_counts(tmp_path: Path, case: str) -> None:
    spec, words = BAD[case]
    tree(tmp_path, f"{spec}\nexec sbin/nvidia-smi x")
    found, (told,) = find_binaries(tmp_path)
    assert list(found) == ["/sbin/nvidia-smi"]
    assert told.startswith(f"use binary /usr/bin/nvidia-smi: {words} (")


# -- firmware ---------------------------------------------------------------------------------------------------------

PLACES = {
    "usual": ("lib/firmware", "lib/firmware"),
    "of this kernel before all": ("lib/firmware lib/firmware/6.1.0-test", "lib/firmware/6.1.0-test"),
    "updates": ("lib/firmware lib/firmware/updates lib/firmware/6.1.0-test", "lib/firmware/updates"),
    "updates of this kernel": (
        "lib/firmware/updates lib/firmware/updates/6.1.0-test",
        "lib/firmware/updates/6.1.0-test",
    ),
    "of another kernel": ("lib/firmware lib/firmware/5.0.0", "lib/firmware"),
}


@pytest.mark.parametrize("case", PLACES)
def test_firmware_is_taken_from_where_the_kernel_takes_it(tmp_path: Path, case: str) -> None:
    places, expected = PLACES[case]
    tree(tmp_path, "\n".join(f"file {each}/nvidia/{V}/gsp_{i}.bin x" for each in places.split() for i in "ab"))
    found, problems = find_firmware(tmp_path)
    assert list(found) == [f"/{expected}/nvidia/{V}/gsp_a.bin", f"/{expected}/nvidia/{V}/gsp_b.bin"]
    assert {(m.kind, m.options) for m in found.values()} == {("firmware", READ_ONLY)}
    assert problems == []


@pytest.mark.parametrize("prefix", ["", "{root}"])
def test_the_kernels_own_firmware_path_comes_first(tmp_path: Path, prefix: str) -> None:
    tree(tmp_path, f"file {FIRMWARE}/gsp_a.bin x\nfile opt/fw/nvidia/{V}/gsp_a.bin x")
    own = prefix.format(root=tmp_path) + "/opt/fw"
    tree(tmp_path, f"file sys/module/firmware_class/parameters/path {own}\\n")
    assert list(find_firmware(tmp_path)[0]) == [f"/opt/fw/nvidia/{V}/gsp_a.bin"]


def test_an_empty_firmware_path_counts_for_nothing(tmp_path: Path) -> None:
    tree(tmp_path, f"file {FIRMWARE}/gsp_a.bin x\nfile sys/module/firmware_class/parameters/path \\n")
    assert list(find_firmware(tmp_path)[0]) == [f"/{FIRMWARE}/gsp_a.bin"]


def test_only_gsp_images_of_this_version_are_taken(tmp_path: Path) -> None:
    tree(
        tmp_path, f"file {FIRMWARE}/gsp_a.bin x\nfile {FIRMWARE}/other.bin x\nfile lib/firmware/nvidia/1.2/gsp_b.bin x"
    )
    assert list(find_firmware(tmp_path)[0]) == [f"/{FIRMWARE}/gsp_a.bin"]


def test_a_fifo_in_place_of_firmware_is_a_problem(tmp_path: Path) -> None:
    tree(tmp_path, f"fifo {FIRMWARE}/gsp_a.bin\nfile {FIRMWARE}/gsp_b.bin x")
    found, (told,) = find_firmware(tmp_path)
    assert list(found) == [f"/{FIRMWARE}/gsp_b.bin"]
    assert told.startswith(f"use firmware /{FIRMWARE}/gsp_a.bin: a FIFO, not a regular file (")


# -- sockets ----------------------------------------------------------------------------------------------------------


def test_sockets_are_mounted_so_that_they_can_be_written_to(tmp_path: Path) -> None:
    tree(tmp_path, "socket run/nvidia-persistenced/socket\nsocket var/run/nvidia-fabricmanager/socket")
    found, problems = find_sockets(tmp_path)
    assert list(found) == ["/run/nvidia-persistenced/socket", "/var/run/nvidia-fabricmanager/socket"]
    assert {(m.kind, m.options) for m in found.values()} == {("socket", SOCKET)}
    assert problems == []


def test_a_linked_var_run_gives_the_socket_once(tmp_path: Path) -> None:
    tree(tmp_path, "socket run/nvidia-persistenced/socket\nsymlink var/run /run")
    assert list(find_sockets(tmp_path)[0]) == ["/run/nvidia-persistenced/socket"]


def test_a_file_in_place_of_a_socket_is_a_problem(tmp_path: Path) -> None:
    tree(tmp_path, "file run/nvidia-persistenced/socket x")
    found, (told,) = find_sockets(tmp_path)
    assert found == {}
    assert told.startswith("use socket /run/nvidia-persistenced/socket: a regular file, not a socket (")


def test_the_directory_of_mps_is_found(tmp_path: Path) -> None:
    tree(tmp_path, "dir tmp/nvidia-mps")
    (mount,) = find_sockets(tmp_path)[0].values()
    assert (mount.container_path, mount.kind, mount.options) == ("/tmp/nvidia-mps", "directory", SOCKET)
    assert mount.capabilities == ("compute",)


def test_a_configured_directory_of_mps_is_taken_as_it_is(tmp_path: Path) -> None:
    tree(tmp_path, "dir run/mps/pipe\nsymlink run/mps/link pipe")
    if os.geteuid() == 0:
        os.chown(tmp_path / "run/mps/pipe", 1000, 1000)
    assert list(find_sockets(tmp_path, Options(mps_directory="/run/mps/link"))[0]) == ["/run/mps/link"]


def test_a_link_of_a_stranger_in_tmp_is_no_mps_directory(tmp_path: Path) -> None:
    tree(tmp_path, "dir etc\ndir tmp")
    link(tmp_path, "/tmp/nvidia-mps", "/etc")
    found, (told,) = find_sockets(tmp_path)
    assert found == {}
    assert told.startswith("use directory /tmp/nvidia-mps: a link, not a directory (")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a directory to somebody else")
def test_a_directory_of_a_stranger_in_tmp_is_no_mps_directory(tmp_path: Path) -> None:
    tree(tmp_path, "dir tmp/nvidia-mps")
    os.chown(tmp_path / "tmp/nvidia-mps", 1000, 1000)
    found, (told,) = find_sockets(tmp_path)
    assert found == {}
    assert told.startswith(
        "use directory /tmp/nvidia-mps: owned by uid 1000, not by root (start the MPS daemon as root"
    )


@pytest.mark.security
@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a directory to somebody else")
@pytest.mark.parametrize(("path", "words"), [
    ("/tmp/mine", "owned by uid 1000, in a directory that others may write"),
    ("/tmp/link", "ELOOP: a link in a directory that others may write"),
    ("/tmp/link/below", "ELOOP: a link in a directory that others may write"),
])  # fmt: skip
def test_where_anybody_may_make_one_a_configured_directory_is_root_s(tmp_path: Path, path: str, words: str) -> None:
    tree(tmp_path, "dir etc/below\ndir tmp/mine\nsymlink tmp/link /etc")
    (tmp_path / "tmp").chmod(0o1777)
    os.chown(tmp_path / "tmp/mine", 1000, 1000)
    found, (told,) = find_sockets(tmp_path, Options(mps_directory=path))
    assert found == {}
    assert told.startswith(f"use directory {path}: {words} (")


@pytest.mark.security
@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a directory to somebody else")
@pytest.mark.parametrize("path", ["/tmp/nvidia-mps", "/tmp/other"])
def test_who_exchanges_the_mps_directory_for_a_link_is_not_believed(tmp_path: Path, path: str) -> None:
    """Their own directory, and a link to one of root's: neither is one, whenever it is looked at."""
    tree(tmp_path, f"dir etc\ndir {path[1:]}\nsymlink tmp/x /etc")
    (tmp_path / "tmp").chmod(0o1777)
    for name in (path[1:], "tmp/x"):
        os.chown(tmp_path / name, 1000, 1000, follow_symlinks=False)
    with Flipper(tmp_path / path[1:], tmp_path / "tmp/x") as flipper:
        for _ in range(300):
            assert find_sockets(tmp_path, Options(mps_directory=path))[0] == {}
        assert flipper.rounds > 10


def test_a_file_in_place_of_the_mps_directory_is_a_problem(tmp_path: Path) -> None:
    tree(tmp_path, "file tmp/nvidia-mps x")
    found, (told,) = find_sockets(tmp_path)
    assert found == {}
    assert "a regular file, not a directory" in told
