"""`nvoci` and the hook programs as installed: entry files that find the packages of this session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import pytest
from lib import proc, session

from nvoci.ctl import main

Invoke = Callable[..., proc.Result]

ENTRIES = {
    "nvidia-cdi-hook": ("nvoci.hook.main", "cdi_hook"),
    "nvidia-container-runtime-hook": ("nvoci.prestart.main", "main"),
    "nvoci": ("nvoci.ctl.main", "main"),
}


@pytest.fixture(scope="session")
def bin_dir() -> Path:
    """A directory with the programs, in the installer's form."""
    directory = session.new_dir("bin")
    vendor = Path(click.__file__).parent.parent
    for name, (module, function) in ENTRIES.items():
        path = directory / name
        path.write_text(
            f"#!{session.ENTRY_PYTHON} -ISB\nimport sys\nsys.path.insert(0, {str(session.HOOKS)!r})\n"
            f"sys.path.insert(1, {str(vendor)!r})\nfrom {module} import {function}\n{function}()\n"
        )
        path.chmod(0o755)
    return directory


@pytest.fixture
def nvoci(bin_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Invoke:
    """`nvoci WORDS…` in this process, beside an installed hook program (`nvoci hook` needs a process of its own)."""

    def invoke(*words: str | Path) -> proc.Result:
        monkeypatch.setattr("sys.argv", [str(bin_dir / "nvoci")])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main.run([str(word) for word in words])
        out, err = capfd.readouterr()
        return proc.Result(int(end.value.code or 0), out, err, 0.0)

    return invoke
