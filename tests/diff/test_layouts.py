"""`ldconfig -p` after update-ldcache is that of a full ldconfig run, on every layout, for both engines."""

from __future__ import annotations

import difflib

import pytest
from diff import differences, story
from diff.differences import BUILTIN, LDCONFIG
from diff.judge import Line
from diff.layouts import LAYOUTS, Layout

pytestmark = pytest.mark.kernel
CHAPTERS = ("injection", "upgrade", "removal", "dangling")
_told: dict[tuple[str, str], dict[str, story.Chapter]] = {}


# ldconfig does not read the image's cache: to it a layout without one is the same.
CASES = [(x, engine) for x in LAYOUTS for engine in (BUILTIN, LDCONFIG) if engine == BUILTIN or not x.without]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0].name}-{case[1]}")
def case(request: pytest.FixtureRequest) -> tuple[Layout, str]:
    found: tuple[Layout, str] = request.param
    return found


@pytest.fixture
def layout(case: tuple[Layout, str]) -> Layout:
    return case[0]


@pytest.fixture
def told(node: story.Node, case: tuple[Layout, str]) -> dict[str, story.Chapter]:
    """Told once per layout and engine; each test looks at one aspect of it."""
    layout, engine = case
    key = (layout.name, engine)
    if key not in _told:
        _told[key] = story.tell(node, layout, engine)
    return _told[key]


def differing(ours: list[Line], judges: list[Line]) -> list[str]:
    """The first few differences, as `diff` would show them; empty: equal, in order."""
    found = difflib.unified_diff(list(map(str, judges)), list(map(str, ours)), "ldconfig", "nvoci", "", "", 0)
    return list(found)[:40]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_cache_is_ldconfigs(told: dict[str, story.Chapter], chapter: str) -> None:
    seen = told[chapter]
    assert differing(seen.lines, seen.expected) == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_second_run_changes_nothing(told: dict[str, story.Chapter], chapter: str) -> None:
    assert told[chapter].changed == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_links_are_those_that_ldconfig_makes(told: dict[str, story.Chapter], chapter: str) -> None:
    ours, theirs = differences.links(told[chapter].links, told[chapter].verdict)
    assert ours == theirs


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_isa_levels_are_those_of_ldconfig(told: dict[str, story.Chapter], chapter: str) -> None:
    """`ldconfig -p` does not show them."""
    seen = told[chapter]
    both = seen.levels.keys() & seen.verdict.levels.keys()
    assert {path: seen.levels[path] for path in both} == {path: seen.verdict.levels[path] for path in both}


@pytest.mark.parametrize(("chapter", "version"), [("injection", story.OLD), ("upgrade", story.NEW)])
def test_every_injected_soname_is_found_and_of_this_driver(
    told: dict[str, story.Chapter], chapter: str, version: str
) -> None:
    seen = told[chapter]
    for files in seen.case.injected.values():
        assert files
        for name, soname in files.items():
            paths = [line.path for line in seen.lines if line.soname == soname]
            assert paths, f"{soname} is not in the cache"
            assert version in name
            texts = [seen.links.get(path, path.rpartition("/")[2]) for path in paths]
            assert name in texts, f"{soname}: {texts}"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_musl_searches_what_the_image_says_and_then_the_drivers_folder(
    told: dict[str, story.Chapter], layout: Layout, chapter: str
) -> None:
    """musl has no cache: each injected soname must be a name in a directory of its path file, where there is one."""
    seen = told[chapter]
    if not layout.name.startswith("alpine"):
        assert seen.musl is None
        return
    assert seen.musl is not None
    searched = seen.musl.replace(":", "\n").split()
    own = ["/lib", "/usr/local/lib", "/usr/lib", *(["/opt/own/lib"] if "path file" in layout.name else [])]
    assert searched[: len(own)] == own
    assert len(set(searched)) == len(searched)
    assert (layout.folder in searched) == (layout.folder in own or bool(seen.case.injected))
    for folder, files in seen.case.injected.items():
        assert set(files.values()) <= {path.rpartition("/")[2] for path in seen.links} | set(files), folder
