"""Published vulnerabilities in which code, an environment, rights or devices reach whom they are not meant for: what
hooks start, load and allow, and the library of an image that becomes the host's."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from e2e.gpunode import COMPAT_DIR
from e2e.prestartnode import PrestartNode
from e2e.prestartview import image, mounts, part
from lib import hookproc, proc, rootfs, session
from lib.flipper import Flipper
from lib.hookproc import FakeContainer, run_hook
from lib.oracle import Oracle
from lib.runtimes import Runtime, make_bundle
from security import naive_cves, test_environment
from security.arena import LDCACHE, LIBDIR, STAGES, Arena, attempt
from security.test_paths import COMPAT_ARGS, LINK

NAIVE = Path(__file__).with_name("naive_cves.py")
RUN = ["run", "--", *LINK, "--", *COMPAT_ARGS, "--", *LDCACHE["ldconfig"]]
MOUNT_MODE = '[nvidia-container-runtime.modes.legacy]\ncuda-compat-mode = "mount"\n'


@pytest.fixture(scope="session")
def hook() -> Path:
    """`nvidia-container-runtime-hook` of this checkout, installed."""
    prefix = session.tmp() / "installed-cves"
    command = [session.PYTHON, session.CHECKOUT / "scripts/install", "--prefix", prefix, "--python", session.PYTHON]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return prefix / "bin/nvidia-container-runtime-hook"


@pytest.fixture
def node(hook: Path) -> PrestartNode:
    return PrestartNode(hook)


def start(arena: Arena, runtime: str, words: Sequence[str], shell: str, *, naive: bool = False) -> proc.Result:
    """A container from the image with this hook; what its shell says."""
    if not (arena.root / "bin").exists():
        rootfs.tree(arena.root, "dir bin\ndir usr/bin")
        shutil.copy2("/bin/busybox", arena.root / "bin/busybox")
        rootfs.tree(arena.root, "symlink bin/sh busybox")
    entry = hookproc.hook_entry(words, program=NAIVE if naive else None)
    argv = ["/bin/sh", "-c", shell]
    bundle = make_bundle(arena.top / "bundle", arena.root, argv, {"createRuntime": [entry]})
    return Runtime(runtime).run(bundle)


# -- 2024-0132, 2025-23359: the compatibility library -----------------------------------------------------------------


def test_cve_2024_0132_a_compatibility_library_that_is_a_link(node: PrestartNode, runtime: str) -> None:
    """Whether it leads up, to the host's absolute path, or through /proc: nothing of the host is mounted."""
    root, canary = image(), session.new_dir("canary")
    (canary / "libcuda.so.580.1").write_text("host")
    compat = root / COMPAT_DIR[1:]
    texts = [f"{canary}/libcuda.so.580.1", f"../../../../../../../..{canary}/libcuda.so.580.1",
             f"/proc/1/root{canary}/libcuda.so.580.1", f"/proc/self/root{canary}/libcuda.so.580.1"]  # fmt: skip
    for n, text in enumerate(texts):
        (compat / f"libcuda.so.58{n}.1").symlink_to(text)
    with Oracle(canary) as oracle:
        script = "cat /proc/self/mountinfo; cat /usr/lib/*/libcuda.so.58*"
        seen = node.start(runtime, "0", root=root, config=MOUNT_MODE, script=script)
        assert oracle.check() == []
    assert str(canary) not in seen.result.stdout
    assert "host" not in seen.result.stdout.split()
    shutil.rmtree(root)


def test_naive_cve_2024_0132(arena: Arena, runtime: str) -> None:
    rootfs.tree(arena.root, f"symlink {naive_cves.LIBRARY} {arena.canary}/secret")
    seen = start(arena, runtime, ["compat-mount"], f"/bin/busybox cat /{naive_cves.TARGET}", naive=True)
    assert seen.stdout.strip() == "canary", seen.stderr


def flipping(arena: Arena, *, count: int) -> int:
    """How often a naive look and a second resolution of the same name give the host's file: the race that
    test_prestart_races.py::test_cve_2025_23359_… holds against the real hook."""
    root = str(arena.root)
    rootfs.tree(arena.root, f"file {naive_cves.LIBRARY} image\nsymlink usr/local/cuda/other {arena.canary}/secret")
    path = f"{root}/{naive_cves.LIBRARY}"
    theirs, escaped = os.stat(arena.canary / "secret").st_ino, 0
    with Flipper(path, f"{root}/usr/local/cuda/other"):
        for _ in range(count):
            try:
                looked = os.path.realpath(path)
            except OSError:
                continue  # a link a moment ago, and a file when it was read
            if looked.startswith(root):
                escaped += os.stat(path).st_ino == theirs
            if escaped:
                break
    return escaped


def test_naive_cve_2025_23359_a_look_before_the_mount_is_not_enough(arena: Arena) -> None:
    assert flipping(arena, count=200_000)


def test_cve_2025_23359_on_a_runtime_while_it_flips(node: PrestartNode, runtime: str, long: bool) -> None:
    root, canary = image(), session.new_dir("canary")
    (canary / "libcuda.so.580.1").write_text("host")
    compat = root / COMPAT_DIR[1:]
    (compat / "libcuda.so.580.1").write_text("image")
    (compat / "other").symlink_to(f"../../../../../../../..{canary}/libcuda.so.580.1")
    for _ in range(30 if long else 1):
        with Flipper(compat / "libcuda.so.580.1", compat / "other"), Oracle(canary) as oracle:
            seen = node.start(runtime, "0", root=root, config=MOUNT_MODE, script="cat /usr/lib/*/libcuda.so.580.1 2>&1")
            assert oracle.check() == []
        assert seen.result.stdout.strip() != "host"
    shutil.rmtree(root)


# -- 2024-0136, 2024-0137: the container's ldconfig --------------------------------------------------------------------

RAN = "#!/bin/sh\nid > /ran-in-the-container\nreadlink /proc/self/ns/net > {canary}/ran\n"
PATHS = {
    "the usual one": ("/sbin/ldconfig", True),
    "without @, of the image alone": ("/opt/ldconfig", False),
    "in the root": ("{root}/sbin/ldconfig", False),
    "relative": ("sbin/ldconfig", False),
    "relative to the working directory": ("./sbin/ldconfig", False),
    "by the working directory": ("/proc/self/cwd/sbin/ldconfig", True),  # which is `/` by then: the host's
    "with @": ("@/sbin/ldconfig", False),
}


def with_ldconfig(arena: Arena) -> None:
    script = RAN.format(canary=arena.canary).replace("\n", "\\n")
    rootfs.tree(
        arena.root, f"exec sbin/ldconfig {script}\nexec opt/ldconfig {script}\nexec sbin/ldconfig.real {script}"
    )


def ran(arena: Arena, kind: str, stage: str) -> None:
    """The image's ldconfig never runs; whichever path is given, the host's does, or none."""
    with_ldconfig(arena)
    path, ok = PATHS[kind]
    words = [*LDCACHE["ldconfig"], "--ldconfig-path", path.format(root=arena.root)]
    found = attempt(arena, words, stage, ok=ok, still=False, cwd=arena.root)
    assert found == []
    assert not (arena.root / "ran-in-the-container").exists()


@pytest.mark.parametrize("kind", PATHS)
def test_cve_2024_0136_the_container_s_ldconfig_never_runs(arena: Arena, kind: str) -> None:
    ran(arena, kind, "outside")


@pytest.mark.parametrize("kind", ["the usual one", "relative", "by the working directory"])
def test_cve_2024_0137_nor_in_the_host_s_network(arena: Arena, kind: str) -> None:
    ran(arena, kind, "inside")


@pytest.mark.parametrize("value", ["/sbin/ldconfig", "sbin/ldconfig", "@sbin/ldconfig"])
def test_cve_2024_0136_a_configuration_that_names_it_is_refused(node: PrestartNode, runtime: str, value: str) -> None:
    root = image()
    rootfs.tree(root, "exec usr/sbin/ldconfig #!/bin/sh\\ntouch /ran\\n")
    seen = node.start(runtime, "0", root=root, config=f'[nvidia-container-cli]\nldconfig = "{value}"\n')
    assert seen.result.rc != 0
    assert not (root / "ran").exists()
    shutil.rmtree(root)


def test_cve_2024_0137_where_it_is_allowed_it_does_not_run_either(node: PrestartNode, runtime: str) -> None:
    """features.allow-ldconfig-from-container: the cache is made without running anything of the container."""
    root = image()
    rootfs.tree(root, "exec usr/sbin/ldconfig #!/bin/sh\\ntouch /ran\\n")
    config = '[nvidia-container-cli]\nldconfig = "/sbin/ldconfig"\n[features]\nallow-ldconfig-from-container = true\n'
    seen = node.start(runtime, "0", root=root, config=config, script="exit 0")
    assert seen.result.rc == 0, seen.result.stderr
    assert not (root / "ran").exists()
    shutil.rmtree(root)


def test_naive_cve_2024_0136(arena: Arena, runtime: str) -> None:
    with_ldconfig(arena)
    start(arena, runtime, ["ldconfig", "/sbin/ldconfig"], "true", naive=True)
    assert (arena.canary / "ran").exists()


# -- 2021-1056: a node of another GPU ----------------------------------------------------------------------------------

OTHER = "mknod /tmp/other c 195 1; (: </tmp/other) 2>&1; echo done"


@pytest.mark.parametrize("cgroups", ["v1", "v2"])
def test_cve_2021_1056_a_node_of_another_gpu_does_not_open(node: PrestartNode, runtime: str, cgroups: str) -> None:
    seen = node.start(runtime, "0", cgroups=cgroups)
    assert seen.result.rc == 0, seen.result.stderr
    assert part(seen, "other") == {"195:1": "Operation not permitted"}
    assert "/dev/nvidia0" in mounts(seen)
    assert "/dev/nvidia1" not in mounts(seen)


def test_naive_cve_2021_1056(arena: Arena) -> None:
    if not os.path.isdir("/sys/fs/cgroup/devices"):
        pytest.skip("no device cgroup of version 1")
    seen = start(arena, "runc", ["wildcard"], OTHER.replace("mknod", "/bin/busybox mknod"), naive=True)
    assert "done" in seen.stdout, seen.stderr
    assert "not permitted" not in seen.stdout


# -- what is started, and with what ------------------------------------------------------------------------------------


def traced(arena: Arena, calls: str, *, naive: bool = False, prefix: Sequence[str] = ()) -> str:
    """The calls of a hook that runs the host's ldconfig."""
    log = session.tmp() / session.unique("trace")
    trace = [*prefix, "strace", "-f", "-y", "-qqq", "-s", "200", "-e", f"trace={calls}", "-o", str(log)]
    words = ["confined"] if naive else LDCACHE["ldconfig"]
    with FakeContainer(arena.root) as c:
        result = run_hook(words, container=c, prefix=trace, program=NAIVE if naive else None)
    assert result.rc == 0, result.stderr
    return log.read_text(errors="replace")


def before_start(calls: str) -> str:
    """What was called, by whichever process, before ldconfig is started."""
    match = re.search(r'execve(at)?\(("[^"]*ldconfig"|\d+<[^>]*memfd)', calls)
    assert match, calls
    return calls[: match.start()]


SOME_CAPS = ["setpriv", "--inh-caps", "+chown,+dac_override,+sys_admin"]


def test_cve_2022_29162_nothing_is_inherited_by_what_is_started(arena: Arena) -> None:
    """Though the engine has given the hook inheritable capabilities."""
    calls = traced(arena, "execve,execveat,capset", prefix=SOME_CAPS)
    assert re.search(r"capset\(.*inheritable=0\}", before_start(calls)), calls


def test_naive_cve_2022_29162(arena: Arena) -> None:
    calls = traced(arena, "execve,execveat,capset", naive=True, prefix=SOME_CAPS)
    assert not re.search(r"capset\(.*inheritable=0\}", before_start(calls))


def test_cve_2016_9962_nobody_can_look_into_it_inside(arena: Arena) -> None:
    """Not dumpable before any process of ours enters a namespace of the container's."""
    calls = traced(arena, "prctl,setns")
    pids = {line.split()[0] for line in calls.splitlines() if "setns(" in line}
    assert pids
    before = calls.partition("setns(")[0]
    assert re.search(r"prctl\(PR_SET_DUMPABLE, (0|SUID_DUMP_DISABLE)", before), calls


def test_naive_cve_2016_9962(arena: Arena) -> None:
    assert "PR_SET_DUMPABLE" not in traced(arena, "prctl,setns", naive=True)


def test_cve_2019_5736_what_runs_is_a_sealed_copy(arena: Arena) -> None:
    """/proc/PID/exe of what is started on the container's files is no file of the host: test_cve_2024_0135_… reads
    the seals."""
    calls = traced(arena, "execve,execveat")
    assert re.search(r"execveat\(\d+<[^>]*memfd:", calls), calls
    assert not re.search(r'execve\("[^"]*ldconfig', calls)


def test_naive_cve_2019_5736(arena: Arena) -> None:
    assert re.search(r'execve\("[^"]*ldconfig', traced(arena, "execve,execveat", naive=True))


def leaked(arena: Arena, *, naive: bool = False) -> set[str]:
    """What processes below the hook have open, or stand in, of the host's directory that the engine left open."""
    fd = os.open(arena.canary, os.O_RDONLY)
    os.set_inheritable(fd, True)
    command = hookproc.command(["confined"] if naive else LDCACHE["ldconfig"], NAIVE if naive else None)
    found: set[str] = set()
    with FakeContainer(arena.root) as c:
        state = json.dumps(c.state()).encode()
        for _ in range(5):
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=[fd],
                                     cwd=arena.canary)  # fmt: skip
            assert child.stdin is not None
            child.stdin.write(state)
            child.stdin.close()
            while child.poll() is None:
                for pid in proc.descendants(child.pid):
                    found |= {t for t in targets(pid) if t.startswith(str(arena.canary))}
    os.close(fd)
    return found


def targets(pid: int) -> list[str]:
    """Where a process's descriptors, working directory and root lead."""
    try:
        names = [f"fd/{n}" for n in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        names = []
    out = []
    for name in (*names, "cwd"):
        try:
            out.append(os.readlink(f"/proc/{pid}/{name}"))
        except OSError:
            continue
    return out


def test_cve_2024_21626_no_process_has_a_directory_of_the_host(arena: Arena) -> None:
    assert leaked(arena) == set()


def test_naive_cve_2024_21626(arena: Arena) -> None:
    assert leaked(arena, naive=True)


# -- 2019-14271: loaded from the root ----------------------------------------------------------------------------------

MODULE = "netrc"


def hostile_libraries(arena: Arena) -> None:
    """Modules where Python of this version looks, that betray their import; every name that glibc loads late."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    host = proc.run([session.PYTHON, "-c", "import os; print(os.__file__)"]).stdout.strip()
    for folder in {f"usr/lib/{version}", os.path.dirname(host).lstrip("/")}:
        rootfs.tree(arena.root, f"file {folder}/{MODULE}.py open('/pwned', 'w').close()\\n")
    for name in ("libnss_files.so.2", "libnss_dns.so.2", "libgcc_s.so.1", "libc.so.6"):
        shutil.copy2(arena.root / LIBDIR / "libfoo.so.1.0", arena.root / LIBDIR / name)


@pytest.mark.parametrize("stage", STAGES)
def test_cve_2019_14271_nothing_is_loaded_from_the_root(arena: Arena, stage: str) -> None:
    """No file below the root is ever mapped to be executed."""
    hostile_libraries(arena)
    log = session.tmp() / session.unique("trace")
    trace = ["strace", "-f", "-y", "-qqq", "-e", "trace=mmap,mprotect,execve,execveat", "-o", str(log)]
    with FakeContainer(arena.root) as c:
        done = run_hook(RUN, container=c, stage=STAGES[stage], prefix=trace)
    assert done.rc == 0, done.stderr
    mapped = [line for line in log.read_text(errors="replace").splitlines() if "PROT_EXEC" in line]
    assert mapped, "nothing was seen"
    assert [line for line in mapped if f"<{arena.root}/" in line] == []
    assert not (arena.root / "pwned").exists()


def test_naive_cve_2019_14271(arena: Arena, runtime: str) -> None:
    hostile_libraries(arena)
    start(arena, runtime, ["chroot-import", MODULE], "true", naive=True)
    assert (arena.root / "pwned").exists()


# -- 2025-23266 is in test_cves.py; with the variables that other tools were led by -----------------------------------


def test_cve_2022_0811_annotations_and_variables_are_no_commands(arena: Arena, profile: str) -> None:
    """What an image or a pod says is text: not given to a shell, nor to anything that interprets it."""
    hostile = f"+kernel.core_pattern=|{arena.canary}/x; touch {arena.canary}/y `touch {arena.canary}/z` $(id)"
    change = {"annotations": {"io.kubernetes.cri-o.x": hostile, hostile: hostile}, "id": hostile}
    env = {**proc.PLAIN_ENV, "NVIDIA_VISIBLE_DEVICES": hostile, "BASH_ENV": hostile}
    words = ["create-symlinks", "--link", f"{hostile}::/made/link"]
    found = attempt(arena, words, change=change, env=env, ok=True, planned=["made", "made/**"], lines=1)
    assert found == []
    assert os.readlink(arena.root / "made/link") == hostile
    assert test_environment.check_entry(hookproc.hook_entry(words)) == []
