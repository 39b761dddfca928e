"""update-ldcache on real roots, with either engine. Second witness: ldconfig in a chroot; ldconfig -p; ld.so."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from lib import elfmaker
from lib.rootfs import add_probe, glibc_rootfs, tree

from nvoci.hook import update_ldcache as hook
from nvoci.hook.container import Container
from nvoci.hook.operation import Transaction
from nvoci.hook.operations import WriteFile
from nvoci.hook.settings import Settings
from nvoci.ldcache import cache as ldcache
from nvoci.linux import syscalls
from tests.kernel.ldcaches import (
    BOTH,
    CACHE,
    LDCONFIG,
    MARKS,
    ZERO,
    ZZ,
    driver,
    fails,
    lines,
    links,
    listed,
    reference,
    snapshot,
    update,
)
from tests.kernel.namespaced import (
    KERNELS,
    MOUNT_API,
    Kernel,
    container,
    in_container,
    isolated,
    make_container,
    mountinfo,
    run_inside,
)

pytestmark = [*MARKS, BOTH]
OLD = Kernel("before-3.17", ("openat2", "close_range", "memfd_create", "pidfd_open", *MOUNT_API))
Update = Callable[..., None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = glibc_rootfs(tmp_path / "rootfs")
    driver(path)
    return path


@pytest.fixture
def run(engine: str) -> Update:
    """update() with the engine under test, with the driver's folder."""
    return lambda c, *folders, **how: update(c, *(folders or ("/opt/nv",)), engine=engine, **how)


def test_libraries_are_found_and_nothing_else_is_left(root: Path, run: Update) -> None:
    before = set(snapshot(root))
    run(make_container(root))
    assert listed(root)["libnva.so.1"] == "/opt/nv/libnva.so.1"
    assert os.readlink(root / "opt/nv/libnva.so.1") == "libnva.so.1.2"
    assert set(snapshot(root)) - before == {ZERO, ZZ, "opt/nv/libnva.so.1", "opt/nv/libnvb.so.2"}
    assert (root / CACHE).stat().st_mode & 0o7777 == 0o644
    assert (root / ZERO).read_text() == "/opt/nv\n"


def test_loader_of_the_container_finds_the_libraries(root: Path, run: Update) -> None:
    probe = add_probe(root, "libnva.so.1")
    chroot = ["/usr/sbin/chroot", root, probe]
    assert subprocess.run(chroot, check=False, capture_output=True).returncode == 127
    run(make_container(root))
    assert subprocess.run(chroot, check=False, capture_output=True).returncode == 0


def test_a_second_run_changes_nothing(root: Path, run: Update) -> None:
    run(make_container(root))
    first = snapshot(root)
    run(make_container(root))
    assert snapshot(root) == first


def test_the_other_engine_then_finds_nothing_to_change_but_the_generators_name(root: Path, engine: str) -> None:
    other = {"builtin": "ldconfig", "ldconfig": "builtin"}[engine]
    update(make_container(root), "/opt/nv", engine=engine)
    first, text = snapshot(root), lines(root)
    update(make_container(root), "/opt/nv", engine=other)
    assert lines(root) == text
    assert {k: v for k, v in snapshot(root).items() if k != CACHE} == {k: v for k, v in first.items() if k != CACHE}


def test_a_new_driver_version_moves_the_links(root: Path, run: Update) -> None:
    run(make_container(root))
    driver(root, "1.3")
    run(make_container(root))
    assert os.readlink(root / "opt/nv/libnva.so.1") == "libnva.so.1.3"
    first = snapshot(root)
    run(make_container(root))
    assert snapshot(root) == first


def test_no_folder_takes_the_old_drop_in_away(root: Path, engine: str) -> None:
    update(make_container(root), "/opt/nv", engine=engine)
    for path in (root / "opt/nv").iterdir():
        path.unlink()
    update(make_container(root), engine=engine)
    assert not (root / ZERO).exists()
    assert "libnva.so.1" not in listed(root)


SHAPES = {
    "plain": "dir x",
    "image's own order": "file etc/ld.so.conf /opt/own\\ninclude /etc/ld.so.conf.d/*.conf\\n\ndir opt/own",
    "several versions": "dir x",
    "wrong link": "symlink opt/nv/libnva.so.1 libnvb.so.1.2",
    "dangling link": "symlink opt/nv/libnva.so.1 none",
    "file in the way": "file opt/nv/libnva.so.1 text",
    "link with another name": "symlink opt/nv/libother.so.7 libnva.so.1.2",
    "development link": "symlink opt/nv/libnva.so libnva.so.1.2",
    "development link to the soname": "symlink opt/nv/libnva.so libnva.so.1",
    "legacy hwcaps": "dir opt/nv/tls",
    "new hwcaps": "dir opt/nv/glibc-hwcaps/x86-64-v2",
    "linker script": "file opt/nv/libscript.so INPUT(x)",
    "empty library": "file opt/nv/libempty.so.1",
    "fifo for a library": "fifo opt/nv/libfifo.so.1",
    "directory twice": "symlink opt/again /opt/nv\nfile etc/ld.so.conf.d/b.conf /opt/again\\n",
    "self include": "file etc/ld.so.conf.d/b.conf /opt/nv\\n# nothing\\n",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_cache_and_links_are_those_that_ldconfig_itself_makes(
    root: Path, tmp_path: Path, shape: str, engine: str
) -> None:
    """The reference: the same drop-ins, then ldconfig with all rights in a chroot."""
    tree(root, SHAPES[shape])
    if shape == "several versions":
        driver(root, "1.10")
    elfmaker.make_so(root / "opt/own/libnva.so.1.2", "libnva.so.1")
    for folder in ("tls", "glibc-hwcaps/x86-64-v2"):
        if (root / "opt/nv" / folder).is_dir():
            elfmaker.make_so(root / "opt/nv" / folder / "libnva.so.1.5", "libnva.so.1")
    other = tmp_path / "reference"
    subprocess.run(["cp", "-a", root, other], check=True)
    wanted, texts = reference(other, "/opt/nv"), links(other, "opt")
    update(make_container(root), "/opt/nv", engine=engine)
    if engine == "ldconfig":
        assert (root / CACHE).read_bytes() == (other / CACHE).read_bytes()
    else:  # legacy subdirectories are not searched
        wanted = [line for line in wanted if "/tls/" not in line]
        texts.pop("opt/nv/tls/libnva.so.1", None)
        if shape == "file in the way":  # is no library: builtin names the one that is
            wanted = [re.sub(r"(?<=/opt/nv/libnva.so.1)$", ".2", line) for line in wanted]
    assert lines(root) == wanted
    texts.setdefault("opt/nv/libnva.so.1", "none")  # ldconfig deletes dangling links of the image; we do not
    assert links(root, "opt") == texts


@pytest.mark.parametrize("kernel", [*KERNELS, OLD], ids=lambda k: k.name)
def test_from_outside_of_the_containers_namespace(root: Path, kernel: Kernel, run: Update) -> None:
    """What the engine needs of the host is read before the namespace is entered."""
    with container(root) as pid:
        before = mountinfo(pid)
        in_container(pid, root, kernel, run)
        assert mountinfo(pid) == before
        assert "libnva.so.1" in run_inside(pid, root, "ls /opt/nv").stdout
    assert listed(root)["libnvb.so.2"] == "/opt/nv/libnvb.so.2"


def test_mounted_libraries_are_seen(root: Path, tmp_path: Path, run: Update) -> None:
    """The runtime mounts the driver's libraries file by file."""
    library = elfmaker.make_so(tmp_path / "libnvc.so.3.1", "libnvc.so.3")
    (root / "opt/nv/libnvc.so.3.1").touch()
    with container(root, f"mount --bind {library} {root}/opt/nv/libnvc.so.3.1") as pid:
        in_container(pid, root, KERNELS[0], run)
    assert listed(root)["libnvc.so.3"] == "/opt/nv/libnvc.so.3"
    assert os.readlink(root / "opt/nv/libnvc.so.3") == "libnvc.so.3.1"


def test_folder_is_in_the_cache_though_the_image_does_not_include_the_drop_ins(root: Path, run: Update) -> None:
    tree(root, "file etc/ld.so.conf /usr/local/lib\\n")
    run(make_container(root))
    assert listed(root)["libnva.so.1"] == "/opt/nv/libnva.so.1"


def test_compat_libraries_come_before_the_drivers(root: Path, run: Update) -> None:
    elfmaker.make_so(root / "opt/compat/libnva.so.1.9", "libnva.so.1")
    for conf in ("include /etc/ld.so.conf.d/*.conf", "# nothing"):
        tree(root, f"file etc/ld.so.conf {conf}\\n\nfile etc/ld.so.conf.d/00-compat-nvoci.conf /opt/compat\\n")
        run(make_container(root))
        assert listed(root)["libnva.so.1"] == "/opt/compat/libnva.so.1"


def test_image_without_any_configuration(tmp_path: Path, run: Update) -> None:
    root = tree(tmp_path / "rootfs", "dir proc\ndir etc")
    driver(root)
    run(make_container(root))
    assert (root / "etc/ld.so.conf").read_text() == "include /etc/ld.so.conf.d/*.conf\n"
    assert listed(root)["libnva.so.1"] == "/opt/nv/libnva.so.1"


# -- read-only roots --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [*KERNELS, OLD], ids=lambda k: k.name)
def test_on_a_read_only_root_the_cache_is_mounted(root: Path, kernel: Kernel, run: Update) -> None:
    before, cache = snapshot(root), (root / CACHE).read_bytes()

    def body(c: Container) -> bytes:
        run(c)
        return (root / CACHE).read_bytes()

    with container(root, f"mount -o remount,bind,ro {root}") as pid:
        seen = in_container(pid, root, kernel, body)
        assert b"libnva.so.1" in seen
        assert run_inside(pid, root, "echo x > /etc/ld.so.cache").returncode != 0
    assert (snapshot(root), (root / CACHE).read_bytes()) == (before, cache)


def test_on_a_read_only_root_the_cache_names_the_file_where_a_link_cannot_be_made(root: Path, run: Update) -> None:
    def body(c: Container) -> list[tuple[bytes, bytes]]:
        run(c)
        cache = ldcache.parse(c.rootfs.read_file(CACHE.encode(), 1 << 20))
        return [(e.unsafe_soname, e.unsafe_path) for e in cache.entries]

    with container(root, f"mount -o remount,bind,ro {root}") as pid:
        entries = in_container(pid, root, KERNELS[0], body)
    assert (b"libnva.so.1", b"/opt/nv/libnva.so.1.2") in entries


def test_on_a_read_only_root_strict_makes_a_missing_link_an_error(root: Path, run: Update) -> None:
    with container(root, f"mount -o remount,bind,ro {root}") as pid, pytest.raises(AssertionError, match="EROFS"):
        in_container(pid, root, KERNELS[0], lambda c: run(c, strict=True))
    assert not (root / "opt/nv/libnva.so.1").exists()


def test_on_a_read_only_root_without_a_cache_there_is_a_warning_or_with_strict_an_error(
    root: Path, engine: str
) -> None:
    (root / CACHE).unlink()
    with container(root, f"mount -o remount,bind,ro {root}") as pid:
        in_container(pid, root, KERNELS[0], lambda c: update(c, engine=engine))
        with pytest.raises(AssertionError, match="it cannot be made"):
            in_container(pid, root, KERNELS[0], lambda c: update(c, engine=engine, strict=True))


# -- failures ---------------------------------------------------------------------------------------------------

HOSTILE = {
    "fifo": ("fifo etc/ld.so.conf", "/etc/ld.so.conf"),
    "device": ("char etc/ld.so.conf 1 5", "/etc/ld.so.conf"),
    "directory": ("dir etc/ld.so.conf", "/etc/ld.so.conf"),
    "included fifo": ("fifo etc/ld.so.conf.d/x.conf", "/etc/ld.so.conf.d/x.conf"),
    "1 TiB": ("sparse etc/ld.so.conf.d/x.conf 1T", "/etc/ld.so.conf.d/x.conf"),
    "drop-in is a directory": (f"dir {ZERO}", "00-nvcr-nvoci.conf"),
    "cache is a directory": (f"dir {CACHE}", "ld.so.cache"),
    "cache is a fifo": (f"fifo {CACHE}", "ld.so.cache"),
}


@pytest.mark.parametrize("shape", HOSTILE)
def test_hostile_image_is_one_error_and_an_unchanged_root(root: Path, shape: str, engine: str) -> None:
    spec, name = HOSTILE[shape]
    tree(root, spec)
    assert name in fails(root, engine).message


@pytest.mark.parametrize("name", ["etc/ld.so.cache~", "var/cache/ldconfig/aux-cache"])
def test_ldconfigs_own_temporaries_are_not_touched(root: Path, name: str, run: Update) -> None:
    tree(root, f"fifo {name}")
    run(make_container(root))
    assert "libnva.so.1" in listed(root)


def test_circles_of_includes_do_not_matter(root: Path, run: Update) -> None:
    tree(root, "".join(f"file etc/ld.so.conf.d/{i}.conf include /etc/ld.so.conf.d/*.conf\\n\n" for i in range(8)))
    tree(root, "file etc/ld.so.conf include /etc/ld.so.conf\\ninclude /etc/ld.so.conf.d/*.conf\\n")
    run(make_container(root))
    assert "libnva.so.1" in listed(root)


def test_sonames_that_lead_elsewhere_make_no_link(root: Path, run: Update) -> None:
    for i, name in enumerate(("../../etc/x", "/etc/x", "..", ".", "", "a/b", "a\nb", "a\x7f", "a" * 256)):
        elfmaker.make_so(root / f"opt/nv/libevil{i}.so.1", name)
    before = set(snapshot(root))
    run(make_container(root))
    assert set(snapshot(root)) - before == {ZERO, ZZ, "opt/nv/libnva.so.1", "opt/nv/libnvb.so.2"}


def test_failure_after_the_links_takes_them_back(root: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: WriteFile, transaction: Transaction) -> None:
        if self.path == CACHE.encode():
            assert (root / "opt/nv/libnva.so.1").is_symlink()
            raise OSError(28, "No space left on device")
        write(self, transaction)

    write = WriteFile.execute
    monkeypatch.setattr(WriteFile, "execute", full)
    assert "ENOSPC" in fails(root, engine).message


def test_later_failure_takes_everything_back(root: Path, engine: str) -> None:
    before = {k: v[1:] for k, v in snapshot(root).items()}
    options = {"folder": ["/opt/nv"], "engine": engine, "ldconfig-path": LDCONFIG}
    transaction = Transaction()
    for operation in hook.plan(hook.prepare(options, Settings()), make_container(root)):
        transaction.perform("update-ldcache", operation)
    assert (root / "opt/nv/libnva.so.1").is_symlink()
    transaction.undo()
    assert {k: v[1:] for k, v in snapshot(root).items()} == before


def test_full_file_system_is_one_error_and_an_unchanged_root(root: Path, tmp_path: Path, engine: str) -> None:
    small = tmp_path / "small"

    def body() -> tuple[str, bool]:
        small.mkdir()
        size = sum(f.stat().st_size for f in root.rglob("*") if f.is_file()) + (4 << 20)
        syscalls.mount(b"tmpfs", os.fsencode(small), b"tmpfs", 0, b"size=%d" % size)
        subprocess.run(["cp", "-a", f"{root}/.", small], check=True)
        filler = os.open(small / "filler", os.O_CREAT | os.O_WRONLY)
        try:
            while True:
                os.write(filler, b"x" * 4096)
        except OSError:
            pass
        before = snapshot(small)
        message = fails(small, engine).line()
        return message, snapshot(small) == before

    line, unchanged = isolated(body)
    assert "ENOSPC" in line
    assert unchanged
