"""`nvoci cdi check` on simulated nodes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib import proc, session, simnode
from unit.ctl.nodetools import NEEDS, Invoke, at, copied

pytestmark = NEEDS

V = "550.163.01"
LIB = "usr/lib/x86_64-linux-gnu"
UUID = "GPU-12345678-1234-1234-1234-1234567800{:02x}"


class Checked:
    """A node with a specification of it, and the command."""

    def __init__(self, nvoci: Invoke, node: simnode.Built, options: tuple[str | Path, ...], hook: Path) -> None:
        self.nvoci = nvoci
        self.root = node.root
        self.built = node
        self.options = options
        self.hook = hook
        self.dir = session.new_dir("cdi")
        self.spec = self.dir / "nvidia.yaml"
        self.generate()

    def generate(self, *more: str | Path) -> None:
        done = self.nvoci("cdi", "generate", *self.options, "--nvidia-cdi-hook-path", self.hook, "--output", self.spec,
                          *more)  # fmt: skip
        assert done.rc == 0, done.stderr

    def run(self, *words: str | Path) -> proc.Result:
        """Without the roots: the specification tells them."""
        return self.nvoci("cdi", "check", "--spec-dir", self.dir, *words)

    def lines(self, done: proc.Result) -> list[str]:
        """Of the specification, without its path and that of the node."""
        found = done.stdout.replace(str(self.root), "ROOT").splitlines()
        assert [line for line in found if not line.startswith(f"{self.spec}: ")] == []
        return [line[len(f"{self.spec}: ") :] for line in found]

    def edit(self, old: str, new: str) -> None:
        """In the text of the specification."""
        text = self.spec.read_text()
        assert old in text
        self.spec.write_text(text.replace(old, new))


def make(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch, bin_dir: Path, name: str) -> Checked:
    """On a node that may be changed, with a hook program that may be."""
    hooks = session.new_dir("hook")
    shutil.copy(bin_dir / "nvidia-cdi-hook", hooks)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nowhere")
    node = copied(name)
    return Checked(nvoci, node, at(node, monkeypatch), hooks / "nvidia-cdi-hook")


@pytest.fixture
def checked(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch, bin_dir: Path) -> Checked:
    """Two GPUs without graphics."""
    return make(nvoci, monkeypatch, bin_dir, "no-drm")


FORMS = {
    "merged": [],
    "the reference's": ["--hooks=reference"],
    "old": ["--max-cdi-version=0.5.0"],
    "JSON": ["--format=json"],
    "another kind": ["--vendor=a.org", "--class=x"],
    "one GPU by each name": ["--device-name-strategy=index,uuid,type-index"],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_new_one_is_fresh(checked: Checked, form: str) -> None:
    if FORMS[form]:
        checked.generate(*FORMS[form])
    done = checked.run()
    assert checked.lines(done) == ["fresh"]
    assert (done.rc, done.stderr) == (0, "")
    done = checked.run("--no-nvml")
    note = "not compared: which GPUs and MIG devices there are: NVML was not asked"
    assert (done.rc, checked.lines(done)) == (0, [note, "fresh"])


@pytest.mark.parametrize("name", ["a100-mig", "rhel-lib64", "gpu-lost", "tegra", "thor", "wsl"])
def test_a_new_one_of_other_nodes_is_fresh(
    nvoci: Invoke, monkeypatch: pytest.MonkeyPatch, bin_dir: Path, name: str
) -> None:
    made = make(nvoci, monkeypatch, bin_dir, name)
    done = made.run()
    assert (done.rc, made.lines(done)) == (0, ["fresh"])


def test_channels_that_come_and_go(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch, bin_dir: Path) -> None:
    made = make(nvoci, monkeypatch, bin_dir, "imex")
    assert made.lines(made.run()) == ["fresh"]
    made.generate("--mode", "imex")
    assert made.lines(made.run()) == ["fresh"]
    channels = made.root / "dev/nvidia-caps-imex-channels"
    (channels / "channel1").unlink()
    os.mknod(channels / "channel7", 0o020666, os.makedev(234, 7))
    gone, new, verdict = made.lines(made.run())
    assert gone.endswith("/channel1 of devices 1, all: not there (refresh it)")
    assert new.startswith("devices: device node ROOT/dev/nvidia-caps-imex-channels/channel7: on this node, and not in ")
    assert verdict.endswith(f"--output {made.spec} --mode imex --driver-root / --dev-root ROOT")


# -- what changes -----------------------------------------------------------------------------------------------------


def _replace(path: Path, old: str, new: str) -> None:
    path.chmod(0o644)
    path.write_text(path.read_text().replace(old, new))


def _renumbered(checked: Checked) -> None:
    _replace(checked.root / "proc/devices", "510 nvidia-uvm", "511 nvidia-uvm")
    for name, minor in (("nvidia-uvm", 0), ("nvidia-uvm-tools", 1)):
        (checked.root / "dev" / name).unlink()
        os.mknod(checked.root / "dev" / name, 0o020666, os.makedev(511, minor))
        (checked.root / "dev" / name).chmod(0o666)


def _other_driver(checked: Checked) -> None:
    """As an upgrade leaves it: other files, and the old module still loaded."""
    for path in (checked.root / LIB).glob(f"*.so.{V}"):
        path.rename(path.with_name(path.name.replace(V, "560.35.03")))


def _unload(checked: Checked) -> None:
    shutil.rmtree(checked.root / "proc/driver/nvidia")


def _without_gpu(checked: Checked) -> None:
    """One that the specification has, and procfs too."""
    checked.built.set_faults({"lost": 1})


def _hook_gone(checked: Checked) -> None:
    checked.hook.unlink()


def _hook_closed(checked: Checked) -> None:
    checked.hook.chmod(0o644)


def _foreign_hook(checked: Checked) -> None:
    checked.hook.write_text("#!/bin/sh\nexit 0\n")


REFRESH = "stale; refresh it: nvoci cdi refresh --output SPEC --driver-root ROOT --dev-root ROOT"
MAJORS, GONE = "nvoci.io/device-majors", "no GPU or MIG device of this node that answers"
HOOK = "containerEdits.hooks[0].{}: hook program HOOK{}"
CHANGES: dict[str, tuple[Callable[[Checked], None], list[str], str]] = {
    "a device number": (
        _renumbered,
        [f"annotations[{MAJORS}]: driver nvidia-uvm: major number 510 in the specification, 511 on this node ("],
        REFRESH,
    ),
    "a library": (
        lambda c: (c.root / LIB / f"libnvidia-ml.so.{V}").rename(c.root / "away"),
        [f"file ROOT/{LIB}/libnvidia-ml.so.{V}: not there (refresh it)"], REFRESH,
    ),
    "the driver": (
        _other_driver,
        [f"driver version: {V} in the specification, 560.35.03 on this node (refresh it)",
         f"driver version: kernel module {V}, libraries 560.35.03: the versions differ (reboot, ", " files, ROOT/usr/"],
        REFRESH,
    ),
    "the module": (
        _unload, ["driver version: the kernel module is not loaded (load it: modprobe nvidia)"], "broken",
    ),
    "a GPU": (
        _without_gpu, [f"devices[1].name: devices 1, {UUID.format(1)}: {GONE}; ask NVML about GPU 1: "], REFRESH,
    ),
    "a device node": (
        lambda c: (c.root / "dev/nvidia1").unlink(),
        [f"device node ROOT/dev/nvidia1 of devices 1, {UUID.format(1)}, all: not there (refresh it)"], REFRESH,
    ),
    "the hook program": (_hook_gone, [HOOK.format("path", ": ENOENT (no container with")], "broken"),
    "its mode": (_hook_closed, [HOOK.format("path", ": not an executable file (")], "broken"),
    "another hook program": (
        _foreign_hook,
        [HOOK.format("args", ", which does not know --features and is not ours: it would leave out `run`, with a ")],
        "broken",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_what_changes_is_told_with_what_to_do(checked: Checked, case: str) -> None:
    change, expected, verdict = CHANGES[case]
    change(checked)
    done = checked.run()
    assert (done.rc, done.stderr) == (1, "")
    lines = [line.replace(str(checked.spec), "SPEC").replace(str(checked.hook), "HOOK") for line in checked.lines(done)]
    assert lines[-1] == verdict
    found = [line for line in lines[:-1] if not line.startswith("not compared: ")]
    assert len(found) == len(expected), found
    assert [each for each, line in zip(expected, found) if each not in line] == []
    asked = checked.run("--no-nvml")
    assert asked.rc == (0 if case == "a GPU" else 1)  # a lost one is in procfs still


def test_the_command_that_is_told_makes_it_fresh(checked: Checked) -> None:
    (checked.root / "dev/nvidia1").unlink()
    command = checked.run().stdout.splitlines()[-1].partition("refresh it: nvoci ")[2]
    done = checked.nvoci(*command.split(), "--nvidia-cdi-hook-path", checked.hook)
    assert done.rc == 0, done.stderr
    assert checked.lines(checked.run()) == ["fresh"]


def test_a_gpu_that_was_not_asked_for_is_told_unless_the_annotation_tells(checked: Checked) -> None:
    checked.generate("--device-id", "0")
    text = checked.spec.read_text()
    if "nvoci.io/device-ids" not in text:
        assert f"devices: GPU 1 ({UUID.format(1)}): on this node, and not in the specification (refresh it)" in (
            checked.lines(checked.run())
        )
        checked.edit("annotations:\n", 'annotations:\n    nvoci.io/device-ids: "0"\n')
    assert checked.lines(checked.run()) == ["fresh"]


# -- which ------------------------------------------------------------------------------------------------------------


def _foreign(checked: Checked, name: str = "other.json", kind: str = "a.org/nic") -> Path:
    path = checked.dir / name
    document = {"cdiVersion": "0.5.0", "kind": kind, "devices": [{"name": "x", "containerEdits": {"env": ["A=1"]}}]}
    path.write_text(json.dumps(document))
    return path


def test_only_nvidias_are_checked_unless_named(checked: Checked) -> None:
    other = _foreign(checked)
    assert len(checked.run().stdout.splitlines()) == 1
    assert checked.run("a.org/nic").stdout == f"{other}: fresh\n"
    assert checked.run(other, "nvidia.com/gpu", other).stdout == f"{other}: fresh\n{checked.spec}: fresh\n"


def test_a_file_of_no_directory(checked: Checked) -> None:
    path = session.new_dir("elsewhere") / "spec"
    checked.spec.rename(path)
    assert checked.nvoci("cdi", "check", path).stdout == f"{path}: fresh\n"


WRONG = {
    "a kind that nothing has": (["b.org/x"], 1, "check CDI specs: none of kind b.org/x in "),
    "a file that is not there": (["./x"], 1, ""),
    "neither": (["banana"], 2, "`banana` is no file, and no VENDOR/CLASS: "),
    "an option that there is not": (["--banana"], 2, "No such option"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_meant(checked: Checked, case: str) -> None:
    words, rc, told = WRONG[case]
    done = checked.run(*words)
    assert (done.rc, told in done.stderr) == (rc, True)


def test_none_at_all_is_told(nvoci: Invoke, tmp_path: Path) -> None:
    done = nvoci("cdi", "check", "--spec-dir", tmp_path)
    expected = f"nvoci: check CDI specs: none for NVIDIA devices in {tmp_path} (make one: nvoci cdi refresh)\n"
    assert (done.rc, done.stdout, done.stderr) == (1, "", expected)


BROKEN: dict[str, tuple[Callable[[Checked], Any], str]] = {
    "no YAML": (lambda c: c.spec.write_text("{"), "not valid YAML"),
    "a rule": (lambda c: c.edit("path: /dev/nvidiactl", 'path: ""'), "deviceNodes"),
    "others can write it": (lambda c: c.spec.chmod(0o666), "mode 0666: others can write it"),
    "a FIFO": (lambda c: (c.spec.unlink(), os.mkfifo(c.spec)), "EINVAL"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_one_that_cannot_be_read_is_broken(checked: Checked, case: str) -> None:
    change, why = BROKEN[case]
    change(checked)
    for words in ([], [checked.spec]):
        done = checked.run(*words)
        assert done.rc == 1
        lines = checked.lines(done)
        assert lines[-1] == "broken"
        assert why in lines[0]


def test_other_files_with_errors_are_a_warning(checked: Checked) -> None:
    (checked.dir / "other.yaml").write_text("{")
    done = checked.run()
    assert (done.rc, checked.lines(done)) == (0, ["fresh"])
    assert done.stderr.startswith(f"nvoci: warning: CDI spec {checked.dir}/other.yaml: ")


def test_one_that_another_takes_the_place_of(checked: Checked) -> None:
    higher = session.new_dir("higher")
    shutil.copy(checked.spec, higher)
    done = checked.run("--spec-dir", higher)
    note = f"none of its devices is used: {higher}/nvidia.yaml has them with a higher priority"
    assert done.stdout.splitlines() == [
        f"{checked.spec}: {note}", f"{checked.spec}: fresh", f"{higher}/nvidia.yaml: fresh"
    ]  # fmt: skip
    assert done.rc == 0


def test_two_of_one_priority_are_broken(checked: Checked) -> None:
    shutil.copy(checked.spec, checked.dir / "again.yaml")
    done = checked.run()
    assert done.rc == 1
    assert done.stdout.count("conflicting device nvidia.com/gpu=0: also in") == 2
    assert [line.rpartition(": ")[2] for line in done.stdout.splitlines()].count("broken") == 2


# -- where, and how ---------------------------------------------------------------------------------------------------


def test_roots_that_are_given_count(checked: Checked) -> None:
    empty = session.new_dir("empty")
    done = checked.run("--driver-root", empty, "--dev-root", checked.root)
    expected = f"driver version: {V} in the specification, and there is no driver in {empty} ("
    assert (done.rc, expected in done.stdout) == (1, True)


def test_a_driver_root_that_is_gone_is_told(checked: Checked) -> None:
    """As when the driver's container has ended."""
    checked.root.rename(checked.root.with_name("gone"))
    try:
        done = checked.run()
    finally:
        checked.root.with_name("gone").rename(checked.root)
    lines = checked.lines(done)
    assert (done.rc, done.stderr) == (1, "")
    assert "and there is no driver in ROOT (" in lines[0]
    (note,) = [line for line in lines if line.startswith("not compared: which GPUs and MIG devices there are: ")]
    assert note.endswith(": ENOENT")
    assert lines[-1].startswith("stale; refresh it: ")


def test_a_node_is_looked_at_once(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    from nvoci.generate import now

    asked = []
    at_place = now.at
    monkeypatch.setattr(now, "at", lambda *words: asked.append(words) or at_place(*words))
    shutil.copy(checked.spec, checked.dir / "nvidia-again.yaml")
    checked.run()
    assert len(asked) == 1


def test_json_has_all_of_it(checked: Checked) -> None:
    (checked.root / "dev/nvidia1").unlink()
    checked.hook.unlink()
    (checked.dir / "nvidia-bad.yaml").write_text("{")
    done = checked.run("--json", "--no-nvml")
    document = json.loads(done.stdout)
    assert (done.rc, document["fresh"]) == (1, False)
    bad, good = sorted(document["specs"], key=lambda each: each["path"])
    assert (bad["verdict"], bad["kind"], len(bad["errors"]), bad["findings"]) == ("broken", "", 1, [])
    assert (good["path"], good["kind"], good["verdict"]) == (str(checked.spec), "nvidia.com/gpu", "stale")
    assert (good["driver_version"], good["device_majors"]) == (V, {"nvidia": 195, "nvidia-uvm": 510})
    assert good["refresh"].startswith(f"nvoci cdi refresh --output {checked.spec} ")
    assert good["not_compared"] == ["which GPUs and MIG devices there are: NVML was not asked"]
    assert [(each["why"], each["mended"]) for each in good["findings"]] == [("not there", True), ("ENOENT", False)]
    assert good["findings"][0]["where"] == "devices[1].containerEdits.deviceNodes[0]"


def test_untrusted_text_is_escaped(checked: Checked) -> None:
    checked.edit("hostPath: " + str(checked.root) + "/usr/bin/nvidia-smi", 'hostPath: "/a\\e[2J\\nfresh"')
    done = checked.run("--no-nvml")
    assert "\x1b" not in done.stdout
    assert "file /a\\x1b[2J\\nfresh: not there" in done.stdout
    assert "\x1b" not in checked.run("--json", "--no-nvml").stdout
