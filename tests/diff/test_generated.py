"""Random directories, files, links, sonames and configurations: the hook's cache is ldconfig's."""

from __future__ import annotations

import difflib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from diff import differences, judge, story
from diff.differences import BUILTIN, LDCONFIG, Case
from diff.generated import Image, build, images
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from lib import session

from nvoci.hook import update_ldcache as hook
from nvoci.hook.container import HOST, Container
from nvoci.hook.operation import Transaction
from nvoci.hook.settings import Settings
from nvoci.linux.rootfs import Rootfs
from tests.kernel.namespaced import isolated

pytestmark = pytest.mark.kernel
QUICK = settings(deadline=None, max_examples=75, derandomize=True, database=None,
                 suppress_health_check=list(HealthCheck))  # fmt: skip
LONG = settings(QUICK, max_examples=3000, derandomize=False, print_blob=True)
# ldconfig complains, and its answer depends on the order in which the file system lists the directory.
DISORDER = "have same soname but different type"


def update(root: Path, engine: str, folders: list[str]) -> None:
    """The hook without its process."""
    chosen = Settings()
    state = None
    prepared = hook.prepare({"folder": folders, "ldconfig-path": judge.LDCONFIG, "engine": engine}, chosen)
    container = Container(Rootfs.open(str(root)), HOST, state, chosen)  # type: ignore[arg-type]
    transaction = Transaction(False)
    for operation in hook.plan(prepared, container):
        transaction.perform("update-ldcache", operation)
    transaction.commit()


def check(node: story.Node, image: Image, engine: str) -> None:
    top = node.folder / session.unique("generated")
    top.mkdir()
    root, copy = top / "root", top / "copy"
    try:
        build(root, image)
        subprocess.run(["cp", "-a", root, copy], check=True)
        before = judge.listing(root) if image.rounds else []
        isolated(update, root, engine, image.folders)
        ours, levels = judge.listing(root), judge.levels(root)
        first = tree(root)
        isolated(update, root, engine, image.folders)
        assert tree(root) == first, "a second run changes something"
        story.take_over(root, copy)
        case = Case(root, copy, before)
        differences.prepare(case, engine)
        verdict = judge.judge(copy, judge.conf_for(copy, story.OURS, story.SYSTEM))
        assume(DISORDER not in verdict.said.err)
        theirs = differences.expected(verdict, case, engine)
        note("\n".join(difflib.unified_diff(list(map(str, theirs)), list(map(str, ours)), "ldconfig", "nvoci", n=0)))
        assert ours == theirs
        links, their_links = differences.links(judge.links(root, verdict.searched), verdict)
        assert links == their_links
        assert {p: n for p, n in levels.items() if verdict.levels.get(p, n) != n} == {}
    finally:
        shutil.rmtree(top)


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    seen: dict[str, tuple[object, ...]] = {}
    for folder, dirs, files in os.walk(root):
        for name in (*dirs, *files):
            path = os.path.join(folder, name)
            s = os.lstat(path)
            text = os.readlink(path) if os.path.islink(path) else ""
            when = 0 if os.path.isdir(path) else s.st_mtime_ns
            seen[path] = (s.st_ino, s.st_mode, s.st_size, when, text)
    return seen


@QUICK
@given(image=images())
def test_builtin(node: story.Node, image: Image) -> None:
    check(node, image, BUILTIN)


@settings(QUICK, max_examples=25)
@given(image=images())
def test_ldconfig(node: story.Node, image: Image) -> None:
    check(node, image, LDCONFIG)


@pytest.mark.long
@LONG
@given(image=images(), engine=st.sampled_from([BUILTIN, BUILTIN, BUILTIN, LDCONFIG]))
def test_many(node: story.Node, image: Image, engine: str) -> None:
    check(node, image, engine)
