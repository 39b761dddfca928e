"""`nvidia-container-cli configure` as it is called: from a runtime's hook, and, standalone, as enroot and LXC do."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from e2e.gpunode import make_image
from e2e.prestartnode import PrestartNode
from lib import jail, oracle, rootfs, runtimes, session
from lib.bundle import Json, shell_hook

pytestmark = pytest.mark.e2e
V = "550.163.01"
LIB = f"/usr/lib/{rootfs.TRIPLET}"
# ENXIO: the open was allowed, and there is no driver.
YES, NO = "No such device or address", "Operation not permitted"
NODES = {"/dev/nvidiactl": "195:255", "/dev/nvidia-uvm": "510:0", "/dev/nvidia-uvm-tools": "510:1"}
REPORT = r"""
say() { printf '%s\t%s\n' "$1" "$2"; }
opens() { error=$( (: <"$1") 2>&1 ) && error=ok; echo "${error##*: }"; }
awk '{ print "mount " $5 "\t" $6 }' /proc/self/mountinfo
for path in /dev/nvidia*; do
    say "node $path" "$(printf '%d:%d' "0x$(stat -c %t "$path")" "0x$(stat -c %T "$path")") $(opens "$path")"
done
say params "$(sed -n 's/^ModifyDeviceFiles: //p' /proc/driver/nvidia/params)"
ldconfig -p | sed -n 's/^\t\([^ ]*\) (.*) => \(.*\)$/library \1\t\2/p'
"""
DEVICES = Path("/sys/fs/cgroup/devices")
PROGRAM = "nvidia-container-cli: "


@pytest.fixture
def cli(installed: Path) -> Path:
    return installed.parent / "nvidia-container-cli"


@pytest.fixture
def node(cli: Path) -> PrestartNode:
    return PrestartNode(cli)


@pytest.fixture
def image() -> Iterator[Path]:
    root = make_image(session.new_dir("image"))
    yield root
    shutil.rmtree(root, ignore_errors=True)


def hook(cli: Path, root: Path, *words: str, main: Sequence[str] = ()) -> Json:
    """What an administrator would write: the pid of the state, and a fixed request."""
    pid = """pid=$(tr -d '\\n' | sed 's/.*"pid": *\\([0-9]*\\).*/\\1/')"""
    return shell_hook(f"{pid}; exec {shlex.join([str(cli), *main, 'configure', *words])} --pid=$pid {root}")


# -- a process is named -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cgroups", ["v1", "v2"])
def test_a_container_gets_what_is_named_and_may_open_just_that(
    node: PrestartNode, runtime: str, cgroups: str, cli: Path, image: Path
) -> None:
    entry = hook(cli, image, "--device=0,GPU-12345678-1234-1234-1234-123456780003", "-cu", "--require=driver>=500")
    probe = 'mknod /tmp/n1 c 195 1; say other "$(opens /tmp/n1)"'
    seen = node.start(runtime, None, root=image, entries=[entry], cgroups=cgroups, script=REPORT + probe)
    assert seen.result.rc == 0, seen.result.stderr
    assert (seen.result.survivors, seen.result.mounts_added, runtimes.leftovers()) == ([], [], [])
    nodes = {**NODES, "/dev/nvidia0": "195:0", "/dev/nvidia3": "195:3"}
    for path, number in nodes.items():
        assert seen.said[f"node {path}"] == f"{number} {YES}"
        assert seen.said[f"mount {path}"].startswith("ro,nosuid,noexec")
    assert {key[5:] for key in seen.said if key.startswith("node /dev/nvidia")} == set(nodes)
    assert seen.said["other"] == NO
    assert seen.said["params"] == "0"
    assert seen.said["library libcuda.so.1"].endswith(f"{LIB[4:]}/libcuda.so.1")
    assert seen.said[f"mount {LIB}/libcuda.so.{V}"].startswith("ro,nosuid,nodev")
    assert f"mount {LIB}/libGLX_nvidia.so.{V}" not in seen.said


def test_it_does_what_the_hook_does_for_the_same_words(installed: Path, node: PrestartNode, image: Path) -> None:
    words = ("--device=0,1", "--compute", "--utility", "--graphics", "--cuda-compat-mode=ldconfig")
    by_cli = node.start("runc", None, root=image, entries=[hook(node.program, image, *words)])
    other = make_image(session.new_dir("image"))
    by_hook = PrestartNode(installed.parent / "nvidia-container-runtime-hook").start(
        "runc", "0,1", "compute,utility,graphics", root=other
    )
    shutil.rmtree(other)
    assert (by_cli.result.rc, by_hook.result.rc) == (0, 0), by_cli.result.stderr + by_hook.result.stderr
    assert len(by_cli.said) > 60
    assert by_cli.said == by_hook.said


# words -> the container does not start, and stderr has this
REFUSED = {
    "a GPU that is not there": (["--device=9"], "device error: 9: unknown device ("),
    "a UUID cut short": (["--device=GPU-12345678"], "device error: GPU-12345678: unknown device ("),
    "none": (["--device=none"], "device error: none: unknown device ("),
    "a requirement": (["--device=0", "--require=cuda>=99"],
                      "requirement error: unsatisfied condition: cuda>=99, please update your driver to a newer"),
    "no expression": (["-r", "cuda"], "requirement error: invalid expression ("),
    "MIG of some": (["--device=0", "--mig-config=0"], "mig-config error: 0: only 'all' devices are currently supp"),
    "a channel that is not there": (["--imex-channel=5"],
                                    "mount error: stat failed: /dev/nvidia-caps-imex-channels/channel5: "),
    "no channel": (["--imex-channel=x"], "error parsing IMEX info: unsupported IMEX channel value: x ("),
    "a mode": (["--cuda-compat-mode=hook"], "container error: invalid option: cuda-compat-mode=hook ("),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_container_that_cannot_have_it_does_not_start(node: PrestartNode, cli: Path, image: Path, name: str) -> None:
    words, message = REFUSED[name]
    before = oracle.snapshot(image)
    seen = node.start("runc", None, root=image, entries=[hook(cli, image, *words)])
    assert seen.result.rc == 1
    assert seen.said == {}
    told = [line for line in seen.result.stderr.splitlines() if PROGRAM + message in line]
    assert len(told) == 1, seen.result.stderr
    assert (seen.result.survivors, seen.result.mounts_added) == ([], [])
    # What runc itself makes is no matter here.
    changed = [each for each in oracle.changes(before, oracle.snapshot(image)) if "nvidia" in each or "etc/" in each]
    assert changed == []


def test_of_a_user_namespace_files_belong_to_its_root(node: PrestartNode, cli: Path, image: Path) -> None:
    subprocess.run(["chown", "-hR", "100000:100000", image], check=True)
    probe = f"stat -c 'owner\t%u:%g' {LIB}/libcuda.so\n"
    # A second, uncovered procfs: without one the kernel lets no user namespace mount its own.
    seen = node.start(
        "runc", None, root=image, entries=[hook(cli, image, "--device=0", "-cu", "--no-cgroups")],
        script=REPORT + probe, userns=(100000, 65536), setup=f"mount -t proc proc {session.new_dir('proc')}\n",
    )  # fmt: skip
    assert seen.result.rc == 0, seen.result.stderr
    assert seen.said["node /dev/nvidia0"].startswith("195:0 ")
    assert seen.said["owner"] == "0:0"
    assert seen.said["library libcuda.so.1"].endswith(f"{LIB[4:]}/libcuda.so.1")


def test_a_process_that_is_in_no_container_is_believed(node: PrestartNode, cli: Path) -> None:
    """It has a mount namespace of its own, and no cgroup or pid namespace."""
    root = bare_root()
    script = f"""
        {prepared(root)}
        other='mount -t tmpfs tmpfs {root}/dev; echo; exec sleep 30'
        unshare --mount --propagation private sh -c "$other" >{root}/ready &
        while ! test -s {root}/ready; do sleep 0.01; done
        {cli} configure --pid=$! --device=0 --utility --no-cgroups {root}; echo rc $?
        nsenter --target $! --mount ls {root}/dev
        echo --; ls {root}/dev
        kill $!
    """
    result = jail.run(["/bin/sh", "-c", script], setup=node.setup())
    assert result.stdout.split() == ["rc", "0", "nvidia0", "nvidiactl", "--"], result.stderr


@pytest.mark.security
@pytest.mark.skipif(not DEVICES.is_dir(), reason="no device lists (cgroup v1)")
@pytest.mark.parametrize("words", ["--pid=$P", "--pid=$P --no-devbind"])
def test_a_service_of_the_host_is_not_given_devices(node: PrestartNode, cli: Path, words: str) -> None:
    """It is in the mount namespace of whoever calls, and has a cgroup of its own."""
    root = bare_root()
    group = DEVICES / f"{session.TOKEN}-service"
    script = f"""
        {prepared(root)}
        mkdir {group} && echo a >{group}/devices.deny && echo 'c 1:3 rwm' >{group}/devices.allow
        sleep 60 & P=$!; echo $P >{group}/cgroup.procs
        {cli} configure {words} --device=0 -cu {root}; echo rc $?
        cat {group}/devices.list; ls {root}/dev
        kill $P; wait $P; rmdir {group}
    """
    result = jail.run(["/bin/sh", "-c", script], setup=node.setup())
    assert result.stdout.splitlines() == ["rc 1", "c 1:3 rwm"]
    told = result.stderr.splitlines()[0]
    assert told.startswith(f"{PROGRAM}container error: pid ")
    assert " is in this mount namespace, in another cgroup, and has not called (name a process of the" in told


def test_who_called_may_be_named(node: PrestartNode, cli: Path) -> None:
    """As well as any process that has nothing else than the command itself."""
    root = bare_root()
    call = f"{cli} configure --pid=$pid -d0 -u --no-cgroups {root}"
    script = f"{prepared(root)}sleep 60 & for pid in $$ $!; do {call} || echo bad; done; ls {root}/dev; kill $!"
    result = jail.run(["/bin/sh", "-c", script], setup=node.setup())
    assert result.stdout.split() == ["nvidia0", "nvidiactl"], result.stderr


# -- whoever calls stands for the container ---------------------------------------------------------------------------


def bare_root() -> Path:
    """An image as far as it is looked at: Debian's, with no programs."""
    root = session.new_dir("bare")
    rootfs.tree(root, f"file etc/debian_version 12\ndir proc\ndir dev\ndir run\ndir usr/bin\ndir {LIB[1:]}\ndir lib64")
    return root


def prepared(root: Path) -> str:
    """Shell lines that make ROOTFS a mount, and give it a procfs (with that of the driver) and a /dev."""
    binds = f"mount --rbind {root} {root}\nmount --rbind /proc {root}/proc\n"
    return f"{binds}mount -t tmpfs -o mode=755 tmpfs {root}/dev\n"


def seen_in(root: Path) -> str:
    """Shell lines: what is mounted there, a path and its options in a line."""
    return f"sed -n 's|^[0-9]* [0-9]* [0-9:]* [^ ]* {root}\\(/[^ ]*\\) \\([^ ]*\\) .*|\\1 \\2|p' /proc/self/mountinfo"


WORDS = ("--no-cgroups", "--ldconfig=@/sbin/ldconfig", "--device=0,1", "--compute", "--utility")
ENROOT = tuple("setpriv --reuid=1000 --regid=1000 --clear-groups unshare --user --map-root-user --mount".split())
CALLERS = {
    "root, in a namespace of its own": ("unshare", "--mount", "--propagation", "private"),
    "root, on a mount that is shared": ("unshare", "--mount", "--propagation", "shared"),
    "enroot": ENROOT,
    "LXC": (*ENROOT, "--pid", "--fork"),
}


@pytest.mark.parametrize("name", CALLERS)
def test_standalone(node: PrestartNode, cli: Path, name: str) -> None:
    """enroot: one user is root of a user namespace. LXC: the hook is in the container's pid namespace, and sees the
    procfs of the host."""
    root = bare_root()
    subprocess.run(["chown", "-R", "1000:1000", root], check=True)
    script = f"set -e\n{prepared(root)}{cli} --user configure {shlex.join(WORDS)} {root} 2>&1\n{seen_in(root)}"
    script += f"\nstat -c '%n %t:%T' {root}/dev/nvidia*"
    script += f"\nsed -n 's/^ModifyDeviceFiles/params/p' {root}/proc/driver/nvidia/params"
    result = jail.run([*CALLERS[name], "/bin/sh", "-c", script], setup=node.setup())
    assert (result.rc, result.stderr, result.survivors) == (0, "", []), result.stdout
    said = result.stdout.splitlines()
    mounted = dict(line.replace(",relatime", "").split(" ", 1) for line in said if line.startswith("/"))
    nodes = [*NODES, "/dev/nvidia0", "/dev/nvidia1"]
    assert [mounted[path] for path in nodes] == ["ro,nosuid,noexec"] * 5
    assert mounted[f"{LIB}/libcuda.so.{V}"] == mounted["/usr/bin/nvidia-smi"] == "ro,nosuid,nodev"
    assert mounted["/proc/driver/nvidia"] == "ro,nosuid,nodev,noexec"
    gpus = [path for path in mounted if path.startswith("/proc/driver/nvidia/gpus/")]
    assert [path.rpartition("/")[2] for path in gpus] == ["0000:07:00.0", "0000:0f:00.0"]
    assert "params: 0" in said
    assert f"{root}/dev/nvidia1 c3:1" in said
    assert (root / "etc/ld.so.cache").stat().st_size > 100
    assert (root / f"{LIB[1:]}/libcuda.so.1").readlink() == Path(f"libcuda.so.{V}")
    shutil.rmtree(root)


@pytest.mark.skipif(not DEVICES.is_dir(), reason="no device lists (cgroup v1)")
@pytest.mark.parametrize("words", ["--device=1", "--device=1 --no-cgroups", "--device=1 --no-devbind", "-d9"])
def test_standalone_the_cgroup_of_the_process_that_calls_may_open_them(
    node: PrestartNode, cli: Path, words: str
) -> None:
    root = bare_root()
    group = DEVICES / f"{session.TOKEN}-cli"
    script = f"""
        {prepared(root)}
        mkdir {group} && echo a >{group}/devices.deny && echo 'c 1:3 rwm' >{group}/devices.allow
        (echo 0 >{group}/cgroup.procs; sh -c '{cli} configure {words} --utility {root}; :')
        cat {group}/devices.list; rmdir {group}
    """
    result = jail.run(["/bin/sh", "-c", script], setup=node.setup())
    given = {"c 195:255 rw", "c 195:1 rw"} if words in ("--device=1", "--device=1 --no-devbind") else set()
    assert set(result.stdout.splitlines()) == {"c 1:3 rwm", *given}, result.stderr


def test_standalone_in_the_namespace_of_the_process_that_calls(node: PrestartNode, cli: Path) -> None:
    """Not in that of the command itself, where that is another."""
    root = bare_root()
    script = f"{prepared(root)}unshare --mount --propagation private {cli} configure --no-cgroups -d0 -u {root}\n"
    result = jail.run(["/bin/sh", "-c", f"{script}ls {root}/dev"], setup=node.setup())
    assert (result.rc, result.stdout.split()) == (0, ["nvidia0", "nvidiactl"]), result.stderr


def test_no_device_node_is_mounted_where_nobody_wants_that(node: PrestartNode, cli: Path) -> None:
    root = bare_root()
    script = f"set -e\n{prepared(root)}{cli} configure --no-cgroups --no-devbind -dall -cu {root}\n{seen_in(root)}"
    result = jail.run(["/bin/sh", "-c", script], setup=node.setup())
    assert result.rc == 0, result.stderr
    assert "/dev/nvidia" not in result.stdout
    assert f"{LIB}/libcuda.so.{V} ro" in result.stdout


def test_a_failure_half_way_leaves_nothing(node: PrestartNode, cli: Path) -> None:
    """The last of the mounts cannot be made: a directory is in its way."""
    root = bare_root()
    (root / f"{LIB[1:]}/libnvidia-ptxjitcompiler.so.{V}").mkdir()
    before = oracle.content_only(oracle.snapshot(root))
    mounts = session.tmp() / session.unique("mounts")
    script = f"{prepared(root)}{seen_in(root)} >{mounts}\n{cli} configure --no-cgroups -dall -cu {root}; echo rc $?\n"
    script += f"{seen_in(root)} | cmp - {mounts} && ls -A {root}/dev"
    result = jail.run(["/bin/sh", "-c", script], setup=node.setup())
    assert result.stdout == "rc 1\n"
    assert result.stderr.startswith(f"{PROGRAM}mount error: mount "), result.stderr
    assert "EISDIR" in result.stderr
    assert oracle.content_only(oracle.snapshot(root)) == before
    shutil.rmtree(root)


@pytest.mark.parametrize("words", [("configure", "/rootfs"), ("--user", "configure", "--pid=1", "/rootfs")])
def test_who_may_not_mount_is_told_so(node: PrestartNode, cli: Path, words: Sequence[str]) -> None:
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    result = jail.run([*drop, cli, *words], setup=node.setup())
    message = f"{PROGRAM}permission error: capability change failed: operation not permitted ("
    assert (result.rc, result.stdout, result.stderr.startswith(message)) == (1, "", True), result.stderr


def test_a_process_that_is_gone(node: PrestartNode, cli: Path) -> None:
    result = jail.run([cli, "configure", "--pid=4000000", "/tmp/nowhere"], setup=node.setup())
    told = f"{PROGRAM}container error: pid 4000000: no such process (ESRCH"
    assert (result.rc, result.stderr.startswith(told)) == (1, True)
