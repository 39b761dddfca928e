"""Sources of the prestart hook where others may put things, and what its overlay may cover: nobody chooses another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kernel import namespaced
from kernel.namespaced import KERNELS, Kernel
from kernel.test_prestart_mounts import Make, Scene
from lib import rootfs
from lib.flipper import Flipper

from nvoci.discover.inventory import Stale
from nvoci.prestart import hostfiles, overlay
from nvoci.prestart.hostfiles import Host

pytestmark = [
    pytest.mark.kernel, pytest.mark.security, pytest.mark.skipif(os.geteuid() != 0, reason="mounts"),
]  # fmt: skip


@pytest.fixture
def scene() -> Scene:
    return Scene()


STRANGER = 1234


def shared(scene: Scene, name: str) -> Path:
    """A directory of the host's in a /tmp."""
    (scene.host / "tmp").mkdir()
    (scene.host / "tmp").chmod(0o1777)
    path = scene.host / "tmp" / name
    path.mkdir()
    return path


TAKEN_OVER: dict[str, tuple[str, str]] = {
    "MPS: a link": ("nvidia-mps", "not a directory any more"),
    "MPS: another's": ("nvidia-mps", "owned by uid 1234, not by root"),
    "another name: a link": ("other", "ELOOP: a link in a directory that others may write"),
    "another name: another's": ("other", "owned by uid 1234, in a directory that others may write"),
}


@pytest.mark.parametrize("case", TAKEN_OVER)
def test_a_directory_that_somebody_has_taken_over_is_not_taken(scene: Scene, case: str) -> None:
    name, words = TAKEN_OVER[case]
    path = shared(scene, name)
    before = len(os.listdir("/proc/self/fd"))
    with Host(str(scene.host)) as host:
        host.directory(str(path), hostfiles.SOCKET).close()
        if case.endswith("link"):
            path.rmdir()
            path.symlink_to(scene.host / "data")
        else:
            os.chown(path, STRANGER, STRANGER)
        with pytest.raises(Stale, match=words):
            host.directory(str(path), hostfiles.SOCKET)
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_daemon_does_not_choose_which_socket_of_the_host_is_mounted(scene: Scene) -> None:
    """nvidia-persistenced runs as a user of its own, to whom its directory belongs."""
    other = Path(rootfs.tree(scene.host / "run/docker", "socket docker.sock")) / "docker.sock"
    daemon = rootfs.tree(scene.host / "run/nvidia-persistenced", "socket socket")
    for path in (daemon, daemon / "socket"):
        os.chown(path, STRANGER, STRANGER)
    with Host(str(scene.host)) as host:
        host.socket(f"{daemon}/socket").close()
        (daemon / "socket").unlink()
        (daemon / "socket").symlink_to(os.path.relpath(other, daemon))
        with pytest.raises(Stale, match="a link in a directory that others may write"):
            host.socket(f"{daemon}/socket")


@pytest.mark.parametrize("kernel", [KERNELS[0], KERNELS[3]], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("name", ["nvidia-mps", "other"])
def test_in_a_race_for_a_directory_no_other_is_mounted(scene: Scene, name: str, kernel: Kernel) -> None:
    """The directory is root's, and who exchanges it for a link is root without capabilities."""
    path = shared(scene, name)
    path.with_name("x").symlink_to(scene.host / "data")

    def body() -> set[int]:
        kernel.start()
        found: set[int] = set()
        with Host("/") as host:
            for _ in range(2000):
                try:
                    source = host.directory(str(path), hostfiles.SOCKET)
                except Stale:
                    continue
                found.add(source.st.st_ino)
                source.close()
                host._opened.clear()
        return found

    own = path.stat().st_ino
    with Flipper(path, path.with_name("x")) as flipper:
        assert namespaced.isolated(body) <= {own}
        assert flipper.rounds > 10


PSEUDO = {"security": "/sys/kernel/security", "attributes": "/proc2/1/attr", "settings": "/proc2/sys",
          "another procfs": "/proc2/driver", "of a process": "/proc2/self/task"}  # fmt: skip


@pytest.mark.parametrize("link", PSEUDO.values(), ids=PSEUDO)
def test_no_other_directory_of_the_kernel_s_is_covered(scene: Scene, link: str) -> None:
    """What the image has at /proc is a directory of its own, with a link."""
    rootfs.tree(scene.root, f"dir proc2\ndir sys\ndir shadow/driver\nsymlink shadow/driver/nvidia {link}")
    setup = f"mount -t proc p {scene.root}/proc2; mount -t sysfs s {scene.root}/sys; umount {scene.root}/proc; "
    setup += f"mount --bind {scene.root}/shadow {scene.root}/proc"
    make: Make = lambda points, taken: [
        overlay.Generated(points, overlay.DRIVER, overlay.profile_tree([0]), "the driver's files")
    ]
    result = scene.run(make, setup=setup)
    assert "mount on /proc/driver/nvidia: leads into a file system of the kernel's" in result.error
    assert set(result.mounts) == {"/proc2", "/sys"}
