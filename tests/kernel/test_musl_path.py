"""update-ldcache and musl's path file, which becomes a file of root. Second witness: the image as it was before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lib import elfmaker
from lib.hookproc import run_hook
from lib.rootfs import glibc_rootfs, tree

from nvoci.hook.settings import ENGINES
from tests.kernel import ldcaches
from tests.kernel.namespaced import KERNELS, container, in_container, run_inside

NAME = f"etc/ld-musl-{os.uname().machine}.path"
ZERO = "etc/ld.so.conf.d/00-nvcr-nvoci.conf"
pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="the hook needs root"),
    pytest.mark.parametrize("engine", ENGINES),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = glibc_rootfs(tmp_path / "root")
    (path / "etc/debian_version").unlink()
    tree(path, "file etc/alpine-release 3.20\\n")
    for folder in ("opt/nv", "opt/other"):
        elfmaker.make_so(path / folder / "libnva.so.1.2", "libnva.so.1")
    return path


def update(root: Path, engine: str, *folders: str) -> None:
    words = ["update-ldcache", "--engine", engine, *(w for f in folders for w in ("--folder", f))]
    done = run_hook(words, {"bundle": "/", "root": str(root)})
    assert (done.rc, done.stderr) == (0, "")


def path_file(root: Path) -> list[str]:
    """musl reads newlines and colons alike."""
    return (root / NAME).read_text().rstrip("\n").replace(":", "\n").split("\n")


def test_a_setuid_bit_of_the_image_is_not_carried_over(root: Path, engine: str) -> None:
    path = root / NAME
    path.write_text("/lib\n")
    os.chown(path, 1000, 1000)
    path.chmod(0o4755)
    update(root, engine, "/opt/nv")
    assert path.read_text().startswith("/lib\n/opt/nv\n")
    assert oct(path.stat().st_mode & 0o7777) == "0o644"


def test_a_missing_file_gets_musls_own_path_and_the_folders(root: Path, engine: str) -> None:
    update(root, engine, "/opt/nv")
    found = path_file(root)
    assert found[:4] == ["/lib", "/usr/local/lib", "/usr/lib", "/opt/nv"]
    assert len(found) == len(set(found))


def test_a_second_run_changes_nothing(root: Path, engine: str) -> None:
    update(root, engine, "/opt/nv")
    before = {name: ((root / name).read_bytes(), (root / name).stat().st_ino) for name in (NAME, ZERO)}
    update(root, engine, "/opt/nv")
    assert {name: ((root / name).read_bytes(), (root / name).stat().st_ino) for name in (NAME, ZERO)} == before


@pytest.mark.parametrize("text", ["/a:/b\n", "/a:/b", "/a\n\n/b\n", "/opt/old\n/a\n", ""])
def test_the_folder_of_an_earlier_driver_is_forgotten_and_the_images_entries_stay(
    root: Path, tmp_path: Path, engine: str, text: str
) -> None:
    (root / NAME).write_text(text)
    fresh = glibc_rootfs(tmp_path / "fresh")
    (fresh / "etc/debian_version").unlink()
    tree(fresh, "file etc/alpine-release 3.20\\n")
    (fresh / NAME).write_text(text)
    for folders in (["/opt/nv"], ["/opt/old", "/opt/nv"], [], ["/opt/other"]):
        update(root, engine, *folders)
    update(fresh, engine, "/opt/other")
    assert (root / NAME).read_bytes() == (fresh / NAME).read_bytes()
    assert (root / NAME).read_text().startswith(text)
    assert (root / ZERO).read_bytes() == (fresh / ZERO).read_bytes()


def test_what_the_drop_in_remembers_is_no_directory_to_ldconfig(root: Path, engine: str) -> None:
    update(root, engine, "/opt/nv")
    lines = (root / ZERO).read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["/opt/nv"]
    assert any("/opt/nv" in line for line in lines if line.startswith("#"))


@pytest.mark.parametrize("kind", ["fifo {}", "dir {}", "char {} 1 5", "sparse {} 1T"])
def test_what_is_no_path_file_is_one_error_before_anything_is_changed(root: Path, engine: str, kind: str) -> None:
    tree(root, kind.format(NAME))
    words = ["update-ldcache", "--engine", engine, "--folder", "/opt/nv"]
    done = run_hook(words, {"bundle": "/", "root": str(root)}, timeout=5.0)
    assert not done.timed_out
    assert done.rc != 0
    assert done.stderr.count("\n") == 1
    assert NAME in done.stderr
    assert not (root / ZERO).exists()


READ_ONLY = "mount --bind {root} {root}; mount -o remount,bind,ro {root}"


def test_on_a_read_only_root_the_path_file_is_mounted(root: Path, engine: str) -> None:
    (root / NAME).write_text("/lib\n")
    with container(root, READ_ONLY.format(root=root)) as pid:
        in_container(pid, root, KERNELS[0], lambda c: ldcaches.update(c, "/opt/nv", engine=engine))
        text = run_inside(pid, root, f"cat /{NAME}").stdout
    assert text.startswith("/lib\n/opt/nv\n")
    assert (root / NAME).read_text() == "/lib\n"


def test_on_a_read_only_root_without_one_the_warning_names_it(
    root: Path, engine: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """And no other file: musl reads no cache, so that the image has none is nothing to tell."""
    (root / "etc/ld.so.cache").unlink(missing_ok=True)
    with container(root, READ_ONLY.format(root=root)) as pid:
        in_container(pid, root, KERNELS[0], lambda c: ldcaches.update(c, "/opt/nv", engine=engine))
    said = capfd.readouterr().err
    assert NAME in said
    assert "ld.so.cache" not in said


def test_the_mode_of_the_image_is_kept(root: Path, engine: str) -> None:
    (root / NAME).write_text("/lib\n")
    (root / NAME).chmod(0o640)
    update(root, engine, "/opt/nv")
    assert oct((root / NAME).stat().st_mode & 0o7777) == "0o640"
