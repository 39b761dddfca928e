"""lib.hookproc, flipper, strace and compat, tried on small programs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from lib import compat, flipper, hookproc, proc, rootfs, session, strace
from lib.hookproc import FakeContainer, inside, run_hook


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return rootfs.glibc_rootfs(tmp_path / "r")


def program(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "program"
    path.write_text(body)
    return path


def test_a_fake_container_has_its_own_mounts_and_processes(root: Path) -> None:
    before = proc.mountinfo()
    with FakeContainer(root) as c:
        assert [m.split(" - ")[1].split()[0] for m in c.mounts_at("proc")] == ["proc"]
        assert len(c.mounts_at("")) == 1
        assert os.readlink(f"/proc/{c.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
        assert "null" in c.listdir("dev")
        assert c.read("etc/hostname") == b"image\n"
        assert c.run(["ldconfig", "-p"]).ok
        assert proc.mountinfo() == before
    assert not Path(f"/proc/{c.pid}").exists()
    assert os.listdir(root / "dev") == []


def test_a_read_only_container_is_read_only(root: Path) -> None:
    with FakeContainer(root, readonly=True) as c, pytest.raises(OSError, match="Read-only"):
        c.path("etc/x").write_text("")


def test_the_create_runtime_hook_gets_the_state_in_the_bundle(root: Path, tmp_path: Path) -> None:
    body = "import os, sys\nprint(os.getcwd(), sys.stdin.read(), sorted(os.environ), sys.argv[1:])"
    with FakeContainer(root) as c:
        result = run_hook(["--a", "b"], container=c, program=program(tmp_path, body))
        assert result.ok, result.stderr
        assert result.stdout.startswith(str(c.bundle))
        assert f'"pid": {c.pid}' in result.stdout
        assert result.stdout.endswith("['PATH'] ['--a', 'b']\n") or "LC_CTYPE" in result.stdout


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_inside_is_the_container_mount_namespace_with_the_host_tree(root: Path, tmp_path: Path, runtime: str) -> None:
    body = (
        "import os, sys, json\n"
        "seen = os.getcwd(), os.path.exists(%r), os.readlink('/proc/self/ns/mnt'), json.load(sys.stdin)\n"
        "print(json.dumps(seen))"
    )
    with FakeContainer(root) as c:
        hook = program(tmp_path, body % str(session.LIB))
        result = run_hook([], container=c, stage="createContainer", runtime=runtime, program=hook)
        cwd, host_tree, namespace, state = json.loads(result.stdout)
        assert cwd == str(c.bundle if runtime == "crun" else root)
        assert host_tree
        assert namespace == os.readlink(f"/proc/{c.pid}/ns/mnt")
        assert state["pid"] == (0 if runtime == "crun" else 1)
        assert ("root" in state) == (runtime == "crun")
        assert proc.run(inside(c, ["sh", "-c", "exit 5"])).rc == 5


def test_the_entry_file_starts_the_hook_of_this_checkout() -> None:
    text = hookproc.entry().read_text()
    assert str(session.HOOKS) in text
    assert hookproc.hook_entry(["noop"])["args"][-1] == "noop"
    assert hookproc.hook_entry(["noop"])["env"]


def test_a_flipper_exchanges_and_restores(tmp_path: Path) -> None:
    rootfs.tree(tmp_path, "dir a\nsymlink b /canary")
    seen = set()
    with flipper.Flipper(tmp_path / "a", tmp_path / "b") as f:
        f.wait(2000)
        until = time.monotonic() + 20
        while len(seen) < 2 and time.monotonic() < until:
            seen.add((tmp_path / "a").is_symlink())
    assert seen == {True, False}
    assert f.rounds >= 2000
    assert f.rounds % 2 == 0
    assert (tmp_path / "a").is_dir()
    assert os.readlink(tmp_path / "b") == "/canary"


def test_a_flipper_that_can_not_start_says_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), flipper.Flipper(tmp_path / "no", tmp_path / "nothing"):
        pass


def test_an_injected_error_is_seen_by_the_program() -> None:
    touch = [session.PYTHON, "-ISc", "import os\nos.mkdir('/dev/null/x')"]
    assert "OSError: [Errno 28]" in proc.run([*strace.inject_error("mkdir,mkdirat", "ENOSPC"), *touch]).stderr


def test_an_injected_kill_comes_before_the_nth_call(tmp_path: Path) -> None:
    body = "import os, sys\nfor n in range(5): os.mkdir(sys.argv[1] + str(n))"
    result = proc.run([*strace.inject_kill("mkdir", 3), session.PYTHON, "-ISc", body, f"{tmp_path}/d"])
    assert result.rc == -9
    assert sorted(os.listdir(tmp_path)) == ["d0", "d1"]


def test_points_names_each_call_of_a_run(tmp_path: Path) -> None:
    body = "import os, sys\nx = sys.argv[1]\nos.mkdir(x); os.rmdir(x); os.read(0, 1); os.mkdir(x); os.rmdir(x)"

    def run(prefix: Sequence[str]) -> proc.Result:
        return proc.run([*prefix, session.PYTHON, "-ISc", body, str(tmp_path / "x")])

    assert strace.count_syscalls(run)["mkdir"] == 2
    assert strace.points(run)[:3] == [("read", strace.count_syscalls(run)["read"]), ("mkdir", 2), ("rmdir", 2)]
    assert sorted(p for p in strace.points(run, after="") if p[0] in {"mkdir", "rmdir"}) == [
        ("mkdir", 1),
        ("mkdir", 2),
        ("rmdir", 1),
        ("rmdir", 2),
    ]


@pytest.mark.parametrize("name", compat.NEW_CALLS)
def test_compat_blocks_the_call_and_only_for_the_command(name: str) -> None:
    number = compat.NUMBERS[name][os.uname().machine == "aarch64"]
    call = f"ctypes.CDLL(None, use_errno=True).syscall({number}, -1, 0, 0, 0, 0)"
    body = f"import ctypes\nprint({call}, ctypes.get_errno())"
    argv = [session.PYTHON, "-ISc", body]
    assert proc.run([*compat.prefix(), *argv]).stdout == "-1 38\n"
    assert proc.run(argv).stdout != "-1 38\n"


def test_compat_lets_a_container_start_and_keeps_the_exit_status() -> None:
    assert proc.run([*compat.prefix(["openat2"]), "sh", "-c", "exit 6"]).rc == 6


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_jumps_to_its_last_instruction(machine: str) -> None:
    code = compat.program(compat.NEW_CALLS, machine)
    assert len(code) == 8 * (6 + len(compat.NEW_CALLS))
