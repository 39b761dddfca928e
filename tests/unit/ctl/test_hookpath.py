"""The program that the hooks of a generated specification call."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvoci.ctl import hookpath
from nvoci.errors import HookError


@pytest.fixture
def dirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`a` has a directory, a file that is not executable, `b` and `usual` the programs; the working directory too."""
    for name in ("a/nvidia-cdi-hook", "b/nvidia-cdi-hook", "b/mine", "usual/nvidia-ctk", "nvidia-cdi-hook"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o644 if name[0] == "a" else 0o755)
    (tmp_path / "a/mine").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hookpath, "PATH", (str(tmp_path / "usual"),))
    return tmp_path


# PATH, what is given, the path (of a program below the directory, or absolute), whether there is a warning
CASES: dict[str, tuple[str, str, str, bool]] = {
    "absolute": ("b", "/bin/sh", "/bin/sh", False),
    "absolute, and not there": ("b", "/x/nvidia-ctk", "/x/nvidia-ctk", True),
    "absolute, and a directory": ("b", "/etc", "/etc", True),
    "nothing given": ("a:b", "", "b/nvidia-cdi-hook", False),
    "the name": ("a:b", "nvidia-cdi-hook", "b/nvidia-cdi-hook", False),
    "another name": ("a:b", "mine", "b/mine", False),
    "nvidia-ctk, in a usual directory": ("a:b", "nvidia-ctk", "usual/nvidia-ctk", False),
    "a relative path": ("", "b/mine", "b/mine", False),
    "not found": ("a", "", "/usr/bin/nvidia-cdi-hook", True),
    "nvidia-ctk below a directory that has none": ("a", "x/nvidia-ctk", "/usr/bin/nvidia-ctk", True),
    "another name, not found": ("a", "mine", "/usr/bin/nvidia-cdi-hook", True),
    "no PATH": ("", "", "/usr/bin/nvidia-cdi-hook", True),
    "relative parts of PATH do not count": (".", "", "/usr/bin/nvidia-cdi-hook", True),
}


@pytest.mark.parametrize(("path", "given", "expected", "warned"), CASES.values(), ids=CASES)
def test_where_the_program_is(dirs: Path, path: str, given: str, expected: str, warned: bool) -> None:
    environ = {"PATH": ":".join(part if part == "." else f"{dirs}/{part}" for part in path.split(":") if part)}
    told: list[str] = []
    assert hookpath.resolve(given, told.append, environ) == (expected if expected[0] == "/" else f"{dirs}/{expected}")
    assert len(told) == warned


def test_a_program_that_others_can_change_is_told_of_and_taken_as_it_is(dirs: Path) -> None:
    (dirs / "b/mine").chmod(0o777)
    told: list[str] = []
    for given in ("mine", f"{dirs}/b/mine", "b/mine"):
        assert hookpath.resolve(given, told.append, {"PATH": f"{dirs}/b"}) == f"{dirs}/b/mine"
    assert len(told) == 3
    assert all("mode 0777 (others can change what would run at each start)" in line for line in told)


OWN = {
    "absolute": ("D/b/mine", "D/b/mine"),
    "a relative path": ("b/mine", "D/b/mine"),
    "a name": ("mine", "D/b/mine"),
    "a name in a usual directory": ("nvidia-ctk", "D/usual/nvidia-ctk"),
}
REFUSED = {
    "absolute, and not there": ("/x/y", "use program /x/y: ENOENT (name the program with --nvidia-cdi-hook-path)"),
    "not executable": ("D/a/nvidia-cdi-hook", "use program D/a/nvidia-cdi-hook: not an executable file"),
    "a directory": ("D/a/mine", "use program D/a/mine: not an executable file"),
    "a name that is nowhere": ("none", "find none: no such program in PATH (name the program with "),
    "others'": ("D/b/open", "use program D/b/open: uid "),
    "others', by name": ("open", "use program D/b/open: uid "),
}


@pytest.mark.parametrize(("given", "expected"), OWN.values(), ids=OWN)
def test_a_program_for_merged_hooks(dirs: Path, given: str, expected: str) -> None:
    found = hookpath.own(given.replace("D/", f"{dirs}/"), {"PATH": f"{dirs}/b"})
    assert found == expected.replace("D/", f"{dirs}/")


@pytest.mark.parametrize(("given", "why"), REFUSED.values(), ids=REFUSED)
def test_merged_hooks_call_nothing_that_does_not_run_or_is_not_ours(dirs: Path, given: str, why: str) -> None:
    (dirs / "b/open").write_text("")
    (dirs / "b/open").chmod(0o775)
    with pytest.raises(HookError) as e:
        hookpath.own(given.replace("D/", f"{dirs}/"), {"PATH": f"{dirs}/b"})
    assert e.value.line().startswith(why.replace("D/", f"{dirs}/"))
