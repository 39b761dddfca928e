"""The installed `nvidia-ctk cdi …` on simulated nodes, and its output where it cannot be written or is cut off."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from lib import proc, session, simnode, strace
from simnode.nodes import built, needs_x86

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(os.geteuid() != 0, reason="device nodes and mounts need root")]

NODES = session.CHECKOUT / "tests/data/nodes"
SIMNODE = session.CHECKOUT / "scripts/simnode"
HOOK = ("--nvidia-cdi-hook-path", "/usr/bin/nvidia-cdi-hook")
OLD = "as it was\n"

Run = Callable[..., proc.Result]


@pytest.fixture
def ctk(installed: Path) -> Path:
    """The program."""
    return installed.with_name("nvidia-ctk")


def on(node: simnode.Built, *words: object, faults: str = "") -> proc.Result:
    """A program on a node whose driver is installed there."""
    more = ["--fault", faults] if faults else []
    return proc.run([SIMNODE, "run", "--installed", *more, node.root, "--", *map(str, words)], timeout=60)


@needs_x86
@pytest.mark.parametrize("name", ["a100", "a100-mig", "tegra"])
def test_a_node_gives_the_reference_s_specification_byte_for_byte(ctk: Path, name: str) -> None:
    out = session.new_dir("out")
    done = on(built(name), ctk, "cdi", "generate", *HOOK, "--output", out / "nvidia.yaml")
    assert (done.rc, done.stdout, done.survivors) == (0, "", []), done.stderr
    assert (out / "nvidia.yaml").read_bytes() == (NODES / f"{name}.cdi.yaml").read_bytes()
    listed = proc.run([ctk, "--quiet", "cdi", "list", "--spec-dir", out])
    document = yaml.safe_load((NODES / f"{name}.cdi.yaml").read_text())
    assert listed.stdout.split() == sorted(f"{document['kind']}={each['name']}" for each in document["devices"])
    assert listed.stderr == ""


@needs_x86
def test_a_node_without_a_driver_is_one_error_and_the_old_specification_stays(ctk: Path) -> None:
    out = session.new_dir("out") / "nvidia.yaml"
    out.write_text(OLD)
    done = on(built("a100"), ctk, "cdi", "generate", *HOOK, "--output", out, "--driver-root", session.new_dir("empty"))
    assert (done.rc, done.stderr.count("level=error"), out.read_text()) == (1, 1, OLD)
    assert all("level=error" in line or f"use program {HOOK[1]}: " in line for line in done.stderr.splitlines())


@needs_x86
def test_the_command_for_people_merges_the_hooks_and_calls_its_own_program(ctk: Path) -> None:
    done = on(built("a100"), ctk.with_name("nvoci"), "cdi", "generate")
    assert done.rc == 0, done.stderr
    document = yaml.safe_load(done.stdout)
    (hook,) = document["containerEdits"]["hooks"]
    assert (hook["path"], hook["args"][:3]) == (str(ctk.with_name("nvidia-cdi-hook")), ["nvidia-cdi-hook", "run", "--"])
    assert all("hooks" not in device["containerEdits"] for device in document["devices"])
    assert document["annotations"]


# -- output that cannot be written ---------------------------------------------------------------------------------


def transform(ctk: Path, output: Path, wrapper: list[str] | None = None, **how: object) -> proc.Result:
    """Writes 45 KB to `output`, the same way as `generate`."""
    words = [ctk, "cdi", "transform", "root", "--input", NODES / "a100.cdi.yaml", "--from", "/", "--to", "/d"]
    return proc.run([*(wrapper or []), *map(str, words), "--output", str(output)], timeout=30, **how)  # type: ignore[arg-type]


@pytest.fixture
def output() -> Path:
    """A file that is there already, alone in its directory."""
    path = session.new_dir("out") / "nvidia.yaml"
    path.write_text(OLD)
    return path


def one_error(done: proc.Result, *parts: str) -> None:
    """Exit status 1 and one line with all of `parts`."""
    assert (done.rc, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert all(part in done.stderr for part in ("level=error", *parts)), done.stderr


def test_a_limit_of_the_file_s_size_is_one_error_and_the_old_file_stays(ctk: Path, output: Path) -> None:
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    one_error(transform(ctk, output, preexec=limit), f"write CDI spec {output}", "EFBIG")
    assert (output.read_text(), os.listdir(output.parent)) == (OLD, [output.name])


MOUNTS = {
    "a full disk": ("mount -t tmpfs -o size=32k tmpfs $1", "ENOSPC"),
    "a full disk, of inodes": ("mount -t tmpfs -o nr_inodes=2 tmpfs $1", "ENOSPC"),
    "a read-only file system": ("mount --bind $1 $1 && mount -o remount,bind,ro $1", "EROFS"),
}


@pytest.mark.parametrize(("mount", "errno"), MOUNTS.values(), ids=MOUNTS)
def test_a_disk_that_takes_no_more_is_one_error_and_the_old_file_stays(
    ctk: Path, output: Path, mount: str, errno: str
) -> None:
    keep = f"cp $1/{output.name} $1.kept; {mount} || exit 9; cp $1.kept $1/{output.name} 2>/dev/null"
    show = f"cat $1/{output.name}; ls -A $1"
    script = f'{keep}; "${{@:2}}"; code=$?; {show}; exit $code'
    wrapper = ["unshare", "--mount", "--propagation", "private", "bash", "-c", script, "bash", str(output.parent)]
    done = transform(ctk, output, wrapper)
    assert (done.rc, done.stdout) == (1, f"{OLD}{output.name}\n"), done.stderr
    assert (f"write CDI spec {output}: {errno}" in done.stderr, done.stderr.count("\n")) == (True, 1)


def test_a_directory_that_cannot_be_made_is_one_error(ctk: Path, output: Path) -> None:
    one_error(transform(ctk, output / "x.yaml"), "ENOTDIR")
    one_error(transform(ctk, Path("/proc/nvoci/x.yaml")), "ENOENT")
    (output.parent / "dir.yaml").mkdir()
    one_error(transform(ctk, output.parent / "dir.yaml"), "EISDIR")
    assert output.read_text() == OLD


@pytest.mark.parametrize(("redirect", "errno"), [(">/dev/full", "ENOSPC"), (">&-", "EBADF"), ("</dev/null", "")])
def test_stdout_that_takes_nothing_is_one_error(ctk: Path, redirect: str, errno: str) -> None:
    words = f"{ctk} cdi transform root --input {NODES}/a100.cdi.yaml {redirect}"
    done = proc.run(["bash", "-c", words])
    if not errno:
        assert (done.rc, done.stdout) == (0, (NODES / "a100.cdi.yaml").read_text())
        return
    one_error(done, "write CDI spec to stdout", errno)


MEMORY = ("brk", "mmap", "munmap", "mremap", "madvise")  # how many there are is another number in each run


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace: apt-get install strace")
def test_a_kill_at_each_step_leaves_the_old_file_or_the_new(ctk: Path, output: Path) -> None:
    fresh = output.with_name("fresh.yaml")
    assert transform(ctk, fresh).rc == 0
    new = fresh.read_text()
    fresh.unlink()
    steps = strace.points(lambda wrapper: transform(ctk, output, list(wrapper)), after=r"openat\(.*\.nvidia\.yaml")
    assert {"write", "fsync", "rename"} <= {call for call, _ in steps}
    seen = set()
    for call, at in steps:
        if call in {"exit_group", *MEMORY}:
            continue
        output.write_text(OLD)
        done = transform(ctk, output, strace.inject_kill(call, at))
        assert done.rc != 0
        assert output.read_text() in {OLD, new}
        seen.add(output.read_text())
        # Whatever it left is no specification to anybody, and does not keep the next one from its work.
        assert [name for name in os.listdir(output.parent) if name.endswith((".yaml", ".json"))] == [output.name]
        assert transform(ctk, output).rc == 0
        assert output.read_text() == new
    assert seen == {OLD, new}
