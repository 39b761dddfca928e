"""What is left to the host: which ldconfig, and who NVML runs as."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvoci.prestart import host
from nvoci.prestart.config import Config


@pytest.fixture
def sbin(tmp_path: Path) -> Path:
    """Debian's two and one without."""
    for name in ("ldconfig", "ldconfig.real", "plain"):
        (tmp_path / name).touch()
    return tmp_path


# configured -> found; {} is the directory
LDCONFIG: dict[str, tuple[str, str]] = {
    "not set": ("", "{}/ldconfig.real"),
    "the script": ("@{}/ldconfig", "{}/ldconfig.real"),
    "the program": ("@{}/ldconfig.real", "{}/ldconfig.real"),
    "one without another": ("@{}/plain", "{}/plain"),
    "a program that is not there": ("@{}/plain.real", "{}/plain"),
    "neither": ("@{}/none", "{}/none"),
    "of the container": ("{}/ldconfig", ""),
}


@pytest.mark.parametrize(("configured", "path"), LDCONFIG.values(), ids=LDCONFIG)
def test_ldconfig(sbin: Path, configured: str, path: str) -> None:
    found = host.ldconfig(Config(ldconfig=configured.format(sbin)), f"{sbin}/ldconfig")
    assert found == path.format(sbin)


def test_the_hosts_own() -> None:
    assert host.ldconfig(Config()) in ("/sbin/ldconfig", "/sbin/ldconfig.real")


RELEASES: dict[str, tuple[str, str]] = {
    "SUSE": ('NAME="SLES"\nID="sles"\nID_LIKE="suse"\n', "root:video"),
    "openSUSE": ('ID_LIKE="suse opensuse"\n', "root:video"),
    "one quote": ("ID_LIKE='opensuse'\n", "root:video"),
    "no quotes, no end of line": ("ID_LIKE=suse", "root:video"),
    "Ubuntu": ("ID=ubuntu\nID_LIKE=debian\n", ""),
    "part of a word": ("ID_LIKE=susette\n", ""),
    "another key": ("ID=suse\nNOT_ID_LIKE=suse\n", ""),
    "empty": ("", ""),
}


@pytest.mark.parametrize(("text", "user"), RELEASES.values(), ids=RELEASES)
def test_user(tmp_path: Path, text: str, user: str) -> None:
    path = tmp_path / "os-release"
    path.write_text(text)
    assert host.user(Config(), str(path)) == user
    assert host.user(Config(user="1:2"), str(path)) == "1:2"


def test_without_os_release(tmp_path: Path) -> None:
    assert host.user(Config(), str(tmp_path / "none")) == ""
    assert host.user(Config(), str(tmp_path)) == ""
