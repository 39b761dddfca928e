"""Containers that get GPUs by CDI name: generated specifications, read by `nvoci cdi inject` and by podman, run by runc
and crun. Both forms of hooks give the same container, and one of them takes one process."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.cdinode import EIGHT, KIND, MERGED, PODMAN_NEWEST, REFERENCE, CdiNode, broken, of_driver, parts
from lib import jail, rootfs, runtimes, session
from lib.bundle import Json
from simnode.nodes import needs_x86

from nvoci.cdi import apply, hostnodes
from nvoci.cdi.model import ContainerEdits
from nvoci.cdi.specdir import Registry

pytestmark = [
    pytest.mark.e2e,
    needs_x86,
    pytest.mark.skipif(os.geteuid() != 0, reason="device nodes and mounts need root"),
]
needs_podman = pytest.mark.skipif(not runtimes.available("podman"), reason="podman is not installed")
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="no strace: apt-get install strace")

REQUESTS: dict[str, tuple[str, ...]] = {
    "one": EIGHT[:1],
    "three, the last by its UUID": (EIGHT[5], EIGHT[2], f"{KIND}=GPU-12345678-1234-1234-1234-123456780007"),
    "all": (f"{KIND}=all",),
}


@pytest.fixture(scope="module")
def node(installed: Path) -> CdiNode:
    """Nobody changes it."""
    return CdiNode(installed)


@pytest.mark.parametrize("names", REQUESTS.values(), ids=REQUESTS)
def test_both_forms_of_hooks_give_what_the_specification_says(
    node: CdiNode, runtime: str, names: tuple[str, ...]
) -> None:
    reference, merged = (node.start(runtime, form, names) for form in (REFERENCE, MERGED))
    for found in (reference, merged):
        assert (found.result.rc, found.result.stderr, found.result.survivors) == (0, "", [])
    assert broken(node.document(REFERENCE), names, reference.said) == []
    assert merged.said == reference.said
    assert runtimes.leftovers() == []


# -- podman ------------------------------------------------------------------------------------------------------------


@needs_podman
@pytest.mark.parametrize("form", [MERGED, REFERENCE])
def test_podman_gives_what_an_injected_configuration_gives(node: CdiNode, runtime: str, form: str) -> None:
    names = (EIGHT[1], EIGHT[6])
    document = node.document(REFERENCE, PODMAN_NEWEST)
    by_podman = node.podman(runtime, form, names)
    assert by_podman.result.rc == 0, by_podman.result.stderr
    assert broken(document, names, by_podman.said) == []
    injected = node.start(runtime, form, names, PODMAN_NEWEST)
    assert of_driver(document, names, by_podman.said) == of_driver(document, names, injected.said)
    assert (by_podman.result.survivors, runtimes.leftovers()) == ([], [])


@needs_podman
def test_podman_does_not_see_a_newer_specification_than_it_knows(node: CdiNode) -> None:
    """Why there is --max-cdi-version."""
    assert node.document(MERGED)["cdiVersion"] > PODMAN_NEWEST == node.document(MERGED, PODMAN_NEWEST)["cdiVersion"]
    found = node.podman("runc", MERGED, EIGHT[:1], newest="")
    assert (found.result.rc != 0, found.said) == (True, {})
    assert f"unresolvable CDI devices {EIGHT[0]}" in found.result.stderr


@pytest.fixture(scope="module")
def without(node: CdiNode) -> Json:
    """The config.json that podman writes for a container with no device."""
    return node.inspected(MERGED, ()).config


@needs_podman
@pytest.mark.parametrize("form", [MERGED, REFERENCE])
def test_podman_writes_the_configuration_that_inject_writes(node: CdiNode, without: Json, form: str) -> None:
    """Podman uses the CDI project's library. Its own mounts and variables come in any order, so that says nothing."""
    names = EIGHT[:3]
    given = node.inspected(form, names)
    fill = lambda edits: on_node(node, edits)
    ours = apply.inject(Registry([str(node.spec_dir(form, PODMAN_NEWEST))]), without, names, fill)
    assert comparable(ours) == comparable(given.config) != comparable(without)
    document = node.document(form, PODMAN_NEWEST)
    devices = given.inspect["HostConfig"]["Devices"]
    assert {each["PathInContainer"] for each in devices} == {
        each["path"] for each in parts(document, names, "deviceNodes")
    }
    assert set(parts(document, names, "env")) <= set(given.inspect["Config"]["Env"])


def on_node(node: CdiNode, edits: ContainerEdits) -> ContainerEdits:
    """The numbers of device nodes as they are on the simulated node."""
    return hostnodes.fill_in(edits, lambda path: os.lstat(f"{node.root}{path}"))


def comparable(config: Json) -> Json:
    """What an injection may change, less what differs from one container to the next."""
    hooks = {stage: [each for each in found if each["path"] != "/bin/sh"] for stage, found in config["hooks"].items()}
    named = re.compile("/userdata/|^/etc/host|^/run/.containerenv")
    return {
        "env": sorted(each for each in config["process"]["env"] if not each.startswith("HOSTNAME=")),
        "mounts": sorted((each for each in config["mounts"] if not named.search(each["source"])), key=str),
        "hooks": {stage: found for stage, found in hooks.items() if found},
        "devices": config["linux"].get("devices"),
        "rules": config["linux"]["resources"]["devices"],
        "user": config["process"]["user"],
    }


# -- processes ---------------------------------------------------------------------------------------------------------

PROCESSES = {
    "merged, one GPU": (MERGED, EIGHT[:1], 1),
    "merged, eight by name": (MERGED, EIGHT, 1),
    "reference, one GPU": (REFERENCE, EIGHT[:1], 6 + 1),
    "reference, eight by name": (REFERENCE, EIGHT, 6 + 8),
}


@needs_strace
@pytest.mark.parametrize(("form", "names", "count"), PROCESSES.values(), ids=PROCESSES)
def test_hook_processes_of_a_container(
    node: CdiNode, form: str, names: tuple[str, ...], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by strace: every exec of the hook program below runc."""
    if not runtimes.available("runc"):
        pytest.skip("runc is not installed")
    folder = session.new_dir("traced")
    log, wrapper = folder / "log", folder / "runc"
    strace = f"{shutil.which('strace')} -f -qq -e trace=execve -o {log}.$$"
    wrapper.write_text(f'#!/bin/sh\nexec {strace} {shutil.which("runc")} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    found = node.start("runc", form, names)
    assert found.result.rc == 0, found.result.stderr
    assert broken(node.document(REFERENCE), names, found.said) == []
    lines = [line for path in folder.glob("log.*") for line in path.read_text().splitlines()]
    assert sum(f'execve("{node.program}"' in line and " = -1 " not in line for line in lines) == count


# -- a writer that is killed -------------------------------------------------------------------------------------------

_WRITER = """
import os, random, signal, sys, time
sys.path.insert(0, sys.argv[1])
from nvoci.cdi import store
from nvoci.cdi.model import ContainerEdits, Device, Mount, Spec

def spec(word):
    mounts = tuple([Mount(f"/{word}{i}", f"/{word}{i}") for i in range(60)])
    edits = ContainerEdits(env=(f"FIRST={word}",), mounts=mounts)
    devices = [Device(str(i), edits) for i in range(8)]
    common = ContainerEdits(env=(f"LAST={word}",))
    return Spec("0.5.0", "nvoci.test/gpu", tuple([*devices, Device("env", ContainerEdits(env=edits.env))]), common)

specs = [spec(word) for word in ("old", "new")]
begin = time.monotonic()
store.write(specs[0], sys.argv[2], "test")
takes = time.monotonic() - begin
print("ready", flush=True)
os.set_blocking(0, False)
kills = 0
while True:
    pid = os.fork()
    if pid == 0:
        while True:
            for each in specs:
                store.write(each, sys.argv[2], "test")
    time.sleep(random.uniform(0, 4 * takes))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    kills += 1
    try:
        if not os.read(0, 1):
            break
    except BlockingIOError:
        pass
print(kills)
"""


@pytest.fixture
def rewritten() -> Iterator[Path]:
    """A directory with a specification, of 50 KB, that others keep writing: each of them is killed at some moment."""
    folder = session.new_dir("rewritten")
    command = [session.PYTHON, "-ISB", "-c", _WRITER, str(session.HOOKS), str(folder)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdout
    assert writer.stdout.readline() == "ready\n"
    yield folder
    out, _ = writer.communicate(timeout=60)
    assert writer.returncode == 0
    assert int(out) > 0


def test_our_reader_never_sees_half_a_specification(rewritten: Path) -> None:
    registry = Registry([str(rewritten)])
    found: Counter[tuple[str, ...]] = Counter()
    until = time.monotonic() + 2
    while time.monotonic() < until:
        registry.refresh()
        assert registry.errors == {}
        assert len(registry.devices()) == 9
        found[apply.combined(registry.resolve(["nvoci.test/gpu=env"])).env] += 1
    assert set(found) == {("LAST=old", "FIRST=old"), ("LAST=new", "FIRST=new")}


@needs_podman
def test_podman_never_sees_half_a_specification(rewritten: Path) -> None:
    root = rootfs.busybox_rootfs(session.new_dir("image"))
    setup = jail.host_files({"/etc/cdi/empty": ""}) + f"mount --bind {rewritten} /etc/cdi\n"
    for _ in range(6):
        command = ["sh", "-c", "echo $FIRST $LAST"]
        done = runtimes.podman(root, command, setup=setup, flags=["--device=nvoci.test/gpu=env"])
        assert (done.rc, done.stdout in {"old old\n", "new new\n"}) == (0, True), done.stdout + done.stderr
