"""The hook programs as processes: exit codes, unknown hooks and flags, switches, the state's way in."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from unit.hook.hooktools import Program, one_error, snapshot

STAMP = r'^time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ" '
NO_HOOK = r'level=warning msg="No CDI hook specified"\n$'
UNKNOWN = r'level=warning msg="Unsupported CDI hook: foo"\n$'
NOTHING = r"\A\Z"

# words: (exit status, pattern of stderr)
INVOCATIONS: dict[str, tuple[int, str]] = {
    "": (0, STAMP + NO_HOOK),
    "foo": (0, STAMP + UNKNOWN),
    "foo --bar": (0, STAMP + UNKNOWN),
    "foo --help": (0, STAMP + UNKNOWN),
    "foo noop": (0, STAMP + UNKNOWN),
    "Noop": (0, STAMP + r'level=warning msg="Unsupported CDI hook: Noop"\n$'),
    "--bar": (0, STAMP + NO_HOOK),
    "--bar foo": (0, STAMP + NO_HOOK),
    "--bar noop": (0, STAMP + NO_HOOK),
    "--debug": (0, STAMP + NO_HOOK),
    "--quiet": (0, NOTHING),
    "--quiet foo": (0, NOTHING),
    "--quiet --debug foo": (0, NOTHING),
    "noop": (0, NOTHING),
    "noop --bar": (1, STAMP + r"level=error .*flag provided but not defined: `--bar`"),
    "noop -bar": (1, STAMP + r"level=error .*not defined: `-bar`"),
    "--quiet noop --bar": (1, STAMP + r"level=error"),
    "--debug=banana noop": (1, STAMP + r"level=error .*could not parse `banana` as bool"),
    "create-symlinks --link": (1, STAMP + r"level=error .*flag needs an argument"),
    "chmod": (1, STAMP + r"level=error .*a non-empty mode must be specified"),
    "run": (0, STAMP + NO_HOOK),
    "run --bar": (1, STAMP + r"level=error .*run: flag provided but not defined"),
    "run noop": (0, STAMP + NO_HOOK),
    "run -- foo --bar": (0, STAMP + UNKNOWN),
    "run -- noop --bar": (1, STAMP + r"level=error .*noop: flag provided but not defined"),
}


@pytest.mark.parametrize("words", INVOCATIONS)
def test_exit_status_and_message_of_nvidia_cdi_hook(program: Program, words: str) -> None:
    rc, pattern = INVOCATIONS[words]
    result = program.run(*words.split(), stdin=b"garbage")
    assert (result.rc, result.stdout) == (rc, "")
    assert re.search(pattern, result.stderr), result.stderr
    assert result.stderr.count("\n") <= 1


CTK: dict[str, tuple[int, str]] = {
    "hook foo": (0, UNKNOWN),
    "hook foo --bar": (0, UNKNOWN),
    "hook": (0, NO_HOOK),
    "hook --bar foo": (0, NO_HOOK),
    "hook noop": (0, NOTHING),
    "hook noop --bar": (1, "level=error"),
    "--quiet hook foo": (0, NOTHING),
    "--config /x.toml hook foo": (0, UNKNOWN),
    "--config=hook hook foo": (0, UNKNOWN),
    "--config hook hook noop --bar": (1, "level=error"),
}


@pytest.mark.parametrize("words", CTK)
def test_exit_status_and_message_of_nvidia_ctk(program: Program, words: str) -> None:
    rc, pattern = CTK[words]
    result = program.run(*words.split(), function="ctk", stdin=b"garbage")
    assert result.rc == rc
    assert re.search(pattern, result.stderr), result.stderr


NOT_HOOK = ("", "foo", "foo hook", "cdi", "cdi list hook", "--debug cdi", "--config hook", "--config hook cdi",
            "- hook", "-- hook", "--help", "--version", "hooks", "x=hook hook")  # fmt: skip


@pytest.mark.parametrize("words", NOT_HOOK)
def test_nvidia_ctk_leaves_other_commands_to_its_entry_file_untouched(program: Program, words: str) -> None:
    after = "\nimport atexit, posix\natexit.register(lambda: print(posix.environ.get(b'KEPT'), posix.getcwd()))"
    result = program.run(*words.split(), function="ctk", extra=after, env={"KEPT": "1"}, cwd=program.folder)
    assert (result.rc, result.stdout, result.stderr) == (0, f"b'1' {program.folder}\n", "")


@pytest.mark.parametrize(
    "words", ["--help", "-h", "create-symlinks --help", "run --help", "create-symlinks --link x -h"]
)
def test_help_goes_to_stdout_and_ends_well(program: Program, words: str) -> None:
    result = program.run(*words.split(), stdin=b"garbage")
    assert (result.rc, result.stderr) == (0, "")
    assert result.stdout.startswith("NAME:\n")


def test_version_and_features(program: Program) -> None:
    assert re.fullmatch(r"NVIDIA CDI Hook version \S+\n", program.run("--version").stdout)
    assert "create-symlinks" in json.loads(program.run("--features").stdout)["hooks"]


# -- switches ------------------------------------------------------------------------------------------------------


def test_debug_shows_what_is_done_and_the_default_is_silent(program: Program) -> None:
    words = ["create-symlinks", "--link", "a::/b"]
    assert "level=info" in program.run(*words, env={"NVIDIA_CTK_DEBUG": "true"}).stderr
    (program.root / "b").unlink()
    assert program.run(*words).stderr == ""


@pytest.mark.parametrize("name", ["NVIDIA_CTK_DEBUG", "NVIDIA_CDI_QUIET"])
def test_a_switch_that_is_no_boolean_stops_the_program(program: Program, name: str) -> None:
    for words in (["noop"], ["foo"], [], ["create-symlinks"]):
        assert f"could not parse `banana` as bool value from environment variable {name}" in one_error(
            program.run(*words, env={name: "banana"})
        )


def test_quiet_wins_over_debug_and_keeps_errors(program: Program) -> None:
    env = {"NVIDIA_CTK_DEBUG": "1", "NVIDIA_CTK_QUIET": "1"}
    assert program.run("create-symlinks", "--link", "a::/b", env=env).stderr == ""
    one_error(program.run("create-symlinks", "--link", "bad", env=env))


# -- the state -----------------------------------------------------------------------------------------------------

DEEP = b"[" * 100_000
BAD_STATES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "stdin: empty"),
    "white space": (b" \n\t", "stdin: empty"),
    "not JSON": (b"garbage", "not valid JSON"),
    "half": (b'{"pid": 3', "not valid JSON"),
    "a list": (b"[]", "not a JSON object"),
    "null": (b"null", "not a JSON object"),
    "deep lists": (DEEP, "nested too deeply"),
    "deep objects": (b'{"a":' * 100_000, "nested too deeply"),
    "deep in a field": (b'{"annotations":' + DEEP, "nested too deeply"),
    "100 MiB": (b'{"x": "' + b"a" * (100 << 20), "more than 1048576 bytes"),
    "a byte too many": (b'{"x": "' + b"a" * (1 << 20), "more than 1048576 bytes"),
    "a million digits": (b'{"pid": ' + b"9" * 1_000_000 + b"}", "too many digits"),
    "NaN": (b'{"pid": NaN}', "NaN is not JSON"),
    "1e999": (b'{"pid": 1e999}', "too large"),
    "key twice": (b'{"root": "/a", "root": "/b"}', "key `root` is given twice"),
    "byte order mark": (b"\xef\xbb\xbf{}", "not valid JSON"),
    "two documents": (b"{} {}", "more text after the value"),
    "UTF-16": ("{}".encode("utf-16"), "not UTF-8"),
    "not UTF-8": (b'{"id": "\xff"}', "not UTF-8"),
    "no root, no bundle": (b'{"pid": 3}', "neither `root` nor `bundle`"),
    "unknown status": (b'{"status": "paused\\n", "root": "/x"}', r"unknown status `paused\\n`"),
}


@pytest.mark.parametrize(("data", "reason"), BAD_STATES.values(), ids=BAD_STATES)
def test_a_bad_state_is_one_error_line_and_nothing_changes(program: Program, data: bytes, reason: str) -> None:
    before = snapshot(program.root)
    result = program.run("create-symlinks", "--link", "a::/b", stdin=data, measure_rss=len(data) > 1 << 20)
    line = one_error(result)
    assert reason in line
    assert len(line) < 1000
    assert result.maxrss < 64 << 10
    assert snapshot(program.root) == before


def _special(kind: str, tmp_path: Path) -> int:
    if kind == "endless":
        return os.open("/dev/zero", os.O_RDONLY)
    if kind == "write-only":
        return os.open(tmp_path / "w", os.O_WRONLY | os.O_CREAT)
    return os.open("/dev/null", os.O_RDONLY)


@pytest.mark.parametrize(("kind", "reason"), [("endless", "more than 1048576 bytes"), ("write-only", "EBADF"),
                         ("/dev/null", "stdin: empty")])  # fmt: skip
def test_a_stdin_that_holds_no_state_is_one_error(program: Program, kind: str, reason: str) -> None:
    fd = _special(kind, program.folder)
    try:
        assert reason in one_error(program.run("create-symlinks", stdin=fd))
    finally:
        os.close(fd)


@pytest.mark.parametrize("sent", [b"", b'{"root": "/x"}'], ids=["nothing", "a whole document"])
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_a_pipe_that_is_never_closed_ends_at_the_deadline(program: Program, sent: bytes, blocking: bool) -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, blocking)
    os.write(write_end, sent)
    try:
        extra = "from nvoci.oci import state; state.READ_SECONDS = 0.3"
        result = program.run("create-symlinks", "--link", "a::/b", stdin=read_end, extra=extra)
    finally:
        os.close(read_end)
        os.close(write_end)
    assert "no end of file within 0.3 s" in one_error(result)
    assert 0.3 < result.wall < 5


def test_a_hook_without_links_still_reads_the_state(program: Program) -> None:
    one_error(program.run("create-symlinks", stdin=b"garbage"))
    assert program.run("create-symlinks").ok


def test_noop_and_unknown_hooks_do_not_wait_for_stdin(program: Program) -> None:
    read_end, write_end = os.pipe()
    try:
        for words in (["noop"], ["foo"], [], ["run", "--", "noop", "--", "foo"]):
            assert program.run(*words, stdin=read_end, timeout=3).rc == 0
    finally:
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize("spec", ["-", ""])
def test_container_spec_dash_and_empty_mean_stdin(program: Program, spec: str) -> None:
    assert program.run("create-symlinks", "--link", "a::/b", "--container-spec", spec).ok
    assert os.readlink(program.root / "b") == "a"


def test_container_spec_names_a_file_with_the_state(program: Program) -> None:
    state = program.folder / "state"
    state.write_bytes(program.state())
    result = program.run("create-symlinks", "--link", "a::/b", "--container-spec", str(state), stdin=b"garbage")
    assert result.ok
    assert os.readlink(program.root / "b") == "a"


SPEC_FILES: dict[str, tuple[Any, str]] = {
    "missing": (lambda path: None, "ENOENT"),
    "a FIFO": (os.mkfifo, "not a regular file"),
    "a directory": (os.mkdir, "not a regular file"),
    "an endless device": (lambda path: os.symlink("/dev/zero", path), "not a regular file"),
    "a loop": (lambda path: os.symlink(path, path), "ELOOP"),
    "1 GiB sparse": (lambda path: (path.touch(), os.truncate(path, 1 << 30)), "EFBIG"),
    "empty": (lambda path: path.touch(), "empty"),
}


@pytest.mark.parametrize(("make", "reason"), SPEC_FILES.values(), ids=SPEC_FILES)
def test_a_container_spec_that_is_no_state_is_one_error(program: Program, make: Any, reason: str) -> None:
    path = program.folder / "state"
    make(path)
    assert reason in one_error(program.run("create-symlinks", "--container-spec", str(path)))


# -- the root ------------------------------------------------------------------------------------------------------


def _config(content: bytes | str | None) -> Any:
    def make(bundle: Path) -> None:
        path = bundle / "config.json"
        path.unlink()
        if isinstance(content, str):
            content_bytes = content.encode()
        elif content is None:
            return
        else:
            content_bytes = content
        path.write_bytes(content_bytes)
        path.chmod(0o644)

    return make


def _replace(make: Any) -> Any:
    def replace(bundle: Path) -> None:
        (bundle / "config.json").unlink()
        make(bundle / "config.json")

    return replace


BAD_CONFIGS: dict[str, tuple[Any, str]] = {
    "missing": (_config(None), "ENOENT"),
    "empty": (_config(""), "not valid JSON"),
    "garbage": (_config("{,}"), "not valid JSON"),
    "a list": (_config("[]"), "not a JSON object"),
    "not UTF-8": (_config(b'{"root": {"path": "\xff"}}'), "not UTF-8"),
    "no root": (_config("{}"), "root is empty"),
    "root is a string": (_config('{"root": "/x"}'), "root is empty"),
    "root is null": (_config('{"root": null}'), "root is empty"),
    "path is empty": (_config('{"root": {"path": ""}}'), "root is empty"),
    "path is a number": (_config('{"root": {"path": 3}}'), "`root.path` is not a path"),
    "path is null": (_config('{"root": {"path": null}}'), "`root.path` is not a path"),
    "path has a NUL": (_config(r'{"root": {"path": "/a\u0000b"}}'), "`root.path` is not a path"),
    "path has a surrogate": (_config(r'{"root": {"path": "/a\udcff"}}'), "`root.path` is not a path"),
    "path is /": (_config('{"root": {"path": "/"}}'), "the host's root is never touched"),
    "path is //.": (_config('{"root": {"path": "//."}}'), "the host's root is never touched"),
    "path leads to /": (_config('{"root": {"path": "/proc/self/root"}}'), "not a link"),
    "path climbs to /": (_config('{"root": {"path": "%s"}}' % ("../" * 40)), "is the host's own root"),
    "path is missing": (_config('{"root": {"path": "gone"}}'), "ENOENT"),
    "path is too long": (_config('{"root": {"path": "%s"}}' % ("x/" * 4000)), "ENAMETOOLONG"),
    "FIFO": (_replace(os.mkfifo), "not a regular file"),
    "directory": (_replace(os.mkdir), "not a regular file"),
    "loop": (_replace(lambda path: os.symlink(path, path)), "ELOOP"),
    "device": (_replace(lambda path: os.symlink("/dev/zero", path)), "not a regular file"),
    "1 GiB sparse": (lambda bundle: os.truncate(bundle / "config.json", 1 << 30), "EFBIG"),
    "other-writable": (lambda bundle: (bundle / "config.json").chmod(0o646), "mode 0646: others can write it"),
    "wrong owner": (lambda bundle: os.chown(bundle / "config.json", 4711, 0), "owned by uid 4711"),
    "deep": (_config("[" * 100_000), "nested too deeply"),
}


@pytest.mark.parametrize(("damage", "reason"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_a_bad_config_is_one_error_line_and_nothing_changes(program: Program, damage: Any, reason: str) -> None:
    damage(program.folder)
    result = program.run("create-symlinks", "--link", "a::/b", stdin=program.state(root=""))
    assert reason in one_error(result)
    assert not any(program.root.iterdir())


@pytest.mark.parametrize("damage", [d for d, _ in BAD_CONFIGS.values()], ids=BAD_CONFIGS)
def test_root_of_the_state_wins_and_config_is_not_opened(program: Program, damage: Any) -> None:
    damage(program.folder)
    assert program.run("create-symlinks", "--link", "a::/b").ok
    assert os.readlink(program.root / "b") == "a"


ODD_CONFIGS = {
    "other fields are not looked at": '{"root": {"path": "rootfs", "readonly": 7}, "process": 3, "hooks": [null]}',
    "trailing slash": '{"root": {"path": "rootfs/"}}',
    "dot": '{"root": {"path": "./rootfs/."}}',
    "16 MiB": '{"root": {"path": "rootfs"}, "x": "%s"}' % ("x" * ((16 << 20) - 50)),
}


@pytest.mark.parametrize("text", ODD_CONFIGS.values(), ids=ODD_CONFIGS)
def test_an_odd_config_is_no_obstacle(program: Program, text: str) -> None:
    _config(text)(program.folder)
    assert program.run("create-symlinks", "--link", "a::/b", stdin=program.state(root="")).ok
    assert os.readlink(program.root / "b") == "a"


BAD_ROOTS: dict[str, tuple[dict[str, Any], str]] = {
    "/": ({"root": "/"}, "the host's root is never touched"),
    "dots": ({"root": "/./.."}, "the host's root is never touched"),
    "relative without a bundle": ({"root": "rootfs", "bundle": ""}, "there is no bundle"),
    "relative bundle": ({"bundle": "bundle"}, "is not an absolute path"),
    "missing": ({"root": "/nonexistent/x"}, "ENOENT"),
    "a file": ({"root": "/etc/passwd"}, "ENOTDIR"),
    "a device": ({"root": "/dev/null"}, "ENOTDIR"),
    "the host's root by another name": ({"root": "/usr/../."}, "is the host's own root"),
    "with a NUL": ({"root": "/a\0b"}, "holds a NUL"),
    "with a surrogate": ({"root": "/a\ud800"}, "surrogate"),
    "10 KiB": ({"root": "/" + "x" * 10_000}, "longer than 4096"),
    "a number": ({"root": 3}, "`root` is not a string"),
    "a list": ({"root": ["/x"]}, "`root` is not a string"),
    "bundle is a number": ({"bundle": 3}, "`bundle` is not a string"),
    "bundle with a NUL": ({"bundle": "/a\0"}, "holds a NUL"),
}


@pytest.mark.parametrize(("fields", "reason"), BAD_ROOTS.values(), ids=BAD_ROOTS)
def test_a_bad_root_is_one_error_line(program: Program, fields: dict[str, Any], reason: str) -> None:
    assert reason in one_error(program.run("create-symlinks", "--link", "a::/b", stdin=program.state(**fields)))
    assert not any(program.root.iterdir())


def test_a_relative_root_is_below_the_bundle(program: Program) -> None:
    assert program.run("create-symlinks", "--link", "a::/b", stdin=program.state(root="rootfs"), cwd="/").ok
    assert os.readlink(program.root / "b") == "a"


GOOD_STATES: dict[str, dict[str, Any]] = {
    **{f"status {s}": {"status": s} for s in ("creating", "created", "starting", "running", "stopped", "")},
    "another version": {"ociVersion": "9.9"},
    "unknown fields": {"future": {"deep": [1, 2, {}]}, "bundlePath": "/nowhere"},
    "hostile id": {"id": "../../x\n" + "y" * 4000},
    "many annotations": {"annotations": {f"k{i}": "\n" for i in range(10_000)}},
    "annotations of another type": {"annotations": 3},
    "no annotations": {"annotations": None},
}


@pytest.mark.parametrize("fields", GOOD_STATES.values(), ids=GOOD_STATES)
def test_what_runtimes_may_send_is_accepted(program: Program, fields: dict[str, Any]) -> None:
    result = program.run("create-symlinks", "--link", "a::/b", stdin=program.state(**fields))
    assert (result.rc, result.stderr) == (0, "")
    assert os.readlink(program.root / "b") == "a"


def test_white_space_around_the_state_is_no_obstacle(program: Program) -> None:
    assert program.run("create-symlinks", stdin=b"\n " + program.state() + b"\r\n\t ").ok


def test_an_internal_error_is_one_line_that_says_so(program: Program) -> None:
    result = program.do("bug:what\x1bnow")
    assert result.rc == 1
    assert re.search(r"level=error .*internal error: TypeError: what.*at fakehook\.py:\d+ \(please report it\)",
                     result.stderr)  # fmt: skip
    assert result.stderr.count("\n") == 1
    assert program.journal()[-1].startswith("undo bug")
