"""The inventory: believed only if it is root's and the node is the same, proved at use, looked anew once."""

from __future__ import annotations

import fcntl
import json
import os
import posix
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.discover.nodetree import UUID, Node, found

from nvoci import log
from nvoci.discover import inventory
from nvoci.discover.inventory import Inventory, Stale
from nvoci.discover.model import DeviceNode, Found, Problem
from nvoci.errors import HookError

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="makes files of other users and devices")


class Discovery:
    """Stands in for the real one, and counts."""

    def __init__(self, result: Found | None = None) -> None:
        self.calls = 0
        self.result = result or found(2, 3)

    def __call__(self) -> Found:
        self.calls += 1
        return self.result


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path, gpus=2, instances=1)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "run/nvoci/inventory")


@pytest.fixture
def stored(tmp_path: Path, node: Node, path: str) -> Path:
    """An inventory that holds."""
    (tmp_path / "run").mkdir()
    inventory.refresh(node.sources(), Discovery(), path)
    return Path(path)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged."""
    seen: list[str] = []
    monkeypatch.setattr(log, "_sinks", [(log.DEBUG, seen.append)])
    return seen


def test_what_was_stored_is_read_and_holds(node: Node, stored: Path) -> None:
    loaded = inventory.current(node.sources(), str(stored))
    assert loaded.reason == ""
    assert loaded.inventory is not None
    assert loaded.inventory.found == found(2, 3)
    st = stored.stat()
    assert (st.st_mode & 0o7777, stored.parent.stat().st_mode & 0o7777) == (0o644, 0o755)
    assert sorted(os.listdir(stored.parent)) == ["inventory", "inventory.lock"]


def test_absent_is_a_reason_and_not_bad(path: str) -> None:
    loaded = inventory.load(path)
    assert (loaded.inventory, loaded.reason, loaded.bad) == (None, "ENOENT", False)


def _edit(key: str, value: Any) -> Callable[[Path], object]:
    def edit(path: Path) -> None:
        doc = json.loads(path.read_bytes())
        doc[key] = value
        path.write_text(json.dumps(doc))

    return edit


def _other(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(path: Path) -> None:
        path.rename(path.with_name("old"))
        make(path)

    return replace


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "malformed"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-200]), "malformed"),
    "truncated at the front": (lambda p: p.write_bytes(p.read_bytes()[50:]), "malformed"),
    "not JSON": (lambda p: p.write_bytes(b"\xff\x00"), "malformed"),
    "not an object": (lambda p: p.write_bytes(b"[]"), "malformed: not an inventory"),
    "another document": (lambda p: p.write_bytes(b'{"found": {}}'), "malformed: its format is not 1"),
    "another format": (_edit("nvoci-inventory", 2), "malformed: its format is not 1"),
    "no fingerprint": (_edit("fingerprint", None), "malformed: Fingerprint: not an object"),
    "half a fingerprint": (_edit("fingerprint", {"boot_id": "x"}), "malformed: Fingerprint: no field"),
    "found nothing": (_edit("found", None), "malformed: not an inventory"),
    "group can write": (lambda p: p.chmod(0o664), "mode 0664: others can write it"),
    "others can write": (lambda p: p.chmod(0o646), "mode 0646: others can write it"),
    "link": (_other(lambda p: p.symlink_to("old")), "not a regular file"),
    "dangling link": (_other(lambda p: p.symlink_to("nowhere")), "not a regular file"),
    "FIFO": (_other(os.mkfifo), "not a regular file"),
    "directory": (_other(lambda p: p.mkdir()), "not a regular file"),
    "1 GiB": (lambda p: os.truncate(p, 1 << 30), "larger than 16777216 bytes"),
    "endless key": (lambda p: p.write_bytes(b'{"' + b"x" * 100000 + b'": 1, "found": {}}'), "malformed"),
    "deep": (lambda p: p.write_bytes(b"[" * 100000), "malformed"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_and_replaced(case: str, node: Node, stored: Path, lines: list[str]) -> None:
    spoil, reason = BAD_FILES[case]
    spoil(stored)
    start = time.monotonic()
    loaded = inventory.load(str(stored))
    assert time.monotonic() - start < 1
    assert loaded.inventory is None
    assert loaded.bad
    assert loaded.reason.startswith(reason)
    assert len(loaded.reason) < 300
    if case == "directory":
        stored.rmdir()
    discovery = Discovery()
    assert inventory.use(node.sources(), discovery, lambda f: f.gpus[0].uuid, path=str(stored)) == UUID.format(0)
    assert discovery.calls == 1
    told = [line for line in lines if "inventory not used" in line]
    assert len(told) == 1
    assert "\n" not in told[0]
    assert inventory.current(node.sources(), str(stored)).inventory is not None


@ROOT
def test_a_file_of_somebody_else_is_refused(node: Node, stored: Path) -> None:
    os.chown(stored, 1234, 1234)
    loaded = inventory.load(str(stored))
    assert (loaded.inventory, loaded.reason, loaded.bad) == (None, "owned by uid 1234", True)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775], ids=oct)
def test_a_directory_that_others_can_write_to_is_not_trusted(mode: int, node: Node, stored: Path) -> None:
    stored.parent.chmod(mode)
    loaded = inventory.current(node.sources(), str(stored))
    assert (loaded.inventory, loaded.bad) == (None, True)
    assert loaded.reason == f"in a directory of uid {os.geteuid()}, mode {mode:04o}"
    stored.parent.chmod(0o755)
    assert inventory.current(node.sources(), str(stored)).inventory is not None


@ROOT
def test_a_directory_of_somebody_else_is_not_trusted(stored: Path) -> None:
    os.chown(stored.parent, 1234, 1234)
    assert inventory.load(str(stored)).reason == "in a directory of uid 1234, mode 0755"


@ROOT
def test_a_device_in_its_place_is_not_opened(stored: Path) -> None:
    stored.unlink()
    os.mknod(stored, 0o600 | 0o020000, os.makedev(10, 223))  # uinput, which nobody has here: opening it is ENODEV
    assert inventory.load(str(stored)).reason == "not a regular file"


@ROOT
def test_a_directory_of_somebody_else_is_not_written_to(node: Node, stored: Path, lines: list[str]) -> None:
    os.chown(stored.parent, 1234, 1234)
    stored.write_bytes(b"")
    discovery = Discovery()
    inventory.use(node.sources(), discovery, lambda f: f, path=str(stored))
    assert discovery.calls == 1
    assert stored.read_bytes() == b""
    assert any("it is not root's alone" in line for line in lines)


def test_found_that_is_malformed_is_a_reason_to_look_anew(node: Node, stored: Path, lines: list[str]) -> None:
    _edit("found", {"driver": {}, "gpus": [{"index": "x"}]})(stored)
    discovery = Discovery()
    assert inventory.use(node.sources(), discovery, lambda f: len(f.gpus), path=str(stored)) == 2
    assert discovery.calls == 1
    assert "malformed: Found.gpus: Gpu.index" in lines[0]
    assert "level=warning" in lines[0]


def test_it_is_used_as_long_as_the_node_is_the_same(node: Node, stored: Path) -> None:
    discovery = Discovery()
    for _ in range(3):
        inventory.use(node.sources(), discovery, lambda f: f, path=str(stored))
    assert discovery.calls == 0
    node.write("sys/kernel/random/boot_id", "another\n")
    inventory.use(node.sources(), discovery, lambda f: f, path=str(stored))
    inventory.use(node.sources(), discovery, lambda f: f, path=str(stored))
    assert discovery.calls == 1


NAMES = {
    "0": False, "all": False, UUID.format(0): False, "0000:07:00.0": False, "00000000:07:00.0": False, "0:7:0": False,
    "0:1": True, "0:1xyz": True, "MIG-00000000-aaaa-5bbb-8ccc-000000010000": True, "mig-gpu-x/1/0": True,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_mig_device_by_name_always_asks(name: str, node: Node, stored: Path) -> None:
    assert inventory.needs_nvml(["0", name]) is NAMES[name]
    discovery = Discovery()
    inventory.use(node.sources(), discovery, lambda f: f, names=["0", name], path=str(stored))
    assert discovery.calls == NAMES[name]


# -- proved at use ----------------------------------------------------------------------------------------------------


def _null(minor: int) -> DeviceNode:
    return DeviceNode(host_path="/dev/null", container_path="/dev/null", kind="gpu", type="c", major=1, minor=minor)


def test_a_node_is_proved_when_opened(tmp_path: Path) -> None:
    with inventory.open_node(_null(3), "/") as fd:
        assert fd.stat().st_rdev == os.makedev(1, 3)
    with pytest.raises(Stale, match=r"open /dev/null: not the device c 1:4 any more"):
        inventory.open_node(_null(4), "/")
    with pytest.raises(Stale, match="not the device b 1:3"):
        inventory.open_node(_null(3).replace(type="b"), "/")
    (tmp_path / "file").touch()
    with pytest.raises(Stale, match="not the device c 1:3"):
        inventory.open_node(_null(3).replace(host_path=str(tmp_path / "file")), "/")
    with pytest.raises(Stale, match=r"open .*/none: ENOENT"):
        inventory.open_node(_null(3).replace(host_path=str(tmp_path / "none")), "/")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Stale):
        inventory.open_node(_null(4), "/")
    assert len(os.listdir("/proc/self/fd")) == before


def test_proved_wrong_it_is_made_anew_once(node: Node, stored: Path) -> None:
    wrong, right = found(2, 0).replace(device_nodes=(_null(4),)), found(2, 0).replace(device_nodes=(_null(3),))
    inventory.store(Inventory(inventory.fingerprint.take(node.sources()), wrong), str(stored))
    discovery = Discovery(right)

    def action(seen: Found) -> int:
        with inventory.open_node(seen.device_nodes[0], "/") as fd:
            return posix.minor(fd.stat().st_rdev)

    assert inventory.use(node.sources(), discovery, action, path=str(stored)) == 3
    assert discovery.calls == 1
    assert inventory.use(node.sources(), discovery, action, path=str(stored)) == 3
    assert discovery.calls == 1


def test_proved_wrong_twice_is_an_error(node: Node, stored: Path) -> None:
    discovery = Discovery(found(2, 0).replace(device_nodes=(_null(4),)))
    with pytest.raises(HookError) as caught:
        inventory.use(
            node.sources(), discovery, lambda f: inventory.open_node(f.device_nodes[0], "/"), path=str(stored)
        )
    assert discovery.calls == 1
    expected = "open /dev/nvidia0: ENOENT" if not os.path.exists("/dev/nvidia0") else "open /dev/null"
    assert caught.value.line().startswith(("open /dev/null: not the device", expected))
    assert "try again" in caught.value.line()


# -- making it --------------------------------------------------------------------------------------------------------


def test_a_node_that_changes_meanwhile_is_looked_at_again(node: Node, stored: Path) -> None:
    discovery = Discovery()

    def build() -> Found:
        if discovery.calls == 0:
            node.instance(0, 5)
        return discovery()

    made = inventory.refresh(node.sources(), build, str(stored))
    assert discovery.calls == 2
    assert "gpu0/gi5" in made.fingerprint.capabilities
    assert inventory.current(node.sources(), str(stored)).inventory is not None


def test_a_node_that_never_rests_is_used_but_not_stored(node: Node, stored: Path, lines: list[str]) -> None:
    discovery = Discovery()
    before = stored.read_bytes()

    def build() -> Found:
        node.instance(0, 10 + discovery.calls)
        return discovery()

    assert inventory.refresh(node.sources(), build, str(stored)).found == discovery.result
    assert discovery.calls == 3
    assert stored.read_bytes() == before
    assert "it kept changing: the tree of MIG capabilities" in lines[0]


LOST = Problem(stage="ask NVML about", subject="GPU 1", error="NVML_ERROR_GPU_IS_LOST", hint="reset it")


def test_a_look_without_an_answer_for_a_gpu_is_used_but_not_stored(
    node: Node, tmp_path: Path, path: str, lines: list[str]
) -> None:
    (tmp_path / "run").mkdir()
    lost = Discovery(found(1, 3).replace(problems=(LOST,)))
    for calls in (1, 2):
        assert inventory.use(node.sources(), lost, lambda f: len(f.gpus), path=path) == 1
        assert lost.calls == calls
        assert not os.path.exists(path)
    assert any("ask NVML about GPU 1: NVML_ERROR_GPU_IS_LOST" in line for line in lines if "not stored" in line)
    well = Discovery()
    for _ in range(2):
        assert inventory.use(node.sources(), well, lambda f: len(f.gpus), path=path) == 2
    assert well.calls == 1


def test_nor_does_the_one_before_stay(node: Node, stored: Path) -> None:
    lost = Discovery(found(1, 3).replace(problems=(LOST,)))
    inventory.use(node.sources(), lost, lambda f: f, names=["MIG-x"], path=str(stored))
    assert (lost.calls, stored.exists()) == (1, False)


def test_what_is_no_inventory_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("{}")
    inventory.forget(str(tmp_path / "precious"))
    inventory.forget(str(tmp_path / "none"))
    assert (tmp_path / "precious").read_text() == "{}"


def test_where_it_cannot_be_stored_the_start_goes_on(node: Node, tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "file").touch()
    discovery = Discovery()
    path = str(tmp_path / "file/inventory")
    assert inventory.use(node.sources(), discovery, lambda f: len(f.gpus), path=path) == 2
    assert discovery.calls == 1
    assert any("store inventory" in line and "ENOTDIR" in line for line in lines)


def test_what_discovery_raises_is_passed_on_and_nothing_stored(node: Node, tmp_path: Path, path: str) -> None:
    (tmp_path / "run").mkdir()

    def build() -> Found:
        raise HookError("ask NVML: no")

    with pytest.raises(HookError, match="ask NVML: no"):
        inventory.use(node.sources(), build, lambda f: f, path=path)
    assert not os.path.exists(path)


def test_many_at_once_look_once(node: Node, tmp_path: Path, path: str) -> None:
    (tmp_path / "run").mkdir()
    discovery = Discovery()
    seen: list[int] = []
    gate = threading.Barrier(6)

    def build() -> Found:
        time.sleep(0.2)
        return discovery()

    def start() -> None:
        gate.wait()
        seen.append(inventory.use(node.sources(), build, lambda f: len(f.gpus), path=path))

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [2] * 6
    assert discovery.calls == 1


def test_a_lock_that_is_never_given_back_costs_a_while(
    node: Node, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "LOCK_SECONDS", 0.1)
    stored.unlink()
    holder = os.open(f"{stored}.lock", os.O_RDWR)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        discovery = Discovery()
        inventory.use(node.sources(), discovery, lambda f: f, path=str(stored))
        assert discovery.calls == 1
    finally:
        os.close(holder)
