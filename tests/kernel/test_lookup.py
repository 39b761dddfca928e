"""nvoci.linux.lookup: one table, two implementations, hostile roots."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nvoci.linux import lookup as module
from nvoci.linux import procfs, syscalls
from nvoci.linux.lookup import lookup
from tests.kernel import namespaced
from tests.kernel.namespaced import block, forked, isolated, os_error

pytestmark = pytest.mark.kernel

NOFOLLOW, DIRECTORY = os.O_NOFOLLOW, os.O_DIRECTORY
LONG = "n" * 255


@pytest.fixture(params=["openat2", "walk"])
def resolver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(module, "_openat2_works", request.param == "openat2")
    yield request.param
    assert module._openat2_works == (request.param == "openat2"), "the test ran on the other resolver"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("lookup")
    (top / "canary").mkdir()
    (top / "canary/secret").write_text("host")
    path = top / "rootfs"
    for d in ("usr/lib/x86", "etc", "dev", LONG, "a/b/c"):
        (path / d).mkdir(parents=True)
    (path / "etc/file").write_text("image")
    (path / "usr/lib/x86/lib.so").write_text("lib")
    (path / "proc").mkdir()
    links = {
        "lib": "usr/lib", "lib64": "lib", "usr/lib64": "../lib", "merged": ".",
        "abs": "/etc/file", "abs-canary": str(top / "canary"), "up": "../../../../etc/file", "over": "/../../etc/file",
        "up-canary": "../canary", "self": "self", "one": "two", "two": "one", "dangling": "/none",
        "dangling-dir": "none/x", "to-dir": "/etc/", "a/back": "../../..", "root": "/",
        "a/b/c/deep": "../../../etc/file",
    }  # fmt: skip
    for name, text in links.items():
        (path / name).symlink_to(text)
    (path / "chain0").write_text("end")
    for i in range(1, 42):
        (path / f"chain{i}").symlink_to(f"chain{i - 1}")
    for name in ("new\nline", "sp ace", "-dash", "a::b", "\u202eright"):
        (path / name).write_text(name)
    (path / os.fsdecode(b"\xff")).write_text("ff")
    return path


# path -> (flags, what it must be: a path below the root, or an errno)
TABLE: dict[str, tuple[str, int, str]] = {
    "plain": ("etc/file", 0, "etc/file"),
    "empty": ("", 0, "."),
    "slash": ("/", 0, "."),
    "dots at root": ("../../..", 0, "."),
    "dots and slashes": ("//etc/./..//etc///file", 0, "etc/file"),
    "trailing slash on directory": ("etc/", 0, "etc"),
    "trailing dot on directory": ("etc/.", 0, "etc"),
    "up beyond root": ("/../../../etc/file", 0, "etc/file"),
    "usr-merge": ("lib/x86/lib.so", 0, "usr/lib/x86/lib.so"),
    "usr-merge chain": ("lib64/x86/lib.so", 0, "usr/lib/x86/lib.so"),
    "usr-merge dots": ("usr/lib64/x86", 0, "usr/lib/x86"),
    "link to dot": ("merged/merged/etc/file", 0, "etc/file"),
    "absolute link": ("abs", 0, "etc/file"),
    "absolute link beyond root": ("over", 0, "etc/file"),
    "relative link beyond root": ("up", 0, "etc/file"),
    "deep relative link": ("a/b/c/deep", 0, "etc/file"),
    "link to root": ("root/etc/file", 0, "etc/file"),
    "dots behind a link": ("to-dir/../etc/file", 0, "etc/file"),
    "dots behind a link beyond root": ("a/back/etc/file", 0, "etc/file"),
    "absolute link to canary": ("abs-canary/secret", 0, "ENOENT"),
    "relative link to canary": ("up-canary/secret", 0, "ENOENT"),
    "self loop": ("self", 0, "ELOOP"),
    "loop of two": ("one", 0, "ELOOP"),
    "loop as parent": ("one/x", 0, "ELOOP"),
    "39 links": ("chain39", 0, "chain0"),
    "40 links": ("chain40", 0, "chain0"),
    "41 links": ("chain41", 0, "ELOOP"),
    "dangling": ("dangling", 0, "ENOENT"),
    "dangling parent": ("dangling-dir/y", 0, "ENOENT"),
    "missing": ("none", 0, "ENOENT"),
    "missing parent": ("none/none", 0, "ENOENT"),
    "file as directory": ("etc/file/x", 0, "ENOTDIR"),
    "dots behind a file": ("etc/file/..", 0, "ENOTDIR"),
    "trailing slash on file": ("etc/file/", 0, "ENOTDIR"),
    "trailing slash on link to file": ("abs/", 0, "ENOTDIR"),
    "directory asked for": ("etc", DIRECTORY, "etc"),
    "directory asked for, link": ("lib", DIRECTORY, "usr/lib"),
    "directory asked for, file": ("etc/file", DIRECTORY, "ENOTDIR"),
    "nofollow link": ("abs", NOFOLLOW, "abs"),
    "nofollow dangling": ("dangling", NOFOLLOW, "dangling"),
    "nofollow file": ("etc/file", NOFOLLOW, "etc/file"),
    "nofollow, link as parent": ("lib/x86", NOFOLLOW, "usr/lib/x86"),
    "nofollow, trailing slash": ("to-dir/", NOFOLLOW, "etc"),
    "nofollow directory, link": ("lib", NOFOLLOW | DIRECTORY, "ENOTDIR"),
    "component of 255": (LONG, 0, LONG),
    "component of 256": (LONG + "n", 0, "ENAMETOOLONG"),
    "path of 4095": ("./" * 2043 + "/etc/file", 0, "etc/file"),
    "path of 4096": ("./" * 2043 + "//etc/file", 0, "ENAMETOOLONG"),
    "path of 8192": ("./" * 4091 + "//etc/file", 0, "ENAMETOOLONG"),
    "NUL": ("etc\0/file", 0, "EINVAL"),
    "newline": ("new\nline", 0, "new\nline"),
    "space": ("sp ace", 0, "sp ace"),
    "dash": ("-dash", 0, "-dash"),
    "colons": ("a::b", 0, "a::b"),
    "bidi": ("\u202eright", 0, "\u202eright"),
    "not UTF-8": (os.fsdecode(b"\xff"), 0, os.fsdecode(b"\xff")),
}


@pytest.mark.parametrize(("path", "flags", "expected"), TABLE.values(), ids=TABLE)
def test_path_resolves_inside_the_root(root: Path, resolver: str, path: str, flags: int, expected: str) -> None:
    check(root, path, flags, expected)


def check(root: Path, path: str, flags: int, expected: str) -> None:
    procfs.handle()
    fds = len(os.listdir("/proc/self/fd"))
    top = os.open(root, os.O_PATH)
    try:
        if expected.startswith("E") and hasattr(errno, expected):
            with os_error() as e:
                os.close(lookup(top, os.fsencode(path), flags))
            assert errno.errorcode[e.value.errno or 0] == expected
            assert e.value.filename == os.fsencode(path)
        else:
            fd = lookup(top, os.fsencode(path), flags)
            assert os.path.samestat(os.fstat(fd), os.lstat(root / expected))
            assert not os.get_inheritable(fd)
            os.close(fd)
    finally:
        os.close(top)
    assert len(os.listdir("/proc/self/fd")) == fds


MAGIC = {
    "exe": ("proc/self/exe", "ELOOP"),
    "root": ("proc/self/root", "ELOOP"),
    "root of init": ("proc/1/root/etc", "ELOOP"),
    "cwd": ("proc/self/cwd", "ELOOP"),
    "fd": ("proc/self/fd/0", "ELOOP"),
    "thread": ("proc/thread-self/root", "ELOOP"),
    "namespace": ("proc/self/ns/mnt", "ELOOP"),
    "through a link": ("etc/escape/canary", "ELOOP"),
    "through /dev/fd": ("dev/fd/0", "ELOOP"),
    "ordinary link": ("proc/mounts", None),
    "ordinary directory": ("proc/self/task", None),
    "ordinary file": ("proc/sys/kernel/pid_max", None),
}
OTHERS = ("proc/1/root/etc", "etc/escape/canary")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize(("path", "expected"), MAGIC.values(), ids=MAGIC)
def test_magic_links_are_not_followed(tmp_path: Path, resolver: str, path: str, expected: str | None) -> None:
    for d in ("proc", "etc", "dev"):
        (tmp_path / d).mkdir()
    (tmp_path / "etc/escape").symlink_to("/proc/1/root")
    (tmp_path / "dev/fd").symlink_to("/proc/self/fd")

    def body() -> None:
        namespaced.sh(f"mount -t proc proc {tmp_path}/proc")
        top = os.open(tmp_path, os.O_PATH)
        if expected is None:
            fd = lookup(top, path.encode())
            assert os.fstat(fd).st_dev == os.stat(tmp_path / "proc").st_dev
        else:
            with os_error() as e:
                lookup(top, path.encode())
            # A process that may not be looked into is refused before its link is.
            assert errno.errorcode[e.value.errno or 0] in (expected, "EACCES" if path in OTHERS else expected)
            assert os.fsdecode(e.value.filename) == path
            os.close(lookup(top, b"proc/self/exe", NOFOLLOW))  # itself it may be looked at

    isolated(body)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_mount_points_are_crossed_and_dots_come_back(tmp_path: Path, resolver: str) -> None:
    (tmp_path / "rootfs/vol").mkdir(parents=True)
    (tmp_path / "rootfs/file").write_text("root")

    def body() -> None:
        namespaced.sh(
            f"cd {tmp_path}; mount -t tmpfs none rootfs/vol; mkdir rootfs/vol/d; ln -s ../../file rootfs/vol/d/l"
        )
        top = os.open(tmp_path / "rootfs", os.O_PATH)
        for path, where in {
            "vol/d": "vol/d",
            "vol/d/l": "file",
            "vol/../file": "file",
            "vol/d/../../../file": "file",
        }.items():
            fd = lookup(top, path.encode())
            assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / "rootfs" / where))

    isolated(body)


@pytest.mark.skipif(os.geteuid() != 0, reason="a seccomp filter needs root")
@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM, errno.E2BIG])
def test_blocked_openat2_leads_to_the_walk(root: Path, error: int) -> None:
    def body() -> bool:
        module._openat2_works = True
        block(("openat2",), error)
        for path, flags, expected in TABLE.values():
            check(root, path, flags, expected)
        return module._openat2_works

    assert isolated(body) is False


@pytest.mark.parametrize("failures", [1, 127, 1000])
def test_eagain_is_retried_and_then_walked(root: Path, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    calls = 0

    def flaky(dirfd: int, path: bytes, flags: int, resolve: int) -> int:
        nonlocal calls
        calls += 1
        if calls <= failures:
            raise OSError(errno.EAGAIN, "again", path)
        return syscalls.openat2(dirfd, path, flags, resolve)

    monkeypatch.setattr(module, "openat2", flaky)
    check(root, "up", 0, "etc/file")
    assert calls == min(failures + 1, module.EAGAIN_RETRIES)
    assert module._openat2_works


def test_rename_storm_elsewhere_does_not_disturb(root: Path, resolver: str, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()

    def storm() -> None:
        os.rename(tmp_path / "x", tmp_path / "y")
        os.rename(tmp_path / "y", tmp_path / "x")

    with forked(storm):
        for _ in range(1000):
            check_fast(root, b"a/b/c/../../../etc/../etc/file", "etc/file")


def check_fast(root: Path, path: bytes, expected: str) -> None:
    top = os.open(root, os.O_PATH)
    fd = lookup(top, path)
    same = os.path.samestat(os.fstat(fd), os.stat(root / expected))
    os.close(fd)
    os.close(top)
    assert same


def swapper(path: Path, text: str) -> Callable[[], None]:
    """A body that exchanges the directory `path` and a link with `text` beside it, again and again."""
    other = path.with_name(path.name + "-link")
    other.symlink_to(text)
    parent = os.open(path.parent, os.O_PATH)

    def swap() -> None:
        syscalls.renameat2(parent, path.name.encode(), parent, other.name.encode(), 2)

    return swap


def test_flipping_parent_never_leads_out_of_the_root(resolver: str, tmp_path: Path) -> None:
    (tmp_path / "canary").mkdir()
    (tmp_path / "canary/file").write_text("host")
    (tmp_path / "rootfs/d").mkdir(parents=True)
    (tmp_path / "rootfs/d/file").write_text("image")
    canary = os.stat(tmp_path / "canary/file")
    found = 0
    top = os.open(tmp_path / "rootfs", os.O_PATH)
    with forked(swapper(tmp_path / "rootfs/d", "../canary")):
        for _ in range(3000):
            try:
                fd = lookup(top, b"d/file")
            except FileNotFoundError:
                continue
            assert not os.path.samestat(os.fstat(fd), canary)
            os.close(fd)
            found += 1
    os.close(top)
    assert found


def test_directory_moved_out_while_walking_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`..` after the directory we stand in left the root: the walk's own stack leads back, not the kernel."""
    (tmp_path / "rootfs/a/b").mkdir(parents=True)
    (tmp_path / "rootfs/file").write_text("image")
    (tmp_path / "outside").mkdir()
    (tmp_path / "file").write_text("host")
    step = module._Walk._step

    def step_then_move(self: module._Walk, name: bytes) -> None:
        step(self, name)
        if name == b"b" and (tmp_path / "rootfs/a/b").exists():
            os.rename(tmp_path / "rootfs/a/b", tmp_path / "outside/b")

    monkeypatch.setattr(module, "_openat2_works", False)
    monkeypatch.setattr(module._Walk, "_step", step_then_move)
    top = os.open(tmp_path / "rootfs", os.O_PATH)
    fd = lookup(top, b"a/b/../../file")
    assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / "rootfs/file"))
    (tmp_path / "rootfs/a/b").mkdir()
    os.rmdir(tmp_path / "outside/b")
    with os_error() as e:
        lookup(top, b"a/b")
    assert e.value.errno in (errno.EAGAIN, errno.ENOENT)
    os.close(fd)
    os.close(top)
