"""`scripts/simnode build`, `list` and the rest of the command line."""

from __future__ import annotations

import json
from pathlib import Path

from lib import proc, session, simnode
from simnode.nodes import needs_x86

SIMNODE = session.CHECKOUT / "scripts/simnode"


def test_a_known_node_is_built_by_name(tmp_path: Path) -> None:
    done = proc.run([SIMNODE, "build", "tegra", tmp_path / "node"], timeout=60)
    assert (done.rc, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'node'}: 67 files, no NVML library\n"
    assert (tmp_path / "node/etc/nv_tegra_release").read_text().startswith("# R36")


@needs_x86
def test_a_description_is_built_with_faults(tmp_path: Path) -> None:
    (tmp_path / "my.json").write_text(json.dumps(simnode.sample("no-drm")))
    words = ["build", tmp_path / "my.json", tmp_path / "node", "--fault", "lost=1", "--fault", "stdout"]
    done = proc.run([SIMNODE, *words], timeout=60)
    assert (done.rc, done.stderr) == (0, "")
    library = tmp_path / "node/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.550.163.01"
    assert done.stdout.endswith(f", NVML {library}\n")
    assert (tmp_path / "node/.simnode/faults").read_text() == "lost=1 stdout\n"


def test_errors_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"files": [{"path": "x"}]}')
    done = proc.run([SIMNODE, "build", tmp_path / "bad.json", tmp_path / "node"])
    assert (done.rc, done.stdout) == (1, "")
    assert done.stderr == "simnode: bad.json: files[0]: `type` is missing\n"
    done = proc.run([SIMNODE, "build", "h100", tmp_path / "node"])
    assert (done.rc, done.stderr) == (1, "simnode: read `h100`: No such file or directory\n")
    (tmp_path / "file").write_text("")
    done = proc.run([SIMNODE, "build", "tegra", tmp_path / "file/x"])
    assert done.stderr == f"simnode: make directory `{tmp_path / 'file/x'}`: ENOTDIR\n"


def test_names_are_listed() -> None:
    done = proc.run([SIMNODE, "list"])
    assert done.stdout.split() == simnode.variants()
    assert {"a100", "a100-mig", "tegra", "thor", "wsl"} <= set(done.stdout.split())


def test_help_says_what_run_can_not_do() -> None:
    done = proc.run([SIMNODE, "run", "--help"])
    assert done.rc == 0
    assert "Limits: root is needed." in done.stdout
    assert "--installed executes, as root, programs and libraries that the description brought" in done.stdout
    assert proc.run([SIMNODE]).rc == 2
