"""Descriptions: what is read, and what a malformed one is told."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib import simnode
from lib.simnode import description
from lib.simnode.answers import BUS_ID

DIR = {"path": "/usr", "type": "dir", "mode": "755"}
NOTE = "04000000040000000100000047430000deadbeef"
ELF = {"class": 64, "machine": "EM_X86_64", "soname": "libnvidia-ml.so.1", "needed": ["libc.so.6"]}
LIB = {"path": "/usr/libnvidia-ml.so.1", "type": "file", "mode": "755", "elf": ELF}
MIG = {
    "index": 0,
    "uuid": "MIG-1",
    "gpu_instance_id": 1,
    "compute_instance_id": 0,
    "name": {"error": 2},
    "gpu_instance_profile": {"enum": 0, "id": 19, "slices": 1, "memory_mib": 4864},
    "compute_instance_profile": {"enum": 0, "id": 0, "slices": 1},
    "attributes": {"gpu_instance_slices": 1, "compute_instance_slices": 1, "memory_mib": 4864},
}
GPU = {
    "index": 0,
    "uuid": "GPU-1",
    "minor": 0,
    "name": "A",
    "brand": 14,
    "compute_capability": [8, 0],
    "pci_bus_id": "00000000:07:00.0",
    "pci_domain": 0,
    "pci_bus": 7,
    "pci_device": 0,
    "pci_device_id": 1,
    "memory": 1 << 30,
    "mig_mode": [1, 1],
    "max_mig_devices": 7,
    "mig_devices": [MIG],
}
NVML = {"driver_version": "550.1", "cuda_driver_version": 12040, "gpus": [GPU]}
WHOLE: dict[str, Any] = {"files": [DIR, LIB], "nvml": NVML}


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    document = copy.deepcopy(WHOLE)
    change(document)
    return document


@pytest.mark.parametrize("name", simnode.variants())
def test_a_known_description_is_read_and_written_again(name: str) -> None:
    document = simnode.sample(name)
    node = simnode.load(document)
    assert simnode.load(node.document()) == node
    by_path = {entry["path"]: entry for entry in document["files"]}
    assert {entry["path"]: entry for entry in node.document()["files"]} == by_path
    if "nvml" in document:
        assert node.document()["nvml"] == document["nvml"]


def test_samples_are_copies_of_nobody() -> None:
    simnode.sample("a100")["files"].clear()
    assert simnode.sample("a100")["files"]
    with pytest.raises(KeyError):
        simnode.sample("h100")


def test_a_file_is_read_as_a_dictionary_is(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(WHOLE))
    assert simnode.load(tmp_path / "x.json") == simnode.load(WHOLE)


def test_a_library_that_nothing_is_said_of_has_no_driver() -> None:
    assert simnode.load({"files": [DIR, LIB]}).nvml == {"error": 9}
    assert simnode.load({"files": [DIR]}).nvml is None


def test_a_note_keeps_its_bytes() -> None:
    elf = {**ELF, "notes": [{"section": ".note.x", "hex": NOTE}]}
    node = simnode.load({"files": [DIR, {**LIB, "elf": elf}]})
    note = node.entry(LIB["path"]).elf.notes[0]
    assert note.parts == (".note.x", "GC\0", 1, bytes.fromhex("deadbeef"))
    assert note.raw.hex() == NOTE


def test_an_error_may_stand_for_any_answer() -> None:
    gpu = {key: {"error": 3} for key in GPU if key not in {"index", "mig_devices"} and not key.startswith("pci_")}
    gpu |= {"index": 0, "mig_devices": [], "pci_bus_id": {"error": 15}}
    assert simnode.load({**WHOLE, "nvml": {**NVML, "gpus": [gpu]}})
    assert simnode.load({**WHOLE, "nvml": {**NVML, "gpus": [{"index": 0, "error": 15}]}})
    assert simnode.load({**WHOLE, "nvml": {"error": 18}})


MALFORMED: dict[str, tuple[Any, str]] = {
    "not an object": ([], "description: an array, not an object"),
    "no files": ({}, "description: `files` is missing"),
    "unknown member": ({"files": [], "x": 1}, "description: unknown key `x`"),
    "files an object": ({"files": {}}, "description: files: an object, not an array"),
    "no type": ({"files": [{"path": "/x"}]}, "description: files[0]: `type` is missing"),
    "entry a string": ({"files": ["/x"]}, "description: files[0]: a string, not an object"),
    "unknown type": (
        {"files": [{"path": "/x", "type": "door"}]},
        "description: files[0].type: `door` is none of dir, symlink, file, char, block, socket, fifo",
    ),
    "type a list": (
        {"files": [{"path": "/x", "type": []}]},
        "description: files[0].type: `[]` is none of dir, symlink, file, char, block, socket, fifo",
    ),
    "no mode": ({"files": [{"path": "/x", "type": "dir"}]}, "description: files[0]: `mode` is missing"),
    "mode a number": ({"files": [{**DIR, "mode": 755}]}, "description: files[0].mode: a number, not a string"),
    "mode not octal": (
        {"files": [{**DIR, "mode": "789"}]},
        "description: files[0].mode: `789` does not match [0-7]{3,4}",
    ),
    "a key of another type": ({"files": [{**DIR, "target": "x"}]}, "description: files[0]: unknown key `target`"),
    "path not absolute": (
        {"files": [{**DIR, "path": "usr"}]},
        "description: files[0].path: `usr` is no absolute path in its shortest form",
    ),
    "path with dots": (
        {"files": [{**DIR, "path": "/../x"}]},
        "description: files[0].path: `/../x` is no absolute path in its shortest form",
    ),
    "path with two slashes": (
        {"files": [{**DIR, "path": "/a//b"}]},
        "description: files[0].path: `/a//b` is no absolute path in its shortest form",
    ),
    "the root": (
        {"files": [{**DIR, "path": "/"}]},
        "description: files[0].path: `/` is no absolute path in its shortest form",
    ),
    "path with NUL": ({"files": [{**DIR, "path": "/a\0"}]}, "description: files[0].path: holds a NUL character"),
    "long name": (
        {"files": [{**DIR, "path": "/" + "x" * 256}]},
        "description: files[0].path: a name in it is longer than 255 bytes",
    ),
    "twice": ({"files": [DIR, DIR]}, "description: files[1]: `/usr` stands in files[0] already"),
    "no directory": (
        {"files": [{**DIR, "path": "/a/b"}]},
        "description: files[0]: the directory of `/a/b` is not in the list",
    ),
    "below a link": (
        {"files": [{"path": "/a", "type": "symlink", "target": "/etc"}, {**DIR, "path": "/a/b"}]},
        "description: files[1]: `/a` is a symlink, and `/a/b` lies below it",
    ),
    "empty target": (
        {"files": [{"path": "/a", "type": "symlink", "target": ""}]},
        "description: files[0].target: `` does not match (?s).+",
    ),
    "big minor": (
        {"files": [{"path": "/a", "type": "char", "mode": "666", "major": 195, "minor": 1 << 20}]},
        "description: files[0].minor: 1048576 is outside of 0..1048575",
    ),
    "boolean major": (
        {"files": [{"path": "/a", "type": "char", "mode": "666", "major": True, "minor": 0}]},
        "description: files[0].major: a boolean, not an integer",
    ),
    "no content": (
        {"files": [{"path": "/a", "type": "file", "mode": "644"}]},
        "description: files[0]: exactly one of `text`, `hex`, `elf` is needed",
    ),
    "two contents": (
        {"files": [{"path": "/a", "type": "file", "mode": "644", "text": "", "hex": ""}]},
        "description: files[0]: exactly one of `text`, `hex`, `elf` is needed, not text and hex",
    ),
    "odd hex": (
        {"files": [{"path": "/a", "type": "file", "mode": "644", "hex": "abc"}]},
        "description: files[0].hex: `abc` does not match ([0-9a-fA-F]{2})*",
    ),
    "elf class": (
        changed(lambda d: d["files"][1]["elf"].update({"class": 48})),
        "description: files[1].elf.class: `48` is none of 32, 64",
    ),
    "elf machine": (
        changed(lambda d: d["files"][1]["elf"].update(machine="EM_VAX")),
        "description: files[1].elf.machine: `EM_VAX` is none of " + ", ".join(description.MACHINES),
    ),
    "elf soname": (
        changed(lambda d: d["files"][1]["elf"].update(soname=7)),
        "description: files[1].elf.soname: a number, not a string",
    ),
    "short note": (
        changed(lambda d: d["files"][1]["elf"].update(notes=[{"section": ".note.x", "hex": "00"}])),
        "description: files[1].elf.notes[0].hex: shorter than the header of a note",
    ),
    "two notes": (
        changed(lambda d: d["files"][1]["elf"].update(notes=[{"section": ".note.x", "hex": NOTE * 2}])),
        "description: files[1].elf.notes[0].hex: does not hold exactly one note, padded to four bytes",
    ),
    "note section": (
        changed(lambda d: d["files"][1]["elf"].update(notes=[{"section": ".text", "hex": NOTE}])),
        r"description: files[1].elf.notes[0].section: `.text` does not match \.note[A-Za-z0-9._-]*",
    ),
    "note section that ends its string": (
        changed(lambda d: d["files"][1]["elf"].update(notes=[{"section": '.note"),x(', "hex": NOTE}])),
        r'description: files[1].elf.notes[0].section: `.note"),x(` does not match \.note[A-Za-z0-9._-]*',
    ),
    "note section with an escape": (
        changed(lambda d: d["files"][1]["elf"].update(notes=[{"section": ".note\\n", "hex": NOTE}])),
        r"description: files[1].elf.notes[0].section: `.note\n` does not match \.note[A-Za-z0-9._-]*",
    ),
    "note section with a line end": (
        changed(lambda d: d["files"][1]["elf"].update(notes=[{"section": ".note\n", "hex": NOTE}])),
        r"description: files[1].elf.notes[0].section: `.note\n` does not match \.note[A-Za-z0-9._-]*",
    ),
    "simnode's own": (
        {"files": [{"path": "/.simnode", "type": "symlink", "target": "/tmp"}]},
        "description: files[0].path: `/.simnode` and what is below it is simnode's own",
    ),
    "below simnode's own": (
        {"files": [{**DIR, "path": "/.simnode/faults"}]},
        "description: files[0].path: `/.simnode` and what is below it is simnode's own",
    ),
    "surrogate in a path": (
        {"files": [DIR, {**DIR, "path": "/a\ud800"}]},
        "description: files[1].path: holds a lone surrogate, U+D800, as character 2",
    ),
    "surrogate in a text": (
        {"files": [{"path": "/a", "type": "file", "mode": "644", "text": "x\udfff"}]},
        "description: files[0].text: holds a lone surrogate, U+DFFF, as character 1",
    ),
    "surrogate in an answer": (
        changed(lambda d: d["nvml"]["gpus"][0].update(name="\ud834")),
        "description: nvml.gpus[0].name: holds a lone surrogate, U+D834, as character 0",
    ),
    "surrogate in a key": ({"files": [], "\ud800": 1}, r"description: unknown key `\ud800`"),
    "answers of nobody": (
        changed(lambda d: d["files"].pop()),
        "description: nvml: no file has the soname libnvidia-ml.so.1: nothing can answer",
    ),
    "no version": (
        changed(lambda d: d["nvml"].pop("driver_version")),
        "description: nvml: `driver_version` is missing",
    ),
    "error zero": (
        changed(lambda d: d["nvml"].update(driver_version={"error": 0})),
        "description: nvml.driver_version.error: 0 is outside of 1..999",
    ),
    "error and more": (
        changed(lambda d: d.update(nvml={"error": 9, "gpus": []})),
        "description: nvml: unknown key `gpus`",
    ),
    "index": (
        changed(lambda d: d["nvml"]["gpus"][0].update(index=1)),
        "description: nvml.gpus[0]: index 1 is not its place in the list, 0",
    ),
    "gpu key missing": (
        changed(lambda d: d["nvml"]["gpus"][0].pop("minor")),
        "description: nvml.gpus[0]: `minor` is missing",
    ),
    "long uuid": (
        changed(lambda d: d["nvml"]["gpus"][0].update(uuid="x" * 96)),
        "description: nvml.gpus[0].uuid: longer than 95 bytes",
    ),
    "capability": (
        changed(lambda d: d["nvml"]["gpus"][0].update(compute_capability=[8])),
        "description: nvml.gpus[0].compute_capability: 1 numbers, not 2",
    ),
    "bus id": (
        changed(lambda d: d["nvml"]["gpus"][0].update(pci_bus_id="07:00.0")),
        f"description: nvml.gpus[0].pci_bus_id: `07:00.0` does not match {BUS_ID}",
    ),
    "mig index": (
        changed(lambda d: d["nvml"]["gpus"][0].update(max_mig_devices=0)),
        "description: nvml.gpus[0].mig_devices[0]: index 0 is not below max_mig_devices",
    ),
    "mig index twice": (
        changed(lambda d: d["nvml"]["gpus"][0]["mig_devices"].append({**MIG, "uuid": "MIG-2"})),
        "description: nvml.gpus[0].mig_devices: an index stands twice",
    ),
    "mig uuid twice": (
        changed(lambda d: d["nvml"]["gpus"][0]["mig_devices"].append({**MIG, "index": 1})),
        "description: nvml.gpus[0].mig_devices[1]: uuid `MIG-1` is that of nvml.gpus[0].mig_devices[0] already",
    ),
    "mig profile": (
        changed(lambda d: d["nvml"]["gpus"][0]["mig_devices"][0]["gpu_instance_profile"].pop("id")),
        "description: nvml.gpus[0].mig_devices[0].gpu_instance_profile: `id` is missing",
    ),
    "control characters": (
        {"files": [{**DIR, "path": "a\x1b[2J\n"}]},
        r"description: files[0].path: `a\x1b[2J\n` is no absolute path in its shortest form",
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_description_is_told_where_and_what(what: str, tmp_path: Path) -> None:
    document, message = MALFORMED[what]
    (tmp_path / "description").write_text(json.dumps(document))
    for source in (document, tmp_path / "description") if isinstance(document, dict) else (tmp_path / "description",):
        with pytest.raises(simnode.DescriptionError) as caught:
            simnode.load(source)
        assert str(caught.value) == message
        assert str(caught.value).isprintable()


FILES = {
    "nothing": (b"", "x.json: not JSON: Expecting value: line 1 column 1 (char 0)"),
    "cut": (b'{"files": [', "x.json: not JSON: Expecting value: line 1 column 12 (char 11)"),
    "no text": (
        b"\xff\xfe\xff",
        "x.json: not JSON: 'utf-16-le' codec can't decode byte 0xff in position 2: truncated data",
    ),
    "twice": (b'{"files": [], "files": []}', "x.json: not JSON: key `files` stands twice in one object"),
    "deep": (b"[" * 100_000, "x.json: nested too deeply"),
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_is_no_json_is_told_why(what: str, tmp_path: Path) -> None:
    data, message = FILES[what]
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(simnode.DescriptionError) as caught:
        simnode.load(tmp_path / "x.json")
    assert str(caught.value) == message


def test_a_missing_file_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(simnode.DescriptionError, match=r"^read `.*/x\.json`: No such file or directory$"):
        simnode.load(tmp_path / "x.json")
