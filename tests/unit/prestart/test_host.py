"""What is left to the host: which ldconfig."""

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
