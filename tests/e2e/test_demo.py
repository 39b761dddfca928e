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
needs_nvml = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the simulated node's NVML library is for x86-64"
)
simulated = pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="what is shown is this machine's own driver")


def left() -> set[str]:
    """What demos have on the host while they run, or left there when they were killed."""
    found = {str(path) for path in (*Path("/tmp").glob("nvoci-demo-*"), *Path("/run/runc").glob("nvoci-demo-*"))}
    found |= {str(path) for depth in ("*", "*/*") for path in Path("/sys/fs/cgroup").glob(f"{depth}/nvoci-demo-*")}
    found |= {line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "nvoci-demo" in line}
    return found | {str(path) for path in Path("/opt").glob("nvoci-demo*")}


Table = dict[str, list[str]]  # label -> before, after, verdict; a label that stands twice: the last


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What one run prints, from a directory that is not the checkout; the host is then as it was."""
    before = left()
    folder = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run([DEMO], cwd=folder, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert left() - before == set()
    return done.stdout


def part(shown: str, heading: str) -> str:
    """The table below the line that begins so, a pattern."""
    found = re.split(f"^{heading}", shown, maxsplit=1, flags=re.MULTILINE)
    assert len(found) == 2
    return found[1].partition("\n\n")[2].partition("\n\n")[0]


def table(text: str) -> Table:
    """The columns stand at 2, 35 and 51; the verdict is the last word."""
    lines = [line for line in text.splitlines() if line.startswith("  ") and not line.startswith("   ")]
    return {line[2:34].strip(): [line[35:50].strip(), *line[51:].rsplit(None, 1)] for line in lines}


def test_every_claim_holds(shown: str) -> None:
    lines = shown.splitlines()
    last = re.fullmatch(r"demo: ok: all (\d+) claims hold in containers started by runc( and Docker)?", lines[-1])
    assert last, shown
    assert sum(line.startswith("  ") and line.endswith(" ok") for line in lines) == int(last[1])
    assert "WRONG" not in shown


def test_it_shows_each_hook_and_fits_the_terminal(shown: str) -> None:
    lines = shown.splitlines()
    assert {"create-symlinks", "chmod", "enable-cuda-compat", "update-ldcache"} <= set(lines)
    assert {"update-application-profile", "disable-device-node-modification"} <= set(lines)
    assert max(map(len, lines)) <= 100


@needs_nvml
def test_it_shows_a_gpu_given_by_its_cdi_name_for_one_hook_process(shown: str) -> None:
    found = table(part(shown, "by the Container Device Interface"))
    assert found["hook processes"] == ["0", "1", "ok"]
    assert found["/dev/nvidia0"][0] == "-"
    words = shown.split()
    assert [words[at : at + 3] for at, word in enumerate(words) if word == "nvoci"] == [
        ["nvoci", "cdi", "generate"],
        ["nvoci", "cdi", "inject"],
    ]


def gpu(number: int) -> list[str]:
    return ["-", f"195:{number}, may be opened", "ok"]


REFUSED = ["refused: EPERM", "refused: EPERM", "ok"]
MIG = "MIG-00000000-aaaa-5bbb-8ccc-000000010000"


@needs_nvml
@simulated
def test_it_shows_two_gpus_given_by_the_prestart_hook_and_no_other(shown: str) -> None:
    found = table(part(shown, "by the prestart hook, on a simulated node with 8 GPUs"))
    assert found["NVIDIA_VISIBLE_DEVICES"] == ["-", "0,3", "ok"]
    assert (found["/dev/nvidia0"], found["/dev/nvidia3"]) == (gpu(0), gpu(3))
    assert found["/dev/nvidia1, not asked for"] == ["-", "-", "ok"]
    assert found["195:1 by mknod: GPU 1"] == REFUSED
    assert found["gpus"] == ["8 GPUs", "0000:07:00.0 0000:4e:00.0", "ok"]
    assert found["writing params as root"][1] == "refused: Read-only file system"
    assert found["program using libnvidia-ml.so.1"] == ["exit status 127", "runs", "ok"]
    assert found["files and directories changed"][0] == "0"


@needs_nvml
@simulated
def test_it_shows_one_mig_device_given_by_its_uuid(shown: str) -> None:
    check_mig(table(part(shown, "by the prestart hook, on a simulated node with MIG devices")))


def check_mig(found: Table) -> None:
    assert found["NVIDIA_VISIBLE_DEVICES"] == ["-", MIG, "ok"]
    assert [label for label in found if label.startswith("nvidia-cap")] == ["nvidia-cap12", "nvidia-cap13"]
    assert found["device nodes of capabilities"] == ["0", "2", "ok"]
    assert found["access files in capabilities"][1] == "gpu0/mig/gi1 gpu0/mig/gi1/ci0"
    refused = ("236:48 by mknod: gpu0/mig/gi5", "236:1 by mknod: mig/config", "195:1 by mknod: GPU 1")
    assert [found[label] for label in refused] == [REFUSED] * 3


@needs_nvml
@simulated
def test_it_shows_two_gpus_given_by_docker(shown: str) -> None:
    assert "        docker run --gpus '\"device=0,1\"' IMAGE" in shown.splitlines()
    found = table(part(shown, r"by Docker \S+, on a simulated node with 8 GPUs"))
    assert found["NVIDIA_VISIBLE_DEVICES"] == ["-", "0,1", "ok"]
    assert [found[label] for label in ("/dev/nvidia0", "/dev/nvidia1")] == [gpu(0), gpu(1)]
    assert found["device nodes of the driver"] == ["0", "5", "ok"]
    assert found["195:2 by mknod: GPU 2"] == REFUSED
    assert found["gpus"][1] == "0000:07:00.0 0000:0f:00.0"


@needs_nvml
@simulated
def test_it_shows_a_mig_device_given_by_docker_by_its_uuid(shown: str) -> None:
    assert f"        docker run --gpus '\"device={MIG}\"' IMAGE" in shown.splitlines()
    check_mig(table(part(shown, r"by Docker \S+, on a simulated node with MIG devices")))


def test_it_shows_ldconfig_p_before_and_after(shown: str) -> None:
    lines = shown.splitlines()
    heading = "update-ldcache: `ldconfig -p` in the container"
    rows = [line.split() for line in lines[lines.index(heading) + 1 : lines.index("the host")]]
    found = {row[0]: row[1:] for row in rows[:-2]}
    assert {"libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1"} <= found.keys()
    assert all(before == "-" and after.startswith("/") and verdict == "ok" for before, after, verdict in found.values())
    without, own = rows[-2:]
    assert int(without[-3]) > 0
    assert without[-2:] == ["0", "ok"]
    assert own[-3] == own[-2]


@pytest.mark.parametrize(
    ("number", "begin"),
    [(signal.SIGINT, "driver: "), pytest.param(signal.SIGTERM, "by Docker ", marks=needs_nvml)],
    ids=["SIGINT-runc", "SIGTERM-Docker"],
)
def test_interrupted_leaves_nothing(number: signal.Signals, begin: str) -> None:
    before = left()
    demo = subprocess.Popen([DEMO], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert demo.stdout is not None
    assert any(line.startswith(begin) for line in iter(demo.stdout.readline, ""))  # from here on containers are started
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
