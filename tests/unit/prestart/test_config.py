"""Settings and their compiled form: taken only if it is root's alone and of the file as it is; quick; never needed."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.prestart.prestarttools import SHIPPED, error, needs_root, place, settings

from nvoci.linux.fd import Fd
from nvoci.prestart import compile, config
from nvoci.prestart.config import Config
from nvoci.prestart.configfile import Place

HOOKS = Path(__file__).resolve().parents[3] / "hooks"
PYTHON = "/usr/bin/python3"


class Compilations:
    """Counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._real = compile.parse
        monkeypatch.setattr(compile, "parse", self)

    def __call__(self, data: bytes, path: str) -> Config:
        self.count += 1
        return self._real(data, path)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Compilations:
    return Compilations(monkeypatch)


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "run")


def stored(run: str) -> Path:
    """The one compiled form."""
    (found,) = Path(run).iterdir()
    return found


def test_an_absent_file_is_the_defaults_and_leaves_nothing(tmp_path: Path, run: str) -> None:
    assert config.load(Place(str(tmp_path / "none")), run) == Config()
    assert not Path(run).exists()


@pytest.mark.usefixtures("settled")
def test_a_file_is_compiled_by_its_first_reader_alone(tmp_path: Path, run: str, compilations: Compilations) -> None:
    given = place(tmp_path, SHIPPED + 'user = "a"\n[x]\n[nvidia-container-runtime.modes.y]\n')
    first = config.load(given, run)
    assert [config.load(given, run) for _ in range(3)] == [first] * 3
    assert compilations.count == 1
    assert first == settings(Path(given.path).read_text())
    assert stored(run).name == f"config{given.path.replace('/', ',')}.json"


@needs_root
@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(("mode", "kept"), [(0o644, 0o644), (0o600, 0o600), (0o444, 0o644), (0o755, 0o644)])
def test_the_compiled_form_is_roots_and_as_readable_as_the_file(tmp_path: Path, run: str, mode: int, kept: int) -> None:
    given = place(tmp_path)
    Path(given.path).chmod(mode)
    config.load(given, run)
    st, top = stored(run).stat(), os.stat(run)
    assert (st.st_uid, st.st_mode & 0o7777) == (0, kept)
    assert (top.st_uid, top.st_mode & 0o7777) == (0, 0o755)


def _touch(path: Path) -> None:
    when = path.stat().st_mtime_ns + 1
    os.utime(path, ns=(when, when))


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.chmod(0o644)
    other.rename(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda path: path.write_text('swarm-resource = "B"'),
    "longer": lambda path: path.write_text('swarm-resource = "BB"'),
    "touched": _touch,
    "another file of the same content": _replace,
    "its mode": lambda path: path.chmod(0o600),
}


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_file_is_compiled_anew(
    tmp_path: Path, run: str, compilations: Compilations, change: Callable[[Path], object]
) -> None:
    given = place(tmp_path, 'swarm-resource = "A"')
    assert config.load(given, run).swarm_resource == "A"
    time.sleep(0.02)  # more than a tick of the kernel's clock, so that the inode's change time is another
    change(Path(given.path))
    assert config.load(given, run) == settings(Path(given.path).read_text())
    assert compilations.count == 3


def test_a_file_that_has_just_changed_is_not_kept(tmp_path: Path, run: str, compilations: Compilations) -> None:
    """It could change again without looking any different."""
    given = place(tmp_path, 'swarm-resource = "A"')
    assert compile.SETTLED_SECONDS >= 0.02
    config.load(given, run)
    assert not Path(run).exists()
    time.sleep(compile.SETTLED_SECONDS + 0.05)
    config.load(given, run)
    config.load(given, run)
    assert compilations.count == 2
    assert stored(run).is_file()


@pytest.mark.usefixtures("settled")
def test_two_files_have_a_form_each(tmp_path: Path, run: str, compilations: Compilations) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    given = [place(tmp_path / name, f'swarm-resource = "{name}"') for name in "ab"]
    assert [config.load(each, run).swarm_resource for each in given * 3] == ["a", "b"] * 3
    assert compilations.count == 2


@pytest.mark.usefixtures("settled")
def test_a_link_is_known_by_the_file_it_leads_to(tmp_path: Path, run: str) -> None:
    (tmp_path / "a").mkdir()
    given = place(tmp_path / "a", 'swarm-resource = "A"')
    link = tmp_path / "link"
    link.symlink_to(given.path)
    assert config.load(Place(str(link)), run).swarm_resource == "A"
    (tmp_path / "b").mkdir()
    link.unlink()
    link.symlink_to(place(tmp_path / "b", 'swarm-resource = "B"').path)
    assert config.load(Place(str(link)), run).swarm_resource == "B"


def _edit(key: str, value: Any) -> Callable[[Path], object]:
    def edit(path: Path) -> None:
        doc = json.loads(path.read_bytes())
        doc[key] = value
        path.write_text(json.dumps(doc))

    return edit


def _other(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(path: Path) -> None:
        path.rename(path.with_name(".old"))
        make(path)

    return replace


SPOILT: dict[str, Callable[[Path], object]] = {
    "empty": lambda p: p.write_bytes(b""),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-9]),
    "not JSON": lambda p: p.write_bytes(b"\xff"),
    "a list": lambda p: p.write_bytes(b"[]"),
    "deep": lambda p: p.write_bytes(b"[" * 100_000),
    "another format": _edit("nvoci-config", 2),
    "another program": _edit("program", "0.0.0"),
    "no settings": _edit("set", None),
    "an unknown setting": _edit("set", {"x": 1}),
    "a setting of another type": _edit("set", {"swarm_resource": 3}),
    "another source": _edit("source", ["/x", 1, 2, 3, 4, 5]),
    "no source": _edit("source", None),
    "group can write": lambda p: p.chmod(0o664),
    "others can write": lambda p: p.chmod(0o646),
    "another owner": lambda p: os.chown(p, 1000, 0),
    "link": _other(lambda p: p.symlink_to(".old")),
    "FIFO": _other(os.mkfifo),
    "1 GiB": lambda p: os.truncate(p, 1 << 30),
    "directory of another": lambda p: os.chown(p.parent, 1000, 0),
    "directory that others can write": lambda p: p.parent.chmod(0o777),
    "gone": lambda p: p.unlink(),
}


@needs_root
@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_form_that_is_not_to_be_believed_is_not(
    tmp_path: Path, run: str, compilations: Compilations, spoil: Callable[[Path], object]
) -> None:
    given = place(tmp_path, 'swarm-resource = "A"')
    config.load(given, run)
    spoil(stored(run))
    start = time.monotonic()
    assert config.load(given, run).swarm_resource == "A"
    assert time.monotonic() - start < 1
    assert compilations.count == 2


@pytest.mark.usefixtures("settled")
def test_a_form_that_is_believed_is_what_counts(tmp_path: Path, run: str) -> None:
    """Or the tests above would pass without it."""
    given = place(tmp_path, 'swarm-resource = "A"')
    config.load(given, run)
    _edit("set", {"swarm_resource": "planted"})(stored(run))
    assert config.load(given, run).swarm_resource == "planted"


def test_a_file_that_others_can_write_is_refused_whatever_was_compiled(tmp_path: Path, run: str) -> None:
    given = place(tmp_path)
    Path(given.path).chmod(0o646)
    assert "writable by nobody else" in error(lambda: config.load(given, run)).line()


UNWRITABLE: dict[str, Callable[[str], str]] = {
    "a file in the way": lambda run: (Path(run).write_text(""), run)[1],
    "no parent": lambda run: f"{run}/a/b",
    "read-only": lambda run: "/proc/nvoci",
    "a directory of another": lambda run: (os.mkdir(run), os.chown(run, 1000, 0), run)[2],
    "full": lambda run: "/dev/full/nvoci",
}


@needs_root
@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("place_of", UNWRITABLE.values(), ids=UNWRITABLE)
def test_where_it_cannot_be_kept_the_start_goes_on(tmp_path: Path, run: str, place_of: Callable[[str], str]) -> None:
    given = place(tmp_path, 'swarm-resource = "A"')
    assert config.load(given, place_of(run)).swarm_resource == "A"
    assert not list(tmp_path.glob("**/*.json"))


@needs_root
@pytest.mark.usefixtures("settled")
def test_another_user_reads_without_writing(tmp_path: Path, run: str) -> None:
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    code = f"""
import os, sys
os.setgid(1000); os.setuid(1000)
sys.path.insert(0, {str(HOOKS)!r})
from nvoci.prestart import config, configfile
print(config.load(configfile.Place({place(tmp_path, 'swarm-resource = "A"').path!r}), {run!r}).swarm_resource)
"""
    done = subprocess.run([PYTHON, "-IB", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("A\n", "")
    assert not Path(run).exists()


# -- what it costs -------------------------------------------------------------------------------------------------

LOAD = """
import sys
sys.path.insert(0, {hooks!r})
from nvoci.prestart import config, configfile
before = set(sys.modules)
config.load(configfile.Place({path!r}), {run!r})
print(*(set(sys.modules) - before))
"""


def test_a_second_process_loads_nothing_that_reads_toml(tmp_path: Path, run: str) -> None:
    given = place(tmp_path, SHIPPED)
    time.sleep(compile.SETTLED_SECONDS + 0.05)
    code = LOAD.format(hooks=str(HOOKS), path=given.path, run=run)
    loaded = [
        set(subprocess.run([PYTHON, "-ISB", "-c", code], capture_output=True, text=True, check=True).stdout.split())
        for _ in range(2)
    ]
    assert {"tomllib", "nvoci.prestart.compile"} <= loaded[0]
    assert loaded[1] <= {"_json"}


@pytest.mark.usefixtures("settled")
def test_the_compiled_form_costs_less_than_a_millisecond(tmp_path: Path, run: str) -> None:
    given = place(tmp_path, SHIPPED)
    config.load(given, run)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        config.load(given, run)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.001


# -- what follows from settings ------------------------------------------------------------------------------------

COMPAT: dict[str, tuple[str, bool, str]] = {
    "ldconfig": ("ldconfig", False, "ldconfig"),
    "mount": ("mount", False, "mount"),
    "disabled": ("disabled", False, "disabled"),
    "hook": ("hook", False, "disabled"),
    "unset": ("", False, "disabled"),
    "unknown": ("x", False, "disabled"),
    "ldconfig, allowed": ("ldconfig", True, "ldconfig"),
    "disabled, allowed": ("disabled", True, "disabled"),
    "hook, allowed": ("hook", True, "disabled"),
    "unset, allowed": ("", True, "mount"),
    "unknown, allowed": ("x", True, "mount"),
}


@pytest.mark.parametrize(("mode", "allowed", "found"), COMPAT.values(), ids=COMPAT)
def test_compat_mode(mode: str, allowed: bool, found: str) -> None:
    given = Config(cuda_compat_mode=mode, allow_cuda_compat_libs_from_container=allowed)
    assert given.compat_mode == found


def test_other_properties() -> None:
    assert Config().compat_mode == "ldconfig"
    assert Config().driver_root == "/"
    assert Config(root="/run/nvidia/driver").driver_root == "/run/nvidia/driver"
    assert Config().swarm_resources == ()
    assert Config(swarm_resource=" A ,,B,").swarm_resources == ("A", "B")
    assert Config(supported_capabilities="all").allowed_capabilities == Config().allowed_capabilities
    assert Config(supported_capabilities="video, compute").allowed_capabilities == ("compute", "video")


def test_a_source_tells_states_of_a_file_apart(tmp_path: Path) -> None:
    given = place(tmp_path, "a")
    with Fd(os.open(given.path, os.O_RDONLY)) as fd:
        st = os.stat(given.path)
        wanted = [given.path, st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns]
        assert config.source(fd, given.path) == wanted
