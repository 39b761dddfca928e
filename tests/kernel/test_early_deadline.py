"""Every program that a runtime starts has a deadline from its first moment on, before it knows its settings."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
from lib import hookproc, jail, proc, session, silentfuse, strace

# Module, its function, what of it is the deadline, words.
PROGRAMS: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "nvidia-cdi-hook": ("nvoci.hook.main", "cdi_hook", "_EARLY", ("chmod", "--mode", "755", "--path", "/x")),
    "nvidia-container-runtime-hook": ("nvoci.prestart.main", "main", "_EARLY", ("prestart",)),
    "nvidia-container-cli": ("nvoci.prestart.cli", "main", "_SECONDS", ("info",)),
}
HANGS = "import time\nprogram._run = lambda *words: time.sleep(20)\n"
ALARM = -signal.SIGALRM


def entry(name: str, extra: str = "", seconds: float = 0.4) -> list[str]:
    """A command line, with a deadline that tests can wait for."""
    module, function, deadline, words = PROGRAMS[name]
    path = session.new_dir("entry") / name
    path.write_text(
        f"import sys\nsys.path.insert(0, {str(session.HOOKS)!r})\nimport {module} as program\n"
        f"program.{deadline} = {seconds}\n{extra}\nprogram.{function}()\n"
    )
    return hookproc.command(words, path)


def deaf_to_alarms() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("preexec", [None, deaf_to_alarms], ids=["as usual", "SIGALRM ignored and blocked"])
def test_what_hangs_early_is_ended(name: str, preexec: Any) -> None:
    done = proc.run(entry(name, HANGS), preexec=preexec)
    assert (done.rc, done.timed_out, done.survivors) == (ALARM, False, [])


def test_a_container_without_a_gpu_pays_one_timer() -> None:
    """And no ctypes, which a POSIX timer would take."""
    folder = bundle()
    command = f"exec {shlex.join(entry('nvidia-container-runtime-hook'))} <{bundle_state(folder)}"
    seen = strace.count_syscalls(lambda prefix: proc.run([*prefix, "/bin/sh", "-c", command]))
    assert (seen["setitimer"], "timer_create" in seen) == (1, False)


def bundle(*variables: str) -> Path:
    folder = session.new_dir("bundle")
    doc = {"ociVersion": "1.0.2", "process": {"env": ["PATH=/bin", *variables]}, "root": {"path": "rootfs"}}
    (folder / "config.json").write_text(json.dumps(doc))
    return folder


def bundle_state(folder: Path) -> str:
    state = {"ociVersion": "1.0.2", "id": "x", "status": "creating", "pid": 4711, "bundle": str(folder)}
    path = session.new_dir("given") / "state"
    path.write_text(json.dumps(state))
    return shlex.quote(str(path))


def test_a_bundle_on_a_file_system_that_does_not_answer() -> None:
    folder = session.new_dir("bundle")
    hook = shlex.join(entry("nvidia-container-runtime-hook"))
    script = f"{hook} <{bundle_state(folder)}; echo rc $?"
    done = jail.run(["/bin/sh", "-c", script], setup=silentfuse.setup(folder, "deaf"), timeout=20)
    assert (done.timed_out, done.stdout) == (False, f"rc {128 - ALARM}\n")


def test_the_look_at_the_node_has_a_longer_one() -> None:
    folder = bundle("NVIDIA_VISIBLE_DEVICES=0")
    slow = "import time\nfrom nvoci.prestart import start\nstart.prestart = lambda *words: time.sleep(1) or 0\n"
    for more, rc in (("", 0), ("program._LOOK = 0.5", ALARM)):
        command = entry("nvidia-container-runtime-hook", slow + more)
        done = proc.run(["/bin/sh", "-c", f'exec "$@" <{bundle_state(folder)}', "sh", *command])
        assert (done.rc, done.stderr) == (rc, "")


def test_the_work_has_that_of_the_settings(tmp_path: Path) -> None:
    """Which may be longer: the watchdog takes the timer over."""
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "config.json").write_text('{"root": {"path": "rootfs"}}')
    slow = (
        "import time\nfrom nvoci.hook import work\nrun = work._Job.run\n"
        "work._Job.run = lambda job: time.sleep(1) or run(job)\n"
    )
    state = {"ociVersion": "1.0.2", "id": "x", "status": "creating", "bundle": str(tmp_path), "pid": 0}
    done = proc.run(entry("nvidia-cdi-hook", slow), stdin=json.dumps(state).encode())
    assert (done.rc, done.stderr) == (0, "")


def test_a_person_may_read_slowly() -> None:
    extra = "import time\nprogram.process.output = lambda text: time.sleep(1)\nsys.argv[1:] = ['--version']\n"
    assert proc.run(entry("nvidia-container-cli", extra, 0.6)).rc == 0
