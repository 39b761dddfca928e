"""scripts/install --check and --uninstall: what is reported, what goes and what stays."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from install.conftest import Checkout, Done, listing, output

PYTHON = Path("/usr/bin/python3").resolve()


def manifest_of(prefix: Path) -> Path:
    """MANIFEST of the current version."""
    return prefix / "lib/nvoci/MANIFEST"


def assert_found(done: Done, checkout: Checkout, prefix: Path, *parts: str, lines: int = 1) -> None:
    """Exit status 1; each line tells a finding and the command that mends it."""
    assert done.code == 1
    assert done.err == ""
    assert done.out.count("\n") == lines
    assert all(f"; mend: {checkout.top}/scripts/install --prefix {prefix}" in line for line in done.out.splitlines())
    assert [part for part in parts if part not in done.out] == []


def test_check_of_a_whole_tree_is_one_line(checkout: Checkout, prefix: Path) -> None:
    checkout.install(prefix)
    done = checkout.install(prefix, "--check")
    assert (done.code, done.out.count("\n"), done.err) == (0, 1, "")
    assert "is as it was laid down" in done.out


def test_check_of_nothing(checkout: Checkout, prefix: Path) -> None:
    assert_found(checkout.install(prefix, "--check"), checkout, prefix, "leads to no installed version")
    assert not prefix.exists()


DAMAGE = {
    "changed": lambda path: path.write_text("x"),
    "missing": lambda path: path.unlink(),
    "mode": lambda path: path.chmod(0o666),
    "owner": lambda path: os.chown(path, 1000, 0),
    "link": lambda path: (path.unlink(), path.symlink_to("/etc/passwd")),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["lib/nvoci/nvoci/hook/main.py", "bin/nvidia-cdi-hook"])
def test_check_finds_damage_and_its_command_mends_it(checkout: Checkout, prefix: Path, name: str, damage: str) -> None:
    checkout.install(prefix)
    path = (prefix / name).resolve()
    DAMAGE[damage](path)
    found = checkout.install(prefix, "--check")
    assert_found(found, checkout, prefix, str(path))
    output(*found.out.split("; mend: ")[1].split())
    assert checkout.install(prefix, "--check").code == 0
    assert output(prefix / "bin/nvidia-cdi-hook").startswith("one ")


def test_check_finds_a_planted_module(checkout: Checkout, prefix: Path) -> None:
    checkout.install(prefix)
    (prefix / "lib/nvoci/nvoci/json.py").write_text("")
    assert_found(checkout.install(prefix, "--check"), checkout, prefix, "nvoci/json.py was not laid down")


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter of our own."""
    path = tmp_path / "py/python3"
    path.parent.mkdir()
    shutil.copy(PYTHON, path)
    return path


def test_check_finds_that_the_interpreter_is_gone(checkout: Checkout, prefix: Path, python: Path) -> None:
    checkout.install(prefix, "--python", python)
    assert checkout.install(prefix, "--check").code == 0
    python.unlink()
    found = checkout.install(prefix, "--check")
    assert_found(found, checkout, prefix, f"interpreter {python}", "ENOENT")
    assert "--python" not in found.out.split("mend:")[1]
    assert checkout.install(prefix).code == 0
    assert checkout.install(prefix, "--check").code == 0


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [("version", "3.10.2", "the .pyc files are for 3.10.2"), ("magic", "610d0d0a", "the .pyc files have 610d0d0a")],
)
def test_check_finds_another_interpreter(checkout: Checkout, prefix: Path, key: str, value: str, told: str) -> None:
    """As after a distribution upgrade: the file is there, the Python in it is another one."""
    checkout.install(prefix)
    manifest = json.loads(manifest_of(prefix).read_text())
    manifest["interpreter"][key] = value
    manifest_of(prefix).write_text(json.dumps(manifest))
    assert_found(checkout.install(prefix, "--check"), checkout, prefix, f"interpreter {PYTHON}", told)


def test_a_patch_release_of_the_interpreter_is_no_finding(checkout: Checkout, prefix: Path) -> None:
    checkout.install(prefix)
    manifest = json.loads(manifest_of(prefix).read_text())
    manifest["interpreter"]["version"] = ".".join(manifest["interpreter"]["version"].split(".")[:2]) + ".99"
    manifest_of(prefix).write_text(json.dumps(manifest))
    assert checkout.install(prefix, "--check").code == 0


def test_check_names_the_chosen_interpreter_in_its_command(checkout: Checkout, prefix: Path, python: Path) -> None:
    checkout.install(prefix, "--python", python)
    (prefix / "bin/nvoci").unlink()
    assert_found(checkout.install(prefix, "--check"), checkout, prefix, f"--python {python}")


def test_check_finds_a_tree_that_was_moved(checkout: Checkout, prefix: Path, tmp_path: Path) -> None:
    checkout.install(prefix)
    prefix.rename(tmp_path / "moved")
    found = checkout.install(tmp_path / "moved", "--check")
    assert_found(found, checkout, tmp_path / "moved", f"was moved here from {prefix}")


def test_check_finds_a_prefix_that_others_can_write(checkout: Checkout, prefix: Path) -> None:
    checkout.install(prefix)
    prefix.chmod(0o777)
    done = checkout.install(prefix, "--check")
    assert_found(done, checkout, prefix, "others can write")


def test_uninstall_leaves_nothing_of_ours(checkout: Checkout, prefix: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    checkout.install(prefix)
    checkout.change("two")
    checkout.install(prefix)
    done = checkout.install(prefix, "--uninstall")
    assert (done.code, done.err) == (0, "")
    assert sorted(tmp_path.iterdir()) == before


def test_uninstall_leaves_everything_of_others(checkout: Checkout, prefix: Path) -> None:
    for name in ("bin/other", "lib/libother.so", "lib/nvoci-plugin/file", "share/x"):
        (prefix / name).parent.mkdir(parents=True, exist_ok=True)
        (prefix / name).write_text(name)
    before = listing(prefix)
    checkout.install(prefix)
    assert checkout.install(prefix, "--uninstall").code == 0
    assert listing(prefix) == before


def test_uninstall_removes_directories_an_earlier_version_made(checkout: Checkout, prefix: Path) -> None:
    for value in ("one", "two", "three"):
        checkout.change(value)
        checkout.install(prefix)
    checkout.install(prefix, "--uninstall")
    assert not prefix.exists()


def test_uninstall_leaves_and_reports_a_changed_file(checkout: Checkout, prefix: Path) -> None:
    checkout.install(prefix)
    version = (prefix / "lib/nvoci").resolve()
    (version / "nvoci/hook/main.py").write_text("mine")
    (version / "notes").write_text("mine")
    (prefix / "bin/nvoci").write_text("mine")
    done = checkout.install(prefix, "--uninstall")
    left = {path for path in prefix.rglob("*") if path.is_file()}
    assert left == {version / "nvoci/hook/main.py", version / "notes", version / "MANIFEST", prefix / "bin/nvoci"}
    assert done.code == 1
    assert done.err.count("left in place: ") == done.err.count("\n") == 3
    for name in ("nvoci/hook/main.py", "notes"):
        (version / name).unlink()
    (prefix / "bin/nvoci").unlink()
    assert checkout.install(prefix, "--uninstall").code == 0
    assert not prefix.exists()


def test_uninstall_of_nothing(checkout: Checkout, prefix: Path) -> None:
    done = checkout.install(prefix, "--uninstall")
    assert (done.code, "ENOENT (nothing of nvoci is installed" in done.err) == (1, True)
