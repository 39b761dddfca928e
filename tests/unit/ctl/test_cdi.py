"""`nvoci cdi`: what each command prints, writes and refuses."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lib import proc
from unit.ctl.cditools import GPUS, NICS, directory

from nvoci.cdi.model import ContainerEdits, Hook, IntelRdt, NetDevice
from nvoci.ctl import cdi_inject, cdi_list
from nvoci.ctl.cdi import command as group

Invoke = Callable[..., proc.Result]


@pytest.fixture(autouse=True)
def _plain_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def low(tmp_path: Path) -> Path:
    return directory(tmp_path / "low", "gpus.yaml", GPUS)


@pytest.fixture
def high(tmp_path: Path) -> Path:
    return directory(tmp_path / "high", "nics.json", NICS)


@pytest.fixture
def cdi(nvoci: Invoke, low: Path, high: Path) -> Invoke:
    """`nvoci cdi COMMAND …` on both."""

    def invoke(command: str, *words: str | Path) -> proc.Result:
        return nvoci("cdi", command, "--spec-dir", low, "--spec-dir", high, *words)

    return invoke


def stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def document(result: proc.Result) -> Any:
    assert (result.rc, result.stderr) == (0, "")
    return json.loads(result.stdout)


# --- list, dirs, devices ----------------------------------------------------------------------------------------------


def test_list_prints_each_file(cdi: Invoke, low: Path, high: Path) -> None:
    result = cdi("list")
    assert (result.rc, result.stderr) == (0, "")
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["PRIORITY", "FILE", "KIND", "VERSION", "DEVICES", "ERRORS"],
        ["0", f"{low}/gpus.yaml", "a.org/gpu", "0.7.0", "2", "0"],
        ["1", f"{high}/nics.json", "b.org/nic", "0.5.0", "1", "0"],
    ]


def test_list_says_what_is_wrong_and_goes_on(cdi: Invoke, low: Path, high: Path) -> None:
    (low / "bad.yaml").write_text("cdiVersion: 0.7.0\nfoo: 1\n")
    high.chmod(0o777)
    result = cdi("list")
    assert result.rc == 0
    assert [line.split() for line in result.stdout.splitlines()][1:] == [
        ["0", f"{low}/bad.yaml", "-", "-", "0", "1"],
        ["0", f"{low}/gpus.yaml", "a.org/gpu", "0.7.0", "2", "0"],
    ]
    assert [line.rpartition(" (")[0] for line in result.stderr.splitlines()] == [
        f"nvoci: warning: CDI spec {low}/bad.yaml: unknown field `foo`",
        f"nvoci: warning: CDI spec {high}: owned by uid {os.geteuid()}, mode 0777: others can write it",
    ]
    found = json.loads(cdi("list", "--json").stdout)
    assert [(row["path"], row["kind"], len(row["errors"])) for row in found["specs"]] == [
        (f"{low}/bad.yaml", "", 1), (f"{low}/gpus.yaml", "a.org/gpu", 0),
    ]  # fmt: skip
    assert list(found["directories"]) == [str(high)]


def test_list_of_nothing_is_nothing(nvoci: Invoke, tmp_path: Path) -> None:
    for command in ("list", "devices", "validate"):
        result = nvoci("cdi", command, "--spec-dir", tmp_path / "none")
        assert (result.rc, result.stdout, result.stderr) == (0, "", "")


def test_the_directories_may_come_from_the_environment(
    nvoci: Invoke, low: Path, high: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDI_SPEC_DIRS", f"{low}:{high}")
    assert [row["path"] for row in document(nvoci("cdi", "dirs", "--json"))["directories"]] == [str(low), str(high)]
    [row] = document(nvoci("cdi", "dirs", "--json", "--spec-dir", f"{low}/"))["directories"]
    assert row["path"] == str(low)


def test_dirs_prints_each_directory(cdi: Invoke, low: Path, high: Path, tmp_path: Path) -> None:
    shutil.copy(low / "gpus.yaml", high)
    (high / "bad.json").write_text("")
    low.chmod(0o775)
    result = cdi("dirs", "--spec-dir", tmp_path / "none")
    assert result.rc == 0
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["PRIORITY", "DIRECTORY", "STATE", "SPECS", "DEVICES", "ERRORS"],
        ["0", str(low), "refused", "0", "0", "1"],
        ["1", str(high), "there", "2", "3", "1"],
        ["2", f"{tmp_path}/none", "missing", "0", "0", "0"],
    ]
    low.chmod(0o755)
    rows = json.loads(cdi("dirs", "--json").stdout)["directories"]
    assert [(row["priority"], row["specs"], row["devices"]) for row in rows] == [(0, 1, 0), (1, 2, 3)]


def test_devices_prints_each_device(cdi: Invoke, low: Path, high: Path) -> None:
    result = cdi("devices")
    assert (result.rc, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"DEVICE       EDITS                   {'FILE'}",
        f"a.org/gpu=0  1 device node, 1 group  {low}/gpus.yaml",
        f"a.org/gpu=1  1 device node           {low}/gpus.yaml",
        f"b.org/nic=x  1 variable              {high}/nics.json",
    ]


def test_devices_of_one_kind(cdi: Invoke) -> None:
    assert [row["name"] for row in document(cdi("devices", "b.org/nic", "--json"))["devices"]] == ["b.org/nic=x"]
    result = cdi("devices", "b.org/gpu")
    assert (result.rc, result.stdout) == (1, "")
    assert result.stderr.startswith("nvoci: list devices: none of kind b.org/gpu (")
    assert cdi("devices", "gpu").rc == 2


def test_devices_tells_all_edits(cdi: Invoke, low: Path) -> None:
    spec = yaml.safe_load(GPUS)
    found = document(cdi("devices", "--json"))
    assert [(row["annotations"], row["containerEdits"]) for row in found["devices"]][:2] == [
        (each.get("annotations", {}), {**each["containerEdits"], "deviceNodes": row["containerEdits"]["deviceNodes"]})
        for each, row in zip(spec["devices"], found["devices"])
    ]
    assert found["specs"][0] == {
        "path": f"{low}/gpus.yaml", "kind": "a.org/gpu", "version": "0.7.0",
        "annotations": spec["annotations"], "containerEdits": spec["containerEdits"],
    }  # fmt: skip
    shown = cdi("devices", "-v", "a.org/gpu").stdout
    parts = yaml.safe_load("\n".join(line if line[0] == " " else f"'{line}':" for line in shown.splitlines()))
    assert list(parts) == [f"a.org/gpu={i}  {low}/gpus.yaml" for i in "01"] + [f"any device of {low}/gpus.yaml"]
    assert list(parts.values())[2] == spec["containerEdits"]


def test_a_summary_counts_what_there_is() -> None:
    edits = ContainerEdits(
        env=("A=1", "B=2"), net_devices=(NetDevice("a", "b"),), hooks=(Hook("prestart", "/a"),),
        intel_rdt=IntelRdt("a"), additional_gids=(1,),
    )  # fmt: skip
    assert cdi_list.summary(edits) == "2 variables, 1 network device, 1 hook, 1 group, resource director"


# --- validate ---------------------------------------------------------------------------------------------------------


def test_validate_tells_of_each_file(cdi: Invoke, low: Path, high: Path) -> None:
    result = cdi("validate")
    assert (result.rc, result.stderr) == (0, "")
    assert result.stdout == f"{low}/gpus.yaml: valid\n{high}/nics.json: valid\n"


def test_validate_tells_all_that_is_wrong_with_all_files(cdi: Invoke, low: Path, high: Path) -> None:
    (low / "copy.yaml").write_text(GPUS.replace('"1"\n      containerEdits', '"2"\n      containerEdits'))
    (high / "bad.json").write_text(NICS.replace("0.5.0", "0.1.0").replace('"x"', '"1"').replace("NIC=", "="))
    (high / "open.json").write_text(NICS)
    (high / "open.json").chmod(0o666)
    result = cdi("validate")
    assert result.rc == 1
    assert result.stdout == f"{high}/nics.json: valid\n"
    assert [line.rpartition(" (")[0] for line in result.stderr.splitlines()] == [
        f"CDI spec {low}/copy.yaml: devices[0]: conflicting device a.org/gpu=0: also in {low}/gpus.yaml",
        f"CDI spec {low}/gpus.yaml: devices[0]: conflicting device a.org/gpu=0: also in {low}/copy.yaml",
        f"CDI spec {high}/bad.json: cdiVersion: the spec version must be at least v0.5.0",
        f'CDI spec {high}/bad.json: devices[0].containerEdits.env[0]: invalid environment variable "=x"',
        f"CDI spec {high}/open.json: mode 0666: others can write it",
    ]


def test_validate_of_files(cdi: Invoke, low: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad").write_text("{")
    os.mkfifo(tmp_path / "fifo")
    low.chmod(0o777)  # whoever names a file knows it
    stdin(monkeypatch, NICS)
    result = cdi("validate", low / "gpus.yaml", tmp_path / "bad", "-", tmp_path / "fifo", tmp_path / "none")
    assert result.rc == 1
    assert result.stdout == f"{low}/gpus.yaml: valid\nstandard input: valid\n"
    first, *others = [line.partition(" (")[0] for line in result.stderr.splitlines()]
    assert first.startswith(f"CDI spec {tmp_path}/bad: not valid JSON: ")
    assert others == [f"CDI spec {tmp_path}/fifo: EINVAL", f"CDI spec {tmp_path}/none: ENOENT"]


SCHEMA = {
    "the schema alone": ("kind: a.b/nic\ncdiVersion: 0.5.0\ndevices: [{name: 0, containerEdits: {env: [A=1]}}]\n",
                         ["devices[0].name: must be string"], []),
    "both, of one place": ("kind: 7\ncdiVersion: 0.5.0\ndevices: [{name: a, containerEdits: {env: [A=1]}}]\n",
                           ["kind: kind `7` is not VENDOR/CLASS"], ["kind: kind `7` is not VENDOR/CLASS"]),
    "the rules alone": ("kind: a.b/nic\ncdiVersion: 0.5.0\ndevices: [{name: a, containerEdits: {}}]\n",
                        ["devices[0].containerEdits: invalid device, empty device edits"],
                        ["devices[0].containerEdits: invalid device, empty device edits"]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "with_schema", "without"), SCHEMA.values(), ids=SCHEMA.keys())
def test_validate_with_and_without_the_schema(
    nvoci: Invoke, monkeypatch: pytest.MonkeyPatch, text: str, with_schema: list[str], without: list[str]
) -> None:
    for words, expected in (((), with_schema), (("--schema", "builtin"), with_schema), (("--schema", "none"), without)):
        stdin(monkeypatch, text)
        result = nvoci("cdi", "validate", *words, "-")
        told = [line.rpartition(" (")[0] for line in result.stderr.splitlines()]
        assert told == [f"CDI spec standard input: {each}" for each in expected]
        assert (result.rc, result.stdout) == ((1, "") if expected else (0, "standard input: valid\n"))


def test_validate_knows_one_schema(cdi: Invoke) -> None:
    assert cdi("validate", "--schema", "https://example.org/schema.json").rc == 2


# --- inject -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"ociVersion": "1.0.2", "process": {"env": ["GPUS=all", "é=\u2028"]}}, indent="\t"))
    path.chmod(0o640)
    return path


INJECTED = {
    "ociVersion": "1.0.2",
    "process": {"env": ["GPUS=void", "é=\u2028"], "user": {"additionalGids": [44]}},
    "linux": {
        "devices": [{"path": "/dev/gpu0", "type": "c", "major": 195, "minor": 0}],
        "resources": {"devices": [{"allow": True, "type": "c", "major": 195, "minor": 0, "access": "rwm"}]},
    },
    "mounts": [{"destination": "/lib/a", "source": "/lib/a", "options": ["rbind"]}],
}


def test_inject_prints_the_config_with_the_device(cdi: Invoke, config: Path) -> None:
    before = config.read_bytes()
    assert document(cdi("inject", config, "a.org/gpu=0")) == INJECTED
    assert config.read_bytes() == before


def test_inject_reads_standard_input(cdi: Invoke, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, config.read_text())
    assert document(cdi("inject", "-", "a.org/gpu=0")) == INJECTED


def test_inject_in_place_keeps_mode_and_owner(cdi: Invoke, config: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(config, 1234, 5678)
    before = config.stat()
    link = tmp_path / "link"
    link.symlink_to("config.json")
    result = cdi("inject", "--in-place", link, "a.org/gpu=0")
    assert (result.rc, result.stdout, result.stderr) == (0, "", "")
    assert json.loads(config.read_bytes()) == INJECTED
    after = config.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["config.json", "link"]


PATTERNS = {
    "a name": (["a.org/gpu=1"], ["a.org/gpu=1"]),
    "all of a kind": (["a.org/gpu=*"], ["a.org/gpu=0", "a.org/gpu=1"]),
    "all": (["*"], ["a.org/gpu=0", "a.org/gpu=1", "b.org/nic=x"]),
    "each once": (["a.org/gpu=1", "*/gpu=?", "a.org/gpu=1"], ["a.org/gpu=1", "a.org/gpu=0"]),
    "one of these": (["a.org/gpu=[12]"], ["a.org/gpu=1"]),
    "none": (["c.org/*", "x"], ["c.org/*", "x"]),
}


@pytest.mark.parametrize(("patterns", "expected"), PATTERNS.values(), ids=PATTERNS.keys())
def test_patterns_stand_for_names(patterns: list[str], expected: list[str]) -> None:
    assert cdi_inject.expanded(patterns, ["a.org/gpu=0", "a.org/gpu=1", "b.org/nic=x"]) == expected


def test_inject_of_what_is_not_there_changes_nothing(cdi: Invoke, config: Path, high: Path) -> None:
    before = config.read_bytes()
    (high / "bad.json").write_text("")
    result = cdi("inject", "-i", config, "a.org/gpu=0", "a.org/gpu=7", "c.org/*")
    assert (result.rc, result.stdout) == (1, "")
    first, last = result.stderr.splitlines()
    assert first.startswith(f"nvoci: warning: CDI spec {high}/bad.json: ")
    assert "unresolvable CDI devices a.org/gpu=7, c.org/* (" in last
    assert config.read_bytes() == before


def test_inject_of_a_node_that_is_not_there(cdi: Invoke, config: Path, high: Path) -> None:
    (high / "nics.json").write_text(NICS.replace('"env": ["NIC=x"]', '"deviceNodes": [{"path": "/dev/no"}]'))
    result = cdi("inject", config, "*")
    assert (result.rc, result.stdout) == (1, "")
    where = "devices[0].containerEdits.deviceNodes[0]"
    assert result.stderr.startswith(f"nvoci: CDI spec {high}/nics.json: {where}: stat device node /dev/no: ENOENT (")


CONFIGS = {
    "no JSON": ("{", "read config {}: not valid JSON"),
    "no object": ("[]", "read config {}: not a JSON object"),
    "odd": ('{"process": []}', "OCI config {}: process: not an object"),
}


@pytest.mark.parametrize(("text", "message"), CONFIGS.values(), ids=CONFIGS.keys())
def test_inject_into_what_is_no_config(
    cdi: Invoke, config: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    config.write_text(text)
    result = cdi("inject", config, "a.org/gpu=0")
    assert (result.rc, result.stdout) == (1, "")
    assert result.stderr.startswith(f"nvoci: {message.format(config)}")
    stdin(monkeypatch, text)
    assert cdi("inject", "-", "a.org/gpu=0").stderr.startswith(f"nvoci: {message.format('standard input')}")


def test_inject_refuses_what_it_cannot_read_or_write(
    cdi: Invoke, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cdi("inject", config).rc == 2
    assert cdi("inject", "--in-place", "-", "a.org/gpu=0").rc == 2
    assert "ENOENT" in cdi("inject", config.parent / "none", "a.org/gpu=0").stderr
    monkeypatch.setattr(cdi_inject, "MAX_CONFIG", 10)
    stdin(monkeypatch, config.read_text())
    assert "longer than 10 bytes" in cdi("inject", "-", "a.org/gpu=0").stderr


# --- the group --------------------------------------------------------------------------------------------------------


def test_each_command_is_loaded_when_it_is_named(nvoci: Invoke) -> None:
    shown = nvoci("cdi", "--help")
    assert (shown.rc, shown.stderr) == (0, "")
    for name in ("devices", "dirs", "inject", "list", "validate", "watch"):
        assert f"\n  {name} " in shown.stdout
        assert nvoci("cdi", name, "--help").rc == 0
    assert nvoci("cdi", "nonsense").rc == 2
    assert group.name == "cdi"
