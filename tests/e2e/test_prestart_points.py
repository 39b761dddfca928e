"""Files of their own in directories of root's: what containers, and processes that somebody names, do not get."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.gpunode import make_image
from e2e.prestartnode import PrestartNode
from e2e.prestartview import refused
from lib import jail, oracle, rootfs, session
from lib.bundle import bind

pytestmark = [pytest.mark.e2e, pytest.mark.security]
FIRST = 100000
USER = "setpriv --reuid=1234 --regid=1234 --clear-groups"


@pytest.fixture
def image() -> Iterator[Path]:
    root = make_image(session.new_dir("image"))
    yield root
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def volume() -> Path:
    """Of the host's root."""
    top = session.new_dir("volume")
    top.chmod(0o755)
    return rootfs.tree(top, "dir cron.d")


@pytest.mark.parametrize("owner", [FIRST, 0])
def test_an_image_s_link_into_a_volume(installed: Path, runtime: str, image: Path, volume: Path, owner: int) -> None:
    """The container has a user namespace, or none."""
    (image / "usr/bin/nvidia-smi").symlink_to("/vol/cron.d/evil")
    (image / "vol").mkdir()
    subprocess.run(["chown", "-hR", f"{owner}:{owner}", image], check=True)
    before = oracle.snapshot(volume)
    node = PrestartNode(installed.with_name("nvidia-container-runtime-hook"))
    userns = (FIRST, 65536) if owner else None
    seen = node.start(runtime, "0", root=image, userns=userns, mounts=[bind(volume, "/vol", "rw")])
    why = "owner of the directory, uid 0, is not root of the container" if owner else "leads into a volume of the host"
    # crun does not show what a hook says.
    refused(seen, *[f"make mount point /usr/bin/nvidia-smi: {why}"] * (runtime == "runc"))
    assert oracle.changes(before, oracle.snapshot(volume)) == []


def configured(cli: Path, root: Path, start: str, ready: Path) -> tuple[int, str]:
    """What `configure --pid` ended with, and said, of the process of `start`, which makes `ready`."""
    script = f"""
        {start} & P=$!
        while ! test -e {ready}; do sleep 0.02; done
        {cli} configure --pid=$P --device=0 -cu --no-cgroups {root}; rc=$?
        kill $P; wait $P 2>/dev/null; exit $rc
    """
    result = jail.run(["/bin/sh", "-c", script], setup=PrestartNode(cli).setup(), timeout=60)
    return result.rc, result.stderr


def of_a_user() -> Path:
    """A directory."""
    home = session.new_dir("home")
    os.chown(home, 1234, 1234)
    return home


def test_a_user_s_process_is_named_that_has_the_host_s_directories_below_its_root(
    installed: Path, volume: Path
) -> None:
    """It needs no privilege to make a user namespace, and to bind /etc there."""
    home = of_a_user()
    root, ready = home / "root", home / "ready"
    prepare = f"""mkdir -p {root}; cd {root}; mkdir -p usr/bin usr/lib64 proc/driver/nvidia etc dev tmp run
        mount --bind {volume} etc; ln -s /etc/cron.d/evil usr/bin/nvidia-smi; touch {ready}; exec sleep 60"""
    start = f"{USER} unshare --user --map-root-user --mount sh -ec {shlex.quote(prepare)}"
    before = oracle.snapshot(volume)
    rc, said = configured(installed.with_name("nvidia-container-cli"), root, start, ready)
    assert (rc, "make mount point /usr/bin/nvidia-smi: owner of the directory, uid 0" in said) == (1, True), said
    assert oracle.changes(before, oracle.snapshot(volume)) == []


def test_a_container_that_runs_as_a_user_does_not_own_its_mount_points(installed: Path, image: Path) -> None:
    """The next one, which runs as root, may have the same image."""
    ready = of_a_user() / "ready"
    (image / "proc/driver/nvidia").mkdir(parents=True, exist_ok=True)
    start = f"unshare --mount {USER} sh -c 'touch {ready}; exec sleep 60'"
    rc, said = configured(installed.with_name("nvidia-container-cli"), image, start, ready)
    assert rc == 0, said
    assert (image / "usr/bin/nvidia-smi").stat().st_uid == 0
    found = subprocess.run(["find", image, "-uid", "1234"], check=True, capture_output=True, text=True).stdout
    assert found == ""
