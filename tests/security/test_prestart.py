"""Bad input to the prestart hook: its configuration, the container's variables, cgroup and process, the node's devices.

Each case is one call under the oracle: exit status 1 and one line with what it was and what to do, and mounts, files
and device rules are as they were. `test_prestart_targets.py` has what is mounted on, and the kernel's limits.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from kernel import devcgroups, namespaced
from kernel.test_device_rules import HELPER
from security import prestartscene
from security.prestartcase import CONFIG, Case, judged, refused, visible
from security.prestartscene import Scene, Site, on_node

from nvoci.linux import abi, syscalls

MIB = 1 << 20
NO_KMODS = "[nvidia-container-cli]\nload-kmods = false\n"


# --- config.toml -----------------------------------------------------------------------------------------------------

CONFIGS = {
    "broken": Case([f"read configuration {CONFIG}: not valid TOML"], config="x = = 1\n"),
    "a wrong type": Case(["`nvidia-container-cli.root` is a number"], config="[nvidia-container-cli]\nroot = 7\n"),
    "a table for a value": Case(["`swarm-resource` is a table"], config="[swarm-resource]\nx = 1\n"),
    "another's": Case(["owned by uid 1000", "must belong to root"], config="#\n", host=f"chown 1000 {CONFIG}"),
    "writable by others": Case(["mode 0666", "must belong to root"], config="#\n", host=f"chmod 666 {CONFIG}"),
    "huge": Case(["EFBIG", "at most 65536 bytes"], config="#\n", host=f"truncate -s 1T {CONFIG}"),
    "FIFO": Case(["EINVAL (not a regular file)"], config="#\n", host=f"rm {CONFIG}; mkfifo {CONFIG}"),
    "endless device": Case(["not a regular file"], config="#\n", host=f"ln -sf /dev/zero {CONFIG}"),
    "named, and not there": Case(
        ["/none.toml: ENOENT", "named by -config"], how={"words": ["-config", "/none.toml", "prestart"]}
    ),
    "a module that cannot be loaded": Case(
        ["prestart: load nvoci.prestart.compatlibs", "see that the installation is whole"],
        config='[nvidia-container-runtime.modes.legacy]\ncuda-compat-mode = "mount"\n',
        how={"extra": 'sys.modules["nvoci.prestart.compatlibs"] = None'},
    ),
    "a driver root that is not there": Case(["/none"], config='[nvidia-container-cli]\nroot = "/none"\n'),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_cannot_be_used(name: str) -> None:
    assert on_node(lambda: refused(CONFIGS[name])) == []


# --- the container's variables ---------------------------------------------------------------------------------------


ENVIRONMENTS = {
    "1 MiB": Case(["NVIDIA_VISIBLE_DEVICES: longer than"], env=visible("0," * (MIB // 2))),
    "1 MiB of capabilities": Case(["longer than"], env=(*visible("0"), "NVIDIA_DRIVER_CAPABILITIES=" + "x" * MIB)),
    "1 MiB of requirements": Case(["longer than"], env=(*visible("0"), "NVIDIA_REQUIRE_X=" + "x" * MIB)),
    "NUL": Case([r"0\\x00: unknown device"], env=visible("0\0")),
    "a path": Case(["../../dev/sda: unknown device"], env=visible("0,../../dev/sda")),
    "newline": Case(["unknown device"], env=visible("0\n1")),
    "without =": Case(["invalid environment variable: odd"], env=(*visible("0"), "odd")),
    "the last of two": Case(["9: unknown device"], env=(*visible("0"), *visible("9"))),
    "capabilities": Case(["unsupported capabilities"], env=(*visible("0"), "NVIDIA_DRIVER_CAPABILITIES=../x")),
    "IMEX channel": Case(["IMEX channel value"], env=(*visible("0"), "NVIDIA_IMEX_CHANNELS=../0")),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_variables_that_mean_nothing(name: str) -> None:
    assert on_node(lambda: refused(ENVIRONMENTS[name])) == []


def test_all_and_none_are_all_and_a_name_given_twice_counts_once() -> None:
    """Of `all,none` the first counts, as for the reference."""

    def nodes(value: str) -> list[str]:
        with Scene(env=visible(value)).container() as site:
            assert site.hook().rc == 0
            mounts = [mount[0] for mount in site.view().mounts]
        return sorted(path for path in mounts if path.startswith("/dev/nvidia") and path[-1].isdigit())

    every, none, twice = on_node(lambda: [nodes(value) for value in ("all,none", "none,all", "1,0,1")])
    assert (len(every), none, twice) == (8, [], ["/dev/nvidia0", "/dev/nvidia1"])


# --- the node --------------------------------------------------------------------------------------------------------

NODE = "/dev/nvidia0"
NODES = {
    "GPU lost": Case(["GPU 0", "NVML_ERROR_GPU_IS_LOST"], host="echo lost=0 >/run/.simnode-faults"),
    "missing": Case([NODE, "ENOENT"], config=NO_KMODS, host=f"rm {NODE}"),
    "gone since the node was looked at": Case([NODE, "ENOENT"], config=NO_KMODS, host=f"rm {NODE}", looked=True),
    "a file": Case([NODE], config=NO_KMODS, host=f"rm {NODE}; echo x >{NODE}", looked=True),
    "a block device": Case([NODE], config=NO_KMODS, host=f"rm {NODE}; mknod {NODE} b 195 0", looked=True),
    "another number": Case([NODE, "195"], config=NO_KMODS, host=f"rm {NODE}; mknod {NODE} c 1 5", looked=True),
    "a FIFO": Case([NODE], config=NO_KMODS, host=f"rm {NODE}; mkfifo {NODE}", looked=True),
    "a link to another": Case([NODE], config=NO_KMODS, host=f"rm {NODE}; ln -s /dev/zero {NODE}", looked=True),
}


@pytest.mark.parametrize("name", NODES)
def test_a_device_that_is_not_what_it_should_be(name: str) -> None:
    assert on_node(lambda: refused(NODES[name])) == []


# --- the container's cgroup ------------------------------------------------------------------------------------------


def blocked(*names: str, error: int = errno.EPERM) -> dict[str, Any]:
    """For run_hook: these calls are refused by seccomp."""
    return {"preexec": lambda: namespaced.block(names, error)}


CGROUPS = {
    "bpf refused": Case(["device rules:", "EPERM"], kind="unified", how=blocked("bpf")),
    "bpf not there": Case(["device rules:", "ENOSYS"], kind="unified", how=blocked("bpf", error=errno.ENOSYS)),
    "a foreign program": Case(
        ["merge device program", "calls a function"],
        kind="unified",
        change=lambda site: devcgroups.attach(site.cgroup, HELPER),
    ),
    "no cgroup2 is mounted": Case(
        ["no cgroup2 is mounted here"], kind="unified", how={"setup": "umount -l /sys/fs/cgroup\n"}
    ),
}


@pytest.mark.parametrize("name", CGROUPS)
def test_device_rules_that_cannot_be_given(name: str) -> None:
    assert on_node(lambda: refused(CGROUPS[name])) == []


def test_a_container_that_nothing_restricts_needs_no_rule() -> None:
    """No device cgroup at all: everything is allowed."""

    def body() -> tuple[int, list[object]]:
        with Scene().container() as site:
            (devcgroups.top("devices") / "cgroup.procs").write_text(str(site.container.pid))
            done = site.hook()
            return done.rc, site.rules()

    assert on_node(body) == (0, ["c 1:3 rwm"])


# --- the container's process -----------------------------------------------------------------------------------------


def gone(site: Site) -> int:
    """Of a process that has just ended."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


SLEEPER = 3
PIDS: dict[str, tuple[Callable[[Site], int], bool, str]] = {
    "gone": (gone, False, "ESRCH"),
    "0": (lambda site: 0, True, "the container has no mount namespace"),
    "1": (lambda site: 1, False, "is the init of the host"),
    "negative": (lambda site: -7, False, "pid"),
    "reused by a process of the host": (lambda site: SLEEPER, True, "is in the host's mount namespace"),
    "reused by one with other mounts": (lambda site: other(), False, "is a process of the host, not of a container"),
    "a kernel thread": (lambda site: 2, False, "is a kernel thread"),
}


def host() -> list[str]:
    """A pid namespace of its own, whose first process is in the mount namespace that the hook is called in, as it is on
    a host; the third sleeps."""
    script = f"mount --bind {prestartscene.proc_driver()} /proc/driver"
    script += '; sleep 20 & "$@"; code=$?; kill $!; exit $code'
    return ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, "sh"]


def other() -> int:
    """A process of the host with a mount namespace of its own; it ends with this one's namespace."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        syscalls.unshare(abi.CLONE_NEWNS)
        os.write(send, b"!")
        signal.pause()
        os._exit(0)
    os.read(receive, 1)
    return pid


@pytest.mark.parametrize("name", PIDS)
def test_a_process_that_is_not_the_container_s(name: str) -> None:
    pid, whole, words = PIDS[name]

    def body() -> list[str]:
        with Scene().container() as site:
            number = pid(site)
            try:
                return judged(
                    site,
                    [words],
                    prefix=host() if whole else [],
                    state={**site.container.state("prestart"), "pid": number},
                )
            finally:
                if "other mounts" in name:
                    os.kill(number, signal.SIGKILL)
                    os.waitpid(number, 0)

    assert on_node(body) == []
