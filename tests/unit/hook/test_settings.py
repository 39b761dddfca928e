"""Settings of the hooks: /etc/nvoci/hook.json, trusted only if it is root's alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from unit.hook.hooktools import Program, one_error

from nvoci.errors import HookError
from nvoci.hook import settings

GOOD: dict[str, tuple[Any, dict[str, Any]]] = {
    "empty": ({}, {}),
    "empty log": ({"log": {}}, {}),
    "log file": ({"log": {"file": "/x", "level": "debug"}}, {"log_file": "/x", "log_level": "debug"}),
    "syslog": ({"log": {"syslog": True}}, {"log_syslog": True}),
    "strict": ({"strict": True}, {"strict": True}),
    "timeout": ({"timeout": 7}, {"timeout": 7}),
    "fraction": ({"timeout": 0.5}, {"timeout": 0.5}),
    "nodes are made": ({"device-nodes": "mknod"}, {"device_nodes": "mknod"}),
    "builtin engine": ({"ldcache-engine": "builtin"}, {"ldcache_engine": "builtin"}),
    "ldconfig engine": ({"ldcache-engine": "ldconfig"}, {"ldcache_engine": "ldconfig"}),
    "longest timeout": ({"timeout": 600}, {"timeout": 600}),
}
BAD: dict[str, tuple[Any, str]] = {
    "not an object": ([], "not a JSON object"),
    "unknown key": ({"Strict": True}, "unknown key `Strict`"),
    "unknown key, hostile": ({"a\nb": True}, r"unknown key `a\nb`"),
    "unknown log key": ({"log": {"path": "/x"}}, "unknown key `log.path`"),
    "log is a string": ({"log": "/x"}, "`log` is not an object"),
    "log is null": ({"log": None}, "`log` is not an object"),
    "relative log file": ({"log": {"file": "x"}}, "`log.file` is not an absolute path"),
    "log file with a NUL": ({"log": {"file": "/x\0y"}}, "`log.file`"),
    "log file is a number": ({"log": {"file": 3}}, "`log.file`"),
    "log file is null": ({"log": {"file": None}}, "`log.file`"),
    "syslog is 1": ({"log": {"syslog": 1}}, "`log.syslog` is not true or false"),
    "unknown level": ({"log": {"level": "trace"}}, "`log.level` is not one of debug"),
    "level is a list": ({"log": {"level": ["debug"]}}, "`log.level`"),
    "strict is a string": ({"strict": "true"}, "`strict` is not true or false"),
    "strict is 0": ({"strict": 0}, "`strict`"),
    "timeout 0": ({"timeout": 0}, "`timeout` is not more than 0"),
    "timeout negative": ({"timeout": -1}, "`timeout`"),
    "timeout too long": ({"timeout": 601}, "`timeout`"),
    "timeout is true": ({"timeout": True}, "`timeout` is not a number"),
    "timeout is a string": ({"timeout": "3"}, "`timeout`"),
    "timeout huge": ({"timeout": int("9" * 60)}, "`timeout`"),
    "unknown way to nodes": ({"device-nodes": "copy"}, "`device-nodes` is not one of bind, mknod"),
    "unknown engine": ({"ldcache-engine": "magic"}, "`ldcache-engine` is not one of"),
    "engine is empty": ({"ldcache-engine": ""}, "`ldcache-engine` is not one of builtin, ldconfig"),
    "engine is null": ({"ldcache-engine": None}, "`ldcache-engine`"),
    "engine in capitals": ({"ldcache-engine": "Builtin"}, "`ldcache-engine`"),
    "engine is an object": ({"ldcache-engine": {}}, "`ldcache-engine`"),
}


def _write(tmp_path: Path, doc: Any) -> str:
    path = tmp_path / "hook.json"
    path.write_text(doc if isinstance(doc, str) else json.dumps(doc))
    path.chmod(0o644)
    return str(path)


def _fields(found: settings.Settings) -> dict[str, Any]:
    return {name: getattr(found, name) for name in settings.Settings.__slots__}


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    assert _fields(settings.load(str(tmp_path / "none"))) == _fields(settings.Settings())


def test_the_engine_that_starts_no_process_is_the_default() -> None:
    assert settings.Settings().ldcache_engine == settings.BUILTIN == "builtin"


@pytest.mark.parametrize(("doc", "changed"), GOOD.values(), ids=GOOD)
def test_settings_that_are_taken_over(tmp_path: Path, doc: Any, changed: dict[str, Any]) -> None:
    assert _fields(settings.load(_write(tmp_path, doc))) == {**_fields(settings.Settings()), **changed}


@pytest.mark.parametrize(("doc", "reason"), BAD.values(), ids=BAD)
def test_settings_that_are_refused_by_name(tmp_path: Path, doc: Any, reason: str) -> None:
    with pytest.raises(HookError) as caught:
        settings.load(_write(tmp_path, doc))
    assert caught.value.message.startswith("read settings /")
    assert reason in caught.value.line()


def _mode(mode: int) -> Any:
    return lambda path: path.chmod(mode)


UNTRUSTED: dict[str, Any] = {
    "group can write": _mode(0o664),
    "others can write": _mode(0o646),
    "others can write, with sticky bit": _mode(0o1646),
    "another owner": lambda path: os.chown(path, 1000, 0),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "a FIFO": lambda path: (path.unlink(), os.mkfifo(path)),
    "a device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "a link that loops": lambda path: (path.unlink(), path.symlink_to(path)),
    "larger than 64 KiB": lambda path: os.truncate(path, (1 << 16) + 1),
    "a file where the directory should be": None,
    "not UTF-8": lambda path: path.write_bytes(b'{"\xff": 1}'),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", UNTRUSTED.values(), ids=UNTRUSTED)
def test_a_file_that_cannot_be_trusted_or_read_is_refused(tmp_path: Path, damage: Any) -> None:
    path = _write(tmp_path, {})
    if damage is None:
        path += "/hook.json"
    else:
        damage(Path(path))
    with pytest.raises(HookError, match=r"^read settings ") as caught:
        settings.load(path)
    assert str(tmp_path) in caught.value.line()


# -- as a process --------------------------------------------------------------------------------------------------


def _using(path: str) -> str:
    return f"from nvoci.hook import settings; settings.load.__defaults__ = ({path!r},)"


def test_a_refused_file_stops_the_hook_before_anything_is_done(program: Program) -> None:
    path = _write(program.folder, {"strickt": True})
    line = one_error(program.run("create-symlinks", "--link", "a::/b", extra=_using(path)))
    assert "unknown key `strickt`" in line
    assert not any(program.root.iterdir())


ERRORS = {
    "unknown flag": (["noop", "--bar"], "flag provided but not defined"),
    "bad value": (["create-symlinks", "--link", "x"], "invalid symlink specification"),
    "directory in the way": (["create-symlinks", "--link", "a::/dir"], "EISDIR"),
    "unknown hook": (["foo"], "Unsupported CDI hook"),
}


@pytest.mark.parametrize(("words", "reason"), ERRORS.values(), ids=ERRORS)
def test_what_goes_wrong_is_in_the_log_file_too(program: Program, words: list[str], reason: str) -> None:
    (program.root / "dir").mkdir()
    log_file = program.folder / "hook.log"
    path = _write(program.folder, {"log": {"file": str(log_file)}})
    result = program.run(*words, extra=_using(path))
    assert reason in result.stderr
    assert log_file.read_text() == result.stderr
    assert log_file.stat().st_mode & 0o7777 == 0o640


def test_the_log_file_takes_its_own_level(program: Program) -> None:
    log_file = program.folder / "hook.log"
    path = _write(program.folder, {"log": {"file": str(log_file), "level": "info"}})
    result = program.run("create-symlinks", "--link", "a::/b", extra=_using(path))
    assert (result.rc, result.stderr) == (0, "")
    assert 'level=info msg="link made" link=/b target=a' in log_file.read_text()


BAD_LOGS: dict[str, Any] = {
    "missing directory": lambda path: str(path / "none" / "log"),
    "a directory": str,
    "a link": lambda path: ((path / "l").symlink_to("target"), str(path / "l"))[1],
    "a FIFO nobody reads": lambda path: (os.mkfifo(path / "f"), str(path / "f"))[1],
}


@pytest.mark.parametrize("make", BAD_LOGS.values(), ids=BAD_LOGS)
def test_a_log_that_cannot_be_opened_is_a_warning(program: Program, make: Any) -> None:
    path = _write(program.folder, {"log": {"file": make(program.folder)}})
    result = program.run("create-symlinks", "--link", "a::/b", extra=_using(path))
    assert result.rc == 0
    assert "level=warning" in result.stderr
    assert "open log" in result.stderr
    assert os.readlink(program.root / "b") == "a"
    assert not (program.folder / "target").exists()


def test_a_full_log_does_not_stop_a_start(program: Program) -> None:
    path = _write(program.folder, {"log": {"file": "/dev/full", "level": "debug"}})
    result = program.run("create-symlinks", "--link", "a::/b", extra=_using(path))
    assert (result.rc, result.stderr) == (0, "")


def test_timeout_and_strict_of_the_file_hold_and_flags_win(program: Program) -> None:
    path = _write(program.folder, {"timeout": 30})
    extra = _using(path) + "; from nvoci.hook import watchdog; watchdog.GRACE = 0.2"
    result = program.do("wait:20", words=["--timeout", "0.2"], extra=extra)
    assert "not finished after 0.2 s" in one_error(result)
    path = _write(program.folder, {"timeout": 0.2})
    assert "not finished after 0.2 s" in one_error(program.do("wait:20", extra=extra))
