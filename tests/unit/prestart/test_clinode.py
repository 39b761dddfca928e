"""What nvidia-container-cli knows of the node where the command line has it looked at in another way."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.prestart.chosentools import a_node, asked
from unit.prestart.prestarttools import error

from nvoci.discover.inventory import Stale
from nvoci.discover.model import Found
from nvoci.linux import procfs
from nvoci.prestart import clinode, node, ownlook
from nvoci.prestart.wanted import Wanted

OTHER = "1234:1234"


def test_a_look_of_its_own_is_not_taken_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is kept, so nothing could be out of date."""
    looks: list[Wanted] = []
    monkeypatch.setattr(ownlook, "look", lambda wanted: looks.append(wanted) or a_node())

    def fails(found: Found) -> None:
        raise Stale("open /dev/nvidia0: ENOENT")

    for wanted in (asked("0", user=OTHER), asked("0", ldcache="/etc/own.cache")):
        refused = error(lambda: clinode.use(wanted, fails))  # noqa: B023
        assert refused.message == "detection error: open /dev/nvidia0: ENOENT, though it was found a moment ago"
        assert clinode.use(wanted, lambda found: len(found.gpus)) == 2
    assert len(looks) == 4


@pytest.mark.parametrize("user", ["", clinode._caller()])
def test_the_usual_one_is_the_prestart_hook_s(monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    calls: list[tuple[str, bool]] = []
    monkeypatch.setattr(node, "use", lambda wanted, action, loaded: calls.append((wanted.user, loaded)))
    clinode.use(asked("0", user=user), len)  # type: ignore[arg-type]
    assert calls == [("", True)]


def test_a_name_without_links_is_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "root/usr/bin").mkdir(parents=True)
    (tmp_path / "root/usr/bin/tool").write_text("x")
    (tmp_path / "root/bin").symlink_to("usr/bin")
    (tmp_path / "link").symlink_to("root")
    for top in (f"{tmp_path}/root", f"{tmp_path}/link", f"{tmp_path}/root/"):
        root = top.rstrip("/")
        assert clinode.resolved(f"{root}/bin/tool", root) == f"{root}/usr/bin/tool"
    with pytest.raises(Stale, match="ENOENT"):
        clinode.resolved(f"{tmp_path}/root/bin/none", f"{tmp_path}/root")


def test_a_file_that_procfs_names_elsewhere_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does whose mount is gone from the tree by now."""
    (tmp_path / "tool").write_text("x")
    real = procfs.name_of
    monkeypatch.setattr(procfs, "name_of", lambda fd: real(fd).replace(b"%s/tool" % bytes(tmp_path), b"/tool"))
    assert clinode.resolved(f"{tmp_path}/tool", str(tmp_path)) == f"{tmp_path}/tool"
