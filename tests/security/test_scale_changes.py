"""Rows N8 and N9: specifications and the hooks' own files that are replaced while containers start."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from install.conftest import Checkout, copy_installer, copy_project
from kernel import namespaced
from lib import session
from lib.hookproc import FakeContainer, run_hook
from lib.oracle import Oracle
from security import scalestarts
from security.arena import LIBDIR, Arena
from unit.inject.thing import KIND, Thing

from nvoci.cdi import store, text
from nvoci.cdi.model import Spec
from nvoci.cdi.specdir import Registry
from nvoci.ctl import specout

# -- N8 ---------------------------------------------------------------------------------------------------------------

DEVICES = 64
STATES = ("one", "two")


def document(thing: Thing, state: str) -> dict[str, Any]:
    """Large; what all devices have and what each has is of one state."""
    everyone = {"mounts": [{"hostPath": thing.host(state), "containerPath": "/opt/all", "options": ["ro", "bind"]}]}
    each = {"mounts": [{"hostPath": thing.host(state), "containerPath": "/opt/each", "options": ["ro", "bind"]}]}
    each["env"] = [f"PADDING_{n}={state * 50}" for n in range(20)]  # type: ignore[assignment]
    devices = [{"name": str(n), "containerEdits": each} for n in range(DEVICES)]
    return {"cdiVersion": "1.0.0", "kind": KIND, "devices": devices, "containerEdits": everyone}


def by_library(thing: Thing, spec: Spec) -> None:
    """As a library writes it."""
    store.write(spec, str(thing.specs), "thing", "json")


def by_command(thing: Thing, spec: Spec) -> None:
    """As `nvoci cdi generate` and `refresh` write it."""
    specout.write([(str(thing.specs / "thing.json"), spec)])


def naively(thing: Thing, spec: Spec) -> None:
    """In its place, a part at a time."""
    data = text.dumps(spec, "json").encode()
    with (thing.specs / "thing.json").open("wb", buffering=0) as file:
        file.write(data[:1000])
        file.write(data[1000:])


@contextmanager
def refreshed(thing: Thing, write: Callable[[Thing, Spec], None]) -> Iterator[None]:
    """Written anew again and again, in turn with the one state and the other."""
    for state in STATES:
        (thing.folder / state).write_text(state)
    specs = [text.loads(json.dumps(document(thing, state)).encode(), "thing.json") for state in STATES]
    by_library(thing, specs[0])
    turn = [0]

    def once() -> None:
        write(thing, specs[turn[0] % 2])
        turn[0] += 1

    with namespaced.forked(once):
        yield


@pytest.mark.parametrize("write", [by_library, by_command])
def test_n8_a_reader_sees_the_old_one_or_the_new(write: Callable[[Thing, Spec], None], long: bool) -> None:
    thing = Thing()
    seen = set()
    with refreshed(thing, write):
        for _ in range(600 if long else 150):
            seen.add(read(thing))
    assert seen == set(STATES)


def test_naive_n8_a_file_that_is_written_in_place_is_read_half() -> None:
    thing = Thing()
    with refreshed(thing, naively):
        assert any(read(thing) not in STATES for _ in range(300))


def read(thing: Thing) -> str:
    """Of which state the whole specification is, or what is wrong."""
    registry = Registry([str(thing.specs)])
    for problems in registry.errors.values():
        return str(problems[0])
    (loaded,) = registry.specs()
    said = text.dumps(loaded.spec, "json")
    found = [state for state in STATES if said.count(f"/{state}") == DEVICES + 1]
    return found[0] if len(found) == 1 and len(registry.devices()) == DEVICES else said[:200]


def test_n8_starts_read_it_while_it_is_refreshed(arena: Arena, profile: str, long: bool) -> None:
    """What a container gets for all and what it gets for its device are of one specification."""
    scalestarts.usual(long, profile == "new")
    thing = Thing()
    seen = set()
    with Oracle(arena.canary, arena.root, ["opt/**"]) as oracle, refreshed(thing, by_command):
        for number in range(100 if long else 12):
            with FakeContainer(arena.root) as c:
                result = run_hook(thing.words(str(number % DEVICES)), container=c, timeout=20)
                assert (result.rc, [line for line in result.stderr.splitlines() if "too late" not in line]) == (0, [])
                seen.add((c.read("opt/all"), c.read("opt/each")))
    assert {a == b and a.decode() in STATES for a, b in seen} == {True}
    assert oracle.check() == []


# -- N9 ---------------------------------------------------------------------------------------------------------------

MODULES = 10
LOADS = "".join(
    f"    from nvoci.hook import m{n}\n    seen.append(m{n}.VALUE)\n    time.sleep(0.01)\n" for n in range(MODULES)
)
PACKAGE = {
    "__init__": '"""Of one version."""\n\n__version__ = "0.1.0"\n',
    "hook/__init__": "",
    "hook/main": '"""Imports one module after another."""\nimport time\n\ndef cdi_hook():\n    seen = []\n' + LOADS
    + "    print(*seen)\n\nctk = cdi_hook\n",
    "ctl/__init__": "",
    "ctl/main": '"""Nothing."""\n\ndef main():\n    pass\n',
    "ctl/ctk": '"""Nothing."""\n\ndef main():\n    pass\n',
}  # fmt: skip


def small(top: Path) -> Checkout:
    """The installer and a package whose modules are loaded slowly."""
    found = copy_installer(top)
    for name, content in PACKAGE.items():
        path = found.top / f"hooks/nvoci/{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return found


def become(checkout: Checkout, value: str) -> None:
    """All modules are of another version."""
    for number in range(MODULES):
        (checkout.top / f"hooks/nvoci/hook/m{number}.py").write_text(f'"""One of many."""\nVALUE = "{value}"\n')


@pytest.mark.parametrize("bundle", ["one file", pytest.param("many files", marks=pytest.mark.long)])
def test_n9_a_start_sees_one_version(tmp_path: Path, bundle: str) -> None:
    """However long it takes, while the other is installed and comes back."""
    checkout, prefix = small(tmp_path / "checkout"), session.new_dir("prefix")
    for value in STATES:
        become(checkout, value)
        assert checkout.install(prefix).code == 0
        if bundle == "many files":
            (prefix / "lib/nvoci/nvoci_hot.pyc").resolve().unlink()
    links = [os.path.basename(path) for path in prefix.glob("lib/nvoci-*")]
    assert len(links) == 2

    def flip() -> None:
        for link in links:
            temporary = prefix / "lib/.flip"
            temporary.symlink_to(link)
            temporary.rename(prefix / "lib/nvoci")
            time.sleep(0.005)

    with namespaced.forked(flip):
        seen = {start(prefix / "bin/nvidia-cdi-hook") for _ in range(25)}
    assert seen == {(0, " ".join([state] * MODULES), "") for state in STATES}


def start(program: Path, *words: str) -> tuple[int, str, str]:
    done = subprocess.run([program, *words], capture_output=True, text=True, env={}, timeout=60)
    return done.returncode, done.stdout.strip(), done.stderr


@pytest.mark.long
def test_n9_containers_start_during_an_upgrade(arena: Arena, tmp_path: Path) -> None:
    """The real package, its installer, and hooks one after the other: each of the old or of the new version."""
    checkout, prefix = copy_project(tmp_path / "checkout"), session.new_dir("prefix")
    assert checkout.install(prefix).code == 0
    init = checkout.top / "hooks/nvoci/__init__.py"
    init.write_text(re.sub(r'__version__ = ".*"', '__version__ = "99.9"', init.read_text()))
    program = prefix / "bin/nvidia-cdi-hook"
    words = ["create-symlinks", "--link", f"t::/{LIBDIR}/link"]
    command = [checkout.top / "scripts/install", "--prefix", prefix]
    said = []
    with Oracle(arena.canary, arena.root, [f"{LIBDIR}/link"]) as oracle, FakeContainer(arena.root) as c:
        said.append(start(program, "--version"))
        upgrade = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
        while upgrade.poll() is None:
            (arena.root / LIBDIR / "link").unlink(missing_ok=True)
            assert run_hook_of(program, words, c) == (0, "")
            assert os.readlink(c.path(f"{LIBDIR}/link")) == "t"
            said.append(start(program, "--version"))
        assert upgrade.returncode == 0
        said.append(start(program, "--version"))
    assert [each for each in said if each[0] or each[2]] == []
    versions = [each[1].split()[-1] for each in said]
    assert (versions[0] != "99.9", versions[-1], versions == sorted(versions)) == (True, "99.9", True)
    assert oracle.check() == []


def run_hook_of(program: Path, words: list[str], container: FakeContainer) -> tuple[int, str]:
    state = json.dumps(container.state()).encode()
    done = subprocess.run([program, *words], input=state, capture_output=True, env={}, cwd=container.bundle, timeout=60)
    return done.returncode, done.stderr.decode()
