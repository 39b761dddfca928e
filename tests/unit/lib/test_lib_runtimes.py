"""lib.runtimes: real containers start, run a trivial hook and leave nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lib import driver, jail, rootfs, runtimes, session
from lib.runtimes import Runtime, make_bundle, shell_hook


@pytest.fixture(params=["runc", "crun"])
def runtime(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if not runtimes.available(name):
        pytest.skip(f"{name} is not installed")
    return name


@pytest.mark.parametrize("cgroups", ["v1", "v2"])
def test_a_container_runs_with_a_hook(tmp_path: Path, runtime: str, cgroups: str) -> None:
    root = rootfs.busybox_rootfs(tmp_path / "r")
    hook = shell_hook(f"cat > {tmp_path}/state; echo hook > {root}/mark")
    bundle = make_bundle(tmp_path / "b", root, ["sh", "-c", "cat /mark; exit 7"], {"createRuntime": [hook]})
    result = Runtime(runtime, cgroups).run(bundle)
    assert (result.rc, result.stdout, result.survivors, result.mounts_added) == (7, "hook\n", [], [])
    assert json.loads((tmp_path / "state").read_text())["bundle"] == str(tmp_path / "b")
    assert runtimes.leftovers() == []


@pytest.mark.parametrize("stage", ["prestart", "createRuntime", "createContainer", "startContainer"])
def test_a_failing_hook_prevents_the_start(tmp_path: Path, runtime: str, stage: str) -> None:
    root = rootfs.busybox_rootfs(tmp_path / "r")
    bundle = make_bundle(tmp_path / "b", root, ["echo", "started"], {stage: [shell_hook("exit 3")]})
    result = Runtime(runtime).run(bundle)
    assert result.rc != 0
    assert "started" not in result.stdout
    assert runtimes.leftovers() == []


def test_a_hanging_container_is_killed_at_the_deadline(tmp_path: Path, runtime: str) -> None:
    root = rootfs.busybox_rootfs(tmp_path / "r")
    result = Runtime(runtime).run(make_bundle(tmp_path / "b", root, ["sleep", "60"]), timeout=1)
    assert result.timed_out
    assert runtimes.leftovers() == []


def test_user_namespaces_devices_and_read_only_roots_work(tmp_path: Path, runtime: str) -> None:
    root = rootfs.busybox_rootfs(session.new_dir("r"))  # tmp_path is closed to mapped users
    script = "cat /proc/self/uid_map; touch /x || echo read-only; ls /dev/full; cat /seen"
    (root / "seen").touch()
    with driver.make(tmp_path / "d") as d:
        hook = shell_hook(f"cat >/dev/null; cp /proc/driver/nvidia/params {root}/seen")
        bundle = make_bundle(
            tmp_path / "b",
            root,
            ["sh", "-c", script],
            {"createRuntime": [hook]},
            readonly=True,
            userns=(100000, 65536),
            devices=[("/dev/full", 1, 7)],
        )
        result = Runtime(runtime).run(bundle, setup=jail.driver_proc(d.proc))
    assert result.stdout.split()[:3] == ["0", "100000", "65536"], result.stderr
    assert "read-only" in result.stdout
    assert "/dev/full" in result.stdout
    assert "ModifyDeviceFiles: 1" in result.stdout


def test_podman_runs_hooks_d_and_cdi(tmp_path: Path, runtime: str) -> None:
    if not runtimes.available("podman"):
        pytest.skip("podman is not installed")
    root = rootfs.busybox_rootfs(tmp_path / "r")
    hooks = tmp_path / "hooks.d"
    hooks.mkdir()
    hook = shell_hook(f"cat >/dev/null; echo hook > {root}/mark")
    entry = {"version": "1.0.0", "hook": hook, "when": {"always": True}, "stages": ["createRuntime"]}
    (hooks / "x.json").write_text(json.dumps(entry))
    devices = [{"name": "0", "containerEdits": {"env": ["CDI=yes"]}}]
    spec = {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices}
    result = runtimes.podman(
        root,
        ["sh", "-c", "cat /mark; echo $CDI"],
        runtime=runtime,
        hooks_dir=hooks,
        flags=["--device", "nvidia.com/gpu=0"],
        cdi_specs={"n.json": spec},
    )
    assert (result.rc, result.stdout, result.survivors) == (0, "hook\nyes\n", []), result.stderr
    assert runtimes.leftovers() == []
