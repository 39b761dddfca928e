"""Values, what is read of the host, and the operations that are made of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib import mignode
from lib.mignode import CI, GI, MAJOR, MigNode

from nvoci.errors import HookError
from nvoci.hook import migcaps, table
from nvoci.hook import mount_mig_devices as hook
from nvoci.hook.container import HOST
from nvoci.hook.options import parse_hook
from nvoci.hook.settings import Settings
from nvoci.linux import procfs
from tests.kernel.namespaced import isolated, sh

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting and device nodes need root")
HOOK = table.HOOKS["mount-mig-devices"]
_NOWHERE: Any = None
CONTAINER: Any = type("Container", (), {"place": HOST})


def prepared(*words: str) -> hook.Request:
    return hook.prepare(parse_hook(HOOK, list(words)), Settings())


# -- values -----------------------------------------------------------------------------------------------------------

GOOD: dict[str, tuple[list[str], list[str]]] = {
    "an instance": (["--gpu-instance", "0:1"], ["gpu0/mig/gi1/access"]),
    "both": (
        ["--gpu-instance=0:1", "--compute-instance=0:1:0"],
        ["gpu0/mig/gi1/access", "gpu0/mig/gi1/ci0/access"],
    ),
    "several": (["--gpu-instance", "0:1, 7:13", "-gpu-instance", "10:2"],
                ["gpu0/mig/gi1/access", "gpu7/mig/gi13/access", "gpu10/mig/gi2/access"]),
    "twice": (["--gpu-instance", "0:1,0:1"], ["gpu0/mig/gi1/access"]),
    "a compute instance alone": (["--compute-instance", "31:14:7"], ["gpu31/mig/gi14/ci7/access"]),
    "management": (["--config"], []),
}  # fmt: skip


@pytest.mark.parametrize(("words", "paths"), GOOD.values(), ids=GOOD)
def test_what_is_asked_for(words: list[str], paths: list[str]) -> None:
    request = prepared(*words)
    assert [path.decode() for path in request.paths] == [f"driver/nvidia/capabilities/{path}" for path in paths]
    assert (request.root, request.allow, request.gpus) == ("/", True, None)


def test_the_other_options() -> None:
    request = prepared("--monitor", "--config", "--gpu", "3,0", "--driver-root", "/run/nvidia/driver", "--no-cgroups")
    assert (request.kinds, request.gpus) == (["config", "monitor"], [3, 0])
    assert (request.root, request.allow) == ("/run/nvidia/driver", False)


BAD: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "no instance"),
    "empty": (["--gpu-instance", ""], "not MINOR:GI"),
    "an empty one of two": (["--gpu-instance", "0:1,"], "not MINOR:GI"),
    "no colon": (["--gpu-instance", "01"], "not MINOR:GI"),
    "too many": (["--gpu-instance", "0:1:0"], "not MINOR:GI"),
    "too few": (["--compute-instance", "0:1"], "not MINOR:GI:CI"),
    "a path": (["--gpu-instance", "0:1/../../config"], "not MINOR:GI"),
    "dots": (["--gpu-instance", "..:1"], "not MINOR:GI"),
    "a sign": (["--gpu-instance", "0:-1"], "not MINOR:GI"),
    "a plus": (["--gpu-instance", "0:+1"], "not MINOR:GI"),
    "a space": (["--gpu-instance", "0: 1"], "not MINOR:GI"),
    "an underscore": (["--gpu-instance", "0:1_0"], "not MINOR:GI"),
    "a leading zero": (["--gpu-instance", "0:01"], "not MINOR:GI"),
    "hexadecimal": (["--gpu-instance", "0:0x1"], "not MINOR:GI"),
    "other digits": (["--gpu-instance", "0:\u0661"], "not MINOR:GI"),
    "superscript": (["--gpu-instance", "0:²"], "not MINOR:GI"),
    "large": (["--gpu-instance", "0:65536"], "not MINOR:GI"),
    "very large": (["--gpu-instance", "0:" + "9" * 5000], "not MINOR:GI"),
    "control characters": (["--gpu-instance", "0:\x1b[2J"], "0:\\x1b[2J"),
    "many": (["--gpu-instance", ",".join(f"0:{i}" for i in range(201))], "201 instances: too many"),
    "a GPU alone": (["--gpu", "0"], "no instance"),
    "a GPU beside an instance": (["--gpu", "0", "--gpu-instance", "0:1"], "--gpu without"),
    "a GPU by its UUID": (["--config", "--gpu", "GPU-1"], "not MINOR"),
    "a relative root": (["--config", "--driver-root", "run"], "not an absolute path"),
    "an empty root": (["--config", "--driver-root", ""], "not an absolute path"),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD)
def test_any_other_value_is_refused_before_anything_is_looked_at(words: list[str], message: str) -> None:
    with pytest.raises(HookError) as caught:
        prepared(*words)
    assert caught.value.message.startswith("mount-mig-devices: ")
    assert message in caught.value.line()
    assert len(caught.value.line()) < 300


NUMBERS = {b"0": 0, b"7": 7, b"1048575": 1048575, b"": None, b"00": None, b"-1": None, b"12345678": None, b" 1": None,
           b"1\n": None, b"x": None, "²".encode(): None}  # fmt: skip


@pytest.mark.parametrize(("text", "value"), NUMBERS.items(), ids=map(repr, NUMBERS))
def test_a_number_is_as_the_kernel_writes_it(text: bytes, value: int | None) -> None:
    assert migcaps.number(text) == value


DEVICES: dict[str, tuple[str, int | None]] = {
    "there": ("Character devices:\n  1 mem\n236 nvidia-caps\n\nBlock devices:\n259 blkext\n", 236),
    "not there": ("Character devices:\n195 nvidia\n234 nvidia-caps-imex-channels\n\nBlock devices:\n", None),
    "a block device": ("Character devices:\n\nBlock devices:\n236 nvidia-caps\n", None),
    "no number": ("Character devices:\nabc nvidia-caps\n", None),
    "empty": ("", None),
}


@pytest.mark.parametrize(("text", "major"), DEVICES.values(), ids=DEVICES)
def test_the_major_number_is_that_of_the_character_device(text: str, major: int | None) -> None:
    assert migcaps.major_of(text.encode()) == major


TABLES: dict[str, tuple[str, list[str], str]] = {
    "known": (
        "config 1\nmonitor 2\ngpu0/gi1/access 12\ngpu0/gi1/ci0/access 13\n",
        ["mig/config 1", "mig/monitor 2", "gpu0/mig/gi1/access 12", "gpu0/mig/gi1/ci0/access 13"],
        "",
    ),
    "no newline at the end": ("gpu1/gi2/access 3", ["gpu1/mig/gi2/access 3"], ""),
    "of other GPUs": ("gpu2/gi0/access 3\ngpu10/gi0/access 4\nconfig 1\n", ["mig/config 1"], ""),
    "an unknown capability": ("config 1\nfabric 7\nmonitor 2\n", ["mig/config 1", "mig/monitor 2"], ""),
    "another order": ("gi0/gpu0/access 3\nconfig 1\n", ["mig/config 1"], ""),
    "dots of another": ("../gpu0/access 3\nconfig 1\n", ["mig/config 1"], ""),
    "no number": ("config 1\nmonitor x\ngpu0/gi0/access 3\n", ["mig/config 1"], "line `monitor x`"),
    "no minor": ("config\nmonitor 2\n", [], "line `config`"),
    "a large number": ("config 1048576000\n", [], "line `config 1048576000`"),
    "dots": ("gpu0/../access 3\nconfig 1\n", [], "line `gpu0/../access 3`"),
    "one part more": ("gpu0/gi0/ci0/x/access 3\nconfig 1\n", [], "gi0/ci0/x/"),
    "one part less": ("gpu0/access 3\nconfig 1\n", [], "gpu0/access"),
    "another file": ("gpu0/gi0/other 3\nconfig 1\n", [], "gpu0/gi0/other"),
    "a GPU alone": ("gpu0 3\n", [], "line `gpu0 3`"),
    "a sign": ("gpu-1/gi0/access 3\nconfig 1\n", [], "gpu-1"),
    "more than a number": ("gpu1x/gi0/access 3\n", [], "gpu1x"),
    "a leading zero": ("gpu0/gi01/access 3\n", [], "gi01"),
    "control characters": ("gpu0/\x1b[2J 3\n", [], "gpu0/\\x1b[2J"),
    "empty": ("", [], ""),
}


@pytest.mark.parametrize(("table", "wanted", "message"), TABLES.values(), ids=TABLES)
def test_the_table_of_minors(table: str, wanted: list[str], message: str) -> None:
    """Of GPUs 0 and 1; what stands before a bad line is given."""
    found, said = [], ""
    try:
        for path, gpu, minor in migcaps.entries(table.encode(), range(2)):
            assert (gpu is None) is path.startswith(migcaps.CAPABILITIES + b"/mig/")
            found.append(f"{path.decode()} {minor}")
    except HookError as e:
        said = e.line()
        assert said.startswith("read /proc/driver/nvidia-caps/mig-minors: line `")
    assert found == [f"driver/nvidia/capabilities/{line}" for line in wanted]
    assert (message in said, bool(message)) == (True, bool(said))


def test_access_files_go_by_the_minor_of_the_gpu() -> None:
    top = b"driver/nvidia/capabilities/gpu3/mig/gi5"
    assert migcaps.access_paths(3, 5, 2) == [top + b"/access", top + b"/ci2/access"]
    with pytest.raises(HookError, match="no minor number"):
        migcaps.access_paths(None, 5, 2)


# -- the host ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path) -> MigNode:
    return mignode.make(tmp_path / "node")


def on(node: MigNode, body: Callable[[], Any]) -> Any:
    """body() on the simulated host; the line of its HookError."""

    def run() -> Any:
        sh(node.setup())
        procfs._handle = -1  # the parent's handle is of its own namespace
        try:
            return body()
        except HookError as e:
            return e.line()

    return isolated(run)


def bundle(folder: Path, process: str) -> Any:
    """The state of a container with this `process` in its config.json."""
    path = folder / "config.json"
    path.write_text(f'{{"ociVersion": "1.0.2", "root": {{"path": "r"}}, "process": {process or "{}"}}}')
    path.chmod(0o644)
    return type("State", (), {"bundle": str(folder)})


def steps(node: MigNode, *words: str, process: str = "") -> Any:
    """What the hook takes of the host for these words, or the line of its error."""
    state, place = bundle(node.root.parent, process), _NOWHERE

    def run() -> Any:
        (step,) = prepared(*words, "--driver-root", str(node.root)).steps(state, place)
        name, plan, taken = step
        assert (name, plan, hook.DEVICES) == ("mount-mig-devices", hook.plan, True)
        return [operation.describe() for operation in plan(taken, CONTAINER)]

    return on(node, run)


@pytest.mark.kernel
@needs_root
@pytest.mark.parametrize("mark", ["with nodes", "without nodes", "no cgroups"])
def test_the_plan_is_a_file_and_its_node_for_each_instance(node: MigNode, mark: str) -> None:
    if mark == "without nodes":
        node.without_nodes()
    words = ["--gpu-instance", GI, "--compute-instance", CI, *(["--no-cgroups"] if mark == "no cgroups" else [])]
    wanted = []
    for each in (GI, CI):
        wanted.append(f"mount the host's (ro,nosuid,nodev,noexec) on /{mignode.access(each)}")
        path = f"/{mignode.node(each)}"
        rule = "" if mark == "no cgroups" else ", and allow rw"
        if mark != "without nodes":
            wanted.append(f"mount {path} (c {MAJOR}:{mignode.MINORS[each]}) on {path}{rule}")
    assert steps(node, *words) == wanted


MIG = f"{mignode.CAPABILITIES}/gpu0/mig"
FILE = mignode.access(GI)
NODE = mignode.node(GI)
WRONG: dict[str, tuple[str, str]] = {
    "no instance": (f"rm {FILE}", "ENOENT (was the instance destroyed?"),
    "no driver": ("rm -r proc/driver/nvidia", "ENOENT (load the driver"),
    "a directory": (f"rm {FILE}; mkdir {FILE}", "is not a regular file"),
    "a FIFO": (f"rm {FILE}; mkfifo {FILE}", "is not a regular file"),
    "a link": (f"rm {FILE}; ln -s /etc/passwd {FILE}", "is not a regular file"),
    "a file in the way": (f"rm -r {MIG}; touch {MIG}", "ENOTDIR"),
    "endless": (f"truncate -s 1T {FILE}", "EFBIG"),
    "empty": (f": >{FILE}", "no DeviceFileMinor (update the driver"),
    "another key": (f"echo 'DeviceFileMinors: 1' >{FILE}", "no DeviceFileMinor"),
    "a minor that is none": (f"echo 'DeviceFileMinor: -1' >{FILE}", "no DeviceFileMinor"),
    "a minor that is too large": (f"echo 'DeviceFileMinor: 1048576' >{FILE}", "dev/nvidia-caps/nvidia-cap10"),
    "no node": (f"rm {NODE}", "nvidia-cap12: ENOENT"),
    "another node": (f"rm {NODE}; mknod {NODE} c 236 13", "is c 236:13, should be c 236:12 (remove it"),
    "another major": (f"rm {NODE}; mknod {NODE} c 1 12", "is c 1:12, should be c 236:12"),
    "a block device": (f"rm {NODE}; mknod {NODE} b 236 12", "is b 236:12, should be c 236:12"),
    "a file for a node": (f"rm {NODE}; touch {NODE}", "is not a device node"),
    "a link for a node": (f"rm {NODE}; ln -s nvidia-cap13 {NODE}", "is not a device node"),
    "a link out of the root": ("rm -r dev/nvidia-caps; ln -s /etc dev/nvidia-caps", "cap12: ENOENT"),
}  # fmt: skip


@pytest.mark.kernel
@needs_root
@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_the_host_is_told(node: MigNode, change: str, message: str) -> None:
    sh(f"cd {node.root}; chmod -R u+w .; {change}")
    said = steps(node, "--gpu-instance", GI)
    assert isinstance(said, str), said
    assert said.startswith("mount-mig-devices: ")
    assert message in said
    assert "\n" not in said


@pytest.mark.kernel
@needs_root
def test_a_driver_without_nodes_is_not_asked_for_a_minor(node: MigNode) -> None:
    node.without_nodes()
    sh(f"cd {node.root}; chmod -R u+w .; : >{FILE}; rm -r dev/nvidia-caps")
    assert steps(node, "--gpu-instance", GI) == [f"mount the host's (ro,nosuid,nodev,noexec) on /{FILE}"]


# -- managing MIG -----------------------------------------------------------------------------------------------------

PRIVILEGED = '{"capabilities": {"bounding": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}}'
TREE = "mount the host's (ro,nosuid,nodev,noexec) on /proc/driver/nvidia/capabilities"
NODES = "mount the host's (rw,nosuid,noexec) on /dev/nvidia-caps"
MANAGEMENT: dict[str, tuple[list[str], list[str]]] = {
    "config": (["--config"], [TREE, NODES, "allow c 236:1 rw, c 236:3 rw, c 236:4 rw and 1078 more"]),
    "monitor": (["--monitor"], [TREE, NODES, "allow c 236:2 rw, c 236:3 rw, c 236:4 rw and 1078 more"]),
    "both, one GPU": (["--config", "--monitor", "--gpu", "1"],
                      [TREE, NODES, "allow c 236:1 rw, c 236:2 rw, c 236:138 rw and 134 more"]),
    "a GPU that is not there": (["--config", "--gpu", "31"], [TREE, NODES, "allow c 236:1 rw"]),
    "no cgroups": (["--config", "--no-cgroups"], [TREE, NODES]),
}  # fmt: skip


@pytest.mark.kernel
@needs_root
@pytest.mark.parametrize(("words", "wanted"), MANAGEMENT.values(), ids=MANAGEMENT)
def test_management_is_both_directories_and_a_rule_for_each_instance(
    node: MigNode, words: list[str], wanted: list[str]
) -> None:
    assert steps(node, *words, process=PRIVILEGED) == wanted


@pytest.mark.kernel
@needs_root
def test_management_without_nodes_is_one_directory(node: MigNode) -> None:
    node.without_nodes()
    assert steps(node, "--config", process=PRIVILEGED) == [TREE]


UNPRIVILEGED = {
    "none": "{}",
    "others": '{"capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_SYS_ADMIN"]}}',
    "null": '{"capabilities": null}',
    "root of a user namespace": '{"capabilities": {"bounding": ["CAP_SYS_ADMIN"]}}, '
    '"linux": {"namespaces": [{"type": "mount"}, {"type": "user"}]}',
}


@pytest.mark.parametrize("process", UNPRIVILEGED.values(), ids=UNPRIVILEGED)
@pytest.mark.parametrize("kind", ["config", "monitor"])
def test_only_privileged_containers_manage_mig(tmp_path: Path, kind: str, process: str) -> None:
    """Nothing of the host is looked at."""
    state = bundle(tmp_path, process)
    with pytest.raises(HookError, match=f"--{kind}: the container is not privileged"):
        prepared(f"--{kind}").steps(state, _NOWHERE)
    state.bundle = ""
    with pytest.raises(HookError, match="not privileged"):
        prepared(f"--{kind}").steps(state, _NOWHERE)


NO_TABLE: dict[str, tuple[str, str]] = {
    "no table of minors": ("rm proc/driver/nvidia-caps/mig-minors", "nvidia-caps/mig-minors: ENOENT"),
    "a bad line": ("echo 'gpu3/gi1/access x' >>proc/driver/nvidia-caps/mig-minors", "line `gpu3/gi1/access x`"),
    "another capability": ("echo 'fabric/all 5000' >>proc/driver/nvidia-caps/mig-minors", ""),
    "no config": ("rm proc/driver/nvidia/capabilities/mig/config", "mig/config: ENOENT (update the driver"),
    "no config node": ("rm dev/nvidia-caps/nvidia-cap1", "nvidia-cap1: ENOENT (make it: nvidia-modprobe -f /proc/"),
    "another node": ("cd dev/nvidia-caps; rm nvidia-cap1; mknod nvidia-cap1 c 236 2", "is c 236:2, should be c 236:1"),
    "no nodes of instances": (
        "mv dev/nvidia-caps dev/x; mkdir dev/nvidia-caps; mv dev/x/nvidia-cap1 dev/nvidia-caps",
        "",
    ),
    "no capabilities": ("rm -r proc/driver/nvidia/capabilities", "capabilities: ENOENT (load the driver"),
    "a link to the nodes": ("mv dev/nvidia-caps dev/x; ln -s x dev/nvidia-caps", ""),
    "a file for the nodes": ("rm -r dev/nvidia-caps; touch dev/nvidia-caps", "nvidia-cap1: ENOTDIR"),
    "no GPUs": ("rm -r proc/driver/nvidia/gpus", "gpus: ENOENT"),
}


@pytest.mark.kernel
@needs_root
@pytest.mark.parametrize(("change", "message"), NO_TABLE.values(), ids=NO_TABLE)
def test_what_is_missing_for_the_management_is_told(node: MigNode, change: str, message: str) -> None:
    sh(f"cd {node.root}; chmod -R u+w .; {change}")
    said = steps(node, "--config", process=PRIVILEGED)
    if message:
        assert isinstance(said, str), said
        assert message in said
    else:
        assert said[:2] == [TREE, NODES]


@pytest.mark.kernel
@needs_root
def test_the_gpus_of_the_host_are_those_of_its_procfs(node: MigNode) -> None:
    assert on(node, migcaps.present_gpus) == list(range(8))
