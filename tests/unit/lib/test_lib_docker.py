"""The Docker daemon of the tests: all of it ends with it, and the host's own files and daemon are left alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lib import docker, proc, rootfs, session

pytestmark = pytest.mark.e2e


def test_a_daemon_and_a_container_and_nothing_of_them_afterwards() -> None:
    before = os.path.lexists("/etc/docker/key.json"), os.path.lexists("/var/run/docker.sock")
    with docker.Docker() as daemon:
        image = daemon.load(rootfs.busybox_rootfs(session.new_dir("rootfs")), env={"OF": 'the "$image" \\'})
        result = daemon.run(["-e", "MORE=x", image, "sh", "-c", 'echo "$OF" $MORE; echo two >&2; exit 3'])
        assert (result.rc, result.stdout, result.stderr) == (3, 'the "$image" \\ x\n', "two\n")
        assert (daemon.containers(), daemon.leftovers()) == ([], [])
        name = session.unique("docker")
        assert daemon.call("run", "--detach", "--network=none", f"--name={name}", image, "sleep", "99").ok
        kinds = {line.partition(" ")[0] for line in daemon.leftovers(patience=0)}
        assert kinds == {"container", "process", "bundle", "mount", "cgroup"}
        pids = list(proc.descendants(daemon._process.pid))
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert not daemon.folder.exists()
    assert (os.path.lexists("/etc/docker/key.json"), os.path.lexists("/var/run/docker.sock")) == before


def test_a_container_that_takes_too_long_is_removed() -> None:
    with docker.Docker() as daemon:
        image = daemon.load(rootfs.busybox_rootfs(session.new_dir("rootfs")))
        result = daemon.run([image, "sleep", "99"], timeout=2)
        assert result.timed_out
        assert daemon.leftovers() == []


def test_a_daemon_that_does_not_start_says_why() -> None:
    with pytest.raises(docker.DockerError, match=r"start dockerd: it ended: .*no such thing"):
        docker.Docker(setup="echo no such thing >&2\nfalse\n")
    assert [path for path in session.tmp().glob("docker*") if path.is_dir()] == []


def test_without_docker_the_message_names_what_makes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(docker, "UNPACKED", tmp_path)
    monkeypatch.setattr(docker, "_NEEDED", ("no-such-dockerd",))
    with pytest.raises(docker.DockerError, match=r"neither installed nor in .* \(scripts/test unpacks it\)"):
        docker.programs()
