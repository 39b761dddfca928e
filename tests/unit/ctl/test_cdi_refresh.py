"""`nvoci cdi refresh`: a file that is written when it would change, and a driver that comes and goes."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from unit.ctl.ctktools import YAML, Generator, generator
from unit.ctl.refreshtools import OTHER, OURS, TOLD, Refresh, refresh
from unit.discover.looktools import needs_mknod
from unit.discover.nodetree import Node

from nvoci.ctl import cdi_generate, cdi_refresh
from nvoci.errors import HookError
from nvoci.generate import specs
from nvoci.generate.options import GenerateOptions

__all__ = ["generator", "refresh"]

pytestmark = needs_mknod

# -- the file ---------------------------------------------------------------------------------------------------------


def test_the_flags_are_those_of_generate_and_two_more() -> None:
    theirs = {param.name for param in cdi_generate.command.params}
    assert {param.name for param in cdi_refresh.command.params} == theirs | {"wait", "when_gone"}


def test_it_is_made_then_left_alone_then_made_anew(refresh: Refresh, generator: Generator) -> None:
    assert refresh.told(refresh.run()) == [f"FILE: made: {TOLD}"]
    assert refresh.path.stat().st_mode & 0o7777 == 0o644
    assert refresh.path.parent.stat().st_mode & 0o7777 == 0o755
    before = refresh.identity()
    assert refresh.told(refresh.run()) == [f"FILE: unchanged: {TOLD}"]
    assert refresh.identity() == before
    generator.specs = [specs.Named("", OTHER)]
    assert refresh.told(refresh.run()) == [f"FILE: made anew: {TOLD.replace('1 dev', '2 dev')}"]
    assert refresh.identity() != before
    assert [path.name for path in refresh.path.parent.iterdir()] == ["nvidia.yaml"]
    asked = generator.last
    assert (asked.hooks_form, asked.annotate, asked.vendor) == ("merged", True, "")


SAME = {
    "with a comment": lambda path: path.write_text("# mine\n" + path.read_text()),
    "in another form": lambda path: path.write_text(path.read_text().replace('"0"', "'0'")),
    "by a link": lambda path: (path.rename(path.with_name("x")), path.symlink_to("x")),
    "for the owner": lambda path: path.chmod(0o600),
}
DIFFERENT = {
    "half of one": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "nothing": lambda path: path.write_bytes(b""),
    "others can write it": lambda path: path.chmod(0o666),
    "of somebody else": lambda path: os.chown(path, 1234, 0),
    "a FIFO": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "very long": lambda path: os.truncate(path, 8 << 20),
}


@pytest.mark.parametrize("case", SAME)
def test_one_that_says_the_same_is_left_alone(refresh: Refresh, case: str) -> None:
    refresh.run()
    SAME[case](refresh.path)
    before = refresh.identity(), refresh.path.read_bytes()
    assert refresh.told(refresh.run()) == [f"FILE: unchanged: {TOLD}"]
    assert (refresh.identity(), refresh.path.read_bytes()) == before


@pytest.mark.parametrize("case", DIFFERENT)
def test_any_other_is_replaced(refresh: Refresh, case: str) -> None:
    refresh.run()
    text = refresh.path.read_text()
    DIFFERENT[case](refresh.path)
    assert refresh.told(refresh.run()) == [f"FILE: made anew: {TOLD}"]
    assert (refresh.path.read_text(), refresh.path.is_symlink()) == (text, False)
    status = refresh.path.stat()
    assert (status.st_mode & 0o7777, status.st_uid) == (0o644, os.geteuid())


OUTPUTS = {
    "a directory": ("cdi", [], "cdi/nvidia.yaml"),
    "a directory that is not there": ("new/dir/", [], "new/dir/nvidia.yaml"),
    "JSON in a directory": ("cdi", ["--format=json"], "cdi/nvidia.json"),
    "a name without suffix": ("cdi/x", [], "cdi/x.yaml"),
    "a name of JSON": ("cdi/x.json", [], "cdi/x.json"),
    "of another kind": ("cdi", ["--vendor", "a.org"], "cdi/a.org-gpu.yaml"),
    "of channels": ("cdi", ["--mode", "imex"], "cdi/nvidia.com-imex-channel.yaml"),
    "of all": ("cdi", ["--mode", "management"], "cdi/management.nvidia.com-gpu.yaml"),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_where_it_goes(refresh: Refresh, tmp_path: Path, case: str) -> None:
    output, words, expected = OUTPUTS[case]
    (tmp_path / "cdi").mkdir()
    done = refresh.run(*words, output=f"{tmp_path}/{output}")
    assert done.rc == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path}/{expected}: made: ")
    assert (tmp_path / expected).is_file()


def test_the_usual_place_is_the_directory_of_the_highest_priority(
    refresh: Refresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDI_SPEC_DIRS", f"/nowhere:{tmp_path}/run")
    done = refresh.nvoci("cdi", "refresh", "--driver-root", refresh.node.root)
    assert done.stdout == f"{tmp_path}/run/nvidia.yaml: made: {TOLD}\n"
    monkeypatch.setenv("NVIDIA_CTK_CDI_OUTPUT_FILE_PATH", f"{tmp_path}/x.yaml")
    done = refresh.nvoci("cdi", "refresh", "--driver-root", refresh.node.root)
    assert done.stdout == f"{tmp_path}/x.yaml: made: {TOLD}\n"


def test_a_directory_that_others_can_write_is_refused(refresh: Refresh, generator: Generator) -> None:
    refresh.path.parent.mkdir()
    refresh.path.parent.chmod(0o777)
    done = refresh.run()
    assert (done.rc, "others can write it" in done.stderr, generator.asked) == (1, True, [])


WRONG = {
    "a way to go": (["--when-gone", "x"], "invalid --when-gone: x (use remove or keep)"),
    "a format": (["--format", "x"], "invalid output format: x"),
    "a time": (["--wait", "-1"], "`-1` from --wait is no number of seconds"),
    "a mode": (["--mode", "x"], "invalid discovery mode: x"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_is_told_before_anything_is_done(refresh: Refresh, generator: Generator, case: str) -> None:
    words, told = WRONG[case]
    done = refresh.run(*words)
    assert (done.rc, generator.asked, refresh.path.exists()) == (1, [], False)
    assert done.stderr.startswith(f"nvoci: {told}")


def test_parts_by_memory_lie_beside_it_and_go_when_there_are_none(refresh: Refresh, generator: Generator) -> None:
    suffixes = ("", ".coherent", ".noncoherent")
    parts = [specs.Named(suffix, replace(OURS, kind=OURS.kind + suffix)) for suffix in suffixes]
    generator.specs = parts
    lines = refresh.told(refresh.run())
    assert [line.partition(":")[0].rpartition("/")[2] for line in lines] == [
        "FILE", "nvidia.coherent.yaml", "nvidia.noncoherent.yaml"
    ]  # fmt: skip
    generator.specs = parts[:1]
    foreign = refresh.path.with_name("nvidia.noncoherent.yaml")
    foreign.write_text(YAML)
    assert refresh.told(refresh.run()) == [
        f"FILE: unchanged: {TOLD}",
        f"{refresh.path.parent}/nvidia.coherent.yaml: removed: the node has no such GPU any more",
    ]
    assert foreign.exists()


# -- a driver that does not work --------------------------------------------------------------------------------------


def test_a_failure_leaves_what_is_there(refresh: Refresh, generator: Generator) -> None:
    refresh.run()
    before = refresh.identity()
    generator.refusal = HookError("ask NVML: hangs", "reboot")
    done = refresh.run()
    assert (done.rc, done.stdout, done.stderr) == (1, "", "nvoci: ask NVML: hangs (reboot)\n")
    assert refresh.identity() == before


def test_it_is_tried_again_with_growing_pauses(refresh: Refresh, generator: Generator) -> None:
    generator.refusal = HookError("ask NVML: hangs", "reboot")
    done = refresh.run("--wait", "20")
    assert done.rc == 1
    assert refresh.naps == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 2.25]
    assert len(generator.asked) == 9
    assert done.stderr.splitlines() == [
        "nvoci: waiting up to 20 s for the driver: ask NVML: hangs", "nvoci: ask NVML: hangs (reboot)"
    ]  # fmt: skip


def test_it_ends_when_it_works(refresh: Refresh, generator: Generator) -> None:
    generator.refusal = HookError("ask NVML: hangs", "reboot")
    refresh.after[3] = lambda: setattr(generator, "refusal", None)
    assert refresh.told(refresh.run("--wait", "20")) == [f"FILE: made: {TOLD}"]
    assert len(refresh.naps) == 3


def test_warnings_are_told(refresh: Refresh, generator: Generator) -> None:
    generator.warnings = ("GPU 3 is left out",)
    assert refresh.run().stderr == "nvoci: warning: GPU 3 is left out\n"


# -- a node that changes ---------------------------------------------------------------------------


class Changing:
    """A generator on whose first calls the node changes."""

    def __init__(self, node: Node, times: int) -> None:
        self.node = node
        self.times = times
        self.calls = 0

    def generate(self, options: GenerateOptions) -> specs.Generated:
        """The number of devices is that of the call."""
        self.calls += 1
        if self.calls <= self.times:
            self.node.write("devices", f"Character devices:\n{100 + self.calls} nvidia\n")
        spec = replace(OURS, devices=tuple([replace(OURS.devices[0], name=str(i)) for i in range(self.calls)]))
        return specs.Generated((specs.Named("", spec),), (), "nvml")


@pytest.mark.parametrize(("times", "calls"), [(0, 1), (1, 2), (2, 3), (9, 3)])
def test_a_node_that_changes_meanwhile_is_looked_at_again(
    refresh: Refresh, monkeypatch: pytest.MonkeyPatch, times: int, calls: int
) -> None:
    changing = Changing(refresh.node, times)
    monkeypatch.setattr(specs, "generate", changing.generate)
    assert refresh.told(refresh.run())[0].startswith(f"FILE: made: nvidia.com/gpu, {calls} devices")
    assert changing.calls == calls


def test_it_takes_no_time_where_nothing_is_to_be_waited_for(refresh: Refresh) -> None:
    began = time.perf_counter()
    refresh.run("--wait", "3600")
    assert (refresh.naps, time.perf_counter() - began < 10) == ([], True)
