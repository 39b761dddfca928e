"""The prestart hook as a process on a simulated node: a dry run, its settings, and a node of Windows."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from lib import proc
from security.prestartcase import CONFIG
from security.prestartscene import ENV, Scene, Site, on_node
from simnode.nodes import needs_x86

pytestmark = [needs_x86, pytest.mark.skipif(os.geteuid() != 0, reason="makes a node")]
HOOK_SETTINGS = "/etc/nvoci/hook.json"
ALL = ("NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=all")
OLD_IMAGE = ("CUDA_VERSION=11.0.3",)


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(text)


def in_scene(body: Callable[[Site], Any], sample: str = "a100", env: Sequence[str] = ENV, **files: str) -> Any:
    """body(site) where the machine is the node. files: `config`, `settings`."""

    def shown() -> Any:
        for path, text in zip((CONFIG, HOOK_SETTINGS), (files.get("config"), files.get("settings"))):
            if text is not None:
                write(path, text)
        with Scene(env=env).container() as site:
            return body(site)

    return on_node(shown, sample)


def outcome(result: proc.Result) -> tuple[int, str, str]:
    assert result.survivors == []
    return result.rc, result.stdout, result.stderr


# -- a dry run --------------------------------------------------------------------------------------------------------


def test_a_dry_run_tells_what_a_run_does_and_changes_nothing() -> None:
    """After the run there is nothing left of it to do but what is done anew each time."""

    def body(site: Site) -> Any:
        before = site.view()
        first = outcome(site.hook(words=["-dry-run", "prestart"]))
        changed = before.differences(site.view())
        done = outcome(site.hook())
        made = [mount[0] for mount in site.view().mounts if mount not in before.mounts]
        return first, changed, done, made, outcome(site.hook(words=["prestart", "--dry-run"]))

    (rc, told, stderr), changed, done, made, again = in_scene(body, env=ALL)
    assert (rc, stderr, changed, done[0], again[0]) == (0, "", [], 0, 0), done
    lines = told.splitlines()
    mounts = [line.rpartition(" on ")[2].partition(",")[0] for line in lines if line.startswith("prestart: mount ")]
    assert sorted([path.replace("/lib/", "/usr/lib/", path.startswith("/lib/")) for path in mounts]) == sorted(made)
    assert any(line.startswith("prestart: symlink /usr/lib/") for line in lines)
    assert any(line.startswith("prestart: make directory ") for line in lines)
    left = again[1].splitlines()
    assert set(left) < set(lines)
    assert [line for line in left if re.match("prestart: (mount|make|symlink)", line)] == []


# -- settings ---------------------------------------------------------------------------------------------------------


def test_nodes_are_made_where_that_is_configured() -> None:
    """None of them is a mount, and each may be opened."""

    def body(site: Site) -> Any:
        dry = outcome(site.hook(words=["-dry-run", "prestart"]))
        done = outcome(site.hook())
        nodes = {name: site.container.path(f"dev/{name}").stat() for name in site.container.listdir("dev")
                 if name.startswith("nvidia")}  # fmt: skip
        mounts = [mount[0] for mount in site.view().mounts if mount[0].startswith("/dev/nvidia")]
        return dry, done, {name: (os.major(st.st_rdev), os.minor(st.st_rdev)) for name, st in nodes.items()}, mounts, (
            site.rules())  # fmt: skip

    dry, done, nodes, mounts, rules = in_scene(
        body, env=("NVIDIA_VISIBLE_DEVICES=1", "NVIDIA_DRIVER_CAPABILITIES=utility"),
        settings=json.dumps({"device-nodes": "mknod"}),
    )  # fmt: skip
    assert (dry[0], done[0], mounts) == (0, 0, []), done
    assert nodes["nvidia1"] == (195, 1)
    assert nodes["nvidiactl"] == (195, 255)
    assert "nvidia0" not in nodes
    assert {"c 195:1 rw", "c 195:255 rw"} <= set(rules)
    assert "/dev/nvidia1" in dry[1]


def test_a_debug_file_has_what_stderr_has_not() -> None:
    log = "/run/prestart.log"

    def body(site: Site) -> Any:
        done = outcome(site.hook())
        return done, Path(log).read_text()

    done, text = in_scene(body, config=f'[nvidia-container-cli]\ndebug = "{log}"\n')
    assert done == (0, "", "")
    assert "level=debug" in text
    assert "devices: 0,1" in text


def test_who_asks_for_what_is_not_heard_gets_nothing() -> None:
    """It looks like asking until the configuration is read."""

    def body(site: Site) -> Any:
        before = site.view()
        done = outcome(site.hook(words=["-debug", "prestart"]))
        return done, before.differences(site.view())

    config = "accept-nvidia-visible-devices-envvar-when-unprivileged = false\n"
    (rc, stdout, stderr), changed = in_scene(body, config=config)
    assert (rc, stdout, changed) == (0, "", [])
    assert "Ignoring devices requested by environment variable(s) in unprivileged container: [0 1]" in stderr
    assert "no GPU is asked for" in stderr


def test_a_dangerous_environment_is_told_once_and_no_reason_to_stop() -> None:
    def body(site: Site) -> Any:
        env = {"LD_LIBRARY_PATH": "/nowhere", "PYTHONPATH": "/nowhere", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        return outcome(site.hook(env=env)), [mount[0] for mount in site.view().mounts]

    (rc, stdout, stderr), mounts = in_scene(body)
    assert (rc, stdout, stderr.count("dangerous environment")) == (0, "", 1)
    assert "LD_LIBRARY_PATH" in stderr
    assert "/dev/nvidia0" in mounts


def test_an_old_image_asks_for_all() -> None:
    """One that tells its version of CUDA and nothing else."""

    def body(site: Site) -> Any:
        return outcome(site.hook(words=["-debug", "prestart"])), [mount[0] for mount in site.view().mounts]

    (rc, _, stderr), mounts = in_scene(body, env=OLD_IMAGE)
    assert rc == 0, stderr
    assert "devices: all" in stderr
    assert {f"/dev/nvidia{n}" for n in range(8)} <= set(mounts)


def test_nvml_may_be_asked_as_somebody_else() -> None:
    """The node is the same."""

    def body(site: Site) -> Any:
        return outcome(site.hook()), [mount[0] for mount in site.view().mounts]

    as_usual, as_another = (
        in_scene(body, config=f'[nvidia-container-cli]\nuser = "{user}"\n') for user in ("", "65533:65533")
    )
    assert as_usual[0] == as_another[0] == (0, "", "")
    assert as_usual[1] == as_another[1] != []


# -- Windows ----------------------------------------------------------------------------------------------------------


def test_of_a_driver_of_windows_everything_has_the_path_of_the_host() -> None:
    def body(site: Site) -> Any:
        dry = outcome(site.hook(words=["-dry-run", "prestart"]))
        done = outcome(site.hook())
        mounts = [mount[0] for mount in site.view().mounts]
        links = {path: os.readlink(site.container.path(path)) for path in ("usr/bin/nvidia-smi",)}
        return dry, done, mounts, links, site.rules()

    dry, done, mounts, links, rules = in_scene(body, "wsl", ALL)
    assert (dry[0], done[0]) == (0, 0), done
    assert "/dev/dxg" in mounts
    assert any(path.startswith("/usr/lib/wsl/") and "libcuda" in path for path in mounts)
    assert [path for path in mounts if path.startswith("/proc/driver/nvidia")] == []
    assert links["usr/bin/nvidia-smi"].startswith("/usr/lib/wsl/")
    assert [rule for rule in rules if str(rule).startswith("c 10:")]
