"""scripts/_packages.sh: packages whose files are unpacked, with an apt-get that is ours."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from lib import proc, session

# Packages are directories' worth of a file each; `update` makes the lists that a download wants.
APT = """#!/bin/sh
echo "$*" >>{log}
case $* in
    *update*) touch {lists} ;;
    *download*)
        [ -e {lists} ] || exit 100
        for word; do package=$word; done
        [ "$package" != missing ] || exit 100
        cp {deb} . ;;
esac
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: thing\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\nDescription: thing\n"
    )
    (tree / "usr/sbin").mkdir(parents=True)
    (tree / "usr/sbin/thing").write_text("1")
    deb, lists, log = tmp_path / "thing_1_all.deb", tmp_path / "lists", tmp_path / "log"
    subprocess.run(["dpkg-deb", "--build", tree, deb], check=True, capture_output=True)
    apt = tmp_path / "bin/apt-get"
    apt.parent.mkdir()
    apt.write_text(APT.format(log=log, lists=lists, deb=deb))
    apt.chmod(0o755)
    return tmp_path


def unpack(work: Path, *packages: str) -> proc.Result:
    source = shlex.quote(str(session.CHECKOUT / "scripts/_packages.sh"))
    script = f'set -euo pipefail; fail() {{ echo "x: $*" >&2; exit 1; }}; . {source}; unpack x "$@"'
    env = {"PATH": f"{work}/bin:{proc.PLAIN_ENV['PATH']}"}
    return proc.run(["/bin/bash", "-c", script, "x", work / "made/here", *packages], env=env)


def test_unpacks_once(work: Path) -> None:
    done = unpack(work, "thing")
    assert (done.rc, done.stdout) == (0, ""), done.stderr
    assert (work / "made/here/usr/sbin/thing").read_text() == "1"
    assert [path.name for path in (work / "made").iterdir()] == ["here"]
    asked = (work / "log").read_text()
    assert unpack(work, "thing").stderr == ""
    assert (work / "log").read_text() == asked


def test_other_packages_take_the_place_of_the_first(work: Path) -> None:
    assert unpack(work, "thing").ok
    (work / "made/here/old").touch()
    assert unpack(work, "thing", "thing").ok
    assert not (work / "made/here/old").exists()


def test_what_cannot_be_had_is_one_clear_error_and_leaves_nothing(work: Path) -> None:
    failed = unpack(work, "thing", "missing")
    assert failed.rc == 1
    assert failed.stderr.splitlines()[-1].startswith("x: download `thing missing`: apt-get cannot")
    assert list((work / "made").iterdir()) == []
    (work / "thing_1_all.deb").write_text("no archive")
    failed = unpack(work, "thing")
    assert failed.rc == 1
    assert failed.stderr.splitlines()[-1].startswith("x: unpack `thing_1_all.deb`: dpkg-deb cannot")
    assert list((work / "made").iterdir()) == []
