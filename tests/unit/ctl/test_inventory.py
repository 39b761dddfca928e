"""`nvoci inventory` on simulated nodes, and what an inventory that holds leaves unloaded."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib import proc, session, simnode
from unit.ctl.nodetools import NEEDS, Invoke, at, copied

from nvoci.ctl import inventory
from nvoci.discover import inventory as kept
from nvoci.discover import look
from nvoci.discover.model import Found

pytestmark = NEEDS

UUID = "GPU-12345678-1234-1234-1234-1234567800{:02x}"
BOOT = "proc/sys/kernel/random/boot_id"


class Node:
    """A node with an inventory of its own, and the command."""

    def __init__(self, nvoci: Invoke, node: simnode.Built, options: tuple[str | Path, ...]) -> None:
        self.nvoci = nvoci
        self.built = node
        self.root = node.root
        self.options = options
        self.place = session.new_dir("inventory") / "nvoci"
        self.path = self.place / "inventory"

    def run(self, command: str, *more: str | Path) -> proc.Result:
        return self.nvoci("inventory", command, *self.options, "--path", self.path, *more)

    def made(self) -> None:
        result = self.run("refresh")
        assert (result.rc, result.stderr) == (0, "")

    def document(self) -> dict[str, Any]:
        result = self.run("show", "--json")
        assert (result.rc, result.stderr) == (0, "")
        out: dict[str, Any] = json.loads(result.stdout)
        return out


def boot(root: Path, text: str = "9d0f2c6e-0000-4000-8000-000000000001") -> None:
    (root / BOOT).parent.mkdir(parents=True, exist_ok=True)
    (root / BOOT).write_text(text + "\n")


def new(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch, name: str, faults: dict[str, Any] | None = None) -> Node:
    node = copied(name, faults)
    boot(node.root)
    return Node(nvoci, node, at(node, monkeypatch))


@pytest.fixture
def node(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> Node:
    return new(nvoci, monkeypatch, "no-drm")


def test_none_is_told_with_what_makes_one(node: Node) -> None:
    for command in ("show", "check"):
        result = node.run(command)
        assert (result.rc, result.stdout) == (1, "")
        hint = "the first container start makes it, or `nvoci inventory refresh`"
        assert result.stderr == f"nvoci: read inventory {node.path}: ENOENT ({hint})\n"


def test_refresh_makes_one_that_holds_and_is_what_discovery_finds(node: Node) -> None:
    result = node.run("refresh")
    assert (result.rc, result.stderr) == (0, "")
    first, *lines = result.stdout.splitlines()
    assert first == f"{node.path}: made; there was none"
    assert f"GPU {UUID.format(1)}: index 1, name NVIDIA A100-SXM4-40GB, pci_bus_id 0000:0f:00.0" in lines
    assert f"device node /dev/nvidia1 of {UUID.format(1)}: type c, major 195, minor 1" in lines
    assert "binary /usr/bin/nvidia-smi" in lines
    with look.look(look.Place(str(node.root))) as seen:
        assert kept.Inventory.found.fget(kept.load(str(node.path)).inventory) == seen.found  # type: ignore[attr-defined]
    result = node.run("check")
    assert (result.rc, result.stdout, result.stderr) == (0, f"{node.path}: holds\n", "")
    assert (node.path.stat().st_mode & 0o777, node.path.stat().st_uid) == (0o644, 0)


def test_show_tells_age_and_fingerprint_and_content(node: Node) -> None:
    node.made()
    os.utime(node.path, (time.time() - 7325, time.time() - 7325))
    shown = node.run("show")
    assert (shown.rc, shown.stderr) == (0, "")
    assert re.search(r"^made +\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ, 2 h 2 min ago$", shown.stdout, re.MULTILINE)
    assert re.search(r"^holds +yes$", shown.stdout, re.MULTILINE)
    assert re.search(r"^  boot +9d0f2c6e-0000-4000-8000-000000000001$", shown.stdout, re.MULTILINE)
    assert re.search(r"^  GPU 0000:0f:00.0 +Model: NVIDIA A100-SXM4-40GB \| GPU UUID: ", shown.stdout, re.MULTILINE)
    assert "\n  binary /usr/bin/nvidia-smi\n" in shown.stdout
    document = node.document()
    assert list(document) == ["path", "made", "age_seconds", "holds", "reason", "fingerprint", "found"]
    assert 7325 <= document["age_seconds"] < 7400
    assert (document["holds"], document["reason"]) == (True, "")
    assert document["fingerprint"]["module"].startswith("NVRM version: ")
    assert Found.from_json(document["found"]) == look.look(look.Place(str(node.root))).found


AGES = {0: "0 s", 59: "59 s", 60: "1 min", 3599: "59 min 59 s", 3600: "1 h", 90061: "1 d 1 h", -5: "0 s"}


@pytest.mark.parametrize("seconds", AGES)
def test_an_age_has_its_two_largest_units(seconds: int) -> None:
    assert inventory._age(seconds) == AGES[seconds]


# -- what changed -----------------------------------------------------------------------------------------------------


def _other_module(node: Node) -> None:
    path = node.root / "proc/driver/nvidia/version"
    path.chmod(0o644)
    path.write_text(path.read_text().replace("550.163.01", "550.90.07"))


def _number(node: Node) -> None:
    path = node.root / "proc/devices"
    path.chmod(0o644)
    path.write_text(path.read_text().replace("510 nvidia-uvm", "511 nvidia-uvm"))
    for name, minor in (("nvidia-uvm", 0), ("nvidia-uvm-tools", 1)):
        (node.root / "dev" / name).unlink()
        os.mknod(node.root / "dev" / name, 0o020666, os.makedev(511, minor))
        (node.root / "dev" / name).chmod(0o666)


def _no_device(node: Node) -> None:
    (node.root / "dev/nvidia1").unlink()


def _program(node: Node) -> None:
    (node.root / "usr/bin/nvidia-smi").unlink()


# change -> why the old one does not hold ("" for unseen), what is told of the change
CHANGES: dict[str, tuple[Callable[[Node], None], str, list[str]]] = {
    "nothing": (lambda node: None, "", []),
    "boot": (lambda node: boot(node.root, "another"), "the boot id is another than when it was made", []),
    "module": (_other_module, "the driver's module is another than when it was made",
               ["~ driver: module_version 550.163.01 -> 550.90.07"]),
    "device number": (_number, "a device number in /proc/devices is another than when it was made",
                      ["~ device node /dev/nvidia-uvm-tools: major 510 -> 511",
                       "~ device node /dev/nvidia-uvm: major 510 -> 511"]),
    "device node": (_no_device, "a watched path is another than when it was made",
                    [f"- device node /dev/nvidia1 of {UUID.format(1)}"]),
    "file": (_program, "", ["- binary /usr/bin/nvidia-smi"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_refresh_tells_what_changed_and_check_why_it_did_not_hold(node: Node, case: str) -> None:
    change, reason, expected = CHANGES[case]
    node.made()
    change(node)
    result = node.run("check")
    assert result.rc == (1 if reason else 0)
    assert result.stdout == f"{node.path}: {'does not hold: ' + reason if reason else 'holds'}\n"
    assert node.document()["reason"] == reason
    result = node.run("refresh")
    assert result.rc == 0, result.stderr
    first, *lines = result.stdout.splitlines()
    held = f"the one before did not hold: {reason}" if reason else "the one before held"
    assert first.startswith(f"{node.path}: made anew; {held}; ")
    assert [line for line in lines if not line.startswith("+ problem: ")] == expected
    assert first.endswith(
        "nothing changed" if not lines else "; 1 change" if len(lines) == 1 else f"; {len(lines)} changes"
    )
    assert node.run("check").rc == 0


@pytest.mark.parametrize("there", [False, True], ids=["none before", "one before"])
def test_a_lost_gpu_leaves_no_inventory_until_it_answers(node: Node, there: bool) -> None:
    if there:
        node.made()
    node.built.set_faults({"lost": 0})
    result = node.run("refresh")
    assert (result.rc, result.stdout) == (1, "")
    warning, error = result.stderr.splitlines()
    assert warning.startswith("nvoci: warning: ask NVML about GPU 0: ")
    assert error.startswith(f"nvoci: store inventory {node.path}: not stored: ask NVML about GPU 0: ")
    assert error.endswith("NVML_ERROR_GPU_IS_LOST (container starts ask NVML until it answers)")
    assert not node.path.exists()
    node.built.set_faults(None)
    node.made()
    assert [gpu["uuid"] for gpu in node.document()["found"]["gpus"]] == [UUID.format(0), UUID.format(1)]


def test_a_device_node_that_appears_is_noticed(node: Node) -> None:
    (node.root / "dev/nvidia1").unlink()
    assert node.run("refresh").rc == 0
    assert node.run("check").rc == 0
    os.mknod(node.root / "dev/nvidia1", 0o020666, os.makedev(195, 1))
    result = node.run("check")
    assert (result.rc, "a watched path is another" in result.stdout) == (1, True)


def test_a_gpu_whose_procfs_file_is_broken_keeps_nobody_from_the_others(node: Node) -> None:
    path = node.root / "proc/driver/nvidia/gpus/0000:0f:00.0/information"
    path.unlink()
    path.mkdir()
    node.made()
    assert dict(node.document()["fingerprint"]["gpus"])["0000:0f:00.0"] == "unreadable: EISDIR"
    assert node.run("check").rc == 0


# -- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faults", [{"hang": "init"}, {"crash": "init"}, {"not_loaded": True}], ids=str)
def test_a_driver_that_does_not_answer_leaves_the_inventory_as_it_is(node: Node, faults: dict[str, Any]) -> None:
    node.made()
    before = node.path.read_bytes()
    node.built.set_faults(faults)
    result = node.run("refresh", "--timeout", "0.5")
    assert (result.rc, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith("nvoci: ask NVML ")
    assert node.path.read_bytes() == before


def _foreign(path: Path) -> None:
    os.chown(path, 1000, 1000)


def _other_format(path: Path) -> None:
    path.write_text(path.read_text().replace('"nvoci-inventory": 1', '"nvoci-inventory": 2'))


# what is done to the file -> why it is of no use
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:300]), "malformed: "),
    "foreign": (_foreign, "owned by uid 1000"),
    "writable": (lambda path: path.chmod(0o666), "mode 0666: others can write it"),
    "another format": (_other_format, "malformed: its format is not 1"),
    "content": (lambda path: path.write_text(re.sub('"index": 1', '"index": -1', path.read_text())), "malformed: "),
    "directory": (lambda path: (path.unlink(), path.mkdir()), "not a regular file"),
    "link": (lambda path: (path.rename(f"{path}.real"), path.symlink_to(f"{path}.real")), "not a regular file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_told_and_replaced(node: Node, case: str) -> None:
    spoil, reason = BAD[case]
    node.made()
    spoil(node.path)
    for command in ("check", "show"):
        result = node.run(command)
        assert (result.rc, result.stdout, result.stderr.count("\n")) == (1, "", 1)
        assert result.stderr.startswith(f"nvoci: read inventory {node.path}: {reason}")
        assert "replaced when" in result.stderr
    result = node.run("refresh")
    if case == "directory":
        assert (result.rc, result.stderr) == (
            1,
            f"nvoci: store inventory {node.path}: EISDIR (a directory is in the way, and is never removed)\n",
        )
        return
    assert (result.rc, result.stderr) == (0, "")
    assert f": made; the one before was of no use: {reason}" in result.stdout
    assert node.run("check").rc == 0


def test_another_driver_root_is_named(node: Node, nvoci: Invoke) -> None:
    node.made()
    result = nvoci("inventory", "check", "--path", node.path)
    assert result.rc == 1
    words = f"does not hold: it was made for the driver root {node.root}, not /"
    assert result.stdout == f"{node.path}: {words}\n"


def test_a_directory_that_others_can_write_to_is_refused(node: Node) -> None:
    node.place.mkdir()
    node.place.chmod(0o777)
    result = node.run("refresh")
    assert (result.rc, result.stdout) == (1, "")
    assert result.stderr == (
        f"nvoci: store inventory in {node.place}: it is not root's alone (check who made it)\n"
    )


def test_a_node_that_never_rests_is_told(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    real, number = look.look, iter(range(100))

    def restless(*args: Any) -> look.Look:
        boot(node.root, f"{next(number)}")
        return real(*args)

    monkeypatch.setattr(look, "look", restless)
    result = node.run("refresh")
    assert (result.rc, node.path.exists()) == (1, False)
    words = "the boot id is another than when it was made (try again)"
    assert result.stderr == f"nvoci: look at the node: it kept changing: {words}\n"
    monkeypatch.setattr(look, "look", real)
    node.made()


def test_a_relative_path_is_where_one_stands(node: Node, nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    place = session.new_dir("here")
    monkeypatch.chdir(place)
    assert nvoci("inventory", "refresh", *node.options, "--path", "mine").rc == 0
    assert sorted(p.name for p in place.iterdir()) == ["mine"]


def test_mig_devices_are_stored_and_compared(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    node = new(nvoci, monkeypatch, "a100-mig")
    node.made()
    migs = [mig for gpu in node.document()["found"]["gpus"] for mig in gpu["mig_devices"]]
    assert len(migs) == 13
    path = node.root / "proc/driver/nvidia/capabilities/gpu0/mig/gi13/ci0/access"
    path.unlink()
    path.parent.rmdir()
    assert "the tree of MIG capabilities is another" in node.run("check").stdout


# -- what is loaded ---------------------------------------------------------------------------------------------------

USE = """
import sys
sys.path[:0] = [{hooks!r}, {vendor!r}]
from nvoci.discover import inventory
from nvoci.discover.fingerprint import Sources
def build():
    raise SystemExit("the inventory does not hold")
sources = Sources({root!r}, proc={proc!r}, watch={watch!r}, configuration={configuration!r})
names = inventory.use(sources, build, lambda found: [gpu.name for gpu in found.gpus], path={path!r})
print(len(names), *sorted(sys.modules))
"""


def test_nothing_that_asks_is_loaded_when_the_inventory_holds(node: Node) -> None:
    import pynvml

    node.made()
    sources = look.Place(str(node.root)).sources()
    code = USE.format(hooks=str(session.HOOKS), vendor=str(Path(pynvml.__file__).parent), root=str(node.root),
                      proc=f"{node.root}/proc", watch=sources.watch, configuration=sources.configuration,
                      path=str(node.path))  # fmt: skip
    done = proc.run([session.PYTHON, "-ISB", "-c", code])
    count, *modules = done.stdout.split() or [done.stderr]
    assert count == "2"
    assert "nvoci.discover.inventory" in modules
    never = {"pynvml", "elftools", "yaml", "json", "ctypes", "subprocess", "click", "re", "typing", "dataclasses"}
    assert never & set(modules) == set()
    ours = {name for name in modules if name.startswith("nvoci.discover.")}
    assert ours == {f"nvoci.discover.{name}" for name in ("fingerprint", "inventory", "model", "record")}
