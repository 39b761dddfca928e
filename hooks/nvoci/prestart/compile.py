"""config.toml read as TOML and checked: once for each state of the file, so this module is not hot.

An unknown key is a warning, since configurations outlive versions; a wrong type or value is an error that names the
file, the key and what it should be. `tomllib` is there from Python 3.11 on, before that tomlkit is asked.
"""

from __future__ import annotations

import posix
import sys
import time
from errno import EEXIST

import nvoci
from nvoci import jsonfile, log
from nvoci.discover.record import texts
from nvoci.errors import HookError, hook_error, printable
from nvoci.prestart import capabilities, configfile
from nvoci.prestart.config import Config, compiled_name, document, source
from nvoci.prestart.configfile import STAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nvoci.linux.fd import Fd
    from nvoci.prestart.config import Source

_CLI, _RUNTIME, _HOOK = "nvidia-container-cli", "nvidia-container-runtime", "nvidia-container-runtime-hook"
# Key -> field of Config; a table is what stands before a dot.
KEYS = {
    "disable-require": "disable_require",
    "swarm-resource": "swarm_resource",
    "accept-nvidia-visible-devices-envvar-when-unprivileged": "accept_env_when_unprivileged",
    "accept-nvidia-visible-devices-as-volume-mounts": "accept_volume_mounts",
    capabilities.KEY: "supported_capabilities",
    f"{_CLI}.root": "root",
    f"{_CLI}.path": "cli_path",
    f"{_CLI}.environment": "environment",
    f"{_CLI}.debug": "debug",
    f"{_CLI}.ldcache": "ldcache",
    f"{_CLI}.load-kmods": "load_kmods",
    f"{_CLI}.no-pivot": "no_pivot",
    f"{_CLI}.no-cgroups": "no_cgroups",
    f"{_CLI}.user": "user",
    f"{_CLI}.ldconfig": "ldconfig",
    "nvidia-ctk.path": "ctk_path",
    f"{_RUNTIME}.debug": "runtime_debug",
    f"{_RUNTIME}.log-level": "runtime_log_level",
    f"{_RUNTIME}.runtimes": "runtimes",
    f"{_RUNTIME}.mode": "mode",
    f"{_RUNTIME}.modes.csv.mount-spec-path": "csv_mount_spec_path",
    f"{_RUNTIME}.modes.csv.compat-container-root": "csv_compat_container_root",
    f"{_RUNTIME}.modes.cdi.spec-dirs": "cdi_spec_dirs",
    f"{_RUNTIME}.modes.cdi.default-kind": "cdi_default_kind",
    f"{_RUNTIME}.modes.cdi.annotation-prefixes": "cdi_annotation_prefixes",
    f"{_RUNTIME}.modes.jit-cdi.nvcdi-feature-flags": "jit_cdi_feature_flags",
    f"{_RUNTIME}.modes.jit-cdi.nvcdi-disable-hooks": "jit_cdi_disable_hooks",
    f"{_RUNTIME}.modes.legacy.cuda-compat-mode": "cuda_compat_mode",
    f"{_HOOK}.path": "hook_path",
    f"{_HOOK}.skip-mode-detection": "skip_mode_detection",
    "features.allow-cuda-compat-libs-from-container": "allow_cuda_compat_libs_from_container",
    "features.allow-ldconfig-from-container": "allow_ldconfig_from_container",
    "features.allow-unknown-oci-spec-fields": "allow_unknown_oci_spec_fields",
    "features.disable-cuda-compat-lib-hook": "disable_cuda_compat_lib_hook",
    "features.disable-imex-channel-creation": "disable_imex_channel_creation",
    "features.ignore-imex-channel-requests": "ignore_imex_channel_requests",
    "features.no-additional-gids-for-device-nodes": "no_additional_gids_for_device_nodes",
}
_TABLES = {key[:at] for key in KEYS for at, c in enumerate(key) if c == "."}
_WANTED: dict[Any, str] = {str: "a string", bool: "true or false", texts: "a list of strings"}
_IS = {str: "a string", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a table"}
_ABSOLUTE = ("root", "debug", "ldcache", "runtime_debug", "csv_mount_spec_path", "csv_compat_container_root")
_WARNED = 20
# A file changed twice within one tick of the kernel's clock (at most 10 ms) looks the same both times.
SETTLED_SECONDS = 0.1
_ATTEMPTS = 3


def compile_file(fd: Fd, path: str, run: str) -> Config:
    """Read, check, and keep the compiled form in `run`, if that can be written. Raises HookError."""
    before = source(fd, path)
    for _ in range(_ATTEMPTS):
        posix.lseek(fd.fileno(), 0, 0)
        data = configfile.read(fd, path)
        after = source(fd, path)
        if after == before:
            break
        before = after
    else:
        raise HookError(f"{STAGE} {printable(path)}: it keeps changing", "who writes it?")
    config = parse(data, path)
    if config.unknown:
        names = ", ".join([f"`{printable(name)}`" for name in config.unknown[:_WARNED]])
        more = f" and {len(config.unknown) - _WARNED} more" if len(config.unknown) > _WARNED else ""
        log.warning(f"{STAGE} {printable(path)}: unknown: {names}{more}: ignored")
    _store(config, after, run, fd.stat().st_mode & 0o644)
    return config


def parse(data: bytes, path: str) -> Config:
    """The settings in a TOML document. path: for messages. Raises HookError."""
    try:
        doc = _toml(data.decode("utf-8"))
    except (ValueError, RecursionError) as e:
        reason = "nested too deeply" if isinstance(e, RecursionError) else printable(e)[:300]
        raise HookError(f"{STAGE} {printable(path)}: not valid TOML: {reason}", "mend it, or move it away") from None
    try:
        fields: dict[str, Any] = {"unknown": []}
        _table(doc, "", fields)
        config = Config(**fields)
        _check(config)
    except _Bad as e:
        raise HookError(f"{STAGE} {printable(path)}: {e}", e.hint) from None
    return config


class _Bad(Exception):
    """A rule that does not hold: which key, what it is, what it should be."""

    def __init__(self, message: str, hint: str = "mend it, or leave it out") -> None:
        super().__init__(message)
        self.hint = hint


def _toml(text: str) -> dict[str, Any]:
    """Raises ValueError (both libraries' errors are some) or RecursionError."""
    try:
        from tomllib import loads  # type: ignore[import-not-found]  # mypy checks for 3.10
    except ImportError:
        return _with_tomlkit(text)
    doc: dict[str, Any] = loads(text)
    return doc


def _with_tomlkit(text: str) -> dict[str, Any]:
    """It lies in `vendor` of an installed tree, where a hook does not look by itself."""
    vendor = nvoci.__path__[0].rpartition("/")[0] + "/vendor"
    sys.path.append(vendor)
    try:
        import tomlkit
    except ImportError:
        raise HookError(f"{STAGE}: no reader of TOML is there", "install tomlkit, or Python 3.11 or later") from None
    finally:
        sys.path.remove(vendor)
    try:
        return tomlkit.parse(text).unwrap()
    except tomlkit.exceptions.TOMLKitError as e:
        raise ValueError(str(e)) from None


def _table(table: dict[str, Any], prefix: str, fields: dict[str, Any]) -> None:
    """Sort what is in a table into fields, and the names of what nobody knows into fields["unknown"]."""
    for name, value in table.items():
        key = prefix + name
        if "." not in name and key in _TABLES:
            if type(value) is not dict:
                raise _Bad(f"`{key}` is {_what(value)}, not a table")
            _table(value, key + ".", fields)
        elif "." not in name and key in KEYS:
            fields[KEYS[key]] = _value(key, value)
        else:
            fields["unknown"].append(key)


def _value(key: str, value: Any) -> Any:
    kind = Config.SCHEMA[KEYS[key]][0]
    words = value if kind is texts and type(value) is list else [value]
    if type(value) is not (list if kind is texts else kind) or (kind is texts and not _all_texts(words)):
        raise _Bad(f"`{key}` is {_what(value)}, not {_WANTED[kind]}")
    if any(type(word) is str and "\0" in word for word in words):
        raise _Bad(f"`{key}` holds a NUL")
    return value


def _all_texts(words: list[Any]) -> bool:
    return all(type(word) is str for word in words)


def _what(value: Any) -> str:
    return "a list of other things" if type(value) is list and value else _IS.get(type(value), "a date or time")


def _check(config: Config) -> None:
    """The values that have a form."""
    names = {field: key for key, field in KEYS.items()}
    for field in _ABSOLUTE:
        path = getattr(config, field)
        if path and not path.startswith("/"):
            raise _Bad(f"`{names[field]}` is `{printable(path)}`, not an absolute path")
    host = config.ldconfig.startswith("@")
    if config.ldconfig and not config.ldconfig[host:].startswith("/"):
        raise _Bad(f"`{names['ldconfig']}` is `{printable(config.ldconfig)}`, not `@` and an absolute path")
    if config.ldconfig and not host and not config.allow_ldconfig_from_container:
        raise _Bad(f"`{names['ldconfig']}` is `{printable(config.ldconfig)}`, a path in the container",
                   "write @ before a path of the host")  # fmt: skip
    try:
        capabilities.supported(config.supported_capabilities)
    except ValueError as e:
        raise _Bad(f"Invalid value for config option '{capabilities.KEY}'; {printable(e)[:300]}") from None


def _store(config: Config, of: Source, run: str, mode: int) -> None:
    """Where it cannot be kept (another user, a read-only file system), the next start reads TOML again."""
    try:
        if of[-1] / 1e9 > time.time() - SETTLED_SECONDS:
            return
        _make_directory(run)
        data = jsonfile.dumps(document(config, of)).encode("ascii") + b"\n"
        jsonfile.write_atomic(f"{run}/{compiled_name(of[0])}", data, mode | 0o600)
    except (OSError, HookError) as e:
        error = e if isinstance(e, HookError) else hook_error("keep compiled configuration in", run, e)
        log.info("compiled configuration not kept", reason=error.line())


def _make_directory(path: str) -> None:
    try:
        posix.mkdir(path, 0o755)
    except OSError as e:
        if e.errno != EEXIST:
            raise
    st = posix.stat(path)
    if st.st_uid not in (0, posix.geteuid()) or st.st_mode & 0o022:
        raise HookError(f"keep compiled configuration in {printable(path)}: it is not root's alone",
                        "check who made it")  # fmt: skip
