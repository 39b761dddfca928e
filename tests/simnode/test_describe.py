"""A description, built and described, is the same again; what can not be read is told."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from lib import elfmaker, proc, session, simnode
from lib.simnode import describe as describer
from lib.simnode import elfread
from lib.simnode.describe import describe
from simnode.nodes import built, fresh, needs_x86
from simnode.test_nvml import EXTRAS

SIMNODE = session.CHECKOUT / "scripts/simnode"


@needs_x86
@pytest.mark.parametrize("name", simnode.variants())
def test_a_built_node_is_described_as_it_was(name: str) -> None:
    document, warnings = describe(built(name).root)
    assert warnings == []
    assert simnode.load(document) == simnode.load(simnode.sample(name))


@needs_x86
@pytest.mark.parametrize("name", ["a100", "a100-mig", "tegra"])
def test_the_program_prints_what_the_sample_says(name: str) -> None:
    done = proc.run([SIMNODE, "describe", "--root", built(name).root], timeout=60)
    assert (done.rc, done.stderr) == (0, "")
    found, sample = json.loads(done.stdout), simnode.sample(name)
    assert sorted(found["files"], key=lambda e: e["path"]) == sorted(sample["files"], key=lambda e: e["path"])
    assert found.get("nvml") == sample.get("nvml")


@needs_x86
def test_optional_answers_are_described_too() -> None:
    document = simnode.sample("no-drm")
    document["nvml"]["gpus"][0].update({**EXTRAS, "architecture": 9})
    document["nvml"]["nvml_version"] = "12.550.99"
    node = simnode.load(document)
    assert simnode.load(describe(simnode.build(node, session.new_dir("node")).root)[0]) == node


@needs_x86
@pytest.mark.parametrize(
    ("faults", "error", "warning"),
    [
        (
            {"crash": "nvmlDeviceGetName"},
            999,
            "ask `/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.550.163.01`: ends with -11",
        ),
        (
            {"hang": "init"},
            10,
            "ask `/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.550.163.01`: ETIMEDOUT (no answer in 1 s)",
        ),
        ({"not_loaded": True}, 9, None),
        ({"stdout": True, "mismatch": True}, 18, None),
    ],
    ids=["crash", "hang", "not loaded", "talkative"],
)
def test_a_bad_library_is_an_answer_too(
    faults: dict[str, object], error: int, warning: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describer, "NVML_SECONDS", 1)
    node = fresh("no-drm", faults)
    begin = time.monotonic()
    document, warnings = describe(node.root)
    assert time.monotonic() - begin < 5
    assert document["nvml"] == {"error": error}
    assert warnings == ([warning] if warning else [])


@needs_x86
def test_the_library_is_asked_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it hangs: no rights, no way back to them, an empty environment; it ends with its deadline."""
    monkeypatch.setattr(describer, "NVML_SECONDS", 3)
    monkeypatch.setenv("NVOCI_TEST_SECRET", "x")
    node = fresh("no-drm", {"hang": "init"})
    library = str(node.nvml)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(describe, node.root)
        status, environ, pid, deadline = "", b"", 0, time.monotonic() + 2.5
        while "\nNoNewPrivs:\t1\n" not in status and time.monotonic() < deadline:
            time.sleep(0.05)
            for place in Path("/proc").glob("[0-9]*"):
                try:
                    if library.encode() in (place / "cmdline").read_bytes().split(b"\0"):
                        status, pid = (place / "status").read_text(), int(place.name)
                        environ = (place / "environ").read_bytes()
                except OSError:
                    continue
        asked.result()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert fields["Uid"] == fields["Gid"] == "65534\t65534\t65534\t65534"
    assert (fields["NoNewPrivs"], int(fields["CapEff"], 16), int(fields["CapPrm"], 16)) == ("1", 0, 0)
    assert b"SECRET" not in environ
    assert not Path(f"/proc/{pid}").exists()


@needs_x86
def test_no_library_is_loaded_unless_wanted() -> None:
    node = fresh("no-drm", {"hang": "load"})
    assert "nvml" not in describe(node.root, nvml=False)[0]


def test_this_machine_can_be_described() -> None:
    """Whatever it has: the description can be read, built and described, and says nothing of what is no driver's."""
    done = proc.run([SIMNODE, "describe", "--no-nvml"], timeout=60)
    assert done.rc == 0, done.stderr
    node = simnode.load(json.loads(done.stdout))
    again = simnode.load(describe(simnode.build(node, session.new_dir("node")).root, nvml=False)[0])
    masked = [replace(e, mode=e.mode & 0o777) if e.kind == "file" else e for e in node.files]
    assert list(again.files) == masked
    paths = {entry.path for entry in node.files}
    assert {"/dev", "/etc", "/usr", "/usr/bin"} <= paths
    assert not [path for path in paths if path.startswith(("/root", "/home", "/etc/passwd", "/usr/bin/python"))]


def test_a_root_that_is_none_is_told(tmp_path: Path) -> None:
    done = proc.run([SIMNODE, "describe", "--root", tmp_path / "x"])
    assert (done.rc, done.stdout) == (1, "")
    assert done.stderr == f"simnode: read `{tmp_path / 'x'}`: not a directory\n"


def test_links_of_a_stranger_lead_nowhere(tmp_path: Path) -> None:
    """A link in the root that leads out of it is described as a link, and not followed."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr/lib").symlink_to("/usr/lib")
    (tmp_path / "etc/OpenCL").symlink_to("/etc")
    (tmp_path / "run/nvidia").mkdir(parents=True)
    (tmp_path / "run/nvidia/driver").symlink_to("driver")
    document, warnings = describe(tmp_path)
    assert warnings == []
    assert {entry["path"] for entry in document["files"]} == {
        *("/etc", "/usr", "/usr/lib", "/run", "/run/nvidia", "/run/nvidia/driver")
    }


def test_large_files_are_cut(tmp_path: Path) -> None:
    place = tmp_path / "usr/lib/firmware/nvidia/1.2"
    place.mkdir(parents=True)
    (place / "gsp.bin").write_bytes(b"\1" * (300 << 10))
    (place / "small.bin").write_bytes(b"\1" * 1000)
    files = {entry["path"]: entry for entry in describe(tmp_path)[0]["files"]}
    assert files["/usr/lib/firmware/nvidia/1.2/gsp.bin"]["hex"] == "01" * 256
    assert files["/usr/lib/firmware/nvidia/1.2/small.bin"]["hex"] == "01" * 1000


def test_the_addresses_of_a_real_sysfs_are_links(tmp_path: Path) -> None:
    real = tmp_path / "sys/devices/pci0000:00/0000:00:01.0"
    (real / "drm/card0").mkdir(parents=True)
    (real / "drm/renderD128").mkdir()
    other = tmp_path / "sys/devices/pci0000:00/0000:00:02.0"
    other.mkdir()
    for device, vendor in ((real, "0x10de"), (other, "0x8086")):
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "config").write_bytes(b"\0" * 64)
    bus = tmp_path / "sys/bus/pci/devices"
    bus.mkdir(parents=True)
    for device in (real, other):
        (bus / device.name).symlink_to(os.path.relpath(device, bus))
    paths = {entry["path"]: entry["type"] for entry in describe(tmp_path)[0]["files"]}
    found = {path.removeprefix("/sys/bus/pci/devices/"): kind for path, kind in paths.items() if "0000:" in path}
    directories = ("0000:00:01.0", "0000:00:01.0/drm", "0000:00:01.0/drm/card0", "0000:00:01.0/drm/renderD128")
    assert found == {**dict.fromkeys(directories, "dir"), "0000:00:01.0/vendor": "file"}


def test_an_elf_file_that_is_broken_is_bytes(tmp_path: Path) -> None:
    good = elfmaker.make_so(tmp_path / "good.so", "good.so.1", ["a.so"], notes=[(".note.a", "A", 7, b"1234")])
    elf = elfread.read(good)
    assert elf is not None
    assert (elf.soname, elf.needed, [note.parts for note in elf.notes]) == (
        *("good.so.1", ("a.so",)),
        [(".note.a", "A", 7, b"1234")],
    )
    data = good.read_bytes()
    for size in range(0, len(data), 7):
        (tmp_path / "cut").write_bytes(data[:size])
        elfread.read(tmp_path / "cut")  # ends
    (tmp_path / "cut").write_bytes(data[:100])
    assert elfread.read(tmp_path / "cut") is None
    big = elfmaker.make_so(tmp_path / "big.so", "big.so", machine="s390x")
    assert elfread.read(big) is None
