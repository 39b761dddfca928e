"""Where config.toml is looked for, whom it is believed from, and whether it may name a key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from unit.prestart.prestarttools import SHIPPED, error, needs_root, place

from nvoci.prestart import configfile
from nvoci.prestart.configfile import Place

VARIABLE, HOME = b"NVIDIA_CTK_CONFIG_FILE_PATH", b"XDG_CONFIG_HOME"
USUAL = "/etc/nvidia-container-runtime/config.toml"
# option, environment -> path, who named it
LOOKUP: dict[str, tuple[str, dict[bytes, bytes], str, str]] = {
    "nothing": ("", {}, USUAL, ""),
    "option": ("/o.toml", {}, "/o.toml", "-config"),
    "variable": ("", {VARIABLE: b"/v.toml"}, "/v.toml", VARIABLE.decode()),
    "home": ("", {HOME: b"/x"}, "/x/nvidia-container-runtime/config.toml", ""),
    "home, slash": ("", {HOME: b"/x/"}, "/x/nvidia-container-runtime/config.toml", ""),
    "home, relative: ignored": ("", {HOME: b"x"}, USUAL, ""),
    "home, empty": ("", {HOME: b""}, USUAL, ""),
    "variable, empty": ("", {VARIABLE: b"", HOME: b"/x"}, "/x/nvidia-container-runtime/config.toml", ""),
    "option before variable": ("/o.toml", {VARIABLE: b"/v.toml", HOME: b"/x"}, "/o.toml", "-config"),
    "variable before home": ("", {VARIABLE: b"/v.toml", HOME: b"/x"}, "/v.toml", VARIABLE.decode()),
    "not UTF-8": ("", {VARIABLE: b"/\xff"}, "/\udcff", VARIABLE.decode()),
}


@pytest.mark.parametrize(("given", "env", "path", "named_by"), LOOKUP.values(), ids=LOOKUP)
def test_lookup(given: str, env: dict[bytes, bytes], path: str, named_by: str) -> None:
    found = configfile.find(env, given)
    assert (found.path, found.named_by) == (path, named_by)


@pytest.mark.parametrize(
    ("given", "env", "who"), [("c.toml", {}, "-config"), ("", {VARIABLE: b"c"}, VARIABLE.decode())]
)
def test_a_relative_path_is_refused(given: str, env: dict[bytes, bytes], who: str) -> None:
    line = error(lambda: configfile.find(env, given)).line()
    assert "not an absolute path" in line
    assert who in line


def test_a_file_that_nobody_named_may_be_absent(tmp_path: Path) -> None:
    assert configfile.open_file(Place(str(tmp_path / "none"))) is None


@pytest.mark.parametrize("who", ["-config", VARIABLE.decode()])
def test_a_named_file_must_be_there(tmp_path: Path, who: str) -> None:
    caught = error(lambda: configfile.open_file(Place(str(tmp_path / "none"), who)))
    assert caught.message == f"read configuration {tmp_path}/none: ENOENT"
    assert caught.hint == f"named by {who}: it must be there"


BAD: dict[str, tuple[Any, str]] = {
    "directory": (lambda path: (path.unlink(), path.mkdir()), "EINVAL (not a regular file)"),
    "FIFO": (lambda path: (path.unlink(), os.mkfifo(path)), "EINVAL (not a regular file)"),
    "device": (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "EINVAL (not a regular file)"),
    "loop": (lambda path: (path.unlink(), path.symlink_to(path)), "ELOOP"),
}


@pytest.mark.parametrize(("damage", "reason"), BAD.values(), ids=BAD)
def test_what_is_no_file_is_refused(tmp_path: Path, damage: Any, reason: str) -> None:
    given = place(tmp_path)
    damage(Path(given.path))
    assert reason in error(lambda: configfile.open_file(given)).line()


UNTRUSTED: dict[str, tuple[int, int, str]] = {
    "group can write": (0o664, 0, "owned by uid 0, mode 0664"),
    "others can write": (0o646, 0, "owned by uid 0, mode 0646"),
    "another owner": (0o644, 1000, "owned by uid 1000, mode 0644"),
}


@needs_root
@pytest.mark.parametrize(("mode", "uid", "reason"), UNTRUSTED.values(), ids=UNTRUSTED)
def test_a_file_that_others_can_write_is_refused(tmp_path: Path, mode: int, uid: int, reason: str) -> None:
    given = place(tmp_path)
    Path(given.path).chmod(mode)
    os.chown(given.path, uid, 0)
    fd = configfile.open_file(given)
    assert fd is not None
    assert reason in error(lambda: configfile.check_trusted(fd, given.path)).line()
    fd.close()


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o444, 0o755])
def test_a_file_that_only_root_can_write_is_trusted(tmp_path: Path, mode: int) -> None:
    given = place(tmp_path)
    Path(given.path).chmod(mode)
    fd = configfile.open_file(given)
    assert fd is not None
    with fd:
        configfile.check_trusted(fd, given.path)


def test_a_large_file_is_refused(tmp_path: Path) -> None:
    given = place(tmp_path, b"#" * (configfile.LIMIT + 1))
    fd = configfile.open_file(given)
    assert fd is not None
    with fd:
        assert "EFBIG" in error(lambda: configfile.read(fd, given.path)).line()


KEY = b"swarm-resource"
MAY_SET: dict[str, tuple[str | bytes, bool]] = {
    "as shipped": (SHIPPED, False),
    "empty": ("", False),
    "set": ('swarm-resource = "A"', True),
    "set, indented": ('disable-require=true\n\t swarm-resource="A"', True),
    "set, quoted": ('"swarm-resource" = "A"', True),
    "set, with escapes": ('"swarm\\u002dresource" = "A"', True),
    "set, CRLF": ('a=1\r\nswarm-resource="A"\r\n', True),
    "in a comment": ('  # swarm-resource = "A"', False),
    "in a comment behind": ("a = 1 # swarm-resource", True),
    "in another table": ('[x]\nswarm-resource = "A"', True),
    "not UTF-8": (b"\xff", False),
    "too large": (b"\n" * (configfile.LIMIT + 1), True),
}


@pytest.mark.parametrize(("text", "maybe"), MAY_SET.values(), ids=MAY_SET)
def test_no_is_certain_and_all_else_is_for_the_parser(tmp_path: Path, text: str | bytes, maybe: bool) -> None:
    assert configfile.may_set(place(tmp_path, text), KEY) is maybe


@pytest.mark.parametrize("who", ["", "-config"])
def test_a_file_that_is_not_there_sets_nothing(tmp_path: Path, who: str) -> None:
    assert configfile.may_set(Place(str(tmp_path / "none"), who), KEY) is False


def test_a_file_that_cannot_be_read_may_set_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert configfile.may_set(Place(str(tmp_path / "fifo")), KEY) is True
