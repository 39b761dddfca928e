"""scripts/install --systemd: the units, with the path of the installed program."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from install.conftest import ROOT, Checkout, listing, output

PLACE = "lib/systemd/system"
SERVICE = "nvoci-cdi-refresh.service"
NAMES = sorted(path.name for path in (ROOT / "systemd").iterdir())


@pytest.fixture
def shipped(checkout: Checkout) -> Checkout:
    """With the real units."""
    shutil.copytree(ROOT / "systemd", checkout.top / "systemd")
    return checkout


def units(prefix: Path) -> list[str]:
    """Those that are there."""
    return sorted(path.name for path in (prefix / PLACE).iterdir()) if (prefix / PLACE).exists() else []


def command(prefix: Path) -> str:
    """What the service starts."""
    (line,) = [each for each in (prefix / PLACE / SERVICE).read_text().splitlines() if each.startswith("ExecStart=")]
    return line.partition("=")[2]


def test_units_are_laid_down_when_asked_for(shipped: Checkout, prefix: Path) -> None:
    assert shipped.install(prefix).code == 0
    assert units(prefix) == []
    done = shipped.install(prefix, "--systemd")
    assert (done.code, done.err) == (0, "")
    assert units(prefix) == NAMES
    assert command(prefix) == f"{prefix}/bin/nvoci cdi refresh --wait 30"
    for path in (prefix / PLACE).iterdir():
        status = path.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o644, 0, 0)
    link = f"install: to use the units: systemctl link {prefix}/{PLACE}/nvoci-*; systemctl daemon-reload; "
    assert done.out.splitlines()[-1].startswith(link)
    manifest = json.loads((prefix / "lib/nvoci/MANIFEST").read_text())
    assert {f"{PLACE}/{name}" for name in NAMES} < set(manifest["entries"])
    assert shipped.install(prefix, "--check").code == 0


def test_nothing_but_the_programs_path_is_changed(shipped: Checkout, prefix: Path) -> None:
    shipped.install(prefix, "--systemd")
    for name in NAMES:
        text = (prefix / PLACE / name).read_text()
        back = text.replace(f"ExecStart={prefix}/bin/nvoci ", "ExecStart=/usr/local/bin/nvoci ")
        assert back == (ROOT / "systemd" / name).read_text()
        assert (text != back) == (name == SERVICE)


def test_an_upgrade_keeps_them_until_told_otherwise(shipped: Checkout, prefix: Path) -> None:
    shipped.install(prefix, "--systemd")
    shipped.change("two")
    path = shipped.top / "systemd" / SERVICE
    path.write_text(path.read_text().replace("--wait 30", "--wait 31"))
    done = shipped.install(prefix)
    assert (done.code, "to use the units" in done.out) == (0, False)
    assert command(prefix).endswith(" --wait 31")
    assert shipped.install(prefix, "--no-systemd").code == 0
    assert units(prefix) == []
    shipped.change("three")
    shipped.install(prefix)
    assert units(prefix) == []


def test_the_same_again_changes_nothing(shipped: Checkout, prefix: Path) -> None:
    shipped.install(prefix, "--systemd")
    before = {path: path.stat().st_ino for path in (prefix / PLACE).iterdir()}
    assert "already installed" in shipped.install(prefix, "--systemd").out
    assert {path: path.stat().st_ino for path in (prefix / PLACE).iterdir()} == before


def test_uninstall_leaves_nothing_and_says_what_else_there_may_be(shipped: Checkout, prefix: Path) -> None:
    shipped.install(prefix, "--systemd")
    done = shipped.install(prefix, "--uninstall")
    assert (done.code, done.err, prefix.exists()) == (0, "", False)
    assert done.out.splitlines()[-1].startswith(f"install: if its units were enabled: systemctl disable {SERVICE} ")


def test_uninstall_leaves_the_units_of_others(shipped: Checkout, prefix: Path) -> None:
    (prefix / PLACE).mkdir(parents=True)
    (prefix / PLACE / "other.service").write_text("[Service]\n")
    before = listing(prefix)
    shipped.install(prefix, "--systemd")
    assert shipped.install(prefix, "--uninstall").code == 0
    assert listing(prefix) == before


def test_a_unit_of_somebody_else_stays(shipped: Checkout, prefix: Path) -> None:
    (prefix / PLACE).mkdir(parents=True)
    (prefix / PLACE / SERVICE).write_text("mine")
    before = listing(prefix)
    done = shipped.install(prefix, "--systemd")
    assert (done.code, f"replace `{prefix}/{PLACE}/{SERVICE}`: EEXIST (not laid down by nvoci" in done.err) == (1, True)
    assert listing(prefix) == before
    assert shipped.install(prefix, "--systemd", "--force").code == 0
    assert command(prefix).startswith(f"{prefix}/bin/nvoci ")


def test_check_finds_a_changed_unit_and_its_command_mends_it(shipped: Checkout, prefix: Path) -> None:
    shipped.install(prefix, "--systemd")
    path = prefix / PLACE / SERVICE
    path.write_text("mine")
    found = shipped.install(prefix, "--check")
    assert (found.code, found.out.count("\n")) == (1, 1)
    assert found.out.startswith(f"check: {path} was changed; mend: ")
    assert "--force" not in found.out
    output(*found.out.split("; mend: ")[1].split())
    assert shipped.install(prefix, "--check").code == 0


def test_a_directory_for_units_that_others_can_write(shipped: Checkout, prefix: Path) -> None:
    (prefix / PLACE).mkdir(parents=True)
    (prefix / PLACE).chmod(0o777)
    done = shipped.install(prefix, "--systemd")
    assert (done.code, f"{prefix}/{PLACE}: chmod go-w it" in done.err) == (1, True)


def test_a_prefix_that_systemd_does_not_take(shipped: Checkout, tmp_path: Path) -> None:
    done = shipped.install(tmp_path / 'a"b', "--systemd")
    assert (done.code, "EINVAL (systemd starts no program with a quote" in done.err) == (1, True)
    assert not (tmp_path / 'a"b').exists()


def test_a_checkout_without_units(checkout: Checkout, prefix: Path) -> None:
    done = checkout.install(prefix, "--systemd")
    assert (done.code, "read units" in done.err, prefix.exists()) == (1, True, False)


PREFIXES = {
    "a blank": ("a b", '"{}/bin/nvoci"'),
    "a specifier and a variable": ("50%h $HOME", '"{}/bin/nvoci"'),
}


@pytest.mark.parametrize("case", PREFIXES)
def test_systemd_finds_the_program_below_any_prefix(shipped: Checkout, tmp_path: Path, case: str) -> None:
    name, form = PREFIXES[case]
    prefix = tmp_path / name
    assert shipped.install(prefix, "--systemd").code == 0
    assert command(prefix) == form.format(str(prefix).replace("%", "%%")) + " cdi refresh --wait 30"
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd to ask")
    verify = ["systemd-analyze", "verify", *sorted((prefix / PLACE).iterdir())]
    assert subprocess.run(verify, capture_output=True).stderr == b""
    (prefix / "bin/nvoci").unlink()
    assert b"is not executable: No such file" in subprocess.run(verify, capture_output=True).stderr
