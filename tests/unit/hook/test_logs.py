"""Where log lines go beside stderr."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lib import rootfs, session

from nvoci import log
from nvoci.hook import logs
from nvoci.hook.settings import Settings

STRANGER = 1234


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


CANNOT: dict[str, str] = {
    "directory": "EISDIR (a directory is in the way, and is never removed)",
    "dangling": "ENOENT (its directory must be there)",
    "no/log": "ENOENT (its directory must be there)",
    "fifo": "ENXIO",
    "nul\0": "EINVAL",
}


@pytest.mark.parametrize("name", CANNOT, ids=repr)
def test_a_file_that_cannot_be_opened_is_a_warning(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rootfs.tree(tmp_path / "t", "dir directory\nsymlink dangling other\nfifo fifo")
    logs.add_file(f"{tmp_path}/t/{name}", log.INFO)
    assert log._sinks == []
    told = capfd.readouterr().err
    assert f'level=warning msg="open log {tmp_path}/t/{name[:3]}' in told
    assert f": {CANNOT[name]}" in told
    assert not (tmp_path / "t/other").exists()


OF_OTHERS: dict[str, str] = {
    "theirs": f"EACCES (owned by uid {STRANGER}, in a directory that others may write: name another place)",
    "hard": "EACCES (another name of a file, in a directory that others may write: name another place)",
    "link": "ELOOP (a link in a directory that others may write: name another place)",
    "dangling": "ELOOP (a link in a directory that others may write: name another place)",
    "etc/crontab": "ELOOP (a link in a directory that others may write: name another place)",
}


@pytest.mark.security
@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of other users")
@pytest.mark.parametrize("name", OF_OTHERS)
def test_nothing_is_written_to_what_another_may_have_put_there(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    top = rootfs.tree(
        session.new_dir("logs") / "t",
        """
file etc/crontab host
dir tmp
file tmp/theirs x
symlink tmp/link ../etc/crontab
symlink tmp/dangling ../etc/new
symlink tmp/etc ../etc
""",
    )
    (top / "tmp").chmod(0o777)  # in a sticky one the kernel refuses some by itself, and does not say why
    for each in ("theirs", "link", "dangling", "etc"):
        os.chown(top / "tmp" / each, STRANGER, STRANGER, follow_symlinks=False)
    os.link(top / "etc/crontab", top / "tmp/hard")
    settings = Settings()
    settings.log_file = f"{top}/tmp/{name}"
    logs.open_logs(settings)
    assert log._sinks == []
    assert f'level=warning msg="open log {top}/tmp/{name}: {OF_OTHERS[name]}"' in capfd.readouterr().err
    assert ((top / "etc/crontab").read_text(), (top / "tmp/theirs").read_text()) == ("host", "x")
    assert os.listdir(top / "etc") == ["crontab"]


def test_a_link_of_an_administrator_leads_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "real").touch()
    (tmp_path / "link").symlink_to("real")
    logs.add_file(str(tmp_path / "link"), log.INFO)
    log.info("told")
    assert (tmp_path / "real").read_text().endswith('msg="told"\n')
