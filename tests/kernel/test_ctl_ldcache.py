"""`nvoci ldcache explain` and the loader itself: both must find the same file, or none."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib import elfmaker
from lib.rootfs import LOADER, MACHINE, TRIPLET, add_probe, glibc_rootfs, tree

from nvoci.ctl import main
from nvoci.ldcache.cache import encode, parse

LDCONFIG = "/sbin/ldconfig"
NAME = "libnva.so.1"
CACHE = "etc/ld.so.cache"
OTHER = {"x86_64": "aarch64", "aarch64": "x86_64"}
Make = Callable[[Path], None]
pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root"),
    pytest.mark.skipif(not os.path.exists(LDCONFIG), reason="no ldconfig on this host"),
    pytest.mark.skipif(MACHINE not in OTHER, reason="the prepared libraries are for x86-64 and AArch64"),
]


def library(root: Path, path: str, machine: str = MACHINE) -> None:
    elfmaker.make_so(root / path, NAME, (), machine)


def ldconfig(root: Path) -> None:
    subprocess.run([LDCONFIG, "-r", root, "-C", f"/{CACHE}"], check=True, capture_output=True, env={})


def fresh(root: Path) -> None:
    library(root, "opt/a/libnva.so.1.2")
    library(root, "opt/b/libnva.so.1.3")
    ldconfig(root)


def not_yet(root: Path) -> None:
    library(root, "opt/a/libnva.so.1.2")


def stale_with_another_left(root: Path) -> None:
    fresh(root)
    (root / "opt/a/libnva.so.1.2").unlink()


def stale_with_a_default_directory(root: Path) -> None:
    fresh(root)
    shutil.rmtree(root / "opt/a")
    library(root, f"usr/lib/{TRIPLET}/{NAME}")


def no_cache(root: Path) -> None:
    fresh(root)
    (root / CACHE).unlink()


def no_cache_default_directory(root: Path) -> None:
    (root / CACHE).unlink()
    library(root, f"usr/lib/{NAME}")


def malformed_in_front(root: Path) -> None:
    fresh(root)
    tree(root, "file opt/a/libnva.so.1.2 " + "text" * 30)


def other_machine_in_front(root: Path) -> None:
    library(root, "opt/a/libnva.so.1", OTHER[MACHINE])
    library(root, "opt/b/libnva.so.1")
    ldconfig(root)


def replaced_by_another_machine(root: Path) -> None:
    fresh(root)
    library(root, "opt/a/libnva.so.1.2", OTHER[MACHINE])
    library(root, f"usr/lib/{NAME}")


def wrong_machine_only(root: Path) -> None:
    library(root, f"usr/lib/{NAME}", OTHER[MACHINE])
    ldconfig(root)


def upside_down(root: Path) -> None:
    fresh(root)
    cache = root / CACHE
    cache.write_bytes(encode(parse(cache.read_bytes()).entries[::-1]))


def text_in_a_default_directory(root: Path) -> None:
    tree(root, f"file usr/lib/{TRIPLET}/{NAME} " + "text" * 30)
    library(root, f"usr/lib/{NAME}")


def hwcaps(root: Path) -> None:
    for level in (2, 3, 4):
        library(root, f"opt/b/glibc-hwcaps/x86-64-v{level}/libnva.so.1.0")
    library(root, "opt/b/glibc-hwcaps/mine/libnva.so.1.0")
    fresh(root)


def hwcaps_in_a_default_directory(root: Path) -> None:
    for level in (2, 3):
        library(root, f"usr/lib/glibc-hwcaps/x86-64-v{level}/{NAME}")
    library(root, f"usr/lib/{NAME}")


def nothing(root: Path) -> None:
    ldconfig(root)


CASES: dict[str, Make] = {
    make.__name__: make
    for make in (
        fresh, not_yet, stale_with_another_left, stale_with_a_default_directory, no_cache, no_cache_default_directory,
        malformed_in_front, other_machine_in_front, replaced_by_another_machine, wrong_machine_only, upside_down,
        text_in_a_default_directory, hwcaps, hwcaps_in_a_default_directory, nothing,
    )
}  # fmt: skip


def loaded(root: Path, probe: str) -> str | None:
    """The path that the root's own ld.so loads for NAME."""
    argv = ["/usr/sbin/chroot", root, LOADER, "--list", probe]
    text = subprocess.run(argv, check=False, capture_output=True, text=True, env={}).stdout
    found = re.search(rf"^\t{re.escape(NAME)} => (/\S+)", text, re.MULTILINE)
    return found[1] if found else None


@pytest.mark.parametrize("case", CASES)
def test_explain_finds_what_the_loader_loads(tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str) -> None:
    root = glibc_rootfs(tmp_path / "root")
    tree(root, "file etc/ld.so.conf.d/0.conf /opt/a\\n/opt/b\\n")
    probe = add_probe(root, NAME)
    CASES[case](root)
    wanted = loaded(root, probe)
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        main.run(["ldcache", "explain", "--json", str(root), NAME])
    answer: dict[str, Any] = json.loads(capfd.readouterr().out)
    found = answer["found"] and answer["found"]["path"]
    assert (found, end.value.code) == (wanted, 0 if wanted else 1), answer["because"]


def test_the_cases_are_of_both_kinds(tmp_path: Path) -> None:
    """So that the comparison above is none of nothing with nothing."""
    found = {}
    for case in ("fresh", "not_yet"):
        root = glibc_rootfs(tmp_path / case)
        tree(root, "file etc/ld.so.conf.d/0.conf /opt/a\\n/opt/b\\n")
        probe = add_probe(root, NAME)
        CASES[case](root)
        found[case] = loaded(root, probe)
    assert found == {"fresh": f"/opt/a/{NAME}", "not_yet": None}
