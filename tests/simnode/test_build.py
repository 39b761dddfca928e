"""A built node is its description: stat, readlink, pyelftools, readelf and ldconfig say so."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection
from lib import proc, session, simnode
from lib.simnode import majors, maker
from lib.simnode.nvmllib import COMPILER
from simnode.nodes import built, fresh, needs_x86

KINDS = {
    "dir": stat.S_ISDIR,
    "symlink": stat.S_ISLNK,
    "file": stat.S_ISREG,
    "char": stat.S_ISCHR,
    "socket": stat.S_ISSOCK,
}
NAMES = simnode.variants()


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_as_described(name: str) -> None:
    root = built(name).root
    for entry in simnode.sample(name)["files"]:
        path = root / entry["path"][1:]
        status = path.lstat()
        assert KINDS[entry["type"]](status.st_mode), path
        if entry["type"] == "symlink":
            assert os.readlink(path) == entry["target"]
            continue
        assert f"{stat.S_IMODE(status.st_mode):o}" == entry["mode"], path
        assert (status.st_uid, status.st_gid) == (entry.get("uid", 0), entry.get("gid", 0)), path
        if entry["type"] == "char":
            assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == (entry["major"], entry["minor"]), path
        if "text" in entry:
            assert path.read_text() == entry["text"]
        if "hex" in entry:
            assert path.read_bytes().hex() == entry["hex"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_else_is_there(name: str) -> None:
    node = built(name)
    found = {f"/{path.relative_to(node.root)}" for path in node.root.rglob("*")}
    caches = {f"{place}/etc/ld.so.cache" for place in maker.roots(node.node)}
    assert found == {entry["path"] for entry in simnode.sample(name)["files"]} | caches | {"/proc/devices"}


def seen(path: Path) -> dict[str, Any]:
    """What pyelftools reads of an ELF file, as a description has it."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        dynamic = elf.get_section_by_name(".dynamic")
        sonames = [tag.soname for tag in dynamic.iter_tags("DT_SONAME")]
        out = {"class": elf.elfclass, "machine": elf["e_machine"], "soname": sonames[0] if sonames else None}
        out["needed"] = [tag.needed for tag in dynamic.iter_tags("DT_NEEDED")]
        notes = [s for s in elf.iter_sections() if isinstance(s, NoteSection)]
        if notes:
            out["notes"] = [{"section": s.name, "hex": s.data().hex()} for s in notes]
        return out


@needs_x86
@pytest.mark.parametrize("name", NAMES)
def test_every_elf_file_is_as_described(name: str) -> None:
    described = {entry["path"]: entry["elf"] for entry in simnode.sample(name)["files"] if "elf" in entry}
    assert {path: seen(built(name).root / path[1:]) for path in described} == described


@needs_x86
def test_readelf_sees_the_same_of_the_nvml_library() -> None:
    node = built("a100-mig")
    done = subprocess.run(["readelf", "-hdW", node.nvml], capture_output=True, text=True, check=True)
    assert "ELF64" in done.stdout
    assert "(SONAME)             Library soname: [libnvidia-ml.so.1]" in done.stdout
    assert re.findall(r"\(NEEDED\) +Shared library: \[(.*)\]", done.stdout) == ["libnvml-mock-core.so", "libc.so.6"]
    notes = subprocess.run(["readelf", "-nW", built("a100").nvml], capture_output=True, text=True, check=True).stdout
    assert ".note.go.buildid" in notes
    assert notes.count("Displaying notes") == 1
    assert "warning" not in (done.stderr + notes).lower()


@needs_x86
@pytest.mark.parametrize("name", NAMES)
def test_the_nvml_library_names_no_place_of_this_machine(name: str) -> None:
    node = built(name)
    if node.nvml:
        data = node.nvml.read_bytes()
        assert not [place for place in (str(session.tmp()), str(session.CHECKOUT), "/tmp/") if place.encode() in data]


def cached(root: Path) -> set[tuple[str, str]]:
    """(soname, path) of each line of `ldconfig -p`."""
    command = [maker.LDCONFIG, "-p", "-C", root / "etc/ld.so.cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(re.findall(r"^\t(\S+) \(.*\) => (\S+)$", done.stdout, re.MULTILINE))


DEBIAN = "/usr/lib/x86_64-linux-gnu"


@needs_x86
@pytest.mark.parametrize("name", ["a100", "rhel-lib64", "cache-only", "two-versions", "half-removed"])
def test_ldconfig_reads_the_cache_that_was_written(name: str) -> None:
    directory = {"rhel-lib64": "/usr/lib64", "cache-only": "/opt/nvidia/driver/lib"}.get(name, DEBIAN)
    files = simnode.sample(name)["files"]
    libraries = [e for e in files if "elf" in e and str(PurePosixPath(e["path"]).parent) == directory]
    sonames = {entry["elf"]["soname"] for entry in libraries}
    root = built(name).root
    # ldconfig gives a link whose name ends in .so, as compilers want it, an entry of its own.
    links = {p.name for p in (root / directory[1:]).iterdir() if p.is_symlink() and p.suffix == ".so" and p.exists()}
    assert cached(root) == {(soname, f"{directory}/{soname}") for soname in sonames | links}
    assert len(sonames) > 30


@needs_x86
def test_32_bit_libraries_are_in_the_cache_beside_the_others() -> None:
    places = sorted(path for soname, path in cached(built("i386").root) if soname == "libcuda.so.1")
    assert places == ["/usr/lib/i386-linux-gnu/libcuda.so.1", "/usr/lib/x86_64-linux-gnu/libcuda.so.1"]


@needs_x86
def test_a_root_within_the_node_has_a_cache_of_its_own() -> None:
    root = built("linked-root").root
    assert cached(root) == set()
    inner = root / "run/nvidia/drivers/550.163.01"
    assert ("libcuda.so.1", "/usr/lib/x86_64-linux-gnu/libcuda.so.1") in cached(inner)
    assert os.readlink(root / "run/nvidia/driver") == "/run/nvidia/drivers/550.163.01"


def test_majors_are_those_of_the_nodes() -> None:
    node = built("a100")
    assert (node.root / "proc/devices").read_bytes() == majors.derive(node.node)


def test_a_described_cache_and_table_stay_as_they_are() -> None:
    document = simnode.sample("tegra")
    document["files"] += [
        {"path": "/proc/devices", "type": "file", "mode": "444", "text": "Character devices:\n  1 mem\n"},
        {"path": "/etc/ld.so.cache", "type": "file", "mode": "644", "hex": "00ff"},
    ]
    root = simnode.build(simnode.load(document), session.new_dir("node")).root
    assert (root / "proc/devices").read_text() == "Character devices:\n  1 mem\n"
    assert (root / "etc/ld.so.cache").read_bytes() == b"\x00\xff"


def test_every_kind_of_entry_can_be_made() -> None:
    files = [
        {"path": "/c", "type": "char", "mode": "640", "major": 195, "minor": 300, "uid": 3, "gid": 4},
        {"path": "/f", "type": "fifo", "mode": "600"},
        {"path": "/closed", "type": "dir", "mode": "555"},
        {"path": "/closed/x", "type": "file", "mode": "000", "text": "x"},
        {"path": "/sticky", "type": "dir", "mode": "1777"},
    ]
    root = simnode.build(simnode.load({"files": files}), session.new_dir("node")).root
    device = (root / "c").stat()
    assert stat.S_ISCHR(device.st_mode)
    assert (os.major(device.st_rdev), os.minor(device.st_rdev), device.st_uid, device.st_gid) == (195, 300, 3, 4)
    assert stat.S_ISFIFO((root / "f").stat().st_mode)
    assert [stat.S_IMODE((root / name).stat().st_mode) for name in ("c", "closed", "closed/x", "sticky")] == [
        0o640,
        0o555,
        0,
        0o1777,
    ]


DIRS = [{"path": path, "type": "dir", "mode": "755"} for path in ("/etc", "/usr")]
# A link to a directory outside, in the place of one that build itself writes in or removes: entries, in which OUT
# stands for that directory.
LEADS_OUT: dict[str, list[dict[str, Any]]] = {
    "var": [{"path": "/var", "type": "symlink", "target": "OUT"}],
    "var/cache": [
        {"path": "/var", "type": "dir", "mode": "755"},
        {"path": "/var/cache", "type": "symlink", "target": "OUT/cache"},
    ],
    "var/cache/ldconfig": [
        {"path": "/var", "type": "dir", "mode": "755"},
        {"path": "/var/cache", "type": "dir", "mode": "755"},
        {"path": "/var/cache/ldconfig", "type": "symlink", "target": "OUT/cache/ldconfig"},
    ],
    "proc": [{"path": "/proc", "type": "symlink", "target": "OUT"}],
    "proc/devices": [
        {"path": "/proc", "type": "dir", "mode": "755"},
        {"path": "/proc/devices", "type": "symlink", "target": "OUT/devices"},
    ],
    "etc/ld.so.cache": [{"path": "/etc/ld.so.cache", "type": "symlink", "target": "OUT/devices"}],
    "etc/ld.so.conf": [{"path": "/etc/ld.so.conf", "type": "symlink", "target": "OUT/devices"}],
    "var of a root within": [
        *({"path": f"/inner{path}", "type": "dir", "mode": "755"} for path in ("", "/etc", "/usr")),
        {"path": "/inner/var", "type": "symlink", "target": "OUT"},
    ],
}


@pytest.mark.parametrize("what", LEADS_OUT)
def test_links_of_a_description_lead_nothing_out(what: str) -> None:
    outside, directory = session.new_dir("outside"), session.new_dir("node")
    (outside / "cache/ldconfig").mkdir(parents=True)
    (outside / "cache/ldconfig/precious").write_text("x")
    entries = [{k: str(v).replace("OUT", str(outside)) for k, v in each.items()} for each in LEADS_OUT[what]]
    node = simnode.load({"files": [*DIRS, *entries]})
    simnode.build(node, directory, {"lost": 1})
    found = {str(path.relative_to(outside)) for path in outside.rglob("*")}
    assert found == {"cache", "cache/ldconfig", "cache/ldconfig/precious"}
    assert (directory / ".simnode/faults").read_text() == "lost=1\n"
    for each in entries:
        if each["type"] == "symlink":
            assert os.readlink(directory / each["path"][1:]) == each["target"]


def test_a_link_put_in_the_place_of_faults_is_not_followed() -> None:
    outside = session.new_dir("outside")
    (outside / "faults").write_text("x")
    node = simnode.build(simnode.load({"files": DIRS}), session.new_dir("node"))
    (node.root / ".simnode").symlink_to(outside)
    with pytest.raises(simnode.BuildError, match=r"^write `.*/\.simnode/faults`: ENOTDIR \("):
        node.set_faults({"lost": 1})
    node.set_faults(None)
    assert (outside / "faults").read_text() == "x"


def test_a_place_that_is_no_directory_of_the_node_gets_no_cache() -> None:
    directory = session.new_dir("node")
    (directory / "etc").symlink_to("/etc")
    with pytest.raises(simnode.BuildError, match=r"^write `/etc/ld\.so\.cache`: ENOTDIR \(`/etc` is no directory"):
        maker._write_cache(directory, simnode.load({"files": DIRS}), "")


def test_programs_of_a_description_get_nobodys_rights() -> None:
    program = {"path": "/usr/x", "type": "file", "mode": "6755", "text": "", "uid": 0, "gid": 4}
    root = simnode.build(simnode.load({"files": [*DIRS, program]}), session.new_dir("node")).root
    assert stat.S_IMODE((root / "usr/x").stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("kind", "major", "minor"), [("block", 8, 0), ("block", 195, 0), ("char", 1, 1), ("char", 1, 4), ("char", 21, 0)]
)
def test_memory_and_disks_of_the_machine_are_refused(kind: str, major: int, minor: int) -> None:
    entry = {"path": "/usr/x", "type": kind, "mode": "666", "major": major, "minor": minor}
    node, directory = simnode.load({"files": [*DIRS, entry]}), session.new_dir("node")
    with pytest.raises(simnode.BuildError) as caught:
        simnode.build(node, directory)
    assert str(caught.value).startswith(f"make {kind} `/usr/x` ({major}:{minor}): refused (")
    assert os.listdir(directory) == []
    assert not (simnode.build(node, directory, devices=False).root / "usr/x").exists()


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(simnode.BuildError) as caught:
        simnode.build(simnode.load({"files": []}), tmp_path)
    assert str(caught.value) == f"build in `{tmp_path}`: ENOTEMPTY (name a new or an empty directory)"


@needs_x86
def test_a_missing_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    document = simnode.sample("a100")
    document["nvml"]["driver_version"] = "550.163.02"  # not compiled before
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(simnode.BuildError) as caught:
        simnode.build(simnode.load(document), session.new_dir("node"))
    hint = f"(`{COMPILER}` is not there: apt-get install gcc libc6-dev)"
    assert str(caught.value) == f"compile the NVML library: ENOENT {hint}"


def test_a_device_node_that_is_refused_is_told() -> None:
    """In a user namespace mknod(2) of a device is EPERM whoever one is."""
    directory = session.new_dir("node")
    directory.chmod(0o777)
    program = [session.PYTHON, "-IS", session.CHECKOUT / "scripts/simnode", "build", "tegra"]
    mapped = ["/usr/bin/unshare", "--user", "--map-root-user", *program]
    probe = proc.run(["/usr/bin/unshare", "--user", "--map-root-user", "/bin/true"])
    if not probe.ok:
        pytest.skip(f"no user namespaces here: {probe.stderr.strip()}")
    done = proc.run([*mapped, directory / "a"], timeout=30)
    assert done.rc == 1
    assert re.fullmatch(
        r"simnode: make char `/dev/\S+` \(\d+:\d+\): EPERM \(mknod of a device is refused here, .*\)\n", done.stderr
    )
    done = proc.run([*mapped, directory / "b", "--no-devices"], timeout=30)
    assert done.ok, done.stderr
    assert not list((directory / "b/dev").glob("nv*0"))


def test_building_leaves_no_mounts_and_no_files_elsewhere() -> None:
    before, places = proc.mountinfo(), set(Path(tempfile.gettempdir()).glob("nvoci-simnode-*"))
    fresh("gpu-lost")
    assert proc.mountinfo() == before
    assert set(Path(tempfile.gettempdir()).glob("nvoci-simnode-*")) <= places
