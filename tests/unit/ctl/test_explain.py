"""`nvoci explain`: what it says of containers that get no GPU, or cannot; how its document becomes lines. What nodes
give is in tests/simnode, what containers really got in tests/e2e."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib import jail, proc, session
from lib.bundle import CAPS, STANDARD_ENV, make_bundle
from unit.prestart.chosentools import a_node, asked, control, without
from unit.prestart.prestarttools import needs_root

from nvoci import jsonfile, log
from nvoci.ctl import explain_data, explain_node, explain_notes, explain_text
from nvoci.discover import inventory, look
from nvoci.discover.model import Found
from nvoci.errors import HookError, printable
from nvoci.prestart.choose import Chosen, MissingNode, choose
from nvoci.prestart.request import VISIBLE_DEVICES

Invoke = Callable[..., proc.Result]
Json = dict[str, Any]
ENVIRONMENT = "accept-nvidia-visible-devices-envvar-when-unprivileged"
VOLUMES = "accept-nvidia-visible-devices-as-volume-mounts"
DEVICES = "/var/run/nvidia-container-devices"
HOOK = "import sys; sys.path.insert(0, sys.argv.pop(1)); from nvoci.prestart.main import main; main()"


class Case:
    """A bundle and a config.toml."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle = folder / "bundle"
        self.config = folder / "config.toml"
        (folder / "rootfs").mkdir()

    def make(self, *env: str, config: str = "", **more: Any) -> None:
        make_bundle(self.bundle, self.folder / "rootfs", ["/bin/true"], env=[*STANDARD_ENV, *env], **more)
        self.config.write_text(config)
        self.config.chmod(0o644)

    def words(self, *more: str) -> list[str]:
        return ["explain", "--bundle", str(self.bundle), "--config", str(self.config), *more]

    def hook(self) -> str:
        """What the hook itself says of it, and would do nothing."""
        state = {"ociVersion": "1.0.2", "id": "x", "status": "created", "pid": 0, "bundle": str(self.bundle)}
        command = [*jail.prefix("mount -t tmpfs run /run"), session.PYTHON, "-ISB", "-c", HOOK, session.HOOKS]
        command += ["-config", self.config, "-dry-run", "prestart"]
        result = proc.run(command, stdin=json.dumps(state).encode(), timeout=30)
        [(level, text)] = [note for line in result.stderr.splitlines() if (note := explain_notes.parse(line))]
        assert (result.rc, level) == (1, "error")
        return text


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def mounts(*names: str) -> list[Json]:
    return [{"source": "/dev/null", "destination": f"{DEVICES}/{name}", "type": "bind"} for name in names]


MOUNTS_NOT_HEARD = (
    f"{VISIBLE_DEVICES} is not set, and mounts below {DEVICES} are not heard: {VOLUMES} = false (default)"
)
NOTHING: dict[str, tuple[list[str], str, Json, str]] = {
    "nothing": ([], "", {}, f"{VISIBLE_DEVICES} is not set"),
    "empty": ([f"{VISIBLE_DEVICES}= , "], "", {}, f"{VISIBLE_DEVICES} is empty"),
    "void": ([f"{VISIBLE_DEVICES}=0,void"], "", {}, f"{VISIBLE_DEVICES} has `void`"),
    "variables are not heard": ([f"{VISIBLE_DEVICES}=0"], f"{ENVIRONMENT} = false", {},
                                f"variables of an unprivileged container are not heard: {ENVIRONMENT} = false"),
    "nor an old image": (["CUDA_VERSION=9.0"], f"{ENVIRONMENT} = false", {},
                         f"variables of an unprivileged container are not heard: {ENVIRONMENT} = false"),
    "mounts are not heard": ([], "", {"mounts": mounts("0")}, MOUNTS_NOT_HEARD),
    "another variable": (["GPUS=void", f"{VISIBLE_DEVICES}=0"], 'swarm-resource = "GPUS"', {}, "GPUS has `void`"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTHING)
def test_a_container_that_asks_for_nothing_is_one_line(case: Case, nvoci: Invoke, name: str) -> None:
    env, config, more, reason = NOTHING[name]
    case.make(*env, config=config, **more)
    result = nvoci(*case.words())
    assert (result.rc, result.stdout, result.stderr) == (0, f"asks for no GPU: {reason}\n", "")
    document = json.loads(nvoci(*case.words("--json")).stdout)
    assert (document["result"], document["reason"], document["error"]) == ("nothing", reason, None)


FAILS: dict[str, tuple[list[str], str, Json, str]] = {
    "a CDI device": ([f"{VISIBLE_DEVICES}=nvidia.com/gpu=0"], "", {}, "mode cdi: calling this hook directly"),
    "another mode": ([f"{VISIBLE_DEVICES}=0"], '[nvidia-container-runtime]\nmode = "csv"', {}, "mode csv: "),
    "a capability": ([f"{VISIBLE_DEVICES}=0", "NVIDIA_DRIVER_CAPABILITIES=compute,\x1b[2J"], "", {},
                     "unsupported capabilities found in 'compute,\\x1b[2J' (allowed 'compute')"),
    "MIG without privileges": ([f"{VISIBLE_DEVICES}=0", "NVIDIA_MIG_CONFIG_DEVICES=all"], "", {},
                               "cannot set MIG_CONFIG_DEVICES in non privileged container"),
    "an IMEX channel": ([f"{VISIBLE_DEVICES}=0", "NVIDIA_IMEX_CHANNELS=x\n"], "", {},
                        "error parsing IMEX info: unsupported IMEX channel value: x"),
    "a variable without =": (["NVIDIA"], "", {}, "invalid environment variable: NVIDIA"),
    "a broken config.toml": ([f"{VISIBLE_DEVICES}=0"], "[", {}, "not valid TOML"),
    "a wrong type": ([f"{VISIBLE_DEVICES}=0"], "disable-require = 1", {}, "`disable-require` is a number"),
    "an old image's version": (["CUDA_VERSION=new"], "", {}, "invalid CUDA version: CUDA_VERSION=new"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILS)
def test_what_would_fail_is_one_line_with_the_hook_s_own_message(case: Case, nvoci: Invoke, name: str) -> None:
    env, config, more, message = FAILS[name]
    case.make(*env, config=config, **more)
    result = nvoci(*case.words())
    assert (result.rc, result.stderr) == (1, "")
    assert result.stdout == f"fails: {case.hook()}\n"
    assert message in result.stdout
    document = json.loads(nvoci(*case.words("--json")).stdout)
    error = document["error"]
    assert (document["result"], f"fails: {HookError(error['message'], error['hint']).line()}\n") == (
        "fails", result.stdout,
    )  # fmt: skip


def test_without_a_config_json_there_is_nothing_to_explain(case: Case, nvoci: Invoke) -> None:
    for words in ([], ["--json"]):
        result = nvoci(*case.words(*words))
        assert (result.rc, result.stdout) == (1, "")
        assert result.stderr == f"nvoci: read config {case.bundle}/config.json: ENOENT\n"
    assert nvoci("explain").rc == 2


def test_the_configuration_is_read_and_not_compiled(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(jsonfile, "write_atomic", lambda path, *more: made.append(path))
    monkeypatch.setattr(explain_data.compile, "SETTLED_SECONDS", 0.0)
    case.make(f"{VISIBLE_DEVICES}=nvidia.com/gpu=0", config="bogus = 1\n[nvidia-container-cli]\nno-cgroups = true\n")
    document = explain_data.explain(str(case.bundle), str(case.config))
    config = document["config"]
    assert (config["file"], config["named_by"], config["there"]) == (str(case.config), "-config", True)
    assert [row["key"] for row in config["settings"] if not row["default"]] == ["nvidia-container-cli.no-cgroups"]
    assert config["unknown_keys"] == ["bogus"]
    [note] = document["notes"]
    assert (note["level"], note["text"]) == (
        "warning", f"read configuration {case.config}: unknown: `bogus`: ignored",
    )  # fmt: skip
    assert made == []


def test_the_document_has_the_keys_that_are_documented(case: Case) -> None:
    case.make()
    text = (session.CHECKOUT / "docs/explain.md").read_text().partition("## JSON")[2]
    documented = re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)
    assert sorted(documented) == sorted(explain_data.explain(str(case.bundle)))


def test_every_key_that_decides_is_one_of_config_toml() -> None:
    assert explain_data.KEYS.keys() <= explain_data.compile.KEYS.keys()


@pytest.mark.parametrize("text", ["\x1b[2J", "\u202e0", "a\nfails: b", "x" * 60_000, "\ud800"], ids=ascii)
def test_whatever_an_image_says_is_printable(case: Case, nvoci: Invoke, text: str) -> None:
    env = [f"{VISIBLE_DEVICES}={text}", f"NVIDIA_REQUIRE_X={text}", f"NVIDIA_DRIVER_CAPABILITIES={text}"]
    case.make(*env, caps=[*CAPS, "CAP_SYS_ADMIN"])
    for words in ([], ["--json"]):
        result = nvoci(*case.words(*words))
        assert result.rc == 1
        assert all(line == printable(line) for line in result.stdout.splitlines())
        assert words or result.stdout.count("\n") == 1


# -- what the hook's modules log --------------------------------------------------------------------------------------


def test_log_lines_become_notes_once_and_stderr_stays_empty(capfd: pytest.CaptureFixture[str]) -> None:
    with explain_notes.collected() as notes:
        log.warning('a "mount" names no device', mount="/a b", count=2)
        log.warning('a "mount" names no device', mount="/a b", count=2)
        log.debug("nobody wants to know")
        log.info("Auto-detected mode as 'legacy'")
    log.info("not any more")
    assert notes == [("warning", 'a "mount" names no device (mount /a b, count 2)')]
    assert capfd.readouterr().err == ""
    log.warning("as before")
    assert "as before" in capfd.readouterr().err


# -- the node ---------------------------------------------------------------------------------------------------------


class Node:
    """In place of the real one: `kept` in the inventory, `found` by a look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: Found | None = a_node(2)
        self.found = a_node(3)
        self.looked: list[bool] = []
        monkeypatch.setattr(inventory, "current", self._current)
        monkeypatch.setattr(explain_node, "look", self._look)

    def _current(self, *words: object) -> inventory.Loaded:
        mark: Any = None
        kept = None if self.kept is None else inventory.Inventory(mark, self.kept)
        return inventory.Loaded(kept, "" if kept else "ENOENT")

    def _look(self, wanted: Any) -> Found:
        self.looked.append(wanted.load_kmods)
        return self.found


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(monkeypatch)


def gpus(seen: explain_node.Seen) -> tuple[str, int]:
    return seen.source, len(seen.found.gpus)


def test_an_inventory_that_holds_is_used(node: Node) -> None:
    assert explain_node.use(asked("0"), gpus) == ("inventory", 2)
    assert explain_node.use(asked("mig-x"), gpus) == ("look", 3)
    node.kept = None
    assert explain_node.use(asked("0", load_kmods=True), gpus) == ("look", 3)
    assert node.looked == [False, False]


@pytest.mark.parametrize("error", [inventory.Stale("gone"), ValueError("malformed"), MissingNode("x")], ids=repr)
def test_what_proves_wrong_is_looked_at_once(node: Node, error: Exception) -> None:
    def action(seen: explain_node.Seen) -> str:
        if seen.source == explain_node.INVENTORY:
            raise error
        return seen.reason

    assert explain_node.use(asked("0", load_kmods=True), action) == str(error)

    def never(seen: explain_node.Seen) -> str:
        raise inventory.Stale("gone")

    with pytest.raises(HookError, match="gone, though it was found a moment ago"):
        explain_node.use(asked("0"), never)


def test_what_the_hook_would_load_or_make_is_said(node: Node) -> None:
    seen: list[explain_node.Seen] = []

    def action(one: explain_node.Seen) -> Chosen:
        seen.append(one)
        return choose(one.found, asked("0"))

    node.kept = node.found = without("/dev/nvidiactl")
    for load_kmods, said in ((True, "load-kmods"), (False, "")):
        with pytest.raises(MissingNode):
            explain_node.use(asked("0", load_kmods=load_kmods), action)
        assert said in seen[-1].note
        assert bool(seen[-1].note) is load_kmods
    node.kept = node.found = a_node(0)
    assert explain_node.use(asked(load_kmods=True), lambda one: one).note
    assert node.looked == [False, False]


def test_words_are_told_apart(node: Node) -> None:
    rows = explain_node.selected(a_node(2, migs=2), ["1", "1:1"])
    assert [(row["word"], [gpu["index"] for gpu in row["gpus"]]) for row in rows] == [("1", [1]), ("1:1", [1])]
    assert [[mig["name"] for mig in row["mig_devices"]] for row in rows] == [[], ["1:1"]]


@needs_root
def test_what_is_missed_is_told_by_the_rules_of_what_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROC", "SYS"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(look, name, str(tmp_path / name))
    own = [mount for mount in a_node().mounts if mount.kind == "library"]
    nodes = [*control("nvidiactl"), *[each for each in a_node().device_nodes if each.kind == "gpu"]]
    found = a_node(mounts=own, device_nodes=nodes)
    missed = {}
    for capabilities in ("utility", "compute", "display,utility,compat32"):
        wanted = asked("0", capabilities=capabilities, driver_root=str(tmp_path))
        with explain_notes.collected():
            rows, directories = explain_node.not_found(choose(found, wanted), wanted)
        missed[capabilities] = {(row["kind"], row["name"]) for row in rows}
        assert all(each["state"] in ("searched", "not there") for each in directories)
    utility = {("program", "nvidia-smi"), ("socket", "nvidia-persistenced/socket"),
               ("library", "libnvidia-cfg.so")}  # fmt: skip
    compute = {("device", "/dev/nvidia-uvm"), ("directory", "/tmp/nvidia-mps"), ("program", "nvidia-cuda-mps-server"),
               ("library", "libnvidia-opencl.so")}  # fmt: skip
    assert utility <= missed["utility"]
    assert not missed["utility"] & compute
    assert compute <= missed["compute"]
    assert not missed["compute"] & utility
    assert {("device", "/dev/nvidia-modeset"), ("library32", "libnvidia-ml.so")} <= missed["display,utility,compat32"]
    assert ("library", "libnvidia-ml.so") not in missed["utility"]
    assert ("library", "libcuda.so") not in missed["compute"]


# -- lines ------------------------------------------------------------------------------------------------------------


def document(**more: Any) -> Json:
    """The least that is printed."""
    empty = ("selected", "device_nodes", "device_rules", "mounts", "generated", "links", "not_found",
             "library_directories", "notes")  # fmt: skip
    return {
        "result": "injects", "bundle": "/b", "rootfs": {"path": "/r", "there": True},
        "config": {"file": "/c", "named_by": "", "there": True, "settings": [], "unknown_keys": []},
        "request": {"reasons": [], "privileged": False},
        "mode": {"mode": "legacy", "because": "detected"}, "requirements": {"result": "none", "because": ""},
        "node": {"source": "inventory", "inventory": "/run/i", "reason": "", "problems": [],
                 "driver": {"version": "550", "cuda_version": [12, 4], "root": "/"}},
        "cuda_compat": {"mode": "ldconfig", "used": True, "directory": "/usr/local/cuda-12/compat", "files": []},
        "library_cache": {"engine": "builtin", "directories": ["/usr/lib64"]},
        **{key: [] for key in empty}, **more,
    }  # fmt: skip


def test_the_least() -> None:
    assert explain_text.lines(document()) == [
        "bundle         /b",
        "root           /r",
        "config         /c",
        "mode           legacy: detected",
        "node           /run/i holds",
        "driver         550, CUDA 12.4, in /",
        "devices        none: the driver without a GPU",
        "device nodes   none",
        "CUDA compat    ldconfig: used: /usr/local/cuda-12/compat is searched first",
        "library cache  by the engine builtin, with /usr/lib64",
    ]


def file(kind: str, host: str, there: str | None, *purpose: str) -> Json:
    return {"kind": kind, "host_path": host, "container_path": there, "options": ["ro"], "for": list(purpose)}


def test_files_that_go_the_same_way_are_told_together() -> None:
    rows = [
        file("library", "/lib/a", "/usr/lib/a", "compute"), file("library", "/lib/b", "/usr/lib/b", "compute"),
        file("library", "/lib/c", None, "utility"), file("program", "/usr/bin/x", "/usr/bin/x"),
        file("program", "/usr/bin/y", "/usr/bin/z"),
    ]  # fmt: skip
    shown = explain_text.lines(document(mounts=rows))
    assert shown[8:15] == [
        "programs       /usr/bin (ro)",
        "                 x y -> z",
        "libraries      for compute: /lib -> /usr/lib (ro)",
        "                 a b",
        "               for utility: /lib -> the library directory of its root (ro)",
        "                 c",
        "CUDA compat    ldconfig: used: /usr/local/cuda-12/compat is searched first",
    ]


def test_lines_are_no_longer_than_100_columns_where_blanks_allow() -> None:
    names = [file("library", f"/lib/libnvidia-something-{n}.so.550", f"/lib/libnvidia-something-{n}.so.550")
             for n in range(40)]  # fmt: skip
    rules = [f"c 236:{n} rw" for n in range(1000)]
    reasons = [{"what": "devices: " + "x" * 5000, "because": VISIBLE_DEVICES}]
    shown = explain_text.lines(
        document(mounts=names, device_rules=rules, request={"reasons": reasons, "privileged": True})
    )
    assert [line for line in shown if len(line) > 100 and "xxx" not in line] == []
    assert max(map(len, shown)) < 400
    assert "device rules   1000 without a node of their own, from c 236:0 rw to c 236:999 rw" in shown
    assert "privileged     CAP_SYS_ADMIN is in the bounding set" in shown


def test_places_without_the_file_are_told_with_it() -> None:
    missing = [
        {"kind": "library", "name": "liba.so", "looked": []},
        {"kind": "library", "name": "libb.so", "looked": [{"where": "/lib/libb.so.1", "outcome": "no library"}]},
        {"kind": "library32", "name": "liba.so", "looked": []},
        {"kind": "program", "name": "x", "looked": [{"where": "/bin/x", "outcome": "not there"},
                                                    {"where": "/sbin/x", "outcome": "not executable"}]},
    ]  # fmt: skip
    directories = [{"path": "/lib", "state": "searched"}, {"path": "/lib64", "state": "not there"}]
    shown = explain_text.lines(document(not_found=missing, library_directories=directories))
    assert shown[10:] == [
        "not found      libraries: liba",
        "               32-bit libraries: none at all",
        "                 in /lib",
        "               library libb.so:",
        "                 /lib/libb.so.1: no library",
        "               program x:",
        "                 not there: /bin/x",
        "                 /sbin/x: not executable",
    ]


def test_a_mount_of_any_kind_has_a_label() -> None:
    kinds = {"program", "library", "library32", "cuda-compat", "firmware", "socket", "procfs", "directory"}
    assert explain_text._KINDS.keys() == kinds
