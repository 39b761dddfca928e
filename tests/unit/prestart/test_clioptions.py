"""What a command line of nvidia-container-cli says."""

from __future__ import annotations

from typing import Any

import pytest

from nvoci.errors import HookError
from nvoci.prestart.cliargs import Shown, UsageError
from nvoci.prestart.clioptions import Words, parse

PLAIN: dict[str, Any] = {name: getattr(Words(), name) for name in Words.__slots__}
EVERY = {"compat32", "libraries", "binaries", "ipcs", "firmwares"}

GOOD: dict[str, tuple[list[str], dict[str, Any]]] = {
    "info": (["info"], {"command": "info"}),
    "info --csv": (["info", "--csv"], {"command": "info", "switches": {"csv"}}),
    "main options": (
        ["-kn", "--no-create-imex-channels", "-d", "f", "-r", "/r", "-l/c", "info"],
        {"command": "info", "switches": {"load-kmods", "no-pivot", "no-create-imex-channels"}, "debug": "f",
         "root": "/r", "ldcache": "/c"},
    ),
    "user, bare": (["--user", "info"], {"command": "info", "user": ""}),
    "user, attached": (["-u1:2", "info"], {"command": "info", "user": "1:2"}),
    "user, the last counts": (["-u1", "--user=2", "info"], {"command": "info", "user": "2"}),
    "list": (["list"], {"command": "list", "devices": "all", "switches": EVERY}),
    "list of a channel": (
        ["list", "--imex-channel=1"],
        {"command": "list", "devices": "all", "switches": EVERY, "imex_channels": "1"},
    ),
    "list of a channel, not attached": (
        ["list", "--imex-channel", "1"], {"command": "list", "imex_channels": "1"},
    ),
    "list of a channel, cut short": (["list", "--imex=1"], {"command": "list", "imex_channels": "1"}),
    "list of a channel and more": (
        ["list", "--imex-channel=1", "-l"], {"command": "list", "imex_channels": "1", "switches": {"libraries"}},
    ),
    "list of some": (
        ["list", "-lb", "-d0", "--device=1,2", "--mig-config", "all", "--mig-monitor=all"],
        {"command": "list", "switches": {"libraries", "binaries"}, "devices": "0,1,2", "mig_config": "all",
         "mig_monitor": "all"},
    ),
    "list of no device": (["list", "-d", ""], {"command": "list", "devices": ""}),
    "configure": (["configure", "/r"], {"command": "configure", "rootfs": "/r"}),
    "configure, all of it": (
        ["configure", "-p", "7", "-d0", "-r", "cuda>=12 brand=x", "--require=a", "-l@/sbin/ldconfig", "-cuvgDn",
         "--compat32", "--no-cgroups", "--no-devbind", "--no-persistenced", "--no-fabricmanager", "--no-gsp-firmware",
         "--imex-channel=0,1", "--imex-channel=2", "/r", "--cuda-compat-mode=mount"],
        {"command": "configure", "pid": 7, "devices": "0", "requirements": ["cuda>=12 brand=x", "a"],
         "ldconfig": "@/sbin/ldconfig", "imex_channels": "0,1,2", "rootfs": "/r", "compat_modes": ["mount"],
         "switches": {"compute", "utility", "video", "graphics", "display", "ngx", "compat32", "no-cgroups",
                      "no-devbind", "no-persistenced", "no-fabricmanager", "no-gsp-firmware"}},
    ),
    "pid 0": (["configure", "--pid=0", "/r"], {"command": "configure", "rootfs": "/r"}),
    "pid below 0": (["configure", "--pid", "-5", "/r"], {"command": "configure", "rootfs": "/r"}),
    "pid with blanks before and a sign": (["configure", "-p \t+07", "/r"],
                                          {"command": "configure", "pid": 7, "rootfs": "/r"}),
    "no-cntlibs": (["configure", "--no-cntlibs", "/r"],
                   {"command": "configure", "compat_modes": ["disabled"], "rootfs": "/r"}),
    "rootfs behind two dashes": (["configure", "--", "/r"], {"command": "configure", "rootfs": "/r"}),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_command_line(name: str) -> None:
    words, changed = GOOD[name]
    found = parse(words)
    assert {each: getattr(found, each) for each in Words.__slots__} == {**PLAIN, **changed}


BAD: dict[str, tuple[list[str], str]] = {
    "empty root": (["--root=", "info"], "initialization error: invalid argument"),
    "empty cache": (["-l", "", "info"], "initialization error: invalid argument"),
    "pid without a number": (["configure", "--pid=", "/r"], "input error: parse pid failed: invalid argument"),
    "pid with more": (["configure", "-p7x", "/r"], "input error: parse pid failed: invalid argument"),
    "pid with a blank behind": (["configure", "-p7 ", "/r"], "input error: parse pid failed: invalid argument"),
    "pid of other digits": (["configure", "-p\u0667", "/r"], "input error: parse pid failed: invalid argument"),
    "pid too large": (["configure", "-p2147483648", "/r"],
                      "input error: parse pid failed: numerical result out of range"),
    "pid of 5000 digits": (["configure", "-p" + "9" * 5000, "/r"],
                           "input error: parse pid failed: numerical result out of range"),
    "33 requirements": (["configure", *["-r", "cuda>1"] * 33, "/r"], "input error: too many requirements"),
    "relative rootfs": (["configure", "r"], "input error: invalid rootfs directory"),
    "rootfs /": (["configure", "/"], "input error: invalid rootfs directory"),
    "rootfs //..": (["configure", "//.."], "input error: invalid rootfs directory"),
    "empty rootfs": (["configure", ""], "input error: invalid rootfs directory"),
    "the first that is wrong": (["configure", "-px", "-r", "", "/"], "input error: parse pid failed"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_in_itself_is_an_error_of_its_class(name: str) -> None:
    words, message = BAD[name]
    with pytest.raises(HookError) as caught:
        parse(words)
    assert caught.value.message.startswith(message)
    assert caught.value.line().isprintable()
    assert len(caught.value.line()) < 400


@pytest.mark.parametrize("words", [[], ["-k"], ["what"], ["Info"], ["inf"], ["configure"], ["configure", "/a", "/b"],
                                   ["info", "x"], ["list", "x"], ["list", "--", "-l"], ["info", "-d"]])  # fmt: skip
def test_a_usage_error(words: list[str]) -> None:
    with pytest.raises(UsageError):
        parse(words)


@pytest.mark.parametrize(("words", "what"), [(["--help"], "help"), (["list", "-?"], "help"), (["-kV", "x"], "version"),
                                             (["configure", "--usage", "-x"], "usage")])  # fmt: skip
def test_text_is_asked_for_before_anything_behind_it_is_looked_at(words: list[str], what: str) -> None:
    with pytest.raises(Shown) as caught:
        parse(words)
    assert caught.value.what == what


MODES: dict[str, tuple[list[str], str]] = {
    "none": ([], "mount"),
    "mount": (["mount"], "mount"),
    "ldconfig": (["ldconfig"], "ldconfig"),
    "twice the same": (["ldconfig", "ldconfig"], "ldconfig"),
    "disabled wins": (["mount", "ldconfig", "disabled"], "disabled"),
    "two": (["mount", "ldconfig"], "container error: only one cuda-compat-mode can be specified at a time"),
    "unknown": (["disabled", "hook"], "container error: invalid option: cuda-compat-mode=hook"),
    "empty": ([""], "container error: invalid option: cuda-compat-mode="),
}


@pytest.mark.parametrize("name", MODES)
def test_modes_of_compatibility_libraries(name: str) -> None:
    modes, wanted = MODES[name]
    words = parse(["configure", *[f"--cuda-compat-mode={mode}" for mode in modes], "/r"])
    if not wanted.startswith("container error"):
        assert words.compat_mode() == wanted
        return
    with pytest.raises(HookError) as caught:
        words.compat_mode()
    assert caught.value.message == wanted
