"""Where log lines go beside stderr."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvoci import log
from nvoci.hook.settings import Settings
from nvoci.prestart import logs


@pytest.fixture(autouse=True)
def _own_sinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_sinks", [])


def test_lines_of_a_level_go_to_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "log"
    logs.add_file(str(path), log.INFO)
    logs.add_file(str(path), log.ERROR)
    log.debug("too little")
    log.info("told once", what="x")
    log.error("told twice")
    assert [line.partition("level=")[2] for line in path.read_text().splitlines()] == [
        'info msg="told once" what=x', 'error msg="told twice"', 'error msg="told twice"',
    ]  # fmt: skip
    assert oct(path.stat().st_mode & 0o777) in {"0o640", "0o600"}


def test_the_settings_say_which(tmp_path: Path) -> None:
    settings = Settings()
    logs.open_logs(settings)
    assert log._sinks == []
    settings.log_file, settings.log_level = str(tmp_path / "log"), "error"
    logs.open_logs(settings)
    log.warning("not this")
    log.error("this")
    assert (tmp_path / "log").read_text().count("\n") == 1


@pytest.mark.parametrize("kind", ["directory", "link", "nowhere"])
def test_a_file_that_cannot_be_opened_is_a_warning(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "other")
    else:
        path = tmp_path / "no/log"
    logs.add_file(str(path), log.INFO)
    assert log._sinks == []
    assert f'level=warning msg="open log {path}: E' in capfd.readouterr().err
