"""Nodes and device rules in containers that the real runc and crun start, with device lists (v1) and programs (v2)."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lib import bundle, devicehook, jail, proc, rootfs, runtimes, session, strace
from lib.bundle import Json

from nvoci.linux import bpfdevice
from nvoci.linux.devicerule import DeviceRule

pytestmark = pytest.mark.e2e

GIVEN = {"/dev/fuse": (10, 229), "/dev/loop-control": (10, 237)}
RULES = [DeviceRule("c", *number) for number in GIVEN.values()]
WORDS = ("--bind", "/dev/fuse", "--make", "/dev/loop-control")
# A container's root may make any node (both runtimes' default), so each is made; what counts is whether it opens.
PROBE = r"""
for pair in given:/dev/fuse made:/dev/loop-control kvm:/tmp/kvm rng:/tmp/rng null:/dev/null; do
    test -e /tmp/kvm || { mknod /tmp/kvm c 10 232; mknod /tmp/rng c 10 183; }
    for how in '<' '>' '<>'; do
        said=$( (eval ": $how ${pair#*:}") 2>&1 ) && said=ok
        printf '%s %s\n' "${pair%%:*}" "${said##*: }"
    done
done | sort | uniq -c | sed 's/^ *//'
"""
OPEN = {"3 given ok", "3 made ok", "3 null ok"}
NO = "Operation not permitted"
CLOSED = {f"3 kvm {NO}", f"3 rng {NO}"}


@dataclass
class Place:
    """A runtime with one kind of device cgroup, an image, and the test's hook."""

    runtime: str
    cgroups: str
    folder: Path
    copied: bool = False
    root: Path = field(init=False)

    def __post_init__(self) -> None:
        self.root = rootfs.busybox_rootfs(self.folder / "rootfs")

    @property
    def log(self) -> Path:
        return self.folder / "hook.log"

    def entry(self, *words: str, prefix: tuple[str, ...] = (), extra: str = "") -> Json:
        """The hook; its stderr goes to a file, since crun drops it."""
        self.log.touch(0o666)
        self.log.chmod(0o666)
        program = str(devicehook.entry(self.folder, extra, copied=self.copied))
        argv = [*prefix, program, "devices", *(words or WORDS)]
        return {"path": "/bin/sh", "args": ["sh", "-c", f'exec "$@" 2>>{self.log}', "sh", *argv], "env": ["A=b"]}

    def bundle(self, hooks: Mapping[str, list[Json]], script: str = PROBE, **config: Any) -> Path:
        return bundle.make_bundle(session.new_dir("bundle"), self.root, ["/bin/sh", "-c", script], hooks, **config)

    def run(self, hooks: Mapping[str, list[Json]], script: str = PROBE, **config: Any) -> proc.Result:
        return runtimes.Runtime(self.runtime, self.cgroups).run(self.bundle(hooks, script, **config))


@pytest.fixture(params=["v1", "v2"])
def place(runtime: str, request: pytest.FixtureRequest) -> Iterator[Place]:
    found = Place(runtime, request.param, session.new_dir("place"))
    yield found
    shutil.rmtree(found.folder)


@pytest.fixture
def on_v2(runtime: str) -> Iterator[Place]:
    found = Place(runtime, "v2", session.new_dir("place"))
    yield found
    shutil.rmtree(found.folder)


def said(result: proc.Result) -> set[str]:
    return set(result.stdout.splitlines())


def with_cgroup_namespace(config: Json) -> None:
    config["linux"]["namespaces"].append({"type": "cgroup"})


def test_without_the_hook_nothing_of_it_opens(place: Place) -> None:
    """What the other tests compare with."""
    lines = said(place.run({}))
    assert lines >= CLOSED | {"3 null ok"}
    assert {line.split()[1] for line in lines if line.endswith(" ok")} <= {"null", "given", "made"}
    assert not lines & (OPEN - {"3 null ok"})


@pytest.mark.parametrize("stage", ["prestart", "createRuntime", "createContainer"])
def test_listed_nodes_open_and_no_others(place: Place, stage: str) -> None:
    result = place.run({stage: [place.entry()]})
    assert said(result) == OPEN | CLOSED, result.stderr + place.log.read_text()
    assert (place.log.read_text(), result.survivors, result.mounts_added) == ("", [], [])
    assert runtimes.leftovers() == []


@pytest.mark.parametrize("stage", ["createRuntime", "createContainer"])
def test_in_a_cgroup_namespace_too(place: Place, stage: str) -> None:
    """At createContainer the cgroup's path is `/` then, and no mount of the host's shows it."""
    result = place.run({stage: [place.entry()]}, edit=with_cgroup_namespace)
    assert said(result) == OPEN | CLOSED, result.stderr + place.log.read_text()


def test_two_hooks_one_after_the_other_give_both(place: Place) -> None:
    entries = [place.entry("--bind", "/dev/fuse"), place.entry("--make", "/dev/loop-control"), place.entry(*WORDS)]
    result = place.run({"createRuntime": entries})
    assert said(result) == OPEN | CLOSED, result.stderr + place.log.read_text()


# -- a container that runs ------------------------------------------------------------------------------------------

RUNNING = """
step() {{ echo "== $1"; }}
{base} run -d --bundle {bundle} {name} </dev/null >{folder}/out 2>&1 || cat {folder}/out
step start; {base} exec {name} /bin/sh {probe}
step update; {base} update -r {folder}/{update} {name} 2>&1
{base} exec {name} /bin/sh {probe}
step pause; {base} pause {name} && {base} resume {name}; {base} exec {name} /bin/sh {probe}
step cgroup; cat /proc/$({base} state {name} | sed -n 's/.*"pid": *\\([0-9]*\\).*/\\1/p')/cgroup
step list; cat /sys/fs/cgroup/devices{path}/devices.list 2>/dev/null
step programs; bpftool -j cgroup show /sys/fs/cgroup{path} 2>/dev/null
id=$(bpftool -j cgroup show /sys/fs/cgroup{path} 2>/dev/null | sed -n 's/.*"id":\\([0-9]*\\).*/\\1/p')
step dump; test -z "$id" || bpftool prog dump xlated id "$id" opcodes
"""


def running(place: Place, hooks: Mapping[str, list[Json]]) -> dict[str, list[str]]:
    """A container that sleeps, looked at and changed from outside: the output of each step."""
    paths: list[str] = []
    (place.root / "probe").write_text(PROBE)
    made = place.bundle(hooks, "exec sleep 60", edit=lambda config: paths.append(config["linux"]["cgroupsPath"]))
    name, state = session.unique(place.runtime), session.new_dir("state")
    (place.folder / "pids").write_text('{"pids": {"limit": 64}}')
    (place.folder / "nothing").write_text("{}")
    runtime = runtimes.Runtime(place.runtime, place.cgroups)
    base = f"{shutil.which(place.runtime)} --root {state}"
    update = "pids" if place.cgroups == "v1" else "nothing"  # where cgroup2 has no such controller that is an error
    script = RUNNING.format(
        base=base, bundle=made, name=name, folder=place.folder, probe="/probe", path=paths[0], update=update
    )
    environment = {**proc.PLAIN_ENV, **runtime._memlock()}
    try:
        result = jail.run(
            ["/bin/sh", "-c", script],
            setup=runtime._cgroup_setup(),
            post=[[*base.split(), "delete", "--force", name]],
            env=environment,
            timeout=60,
        )
    finally:
        runtimes.remove_cgroups()
        shutil.rmtree(state, ignore_errors=True)
    steps: dict[str, list[str]] = {}
    for line in result.stdout.splitlines():
        if line.startswith("== "):
            steps[line[3:]] = []
        elif steps:
            steps[list(steps)[-1]].append(line)
    assert steps, result.stderr
    return steps


def test_access_outlives_update_and_pause_and_bpftool_sees_it(place: Place) -> None:
    steps = running(place, {"createRuntime": [place.entry()]})
    for step in ("start", "update", "pause"):
        assert set(steps[step]) == OPEN | CLOSED, step
    if place.cgroups == "v1":
        assert {str(rule) for rule in RULES} <= set(steps["list"])
        return
    (program,) = json.loads("".join(steps["programs"]))
    assert (program["name"], program["attach_flags"]) == ("nvoci_devices", "multi")
    opcodes = [bytes.fromhex(line.replace(" ", "")) for line in steps["dump"] if _is_opcodes(line)]
    assert b"".join(opcodes).startswith(bpfdevice.prefix(RULES))


def _is_opcodes(line: str) -> bool:
    """`       61 12 00 00 00 00 00 00` below each instruction."""
    words = line.split()
    return len(words) in (8, 16) and all(len(word) == 2 for word in words)


# -- other programs -------------------------------------------------------------------------------------------------

ATTACH = """
import json, os, sys
sys.path[:0] = [{hooks!r}, {tests!r}]
from lib import devprogs
from lib.devprogs import Rule
from nvoci.linux import bpf
codes = {{"systemd": devprogs.systemd([Rule(True, "c", 1, 3), Rule(True, "c", 5), Rule(True, access="m")]),
         "foreign": devprogs.bpfvm.assemble([(0x85, 0, 0, 0, 5), (0xB7, 0, 0, 0, 1), (0x95, 0, 0, 0, 0)])}}
pid = json.load(sys.stdin)["pid"]
path = next(l[3:-1] for l in open(f"/proc/{{pid}}/cgroup") if l.startswith("0::"))
bpf.prog_attach(os.open("/sys/fs/cgroup" + path, os.O_RDONLY), bpf.prog_load(codes[sys.argv[1]], b"theirs"), 2)
"""


def attaching(place: Place, which: str) -> Json:
    """A hook that attaches one more program, as systemd does, or one that cannot be merged."""
    script = place.folder / "attach.py"
    script.write_text(ATTACH.format(hooks=str(session.HOOKS), tests=str(session.LIB.parent)))
    return {"path": session.PYTHON, "args": ["python3", "-ISB", str(script), which], "env": ["A=b"]}


def test_rules_go_before_every_program(on_v2: Place) -> None:
    result = on_v2.run({"createRuntime": [attaching(on_v2, "systemd"), on_v2.entry()]})
    assert said(result) == OPEN | CLOSED, result.stderr + on_v2.log.read_text()


def one_error(place: Place) -> str:
    lines = place.log.read_text().splitlines()
    assert len(lines) == 1, lines
    assert "level=error" in lines[0]
    return lines[0]


@pytest.mark.parametrize("stage", ["createRuntime", "createContainer"])
def test_a_program_that_cannot_be_merged_keeps_the_container_from_starting(on_v2: Place, stage: str) -> None:
    hooks = {"createRuntime": [attaching(on_v2, "foreign")]}
    hooks.setdefault(stage, []).append(on_v2.entry())
    result = on_v2.run(hooks)
    assert (result.rc != 0, result.stdout, runtimes.leftovers()) == (True, "", [])
    assert "merge device program" in (line := one_error(on_v2))
    assert "it calls a function" in line


@pytest.mark.parametrize("stage", ["createRuntime", "createContainer"])
@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
def test_bpf_that_is_refused_keeps_the_container_from_starting(on_v2: Place, stage: str, error: str) -> None:
    result = on_v2.run({stage: [on_v2.entry(prefix=tuple(strace.inject_error("bpf", error)))]})
    assert (result.rc != 0, result.stdout) == (True, "")
    assert f"ask for its device programs: {error} (" in one_error(on_v2)


# -- other containers -----------------------------------------------------------------------------------------------


def test_a_privileged_container_is_left_as_it_is(place: Place) -> None:
    """Everything is allowed, and stays so."""

    def privileged(config: Json) -> None:
        config["linux"]["resources"]["devices"] = [{"allow": True, "access": "rwm"}]

    result = place.run({"createRuntime": [place.entry()]}, edit=privileged)
    assert {*OPEN} <= said(result), result.stderr + place.log.read_text()
    assert not any(NO in line for line in said(result))


@pytest.fixture
def shared_node(tmp_path: Path) -> Iterator[Path]:
    """A node of the host that everybody may open, as those of GPUs are."""
    node = session.tmp() / session.unique("node")
    os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(10, 229))
    node.chmod(0o666)
    yield node
    node.unlink()


USERNS_PROBE = "stat -c '%t:%T %u' /dev/gpu; (: </dev/gpu) && echo opens; (: </dev/full) && echo full"


@pytest.mark.parametrize("kind", ["--bind", "--make"])
def test_in_a_user_namespace_the_hosts_node_is_bound(place: Place, shared_node: Path, kind: str) -> None:
    """The file to mount on is made as the container's root: its /dev takes none of ours."""
    entry = place.entry(kind, f"{shared_node}=/dev/gpu")
    result = place.run({"createRuntime": [entry]}, USERNS_PROBE, userns=(100_000, 65_536))
    assert result.stdout.split("\n")[:2] == ["a:e5 65534", "opens"], result.stderr + place.log.read_text()
    assert place.log.read_text() == ""


def test_from_inside_a_user_namespace_it_is_one_line_that_says_where_to_call(place: Place, shared_node: Path) -> None:
    place.copied = True
    entry = place.entry("--bind", f"{shared_node}=/dev/gpu")
    result = place.run({"createContainer": [entry]}, USERNS_PROBE, userns=(100_000, 65_536))
    assert (result.rc != 0, result.stdout) == (True, "")
    assert "call the hook as createRuntime or prestart" in one_error(place)
