"""The program that the hooks of a generated specification call."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvoci.ctl import hookpath


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
    "absolute": ("b", "/x/y", "/x/y", False),
    "absolute, whatever its name": ("b", "/x/nvidia-ctk", "/x/nvidia-ctk", False),
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
