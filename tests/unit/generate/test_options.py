"""What may be asked for."""

from __future__ import annotations

from typing import Any

import pytest

from nvoci.discover.node import DATA_DIRS, PATH
from nvoci.errors import HookError
from nvoci.generate.options import MODES, GenerateOptions, checked, with_environment

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "mode": ({"mode": "x\n"}, "invalid discovery mode: x\\n"),
    "strategy": ({"name_strategies": ("index", "bus")}, "invalid device name strategy: bus"),
    "no strategy": ({"name_strategies": ()}, "generate CDI spec: no device name strategy"),
    "form": ({"hooks_form": "both"}, "invalid form of hooks: both"),
    "hook path": ({"hook_path": "nvidia-cdi-hook"}, "generate CDI spec: hook path `nvidia-cdi-hook` is not absolute"),
    "vendor": ({"vendor": "nvidia.com/x"}, "invalid CDI vendor name: "),
    "class": ({"class_": "1"}, "invalid CDI class name: "),
    "all enabled": ({"enabled_hooks": ("chmod", "all")}, "enabling all hooks is not supported"),
    "version": ({"max_cdi_version": "0.9.0"}, 'max CDI version: invalid version "0.9.0"'),
}


@pytest.mark.parametrize("case", BAD)
def test_what_there_is_not_is_one_line(case: str) -> None:
    settings, message = BAD[case]
    with pytest.raises(HookError) as e:
        checked(GenerateOptions(**settings))
    assert message in e.value.message
    assert e.value.hint


def test_the_first_thing_wrong_is_told_in_the_order_of_the_reference() -> None:
    wrong = GenerateOptions(mode="x", name_strategies=("y",), vendor="-", class_="-", enabled_hooks=("all",))
    for message in ("mode", "strategy", "vendor", "class", "enabling"):
        with pytest.raises(HookError, match=message):
            checked(wrong)
        good: dict[str, dict[str, Any]] = {
            "mode": {"mode": "nvml"},
            "strategy": {"name_strategies": ("uuid",)},
            "vendor": {"vendor": "a"},
        }
        wrong = GenerateOptions(**{**wrong.__dict__, **good.get(message, {"class_": "b"})})


def test_modes_are_taken_in_any_case() -> None:
    assert checked(GenerateOptions(mode="NVML")).mode == "nvml"


KINDS = {
    "nvml": "nvidia.com/gpu",
    "csv": "nvidia.com/gpu",
    "wsl": "nvidia.com/gpu",
    "management": "management.nvidia.com/gpu",
    "imex": "nvidia.com/imex-channel",
    "gds": "nvidia.com/gds",
    "mofed": "nvidia.com/mofed",
    "gdrcopy": "nvidia.com/gdrcopy",
    "nvswitch": "nvidia.com/nvswitch",
}


def test_every_mode_has_a_kind_of_its_own_unless_one_is_asked_for() -> None:
    assert {*KINDS, "auto"} == set(MODES)
    for mode, kind in KINDS.items():
        assert GenerateOptions().kind(mode) == kind
        assert GenerateOptions(vendor="example.com", class_="x").kind(mode) == "example.com/x"


SEARCHED = {"nvml": "nvml", "auto": "auto", "csv": "csv", "wsl": "wsl", "management": "nvml", "imex": "nvml"}


@pytest.mark.parametrize("mode", SEARCHED)
def test_discovery_is_told_what_to_look_for(mode: str) -> None:
    flags = ("enable-explicit-driver-libraries", "disable-multiple-csv-devices", "whatever")
    options = GenerateOptions(mode=mode, library_search_path=("/a",), csv_files=("/b",), csv_compat_root="/c",
                              feature_flags=flags)  # fmt: skip
    search = options.search()
    assert search.mode == SEARCHED[mode]
    assert (search.library_search_path, search.csv_files, search.compat_root) == (("/a",), ("/b",), "/c")
    assert (search.explicit_libraries, search.single_device) == (True, True)
    assert (GenerateOptions().search().explicit_libraries, GenerateOptions().search().single_device) == (False, False)


def test_search_paths_come_from_the_environment() -> None:
    environ = {"PATH": "/opt/bin::bin:/usr/bin", "XDG_DATA_DIRS": "/opt/share"}
    found = with_environment(GenerateOptions(mode="csv"), environ)
    assert (found.path, found.data_dirs, found.mode) == (("/opt/bin", "/usr/bin"), ("/opt/share",), "csv")
    found = with_environment(GenerateOptions(), {"PATH": "", "XDG_DATA_DIRS": "relative"})
    assert (found.path, found.data_dirs) == (PATH, DATA_DIRS)
