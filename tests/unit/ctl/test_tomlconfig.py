"""config.toml: which file it is, and the driver root in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nvoci.ctl import tomlconfig
from nvoci.errors import HookError

ETC = "/etc/nvidia-container-runtime/config.toml"
LOOKUPS: dict[str, tuple[str, dict[str, str], str]] = {
    "given": ("/a", {"NVIDIA_CTK_CONFIG_FILE_PATH": "/b", "XDG_CONFIG_HOME": "/c"}, "/a"),
    "its variable": ("", {"NVIDIA_CTK_CONFIG_FILE_PATH": "/b", "XDG_CONFIG_HOME": "/c"}, "/b"),
    "home": ("", {"XDG_CONFIG_HOME": "/c"}, "/c/nvidia-container-runtime/config.toml"),
    "nothing": ("", {}, ETC),
    "empty variables": ("", {"NVIDIA_CTK_CONFIG_FILE_PATH": "", "XDG_CONFIG_HOME": ""}, ETC),
}


@pytest.mark.parametrize(("given", "environ", "path"), LOOKUPS.values(), ids=LOOKUPS)
def test_which_file_it_is(given: str, environ: dict[str, str], path: str) -> None:
    assert tomlconfig.find(given, environ) == path


WHOLE = """\
disable-require = false
#accept-nvidia-visible-devices-as-volume-mounts = false

[nvidia-container-cli]
environment = []
#root = "/elsewhere"
root = "/run/nvidia/driver"

[nvidia-container-runtime]
runtimes = ["runc", "crun"]
[nvidia-container-runtime.modes.cdi]
annotation-prefixes = ["cdi.k8s.io/"]
"""
ROOTS = {
    "set": (WHOLE, "/run/nvidia/driver"),
    "a comment": (WHOLE.replace("\nroot", "\n#root"), ""),
    "another table": ('root = "/x"\n[nvidia-ctk]\nroot = "/y"\n', ""),
    "dotted": ('nvidia-container-cli.root = "/x"', "/x"),
    "empty": ("", ""),
}


@pytest.mark.parametrize(("text", "root"), ROOTS.values(), ids=ROOTS)
def test_the_driver_root(tmp_path: Path, text: str, root: str) -> None:
    (tmp_path / "x").write_text(text)
    assert tomlconfig.driver_root(str(tmp_path / "x")) == root


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    assert tomlconfig.driver_root(str(tmp_path / "gone")) == ""


def contents(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def mode(bits: int) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        path.write_text(WHOLE)
        path.chmod(bits)

    return make


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no TOML": (contents(b"["), "not valid TOML"),
    "a key twice": (contents(b"a = 1\na = 2"), "not valid TOML"),
    "not UTF-8": (contents(b'a = "\xff"'), "not valid TOML"),
    "a number": (contents(b"[nvidia-container-cli]\nroot = 3"), "`nvidia-container-cli.root` is not a string"),
    "no table": (contents(b"nvidia-container-cli = 3"), "`nvidia-container-cli.root` is not a string"),
    "a NUL": (contents(b'[nvidia-container-cli]\nroot = "/a\\u0000b"'), "is not a string"),
    "deep": (contents(b"a = " + b"[" * 10_000), "nested "),
    "a key without end": (contents(b"a" + b".a" * 10_000 + b" = 1"), "more than 100 dots"),
    "100 KiB": (contents(b"#" * 100_000), "EFBIG"),
    "a FIFO": (os.mkfifo, "not a regular file"),
    "a directory": (os.mkdir, "not a regular file"),
    "an endless device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "one that its group can write": (mode(0o664), "mode 0664: others can write it"),
    "one that everybody can write": (mode(0o646), "mode 0646: others can write it"),
    "a link to nothing": (lambda path: path.symlink_to("gone"), "ENOENT"),
}


@pytest.mark.parametrize(("make", "why"), BAD.values(), ids=BAD)
def test_a_bad_file_is_one_error(tmp_path: Path, make: Callable[[Path], object], why: str) -> None:
    make(tmp_path / "x")
    with pytest.raises(HookError) as caught:
        tomlconfig.driver_root(str(tmp_path / "x"))
    assert why in caught.value.line()
    assert caught.value.line().startswith(f"read config {tmp_path}/x: ")
    assert caught.value.line().count("\n") == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(WHOLE)
    os.chown(tmp_path / "x", 12345, -1)
    with pytest.raises(HookError, match="owned by uid 12345"):
        tomlconfig.driver_root(str(tmp_path / "x"))


@pytest.mark.parametrize("case", ["set", "a comment", "dotted"])
def test_the_other_parser_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    pytest.importorskip("tomlkit")
    (tmp_path / "x").write_text(ROOTS[case][0])
    monkeypatch.setattr(tomlconfig, "_PARSER", "tomlkit")
    found = tomlconfig.driver_root(str(tmp_path / "x"))
    assert (found, type(found)) == (ROOTS[case][1], str)


@pytest.mark.parametrize("case", ["no TOML", "a key twice", "a number", "deep"])
def test_the_other_parser_s_errors_are_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    pytest.importorskip("tomlkit")
    monkeypatch.setattr(tomlconfig, "_PARSER", "tomlkit")
    test_a_bad_file_is_one_error(tmp_path, *BAD[case])


def test_a_parser_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_text("")
    monkeypatch.setattr(tomlconfig, "_PARSER", "nvoci_no_such_parser")
    with pytest.raises(HookError, match="no nvoci_no_such_parser to read it"):
        tomlconfig.driver_root(str(tmp_path / "x"))
