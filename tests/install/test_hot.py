"""`nvoci_hot.pyc`: a hook does with it what it does without it, and starts without it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Callable

import pytest
from install.conftest import Checkout, copy_project, output
from lib import elfmaker

from nvoci.hook import table

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON = os.path.realpath("/usr/bin/python3")


def bundle_of(prefix: Path) -> Path:
    """The bundle of the current version."""
    return prefix / "lib/nvoci/nvoci_hot.pyc"


def make_directory(path: Path) -> None:
    """In its place."""
    path.unlink()
    path.mkdir()


def edit(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Damage that is another content."""
    return lambda path: path.write_bytes(change(path.read_bytes()))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": edit(lambda content: b""),
    "only a header": edit(lambda content: content[:16]),
    "half": edit(lambda content: content[: len(content) // 2]),
    "of another Python": edit(lambda content: b"\xff\xff\r\n" + content[4:]),
    "another program": edit(lambda content: content.replace(b"start", b"stort")),
    "a directory": make_directory,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_hook_starts_without_a_usable_bundle_and_check_tells(checkout: Checkout, prefix: Path, damage: str) -> None:
    checkout.install(prefix)
    whole = output(prefix / "bin/nvidia-cdi-hook")
    DAMAGE[damage](bundle_of(prefix))
    assert output(prefix / "bin/nvidia-cdi-hook") == whole
    done = checkout.install(prefix, "--check")
    assert (done.code, done.out.count("\n")) == (1, 1)
    assert f"{bundle_of(prefix).resolve()} " in done.out
    assert whole.startswith("one ")


def read_below(prefix: Path, *words: object) -> list[str]:
    """Names of the .pyc files of an installed tree that one run of a program of it reads."""
    command = [str(word) for word in (PYTHON, "-ISBv", prefix / "bin" / str(words[0]), *words[1:])]
    told = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd="/").stderr
    lines = [line.split("'")[1] for line in told.splitlines() if line.startswith(f"# code object from '{prefix}/lib/")]
    return [line.rpartition("/")[2] for line in lines]


def test_the_command_for_people_imports_the_files(checkout: Checkout, prefix: Path) -> None:
    checkout.install(prefix)
    assert read_below(prefix, "nvidia-ctk") == ["nvoci_hot.pyc"]
    names = read_below(prefix, "nvoci")
    assert "nvoci_hot.pyc" not in names
    assert names[0].startswith("__init__.")


LATE = '''"""What a module sees of itself, and what its code does."""
from __future__ import annotations
import sys
from nvoci.hook import other
from nvoci.room import inner
import nvoci.hook.other as again
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any
    SEEN = "never"
else:
    SEEN = "else"
class Slots:
    """Only words."""
class Named:
    __slots__ = ("x",)
    x: int
    def __init__(self, x: int = 1, *, y: dict[str, Any] | None = None) -> None:
        """Words."""
        z: int = x
        self.x = z
    def words(self) -> None:
        """Nothing else."""
try:
    assert False, "kept"
except AssertionError as error:
    KEPT = str(error)
def own(name):
    module = sys.modules[name]
    return [module.__name__, module.__package__, module.__file__, getattr(module, "__path__", None)]
def where():
    return sys._getframe().f_code.co_filename, sys._getframe().f_lineno
NAMES = ("nvoci", "nvoci.hook", "nvoci.hook.main", "nvoci.hook.other", "nvoci.room", "nvoci.room.inner", __name__)
VALUE = [SEEN, KEPT, Named().x, Named().words(), where(), again is other, inner.VALUE, *map(own, NAMES)]
VALUE += [sorted(n for n in sys.modules if n.startswith("nvoci.")), sorted(vars(sys.modules["nvoci.hook"]))[-5:]]
'''


def test_a_module_is_the_same_with_and_without_the_bundle(checkout: Checkout, prefix: Path) -> None:
    package = checkout.top / "hooks/nvoci"
    (package / "hook/late.py").write_text(LATE)
    (package / "hook/other.py").write_text('"""Imported by late."""\nVALUE = 2\n')
    (package / "room").mkdir()
    (package / "room/__init__.py").write_text('"""A package that only late needs."""\n')
    (package / "room/inner.py").write_text('"""In it."""\nVALUE = 3\n')
    checkout.install(prefix)
    assert read_below(prefix, "nvidia-cdi-hook") == ["nvoci_hot.pyc"]
    first = output(prefix / "bin/nvidia-cdi-hook")
    bundle_of(prefix).unlink()
    assert output(prefix / "bin/nvidia-cdi-hook") == first
    assert first.startswith("['else', 'kept', 1, None, ")


def test_a_module_that_fails_is_named_with_its_file_and_line(checkout: Checkout, prefix: Path) -> None:
    (checkout.top / "hooks/nvoci/hook/main.py").write_text('"""Fails."""\n\n1 / 0\n')
    checkout.install(prefix)
    done = subprocess.run([prefix / "bin/nvidia-cdi-hook"], capture_output=True, text=True)
    version = (prefix / "lib/nvoci").resolve()
    assert done.returncode == 1
    assert f'File "{version}/nvoci/hook/main.py", line 3' in done.stderr
    assert "nvoci_hot" not in done.stderr


def test_another_loader_makes_another_version(checkout: Checkout, prefix: Path) -> None:
    checkout.install(prefix)
    first = os.readlink(prefix / "lib/nvoci")
    loader = checkout.top / "scripts/_install_hot_loader.py"
    loader.write_text(loader.read_text() + "\n")
    checkout.install(prefix)
    assert os.readlink(prefix / "lib/nvoci") != first


# --- the real hooks ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prefix with the real package."""
    top = tmp_path_factory.mktemp("project")
    done = copy_project(top / "checkout").install(top / "prefix")
    assert (done.code, done.err) == (0, "")
    return top / "prefix"


@pytest.fixture
def without(project: Path) -> Iterator[Callable[[], None]]:
    """Takes the bundle away until the test ends."""
    bundle = bundle_of(project).resolve()
    aside = bundle.with_name("aside")

    def take_away() -> None:
        bundle.rename(aside)

    yield take_away
    if aside.exists():
        aside.rename(bundle)


ARGUMENTS = {
    "create-symlinks": ["--link", "a::/usr/b", "--link", "../c::/new/d", "--link-if", "/dev/null=a::/c"],
    "chmod": ["--path", "/usr/file", "--mode", "4711"],
    "enable-cuda-compat": ["--host-driver-version", "550.54.15"],
    "update-ldcache": ["--folder", "/usr/lib64"],
    "inject": ["--from-annotations"],
}
RUN = ["run", "--", "chmod", *ARGUMENTS["chmod"], "--", "create-symlinks", *ARGUMENTS["create-symlinks"], "--", "noop"]
HOOKS = {"run": RUN, **{name: [name, *ARGUMENTS.get(name, [])] for name in table.HOOKS}}
CALLS = {
    **HOOKS,
    **{f"{name}, dry": [words[0], "--dry-run", *words[1:]] for name, words in HOOKS.items()},
    "bad option": ["chmod", "--no-such-option"],
    "bad mode": ["chmod", "--path", "/usr/file", "--mode", "9"],
    "a directory in the way": ["create-symlinks", "--link", "a::/new/b", "--link", "a::/usr"],
    "unknown hook": ["no-such-hook"],
    "no hook": [],
    "help": ["--help"],
    "help of a hook": ["chmod", "--help"],
    "features": ["--features"],
    "version": ["--version"],
}
EFFECTS = {
    "create-symlinks": "new/d l 777 ../c",
    "chmod": "usr/file f 4711",
    "enable-cuda-compat": "etc/ld.so.conf.d/00-compat-nvoci.conf",
    "update-ldcache": "etc/ld.so.cache",
    "run": "usr/b l",
}
# The container's files are looked at inside: some hooks mount.
SCRIPT = 'cd "$1"; shift; "$@"; echo "status $?"; find rootfs -printf "%P %y %m %l %s\\n" | sort'


def make_bundle(top: Path) -> str:
    """A container's bundle in `top`; its state."""
    root = top / "rootfs"
    for name in ("usr/lib64", "etc", "dev", "proc"):
        (root / name).mkdir(parents=True)
    (root / "usr/file").write_text("x")
    (root / "dev/null").touch()
    elfmaker.make_so(root / "usr/local/cuda/compat/libcuda.so.575.57.08", "libcuda.so.1")
    (top / "config.json").write_text(json.dumps({"ociVersion": "1.0.2", "root": {"path": "rootfs"}}))
    return json.dumps({"ociVersion": "1.0.2", "id": "x", "status": "creating", "pid": 0, "bundle": str(top)})


def result(prefix: Path, words: list[str], top: Path) -> tuple[str, str]:
    """What one call prints, its exit status and the container after it; always at the same path."""
    state = make_bundle(top)
    command = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", SCRIPT, "sh", str(top)]
    hook = [str(prefix / "bin/nvidia-cdi-hook"), *words]
    done = subprocess.run([*command, *hook], input=state, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    top.rename(top.with_name(f"{top.name}.{len(list(top.parent.iterdir()))}"))
    assert "internal error" not in done.stderr
    times = [line.partition(" level=")[2] for line in done.stderr.splitlines()]
    return done.stdout, "\n".join(times)


@pytest.mark.parametrize("call", CALLS)
def test_a_call_has_the_same_result_with_and_without_the_bundle(
    project: Path, without: Callable[[], None], tmp_path: Path, call: str
) -> None:
    first = result(project, CALLS[call], tmp_path / "container")
    without()
    assert result(project, CALLS[call], tmp_path / "container") == first
    assert EFFECTS.get(call, "") in first[0]
    refused = {"bad option", "bad mode", "a directory in the way", "mount-mig-devices", "mount-mig-devices, dry"}
    assert ("status 0" in first[0]) is (call not in refused)


def test_ctk_and_the_command_for_people_have_the_same_hooks(project: Path) -> None:
    for words in (["nvidia-ctk", "hook", "chmod", "--help"], ["nvoci", "hook", "chmod", "--help"]):
        done = subprocess.run([project / "bin" / words[0], *words[1:]], capture_output=True, text=True)
        assert (done.returncode, "--mode" in done.stdout + done.stderr) == (0, True)


def test_a_bundle_that_others_can_write_is_refused(project: Path) -> None:
    bundle = bundle_of(project)
    bundle.chmod(0o666)
    done = subprocess.run([project / "bin/nvidia-cdi-hook", "--version"], capture_output=True, text=True)
    bundle.chmod(0o644)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"start: {bundle.resolve()}: owned by uid 0, mode 0666" in done.stderr
