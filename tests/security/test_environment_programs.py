"""Rows O2, O5, O8, O11 and O12 for each of the three programs that are hooks: how they are started has no effect.

A program is run once as usual and once in each situation, on containers that are alike; they must end up alike.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from lib import hookproc, proc, session
from lib.hookproc import FakeContainer
from security import arena as arenas
from security import prestartscene, scalestarts
from security.prestartscene import Scene
from security.test_environment import hostile_image

How = dict[str, Any]
Situation = Callable[[], AbstractContextManager[How]]
Run = Callable[..., proc.Result]
Seen = Callable[[], object]

# -- the programs -----------------------------------------------------------------------------------------------------

CDI = [
    "run", "--", "create-symlinks", "--link", "t::/new/link", "--", "update-application-profile",
    "--", "enable-cuda-compat", "--host-driver-version", "550.1", "--", "update-ldcache", "--folder", "/opt",
]  # fmt: skip
# After imports are sealed, the program tries some and writes down which it got.
LATE = """
import sys
sys.path[:0] = [{hooks!r}]
from nvoci.hook import process
seal = process.seal_imports
def sealed():
    seal()
    got = []
    for name in ("json", "ctypes", "nvoci.hook.chmod", "nvoci.prestart.compile", "encodings.idna"):
        try:
            name in sys.modules or __import__(name) and got.append(name)
        except ImportError:
            got.append("")
    with open({record!r}, "a") as file:
        file.write(repr(got) + chr(10))
process.seal_imports = sealed
"""


@contextmanager
def cdi() -> Iterator[tuple[Run, Seen]]:
    """All hooks in one process."""
    arena = arenas.make(session.new_dir("arena"))
    with FakeContainer(arena.root, setup=arenas.GPU_NODE) as c:
        yield functools.partial(hookproc.run_hook, CDI, container=c), lambda: scalestarts.state_of(arena.root)


@contextmanager
def prestart() -> Iterator[tuple[Run, Seen]]:
    """On a node."""
    scene = Scene()
    with scene.container() as site:
        program = prestartscene.entry()
        run = functools.partial(hookproc.run_hook, ["prestart"], container=site.container, program=program)
        yield functools.partial(run, timeout=30), site.view


@contextmanager
def container_cli() -> Iterator[tuple[Run, Seen]]:
    """On a node that was looked at."""
    scene = Scene()
    with scene.container() as site:
        words = ["configure", "--device=0,1", "--compute", "--utility", "--cuda-compat-mode=ldconfig"]
        words += [f"--pid={site.container.pid}", str(scene.arena.root)]
        program = hookproc.entry("main", "nvoci.prestart.cli", "nvidia-container-cli")
        run = functools.partial(hookproc.run_hook, words, container=site.container, program=program)
        yield functools.partial(run, timeout=30), site.view


PROGRAMS = {"cdi-hook": cdi, "prestart": prestart, "container-cli": container_cli}
# What each adds to its own entry file's text.
CALLS = {
    "cdi-hook": ("nvoci.hook.main", "cdi_hook"),
    "prestart": ("nvoci.prestart.main", "main"),
    "container-cli": ("nvoci.prestart.cli", "main"),
}


def outcomes(name: str, situations: Mapping[str, Situation]) -> list[str]:
    """What was not as usual."""
    wanted, out = usual_outcome(name), []
    for each, situation in situations.items():
        with situation() as how, PROGRAMS[name]() as (run, seen):
            result = run(**how)
            if result.rc or "internal error" in result.stderr or "Traceback" in result.stderr:
                out.append(f"{each}: {result.rc} {result.stderr}")
            elif (now := seen()) != wanted:
                out.append(f"{each}: {differences(wanted, now)} {result.stderr}")
            lines = [line for line in result.stderr.splitlines() if "dangerous environment" not in line]
            out += [f"{each}: said {line}" for line in lines if "level=warning" not in line]
            out += [f"{each}: left {each_left}" for each_left in result.survivors + result.mounts_added]
    return out


def differences(wanted: Any, now: Any) -> object:
    if isinstance(wanted, prestartscene.View):
        return wanted.differences(now)
    return [each for each in {*wanted, *now} if wanted.get(each) != now.get(each)]


def usual_outcome(name: str) -> object:
    """As it should be; on a node it is looked at first."""
    if name == "container-cli":
        usual_outcome("prestart")
    for _ in range(2):
        with PROGRAMS[name]() as (run, seen):
            result = run()
            assert result.rc == 0, result.stderr
            found = seen()
    return found


def judged(name: str, body: Callable[[], Any]) -> Any:
    """Where the program has what it needs of a host."""
    return body() if name == "cdi-hook" else prestartscene.on_node(body)


# -- O2 ---------------------------------------------------------------------------------------------------------------

MARK = "used"
# Of the host's programs; `sh` and others are the image's own.
COMMANDS = ("ldconfig", "modprobe", "nvidia-modprobe", "python3", "ldconfig.real", "kmod")


@functools.cache
def trap() -> Path:
    """A directory in which everything betrays its use."""
    folder, canary = session.new_dir("trap"), session.new_dir("canary")
    hostile_image(folder, canary)
    for name in COMMANDS:
        (folder / name).write_text(f"#!/bin/sh\necho {name} >>{canary}/imported\n")
        (folder / name).chmod(0o755)
    (folder / "canary").symlink_to(canary)
    return folder


def variables() -> dict[str, str]:
    """Those of the row; LD_PRELOAD and LD_AUDIT act before there is a program, and only an entry's `env` helps."""
    here = str(trap())
    in_trap = (
        "LD_LIBRARY_PATH GCONV_PATH LOCPATH PYTHONPATH PYTHONHOME PYTHONPYCACHEPREFIX PYTHONUSERBASE TMPDIR HOME "
        "XDG_CONFIG_HOME XDG_DATA_DIRS XDG_DATA_HOME XDG_RUNTIME_DIR XDG_CACHE_HOME PATH"
    ).split()
    return dict.fromkeys(in_trap, here) | {
        "GLIBC_TUNABLES": "glibc.malloc.check=3", "MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165",
        "PYTHONSTARTUP": f"{here}/json.py", "PYTHONINSPECT": "1", "PYTHONWARNINGS": "error", "PYTHONDEBUG": "1",
        "PYTHONBREAKPOINT": "json.x", "PYTHONPLATLIBDIR": here, "PYTHONSAFEPATH": "", "PYTHONMALLOC": "debug",
        "PYTHONTRACEMALLOC": "9", "PYTHONFAULTHANDLER": "1", "PYTHONVERBOSE": "1", "PYTHONOPTIMIZE": "2",
        "PYTHONDONTWRITEBYTECODE": "", "PYTHONEXECUTABLE": f"{here}/python3", "PYTHONCASEOK": "1",
        "PYTHONHASHSEED": "x", "PYTHONINTMAXSTRDIGITS": "1", "PYTHONDEVMODE": "1", "PYTHONPROFILEIMPORTTIME": "1",
        "IFS": "/", "BASH_ENV": f"{here}/python3", "ENV": f"{here}/python3", "OPENSSL_CONF": f"{here}/json.py",
        "NVIDIA_VISIBLE_DEVICES": "7", "NVIDIA_DRIVER_CAPABILITIES": "none", "NVIDIA_REQUIRE_CUDA": "cuda>=99",
        "NVIDIA_DISABLE_REQUIRE": "1", "NVIDIA_MIG_CONFIG_DEVICES": "all", "CUDA_VISIBLE_DEVICES": "",
        "CUDA_DEVICE_ORDER": "x", "NVIDIA_IMEX_CHANNELS": "0", "TZ": f"{here}/json.py", "LANGUAGE": here,
    }  # fmt: skip


def with_variables(env: Mapping[str, str]) -> Situation:
    @contextmanager
    def situation() -> Iterator[How]:
        yield {"env": env}

    return situation


@pytest.mark.parametrize("name", PROGRAMS)
def test_o2_variables_have_no_effect(name: str, long: bool) -> None:
    """All at once, and with --long each by itself."""
    found = variables()
    situations = {"all": with_variables(found)}
    if long:
        situations |= {key: with_variables({key: value}) for key, value in found.items()}
    canary = trap() / "canary"
    assert judged(name, lambda: outcomes(name, situations)) == []
    assert os.listdir(canary) == []


def test_naive_o2_the_trap_betrays_its_use() -> None:
    subprocess.run([session.PYTHON, "-c", "import json"], cwd=trap(), env={}, capture_output=True)
    subprocess.run(["/bin/sh", "-c", "ldconfig"], env={"PATH": str(trap())}, capture_output=True)
    marks = trap() / "canary/imported"
    assert {"ldconfig"} < set(marks.read_text().split())
    marks.unlink()


# -- O5, O11 ----------------------------------------------------------------------------------------------------------


# FUSE_ACCESS (linux/fuse.h), which chdir(2) asks for, is answered in place of FUSE_STATFS.
STANDING = """
import sys
sys.path.insert(0, {tests!r})
from lib import silentfuse
silentfuse._STATFS, silentfuse._STATFS_OUT = 34, b""
silentfuse._serve({folder!r})
"""


@contextmanager
def deleted() -> Iterator[How]:
    gone = session.new_dir("gone")

    def enter_and_remove() -> None:
        os.chdir(gone)
        gone.rmdir()

    yield {"preexec": enter_and_remove}


@contextmanager
def unreadable() -> Iterator[How]:
    """A directory of somebody else that nobody may enter; whoever starts us stood in it before it was closed."""
    folder = session.new_dir("closed")
    os.chown(folder, 1234, 1234)
    folder.chmod(0)
    yield {"preexec": lambda: os.chdir(folder)}
    folder.chmod(0o700)


@contextmanager
def hung() -> Iterator[How]:
    """A file system that lets one stand in it, and answers no question about what is there."""
    folder = session.new_dir("hung")
    code = STANDING.format(tests=str(session.LIB.parent), folder=str(folder))
    daemon = subprocess.Popen([session.PYTHON, "-ISBc", code], stdout=subprocess.PIPE, cwd="/")
    assert daemon.stdout is not None
    try:
        assert daemon.stdout.readline() == b"ready\n"
        yield {"preexec": lambda: os.chdir(folder)}
    finally:
        daemon.kill()
        daemon.communicate()
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def unmounted() -> Iterator[How]:
    """In a tmpfs that is no longer anywhere."""
    folder = session.new_dir("mount")
    subprocess.run(["mount", "-t", "tmpfs", "away", folder], check=True)
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    subprocess.run(["umount", "-l", folder], check=True)
    yield {"preexec": lambda: os.fchdir(fd)}
    os.close(fd)


DIRECTORIES: dict[str, Situation] = {
    "deleted": deleted, "unreadable": unreadable, "hung": hung, "unmounted": unmounted,
}  # fmt: skip
LOCALES = {
    "none": {}, "C": {"LC_ALL": "C"}, "not there": {"LC_ALL": "xx_XX.KOI8-R"}, "C.UTF-8": {"LC_ALL": "C.UTF-8"},
    "POSIX, no UTF-8": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "no encoding": {"PYTHONIOENCODING": "nonsense:strict", "LC_CTYPE": "C", "LANG": "xx"},
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_o5_the_working_directory_has_no_effect(name: str) -> None:
    assert judged(name, lambda: outcomes(name, DIRECTORIES)) == []


def test_naive_o5_a_hung_directory_hangs() -> None:
    with hung() as how:
        naive = subprocess.Popen([session.PYTHON, "-c", "import json"], preexec_fn=how["preexec"])
        time.sleep(1.5)
        hangs = naive.poll() is None
        naive.kill()  # which it hears when the file system is gone
    naive.wait()
    assert hangs


@pytest.mark.parametrize("name", PROGRAMS)
def test_o11_the_locale_has_no_effect(name: str) -> None:
    situations = {each: with_variables(env) for each, env in LOCALES.items()}
    assert judged(name, lambda: outcomes(name, situations)) == []


# -- O8 ---------------------------------------------------------------------------------------------------------------


def waiting(command: list[str], **more: Any) -> subprocess.Popen[bytes]:
    """Started, waiting for its state, with the working directory that it takes when it has prepared itself."""
    hook = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
    until = time.monotonic() + 10
    while os.readlink(f"/proc/{hook.pid}/cwd") != "/" and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)
    return hook


def opens_memory(pid: int, uid: int) -> bool:
    """Whether another process of that user may read it."""
    code = f"import os; os.setgroups([]); os.setgid({uid}); os.setuid({uid}); open('/proc/{pid}/mem', 'rb')"
    return subprocess.run([session.PYTHON, "-ISc", code], capture_output=True).returncode == 0


def as_user(uid: int) -> How:
    return {"user": uid, "group": uid, "extra_groups": []}


CDI_LINK = ["create-symlinks", "--link", "t::/link"]


def test_o8_others_of_the_same_user_cannot_look_into_it() -> None:
    """As an unprivileged user, for whom it differs; /proc then belongs to root."""
    folder = session.new_dir("cwd")
    hook = waiting(hookproc.command(CDI_LINK), cwd=folder, **as_user(65534))
    naive = subprocess.Popen(["/bin/sleep", "20"], cwd=folder, **as_user(65534))
    try:
        assert [opens_memory(hook.pid, 65534), opens_memory(naive.pid, 65534)] == [False, True]
        assert os.stat(f"/proc/{hook.pid}/environ").st_uid == 0
        assert os.stat(f"/proc/{naive.pid}/environ").st_uid == 65534
    finally:
        for each in (hook, naive):
            each.kill()
            each.communicate()


def unlimited() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_o8_it_leaves_no_core() -> None:
    """Although whoever started it allows for cores of any size."""
    folder = session.new_dir("cwd")
    hook = waiting(hookproc.command(CDI_LINK), cwd=folder, preexec_fn=unlimited)
    (limit,) = [line for line in Path(f"/proc/{hook.pid}/limits").read_text().splitlines() if "core file" in line]
    assert limit.split()[4:6] == ["0", "0"]
    os.kill(hook.pid, signal.SIGSEGV)
    _, status = os.waitpid(hook.pid, 0)
    hook.returncode = -signal.SIGSEGV
    hook.communicate()
    assert (os.WTERMSIG(status), os.WCOREDUMP(status)) == (signal.SIGSEGV, False)
    assert os.listdir(folder) == []
    assert not os.path.exists("/core")


def test_naive_o8_another_program_leaves_one() -> None:
    if Path("/proc/sys/kernel/core_pattern").read_text().strip() not in ("core", "core.%p"):
        pytest.skip("cores of this machine do not go to files")
    folder = session.new_dir("cwd")
    naive = subprocess.Popen(["/bin/sleep", "20"], cwd=folder, preexec_fn=unlimited)
    os.kill(naive.pid, signal.SIGSEGV)
    _, status = os.waitpid(naive.pid, 0)
    naive.returncode = -signal.SIGSEGV
    assert os.WCOREDUMP(status)
    assert os.listdir(folder) != []


# -- O12 --------------------------------------------------------------------------------------------------------------


def imports_late(name: str) -> list[str]:
    """What each process of the program could import once it had sealed imports: nothing, for each try."""
    record = session.tmp() / session.unique("late")
    module, function = CALLS[name]
    vendor = str(Path(prestartscene.pynvml.__file__).parent)
    text = LATE.format(hooks=str(session.HOOKS), record=str(record))
    text += f"sys.path.append({vendor!r})\nfrom {module} import {function}\n{function}()\n"
    program = session.new_dir("entry") / name
    program.write_text(text)
    usual_outcome(name)
    with PROGRAMS[name]() as (run, _):
        result = run(program=program)
    assert result.rc == 0, result.stderr
    return record.read_text().splitlines()


@pytest.mark.parametrize("name", PROGRAMS)
def test_o12_after_sealing_no_import_succeeds(name: str) -> None:
    tried = judged(name, lambda: imports_late(name))
    assert len(tried) >= 1
    assert [each for each in tried if set(json.loads(each.replace("'", '"'))) != {""}] == []
