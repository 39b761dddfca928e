"""What the driver and its library tell: tables of /proc, a tree of it, and the answers of NVML."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz.registry import Target, register
from fuzz.trees import build
from fuzz.words import JSON_TOKENS, dump, one_line, short

from nvoci.discover import _answers, fingerprint
from nvoci.discover.devnode import Majors
from nvoci.discover.driver import loaded_module
from nvoci.discover.fingerprint import Fingerprint, Sources
from nvoci.discover.mig import CapabilityMinors
from nvoci.discover.model import Driver, Found
from nvoci.discover.node import Node
from nvoci.discover.search import Search
from nvoci.errors import HookError
from nvoci.hook import disable_device_node_modification as params
from nvoci.hook import migcaps
from nvoci.jsonfile import dumps, loads
from nvoci.prestart.makenodes import Rules

_DEVICES = b"""\
Character devices:
  1 mem
195 nvidia
195 nvidia-modeset
235 nvidia-caps
234 nvidia-caps-imex-channels
511 nvidia-uvm

Block devices:
  8 sd
235 nvidia-caps
"""
_MINORS = (
    b"config 1\nmonitor 2\ngpu0/gi0/access 3\ngpu0/gi0/ci0/access 4\ngpu0/gi14/ci7/access 129\ngpu1/gi0/access 138\n"
)
_DRIVERS = (b"nvidia", b"nvidia-caps", b"nvidia-uvm", b"nvidia-caps-imex-channels")
_ON, _OFF = b"ModifyDeviceFiles: 1", b"ModifyDeviceFiles: 0"
_PARAMS = (
    b"ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 1\nDeviceFileUID: 0\nDeviceFileGID: 44\nDeviceFileMode: 432\n"
)


# -- /proc/devices --------------------------------------------------------------------------------------------------


def _majors(data: bytes) -> list[int | None]:
    return [migcaps.major_of(data, driver) for driver in _DRIVERS]


def _check_majors(data: bytes, case: bytes, answer: list[int | None]) -> None:
    """The same as a regular expression finds among the character devices."""
    for driver, found in zip(_DRIVERS, answer):
        character = data.split(b"Block devices:")[0]
        lines = [line.split() for line in character.split(b"\n")]
        numbers = [words[0] for words in lines if words[1:] == [driver]]
        first = numbers[0] if numbers else b""
        assert found == (int(first) if re.fullmatch(rb"0|[1-9][0-9]{0,6}", first) else None)


register(
    Target(
        "proc-devices", parse=_majors, errors=(), check=_check_majors, max_size=1 << 12, executions=1200,
        seeds=lambda: [_DEVICES, b"", b"195 nvidia", b"0195 nvidia\n195 nvidia\n",
        b"\xd9\xa1 nvidia\n99999999 nvidia\n"],
        tokens=(b"nvidia", b"nvidia-caps", b"Block devices:", b"\n", b" ", b"\t", b"195", b"0", b"-1", b"\x0b",
                b"\x1c"),
    )
)  # fmt: skip


# -- mig-minors -----------------------------------------------------------------------------------------------------

_GPUS = (0, 1, 31)


def _entries(data: bytes) -> list[tuple[bytes, int | None, int]]:
    return list(migcaps.entries(data, _GPUS))


def _check_entries(data: bytes, case: bytes, answer: list[tuple[bytes, int | None, int]]) -> None:
    """By a regular expression; a path that is given is one below the capabilities, and has no `..`."""
    number = rb"(0|[1-9][0-9]{0,6})"
    wanted: list[tuple[bytes, int | None, int]] = []
    for line in data.split(b"\n"):
        found = re.fullmatch(rb"(?:gpu%b/(gi%b(?:/ci%b)?/access)|(config|monitor)) %b" % ((number,) * 4), line)
        if found and found[5]:
            wanted.append((migcaps.CAPABILITIES + b"/mig/" + found[5], None, int(found[6])))
        elif found and int(found[1]) in _GPUS:
            wanted.append(
                (migcaps.CAPABILITIES + b"/gpu%b/mig/%b" % (found[1], found[2]), int(found[1]), int(found[6]))
            )
    assert answer == wanted
    assert not any(b".." in path for path, _, _ in answer)


register(
    Target(
        "mig-minors", parse=_entries, errors=(HookError,), allowed=one_line, check=_check_entries, max_size=1 << 12,
        executions=3000, seeds=lambda: [_MINORS, b"", b"gpu7/x\ngpu7/gi0/access 9\n", b"future 5\n",
        b"gpu0/gi0/ci0/ci1/access 4\n"],
        tokens=(b"gpu0", b"gpu31", b"gpu2", b"/gi0", b"/ci0", b"/access", b" 3", b"\n", b"config", b"monitor",
                b"..", b"/",
                b" ", b"00", b"99999999", b"\nconfig 1\n", b"\ngpu1/gi3/access 7\n"),
    )
)  # fmt: skip


# -- params ---------------------------------------------------------------------------------------------------------


def _changed(data: bytes) -> tuple[bytes | None, Rules, int | None]:
    return params.changed(data), Rules(data), migcaps.minor_of(data)


def _check_changed(data: bytes, case: bytes, answer: tuple[bytes | None, Rules, int | None]) -> None:
    """Off is off, for the driver's readers and for ours; nothing else is changed; once is enough."""
    text, rules, minor = answer
    lines = [line.removesuffix(b"\r") for line in data.removesuffix(b"\n").split(b"\n")]
    assert (text is None) == (_OFF in lines or _ON not in lines)
    if text is not None:
        assert text.endswith(b"\n")
        assert text[:-1].split(b"\n") == [_OFF if line == _ON else line for line in lines]
        assert params.changed(text) is None
    assert 0 <= rules.mode <= 0o777
    assert min(rules.uid, rules.gid) >= 0
    assert minor is None or minor < 10**7
    ours = [line for line in data.split(b"\n") if line.partition(b":")[0].strip() == b"ModifyDeviceFiles"]
    if ours and b"DeviceFileModify" not in data:
        assert rules.modify == (re.fullmatch(rb"\s*0\s*", ours[-1].partition(b":")[2]) is None)


register(
    Target(
        "params", parse=_changed, errors=(), check=_check_changed, max_size=1 << 12, executions=2500,
        seeds=lambda: [_PARAMS, _OFF + b"\n", _ON, b"", _ON + b"\r\n" + _ON,
        b"DeviceFileMinor: 7\nDeviceFileMode: 256\n"],
        tokens=(_ON, _OFF, b"ModifyDeviceFiles", b"DeviceFileMode: ", b"DeviceFileMinor: ", b": ", b"1", b"0",
                b"\n", b"\r",
                b"4294967295", b"-1", b" ", b"DeviceFileUID: "),
    )
)  # fmt: skip


# -- a tree of procfs -----------------------------------------------------------------------------------------------

_VERSION = (
    b"NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01  Tue Apr  8 12:41:17 UTC 2025\nGCC version: 12\n"
)
_GPU = b"""\
Model: \t\t NVIDIA A100
GPU UUID: \t GPU-12345678-1234-1234-1234-123456780000
Bus Location: \t 0000:07:00.0
Device Minor: \t 0
"""
_TREE = (
    _VERSION + b"\n@file devices\n" + _DEVICES + b"\n@file driver/nvidia/gpus/0000:07:00.0/information\n" + _GPU
    + b"\n@file driver/nvidia/capabilities/gpu0/mig/gi0/ci0/access\nDeviceFileMinor: 4\n"
    + b"\n@file driver/nvidia/capabilities/gpu0/mig/gi0/access\nDeviceFileMinor: 3\n"
    + b"\n@file driver/nvidia-caps/mig-minors\n" + _MINORS + b"\n@file sys/kernel/random/boot_id\nabc\n"
)  # fmt: skip
Seen = tuple[Fingerprint, Fingerprint, str, list["int | None"]]


@contextlib.contextmanager
def _procfs(data: bytes) -> Iterator[str]:
    root = Path(tempfile.mkdtemp())
    try:
        (root / "proc").mkdir()
        (root / "sys").mkdir()
        build(root / "proc", data, b"driver/nvidia/version")
        yield str(root)
    finally:
        shutil.rmtree(root)


def _look(root: str) -> Seen:
    sources = Sources(root, proc=f"{root}/proc")
    search = Search()
    with Node.open(root, proc=f"{root}/proc", sys=f"{root}/sys", machine="x86_64", release="6.1") as node:
        minors = CapabilityMinors(node, search)
        found = [
            Majors(node, search).of("nvidia-caps"),
            minors.minor("gpu0/gi0/access", "gpu0/mig/gi0/access"),
            minors.minor("config", "mig/config"),
        ]
        version = loaded_module(node, search)
    assert all(problem.line().isprintable() for problem in search.problems)
    return fingerprint.take(sources), fingerprint.take(sources), version, found


def _check_look(data: bytes, root: str, answer: Seen) -> None:
    """Two looks at one tree find the same, also through JSON; a version is one."""
    one, two, version, numbers = answer
    assert fingerprint.difference(one, two) == ("" if one.boot_id else "there is no boot id")
    assert Fingerprint.from_json(loads(dumps(one.to_json(sparse=True)).encode())) == one
    assert not version or re.fullmatch(r"[0-9]+(\.[0-9]+){1,2}", version)
    assert all(number is None or 0 <= number < 10**9 for number in numbers)


register(
    Target(
        "procfs", parse=_look, prepare=_procfs, errors=(HookError, OSError), allowed=one_line, check=_check_look,
        max_size=1 << 12, executions=500, seconds=0.03, seeds=lambda: [_TREE, _VERSION, b"",
        b"1.2 3.4.5\n@fifo devices\n"],
        tokens=(b"\n@file ", b"\n@dir ", b"\n@link ", b"\n@fifo ",
                b"driver/nvidia/capabilities/gpu0/mig/gi0/access", b"devices",
                b"driver/nvidia/gpus/0/information", b"GPU UUID:", b"Device Minor: 3",
                b"driver/nvidia-caps/mig-minors", b"\n",
                b"DeviceFileMinor: 5", b"gpu0/gi0/access 3", b"/", b"..", b"\xff", b"\0", b" 550.54.15 "),
    )
)  # fmt: skip


# -- NVML -----------------------------------------------------------------------------------------------------------

_UUID = "12345678-1234-1234-1234-12345678000{}"


def _mig(index: int, **more: Any) -> dict[str, Any]:
    return {"index": index, "gpu_instance": 1 + index, "compute_instance": 0, "uuid": "MIG-" + _UUID.format(index),
            "attributes": [42, 1, 0, 0, 0, 0, 3, 3, 19968], "name": "NVIDIA A100 MIG 3g.20gb", **more}  # fmt: skip


def _answer(*more: dict[str, Any]) -> bytes:
    gpus = [
        {"index": n, "uuid": "GPU-" + _UUID.format(n), "pci": [0, 7 + n, 0, 1, f"00000000:0{7 + n}:00.0"], "minor": n,
         "memory": 40 << 30, "name": "NVIDIA A100", "migs": [_mig(0), _mig(1)] if n else [], "mig_mode": [n, n],
         "compute_capability": [8, 0], "max_mig_devices": 7, "brand": 14, "numa_node": -1, "addressing_mode": 1}
        for n in range(2)
    ]  # fmt: skip
    system = {"driver_version": "550.163.01", "cuda_version": 12040, "nvml_version": "12.550", "count": 2}
    lost = {"gpu": {"index": 2, "uuid": None}, "mig": -1, "call": "nvmlDeviceGetUUID", "error": "GPU is lost"}
    docs = [{"system": system}, *[{"gpu": gpu} for gpu in gpus], {"lost": lost}, *more, {"end": 0}]
    return b"\n".join(dump(doc) for doc in docs)


def _read(data: bytes) -> _answers.Answers:
    return _answers.read([line for line in data.split(b"\n") if line])


def _check_answers(data: bytes, case: bytes, answer: _answers.Answers) -> None:
    """What comes out is a record that can be stored; its names are of their form, printable, and each there once."""
    found = Found(driver=Driver(), gpus=tuple(answer.gpus))
    assert Found.from_json(loads(dumps(found.to_json(sparse=True)).encode())) == found
    uuids = [gpu.uuid for gpu in answer.gpus]
    assert len(set(uuids)) == len(uuids)
    for gpu in answer.gpus:
        assert re.fullmatch(r"(?:GPU-)?[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", gpu.uuid)
        assert not gpu.pci_bus_id or re.fullmatch(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.0", gpu.pci_bus_id)
        assert gpu.minor is None or gpu.minor < 1 << 20
        own = [mig.uuid for mig in gpu.mig_devices]
        assert len(set(own)) == len(own)
    texts = [gpu.name + gpu.nvml_bus_id for gpu in answer.gpus] + [m.profile for m in found.mig_devices()]
    texts += [each.call + each.error + each.uuid + each.pci for each in answer.lost]
    assert all(text.isprintable() and len(text) < 1000 for text in texts)
    assert all(isinstance(each.may_be("0:1"), bool) for each in answer.lost)


register(
    Target(
        "nvml", parse=_read, errors=(ValueError,), allowed=short, check=_check_answers, max_size=1 << 13,
        executions=2000,
        seeds=lambda: [_answer(), _answer({"failed": {"call": "nvmlInit_v2", "error": "x\u202e"}}),
        _answer({"gpu": {"index": 0}})],
        tokens=(*JSON_TOKENS, b'"uuid":', b'"pci":', b'"migs":', b'"index":', b'"gpu_instance":', b'"attributes":',
                b'"minor":',
                b'{"end":0}\n', b'"mig_mode":', b'"name":', b'"brand":', b'"memory":'),
    )
)  # fmt: skip
