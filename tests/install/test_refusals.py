"""scripts/install: what it refuses, in one line that says what to do, leaving nothing behind."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from install.conftest import Checkout, Done, listing, output

PYTHON = Path("/usr/bin/python3").resolve()


def assert_refused(done: Done, *parts: str) -> None:
    """Exit status 1 and one line that holds all of `parts`."""
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert done.err.startswith("install: ")
    assert [part for part in parts if part not in done.err] == []


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter of our own, which a test may spoil."""
    path = tmp_path / "py/python3"
    path.parent.mkdir()
    shutil.copy(PYTHON, path)
    return path


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777], ids=oct)
def test_a_prefix_that_others_can_write(checkout: Checkout, prefix: Path, mode: int) -> None:
    prefix.mkdir()
    prefix.chmod(mode)
    assert_refused(checkout.install(prefix), "trust prefix", str(prefix), "EPERM", "others can write", "chmod go-w")
    assert listing(prefix) == {}


def test_a_prefix_of_somebody_else(checkout: Checkout, prefix: Path) -> None:
    prefix.mkdir()
    os.chown(prefix, 1000, 0)
    assert_refused(checkout.install(prefix), "trust prefix", "EPERM", "owned by uid 1000", "chown root")


@pytest.mark.parametrize("name", ["bin", "lib"])
def test_a_directory_in_the_prefix_that_others_can_write(checkout: Checkout, prefix: Path, name: str) -> None:
    (prefix / name).mkdir(parents=True)
    (prefix / name).chmod(0o777)
    assert_refused(checkout.install(prefix), "trust prefix", f"{prefix}/{name}", "chmod go-w")


def test_a_parent_of_the_prefix_that_others_can_write(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert_refused(checkout.install(tmp_path / "open/prefix"), "trust prefix", f"others can write {tmp_path}/open:")
    assert listing(tmp_path / "open") == {}


def test_a_sticky_parent_that_belongs_to_root_is_accepted(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "sticky").mkdir()
    (tmp_path / "sticky").chmod(0o1777)
    assert checkout.install(tmp_path / "sticky/prefix").code == 0


def test_a_link_where_a_directory_is_needed(checkout: Checkout, prefix: Path, tmp_path: Path) -> None:
    prefix.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (prefix / "bin").symlink_to(tmp_path / "elsewhere")
    assert_refused(checkout.install(prefix), "use prefix", f"{prefix}/bin", "ENOTDIR")


@pytest.mark.parametrize("name", ["a\nb", "ümlaut"])
def test_a_prefix_that_cannot_stand_in_an_entry_file(checkout: Checkout, tmp_path: Path, name: str) -> None:
    assert_refused(checkout.install(tmp_path / name), "use prefix", "EINVAL", "printable ASCII")


def test_a_prefix_with_quotes_and_spaces_works(checkout: Checkout, tmp_path: Path) -> None:
    prefix = tmp_path / 'it\'s a "prefix" {x} \\n'
    assert checkout.install(prefix).code == 0
    assert output(prefix / "bin/nvidia-cdi-hook").startswith("one ")


def test_a_shim(checkout: Checkout, prefix: Path, tmp_path: Path) -> None:
    shim = tmp_path / "python3"
    shim.write_text(f'#!/bin/sh\nexec {PYTHON} "$@"\n')
    shim.chmod(0o755)
    assert_refused(checkout.install(prefix, "--python", shim), "use interpreter", str(shim), "ENOEXEC", "shim")
    assert not prefix.exists()


def test_path_is_not_consulted(checkout: Checkout, prefix: Path) -> None:
    assert_refused(checkout.install(prefix, "--python", "python3"), "use interpreter", "EINVAL", "absolute path")


def test_an_interpreter_that_is_not_there(checkout: Checkout, prefix: Path) -> None:
    assert_refused(checkout.install(prefix, "--python", "/nowhere/python3"), "/nowhere/python3", "ENOENT", "--python")


def test_another_program(checkout: Checkout, prefix: Path) -> None:
    assert_refused(checkout.install(prefix, "--python", "/bin/false"), "run interpreter", "ENOEXEC", "Python 3")


def test_an_interpreter_that_others_can_write(checkout: Checkout, prefix: Path, python: Path) -> None:
    python.chmod(0o777)
    assert_refused(checkout.install(prefix, "--python", python), "trust interpreter", "EPERM", "chmod go-w")


def test_an_interpreter_in_a_directory_that_others_can_write(checkout: Checkout, prefix: Path, python: Path) -> None:
    python.parent.chmod(0o775)
    assert_refused(
        checkout.install(prefix, "--python", python), "trust interpreter", f"others can write {python.parent}"
    )


def test_an_interpreter_of_somebody_else(checkout: Checkout, prefix: Path, python: Path) -> None:
    os.chown(python, 1000, 1000)
    assert_refused(checkout.install(prefix, "--python", python), "trust interpreter", "owned by uid 1000")


def test_a_link_to_an_interpreter_is_resolved(checkout: Checkout, prefix: Path, python: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(python)
    assert checkout.install(prefix, "--python", tmp_path / "link").code == 0
    assert (prefix / "bin/nvoci").read_text().startswith(f"#!{python} -ISB\n")
    assert output(prefix / "bin/nvidia-cdi-hook").startswith("one ")


def test_a_path_too_long_for_the_first_line(checkout: Checkout, prefix: Path, python: Path, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120) / "python3"
    long.parent.mkdir()
    python.rename(long)
    assert_refused(checkout.install(prefix, "--python", long), "use interpreter", "ENAMETOOLONG", "127")


def test_a_path_with_a_space(checkout: Checkout, prefix: Path, python: Path, tmp_path: Path) -> None:
    python.parent.rename(tmp_path / "p y")
    assert_refused(checkout.install(prefix, "--python", tmp_path / "p y/python3"), "EINVAL", "space")


@pytest.mark.parametrize("form", ["file", "link", "program"])
def test_a_file_of_somebody_else_in_bin(checkout: Checkout, prefix: Path, form: str) -> None:
    (prefix / "bin").mkdir(parents=True)
    path = prefix / "bin/nvidia-ctk"
    if form == "link":
        path.symlink_to("/bin/true")
    else:
        path.write_bytes(b"mine\n" if form == "file" else Path("/bin/true").read_bytes())
    before = listing(prefix)
    assert_refused(checkout.install(prefix), "replace", str(path), "EEXIST", "--force")
    assert listing(prefix) == before
    assert checkout.install(prefix, "--force").code == 0
    assert output(path).startswith("one ")


def test_a_directory_in_the_way_stays_even_with_force(checkout: Checkout, prefix: Path) -> None:
    (prefix / "bin/nvoci").mkdir(parents=True)
    assert_refused(checkout.install(prefix, "--force"), "replace", f"{prefix}/bin/nvoci", "EISDIR")


@pytest.mark.parametrize("target", ["directory", "link"])
def test_something_of_somebody_else_at_the_place_of_the_link(checkout: Checkout, prefix: Path, target: str) -> None:
    (prefix / "lib").mkdir(parents=True)
    link = prefix / "lib/nvoci"
    link.mkdir() if target == "directory" else link.symlink_to("/opt")
    assert_refused(checkout.install(prefix), "replace", str(link), "EEXIST")


def test_a_source_that_does_not_compile_leaves_nothing(checkout: Checkout, prefix: Path) -> None:
    (checkout.top / "hooks/nvoci/bad.py").write_text("def (:\n")
    assert_refused(checkout.install(prefix), "compile", "ENOEXEC", "nvoci/bad.py: SyntaxError")
    assert not prefix.exists()


def test_a_failing_upgrade_leaves_the_old_version(checkout: Checkout, prefix: Path) -> None:
    checkout.install(prefix)
    before = listing(prefix)
    (checkout.top / "hooks/nvoci/bad.py").write_text("def (:\n")
    assert checkout.install(prefix, "--force").code == 1
    assert listing(prefix) == before


def test_an_entry_that_cannot_be_replaced_takes_everything_back(checkout: Checkout, prefix: Path) -> None:
    checkout.install(prefix)
    (prefix / "bin/nvidia-cdi-hook").unlink()
    (prefix / "bin/nvoci").write_text((prefix / "bin/nvoci").read_text() + "# older\n")
    before = listing(prefix)
    checkout.change("two")
    spoil = checkout.top / "scripts/_install_tree.py"
    text = spoil.read_text()
    needle = "        temporary.replace(path)\n"
    assert text.count(needle) == 1
    spoil.write_text(
        text.replace(needle, needle + "        if path.name == 'nvoci':\n            raise OSError(5, '', path)\n")
    )
    assert_refused(checkout.install(prefix), "replace", f"{prefix}/bin/nvoci", "EIO")
    assert listing(prefix) == before


def test_a_link_in_the_sources(checkout: Checkout, prefix: Path) -> None:
    (checkout.top / "hooks/nvoci/passwd").symlink_to("/etc/passwd")
    assert_refused(checkout.install(prefix), "copy", "passwd", "EINVAL")


def test_no_third_party_packages(checkout: Checkout, prefix: Path) -> None:
    shutil.rmtree(checkout.top / ".venv")
    assert_refused(checkout.install(prefix), "vendor", "click", "ENOENT", "scripts/setup-venv", "--wheels")
    assert not prefix.exists()


def test_a_third_party_package_that_was_changed(checkout: Checkout, prefix: Path) -> None:
    module = next((checkout.top / ".venv").rglob("click/core.py"))
    module.write_text(module.read_text() + "# changed\n")
    assert_refused(checkout.install(prefix), "vendor", "click/core.py", "RECORD")


def test_a_third_party_package_for_a_newer_python(checkout: Checkout, prefix: Path) -> None:
    (info,) = (checkout.top / ".venv").rglob("click-*.dist-info")
    (info / "METADATA").write_text("Name: click\nRequires-Python: >=3.99\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256((info / "METADATA").read_bytes()).digest()).decode().rstrip("=")
    lines = [line for line in (info / "RECORD").read_text().splitlines() if "METADATA" not in line]
    (info / "RECORD").write_text("\n".join([*lines, f"{info.name}/METADATA,sha256={digest},0", ""]))
    assert_refused(checkout.install(prefix), "vendor", "click", "needs Python 3.99", "--wheels")


def test_a_third_party_package_with_compiled_parts(checkout: Checkout, prefix: Path) -> None:
    (info,) = (checkout.top / ".venv").rglob("click-*.dist-info")
    (info.parent / "click/fast.so").write_bytes(b"x")
    (info / "RECORD").write_text((info / "RECORD").read_text() + "click/fast.so,sha256=x,1\n")
    assert_refused(checkout.install(prefix), "vendor", "click/fast.so", "pure Python wheel")


def test_wheels_that_are_no_wheels(checkout: Checkout, prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "click-1-py3-none-any.whl").write_text("no zip")
    assert_refused(checkout.install(prefix, "--wheels", tmp_path), "vendor", "click-1", "not a whole wheel")


def test_somebody_other_than_root(checkout: Checkout, tmp_path: Path) -> None:
    text = (checkout.top / "scripts/install").read_text()
    (checkout.top / "scripts/install").write_text(text.replace("os.geteuid()", "1000"))
    assert_refused(checkout.install(tmp_path / "x"), "EPERM", "run as root")


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "tiny"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=755", "nvoci-test", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_file_system_leaves_nothing(checkout: Checkout, tiny: Path) -> None:
    assert_refused(checkout.install(tiny / "prefix"), "write", str(tiny), "ENOSPC", "make room")
    assert listing(tiny) == {}
