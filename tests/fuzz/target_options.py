"""Words: options of mounts in a specification, command lines of the hooks and of nvidia-container-cli, users."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz.registry import Target, register
from fuzz.words import one_line

from nvoci.errors import HookError
from nvoci.hook import options, table
from nvoci.inject import mountopts
from nvoci.inject.mountopts import MountOptions
from nvoci.linux import abi
from nvoci.prestart import cliuser

# -- options of mounts ----------------------------------------------------------------------------------------------

_KNOWN = ("ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "rro", "rnosuid", "rbind", "bind",
    "slave", "rprivate",
          "shared", "defaults", "size=1m", "mode=0755", "uid=0", "context=x", "remount", "relatime", "")  # fmt: skip
_FLAGS = {"ro": abi.MS_RDONLY, "nosuid": abi.MS_NOSUID, "nodev": abi.MS_NODEV, "noexec": abi.MS_NOEXEC}
_ALL = sum(_FLAGS.values())


def _words(data: bytes) -> list[str]:
    return data.decode("utf-8", "replace").split(",")


def _mount_options(data: bytes) -> tuple[MountOptions, MountOptions]:
    words = _words(data)
    return mountopts.parse(words), mountopts.parse(words, tmpfs=True)


def _check_mount_options(data: bytes, case: bytes, answer: tuple[MountOptions, MountOptions]) -> None:
    """The last word counts; what is handed to a tmpfs cannot be two options; nothing is lost without a word."""
    words = _words(data)
    for found in answer:
        assert found.flags | found.all_flags | _ALL == _ALL
        assert found.propagation in {abi.MS_PRIVATE, abi.MS_SLAVE}
        for on, bit in _FLAGS.items():
            off = "rw" if on == "ro" else on[2:]
            last = [word for word in words if word in {on, off}][-1:]
            assert bool(found.flags & bit) == (last == [on]), on
        assert set(found.left_out) <= set(words)
        assert not set(found.left_out) & set(_FLAGS)
        for option in found.data:
            name, _, value = option.partition("=")
            assert name in {"size", "nr_blocks", "nr_inodes", "mode", "uid", "gid", "huge"}
            assert value.isascii()
            assert all(c.isalnum() or c in "%_" for c in value)
    assert answer[0].data == []
    assert mountopts.parse(answer[0].words().split(",")).flags == answer[0].flags | answer[0].all_flags


register(
    Target(
        "mount-options", parse=_mount_options, errors=(), check=_check_mount_options, max_size=1 << 10,
        executions=2500,
        seeds=lambda: [",".join(_KNOWN).encode(), b"rro,rw", b"ro,rbind,rslave", b"size=50%,mode=1777,nr_inodes=4k",
        b""],
        tokens=(*[word.encode() + b"," for word in _KNOWN], b"r", b"no", b"=", b"%", b"\0", b",", b"\xff"),
    )
)  # fmt: skip


# -- command lines of the hooks -------------------------------------------------------------------------------------

_SWITCHES = {b"NVIDIA_CTK_DEBUG": b"true", b"NVIDIA_CDI_QUIET": b"0"}


def _command(data: bytes) -> tuple[str, dict[str, Any]]:
    """The hook that is named, and its options; `Help` is an answer too."""
    words = data.decode("utf-8", "surrogateescape").split("\n")
    try:
        found = options.parse_globals(words, _SWITCHES)
        if found.words[:1] == ["run"]:
            own, groups = options.split_run(found.words[1:])
            assert "--" not in own + [word for group in groups for word in group]
            return "run", {}
        hook = table.HOOKS.get(found.words[0]) if found.words else None
        return (hook.name, options.parse_hook(hook, found.words[1:])) if hook else ("", {})
    except options.Help:
        return "help", {}


def _check_command(data: bytes, case: bytes, answer: tuple[str, dict[str, Any]]) -> None:
    """Every option is there and of its kind; a list or text is made of what was given, and no NUL is in it."""
    name, found = answer
    if name not in table.HOOKS:
        return
    kinds = {table.LIST: list, table.TEXT: str, table.FLAG: bool, table.NUMBER: float}
    known = {option.name: option for option in table.HOOKS[name].options}
    assert set(found) == set(known)
    text = data.decode("utf-8", "surrogateescape")
    for key, value in found.items():
        assert type(value) is kinds[known[key].kind], key
        if known[key].kind == table.NUMBER:
            assert 0 <= value <= options.MAX_TIMEOUT
        parts = value if isinstance(value, list) else [value] if isinstance(value, str) else []
        assert all("\0" not in part for part in parts)
        assert all(part in text for part in parts if part != known[key].default)


def _command_seeds() -> list[bytes]:
    lines = [
        "create-symlinks --link a::/b --link=c::/d", "update-ldcache --folder /a,/b --timeout 5",
        "chmod -mode 755 --path /x",
        "--debug=true -d --quiet enable-cuda-compat --host-driver-version 550.54",
        "run --timeout 3 -- chmod --path /x -- noop",
        "mount-mig-devices --gpu-instance 0:1", "--help", "chmod --help", "update-ldcache --timeout=601",
        "inject --from-annotations",
    ]  # fmt: skip
    return [line.replace(" ", "\n").encode() for line in lines]


register(
    Target(
        "hook-options", parse=_command, errors=(HookError,), allowed=one_line, check=_check_command,
        seeds=_command_seeds,
        max_size=1 << 10, executions=1500, tokens=(
            *sorted({f"\n--{option.name}\n".encode() for hook in table.HOOKS.values() for option in hook.options}),
            *[name.encode() + b"\n" for name in table.HOOKS], b"\n", b"--", b"=", b",", b"-", b"\0", b"\xff",
            b"\xd9\xa1", b"1e3", b"5.",
            b".", b"true",
        ),
    )
)  # fmt: skip


# -- users ----------------------------------------------------------------------------------------------------------

_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/x\nme:x:1000:100\nodd:x\n:::\n+::::::\n"
_ASKED = ("root", "1000", "me:100", "65534:65534", "nobody:root", "me:", "")


@contextlib.contextmanager
def _database(data: bytes) -> Iterator[str]:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        yield file.name


def _users(path: str) -> list[tuple[int, int] | HookError]:
    found: list[tuple[int, int] | HookError] = []
    for text in _ASKED:
        try:
            found.append(cliuser.parse(text, path, path))
        except HookError as e:
            found.append(e)
    return found


def _check_users(data: bytes, path: str, answer: list[tuple[int, int] | HookError]) -> None:
    """Ids that setresuid(2) takes; numbers that are asked for are given, whatever the file holds."""
    for text, found in zip(_ASKED, answer):
        if isinstance(found, HookError):
            assert one_line(found)
            assert text != "65534:65534"
            continue
        assert all(0 <= number < 0xFFFFFFFF for number in found)
        user = text.partition(":")[0]
        lines = [line.split(b":") for line in data.split(b"\n")]
        named = [line for line in lines if line[0] == user.encode() and len(line) > 3]
        assert found[0] == (int(user) if user.isdigit() else int(named[0][2]))


register(
    Target(
        "passwd", parse=_users, prepare=_database, errors=(), check=_check_users, seeds=lambda: [_PASSWD, b"",
        _PASSWD * 20],
        max_size=1 << 12, executions=700, tokens=(b"root", b"me", b"nobody", b":", b"x", b"0", b"4294967295",
            b"4294967294", b"\n",
                                                  b"-1", b"\xd9\xa1", b"\xff", b"\0", b"me:x:1:2\n", b"\r"),
    )
)  # fmt: skip
