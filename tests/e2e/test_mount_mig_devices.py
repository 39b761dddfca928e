"""MIG instances of a simulated node in containers of runc, crun and podman, by device lists (v1) and programs (v2)."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from e2e.gpunode import STAGES, Program
from lib import mignode, oracle, proc, rootfs, runtimes, session
from lib.bundle import CAPS, Json, make_bundle, shell_hook
from lib.mignode import CI, GI, MINORS, MigNode

pytestmark = pytest.mark.e2e
OTHER = "1:2"  # an instance that is given to nobody
PRIVILEGED = [*CAPS, "CAP_SYS_ADMIN"]
# ENXIO: the open was allowed, and there is no driver.
YES, NO = "No such device or address", "Operation not permitted"
FILE, NODE, DIRECTORY = "ro,nosuid,nodev,noexec", "ro,nosuid,noexec", "rw,nosuid,noexec"
_REPORT = r"""
mounted() { sed -n "s|^[0-9]* [0-9]* [0-9:]* [^ ]* $1 \([^ ]*\) .*|\1|p" /proc/self/mountinfo | sed 's/,relatime//'; }
opens() { said=$( (: <"$1") 2>&1 ) && said=ok; echo "${said##*: }"; }
at() { echo "$1 [$(mounted "$1" | tr '\n' ' ')]"; }
number() { test -c /tmp/n$1 || mknod /tmp/n$1 c 236 $1; echo "$1 $(opens /tmp/n$1)"; }
"""


def script(*lines: str) -> str:
    return _REPORT + "\n".join(lines)


REPORT = script(
    *(f"at /{path}" for each in (GI, CI, OTHER) for path in (mignode.access(each), mignode.node(each))),
    f"cat /{mignode.access(CI)}",
    f"(echo x >/{mignode.access(CI)}) 2>&1 | sed 's/.*: /write: /'",
    *(f"number {MINORS[each]}" for each in (GI, CI, OTHER)),
    f"test ! -e /{mignode.node(CI)} || stat -c 'node %t:%T %a' /{mignode.node(CI)}",
    f"test ! -e /{mignode.node(CI)} || (chmod 666 /{mignode.node(CI)}) 2>&1 | sed 's/.*: /chmod: /'",
)


def expected(*given: str, nodes: bool = True, allowed: bool = True) -> list[str]:
    """What REPORT says in a container that has these."""
    lines = []
    for each in (GI, CI, OTHER):
        lines.append(f"/{mignode.access(each)} [{FILE + ' ' if each in given else ''}]")
        lines.append(f"/{mignode.node(each)} [{NODE + ' ' if each in given and nodes else ''}]")
    lines += [f"DeviceFileMinor: {MINORS[CI]}", "DeviceFileMode: 292", "DeviceFileModify: 1"]
    lines.append("write: Read-only file system" if CI in given else "")
    lines += [f"{MINORS[each]} {YES if each in given and nodes and allowed else NO}" for each in (GI, CI, OTHER)]
    if CI in given and nodes:
        lines += ["node ec:d 444", "chmod: Read-only file system"]
    return [line for line in lines if line]


class Site:
    """A node, an image, and the installed hook."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.node: MigNode = mignode.make(session.new_dir("mig") / "node")
        self.root: Path = rootfs.busybox_rootfs(session.new_dir("image") / "rootfs")

    def driver(self) -> Json:
        """What the kernel module does: the procfs of the container shows the driver's tree."""
        mounts = self.node.in_container(shlex.quote(str(self.root)))
        pid = """pid=$(tr -d '\\n' | sed 's/.*"pid": *\\([0-9]*\\).*/\\1/')"""
        return shell_hook(f'{pid}; exec nsenter --target "$pid" --mount /bin/sh -ec {shlex.quote(mounts)}')

    def hooks(self, stage: str, *entries: Json, driver: bool = True) -> dict[str, list[Json]]:
        out: dict[str, list[Json]] = {"prestart" if stage == "prestart" else "createRuntime": [self.driver()] * driver}
        out.setdefault(stage, []).extend(entries)
        return out

    def entry(self, *instances: str, options: Sequence[str] = ()) -> Json:
        return self.program.entry(*self.node.words(*instances, options=options))

    def start(
        self, runtime: str, hooks: dict[str, list[Json]], lines: str = REPORT, cgroups: str = "v1", **config: Any
    ) -> proc.Result:
        """A container; what is mounted and running afterwards is looked at."""
        bundle = make_bundle(session.new_dir("bundle"), self.root, ["/bin/sh", "-c", lines], hooks, **config)
        result = runtimes.Runtime(runtime, cgroups).run(bundle, setup=self.node.setup())
        assert (result.survivors, result.mounts_added, runtimes.leftovers()) == ([], [], [])
        return result


@pytest.fixture
def site(program: Program) -> Site:
    return Site(program)


def said(result: proc.Result) -> list[str]:
    return [line.rstrip() for line in result.stdout.splitlines() if line.strip()]


def test_without_the_hook_the_container_has_nothing_of_it(site: Site, runtime: str) -> None:
    """What the other tests compare with."""
    result = site.start(runtime, site.hooks("createRuntime"))
    assert said(result) == expected(), (result.stdout, result.stderr)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("cgroups", ["v1", "v2"])
def test_a_mig_device_is_given_and_no_other(site: Site, runtime: str, stage: str, cgroups: str) -> None:
    result = site.start(runtime, site.hooks(stage, site.entry(GI, CI)), cgroups=cgroups)
    assert said(result) == expected(GI, CI), (result.stdout, result.stderr)


@pytest.mark.parametrize("stage", ["createRuntime", "createContainer"])
def test_without_the_newer_system_calls(each_program: Program, runtime: str, stage: str) -> None:
    site = Site(each_program)
    result = site.start(runtime, site.hooks(stage, site.entry(GI, CI)))
    assert said(result) == expected(GI, CI), (result.stdout, result.stderr)


def test_each_flag_gives_what_it_names_and_no_more(site: Site, runtime: str) -> None:
    for each in (GI, CI):
        result = site.start(runtime, site.hooks("createRuntime", site.entry(each)))
        assert said(result) == expected(each), (result.stdout, result.stderr)


@pytest.mark.parametrize("cgroups", ["v1", "v2"])
def test_a_driver_without_capability_nodes(site: Site, runtime: str, cgroups: str) -> None:
    site.node.without_nodes()
    result = site.start(runtime, site.hooks("createRuntime", site.entry(GI, CI)), cgroups=cgroups)
    assert said(result) == expected(GI, CI, nodes=False), (result.stdout, result.stderr)


def test_without_cgroups_nothing_is_allowed(site: Site, runtime: str) -> None:
    hooks = site.hooks("createRuntime", site.entry(GI, CI, options=["--no-cgroups"]))
    result = site.start(runtime, hooks)
    assert said(result) == expected(GI, CI, allowed=False), (result.stdout, result.stderr)


def test_several_stages_and_two_hooks_in_one_process_leave_what_one_leaves(site: Site, runtime: str) -> None:
    run = site.program.entry("run", "--", *site.node.words(GI), "--", "noop", "--", *site.node.words(GI, CI))
    hooks = site.hooks("createRuntime", run, site.entry(GI, CI))
    hooks["createContainer"] = [run]
    result = site.start(runtime, hooks)
    assert said(result) == expected(GI, CI), (result.stdout, result.stderr)


# -- managing MIG -----------------------------------------------------------------------------------------------------

MANAGED = script(
    f"at /{mignode.CAPABILITIES}",
    "at /dev/nvidia-caps",
    f"cat /{mignode.access(OTHER)} | head -n 1",
    *(f"opens /{mignode.node(each)}" for each in (GI, OTHER)),
    *(f"number {n}" for n in (1, 2, 3, 137, 138, 1082, 1083)),
    "(: >/proc/driver/nvidia/capabilities/x) 2>&1 | sed 's/.*: /make: /'",
)
ROWS = {
    "config": (["--config"], {1, 3, 137, 138, 1082}),
    "monitor of one GPU": (["--monitor", "--gpu", "0"], {2, 3, 137}),
    "both of two GPUs": (["--config", "--monitor", "--gpu", "0,1"], {1, 2, 3, 137, 138}),
}


@pytest.mark.parametrize(("options", "numbers"), ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("cgroups", ["v1", "v2"])
def test_who_manages_mig_has_every_file_and_node(
    site: Site, runtime: str, cgroups: str, options: list[str], numbers: set[int]
) -> None:
    hooks = site.hooks("createRuntime", site.entry(options=options))
    result = site.start(runtime, hooks, MANAGED, cgroups, caps=PRIVILEGED)
    assert said(result) == [
        f"/{mignode.CAPABILITIES} [{FILE} ]",
        f"/dev/nvidia-caps [{DIRECTORY} ]",
        f"DeviceFileMinor: {MINORS[OTHER]}",
        YES,
        YES if 138 in numbers else NO,
        *(f"{n} {YES if n in numbers else NO}" for n in (1, 2, 3, 137, 138, 1082, 1083)),
        "make: Read-only file system",
    ], result.stderr


def test_instances_beside_the_management_are_mounted_in_it(site: Site, runtime: str) -> None:
    before = oracle.snapshot(site.node.root / "dev")
    entry = site.entry(GI, CI, options=["--monitor"])
    hooks = site.hooks("createRuntime", entry, entry)
    lines = script(f"at /{mignode.access(CI)}", f"at /{mignode.node(CI)}", "at /dev/nvidia-caps")
    result = site.start(runtime, hooks, lines, caps=PRIVILEGED)
    assert said(result) == [
        f"/{mignode.access(CI)} [{FILE} ]",
        f"/{mignode.node(CI)} [{NODE} ]",
        f"/dev/nvidia-caps [{DIRECTORY} ]",
    ], result.stderr
    assert oracle.snapshot(site.node.root / "dev") == before, "something was made in the host's directory"


@pytest.mark.parametrize("option", ["--config", "--monitor"])
def test_mig_is_managed_by_privileged_containers_only(site: Site, runtime: str, option: str) -> None:
    before = oracle.content_only(oracle.snapshot(site.root))
    result = site.start(runtime, site.hooks("createRuntime", site.entry(options=[option])), "echo started")
    assert (result.rc != 0, result.stdout) == (True, "")
    if runtime == "runc":
        assert f"{option}: the container is not privileged (it needs CAP_SYS_ADMIN" in result.stderr
    assert content_without_mount_points(before, site.root) == {}


def content_without_mount_points(before: dict[str, Any], root: Path) -> dict[str, Any]:
    """What has changed but for the runtime's own mount points."""
    after = oracle.content_only(oracle.snapshot(root))
    return {name: after[name] for name in after if after[name] != before.get(name) and not name.startswith("dev/")}


# -- user namespaces --------------------------------------------------------------------------------------------------

FIRST = 100000
USERNS = (FIRST, 65536)


@pytest.mark.parametrize("owner", [FIRST, 0])
@pytest.mark.parametrize("cgroups", ["v1", "v2"])
def test_in_a_user_namespace(site: Site, runtime: str, owner: int, cgroups: str) -> None:
    """Its root makes no nodes, so the two that are mounted are opened."""
    assert site.start(runtime, {}, "true").rc == 0  # makes the runtime's mount points, which a mapped user could not
    subprocess.run(["chown", "-hR", f"{owner}:{owner}", site.root], check=True)
    paths = [path for each in (GI, CI) for path in (mignode.access(each), mignode.node(each))]
    lines = script(*(f"at /{path}" for path in paths), *(f"opens /{mignode.node(each)}" for each in (GI, CI)))
    result = site.start(runtime, site.hooks("createRuntime", site.entry(GI, CI)), lines, cgroups, userns=USERNS)
    flags = [FILE, NODE] * 2
    assert said(result) == [*(f"/{path} [{flag} ]" for path, flag in zip(paths, flags)), YES, YES], result.stderr


@pytest.mark.parametrize("options", [[], ["--no-cgroups"]], ids=str)
def test_from_inside_of_a_user_namespace_the_cgroup_is_out_of_reach(
    site: Site, runtime: str, options: list[str]
) -> None:
    assert site.start(runtime, {}, "true").rc == 0
    hooks = site.hooks("createContainer", site.entry(GI, options=options))
    lines = script(f"at /{mignode.access(GI)}", f"at /{mignode.node(GI)}")
    result = site.start(runtime, hooks, lines, userns=USERNS)
    if options:
        assert said(result) == [f"/{mignode.access(GI)} [{FILE} ]", f"/{mignode.node(GI)} [{NODE} ]"], result.stderr
    else:
        assert (result.rc != 0, result.stdout) == (True, "")
        assert runtime != "runc" or "(call the hook as createRuntime or prestart)" in result.stderr


# -- what is not there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instances", [("0:9",), (GI, "0:1:5"), ("9:1",)], ids=str)
def test_an_instance_that_is_not_there_stops_the_start(site: Site, runtime: str, instances: tuple[str, ...]) -> None:
    result = site.start(runtime, site.hooks("createRuntime", site.entry(*instances)), "echo started")
    assert (result.rc != 0, result.stdout) == (True, "")
    if runtime == "runc":
        assert f"/{mignode.access(instances[-1])}: ENOENT (was the instance destroyed?" in result.stderr


def test_a_procfs_without_the_driver_is_told_and_nothing_is_left(site: Site, runtime: str) -> None:
    assert site.start(runtime, {}, "true").rc == 0
    before = oracle.content_only(oracle.snapshot(site.root))
    hooks = site.hooks("createRuntime", site.entry(GI, CI), driver=False)
    result = site.start(runtime, hooks, "echo started")
    assert (result.rc != 0, result.stdout) == (True, "")
    if runtime == "runc":
        assert "nothing can be made in a file system of the kernel's" in result.stderr
    assert oracle.content_only(oracle.snapshot(site.root)) == before


# -- podman -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not runtimes.available("podman"), reason="podman is not installed")
def test_an_entry_of_a_hooks_directory(site: Site, runtime: str) -> None:
    """Written by `nvoci hooksd install` before there is any such instance."""
    hooks = session.new_dir("hooks.d")
    words = site.node.words(GI, CI)
    done = proc.run([site.program.path.with_name("nvoci"), "hooksd", "install", "--dir", hooks, *words])
    assert (done.rc, done.stdout.endswith("/20-nvoci-mount-mig-devices.json\n")) == (0, True), done.stderr
    driver = {"version": "1.0.0", "hook": site.driver(), "when": {"always": True}, "stages": ["createRuntime"]}
    (hooks / "10-driver.json").write_text(json.dumps(driver))
    command = ["/bin/sh", "-c", REPORT]
    setup, flags = site.node.setup(), ["--cap-add=MKNOD"]
    result = runtimes.podman(site.root, command, runtime=runtime, hooks_dir=hooks, setup=setup, flags=flags)
    assert said(result) == expected(GI, CI), (result.stdout, result.stderr)
