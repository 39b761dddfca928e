"""`nvidia-container-cli configure` and questions of one's own as processes on a simulated node, in a container that is
a process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lib import hookproc, proc, rootfs
from lib.oracle import content_only, snapshot
from security.prestartscene import Scene, Site, View, on_node
from simnode.clicalls import LIB, PROGRAM, V, cli, run, shell
from simnode.nodes import built, fresh, needs_x86

pytestmark = [needs_x86, pytest.mark.skipif(os.geteuid() != 0, reason="makes a node")]
WORDS = ("--device=0,1", "--compute", "--utility", "--graphics")


def configure(site: Site, *words: str, main: Sequence[str] = (), pid: bool = True, **how: Any) -> proc.Result:
    """For the scene's container. pid: it is named."""
    names = [f"--pid={site.container.pid}"] if pid else []
    words = (*main, "configure", *words, *names, str(site.container.rootfs))
    return hookproc.run_hook(words, container=site.container, program=cli(), timeout=20, **how)


def told(result: proc.Result) -> tuple[int, str, str, list[str]]:
    return result.rc, result.stdout, result.stderr, result.survivors


def places(view: View) -> list[str]:
    return [mount[0] for mount in view.mounts]


# -- configure --------------------------------------------------------------------------------------------------------


def test_a_named_container_gets_what_the_prestart_hook_gives() -> None:
    log = "/run/cli.log"

    def body() -> Any:
        with Scene().container() as site:
            by_hook = site.hook()
            wanted = site.view()
        with Scene().container() as site:
            done = told(configure(site, *WORDS, "--cuda-compat-mode=ldconfig", main=["-k", f"--debug={log}"]))
            return done, by_hook.stderr, len(wanted.mounts), wanted.differences(site.view()), Path(log).read_text()

    done, by_hook, mounts, differences, text = on_node(body)
    assert (done, by_hook) == ((0, "", "", []), "")
    assert mounts > 30
    assert differences == []
    assert f"mount {LIB}/libcuda.so.{V} (ro,nosuid,nodev) on {LIB}/libcuda.so.{V}" in text
    assert "mount /dev/nvidia1 (ro,nosuid,noexec) on /dev/nvidia1, and allow c 195:1 rw" in text
    assert "write /etc/ld.so.cache (" in text


# What the container has (below /dev: on a tmpfs of its own) -> the beginning of the error.
MOUNT_ERRORS = {
    f"dir {LIB[1:]}/libcuda.so.{V}": f"mount on {LIB}/libcuda.so.{V}: is a directory (EISDIR; the image has a",
    "symlink dev/nvidiactl nvidiactl": "mount /dev/nvidiactl (ro,nosuid,noexec) on /dev/nvidiactl, and allow c ",
}


def test_what_the_image_does_not_allow_is_a_mount_error_and_undone() -> None:
    def body() -> Any:
        found = {}
        for spec in MOUNT_ERRORS:
            with Scene().container() as site:
                rootfs.tree(site.container.path(), spec)
                before, files = site.view(), content_only(snapshot(site.container.rootfs))
                done = told(configure(site, *WORDS))
                after = content_only(snapshot(site.container.rootfs))
                found[spec] = done, before.differences(site.view()), files == after
        return found

    for spec, (done, differences, same) in on_node(body).items():
        assert (done[0], done[1], done[3], differences, same) == (1, "", [], [], True)
        (line,) = done[2].splitlines()
        assert line.startswith(f"{PROGRAM}mount error: {MOUNT_ERRORS[spec]}"), line


def test_who_may_not_mount_is_told_before_anything_is_looked_at() -> None:
    words = ("/usr/bin/setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")

    def body() -> Any:
        with Scene().container() as site:
            before = site.view()
            return told(configure(site, *WORDS, prefix=words)), before.differences(site.view())

    done, differences = on_node(body)
    (line,) = done[2].splitlines()
    assert (done[0], differences) == (1, [])
    assert line.startswith(f"{PROGRAM}permission error: capability change failed: operation not permitted (uid 0 with")


def test_whoever_calls_may_stand_for_the_container() -> None:
    """In its mount namespace already."""

    def body() -> Any:
        with Scene().container() as site:
            done = configure(site, *WORDS, "--no-cgroups", pid=False, stage="createContainer")
            again = configure(site, *WORDS, "--no-cgroups", pid=False, stage="createContainer")
            return told(done), told(again), places(site.view()), site.rules()

    done, again, mounts, rules = on_node(body)
    assert (done, again) == ((0, "", "", []), (0, "", "", []))
    assert {"/dev/nvidia0", "/dev/nvidia1", "/proc/driver/nvidia"} <= set(mounts)
    assert len(mounts) == len(set(mounts))
    assert not [rule for rule in rules if "195" in str(rule)]


def test_what_the_node_does_not_fulfil_changes_nothing() -> None:
    """Whoever is named to ask the driver."""

    def body() -> Any:
        with Scene().container() as site:
            before = site.view()
            refused = told(configure(site, "--device=0", "-u", "--require=cuda>=99"))
            differences = before.differences(site.view())
            return refused, differences, told(configure(site, "--device=0", "-u", main=["--user=0:0"]))

    refused, differences, done = on_node(body)
    (line,) = refused[2].splitlines()
    assert (refused[0], differences, done) == (1, [], (0, "", "", []))
    assert line.startswith(f"{PROGRAM}requirement error: unsatisfied condition: cuda>=99")


# -- a look of one's own ----------------------------------------------------------------------------------------------

REFUSALS: dict[str, tuple[str, str]] = {
    "driver-not-loaded": ("--user=65534:65534 info", "initialization error: nvml error: driver not loaded: "),
    "half-removed": ("--user=65534:65534 info", "initialization error: load library failed: libnvidia-ml.so.1: "),
}


@pytest.mark.parametrize("node", REFUSALS)
def test_a_library_that_refuses_is_told_as_in_a_usual_look(node: str) -> None:
    words, line = REFUSALS[node]
    usual, own = run(built(node), "info"), run(built(node), *words.split())
    for result in (usual, own):
        lines = [each for each in result.stderr.splitlines() if not each.startswith(f"{PROGRAM}warning: ")]
        assert (result.rc, result.stdout, len(lines), result.survivors) == (1, "", 1, [])
        assert lines[0].startswith(PROGRAM + line)


def test_a_library_cache_without_the_driver_is_told() -> None:
    """One of the usual directories, where this driver is not."""
    node = fresh("cache-only")
    made = proc.run(["/sbin/ldconfig", "-r", node.root, "-f", "/nowhere", "-C", "/etc/none.cache", "-X"])
    assert Path(f"{node.root}/etc/none.cache").exists(), made.stderr
    result = run(node, f"--root={node.root}", "--ldcache=/etc/none.cache", "info", installed=False)
    assert (result.rc, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == (
        f"{PROGRAM}initialization error: load library failed: /etc/none.cache has no library of a driver (run ldconfig)"
    )


def test_the_directory_of_the_mps_daemon_may_be_another() -> None:
    where = "/run/another-mps"
    calls = [f"CUDA_MPS_PIPE_DIRECTORY={value} {cli()} list -i" for value in (where, "relative")]
    result = shell(built("a100"), f"mkdir {where}; {'; '.join(calls)}")
    sockets = ["/run/nvidia-persistenced/socket", "/run/nvidia-fabricmanager/socket"]
    assert (result.rc, result.stderr, result.stdout.splitlines()) == (0, "", [*sockets, where, *sockets])


def test_a_dangerous_environment_is_in_the_log_and_no_reason_to_stop() -> None:
    result = run(built("no-drm"), "--debug=/dev/stderr", "info", env={"LD_LIBRARY_PATH": "/nowhere"})
    assert result.rc == 0
    (line,) = [each for each in result.stderr.splitlines() if "dangerous environment" in each]
    assert (line[0], "LD_LIBRARY_PATH" in line) == ("W", True)
