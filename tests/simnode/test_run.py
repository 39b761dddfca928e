"""`scripts/simnode run`: what the command sees, how it ends, and that nothing remains."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lib import proc, session, simnode
from simnode.nodes import built, fresh, needs_x86, nvoci

SIMNODE = session.CHECKOUT / "scripts/simnode"

LOOK = """
import json, os, pathlib
def node(path):
    s = os.lstat(path)
    return [oct(s.st_mode), os.major(s.st_rdev), os.minor(s.st_rdev), s.st_uid, s.st_gid]
dev = {str(p): node(p) for p in pathlib.Path("/dev").rglob("*") if not p.is_dir() and not p.is_symlink()}
seen = {"dev": dev, "links": {str(p): os.readlink(p) for p in pathlib.Path("/dev").rglob("*") if p.is_symlink()}}
seen["text"] = {str(p): p.read_text() for p in pathlib.Path("/proc/driver").rglob("*") if p.is_file()}
seen["devices"] = pathlib.Path("/proc/devices").read_text()
seen["pci"] = {str(p) for p in pathlib.Path("/sys/bus/pci/devices").rglob("*")}
seen["pci"] = sorted(seen["pci"])
seen["run"] = sorted(os.listdir("/run"))
seen["sockets"] = [p for p in ("/run/nvidia-persistenced/socket", "/var/run/nvidia-fabricmanager/socket")
                   if pathlib.Path(p).is_socket()]
print(json.dumps(seen))
"""


def run(node: simnode.Built, *words: str | Path, options: tuple[str, ...] = (), timeout: float = 30) -> proc.Result:
    return proc.run([SIMNODE, "run", *options, node.root, "--", *words], timeout=timeout)


def outside() -> tuple[list[str], list[str], list[str], str]:
    mounts = [line.split(" ", 3)[3] for line in proc.mountinfo()]
    return mounts, sorted(os.listdir("/run")), sorted(os.listdir("/dev")), Path("/proc/devices").read_text()


@pytest.mark.parametrize("name", ["a100-mig", "tegra", "wsl", "imex"])
def test_the_command_sees_the_node_and_the_machine_stays_as_it_is(name: str) -> None:
    node = built(name)
    before = outside()
    done = run(node, session.PYTHON, "-c", LOOK)
    assert done.rc == 0, done.stderr
    assert (outside(), done.survivors) == (before, [])
    seen = json.loads(done.stdout)
    files = simnode.sample(name)["files"]
    for entry in files:
        path = entry["path"]
        if entry["type"] == "char":
            mode = oct(0o020000 | int(entry["mode"], 8))
            expected = [mode, entry["major"], entry["minor"], entry.get("uid", 0), entry.get("gid", 0)]
            assert seen["dev"][path] == expected
        if entry["type"] == "symlink" and path.startswith("/dev/"):
            assert seen["links"][path] == entry["target"]
        if entry["type"] == "file" and path.startswith("/proc/driver/"):
            assert seen["text"][path] == entry["text"]
        if path.startswith("/sys/bus/pci/devices/"):
            assert path in seen["pci"]
    sockets = [e["path"] for e in files if e["type"] == "socket"]
    assert sorted(p.replace("/var/run", "/run") for p in seen["sockets"]) == sorted(sockets)
    assert "/dev/null" in seen["dev"]
    assert {"1 mem"} <= {line.strip() for line in seen["devices"].splitlines()}


def test_files_of_sysfs_are_shown_also_where_there_is_none() -> None:
    document = simnode.sample("tegra")
    for path in ("/sys/module", "/sys/module/nvidia"):
        document["files"].append({"path": path, "type": "dir", "mode": "755"})
    document["files"].append({"path": "/sys/module/nvidia/version", "type": "file", "mode": "444", "text": "580.00\n"})
    node = simnode.build(simnode.load(document), session.new_dir("node"))
    done = run(node, "cat", "/sys/devices/soc0/family", "/sys/module/nvidia/version")
    assert (done.rc, done.stdout, done.stderr) == (0, "Tegra\n580.00\n", "")
    assert not Path("/sys/devices/soc0").exists()


@needs_x86
def test_an_installed_node_is_found_by_ld_so() -> None:
    before = Path("/etc/ld.so.cache").read_bytes(), sorted(os.listdir("/var/cache/ldconfig"))
    program = "import pynvml as n; n.nvmlInit(); print(n.nvmlDeviceGetCount(), n.nvmlSystemGetDriverVersion())"
    done = run(built("rhel-lib64"), sys.executable, "-I", "-c", program, options=("--installed",))
    assert (done.rc, done.stdout, done.stderr) == (0, "2 550.163.01\n", "")
    command = "test -e /usr/lib64/libcuda.so.1 && test -x /usr/bin/nvidia-smi && cat /etc/os-release && ldconfig -p"
    done = run(built("rhel-lib64"), "sh", "-c", command, options=("--installed",))
    assert 'ID="rhel"' in done.stdout
    assert "libcuda.so.1 (libc6,x86-64) => " in done.stdout
    assert "libc.so.6 (libc6,x86-64" in done.stdout
    assert (Path("/etc/ld.so.cache").read_bytes(), sorted(os.listdir("/var/cache/ldconfig"))) == before


@needs_x86
def test_faults_reach_the_command() -> None:
    program = "import pynvml as n; n.nvmlInit()"
    options = ("--installed", "--fault", "not-loaded")
    done = run(built("no-drm"), sys.executable, "-I", "-c", program, options=options)
    assert "NVMLError_DriverNotLoaded" in done.stderr
    done = run(built("no-drm"), "true", options=("--fault", "lose=1"))
    assert (done.rc, done.stdout) == (1, "")
    assert done.stderr.startswith("simnode: fault `lose=1`: none of lost, ")


FAULTS = "/run/.simnode-faults"


def gpus_of(node: simnode.Built, *options: str, installed: bool = True) -> list[int]:
    """What `nvoci info`, whose NVML process clears its environment, tells of a node under `simnode run`."""
    where = () if installed else ("--driver-root", node.root)
    options = ("--installed", *options) if installed else options
    done = run(node, nvoci(), "info", "--json", *where, options=options)
    assert done.rc == 0, done.stderr
    return [gpu["index"] for gpu in json.loads(done.stdout)["gpus"]]


@needs_x86
def test_faults_reach_nvoci() -> None:
    node = built("a100")
    assert gpus_of(node) == list(range(8))
    assert gpus_of(node, "--fault", "lost=3") == [0, 1, 2, 4, 5, 6, 7]
    assert gpus_of(node, "--fault", "lost=3", installed=False) == [0, 1, 2, 4, 5, 6, 7]
    assert gpus_of(node) == list(range(8))
    assert not os.path.lexists(FAULTS)


@needs_x86
def test_faults_of_the_node_reach_nvoci_and_others_replace_them() -> None:
    node = fresh("no-drm", {"lost": 0})
    for installed in (True, False):
        assert gpus_of(node, installed=installed) == [1]
        assert gpus_of(node, "--fault", "lost=1", installed=installed) == [0]
    assert (node.root / ".simnode/faults").read_text() == "lost=0\n"
    done = run(node, "sh", "-c", f"stat -c '%a %u' {FAULTS}; cat {FAULTS}", options=("--fault", "lost=1"))
    assert done.stdout == "644 0\nlost=1"
    assert not os.path.lexists(FAULTS)


def test_a_link_in_the_place_of_faults_is_not_followed() -> None:
    node = simnode.build(simnode.load(simnode.sample("tegra")), session.new_dir("node"))
    (node.root / ".simnode").mkdir()
    (node.root / ".simnode/faults").symlink_to("/etc/passwd")
    done = run(node, "test", "!", "-e", FAULTS)
    assert done.rc == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [(("true",), 0), (("sh", "-c", "exit 7"), 7), (("sh", "-c", "kill -9 $$"), 137), (("/nowhere/x",), 127)],
    ids=["ok", "seven", "killed", "missing"],
)
def test_the_exit_status_is_that_of_the_command(words: tuple[str, ...], code: int) -> None:
    assert run(built("tegra"), *words).rc == code


def test_what_the_command_leaves_running_dies_with_it(tmp_path: Path) -> None:
    marker = tmp_path / "late"
    script = f"setsid sh -c 'sleep 1; echo > {marker}' >/dev/null 2>&1 & exit 3"
    done = run(built("tegra"), "sh", "-c", script)
    assert (done.rc, done.survivors) == (3, [])
    time.sleep(1.5)
    assert not marker.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_the_command_dies_with_simnode(number: signal.Signals, tmp_path: Path) -> None:
    begun, marker = tmp_path / "begun", tmp_path / "late"
    script = f"echo > {begun}; sleep 2; echo > {marker}"
    program = [SIMNODE, "run", built("tegra").root, "sh", "-c", script]
    child = subprocess.Popen(program, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert begun.exists()
    child.send_signal(number)
    assert child.wait(10) == (143 if number == signal.SIGTERM else -9)
    time.sleep(2.5)
    assert not marker.exists()


def test_a_daemon_of_the_node_can_listen_on_its_socket() -> None:
    node = fresh("a100-mig")
    path = node.root / "run/nvidia-persistenced/socket"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        program = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/nvidia-persistenced/socket')"
        assert run(node, session.PYTHON, "-c", program).rc == 0


def test_a_device_node_can_not_be_opened() -> None:
    done = run(built("tegra"), "cat", "/dev/nvidia0")
    assert "No such device or address" in done.stderr


def test_a_directory_that_is_no_node_is_told(tmp_path: Path) -> None:
    done = proc.run([SIMNODE, "run", tmp_path, "true"])
    assert (done.rc, done.stderr) == (
        1,
        f"simnode: run on `{tmp_path}`: it has no dev and proc (make it with `simnode build`)\n",
    )
    done = proc.run([SIMNODE, "run", built("tegra").root])
    assert (done.rc, done.stderr) == (1, "simnode: run: no command given\n")


@pytest.mark.parametrize("name", ["run", "sys", "usr"])
def test_a_node_with_a_link_at_its_top_is_refused(name: str) -> None:
    files = [{"path": f"/{each}", "type": "dir", "mode": "755"} for each in ("dev", "proc")]
    files.append({"path": f"/{name}", "type": "symlink", "target": "/etc"})
    node = simnode.build(simnode.load({"files": files}), session.new_dir("node"))
    done = run(node, "true")
    told = f"simnode: show `{node.root}/{name}`: ELOOP (it is a link; a node that is run needs a directory)\n"
    assert (done.rc, done.stdout, done.stderr) == (1, "", told)


def test_root_is_needed(tmp_path: Path) -> None:
    command = ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = proc.run([*command, SIMNODE, "run", built("tegra").root, "true"])
    assert done.rc == 1
    assert done.stderr == "simnode: make a mount namespace: EPERM (it mounts, and makes device nodes: run as root)\n"
