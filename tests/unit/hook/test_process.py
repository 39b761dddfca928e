"""What a hook process is whatever it was started with: descriptors, signals, limits, environment, imports, locale."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
from lib import proc, session
from unit.hook.hooktools import Container, Program, one_error

MODULES = ("json", "site", "ctypes", "os", "re", "usercustomize", "sitecustomize", "encodings", "posixpath", "nvoci")


def _field(program: Program, name: str) -> str:
    (line,) = [text for text in program.journal() if text.startswith(name + " ")]
    return line[len(name) + 1 :]


def test_without_isolation_the_program_refuses_to_start(program: Program) -> None:
    entry = program.entry()
    result = proc.run([session.PYTHON, "-SB", entry, "noop"])
    assert "the interpreter is not isolated" in one_error(result)


# -- descriptors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)], ids=str)
def test_noop_works_with_standard_descriptors_closed(program: Program, closed: tuple[int, ...]) -> None:
    entry = program.entry()
    pid = os.fork()
    if pid == 0:
        for fd in closed:
            os.close(fd)
        os.execv(entry, [str(entry), "noop"])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("closed", [(1,), (2,), (1, 2)], ids=str)
@pytest.mark.parametrize("place", ["here", "outside"])
@pytest.mark.kernel
def test_links_are_made_with_output_closed(program: Program, request: pytest.FixtureRequest, place: str,
                                           closed: tuple[int, ...]) -> None:  # fmt: skip
    fields, root = {}, program.root
    if place == "outside":
        container: Container = request.getfixturevalue("container")
        fields, root = {"pid": container.pid}, container.inside
    (program.folder / "state").write_bytes(program.state(**fields))
    command = f'exec {program.entry()} create-symlinks --link a::/b <"$1" ' + " ".join(f"{fd}>&-" for fd in closed)
    result = subprocess.run(["/bin/sh", "-c", command, "sh", program.folder / "state"], env={}, timeout=10)
    assert result.returncode == 0
    assert os.readlink(root / "b") == "a"


@pytest.mark.parametrize("words", [["--version"], ["--features"], ["--help"], ["chmod", "--help"], ["create-symlinks",
                         "--link", "a::/b", "--dry-run"]], ids=" ".join)  # fmt: skip
def test_what_is_printed_with_stdout_closed_is_lost_without_an_error(program: Program, words: list[str]) -> None:
    (program.folder / "state").write_bytes(program.state())
    command = f'exec {program.entry()} "$@" <{program.folder / "state"} >&-'
    result = subprocess.run(["/bin/sh", "-c", command, "sh", *words], env={}, stderr=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (0, b"")


def test_closed_stdin_is_an_empty_state(program: Program) -> None:
    assert "stdin: empty" in one_error(program.run("create-symlinks", stdin=None))
    entry = program.entry()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write_end, 2)
        os.close(0)
        os.execv(entry, [str(entry), "create-symlinks"])
    os.close(write_end)
    with open(read_end, encoding="utf-8") as stderr:
        assert "read state stdin: empty" in stderr.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_a_thousand_inherited_descriptors_are_closed_first(program: Program) -> None:
    kept = [os.open("/etc", os.O_RDONLY) for _ in range(1000)]
    try:
        result = program.do("self", pass_fds=kept)
    finally:
        for fd in kept:
            os.close(fd)
    assert result.ok
    fds = [int(fd) for fd in _field(program, "fds").split()]
    assert len(fds) < 10
    assert max(fds) < 20


def test_a_broken_stderr_pipe_does_not_stop_a_start(program: Program) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        result = program.run("create-symlinks", "--link", "a::/b", extra="import sys", stderr=write_end,
                             env={"PYTHONWARNINGS": "x"})  # fmt: skip
    finally:
        os.close(write_end)
    assert result.rc == 0
    assert os.readlink(program.root / "b") == "a"


def test_sixteen_descriptors_are_enough_for_links_in_two_directories(program: Program) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))

    words = ["create-symlinks", *(w for i in range(40) for w in ("--link", f"t::/{i % 2}/{i}"))]
    result = program.run(*words, preexec=limit)
    assert (result.rc, result.stderr) == (0, "")
    assert len(list(program.root.glob("*/*"))) == 40


def test_too_few_descriptors_are_one_error_and_nothing_changed(program: Program) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))

    words = ["create-symlinks", *(w for i in range(40) for w in ("--link", f"t::/{i}/x"))]
    assert "EMFILE" in one_error(program.run(*words, preexec=limit))
    assert not any(program.root.iterdir())


# -- signals -------------------------------------------------------------------------------------------------------


def test_a_blocked_signal_mask_is_not_inherited(program: Program) -> None:
    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))

    assert program.do("self", preexec=block).ok
    assert _field(program, "umask").split()[2] == "0000000000000000"


def test_an_ignored_sigchld_does_not_lose_the_worker(program: Program, container: Container) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    result = program.run("create-symlinks", "--link", "a::/b", stdin=program.state(pid=container.pid), preexec=ignore)
    assert (result.rc, result.stderr) == (0, "")
    assert os.readlink(container.inside / "b") == "a"


def test_an_interrupt_while_stdin_is_read_leaves_no_traceback(program: Program) -> None:
    read_end, write_end = os.pipe()
    child = subprocess.Popen([program.entry(), "create-symlinks"], stdin=read_end, stderr=subprocess.PIPE, env={})
    while b"select" not in Path(f"/proc/{child.pid}/wchan").read_bytes() + _syscall(child.pid):
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    stderr = child.communicate(timeout=10)[1]
    os.close(read_end)
    os.close(write_end)
    assert b"Traceback" not in stderr
    assert child.returncode != 0


def _syscall(pid: int) -> bytes:
    """`select` once the process waits in select(2) or pselect6(2), as /proc/PID/syscall numbers them."""
    number = Path(f"/proc/{pid}/syscall").read_bytes().split()[0]
    return b"select" if number in (b"23", b"270", b"72") else b""


# -- the rest of what is inherited ---------------------------------------------------------------------------------


def test_umask_environment_and_directory_are_its_own(program: Program) -> None:
    result = program.do("self", "where", preexec=lambda: os.umask(0o777) and None, cwd=program.root,
                        env={"A": "1", "HOME": "/x"})  # fmt: skip
    assert result.ok
    assert _field(program, "umask").split()[0] == "0000"
    assert _field(program, "umask").endswith("env 0")
    assert re.search(r"cwd / ", _field(program, "place"))


def test_a_umask_of_0777_does_not_reach_a_made_directory(program: Program) -> None:
    result = program.run("create-symlinks", "--link", "a::/x/y/b", preexec=lambda: os.umask(0o777) and None)
    assert result.ok
    assert [(program.root / d).stat().st_mode & 0o7777 for d in ("x", "x/y")] == [0o755, 0o755]


def test_a_deleted_working_directory_is_no_obstacle(program: Program) -> None:
    gone = program.folder / "gone"
    gone.mkdir()

    def enter_and_remove() -> None:
        os.chdir(gone)
        gone.rmdir()

    result = program.run("create-symlinks", "--link", "a::/b", preexec=enter_and_remove)
    assert (result.rc, result.stderr) == (0, "")
    assert os.readlink(program.root / "b") == "a"


def test_a_dangerous_environment_is_named_in_one_bounded_warning(program: Program) -> None:
    env = {"LD_AUDIT": "", "PYTHONPATH": "/x", "GLIBC_TUNABLES": "", "HARMLESS": "1",
           **{f"LD_{i}_{'x' * 1000}": "" for i in range(50)}}  # fmt: skip
    result = program.run("create-symlinks", "--link", "a::/b", env=env)
    assert result.rc == 0
    (line,) = result.stderr.splitlines()
    assert "give its entry a non-empty `env`" in line
    assert "GLIBC_TUNABLES" in line
    assert "HARMLESS" not in line
    assert len(line) < 9000


@pytest.mark.security
def test_modules_of_an_image_are_never_imported(program: Program) -> None:
    image = program.folder / "image"
    for name in MODULES:
        package = image / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"open({str(program.folder / 'canary')!r}, 'a').write({name!r})\n")
    (image / "python311._pth").write_text(".\n")
    (image / "pyvenv.cfg").write_text(f"home = {image}\n")
    env = {"PYTHONPATH": str(image), "PYTHONSTARTUP": str(image / "json/__init__.py"), "PYTHONINSPECT": "1",
           "PYTHONBREAKPOINT": "json.x", "PYTHONWARNINGS": "error::json.X", "HOME": str(image)}  # fmt: skip
    for words in (
        ["create-symlinks", "--link", "a::/b"],
        ["--features"],
        ["--help"],
        ["noop"],
        ["chmod", "--mode", "x"],
    ):
        program.run(*words, env=env, cwd=image)
        program.run(*words, env=env, cwd=image, stdin=b"{,}")
    assert os.readlink(program.root / "b") == "a"
    assert not (program.folder / "canary").exists()


def test_after_sealing_no_import_succeeds_and_none_was_off_the_list(program: Program) -> None:
    assert program.do("self", "import:json", "import:nvoci.hook.chmod", "import:os").ok
    assert "sealed json" in program.journal()
    assert "sealed nvoci.hook.chmod" in program.journal()
    modules = set(_field(program, "modules").split())
    assert not modules & {"json", "re", "enum", "typing", "ctypes", "signal", "subprocess", "dataclasses", "functools"}


@pytest.mark.parametrize("place", ["here", "outside"])
def test_the_process_cannot_be_dumped_and_leaves_no_core(
    program: Program, request: pytest.FixtureRequest, place: str
) -> None:
    fields = {"pid": request.getfixturevalue("container").pid} if place == "outside" else {}
    assert program.do("self", stdin=program.state(**fields)).ok
    assert _field(program, "dumpable") == "0 core (0, 0)"


# -- locales and names ---------------------------------------------------------------------------------------------

NAMES = {
    "newline": b"a\nlevel=error",
    "not UTF-8": b"a\xff\xfe",
    "right-to-left": "a\u202etxt.exe\u200f".encode(),
    "line separator": "a\u2028b\u0085c".encode(),
    "escape": b"a\x1b[31mred\x07",
    "quotes": b'a"b\\c',
    "chinese": "\u9a71\u52a8".encode(),
}


@pytest.fixture(scope="session")
def latin1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("locale")
    made = subprocess.run(["localedef", "-i", "en_US", "-f", "ISO-8859-1", folder / "en_US.ISO-8859-1"],
                          capture_output=True)  # fmt: skip
    if not (folder / "en_US.ISO-8859-1").exists():
        pytest.skip(f"localedef makes no latin-1 locale here: {made.stderr[:200]!r}")
    return {"LOCPATH": str(folder), "LC_ALL": "en_US.ISO-8859-1"}


@pytest.fixture(params=["none", "C", "C.UTF-8", "latin-1"])
def locale(request: pytest.FixtureRequest) -> dict[str, str]:
    if request.param == "latin-1":
        return dict(request.getfixturevalue("latin1"))
    return {} if request.param == "none" else {"LC_ALL": request.param}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_reach_the_container_byte_for_byte_in_every_locale(
    program: Program, locale: dict[str, str], name: bytes
) -> None:
    word = name + b"::/dir/" + name
    for words in (["--debug", "create-symlinks", "--link", word], ["create-symlinks", "--link", word, "--dry-run"]):
        result = program.run(*words, env=locale)
        assert result.rc == 0, result.stderr
        assert all(line.startswith('time="') for line in result.stderr.splitlines())
        assert result.stderr.isascii() or name == NAMES["chinese"]
        assert all(c.isprintable() for c in result.stdout.rstrip("\n"))
    assert os.listdir(os.fsencode(program.root / "dir")) == [name]
    assert os.readlink(os.path.join(os.fsencode(program.root), b"dir", name)) == name


@pytest.mark.parametrize("name", ["\u00e9", "\u9a71\u52a8", "a b", "a'\"\\b"], ids=ascii)
def test_a_root_and_bundle_outside_ascii_are_found_in_every_locale(
    program: Program, locale: dict[str, str], name: str
) -> None:
    bundle = program.folder / name
    (bundle / name).mkdir(parents=True)
    (bundle / "config.json").write_text(json.dumps({"root": {"path": name}}, ensure_ascii=False), encoding="utf-8")
    for state in (program.state(root="", bundle=str(bundle)), program.state(root=str(bundle / name))):
        result = program.run("create-symlinks", "--link", f"{name}::/l", env=locale, stdin=state)
        assert (result.rc, [li for li in result.stderr.splitlines() if "dangerous" not in li]) == (0, [])
        assert os.readlink(bundle / name / "l") == name
        (bundle / name / "l").unlink()


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_hostile_name_in_an_error_stays_one_line(program: Program, name: bytes) -> None:
    os.mkdir(os.path.join(os.fsencode(program.root), name))
    line = one_error(program.run("create-symlinks", "--link", b"x::/" + name))
    assert "EISDIR" in line
    assert line.isprintable()


def test_an_argument_of_128_kib_is_one_bounded_error_line(program: Program) -> None:
    for words in (["create-symlinks", "--link", "x" * 131000], ["create-symlinks", "--" + "x" * 131000],
                  ["create-symlinks", "--link", "a::/" + "\x1b" * 131000]):  # fmt: skip
        assert len(one_error(program.run(*words))) < 9000
    result = program.run("\x1b" * 131000)
    assert (result.rc, len(result.stderr.splitlines())) == (0, 1)
    assert len(result.stderr) < 9000
