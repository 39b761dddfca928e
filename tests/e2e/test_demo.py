"""scripts/demo: every claim it makes holds, from any directory, and the host is afterwards as it was."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "scripts/demo"

pytestmark = pytest.mark.e2e


def left() -> set[str]:
    """What demos have on the host while they run, or left there when they were killed."""
    found = {str(path) for path in (*Path("/tmp").glob("nvoci-demo-*"), *Path("/run/runc").glob("nvoci-demo-*"))}
    found |= {str(path) for depth in ("*", "*/*") for path in Path("/sys/fs/cgroup").glob(f"{depth}/nvoci-demo-*")}
    found |= {line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "nvoci-demo" in line}
    return found | {str(path) for path in Path("/opt").glob("nvoci-demo*")}


def test_every_claim_holds_and_nothing_is_left(tmp_path: Path) -> None:
    before = left()
    done = subprocess.run([DEMO], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"demo: ok: all \d+ claims hold in a container started by runc", lines[-1]), (
        done.stdout + done.stderr
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert left() - before == set()


def test_it_shows_each_hook_and_fits_the_terminal() -> None:
    done = subprocess.run([DEMO], cwd="/", capture_output=True, text=True, timeout=300)
    shown = {line.strip() for line in done.stdout.splitlines()}
    assert {"create-symlinks", "chmod", "enable-cuda-compat", "update-ldcache"} <= shown
    assert {"update-application-profile", "disable-device-node-modification"} <= shown
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the simulated node's NVML library is for x86-64")
def test_it_shows_a_gpu_given_by_its_cdi_name_for_one_hook_process() -> None:
    done = subprocess.run([DEMO], cwd="/", capture_output=True, text=True, timeout=300)
    lines = [line.split() for line in done.stdout.partition("by the Container Device Interface")[2].splitlines()]
    assert ["hook", "processes", "0", "1", "ok"] in lines
    assert ["/dev/nvidia0", "-"] in [line[:2] for line in lines]
    words = done.stdout.split()
    assert [words[at : at + 3] for at, word in enumerate(words) if word == "nvoci"] == [
        ["nvoci", "cdi", "generate"],
        ["nvoci", "cdi", "inject"],
    ]


def test_it_shows_ldconfig_p_before_and_after() -> None:
    done = subprocess.run([DEMO], cwd="/", capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    heading = "update-ldcache: `ldconfig -p` in the container"
    rows = [line.split() for line in lines[lines.index(heading) + 1 : lines.index("the host")]]
    found = {row[0]: row[1:] for row in rows[:-2]}
    assert {"libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1"} <= found.keys()
    assert all(before == "-" and after.startswith("/") and verdict == "ok" for before, after, verdict in found.values())
    without, own = rows[-2:]
    assert int(without[-3]) > 0
    assert without[-2:] == ["0", "ok"]
    assert own[-3] == own[-2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_interrupted_leaves_nothing(number: signal.Signals) -> None:
    before = left()
    demo = subprocess.Popen([DEMO], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert demo.stdout is not None
    assert "driver: " in demo.stdout.readline()  # from here on containers are started
    assert left() - before != set()
    if number == signal.SIGINT:
        os.killpg(demo.pid, number)  # as a terminal does
    else:
        demo.send_signal(number)
    out, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert out.splitlines()[-1] == "demo: FAILED: interrupted"
    until = time.monotonic() + 20
    while (left() - before or _processes_of(demo.pid)) and time.monotonic() < until:
        time.sleep(0.2)
    assert left() - before == set()
    assert _processes_of(demo.pid) == []


def test_needs_root() -> None:
    done = subprocess.run([DEMO], capture_output=True, text=True, timeout=60, user=65534, group=65534, extra_groups=[])
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("demo: FAILED: run the demo: EPERM")


def in_namespace(set_up: str) -> subprocess.CompletedProcess[str]:
    """The demo after `set_up`, a shell line, in a private mount namespace."""
    command = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", f'set -e; {set_up}; exec "$0"', DEMO]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_says_which_package_it_cannot_install(tmp_path: Path) -> None:
    query, get = tmp_path / "dpkg-query", tmp_path / "apt-get"
    query.write_text('#!/bin/sh\nfor name; do :; done\n[ "$name" = podman ] || printf installed\n')
    get.write_text('#!/bin/sh\necho "apt-get: no network" >&2\nexit 100\n')
    for program in (query, get):
        program.chmod(0o755)
    done = in_namespace(f"mount --bind {query} /usr/bin/dpkg-query; mount --bind {get} /usr/bin/apt-get")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["demo: installing podman", "apt-get: no network"]
    assert done.stdout == (
        "demo: FAILED: install `podman`: apt-get cannot (is there a network? its own message stands above)\n"
    )


def test_a_claim_that_does_not_hold_fails_the_demo(tmp_path: Path) -> None:
    naive = tmp_path / "chmod.py"
    naive.write_text('"""Does nothing."""\n\n\ndef prepare(options, settings):\n    return None\n')
    done = in_namespace(f"mount --bind {naive} {ROOT}/hooks/nvoci/hook/chmod.py")
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"demo: FAILED: 1 of \d+ claims do not hold: mode of /var/cache/nvidia", last)
    assert sum(line.endswith("WRONG") for line in done.stdout.splitlines()) == 1


def test_an_unknown_option_is_a_usage_error() -> None:
    done = subprocess.run([DEMO, "--nonsense"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2


def _processes_of(session: int) -> list[str]:
    """Processes that are still in the demo's session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[3]) == session:
            found.append(path.parent.name)
    return found
