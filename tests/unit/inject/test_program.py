"""Programs of others: what they are given, what is told of them, and that none outlives its deadline."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from kernel import namespaced
from lib import proc, session

from nvoci.errors import HookError
from nvoci.hook import watchdog
from nvoci.hook.operation import Transaction
from nvoci.inject import program
from nvoci.linux import abi, syscalls

STATE = json.dumps({"id": "c1", "pid": 7}).encode()


def make(script: str, *, seconds: float = 10.0, env: tuple[str, ...] = (), **how: object) -> program.RunProgram:
    fields = {"state": STATE, "bundle": "", "namespace": program.host_namespace(), **how}
    return program.RunProgram("/bin/sh", ["sh", "-c", script], env, seconds, **fields)  # type: ignore[arg-type]


def run(script: str, **how: object) -> None:
    make(script, **how).execute(Transaction())  # type: ignore[arg-type]


def test_it_gets_the_state_its_environment_and_the_bundle(tmp_path: Path) -> None:
    out = tmp_path / "out"
    bundle = session.new_dir("bundle")
    os.environ["NVOCI_TEST_SECRET"] = "x"
    try:
        run(f"cat >{out}.state; /usr/bin/env >{out}.env; pwd -P >{out}.cwd; umask >{out}.umask", bundle=str(bundle),
            env=("A=1", "B=two words", "EMPTY="))  # fmt: skip
    finally:
        del os.environ["NVOCI_TEST_SECRET"]
    assert Path(f"{out}.state").read_bytes() == STATE
    env = Path(f"{out}.env").read_text().splitlines()
    assert sorted(line for line in env if not line.startswith(("PWD=", "_="))) == ["A=1", "B=two words", "EMPTY="]
    assert (Path(f"{out}.cwd").read_text(), Path(f"{out}.umask").read_text()) == (f"{bundle}\n", "0022\n")


def signal_fields(status: str) -> dict[str, int]:
    """Of /proc/PID/status: sets of signals."""
    lines = [line.split(":\t") for line in status.splitlines() if line.startswith("Sig")]
    return {name: int(value, 16) for name, value in lines if "/" not in value}


def test_it_has_no_descriptors_and_no_signal_settings_of_ours(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(f"ls -l /proc/self/fd >{out}; grep Sig /proc/self/status >>{out}", env=("PATH=/bin:/usr/bin",))
    text = out.read_text()
    links = {line.split()[8]: line.split()[10] for line in text.splitlines() if "->" in line}
    ours = {number: where for number, where in links.items() if where.startswith(("pipe:", "mnt:"))}
    assert set(ours) == {"0", "2"}  # 1 is the shell's redirection
    fields, own = signal_fields(text), signal_fields(Path("/proc/self/status").read_text())
    interpreters = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1
    assert fields["SigIgn"] == own["SigIgn"] & ~interpreters  # who started the tests may have it ignore others
    assert fields["SigBlk"] == own["SigBlk"] == 0


def test_it_runs_where_the_handle_says_although_we_are_elsewhere(tmp_path: Path) -> None:
    host = Path("/proc/self/ns/mnt").readlink()

    def body() -> None:
        namespace = program.host_namespace()
        syscalls.unshare(abi.CLONE_NEWNS)
        assert Path("/proc/self/ns/mnt").readlink() != Path(f"/proc/self/fd/{namespace.fileno()}").readlink()
        run(f"readlink /proc/self/ns/mnt >{tmp_path}/ns", namespace=namespace, env=("PATH=/bin:/usr/bin",))
        assert (tmp_path / "ns").read_text() == f"{Path(f'/proc/self/fd/{namespace.fileno()}').readlink()}\n"

    namespaced.isolated(body)
    assert Path("/proc/self/ns/mnt").readlink() == host


FAILING = {
    "exit 3": "exit status 3",
    "echo no such thing >&2; exit 1": "exit status 1: no such thing",
    "echo first; echo last; exit 1": "exit status 1: last",
    r"printf 'a\033[31m\n'; exit 2": r"exit status 2: a\x1b[31m",
    "kill -9 $$": "signal 9",
}


@pytest.mark.parametrize("script", FAILING)
def test_a_failure_is_told_with_the_last_line_it_said(script: str) -> None:
    with pytest.raises(HookError) as error:
        run(script)
    assert error.value.message.endswith(f": {FAILING[script]}")
    assert error.value.message.startswith("run /bin/sh -c ")


def test_what_cannot_be_executed_says_why(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("#!/no/such/interpreter\n")
    (tmp_path / "bad").chmod(0o755)
    operation = make("")
    operation.path = bytes(tmp_path / "bad")
    with pytest.raises(HookError, match="exit status 127: cannot be executed: ENOENT"):
        operation.execute(Transaction())


@pytest.mark.parametrize("size", [10, 70_000, 1 << 20])
@pytest.mark.parametrize("script", ["cat >/dev/null", "true", "head -c 5 >/dev/null; exec <&-; exit 0"])
def test_a_state_of_any_size_whether_it_is_read_or_not(script: str, size: int) -> None:
    run(script, state=b" " * size, env=("PATH=/bin:/usr/bin",))


def test_much_output_does_not_hold_it() -> None:
    with pytest.raises(HookError, match="exit status 1: done"):
        run("yes | head -c 5000000; echo; echo done; exit 1", env=("PATH=/bin:/usr/bin",))


def test_a_flood_of_output_is_read_as_fast_as_it_comes_and_its_end_is_told() -> None:
    with pytest.raises(HookError) as e:
        run("head -c 50000000 /dev/zero; echo; echo the end; exit 3", seconds=20.0)
    assert "exit status 3: the end" in e.value.message


def test_waiting_for_one_that_closed_its_output_costs_nothing() -> None:
    before = time.process_time()
    run("exec >&- 2>&-; sleep 0.7")
    assert time.process_time() - before < 0.35


def test_the_deadline_ends_it_and_what_it_has_started() -> None:
    known = set(proc.children())
    start = time.monotonic()
    with pytest.raises(HookError, match=r"not finished after 0\.3 s, and killed"):
        run("sleep 50 & sleep 60", seconds=0.3, env=("PATH=/bin:/usr/bin",))
    assert time.monotonic() - start < 5
    assert proc.kill_survivors(known) == []


def test_what_it_leaves_in_the_background_is_not_waited_for() -> None:
    known = set(proc.children())
    start = time.monotonic()
    run("sleep 3 &", env=("PATH=/bin:/usr/bin",))
    assert time.monotonic() - start < 2
    proc.kill_survivors(known, grace=0)


def test_a_hook_that_is_told_to_end_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known = set(proc.children())
    monkeypatch.setattr(watchdog, "_expired", "ended by signal 15")
    with pytest.raises(HookError, match="ended by signal 15"):
        run("sleep 60", env=("PATH=/bin:/usr/bin",))
    assert proc.kill_survivors(known) == []


def test_a_program_that_others_could_change_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "hook"
    file.write_text("#!/bin/sh\n")
    for mode, owner, words in (
        (0o777, 0, "mode 0777"),
        (0o775, 0, "mode 0775"),
        (0o755, 1000, "uid 1000"),
        (0o644, 0, "not an executable"),
    ):
        os.chown(file, owner, 0)
        file.chmod(mode)
        with pytest.raises(HookError, match=words):
            program.check(str(file))
    os.chown(file, 0, 0)
    file.chmod(0o755)
    program.check(str(file))
    with pytest.raises(HookError, match="not an executable"):
        program.check(str(tmp_path))
    with pytest.raises(HookError, match="ENOENT"):
        program.check(str(tmp_path / "none"))


def test_what_no_program_can_be_given_is_an_error() -> None:
    for args, env, words in ((["a\0b"], [], "a NUL"), (["x"], ["A=\ud800"], "not UTF-8")):
        with pytest.raises(HookError, match=words):
            program.RunProgram("/bin/sh", args, env, 1.0, state=b"", bundle="", namespace=program.host_namespace())
    for path, words in (("bin/sh", "not an absolute path"), ("/bin/\0", "a NUL")):
        with pytest.raises(HookError, match=words):
            program.check(path)


def test_it_is_described_as_its_command_line() -> None:
    assert make("a\nb").describe() == r"run /bin/sh -c a\nb"
    assert program.RunProgram("/x", [], [], 1.0, state=b"", bundle="", namespace=program.host_namespace()).args == [
        b"/x"
    ]
