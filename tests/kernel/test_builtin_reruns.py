"""What a second start leaves is what one start leaves, however the first one was."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from lib import elfmaker
from lib.rootfs import glibc_rootfs

from nvoci.errors import HookError
from nvoci.hook.container import Container
from tests.kernel.ldcaches import CACHE, listed, update
from tests.kernel.namespaced import KERNELS, container, in_container, make_container

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
    pytest.mark.skipif(not os.path.exists("/sbin/ldconfig"), reason="no ldconfig on this host"),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return glibc_rootfs(tmp_path / "rootfs")


def test_a_folder_that_is_given_no_more_takes_its_entries_with_it(root: Path) -> None:
    for at in ("opt/nv", "opt/nv2"):
        elfmaker.make_so(root / at / "libcuda.so.550.1", "libcuda.so.1")
    update(make_container(root), "/opt/nv", engine="builtin")
    assert listed(root)["libcuda.so.1"] == "/opt/nv/libcuda.so.1"
    update(make_container(root), "/opt/nv2", engine="builtin")
    assert listed(root)["libcuda.so.1"] == "/opt/nv2/libcuda.so.1"
    assert b"/opt/nv/" not in (root / CACHE).read_bytes()
    update(make_container(root), engine="builtin")
    assert "libcuda.so.1" not in listed(root)


INCLUDES = (
    "/etc/./ld.so.conf.d/*.conf", "/etc/../etc/ld.so.conf.d/*.conf", "/etc/ld.so.conf.?/*.conf",
    "/*/ld.so.conf.d/*.conf", "ld.so.conf.d/../ld.so.conf.d/*.conf", "/etc/alias.d/*.conf", "ld.so.conf.d/*.conf",
)  # fmt: skip


@pytest.mark.parametrize("include", INCLUDES)
def test_drop_ins_rank_where_they_are_included_in_the_first_run_as_in_the_second(root: Path, include: str) -> None:
    (root / "etc/alias.d").symlink_to("ld.so.conf.d")
    for at in ("opt/first", "opt/nv"):
        elfmaker.make_so(root / at / "libcuda.so.550.1", "libcuda.so.1")
    (root / "etc/ld.so.conf").write_text(f"/opt/first\ninclude {include}\n")
    caches = []
    for _ in range(2):
        update(make_container(root), "/opt/nv", engine="builtin")
        caches.append((root / CACHE).read_bytes())
    assert caches[0] == caches[1]
    assert caches[0].index(b"/opt/first/libcuda.so.1") < caches[0].index(b"/opt/nv/libcuda.so.1")
    text = subprocess.run(["/sbin/ldconfig", "-r", root, "-p"], capture_output=True, text=True, check=True).stdout
    subprocess.run(["/sbin/ldconfig", "-r", root], check=True, capture_output=True)
    again = subprocess.run(["/sbin/ldconfig", "-r", root, "-p"], capture_output=True, text=True, check=True).stdout
    assert [x for x in text.splitlines() if "cuda" in x] == [x for x in again.splitlines() if "cuda" in x]


def test_a_file_of_our_name_elsewhere_is_the_images_own(root: Path) -> None:
    elfmaker.make_so(root / "opt/own/libown.so.1.2", "libown.so.1")
    (root / "opt/x").mkdir()
    (root / "opt/x/00-nvcr-nvoci.conf").write_text("/opt/own\n")
    (root / "etc/ld.so.conf").write_text("include /opt/x/*.conf\n")
    update(make_container(root), engine="builtin")
    assert listed(root)["libown.so.1"] == "/opt/own/libown.so.1"


def test_a_link_that_only_the_cache_explained_is_made_again(root: Path) -> None:
    elfmaker.make_so(root / "opt/a/libA.so.2", "libB.so.1")
    elfmaker.make_so(root / "opt/a/libA.so.2.0", "libA.so.2")
    (root / "etc/ld.so.conf").write_text("/opt/a\n")
    for _ in range(2):
        subprocess.run(["/sbin/ldconfig", "-r", root], check=True, capture_output=True)
    (root / "opt/a/libB.so.1").unlink()
    update(make_container(root), engine="builtin")
    assert os.readlink(root / "opt/a/libB.so.1") == "libA.so.2"
    found = listed(root)
    assert found["libB.so.1"] == "/opt/a/libB.so.1"
    assert found["libA.so.2"] == "/opt/a/libA.so.2.0"  # a library of another soname has its name


def test_nothing_is_written_to_a_directory_that_is_mounted(root: Path, tmp_path: Path) -> None:
    host = tmp_path / "host"
    elfmaker.make_so(host / "libcuda.so.550.1", "libcuda.so.1")
    elfmaker.make_so(host / "libhost.so.1.2", "libhost.so.1")
    (host / "libhost.so.1").symlink_to("libhost.so.1.1")
    (root / "opt/nv").mkdir(parents=True)
    with container(root, f"mount --bind {host} {root}/opt/nv") as pid:
        in_container(pid, root, KERNELS[0], lambda c: update(c, "/opt/nv", engine="builtin"))
    assert sorted(os.listdir(host)) == ["libcuda.so.550.1", "libhost.so.1", "libhost.so.1.2"]
    assert os.readlink(host / "libhost.so.1") == "libhost.so.1.1"
    found = listed(root)
    assert found["libcuda.so.1"] == found["libcuda.so"] == "/opt/nv/libcuda.so.550.1"
    assert found["libhost.so.1"] == "/opt/nv/libhost.so.1.2"


# A file of the host's kernel is no file of the image, though it calls itself regular: reading /proc/kmsg takes messages
# away from the host.
PSEUDO = ("etc/ld.so.cache", "etc/ld.so.conf", "etc/ld.so.conf.d/x.conf")


@pytest.mark.parametrize("engine", ["builtin", "ldconfig"])
@pytest.mark.parametrize("name", PSEUDO)
@pytest.mark.parametrize("target", ["/proc/sys/kernel/osrelease", "/sys/kernel/mm/transparent_hugepage/enabled"])
def test_files_of_the_kernel_are_not_read(root: Path, name: str, target: str, engine: str) -> None:
    if not os.path.exists(target):
        pytest.skip(f"this kernel has no {target}")
    (root / "etc/ld.so.conf").write_text("include /etc/ld.so.conf.d/*.conf\n")
    (root / "etc/ld.so.conf.d").mkdir(exist_ok=True)
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(target)
    setup = f"mkdir -p {root}/sys {root}/proc; mount --rbind /sys {root}/sys; mount -t proc proc {root}/proc"

    def start(c: Container) -> None:
        if engine == "ldconfig" and name == "etc/ld.so.cache":
            update(c, engine=engine)  # it reads no cache, and what it writes replaces the link
            return
        with pytest.raises(HookError, match="EINVAL"):
            update(c, engine=engine)

    with container(root, setup) as pid:
        in_container(pid, root, KERNELS[0], start)


def test_a_library_that_is_a_file_of_the_kernel_is_none(root: Path) -> None:
    (root / "opt/nv").mkdir(parents=True)
    (root / "opt/nv/libx.so.1").symlink_to("/proc/kmsg")
    with container(root, f"mkdir -p {root}/proc; mount -t proc proc {root}/proc") as pid:
        in_container(pid, root, KERNELS[0], lambda c: update(c, "/opt/nv", engine="builtin"))
    assert "libx.so.1" not in listed(root)
