"""`nvidia-ctk`: its own flags, what it answers to a command that is not there, `cdi list` and `cdi transform root`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from lib import proc, session
from unit.ctl.ctktools import JSON, YAML, Ctk, ctk, lines

from nvoci import __version__, log
from nvoci.ctl import ctk as module
from nvoci.hook import table

__all__ = ["ctk"]

NODES = session.CHECKOUT / "tests/data/nodes"


# -- the program ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",), ("h",), ("--quiet",)], ids=" ".join)
def test_help_names_the_commands(ctk: Ctk, words: tuple[str, ...]) -> None:
    done = ctk(*words)
    assert (done.rc, done.stderr) == (0, "")
    assert "Usage: nvidia-ctk" in done.stdout
    assert all(f"  {name} " in done.stdout for name in ("cdi", "hook"))


@pytest.mark.parametrize("words", [("cdi",), ("cdi", "--help"), ("cdi", "-h"), ("help", "cdi"), ("cdi", "help")],
                         ids=" ".join)  # fmt: skip
def test_help_of_cdi_names_its_commands(ctk: Ctk, words: tuple[str, ...]) -> None:
    done = ctk(*words)
    assert (done.rc, done.stderr) == (0, "")
    assert all(f"  {name} " in done.stdout for name in ("generate", "list", "transform"))


@pytest.mark.parametrize("words", [("cdi", "generate", "--help"), ("help", "cdi", "generate"), ("cdi", "help", "list"),
                                   ("cdi", "transform", "root", "-h"), ("cdi", "transform"), ("help", "hook")],
                         ids=" ".join)  # fmt: skip
def test_every_command_has_help(ctk: Ctk, words: tuple[str, ...]) -> None:
    done = ctk(*words)
    assert (done.rc, done.stderr) == (0, "")
    assert "nvidia-ctk" in done.stdout


def test_version_and_features(ctk: Ctk) -> None:
    for flag in ("--version", "-v", "-version"):
        assert ctk(flag).stdout == f"NVIDIA Container Toolkit CLI version {__version__}\n"
    assert json.loads(ctk("--features").stdout) == table.features()


TOPICS = {
    "foo": "foo",
    "foo hook": "foo",
    "runtime configure --runtime=docker": "runtime",
    "config --in-place": "config",
    "info": "info",
    "system create-device-nodes": "system",
    "cdi foo": "foo",
    "cdi transform foo": "foo",
    "help foo": "foo",
    "cdi help foo": "foo",
    "--debug foo": "foo",
    "-": "-",
    "-- foo": "foo",
    "a\nb\x1b": "a\\nb\\x1b",
}


@pytest.mark.parametrize("words", TOPICS, ids=repr)
def test_a_command_that_is_not_there_is_exit_status_3(ctk: Ctk, words: str) -> None:
    done = ctk(*words.split(" "))
    assert (done.rc, done.stdout, done.stderr) == (3, "", f"No help topic for '{TOPICS[words]}'\n")


# words: the error
ERRORS = {
    "--foo": "flag provided but not defined: -foo (see --help)",
    "cdi --foo": "flag provided but not defined: -foo (see --help)",
    "cdi list -foo=1": "flag provided but not defined: -foo (see --help)",
    "cdi list --spec-dir": "flag needs an argument: --spec-dir (see --help)",
    "--debug=banana cdi": "could not parse `banana` as bool value from --debug (use true or false)",
    "cdi transform root --relative-to guest": "invalid --relative-to value: guest (use host or container)",
    "cdi transform root --to rel": "transform root: `rel` is not an absolute path (give it from / on)",
}


@pytest.mark.parametrize("words", ERRORS)
def test_an_error_is_one_line_and_exit_status_1(ctk: Ctk, words: str) -> None:
    (Path.cwd() / "in").write_text(YAML)
    given = words.split() + (["--input", "in"] if "root" in words else [])
    done = ctk(*given)
    assert (done.rc, done.stdout, lines(done.stderr)) == (1, "", [f"error: {ERRORS[words]}"])


def test_a_switch_of_the_environment_that_is_no_boolean_is_an_error(ctk: Ctk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_CTK_QUIET", "banana")
    done = ctk("cdi", "list")
    assert done.rc == 1
    assert "as bool value from environment variable NVIDIA_CTK_QUIET" in done.stderr


def test_an_errno_nobody_expected_is_one_line(ctk: Ctk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "denied", "/some/file")

    monkeypatch.setattr(module.program, "main", fail)
    done = ctk("cdi")
    assert (done.rc, lines(done.stderr)[0].partition(" (")[0]) == (1, "error: use /some/file: EACCES")


LEVELS = {
    (): log.INFO, ("--debug",): log.DEBUG, ("-d",): log.DEBUG, ("--quiet",): log.ERROR, ("-quiet", "-debug"): log.ERROR,
    ("--debug=false",): log.INFO, ("--config", "x", "--debug"): log.DEBUG,
}  # fmt: skip


@pytest.mark.parametrize("words", LEVELS, ids=" ".join)
def test_the_level_of_the_log(ctk: Ctk, words: tuple[str, ...]) -> None:
    ctk(*words, "cdi", "list", "--spec-dir", "/nowhere")
    assert log._stderr_level == LEVELS[words]


def test_the_level_is_taken_from_the_environment(ctk: Ctk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_CTK_DEBUG", "1")
    ctk("cdi")
    assert log._stderr_level == log.DEBUG
    ctk("--debug=false", "cdi")
    assert log._stderr_level == log.INFO


LOADED = """
import sys
sys.path[:0] = [{hooks!r}, {vendor!r}]
from nvoci.ctl import ctk
ctk.run({words!r})
print(*sorted(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "loaded", "not_loaded"),
    [
        (["--version"], "nvoci.ctl.ctk", "nvoci.ctl.ctk_list nvoci.ctl.ctk_generate nvoci.generate.specs yaml tomllib"),
        (["cdi", "list", "--help"], "nvoci.ctl.ctk_list", "nvoci.generate.specs nvoci.ctl.ctk_generate yaml"),
        (["cdi", "list", "--spec-dir", "/nowhere"], "nvoci.cdi.specdir", "nvoci.generate.specs nvoci.discover yaml"),
        (["cdi", "transform", "root"], "nvoci.generate.transform", "nvoci.generate.specs pynvml fastjsonschema"),
    ],
    ids=["version", "help", "list", "transform"],
)
def test_a_command_loads_what_it_needs(words: list[str], loaded: str, not_loaded: str) -> None:
    import click

    code = LOADED.format(hooks=str(session.HOOKS), vendor=str(Path(click.__file__).parent.parent), words=words)
    modules = proc.run([session.PYTHON, "-ISB", "-c", code]).stderr.split()
    assert loaded in modules
    assert sorted(set(not_loaded.split()) & set(modules)) == []


# -- list ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def dirs(tmp_path: Path) -> tuple[Path, Path]:
    """Two directories: 0 and 1 in the first, 1 and 2 in the second, each in a file of its own; and a file with an
    error, two that conflict, one that nobody asked for."""
    first, second = tmp_path / "first", tmp_path / "second"
    for directory, names in ((first, "01"), (second, "12")):
        directory.mkdir(mode=0o755)
        for name in names:
            (directory / f"{name}.yaml").write_text(YAML.replace('"0"', f'"{name}"'))
    (second / "bad.json").write_text(JSON.replace('"kind"', '"kinds"'))
    (second / "again.yaml").write_text(YAML.replace('"0"', '"2"'))
    (second / "0.txt").write_text("no specification")
    for path in tmp_path.rglob("*"):
        path.chmod(path.stat().st_mode & 0o755)
    return first, second


def test_list_prints_names_and_tells_of_errors(ctk: Ctk, dirs: tuple[Path, Path]) -> None:
    first, second = dirs
    for words in (["--spec-dir", first, "--spec-dir", second], [f"-spec-dir={first}, {second}"]):
        done = ctk("cdi", "list", *words)
        assert (done.rc, done.stdout) == (0, "nvidia.com/gpu=0\nnvidia.com/gpu=1\n")
        told = lines(done.stderr)
        assert told[0] == "warning: The following registry errors were reported:"
        assert told[-1] == "info: Found 2 CDI devices"
        assert sorted(line.partition(": [")[0] for line in told[1:-1]) == [
            f"warning: {second}/{name}" for name in ("2.yaml", "again.yaml", "bad.json")
        ]
        assert any("kinds" in line for line in told)
        assert any("conflicting device nvidia.com/gpu=2" in line for line in told)


def test_list_takes_the_directories_of_the_environment(
    ctk: Ctk, dirs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVIDIA_CTK_CDI_SPEC_DIRS", f"/nowhere,{dirs[0]}")
    assert ctk("--quiet", "cdi", "list").stdout == "nvidia.com/gpu=0\nnvidia.com/gpu=1\n"
    assert ctk("cdi", "list", "--spec-dir", "/nowhere").stdout == ""


@pytest.mark.parametrize("word", ["--spec-dir={},", "--spec-dir=,{}", "--spec-dir={},,"])
def test_an_empty_part_is_no_directory(ctk: Ctk, dirs: tuple[Path, Path], tmp_path: Path, word: str) -> None:
    (tmp_path / "here.yaml").write_text(YAML.replace('"0"', '"5"'))  # in the working directory
    (tmp_path / "here.yaml").chmod(0o644)
    assert ctk("cdi", "list", word.format(dirs[0])).stdout == "nvidia.com/gpu=0\nnvidia.com/gpu=1\n"


@pytest.mark.parametrize("word", ["--spec-dir=", "--spec-dir=,"])
def test_no_directory_at_all_is_an_error(ctk: Ctk, word: str) -> None:
    done = ctk("cdi", "list", word)
    (line,) = lines(done.stderr)
    assert (done.rc, done.stdout) == (1, "")
    assert line.startswith("error: at least one CDI specification directory must be specified")


def test_list_of_no_directory_is_empty(ctk: Ctk) -> None:
    done = ctk("cdi", "list", "--spec-dir", "/nowhere")
    assert (done.rc, done.stdout, lines(done.stderr)) == (0, "", ["info: Found 0 CDI devices"])


def test_a_word_that_is_no_flag_is_told_of(ctk: Ctk) -> None:
    done = ctk("cdi", "list", "gpu\n", "--spec-dir", "/nowhere")
    assert (done.rc, lines(done.stderr)[0]) == (0, "warning: ignoring the argument `gpu\\n`: it is no flag")


# -- transform root ------------------------------------------------------------------------------------------------


def transform(ctk: Ctk, *words: object) -> proc.Result:
    return ctk("cdi", "transform", "root", *words)


def test_transform_reads_a_file_and_writes_stdout(ctk: Ctk, tmp_path: Path) -> None:
    done = transform(ctk, "--from", "/", "--to", "/run/nvidia/driver", "--input", NODES / "a100.cdi.yaml")
    assert (done.rc, done.stderr) == (0, "")
    before, after = yaml.safe_load((NODES / "a100.cdi.yaml").read_text()), yaml.safe_load(done.stdout)
    assert after["cdiVersion"] == before["cdiVersion"]
    for old, new in zip(before["containerEdits"]["mounts"], after["containerEdits"]["mounts"]):
        assert new == {**old, "hostPath": f"/run/nvidia/driver{old['hostPath']}"}
    node = after["devices"][0]["containerEdits"]["deviceNodes"][0]
    assert (node["path"], node["hostPath"]) == ("/dev/nvidia0", "/run/nvidia/driver/dev/nvidia0")
    assert after["containerEdits"]["hooks"][0]["path"].startswith("/run/nvidia/driver/")


@pytest.mark.parametrize("words", [(), ("--from", "/a", "--to", "/a"), ("-to", "/")], ids=str)
def test_transform_to_the_same_root_keeps_the_text(ctk: Ctk, words: tuple[str, ...]) -> None:
    for name in ("a100", "a100-mig", "tegra"):
        done = transform(ctk, *words, "--input", NODES / f"{name}.cdi.yaml")
        assert done.stdout == (NODES / f"{name}.cdi.yaml").read_text()


@pytest.mark.parametrize("text", [YAML, JSON], ids=["YAML", "JSON"])
def test_transform_reads_stdin(ctk: Ctk, tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    kept = os.dup(0)
    with (tmp_path / "x").open() as source:
        os.dup2(source.fileno(), 0)
    try:
        done = transform(ctk, "--from", "/a", "--to", "/b")
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    assert (done.rc, done.stdout, done.stderr) == (0, YAML, "")


def test_transform_writes_the_form_of_the_file_s_name(ctk: Ctk, tmp_path: Path) -> None:
    (tmp_path / "in").write_text(YAML)
    for name, real, content in (("a", "a.yaml", YAML), ("b.yml", "b.yml.yaml", YAML), ("c.json", "c.json", JSON)):
        done = transform(ctk, "--input", "in", "--output", name)
        assert (done.rc, done.stdout, done.stderr) == (0, "", "")
        assert (tmp_path / real).read_text() == content


NODE = "deviceNodes: [{path: /dev/x}]"
INPUTS: dict[str, tuple[str, str]] = {
    "unknown field": (YAML + "foo: 1\n", "foo"),
    "unknown field of a device": (YAML.replace("env:", "envs:"), "envs"),
    "key twice": (YAML + "kind: a.com/b\n", "twice"),
    "not YAML": ("a: [", "CDI spec in"),
    "empty": ("", "CDI spec in"),
    "version too low": (f"--- {{cdiVersion: 0.3.0, kind: a.com/b, devices: [{{name: c, containerEdits: {{{NODE}}}}}]}}",
                        "the spec version must be at least v0.5.0"),
    "not valid": (YAML.replace("A=1", "A"), "env"),
    "no devices": ("--- {cdiVersion: 0.3.0, kind: a.com/b, devices: []}", "no devices"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "why"), INPUTS.values(), ids=INPUTS)
def test_transform_of_a_bad_specification_is_one_line(ctk: Ctk, tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "in").write_text(text)
    (tmp_path / "out.yaml").write_text("as it was")
    done = transform(ctk, "--input", "in", "--output", "out.yaml", "--from", "/", "--to", "/d")
    (line,) = lines(done.stderr)
    assert (done.rc, done.stdout) == (1, "")
    assert why in line
    assert (tmp_path / "out.yaml").read_text() == "as it was"


def test_transform_of_no_file(ctk: Ctk, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, why in (("gone", "ENOENT"), ("fifo", "not a regular file"), (".", "not a regular file")):
        done = transform(ctk, "--input", name)
        assert (done.rc, len(lines(done.stderr))) == (1, 1)
        assert why in done.stderr


# -- several documents -----------------------------------------------------------------------------------------------

KINDS = ("nvidia.com/gpu", "nvidia.com/gpu.coherent", "nvidia.com/gpu.noncoherent")


def split(*kinds: str) -> str:
    """As `cdi generate` writes them to stdout."""
    text = YAML.replace("0.5.0", "0.6.0").replace("env:", "deviceNodes:").replace("- A=1", "- path: /dev/x")
    return "".join(text.replace("nvidia.com/gpu", kind) for kind in kinds)


def test_transform_changes_all_documents(ctk: Ctk, tmp_path: Path) -> None:
    (tmp_path / "in").write_text(split(*KINDS))
    done = transform(ctk, "--input", "in", "--to", "/d")
    assert (done.rc, done.stderr) == (0, "")
    documents = list(yaml.safe_load_all(done.stdout))
    assert [each["kind"] for each in documents] == list(KINDS)
    node = {"path": "/dev/x", "hostPath": "/d/dev/x"}
    assert [each["devices"][0]["containerEdits"] for each in documents] == [{"deviceNodes": [node]}] * 3


@pytest.mark.parametrize(("output", "names"), [
    ("o.yaml", ["o.yaml", "o.coherent.yaml", "o.noncoherent.yaml"]), ("o", ["o.yaml", "o.coherent.yaml",
    "o.noncoherent.yaml"]), ("o.json", ["o.json", "o.coherent.json", "o.noncoherent.json"])])  # fmt: skip
def test_transform_writes_each_document_to_a_file_of_its_own(
    ctk: Ctk, tmp_path: Path, output: str, names: list[str]
) -> None:
    (tmp_path / "in").write_text(split(*KINDS))
    done = transform(ctk, "--input", "in", "--to", "/d", "--output", f"out/{output}")
    assert (done.rc, done.stdout, done.stderr) == (0, "", "")
    assert sorted(os.listdir(tmp_path / "out")) == sorted(names)
    kinds = [yaml.safe_load((tmp_path / "out" / name).read_text())["kind"] for name in names]
    assert kinds == list(KINDS)


@pytest.mark.parametrize("kinds", [(KINDS[0], KINDS[0]), (KINDS[0], "a.org/b"), (KINDS[1], KINDS[0])], ids=str)
def test_documents_that_cannot_be_told_apart_by_a_name_are_one_error(
    ctk: Ctk, tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    (tmp_path / "in").write_text(split(*kinds))
    done = transform(ctk, "--input", "in", "--to", "/d", "--output", "out/x.yaml")
    (line,) = lines(done.stderr)
    assert (done.rc, f"no file name for {kinds[1]} beside {kinds[0]}" in line) == (1, True)
    assert not (tmp_path / "out").exists()
    assert transform(ctk, "--input", "in", "--to", "/d").rc == 0


def test_one_bad_document_keeps_all_from_being_written(ctk: Ctk, tmp_path: Path) -> None:
    (tmp_path / "in").write_text(split(*KINDS).replace("gpu.noncoherent", "gpu.noncoherent-"))
    for words in ((), ("--output", "out/x.yaml")):
        done = transform(ctk, "--input", "in", "--to", "/d", *words)
        assert (done.rc, done.stdout, len(lines(done.stderr))) == (1, "", 1)
    assert not (tmp_path / "out").exists()
