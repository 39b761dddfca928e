"""config.toml as TOML: every key, its type and default; what is unknown, broken or of the wrong type; both readers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from unit.prestart.prestarttools import SHIPPED, error, place, settings

from nvoci import log
from nvoci.discover.record import texts
from nvoci.errors import HookError
from nvoci.prestart import capabilities, compile, config
from nvoci.prestart.config import Config

HOOKS = Path(__file__).resolve().parents[3] / "hooks"
ALL_CAPABILITIES = "compat32,compute,display,graphics,ngx,utility,video"
# key: default, another value that it takes
KEYS: dict[str, tuple[Any, Any]] = {
    "disable-require": (False, True),
    "swarm-resource": ("", "A,B"),
    "accept-nvidia-visible-devices-envvar-when-unprivileged": (True, False),
    "accept-nvidia-visible-devices-as-volume-mounts": (False, True),
    "supported-driver-capabilities": (ALL_CAPABILITIES, "utility"),
    "nvidia-container-cli.root": ("", "/run/nvidia/driver"),
    "nvidia-container-cli.path": ("", "/usr/bin/nvidia-container-cli"),
    "nvidia-container-cli.environment": ((), ["A=b"]),
    "nvidia-container-cli.debug": ("", "/var/log/cli.log"),
    "nvidia-container-cli.ldcache": ("", "/etc/other.cache"),
    "nvidia-container-cli.load-kmods": (True, False),
    "nvidia-container-cli.no-pivot": (False, True),
    "nvidia-container-cli.no-cgroups": (False, True),
    "nvidia-container-cli.user": ("", "root:video"),
    "nvidia-container-cli.ldconfig": ("", "@/sbin/ldconfig.real"),
    "nvidia-ctk.path": ("nvidia-ctk", "/x"),
    "nvidia-container-runtime.debug": ("/dev/null", "/x"),
    "nvidia-container-runtime.log-level": ("info", "debug"),
    "nvidia-container-runtime.runtimes": (("runc", "crun"), ["/usr/bin/youki"]),
    "nvidia-container-runtime.mode": ("auto", "legacy"),
    "nvidia-container-runtime.modes.csv.mount-spec-path": (
        "/etc/nvidia-container-runtime/host-files-for-container.d", "/x"
    ),
    "nvidia-container-runtime.modes.csv.compat-container-root": ("", "/x"),
    "nvidia-container-runtime.modes.cdi.spec-dirs": (("/etc/cdi", "/var/run/cdi"), []),
    "nvidia-container-runtime.modes.cdi.default-kind": ("nvidia.com/gpu", "a.b/c"),
    "nvidia-container-runtime.modes.cdi.annotation-prefixes": (("cdi.k8s.io/",), ["a/", "b/"]),
    "nvidia-container-runtime.modes.jit-cdi.nvcdi-feature-flags": ((), ["a"]),
    "nvidia-container-runtime.modes.jit-cdi.nvcdi-disable-hooks": ((), ["all"]),
    "nvidia-container-runtime.modes.legacy.cuda-compat-mode": ("ldconfig", "mount"),
    "nvidia-container-runtime-hook.path": ("nvidia-container-runtime-hook", "/x"),
    "nvidia-container-runtime-hook.skip-mode-detection": (False, True),
    "features.allow-cuda-compat-libs-from-container": (False, True),
    "features.allow-ldconfig-from-container": (False, True),
    "features.allow-unknown-oci-spec-fields": (False, True),
    "features.disable-cuda-compat-lib-hook": (False, True),
    "features.disable-imex-channel-creation": (False, True),
    "features.ignore-imex-channel-requests": (False, True),
    "features.no-additional-gids-for-device-nodes": (False, True),
}  # fmt: skip


@pytest.fixture(params=["tomllib", "tomlkit"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two; tomllib is not there before Python 3.11."""
    name: str = request.param
    pytest.importorskip(name)
    if name == "tomlkit":
        monkeypatch.setitem(sys.modules, "tomllib", None)
    return name


def toml(value: Any) -> str:
    """As it is written."""
    if isinstance(value, bool):
        return str(value).lower()
    return (
        str(value).replace("'", '"') if isinstance(value, list) else f'"{value}"' if isinstance(value, str) else value
    )


def line(key: str, value: Any) -> str:
    """A document with one key."""
    table, _, name = key.rpartition(".")
    return f"[{table}]\n{name} = {toml(value)}\n" if table else f"{name} = {toml(value)}\n"


def test_the_table_of_keys_and_the_settings_fit_each_other() -> None:
    assert set(compile.KEYS) == set(KEYS)
    assert list(compile.KEYS.values()) == [name for name in Config.SCHEMA if name != "unknown"]
    assert tuple(Config.SCHEMA) == Config.__slots__
    assert set(Config.SCHEMA) == set(Config.__annotations__) - {"SCHEMA"}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_has_its_default_and_takes_its_value(key: str, reader: str) -> None:
    default, other = KEYS[key]
    field = compile.KEYS[key]
    assert getattr(Config(), field) == default
    found = settings(line(key, other))
    kept = tuple(other) if isinstance(other, list) else other
    assert found == Config().replace(**{field: kept})
    assert type(getattr(found, field)) is type(kept)


def test_the_file_that_packages_ship(reader: str) -> None:
    assert settings(SHIPPED) == Config(ldconfig="@/sbin/ldconfig.real")
    assert settings(SHIPPED.replace("#", "")).root == "/run/nvidia/driver"


def test_an_empty_file_is_the_defaults(reader: str) -> None:
    assert settings("") == Config()


# kind: what is not of it, and how it is called
WRONG: dict[Any, dict[str, str]] = {
    str: {"3": "a number", "true": "true or false", "[]": "a list", '["a"]': "a list of other things"},
    bool: {'"true"': "a string", "1": "a number", "[true]": "a list of other things", "1.5": "a number"},
    texts: {'"a"': "a string", "[1]": "a list of other things", '["a", ["b"]]': "a list of other things",
            "true": "true or false", "1979-05-27": "a date or time"},
}  # fmt: skip
NAMES = {str: "a string", bool: "true or false", texts: "a list of strings"}


@pytest.mark.parametrize("key", KEYS)
def test_a_value_of_another_type_is_refused_by_name(key: str) -> None:
    kind = Config.SCHEMA[compile.KEYS[key]][0]
    table, _, name = key.rpartition(".")
    for text, what in WRONG[kind].items():
        caught = error(lambda text=text: settings(f"[{table}]\n{name} = {text}" if table else f"{name} = {text}"))
        assert caught.message == f"read configuration /c/config.toml: `{key}` is {what}, not {NAMES[kind]}"
    table_error = error(lambda: settings(f"[{key}]\nx = 1"))
    assert table_error.message.endswith(f"`{key}` is a table, not {NAMES[kind]}")


@pytest.mark.parametrize("table", sorted(compile._TABLES))
def test_a_table_that_is_something_else_is_refused_by_name(table: str) -> None:
    assert error(lambda: settings(f"{table} = 3")).message.endswith(f"`{table}` is a number, not a table")
    assert error(lambda: settings(f"[[{table}]]\na = 1")).message.endswith("a list of other things, not a table")


BAD: dict[str, tuple[str, str]] = {
    "root, relative": (line("nvidia-container-cli.root", "run"), "`nvidia-container-cli.root` is `run`, not an abs"),
    "debug, relative": (line("nvidia-container-cli.debug", "x"), "`nvidia-container-cli.debug` is `x`, not an abs"),
    "ldcache, hostile": (line("nvidia-container-cli.ldcache", "a\\nb"), r"is `a\nb`, not an absolute path"),
    "NUL": (line("nvidia-container-cli.root", "/a\\u0000"), "`nvidia-container-cli.root` holds a NUL"),
    "NUL in a list": ('[nvidia-container-cli]\nenvironment = ["A=\\u0000"]', "nvidia-container-cli.environment` holds"),
    "ldconfig of the container": (
        line("nvidia-container-cli.ldconfig", "/sbin/ldconfig"), "`/sbin/ldconfig`, a path in the container (write @"
    ),
    "ldconfig, relative": (line("nvidia-container-cli.ldconfig", "@ldconfig"), "`@ldconfig`, not `@` and an absolute"),
    "ldconfig, relative, allowed": (
        line("nvidia-container-cli.ldconfig", "x") + line("features.allow-ldconfig-from-container", True),
        "`x`, not `@`"
    ),
    "unknown capability": (
        line("supported-driver-capabilities", "compute,gpu"),
        "Invalid value for config option 'supported-driver-capabilities'; gpu: not among compat32, compute",
    ),
    "no TOML": ("disable-require", "not valid TOML: "),
    "key twice": ("a = 1\na = 2", "not valid TOML: "),
    "table twice": ("[a]\n[a]", "not valid TOML: "),
    "JSON": ('{"disable-require": true}', "not valid TOML: "),
    "no end": ('a = "', "not valid TOML: "),
    "deep": ("a = " + "[" * 5000, "not valid TOML: "),
}  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), BAD.values(), ids=BAD)
def test_a_value_that_cannot_be_is_refused_by_name(text: str, reason: str, reader: str) -> None:
    caught = error(lambda: settings(text))
    assert caught.message.startswith("read configuration /c/config.toml: ")
    assert reason in caught.line()
    assert caught.hint


@pytest.mark.parametrize("data", [b"\xff", b"a = '\xff'", "a = 1".encode("utf-16")], ids=["byte", "string", "UTF-16"])
def test_what_is_not_utf8_is_refused(data: bytes) -> None:
    assert "not valid TOML: " in error(lambda: compile.parse(data, "/c")).line()


def test_the_ldconfig_of_the_container_may_be_allowed() -> None:
    text = line("nvidia-container-cli.ldconfig", "/sbin/ldconfig") + line(
        "features.allow-ldconfig-from-container", True
    )
    assert settings(text).ldconfig == "/sbin/ldconfig"


UNKNOWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "at the top": ("a = 1", ("a",)),
    "in a table": ("[nvidia-container-cli]\nroots = '/'", ("nvidia-container-cli.roots",)),
    "a table": ("[other]\na = 1\nb = 2", ("other",)),
    "a table below one": ("[nvidia-container-runtime.modes.other]\na = 1", ("nvidia-container-runtime.modes.other",)),
    "underscore": ("disable_require = true", ("disable_require",)),
    "capitals": ("Disable-Require = true", ("Disable-Require",)),
    "old": ("[nvidia-container-runtime]\nexperimental = false", ("nvidia-container-runtime.experimental",)),
    "a dotted name in quotes": ('"nvidia-container-cli.root" = "/x"', ("nvidia-container-cli.root",)),
    "several": ("b = 1\na = 1\n[c]", ("b", "a", "c")),
}


@pytest.mark.parametrize(("text", "names"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_key_is_told_and_changes_nothing(text: str, names: tuple[str, ...], reader: str) -> None:
    assert settings(text) == Config(unknown=names)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged, warnings and above."""
    seen: list[str] = []
    monkeypatch.setattr(log, "_sinks", [(log.WARNING, seen.append)])
    return seen


@pytest.mark.usefixtures("settled")
def test_unknown_keys_are_warned_about_once(tmp_path: Path, lines: list[str]) -> None:
    given = place(tmp_path, "a = 1\n'b\\u001b' = 2\nb = 3\n")
    for _ in range(3):
        assert config.load(given, str(tmp_path / "run")).unknown == ("a", "b\\u001b", "b")
    assert len(lines) == 1
    assert "unknown: `a`, `b\\\\u001b`, `b`: ignored" in lines[0]


def test_many_unknown_keys_are_one_short_line(tmp_path: Path, lines: list[str]) -> None:
    config.load(place(tmp_path, "".join(f"key{i} = 1\n" for i in range(1000))), str(tmp_path / "run"))
    assert len(lines) == 1
    assert len(lines[0]) < 1000
    assert "and 980 more: ignored" in lines[0]


def test_the_vendored_reader_of_an_installed_tree_is_found(tmp_path: Path) -> None:
    """A hook's sys.path has the package alone; beside it lies what the commands for people use."""
    pytest.importorskip("tomlkit")
    tomlkit = sys.modules["tomlkit"].__file__
    assert tomlkit is not None
    tree = tmp_path / "lib"
    tree.mkdir()
    (tree / "nvoci").symlink_to(HOOKS / "nvoci")
    (tree / "vendor").symlink_to(Path(tomlkit).parents[1])
    code = f"""
import sys
sys.path.insert(0, {str(tree)!r})
sys.modules["tomllib"] = None
before = list(sys.path)
from nvoci.prestart import compile
print(compile.parse(b"disable-require = true", "/c").disable_require, sys.path == before)
"""
    done = subprocess.run(["/usr/bin/python3", "-ISB", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"


def test_without_any_reader_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tomllib", "tomlkit"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(HookError, match="no reader of TOML"):
        settings("")


def test_a_file_that_keeps_changing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = place(tmp_path)
    read = compile.configfile.read

    def changing(fd: Any, path: str) -> bytes:
        os.truncate(path, os.stat(path).st_size + 1)
        return read(fd, path)

    monkeypatch.setattr(compile.configfile, "read", changing)
    assert "it keeps changing" in error(lambda: config.load(given, str(tmp_path / "run"))).line()


def test_the_capabilities_of_the_model_are_known_here() -> None:
    assert ",".join(capabilities.EVERY) == ALL_CAPABILITIES
