"""Device rules are given last, by the process that sees the host's cgroups, and all or nothing: whoever fails or dies.

A hook process gives a container's process nodes and rules; the cgroups are real, of the v1 and the unified hierarchy.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from lib import devicehook, devprogs, hookproc, proc, rootfs, session, strace
from lib.devprogs import Rule

from tests.kernel import devcgroups

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="cgroups need root")]

FUSE, LOOP, KVM = ("c", 10, 229), ("c", 10, 237), ("c", 10, 232)
NODES = {"/dev/fuse": FUSE, "/dev/loop-control": LOOP}
WORDS = ("devices", "--bind", "/dev/fuse", "--make", "/dev/loop-control")
PROGRAM = devprogs.runc([Rule(True, "c", 1, 3)])
ALL, NONE = "r w rw", ""
HELPER = devprogs.bpfvm.assemble([(0x85, 0, 0, 0, 5), (0xB7, 0, 0, 0, 1), (0x95, 0, 0, 0, 0)])


@dataclass
class Site:
    """A container's process in a restricted cgroup of its own."""

    kind: str
    cgroup: Path
    folder: Path
    container: hookproc.FakeContainer

    def restrict(self) -> None:
        if self.kind == "unified":
            devcgroups.attach(self.cgroup, PROGRAM)
        else:
            (self.cgroup / "devices.deny").write_text("a")
            (self.cgroup / "devices.allow").write_text("c 1:3 rwm")

    def hook(
        self, *words: str, extra: str = "", stage: hookproc.Stage = "createRuntime", prefix: Sequence[str] = ()
    ) -> proc.Result:
        program = devicehook.entry(self.folder, extra)
        join = None
        if stage == "createContainer":
            join = lambda: devcgroups.join(self.cgroup)
        return hookproc.run_hook(
            words or WORDS,
            container=self.container,
            program=program,
            stage=stage,
            prefix=prefix,
            preexec=join,
            timeout=30,
        )

    def given(self) -> list[str]:
        """What a process of the cgroup may do with the two nodes, and with a third."""
        return devcgroups.answers(self.folder, self.cgroup, wanted=[FUSE, LOOP, KVM])

    def nodes(self) -> list[str]:
        return [name for name in NODES if self.container.path(name).exists()]

    def picture(self) -> tuple[object, ...]:
        """All that a hook may have changed; programs by what they are, since a rerun makes new ones."""
        rules: object = (self.cgroup / "devices.list").read_text() if self.kind == "devices" else self.programs()
        dev = [(name, self.container.path(f"dev/{name}").lstat().st_mode) for name in self.container.listdir("dev")]
        mounts = [line.split(" ", 4)[4] for line in self.container.mountinfo()]
        return rules, dev, mounts, self.given()

    def programs(self) -> list[bytes]:
        return [devcgroups.xlated(number) for number in devcgroups.ids(self.cgroup)]


@pytest.fixture(params=["unified", "devices"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    yield from make_site(request.param, tmp_path)


@pytest.fixture
def unified(tmp_path: Path) -> Iterator[Site]:
    yield from make_site("unified", tmp_path)


def make_site(kind: str, tmp_path: Path) -> Iterator[Site]:
    root = rootfs.tree(tmp_path / "rootfs", "dir proc\ndir dev")
    folder = session.new_dir("site")
    with devcgroups.cgroup(kind) as path:
        with hookproc.FakeContainer(root) as container:
            (path / "cgroup.procs").write_text(str(container.pid))
            found = Site(kind, path, folder, container)
            found.restrict()
            yield found
        deadline = time.monotonic() + 5
        while (path / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.01)


def one_error(result: proc.Result) -> str:
    lines = result.stderr.splitlines()
    assert (result.rc, len(lines), result.survivors) == (1, 1, []), result.stderr
    assert "level=error" in lines[0]
    assert "internal error" not in lines[0]
    return lines[0]


# -- given ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["createRuntime", "createContainer"])
def test_nodes_and_rules_are_given_and_nothing_more(site: Site, stage: hookproc.Stage) -> None:
    assert site.given() == [NONE] * 3
    result = site.hook(stage=stage)
    assert (result.rc, result.stdout, result.stderr, result.survivors) == (0, "", "", [])
    assert site.nodes() == list(NODES)
    assert site.given() == [ALL, ALL, NONE]


def test_at_create_container_a_cgroup_of_the_runtimes_is_not_widened(site: Site) -> None:
    """The hook's caller is in another mount namespace, as a runtime is, and in the container's cgroup."""
    before = site.picture()
    program = devicehook.entry(site.folder)
    hook = hookproc.inside(site.container, hookproc.command(WORDS, program))
    state = hookproc.json.dumps(site.container.state("createContainer")).encode()
    runtime = ["/bin/sh", "-c", '"$@"; exit $?', "sh", *hook]
    result = proc.run(runtime, stdin=state, timeout=30, preexec=lambda: devcgroups.join(site.cgroup))
    assert "is the runtime's own, too" in one_error(result)
    assert site.picture() == before


def test_at_create_container_an_unseen_runtime_is_one_line(site: Site) -> None:
    before = site.picture()
    result = site.hook(stage="createContainer", extra="from nvoci.hook import enter\nenter._is_in = lambda *_: True\n")
    line = one_error(result)
    assert "no process is seen that called us from another mount namespace" in line
    assert "(call the hook as createRuntime or prestart)" in line
    assert site.picture() == before


@pytest.mark.parametrize("stage", ["createRuntime", "createContainer"])
def test_looking_things_up_on_the_host_has_a_deadline(unified: Site, stage: hookproc.Stage) -> None:
    before = unified.picture()
    extra = (
        "import devicehook, select\n"
        "class Slow:\n    steps = lambda self, state, place: select.select([], [], [], 20)\n"
        "devicehook.prepare = lambda options, settings: Slow()\n"
    )
    result = unified.hook(*WORDS, "--timeout", "1", extra=extra, stage=stage)
    assert "not finished after" in one_error(result)
    assert result.wall < 10
    assert unified.picture() == before


def test_a_second_run_changes_nothing(site: Site) -> None:
    assert site.hook().ok
    before = site.picture(), devcgroups.ids(site.cgroup) if site.kind == "unified" else []
    assert site.hook().ok
    assert (site.picture(), devcgroups.ids(site.cgroup) if site.kind == "unified" else []) == before


def test_without_cgroups_only_the_nodes_are_given(site: Site) -> None:
    assert site.hook(*WORDS, "--no-cgroups").ok
    assert (site.nodes(), site.given()) == (list(NODES), [NONE] * 3)


def test_a_dry_run_says_it_and_does_nothing(site: Site) -> None:
    before = site.picture()
    result = site.hook(*WORDS, "--allow", "c 10:232 r", "--dry-run")
    assert result.stdout.splitlines() == [
        "devices: mount /dev/fuse (c 10:229) on /dev/fuse, and allow rw",
        "devices: mknod /dev/loop-control c 10:237 mode 0600, and allow rw",
        "devices: allow c 10:232 r",
    ]
    assert site.picture() == before


def test_hundreds_of_rules_fit_into_one_request(site: Site) -> None:
    rules = [word for minor in range(600) for word in ("--allow", f"c 200:{minor} rw")]
    assert site.hook("devices", *rules, "--allow", "c 10:229 rw").ok
    assert site.given() == [ALL, NONE, NONE]


def test_more_rules_than_a_request_has_room_for_are_an_error(unified: Site) -> None:
    before = unified.picture()
    extra = (
        "import devicehook\nfrom nvoci.linux.devicerule import DeviceRule\n"
        "from nvoci.hook.operation import AllowDevices\n"
        "devicehook.plan = lambda prepared, container: [AllowDevices([DeviceRule('c', 200, n) for n in range(6000)])]\n"
        "devicehook.plan.__module__ = 'devicehook'\n"
    )
    assert "too many devices for one container" in one_error(unified.hook(extra=extra))
    assert unified.picture() == before


def test_other_hooks_neither_load_it_nor_make_a_second_pipe(unified: Site) -> None:
    words = ("create-symlinks", "--link", "t::/dev/x")
    entry = str(devicehook.entry(unified.folder))
    command = [session.PYTHON, "-ISB", "-X", "importtime", entry, *words]
    state = hookproc.json.dumps(unified.container.state()).encode()
    told = subprocess.run(command, input=state, capture_output=True, check=True).stderr.decode()
    loaded = {line.split()[-1] for line in told.splitlines()}
    assert "nvoci.hook.work" in loaded
    assert not loaded & {"nvoci.hook.grant", "nvoci.linux.cgroup", "nvoci.linux.bpf", "nvoci.linux.deviceprog"}
    plain = strace.count_syscalls(lambda prefix: unified.hook(*words, prefix=prefix))
    assert (plain["pipe2"], "bpf" in plain) == (2, False)  # of the report, and of what the worker says


# -- one of the two fails or dies -----------------------------------------------------------------------------------

IN_WORKER = "import posix, select\nfrom nvoci.hook import enter, watchdog\nfrom nvoci.errors import HookError\n"
AFTER = IN_WORKER + "enter.Place.check_alive = lambda self: {}\n"
IN_PARENT = IN_WORKER + (
    "from nvoci.linux import cgroup\nallow = cgroup.DeviceCgroup.allow\n"
    "def slow(self, rules):\n    {before}\n    allow(self, rules)\n    {after}\ncgroup.DeviceCgroup.allow = slow\n"
)
FAILURES = {
    "the worker fails after the answer": (
        AFTER.format("(_ for _ in ()).throw(HookError('gone meanwhile'))"),
        "gone meanwhile",
    ),
    "the worker dies after the answer": (AFTER.format("posix.kill(posix.getpid(), 9)"), "worker in the container's"),
    "the parent may not": (
        IN_PARENT.format(before="raise HookError('not today')", after="pass"),
        "device rules: not today",
    ),
    "time is up while the parent works": (
        IN_PARENT.format(before="pass", after="select.select([], [], [], 2)"),
        "not finished after 1 s",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_everything_is_undone_when(site: Site, name: str) -> None:
    extra, reason = FAILURES[name]
    before = site.picture()
    line = one_error(site.hook(*WORDS, "--timeout", "1", extra=extra))
    assert reason in line
    if "dies" in name:
        return_to(site)  # nobody was left to take the mount and the node away
        assert site.given() == [NONE] * 3
    else:
        assert site.picture() == before
    assert site.hook().ok
    assert site.given() == [ALL, ALL, NONE]


def return_to(site: Site) -> None:
    """What was left is only in the container, whose start has failed."""
    assert site.nodes() == list(NODES)


def test_a_program_that_cannot_be_merged_leaves_everything_as_it_was(unified: Site) -> None:
    number = devcgroups.attach(unified.cgroup, HELPER)
    before, ids = unified.picture(), devcgroups.ids(unified.cgroup)
    line = one_error(unified.hook())
    assert (
        f"device rules: device cgroup /{unified.cgroup.name}: merge device program {number}: it calls a function"
        in line
    )
    assert (unified.picture(), devcgroups.ids(unified.cgroup)) == (before, ids)


@pytest.mark.parametrize("stage", ["createRuntime", "createContainer"])
@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
def test_bpf_that_is_refused_is_one_line(unified: Site, stage: hookproc.Stage, error: str) -> None:
    before = unified.picture()
    line = one_error(unified.hook(stage=stage, prefix=strace.inject_error("bpf", error)))
    assert f"ask for its device programs: {error} (" in line
    assert unified.picture() == before


def test_a_module_that_does_not_say_that_it_gives_devices_may_not(unified: Site) -> None:
    before = unified.picture()
    result = unified.hook(extra="import devicehook\ndevicehook.DEVICES = False\n")
    assert (result.rc, "no hook of this run may ask for them" in result.stderr) == (1, True)
    assert unified.picture() == before


def test_a_signal_while_the_parent_works_undoes_everything(site: Site) -> None:
    before = site.picture()
    mark = site.folder / "applied"
    extra = IN_PARENT.format(
        before="pass", after=f"posix.close(posix.open({str(mark)!r}, 0o101, 0o600)); select.select([], [], [], 1)"
    )
    process = start(site, extra)
    wait_for(mark)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 1
    assert b"ended by signal 15" in stderr
    assert site.picture() == before


def test_a_parent_that_is_killed_takes_the_worker_along_and_a_rerun_completes(site: Site) -> None:
    mark = site.folder / "applied"
    extra = IN_PARENT.format(
        before="pass", after=f"posix.close(posix.open({str(mark)!r}, 0o101, 0o600)); select.select([], [], [], 9)"
    )
    process = start(site, extra)
    wait_for(mark)
    workers = proc.children(process.pid)
    process.kill()
    process.communicate(timeout=20)
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}/fd").exists() and alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(alive(pid) for pid in workers)
    assert site.hook().ok
    assert (site.nodes(), site.given()) == (list(NODES), [ALL, ALL, NONE])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def start(site: Site, extra: str) -> subprocess.Popen[bytes]:
    """The hook, left running."""
    argv = hookproc.command(WORDS, devicehook.entry(site.folder, extra))
    state = site.folder / "state"
    state.write_bytes(hookproc.json.dumps(site.container.state()).encode())
    with state.open("rb") as source:
        return subprocess.Popen(
            argv, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 15
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- SIGKILL --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["bpf", "mknodat", "move_mount", "renameat2", "pipe2", "unlinkat"])
def test_a_rerun_after_sigkill_completes(unified: Site, call: str) -> None:
    """At each use of a call that changes something. Killed where no undo runs, both are left half-done."""
    counts = strace.count_syscalls(lambda prefix: unified.hook("devices", *WORDS[1:], prefix=prefix))
    assert unified.hook().ok
    good = unified.picture()
    if call == "move_mount" and hookproc.COMPAT_SWITCH in os.environ:
        pytest.skip("the call is taken away")
    assert counts.get(call)
    for when in range(1, counts[call] + 1):
        start_afresh(unified)
        unified.hook(prefix=strace.inject_kill(call, when))
        result = unified.hook()
        assert (result.rc, result.stderr) == (0, ""), f"{call} {when}"
        assert unified.picture() == good, f"{call} {when}"


def start_afresh(site: Site) -> None:
    """The container as it was before any hook, and one program attached."""
    target = ["/usr/bin/nsenter", "--target", str(site.container.pid), "--mount", "/bin/sh", "-c"]
    dev = f"{site.container.rootfs}/dev"
    script = f"umount {dev}/fuse 2>/dev/null; rm -rf {dev}/fuse {dev}/loop-control {dev}/.nvoci-tmp*"
    subprocess.run([*target, script], check=True)
    directory = os.open(site.cgroup, os.O_RDONLY)
    for number in devcgroups.ids(site.cgroup):
        fd = devcgroups.bpf.prog_fd(number)
        devcgroups.bpf.prog_detach(directory, fd)
        os.close(fd)
    os.close(directory)
    site.restrict()
