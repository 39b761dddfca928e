"""Devices asked for by mounts, and the names they stand for."""

from __future__ import annotations

import posixpath

import pytest
from unit.prestart.prestarttools import asked, container

from nvoci import log
from nvoci.prestart import volumes
from nvoci.prestart.names import items, narrowed, qualified

TOP = "/var/run/nvidia-container-devices"
NULL = "/dev/null"

DEVICES: dict[str, tuple[list[tuple[str, str]], list[str]]] = {
    "none": ([], []),
    "one": ([(NULL, f"{TOP}/0")], ["0"]),
    "in order": ([(NULL, f"{TOP}/1"), ("/a", "/b"), (NULL, f"{TOP}/GPU-0")], ["1", "GPU-0"]),
    "each once": ([(NULL, f"{TOP}/1"), (NULL, f"{TOP}/0"), (NULL, f"{TOP}//1/")], ["1", "0"]),
    "all": ([(NULL, f"{TOP}/all")], ["all"]),
    "nested": ([(NULL, f"{TOP}/a/b")], ["a/b"]),
    "another source": ([("/dev/zero", f"{TOP}/0"), ("", f"{TOP}/1"), ("/dev/null0", f"{TOP}/2")], []),
    "source to be cleaned": ([("/dev//./x/../null/", f"{TOP}/0")], ["0"]),
    "relative source": ([("dev/null", f"{TOP}/0")], []),
    "destination to be cleaned": ([(NULL, "//var/./run/x/../nvidia-container-devices/0")], ["0"]),
    "destination that leaves": ([(NULL, f"{TOP}/../0"), (NULL, f"{TOP}/0/..")], []),
    "the directory itself": ([(NULL, TOP), (NULL, TOP + "/")], []),
    "a directory beside it": ([(NULL, TOP + "2/0"), (NULL, "/run/nvidia-container-devices/0")], []),
    "relative": ([(NULL, TOP[1:] + "/0")], []),
    "IMEX": ([(NULL, f"{TOP}/imex/0")], []),
    "CDI in parts": ([(NULL, f"{TOP}/cdi/nvidia.com/gpu/0")], ["nvidia.com/gpu=0"]),
    "CDI qualified": ([(NULL, f"{TOP}/cdi/nvidia.com/gpu=all")], ["nvidia.com/gpu=all"]),
    "CDI, twice": ([(NULL, f"{TOP}/cdi/a.b/c/0"), (NULL, f"{TOP}/cdi/a.b/c=0")], ["a.b/c=0"]),
    "CDI, not a name": ([(NULL, f"{TOP}/cdi/nvidia.com/gpu"), (NULL, f"{TOP}/cdi/1/2/3"), (NULL, f"{TOP}/0")], ["0"]),
    "CDI, deeper": ([(NULL, f"{TOP}/cdi/a.b/c/d/e")], []),
}


@pytest.mark.parametrize(("mounts", "found"), DEVICES.values(), ids=DEVICES)
def test_devices(mounts: list[tuple[str, str]], found: list[str]) -> None:
    assert volumes.devices(mounts) == found


def test_a_mount_that_names_no_cdi_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(log, "_sinks", [(log.WARNING, seen.append)])
    volumes.devices([(NULL, f"{TOP}/cdi/a\nb")])
    assert len(seen) == 1
    assert r"a\\nb" in seen[0]


IMEX: dict[str, tuple[list[str], list[str]]] = {
    "none": (["0", "cdi/a.b/c/0"], []),
    "two": (["imex/3", "0", "imex/1", "imex//3"], ["3", "1"]),
    "all": (["imex/all"], ["all"]),
    "without a name": (["imex", "imex/"], []),
}


@pytest.mark.parametrize(("paths", "found"), IMEX.values(), ids=IMEX)
def test_imex_channels(paths: list[str], found: list[str]) -> None:
    assert volumes.imex_channels(container(mounts=asked(*paths)).mounts()) == found


PATHS = ["", ".", "/", "//", "///a", "a", "a/", "a//b", "/a/./b", "/a/../b", "/../a", "../a", "a/..", "a/../..",
         "../../a", "a/../../b", "/a/b/../../..", "./a", "/.", "/..", "...", "/.../a", "a/./../b/."]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_cleaned_as_posixpath_does(path: str) -> None:
    wanted = posixpath.normpath(path)
    assert volumes.clean(path) == (wanted[1:] if wanted.startswith("//") else wanted)


NAMES: dict[str, tuple[str, bool]] = {
    "gpu": ("nvidia.com/gpu=0", True),
    "long": ("a_b-c.d/e_f-g.h=i_j-k.l:m", True),
    "one letter": ("a/b=c", True),
    "digits in front of a device": ("a/b=0:1", True),
    "no vendor": ("/b=c", False),
    "no class": ("a=c", False),
    "no device": ("a/b=", False),
    "no =": ("a/b", False),
    "index": ("0", False),
    "UUID": ("GPU-0", False),
    "digit in front": ("1a/b=c", False),
    "digit in front of the class": ("a/1b=c", False),
    "dot at the end": ("a./b=c", False),
    "dash in front": ("-a/b=c", False),
    "colon in front of a device": ("a/b=:c", False),
    "blank": ("a/b=c d", False),
    "NUL": ("a/b=c\0d", False),
    "letters of another script": ("ä/b=c", False),
    "a second class": ("a/b/c=d", False),
    "a second =": ("a/b=c=d", False),
    "empty": ("", False),
}


@pytest.mark.parametrize(("name", "good"), NAMES.values(), ids=NAMES)
def test_qualified_names(name: str, good: bool) -> None:
    assert qualified(name) is good


LISTS: dict[str, tuple[str, list[str], tuple[str, ...]]] = {
    "empty": ("", [], ()),
    "commas": (" , ,,", [], ()),
    "one": ("0", ["0"], ("0",)),
    "blanks": (" 0 ,\t1\n", ["0", "1"], ("0", "1")),
    "each once, at its first place": ("1,0,1,2", ["1", "0", "1", "2"], ("1", "0", "2")),
    "all": ("all", ["all"], ("all",)),
    "all behind": ("0,all", ["0", "all"], ("all",)),
    "none": ("none", ["none"], ()),
    "none behind": ("0,none", ["0", "none"], ()),
    "all before none": ("all,none", ["all", "none"], ("all",)),
    "none before all": ("0,none,all", ["0", "none", "all"], ()),
    "capitals": ("ALL,None", ["ALL", "None"], ("ALL", "None")),
}


@pytest.mark.parametrize(("text", "found", "narrow"), LISTS.values(), ids=LISTS)
def test_lists(text: str, found: list[str], narrow: tuple[str, ...]) -> None:
    assert items(text) == found
    assert narrowed(found) == narrow
