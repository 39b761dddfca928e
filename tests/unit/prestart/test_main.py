"""The program: its command line, and what a container without a GPU costs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib import hookproc, proc
from unit.prestart.prestarttools import error

from nvoci import __version__
from nvoci.oci import state as oci_state
from nvoci.prestart import main
from nvoci.prestart.main import Usage, Words, parse

HOOK = "nvidia-container-runtime-hook"
CONFIG = {"ociVersion": "1.0.2", "process": {"env": ["PATH=/bin"]}, "root": {"path": "rootfs"}}


def run(*words: str, stdin: Any = b"", prefix: tuple[str, ...] = ()) -> proc.Result:
    data = stdin if isinstance(stdin, bytes) else json.dumps(stdin).encode()
    program = hookproc.entry("main", "nvoci.prestart.main", HOOK)
    argv = [hookproc.session.ENTRY_PYTHON, *(prefix or ("-ISB",)), str(program), *words]
    return proc.run(argv, stdin=data, cwd="/")


def state(folder: Path, *env: str, key: str = "bundle", **config: Any) -> dict[str, Any]:
    """Of a container with these variables."""
    (folder / "rootfs").mkdir(exist_ok=True)
    doc = {**CONFIG, "process": {"env": ["PATH=/bin", *env]}, **config}
    (folder / "config.json").write_text(json.dumps(doc))
    return {"ociVersion": "1.0.2", "id": "x", "pid": 0, "status": "creating", key: str(folder)}


# --- the command line ------------------------------------------------------------------------------------------------

PARSED: dict[str, tuple[str, dict[str, Any]]] = {
    "command": ("prestart", {"command": "prestart"}),
    "nothing": ("", {}),
    "flags first": ("-debug -config /c prestart", {"debug": True, "config": "/c", "command": "prestart"}),
    "two dashes": ("--debug --config=/c prestart", {"debug": True, "config": "/c", "command": "prestart"}),
    "false": ("-debug=false prestart", {"command": "prestart"}),
    "T": ("-debug=T -dry-run=1 x", {"debug": True, "dry_run": True, "command": "x"}),
    "empty value": ("-config= prestart", {"command": "prestart"}),
    "a flag as value": ("-config -debug prestart", {"config": "-debug", "command": "prestart"}),
    "behind the command": ("prestart -debug", {"command": "prestart", "debug": True}),
    "a dry run behind the command": ("prestart --dry-run", {"command": "prestart", "dry_run": True}),
    "others behind the command": ("prestart -x --config=/y z", {"command": "prestart"}),
    "end of flags": ("-debug -- -config", {"debug": True, "command": "-config"}),
    "a dash alone": ("-", {"command": "-"}),
    "version": ("-version", {"version": True}),
    "last counts": ("-debug -debug=0 -config /a -config /b", {"config": "/b"}),
}


@pytest.mark.parametrize("case", PARSED)
def test_flags_are_read_as_go_does(case: str) -> None:
    text, wanted = PARSED[case]
    found, plain = parse(text.split()), Words()
    assert {name: getattr(found, name) for name in Words.__slots__} == {
        **{name: getattr(plain, name) for name in Words.__slots__}, **wanted,
    }  # fmt: skip


BAD = {
    "-x": "flag provided but not defined: -x", "--prestart": "flag provided but not defined: -prestart",
    "-config": "flag needs an argument: -config", "-debug=maybe": 'invalid boolean value "maybe" for -debug',
    "-=": "flag provided but not defined: -", "---debug": "flag provided but not defined: --debug",
    "-h": "", "--help": "",
}  # fmt: skip


@pytest.mark.parametrize("word", BAD)
def test_a_bad_flag_is_named(word: str) -> None:
    with pytest.raises(Usage) as caught:
        parse([word])
    assert str(caught.value) == BAD[word]


USAGE = {"none": (), "unknown": ("update",), "bad flag": ("-x", "prestart"), "no value": ("-config",)}


@pytest.mark.parametrize("case", USAGE)
def test_usage_goes_to_stderr_and_ends_with_2(case: str) -> None:
    done = run(*USAGE[case])
    assert (done.rc, done.stdout) == (2, "")
    assert f"Usage of {HOOK}:" in done.stderr
    assert "  prestart\n" in done.stderr


def test_help_is_no_error() -> None:
    done = run("-h")
    assert (done.rc, done.stderr.splitlines()[0]) == (0, f"Usage of {HOOK}:")


def test_version() -> None:
    done = run("-version", "prestart")
    assert (done.rc, done.stdout, done.stderr) == (0, f"NVIDIA Container Runtime Hook version {__version__}\n", "")


@pytest.mark.parametrize("command", ["poststart", "poststop"])
def test_other_stages_do_nothing_and_read_nothing(command: str) -> None:
    done = run(command, stdin=b"{ no state")
    assert (done.rc, done.stdout, done.stderr) == (0, "", "")


# --- the state -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["bundle", "bundlePath"])
def test_the_bundle_has_two_names(tmp_path: Path, key: str) -> None:
    assert run("prestart", stdin=state(tmp_path, key=key)).rc == 0


STATES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda folder: b"", "read state stdin: empty"),
    "no JSON": (lambda folder: b"{", "not valid JSON"),
    "no bundle": (lambda folder: {"id": "x", "pid": 1}, "read state: it names no bundle"),
    "relative": (lambda folder: {"bundle": "here"}, "bundle `here` is not an absolute path"),
    "relative, the other name": (lambda folder: {"bundlePath": "here"}, "bundle `here` is not an absolute path"),
    "a number": (lambda folder: {"bundlePath": 7}, "read state: it names no bundle"),
    "no such bundle": (lambda folder: {"bundle": f"{folder}/none"}, "ENOENT"),
    "no process": (lambda folder: state(folder, process=None), "Process is empty in OCI spec"),
    "a variable without =": (lambda folder: state(folder, "odd"), "invalid environment variable: odd"),
}


@pytest.mark.parametrize("case", STATES)
def test_a_bad_state_is_one_line(tmp_path: Path, case: str) -> None:
    make, words = STATES[case]
    done = run("prestart", stdin=make(tmp_path))
    assert (done.rc, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert words in done.stderr
    assert "internal error" not in done.stderr


def test_it_runs_isolated_or_not_at_all(tmp_path: Path) -> None:
    done = run("prestart", stdin=state(tmp_path), prefix=("-SB",))
    assert (done.rc, "the interpreter is not isolated" in done.stderr) == (1, True)


def test_a_crash_is_one_line_that_asks_for_a_report(capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, since the program ends it."""

    def fails() -> None:
        raise KeyError("x\ny")

    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(main, "_state", fails)
        monkeypatch.setattr(sys, "argv", [HOOK, "prestart"])
        monkeypatch.setattr(main.sys, "flags", type("Flags", (), {"isolated": 1}))
        main.main()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    said = capfd.readouterr().err
    assert re.search(r"prestart: internal error: KeyError: .* at test_main.py:\d+ \(please report it\)", said)
    assert said.count("\n") == 1


def test_a_bundle_path_is_read_as_the_bundle_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(unsafe: Any) -> Any:
        return oci_state.parse(json.dumps({"bundlePath": unsafe}).encode())

    monkeypatch.setattr(main.oci_state, "read", lambda: given("/b/é"))
    assert main._state().bundle == "/b/é"
    monkeypatch.setattr(main.oci_state, "read", lambda: given(["/b"]))
    assert error(main._state).message == "read state: it names no bundle"


# --- what is loaded --------------------------------------------------------------------------------------------------

NOTHING: dict[str, list[str]] = {"no variable": [], "void": ["NVIDIA_VISIBLE_DEVICES=void"],
                                 "empty": ["NVIDIA_VISIBLE_DEVICES="]}  # fmt: skip


def imported(folder: Path, *env: str, config: str = "") -> set[str]:
    """Modules that a fresh interpreter loads, as -X importtime reports each."""
    words = []
    if config:
        (folder / "config.toml").write_text(config)
        (folder / "config.toml").chmod(0o644)
        words = ["-config", str(folder / "config.toml")]
    command = hookproc.command([*words, "prestart"], hookproc.entry("main", "nvoci.prestart.main", HOOK))
    command[1:1] = ["-X", "importtime"]
    data = json.dumps(state(folder, *env)).encode()
    told = subprocess.run(command, input=data, capture_output=True, cwd="/", timeout=60).stderr.decode()
    assert "internal error" not in told
    return {m[1] for m in re.finditer(r"^import time: +\d+ \| +\d+ \| +(\S+)$", told, re.MULTILINE)}


@pytest.mark.parametrize("case", NOTHING)
@pytest.mark.parametrize("config", ["", 'disable-require = true\n[nvidia-container-cli]\nroot = "/x"\n'])
def test_a_container_without_a_gpu_loads_next_to_nothing(tmp_path: Path, case: str, config: str) -> None:
    modules = imported(tmp_path, *NOTHING[case], config=config)
    own = {name for name in modules if name.startswith("nvoci.")}
    assert own == {
        "nvoci.errors", "nvoci.log", "nvoci.jsonfile", "nvoci.linux", "nvoci.linux.fd", "nvoci.oci", "nvoci.oci.config",
        "nvoci.oci.spec", "nvoci.oci.state", "nvoci.prestart", "nvoci.prestart.ask", "nvoci.prestart.configfile",
        "nvoci.prestart.main", "nvoci.prestart.names",
    }  # fmt: skip
    assert modules & {"_ctypes", "ctypes", "tomllib", "json", "re", "fcntl"} == set()
