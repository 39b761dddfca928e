"""Unit files to be read, and a systemd of one's own that runs them on a simulated node.

It is the first process of a pid namespace, on the node's /dev, /proc/driver and /run, with a cgroup of its own, no
other units than ours, and /proc/sys read-only. All of it ends with the test.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from lib import proc, session, simnode

UNITS = session.CHECKOUT / "systemd"
SHIPPED = "/usr/local/bin/nvoci"
SYSTEMD = Path("/usr/lib/systemd/systemd")
_SIMNODE = session.CHECKOUT / "scripts/simnode"
_TARGETS = ("sysinit", "basic", "paths", "multi-user", "shutdown")
_ENABLED = re.compile(r"^WantedBy=multi-user.target$", re.MULTILINE)

# The node's procfs is kept over the change of pid namespace, which needs a procfs of its own.
_OUTER = """\
set -e
mkdir -p /run/keep/driver; touch /run/keep/devices
mount --rbind /proc/driver /run/keep/driver
mount --bind /proc/devices /run/keep/devices
exec unshare --pid --fork --kill-child --mount --propagation private --ipc --uts --cgroup sh "$1"/inner "$1"
"""
_INNER = """\
set -e
mount -t proc proc /proc
mount --rbind /run/keep/driver /proc/driver
mount --bind /run/keep/devices /proc/devices
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 none /sys/fs/cgroup
mkdir -p /run/systemd/system
. "$1"/before
sh "$1"/script >"$1"/out 2>&1 &
export container=nvoci SYSTEMD_UNIT_PATH="$1"/units SYSTEMD_GENERATOR_PATH="$1"/none
export SYSTEMD_ENVIRONMENT_GENERATOR_PATH="$1"/none
exec /usr/lib/systemd/systemd --system --unit=multi-user.target --show-status=no --log-target=null \\
    --default-standard-output=null --default-standard-error=null
"""


def entries(name: str) -> dict[str, list[str]]:
    """`Section.Key` -> values, in order, of a unit file of ours."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (UNITS / name).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            found.setdefault(f"{section}.{key}", []).append(value)
    return found


def laid(place: Path, program: str | Path) -> list[Path]:
    """The unit files with a program's path in them, as the installer lays them down."""
    place.mkdir(exist_ok=True)
    for path in UNITS.iterdir():
        text = path.read_text().replace(f"ExecStart={SHIPPED} ", f"ExecStart={program} ")
        (place / path.name).write_text(text)
    return sorted(place.iterdir())


def _cgroups() -> Path | None:
    """Where cgroup2 is mounted."""
    for line in proc.mountinfo():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            return Path(before.split()[4])
    return None


def boot(node: simnode.Built, program: Path, script: str, before: str = "", seconds: float = 60) -> list[str]:
    """Lines that a script prints, which runs beside a systemd that has our units enabled. before: run as root of the
    node before systemd starts. The service's output is in /run/out."""
    cgroups = _cgroups()
    if os.geteuid() or not SYSTEMD.exists() or cgroups is None:
        pytest.skip("needs root, systemd and cgroup2")
    place = session.new_dir("systemd")
    _write_units(place / "units", program)
    files = {"outer": _OUTER, "inner": _INNER, "before": before, "script": f"{script}\ntouch {place}/done\n"}
    for name, text in files.items():
        (place / name).write_text(text)
    own = cgroups / session.unique("systemd")
    try:
        own.mkdir()
    except OSError as e:
        pytest.skip(f"no cgroup of its own: {e}")
    child = subprocess.Popen(
        [_SIMNODE, "run", "--installed", node.root, "--", "sh", place / "outer", place],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=(place / "err").open("wb"), env=proc.PLAIN_ENV,
        preexec_fn=lambda: (own / "cgroup.procs").write_text("0") and None,
    )  # fmt: skip
    try:
        end = time.monotonic() + seconds
        while not (place / "done").exists() and child.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        _end(child, own)
    told = (place / "out").read_text() if (place / "out").exists() else ""
    assert (place / "done").exists(), (told, (place / "err").read_text())
    return told.splitlines()


def _write_units(place: Path, program: Path) -> None:
    """Ours, all that want to be enabled so, and empty ones for those that every unit needs."""
    enabled = [path.name for path in laid(place, program) if _ENABLED.search(path.read_text())]
    for name in _TARGETS:
        wants = f"Wants={' '.join(enabled)}\n" if name == "multi-user" else ""
        (place / f"{name}.target").write_text(f"[Unit]\nDefaultDependencies=no\n{wants}")
    service = place / "nvoci-cdi-refresh.service"
    output = "StandardOutput=append:/run/out\nStandardError=append:/run/out\n"
    service.write_text(service.read_text().replace("[Install]", f"{output}[Install]"))


def _end(child: subprocess.Popen[bytes], cgroup: Path) -> None:
    """With all that it has started, and its cgroups."""
    child.send_signal(signal.SIGTERM)
    child.wait(20)
    for _ in range(100):
        for path in sorted(cgroup.rglob("*/"), key=lambda each: len(each.parts), reverse=True):
            _remove(path)
        if _remove(cgroup):
            return
        time.sleep(0.05)


def _remove(path: Path) -> bool:
    try:
        path.rmdir()
    except OSError:
        return not path.exists()
    return True
