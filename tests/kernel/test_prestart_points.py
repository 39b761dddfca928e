"""Where the prestart hook makes mount points, with whose rights, and whose they are: against images, volumes and users
that want files of their own in directories of root's."""

from __future__ import annotations

import os
import posix
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from kernel import namespaced
from kernel.namespaced import KERNELS
from lib import oracle, rootfs, session

from nvoci.errors import HookError
from nvoci.hook.container import CALLER, OUTSIDE, Container
from nvoci.hook.enter import Place
from nvoci.hook.hostmounts import HostMounts
from nvoci.hook.operation import Operation, Transaction
from nvoci.linux import syscalls
from nvoci.linux.fd import Fd
from nvoci.linux.rootfs import Made
from nvoci.linux.userns import NOBODY
from nvoci.prestart import overlay
from nvoci.prestart.binds import Bind, KeepLink, MakeDirectory
from nvoci.prestart.hostfiles import Host, Source
from nvoci.prestart.plan import Prepared
from nvoci.prestart.points import Points

pytestmark = [
    pytest.mark.kernel, pytest.mark.security,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts, and other users"),
]  # fmt: skip
OWNER = (100_000, 100_000)
TREE = """
file host/tool tool
dir vol/cron.d
file vol/cron.d/there theirs
dir rootfs/usr/bin
dir rootfs/usr/lib
dir rootfs/vol
symlink rootfs/usr/bin/new /vol/cron.d/new
symlink rootfs/usr/bin/there /vol/cron.d/there
symlink rootfs/usr/lib/sub /vol/cron.d
"""


class Scene:
    """An image with links into a volume of the host's."""

    def __init__(self) -> None:
        self.top = session.new_dir("points")
        self.top.chmod(0o755)
        rootfs.tree(self.top, TREE)
        self.root = self.top / "rootfs"
        self.vol = self.top / "vol"

    def give(self, owner: tuple[int, int]) -> None:
        """The image to its root."""
        subprocess.run(["chown", "-hR", "{}:{}".format(*owner), self.root], check=True)

    def run(
        self, make: Callable[[Points, Source], list[Operation]], owner: tuple[int, int] | None = OWNER, *,
        guard: bool = True, named: bool = False, setup: str = "",
    ) -> str:  # fmt: skip
        """What was said, "" if all was done."""

        def body(container: Container) -> str:
            os.umask(0)
            if guard:
                HostMounts(owner, own_root=owner is None or not named).protect(container.rootfs)
            transaction, points = Transaction(), Points(container, owner, named=named)
            with Host(str(self.top / "host")) as host:
                tool = host.file(str(self.top / "host/tool"))
            try:
                for operation in make(points, tool):
                    transaction.perform("t", operation)
            except HookError as e:
                transaction.undo()
                return e.line()
            return ""

        with namespaced.container(self.root, f"mount --bind {self.vol} {self.root}/vol; {setup}") as pid:
            said: str = namespaced.in_container(pid, self.root, KERNELS[0], body)
            return said


@pytest.fixture
def scene() -> Scene:
    return Scene()


# What a link of the image leads into the volume.
LED: dict[str, Callable[[Points, Source], list[Operation]]] = {
    "file": lambda points, tool: [Bind(points, tool, b"/usr/bin/new")],
    "file, directory is a link": lambda points, tool: [Bind(points, tool, b"/usr/lib/sub/new")],
    "file in a new directory": lambda points, tool: [Bind(points, tool, b"/usr/lib/sub/a/new")],
    "directory": lambda points, _: [MakeDirectory(points, b"/usr/lib/sub/a/b")],
    "link": lambda points, _: [KeepLink(points, b"x", b"/usr/lib/sub/new")],
    "mounted directory": lambda points, _: [
        overlay.Generated(points, b"usr/lib/sub/new", overlay.profile_tree([]), "a tree", 0o555)
    ],
}


@pytest.mark.parametrize("guard", [True, False], ids=["guarded", "by its rights alone"])
@pytest.mark.parametrize("case", LED)
def test_the_root_of_a_user_namespace_gets_nothing_in_a_volume_of_the_host_s_root(
    scene: Scene, case: str, guard: bool
) -> None:
    scene.give(OWNER)
    before = oracle.snapshot(scene.vol)
    said = scene.run(LED[case], guard=guard)
    assert ("owner of the directory, uid 0, is not root of the container" if guard else "EACCES") in said
    assert said.startswith("t: make mount point /usr/" if case != "mounted directory" else "t: make mount point ")
    assert oracle.changes(before, oracle.snapshot(scene.vol)) == []


@pytest.mark.parametrize("case", LED)
def test_a_link_into_a_volume_of_the_host_is_refused_to_host_s_root_too(scene: Scene, case: str) -> None:
    before = oracle.snapshot(scene.vol)
    assert "leads into a volume of the host (the image has a link there, or a volume" in scene.run(LED[case], None)
    assert oracle.changes(before, oracle.snapshot(scene.vol)) == []


@pytest.mark.parametrize("owner", [None, OWNER])
def test_what_is_there_in_a_volume_is_used(scene: Scene, owner: tuple[int, int] | None) -> None:
    """That changes nothing outside of the container."""
    scene.give(owner or (0, 0))
    before = oracle.snapshot(scene.vol)
    make = lambda points, tool: [
        Bind(points, tool, b"/usr/bin/there"), Bind(points, tool, b"/usr/lib/sub/there"),
        KeepLink(points, b"x", b"/usr/lib/sub/there"), MakeDirectory(points, b"/usr/lib/sub"),
    ]  # fmt: skip
    assert scene.run(make, owner) == ""
    assert oracle.changes(before, oracle.snapshot(scene.vol)) == []


def test_a_volume_that_the_path_names_is_for_that(scene: Scene) -> None:
    assert scene.run(lambda points, tool: [Bind(points, tool, b"/vol/a/new")], None) == ""
    assert (scene.vol / "a/new").stat().st_uid == 0
    os.chown(scene.vol, *OWNER)
    assert scene.run(lambda points, tool: [Bind(points, tool, b"/vol/b/new")]) == ""
    assert ((scene.vol / "b").stat().st_uid, (scene.vol / "b/new").stat().st_uid) == (OWNER[0], OWNER[0])


IN_THE_IMAGE: Callable[[Points, Source], list[Operation]] = lambda points, tool: [
    Bind(points, tool, b"/usr/bin/tool"), MakeDirectory(points, b"/usr/lib/a/b"),
    KeepLink(points, b"x", b"/usr/lib/link"),
    overlay.Generated(points, b"opt/tree", overlay.profile_tree([]), "a tree", 0o555),
]  # fmt: skip


@pytest.mark.parametrize("parent", [OWNER, (0, 0)], ids=["its own", "another's"])
def test_what_is_made_in_the_image_belongs_to_the_container_s_root(scene: Scene, parent: tuple[int, int]) -> None:
    scene.give(parent)
    assert scene.run(IN_THE_IMAGE) == ""
    made = [scene.root / name for name in ("usr/bin/tool", "usr/lib/a", "usr/lib/a/b", "opt", "opt/tree")]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {OWNER}
    assert (scene.root / "usr/lib/link").lstat().st_uid == parent[0]


@pytest.mark.parametrize("guard", [True, False], ids=["guarded", "by its rights alone"])
@pytest.mark.parametrize("number", range(4))
def test_a_process_that_somebody_names_gets_only_what_it_could_make(scene: Scene, number: int, guard: bool) -> None:
    """Its mounts are its own: what it has at its root may be /etc."""
    (scene.root / "opt").mkdir()
    before = oracle.content_only(oracle.snapshot(scene.root))
    said = scene.run(lambda points, tool: [IN_THE_IMAGE(points, tool)[number]], named=True, guard=guard)
    assert ("owner of the directory, uid 0" if guard else "EACCES (the container's root may not write there") in said
    (scene.root / "proc").rmdir()
    assert oracle.content_only(oracle.snapshot(scene.root)) == before
    scene.give(OWNER)
    assert scene.run(IN_THE_IMAGE, named=True, guard=guard) == ""


def test_where_root_of_the_container_is_nobody_here_they_stay_ours(scene: Scene) -> None:
    nobody = (NOBODY, NOBODY)
    assert scene.run(IN_THE_IMAGE, nobody) == ""
    assert (scene.root / "usr/lib/a/b").stat().st_uid == 0
    for guard, words in ((True, "owner of the directory, uid 0"), (False, "EACCES")):
        assert words in scene.run(LED["file"], nobody, guard=guard)
    assert os.listdir(scene.vol / "cron.d") == ["there"]


# --- races: the name is another's when the owner is changed ----------------------------------------------------------


def exchange(parent: int, name: bytes, other: bytes) -> None:
    syscalls.renameat2(parent, name, parent, other, 2)


def racing(monkeypatch: pytest.MonkeyPatch, name: bytes, other: bytes) -> None:
    """Whoever owns the directory exchanges `name` for `other` as soon as it is made."""
    real_open, real_mkdir = posix.open, posix.mkdir

    def opened(path: Any, flags: int, *args: Any, **more: Any) -> int:
        fd = real_open(path, flags, *args, **more)
        if path == name and flags & os.O_EXCL:
            exchange(more["dir_fd"], name, other)
        return fd

    def made(path: Any, *args: Any, **more: Any) -> None:
        real_mkdir(path, *args, **more)
        if path == name:
            exchange(more["dir_fd"], name, other)

    monkeypatch.setattr(posix, "open", opened)
    monkeypatch.setattr(posix, "mkdir", made)


@pytest.mark.parametrize(
    ("secret", "make"),
    [
        ("file", lambda points: points.find(b"/v/new", 0o644, Made())),
        ("dir", lambda points: points.find(b"/v/new", 0o755, Made(), directory=True)),
        ("dir", lambda points: points.directory(b"/v/new/er", Made())),
    ],
    ids=["a file", "a directory", "one on the way"],
)
def test_only_what_was_made_is_given_away(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, secret: str, make: Callable[[Points], Any]
) -> None:
    """A file or directory of root's lies beside it, in a directory of another user's."""
    rootfs.tree(scene.root, "dir v\n" + ("dir v/secret\nfile v/secret/x x" if secret == "dir" else "file v/secret x"))
    os.chown(scene.root / "v", 200_000, 200_000)
    identity = (scene.root / "v/secret").stat().st_ino

    def body() -> str:
        os.umask(0)
        container = namespaced.make_container(scene.root, OUTSIDE)
        HostMounts(OWNER).protect(container.rootfs)
        racing(monkeypatch, b"new", b"secret")
        try:
            make(Points(container, OWNER))
        except HookError as e:
            return e.line()
        except OSError as e:
            return str(e)
        return ""

    said = namespaced.isolated(body)
    assert secret == "file" or "replaced while it was made" in said
    (found,) = [path for path in (scene.root / "v").iterdir() if path.stat().st_ino == identity]
    assert (found.stat().st_uid, found.stat().st_gid) == (0, 0)


def test_a_tree_is_given_away_from_its_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 5.2 it is filled in reach of its new owner, who could put a link where a directory was."""
    tree = overlay.Tree(read_only=True, size="1m")
    tree.add_file("capabilities/gpu0/mig/gi1/access", b"x", 0o444)
    tree.add_directory("gpus/0000:07:00.0")
    top, given, real = session.new_dir("tree"), [], posix.chown

    def chown(path: str, *args: Any, **more: Any) -> None:
        missing = [name for name in tree.entries if not (top / name).exists()]
        strangers = [above for above in (top / path).parents if above.stat().st_uid == OWNER[0]]
        given.append((path, missing, strangers))
        real(path, *args, **more)

    monkeypatch.setattr(posix, "chown", chown)
    with Fd(os.open(top, os.O_RDONLY)) as root:
        tree.write(root.fileno(), OWNER)
    assert sorted(given) == [(path, [], []) for path in sorted(tree.entries)]
    assert {(top / path).stat().st_uid for path in tree.entries} == {OWNER[0]}


# --- propagation, and whose the container is -------------------------------------------------------------------------


def test_a_directory_that_two_mounts_show_is_judged_by_each(scene: Scene) -> None:
    """One of them private, which says nothing of the other."""
    rootfs.tree(scene.root, "dir a\ndir b")
    setup = f"""mount --bind {scene.vol} {scene.root}/a; mount --make-private {scene.root}/a
    mount --bind {scene.vol} {scene.root}/b; mount --make-shared {scene.root}/b"""
    make = lambda points, tool: [Bind(points, tool, b"/a/one"), Bind(points, tool, b"/b/two")]
    said = scene.run(make, None, setup=setup)
    assert "mount on /b/two: lies on a shared mount" in said
    assert sorted(os.listdir(scene.vol)) == ["cron.d"]


def owner_of(*command: str, where: str = OUTSIDE, named: bool = False) -> tuple[Any, bool]:
    """What the steps for a container are told whose process is this command."""
    with subprocess.Popen([*command, "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            with Fd(os.open(f"/proc/{process.pid}", os.O_RDONLY)) as fd:
                place = Place(where, process.pid, fd)
                place.named = named
                here: Any = object.__new__(Prepared).steps(None, place)[0][2]  # type: ignore[arg-type]
                return here.owner, here.named
        finally:
            process.kill()


def test_a_container_s_root_is_that_of_its_user_namespace() -> None:
    user = ("setpriv", "--reuid=1234", "--regid=1234", "--clear-groups")
    assert owner_of("env") == (None, False)
    assert owner_of(*user) == (None, False)  # it merely runs as somebody
    assert owner_of(*user, "unshare", "-U", "-r") == ((1234, 1234), False)
    assert owner_of(*user, "unshare", "-U") == ((NOBODY, NOBODY), False)
    assert owner_of("env", named=True) == (None, True)
    assert owner_of("env", where=CALLER) == (None, True)
