"""Rows O6, O9 and O10, and O2 on real runtimes: the words an installed program is called with, the files that it
consists of, and the variables of a container that it is started for."""

from __future__ import annotations

import importlib.util
import json
import os
import py_compile
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from e2e.gpunode import make_image
from e2e.prestartnode import PrestartNode
from lib import hookproc, proc, session
from lib.bundle import Json, shell_hook
from lib.hookproc import FakeContainer
from lib.oracle import Oracle, content_only, snapshot
from security import scalestarts
from security.arena import LIBDIR, Arena
from security.test_environment import hostile_image
from security.test_environment_programs import variables

CDI, PRESTART, CLI = "nvidia-cdi-hook", "nvidia-container-runtime-hook", "nvidia-container-cli"
PROGRAMS = (CDI, PRESTART, CLI)
LINK = ["create-symlinks", "--link", f"t::/{LIBDIR}/link"]

# -- O2: variables of a container -------------------------------------------------------------------------------------

OWN = ("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_REQUIRE_CUDA", "NVIDIA_IMEX_CHANNELS",
       "NVIDIA_MIG_CONFIG_DEVICES")  # fmt: skip
PID = """pid=$(tr -d '\\n' | sed 's/.*"pid": *\\([0-9]*\\).*/\\1/')"""


def hostile_variables() -> dict[str, str]:
    """Below the working directory, which is the image's root for some hooks; but for what is a request."""
    here = "/proc/self/cwd"
    found = {name: value for name, value in variables().items() if name not in (*OWN, "PATH")}
    return {**dict.fromkeys(found, here), "LD_PRELOAD": f"{here}/x.so", "LD_AUDIT": f"{here}/x.so", "PYTHONHOME": here}


def entry(program: str, env: Sequence[str], root: Path) -> Json:
    path = str(scalestarts.installed() / program)
    words = {CDI: LINK, PRESTART: ["prestart"]}.get(program)
    if words is None:
        hook = shell_hook(f"{PID}; exec {path} configure --device=0 --compute --pid=$pid {shlex.quote(str(root))}")
        return {**hook, "env": [*env, *(v for v in hook["env"] if not any(e.startswith("PATH=") for e in env))]}
    return {"path": path, "args": [program, *words], "env": list(env)}


def said(program: str, runtime: str, env: dict[str, str], hook_env: Sequence[str], stage: str) -> dict[str, str]:
    """Of a container whose image is a trap."""
    node = PrestartNode(scalestarts.installed() / program)
    root, canary = make_image(session.new_dir("image")), session.new_dir("canary")
    hostile_image(root, canary)
    request = "0" if program == PRESTART else None
    script = f"readlink /{LIBDIR}/link; ls /dev/nvidia*; ls /proc/driver/nvidia/gpus; ldconfig -p | grep -c libcuda"
    hooks = [entry(program, hook_env, root)]
    # `env -i`: the container's own shell is not to be harmed by what is meant for the hook.
    words = f"exec /usr/bin/env -i PATH=/usr/sbin:/usr/bin /bin/sh -c {shlex.quote(script)}"
    seen = node.start(runtime, request, root=root, entries=hooks, env=env, script=words, stage=stage)
    assert os.listdir(canary) == []
    assert (seen.result.survivors, "level=error" in seen.result.stderr) == ([], False), seen.result.stderr
    shutil.rmtree(root)
    return {"out": seen.result.stdout, "err": seen.result.stderr.replace("no such file", "")}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("way", ["of the container", "of the hook"])
def test_o2_on_real_runtimes(runtime: str, program: str, way: str, long: bool) -> None:
    """The variables are the container's, and the entry has its own; or they are handed to the hook, as by a runtime
    whose own they are: without those that act before there is a program."""
    scalestarts.usual(long, runtime == "runc" or way == "of the container")
    found = hostile_variables()
    stage = "createRuntime" if program == CDI else "prestart"
    usual = said(program, runtime, {}, ["A=b"], stage)
    if way == "of the container":
        # The container's first process is the image's own, and LD_* would be for it.
        mine = {key: value for key, value in found.items() if not key.startswith(("LD_", "GCONV", "LOC"))}
        now = said(program, runtime, mine, ["A=b"], stage)
    else:
        mine = {key: value for key, value in found.items() if not key.startswith("LD_")}
        now = said(program, runtime, {}, [f"{key}={value}" for key, value in mine.items()], stage)
    assert now["out"] == usual["out"]
    assert ("t\n" in usual["out"]) is (program == CDI)
    assert ("/dev/nvidia0" in usual["out"]) is (program != CDI)


# -- O6 ---------------------------------------------------------------------------------------------------------------

LONG = "x" * (128 << 10)
# Linux takes no single argument of 128 KiB or more (MAX_ARG_STRLEN); as many as that together are common.
MUCH = ["--link", f"{'y' * 200}::/opt/z"] * 600
WORDS: dict[str, tuple[Sequence[str], str]] = {
    "no words": ([], ""),
    "an empty word": ([""], ""),
    "a word of 127 KiB": (["create-symlinks", "--link", LONG[:-1024]], "link"),
    "one separator too many": (["create-symlinks", "--link", "a::b::c"], "a::b::c"),
    "no separator": (["create-symlinks", "--link=ab"], "ab"),
    "empty parts": (["create-symlinks", "--link", "::"], "::"),
    "a value like an option": (["create-symlinks", "--link", "--folder"], "--folder"),
    "an unknown option": (["create-symlinks", "--no-such"], "no-such"),
    "an option of the shell": (["create-symlinks", "-c", "id"], "-c"),
    "a newline": (["create-symlinks", "--link", "a\nlevel=info msg=ok::b::c"], ""),
    "not UTF-8": (["create-symlinks", "--link", "\udcff\udcfe"], ""),
    "a mode of words": (["chmod", "--mode", "-rwx", "--path", "/etc"], "rwx"),
    "a control": (["create-symlinks", "--link", "\x1b[2J::x::y"], ""),
    "nothing to run": (["run", "--", "--"], ""),
}  # fmt: skip
FINE = ("no words", "an empty word", "nothing to run")  # a warning, as the reference does


@pytest.mark.parametrize("case", WORDS)
def test_o6_words_that_are_wrong_are_one_error(arena: Arena, profile: str, case: str) -> None:
    words, part = WORDS[case]
    program = scalestarts.installed() / CDI
    with FakeContainer(arena.root) as c, Oracle(arena.canary, arena.root, []) as oracle:
        result = hookproc.run_hook(words, container=c, program=program)
        found = oracle.check(result, ok=case in FINE, parts=[part] if part else [])
    assert found == []
    assert len(result.stderr) < 5000
    assert all(ch.isprintable() or ch == "\n" for ch in result.stderr)


NAMES = {"a dash": "-rf", "empty name": "--", "spaces": "a b", "an option": "--link=x", "dollar": "$(id)"}


@pytest.mark.parametrize("name", NAMES)
def test_o6_names_are_names(arena: Arena, name: str) -> None:
    """Whatever they look like."""
    words = ["create-symlinks", "--link", f"{NAMES[name]}::/opt/{NAMES[name]}"]
    with FakeContainer(arena.root) as c, Oracle(arena.canary, arena.root, ["opt/**"]) as oracle:
        result = hookproc.run_hook(words, container=c, program=scalestarts.installed() / CDI)
        assert oracle.check(result, ok=True) == []
    assert os.readlink(arena.root / "opt" / NAMES[name]) == NAMES[name]


def test_o6_many_words_are_taken(arena: Arena) -> None:
    with FakeContainer(arena.root) as c, Oracle(arena.canary, arena.root, ["opt/**"]) as oracle:
        result = hookproc.run_hook(["create-symlinks", *MUCH], container=c, program=scalestarts.installed() / CDI)
        assert oracle.check(result, ok=True) == []


ARGV0 = {
    "empty": "",
    "of another": "sh",
    "a dash": "-",
    "a path": "/etc/passwd",
    "long": "n" * 100_000,
    "newline": "a\nb",
}


@pytest.mark.parametrize("argv0", ARGV0)
@pytest.mark.parametrize("program", PROGRAMS)
def test_o6_the_first_word_has_no_effect(program: str, argv0: str) -> None:
    """The kernel gives an interpreter the path of the program and drops that word; none at all becomes an empty one."""
    path = scalestarts.installed() / program
    words = {CDI: ["--version"], PRESTART: ["-version"], CLI: ["--version"]}[program]
    usual = proc.run([path, *words])
    run = subprocess.run([ARGV0[argv0], *words], executable=path, capture_output=True, text=True, env={}, timeout=20)
    assert (run.returncode, run.stdout, run.stderr) == (0, usual.stdout, usual.stderr)


@pytest.mark.parametrize("program", [PRESTART, CLI])
@pytest.mark.parametrize(
    "words",
    [[""], ["--no-such"], ["-"], ["prestart\n"], ["\x1b[2J"], [LONG[:-1024]]],
    ids=lambda words: ascii(words[0])[:20],
)
def test_o6_the_others_refuse_such_words_too(program: str, words: list[str]) -> None:
    result = proc.run([scalestarts.installed() / program, *words])
    assert (result.rc != 0, "Traceback" in result.stderr, "internal error" in result.stderr) == (True, False, False)
    assert len(result.stderr) < 5000
    assert all(ch.isprintable() or ch in "\n\t" for ch in result.stderr)


# -- O9, O10 ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A copy of the installed prefix, at a place of its own."""
    top = session.new_dir("copy")
    prefix = top / "prefix"
    old = scalestarts.installed().parent
    shutil.copytree(old, prefix, symlinks=True)
    for path in (prefix / "bin").iterdir():
        path.write_text(path.read_text().replace(str(old), str(prefix)))
    # What comes in one file names its sources by where they were laid down; the same modules as files do not.
    for path in prefix.glob("lib/nvoci-*/nvoci_*.pyc"):
        path.unlink()
    yield prefix
    shutil.rmtree(top)


def version_of(tree: Path) -> Path:
    return (tree / "lib/nvoci").resolve()


def called(tree: Path, arena: Arena) -> proc.Result:
    with FakeContainer(arena.root) as c:
        state = json.dumps(c.state()).encode()
        return proc.run([tree / "bin" / CDI, *LINK], stdin=state)


def to_other_group(path: Path) -> None:
    os.chown(path, 0, 1234)
    path.chmod(0o775)


def to_other_user(path: Path) -> None:
    os.chown(path, 1234, 0)


def behind_a_link(path: Path) -> None:
    """Moved to where others may rename it, and a link in its place."""
    open_to_all = path.parents[1] / f"open-{path.name}" if path.parents[1].exists() else path.parent
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    path.rename(open_to_all / path.name)
    path.symlink_to(open_to_all / path.name)


SPOILT: dict[str, Callable[[Path], object]] = {
    "writable": lambda path: path.chmod(0o777), "of a group": to_other_group, "of another": to_other_user,
}  # fmt: skip
PLACES = ("", "lib", "lib/nvoci/", "lib/nvoci/nvoci", "lib/nvoci/nvoci/hook", "lib/nvoci/nvoci/linux",
          "lib/nvoci/nvoci/oci", "lib/nvoci/nvoci/hook/main.py")  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("spoilt", SPOILT)
def test_o9_what_others_can_change_is_not_run(tree: Path, arena: Arena, place: str, spoilt: str) -> None:
    path = (tree / place).resolve()
    SPOILT[spoilt](path)
    with Oracle(arena.canary, arena.root) as oracle:
        result = called(tree, arena)
        assert oracle.check(result, ok=False, rc=1, parts=[f"start: {path}: owned by uid ", "belong to root"]) == []


@pytest.mark.parametrize("place", ["lib", "lib/nvoci/nvoci"])
def test_o9_nor_what_lies_behind_a_link_where_others_can_exchange_it(tree: Path, arena: Arena, place: str) -> None:
    path = (tree / place).parent.resolve() / Path(place).name
    behind_a_link(path)
    with Oracle(arena.canary, arena.root) as oracle:
        result = called(tree, arena)
        assert oracle.check(result, ok=False, rc=1, parts=["start: ", "mode 0777", "belong to root"]) == []


def test_o9_as_it_is_it_runs(tree: Path, arena: Arena) -> None:
    assert called(tree, arena).rc == 0
    assert os.readlink(arena.root / LIBDIR / "link") == "t"


HOSTILE = "open({mark!r}, 'a').write(__name__ + '\\n')\n"


def compiled(folder: Path, mark: Path, name: str, where: Path) -> None:
    """A .pyc of hostile code at `where`, by its time newer than any source."""
    source = folder / f"{name}.hostile"
    source.write_text(HOSTILE.format(mark=str(mark)))
    where.parent.mkdir(parents=True, exist_ok=True)
    py_compile.compile(str(source), str(where), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    future = 4_000_000_000
    os.utime(where, (future, future))


def cached(name: str) -> str:
    return Path(importlib.util.cache_from_source(f"/{name}.py")).name


def test_o10_compiled_files_of_others_are_not_used(tree: Path, arena: Arena, tmp_path: Path) -> None:
    """In the working directory, beside the program, in the image, and where a variable says that they are."""
    mark = tmp_path / "mark"
    made = session.new_dir("pyc")
    beside = tree / "bin/__pycache__"
    for name in ("json", "nvoci", "main", "posix", "os", "nvoci_hot"):
        for folder in (arena.root, arena.root / "__pycache__", beside, beside.parent):
            compiled(made, mark, name, folder / (cached(name) if folder.name == "__pycache__" else f"{name}.pyc"))
        for source in (version_of(tree) / "nvoci/hook/main.py", version_of(tree) / "nvoci/__init__.py"):
            compiled(made, mark, name, Path(f"{arena.root}{source.parent}") / Path(cached(source.stem)))
    env = {"PYTHONPYCACHEPREFIX": str(arena.root), "PYTHONPATH": str(arena.root)}
    before = content_only(snapshot(tree))
    with FakeContainer(arena.root) as c:
        result = proc.run([tree / "bin" / CDI, *LINK], stdin=json.dumps(c.state()).encode(), env=env, cwd=arena.root)
    assert (result.rc, mark.exists()) == (0, False), result.stderr
    assert content_only(snapshot(tree)) == before  # and none is written


STALE: dict[str, Callable[[Path], object]] = {
    "newer": lambda path: os.utime(path, (4_000_000_000, 4_000_000_000)),
    "of another Python": lambda path: path.write_bytes(b"\xff\xff\r\n" + path.read_bytes()[4:]),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "missing": lambda path: path.unlink(),
    "a link": lambda path: (path.unlink(), path.symlink_to("/dev/null")),
}


@pytest.mark.parametrize("stale", STALE)
def test_o10_a_compiled_file_that_is_stale_does_no_harm(tree: Path, arena: Arena, stale: str) -> None:
    """The sources are the same: it is used, or they are; or the start fails and says why."""
    path = version_of(tree) / "nvoci/hook/__pycache__" / cached("create_symlinks")
    assert path.exists()
    STALE[stale](path)
    with Oracle(arena.canary, arena.root, [f"{LIBDIR}/link"]) as oracle:
        result = called(tree, arena)
        assert oracle.check(result, ok=stale != "cut") == []


def test_naive_o10_a_compiled_file_elsewhere_is_used(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "harmless.py").write_text("")
    compiled(session.new_dir("pyc"), mark, "harmless", Path(f"{tmp_path}/prefix{tmp_path}") / cached("harmless"))
    env = {"PYTHONPYCACHEPREFIX": f"{tmp_path}/prefix", "PYTHONPATH": str(tmp_path)}
    subprocess.run([session.PYTHON, "-c", "import harmless"], env=env, check=True)
    assert mark.exists()
