"""The confined ldconfig on real roots. Second witness: the same ldconfig, run in a chroot; ldconfig -p; ld.so."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from lib import elfmaker
from lib.rootfs import add_probe, glibc_rootfs, tree

from nvoci import ldcache
from nvoci.errors import HookError
from nvoci.hook import ldconfig
from nvoci.hook import update_ldcache as hook
from nvoci.hook.container import Container
from nvoci.hook.operation import Transaction
from nvoci.hook.operations import WriteFile
from nvoci.hook.settings import Settings
from nvoci.linux import syscalls
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

LDCONFIG = "/sbin/ldconfig"
pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
    pytest.mark.skipif(not os.path.exists(LDCONFIG), reason="no ldconfig on this host"),
]
OLD = Kernel("before-3.17", ("openat2", "close_range", "memfd_create", "pidfd_open", *MOUNT_API))
ZERO, ZZ = "etc/ld.so.conf.d/00-nvcr-nvoci.conf", "etc/ld.so.conf.d/zz-nvcr-nvoci.conf"
CACHE = "etc/ld.so.cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = glibc_rootfs(tmp_path / "rootfs")
    driver(path)
    return path


def driver(root: Path, version: str = "1.2", at: str = "opt/nv") -> None:
    for name in ("libnva.so.1", "libnvb.so.2"):
        elfmaker.make_so(root / at / f"{name.partition('.so')[0]}.so.{version}", name)


def update(c: Container, *folders: str, strict: bool = False, timeout: float = 30.0, path: str = LDCONFIG) -> None:
    c.settings.strict, c.settings.timeout = strict, timeout
    prepared = hook.prepare({"folder": list(folders), "ldconfig-path": path}, c.settings)
    transaction = Transaction(strict)
    try:
        for operation in hook.plan(prepared, c):
            transaction.perform("update-ldcache", operation)
    except BaseException:
        transaction.undo()
        raise
    transaction.commit()


def listed(root: Path) -> dict[str, str]:
    argv = [LDCONFIG, "-p", "-r", root, "-C", f"/{CACHE}"]
    text = subprocess.run(argv, check=True, capture_output=True, text=True, env={}).stdout
    found = re.findall(r"^\t(\S+) \(.*\) => (.*)$", text, re.MULTILINE)
    return dict(reversed(found))  # the first one counts


def snapshot(root: Path) -> dict[str, tuple[Any, ...]]:
    """All that a second run must leave alone, inode numbers included."""
    seen = {}
    for folder, dirs, files in os.walk(root):
        for name in (*dirs, *files):
            path = os.path.join(folder, name)
            st = os.lstat(path)
            text = os.readlink(path) if os.path.islink(path) else ""
            seen[os.path.relpath(path, root)] = (st.st_ino, st.st_mode, st.st_size, st.st_mtime_ns, text)
    return {k: v for k, v in seen.items() if not os.path.isdir(root / k)}


def test_libraries_are_found_and_nothing_else_is_left(root: Path) -> None:
    before = set(snapshot(root))
    update(make_container(root), "/opt/nv")
    assert listed(root)["libnva.so.1"] == "/opt/nv/libnva.so.1"
    assert os.readlink(root / "opt/nv/libnva.so.1") == "libnva.so.1.2"
    assert set(snapshot(root)) - before == {ZERO, ZZ, "opt/nv/libnva.so.1", "opt/nv/libnvb.so.2"}
    assert (root / CACHE).stat().st_mode & 0o7777 == 0o644
    assert (root / ZERO).read_text() == "/opt/nv\n"


def test_loader_of_the_container_finds_the_libraries(root: Path) -> None:
    probe = add_probe(root, "libnva.so.1")
    chroot = ["/usr/sbin/chroot", root, probe]
    assert subprocess.run(chroot, check=False, capture_output=True).returncode == 127
    update(make_container(root), "/opt/nv")
    assert subprocess.run(chroot, check=False, capture_output=True).returncode == 0


def test_a_second_run_changes_nothing(root: Path) -> None:
    update(make_container(root), "/opt/nv")
    first = snapshot(root)
    update(make_container(root), "/opt/nv")
    assert snapshot(root) == first


def test_a_new_driver_version_moves_the_links(root: Path) -> None:
    update(make_container(root), "/opt/nv")
    driver(root, "1.3")
    update(make_container(root), "/opt/nv")
    assert os.readlink(root / "opt/nv/libnva.so.1") == "libnva.so.1.3"
    first = snapshot(root)
    update(make_container(root), "/opt/nv")
    assert snapshot(root) == first


def test_no_folder_takes_the_old_drop_in_away(root: Path) -> None:
    update(make_container(root), "/opt/nv")
    update(make_container(root))
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
    "legacy hwcaps": "dir opt/nv/tls",
    "new hwcaps": "dir opt/nv/glibc-hwcaps/x86-64-v2",
    "linker script": "file opt/nv/libscript.so INPUT(x)",
    "empty library": "file opt/nv/libempty.so.1",
    "fifo for a library": "fifo opt/nv/libfifo.so.1",
    "directory twice": "symlink opt/again /opt/nv\nfile etc/ld.so.conf.d/b.conf /opt/again\\n",
    "self include": "file etc/ld.so.conf.d/b.conf /opt/nv\\n# nothing\\n",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_cache_and_links_are_those_that_ldconfig_itself_makes(root: Path, tmp_path: Path, shape: str) -> None:
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
    cache, wanted = reference(other)
    update(make_container(root), "/opt/nv")
    assert (root / CACHE).read_bytes() == cache
    wanted.setdefault("opt/nv/libnva.so.1", "none")  # ldconfig deletes dangling links of the image; we do not
    assert {k: v[4] for k, v in snapshot(root).items() if k.startswith("opt")} == wanted


def reference(root: Path) -> tuple[bytes, dict[str, str]]:
    """Our drop-ins, then ldconfig itself: the cache, and the texts of all links."""
    prepared = hook.prepare({"folder": ["/opt/nv"], "ldconfig-path": LDCONFIG}, Settings())
    transaction = Transaction()
    for operation in hook.plan(prepared, make_container(root)):
        if isinstance(operation, WriteFile):
            transaction.perform("reference", operation)
    transaction.commit()
    argv = [LDCONFIG, "-r", root, "-i", "-f", "/etc/ld.so.conf", "-C", f"/{CACHE}"]
    subprocess.run(argv, check=True, capture_output=True, env={})
    return (root / CACHE).read_bytes(), {k: v[4] for k, v in snapshot(root).items() if k.startswith("opt")}


@pytest.mark.parametrize("kernel", [*KERNELS, OLD], ids=lambda k: k.name)
def test_from_outside_of_the_containers_namespace(root: Path, kernel: Kernel) -> None:
    """The program is copied on the host, before the namespace is entered."""

    def body(c: Container) -> None:
        update(c, "/opt/nv")

    with container(root) as pid:
        before = mountinfo(pid)
        in_container(pid, root, kernel, body)
        assert mountinfo(pid) == before
        assert "libnva.so.1" in run_inside(pid, root, "ls /opt/nv").stdout
    assert listed(root)["libnvb.so.2"] == "/opt/nv/libnvb.so.2"


def test_mounted_libraries_are_seen(root: Path, tmp_path: Path) -> None:
    """The runtime mounts the driver's libraries file by file."""
    library = elfmaker.make_so(tmp_path / "libnvc.so.3.1", "libnvc.so.3")
    (root / "opt/nv/libnvc.so.3.1").touch()
    with container(root, f"mount --bind {library} {root}/opt/nv/libnvc.so.3.1") as pid:
        in_container(pid, root, KERNELS[0], lambda c: update(c, "/opt/nv"))
    assert listed(root)["libnvc.so.3"] == "/opt/nv/libnvc.so.3"
    assert os.readlink(root / "opt/nv/libnvc.so.3") == "libnvc.so.3.1"


def test_folder_is_in_the_cache_though_the_image_does_not_include_the_drop_ins(root: Path) -> None:
    tree(root, "file etc/ld.so.conf /usr/local/lib\\n")
    update(make_container(root), "/opt/nv")
    assert listed(root)["libnva.so.1"] == "/opt/nv/libnva.so.1"


def test_compat_libraries_come_before_the_drivers(root: Path) -> None:
    elfmaker.make_so(root / "opt/compat/libnva.so.1.9", "libnva.so.1")
    for conf in ("include /etc/ld.so.conf.d/*.conf", "# nothing"):
        tree(root, f"file etc/ld.so.conf {conf}\\n\nfile etc/ld.so.conf.d/00-compat-nvoci.conf /opt/compat\\n")
        update(make_container(root), "/opt/nv")
        assert listed(root)["libnva.so.1"] == "/opt/compat/libnva.so.1"


def test_image_without_any_configuration(tmp_path: Path) -> None:
    root = tree(tmp_path / "rootfs", "dir proc\ndir etc")
    driver(root)
    update(make_container(root), "/opt/nv")
    assert (root / "etc/ld.so.conf").read_text() == "include /etc/ld.so.conf.d/*.conf\n"
    assert listed(root)["libnva.so.1"] == "/opt/nv/libnva.so.1"


# -- read-only roots --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [*KERNELS, OLD], ids=lambda k: k.name)
def test_on_a_read_only_root_the_cache_is_mounted(root: Path, kernel: Kernel) -> None:
    before, cache = snapshot(root), (root / CACHE).read_bytes()

    def body(c: Container) -> bytes:
        update(c, "/opt/nv")
        return (root / CACHE).read_bytes()

    with container(root, f"mount -o remount,bind,ro {root}") as pid:
        seen = in_container(pid, root, kernel, body)
        assert b"libnva.so.1" in seen
        assert run_inside(pid, root, "echo x > /etc/ld.so.cache").returncode != 0
    assert (snapshot(root), (root / CACHE).read_bytes()) == (before, cache)


def test_on_a_read_only_root_the_cache_names_the_file_where_a_link_cannot_be_made(root: Path) -> None:
    def body(c: Container) -> list[tuple[bytes, bytes]]:
        update(c, "/opt/nv")
        return [(e.unsafe_soname, e.unsafe_path) for e in ldcache.parse(c.rootfs.read_file(CACHE.encode(), 1 << 20))]

    with container(root, f"mount -o remount,bind,ro {root}") as pid:
        entries = in_container(pid, root, KERNELS[0], body)
    assert (b"libnva.so.1", b"/opt/nv/libnva.so.1.2") in entries


def test_on_a_read_only_root_strict_makes_a_missing_link_an_error(root: Path) -> None:
    with container(root, f"mount -o remount,bind,ro {root}") as pid, pytest.raises(AssertionError, match="EROFS"):
        in_container(pid, root, KERNELS[0], lambda c: update(c, "/opt/nv", strict=True))
    assert not (root / "opt/nv/libnva.so.1").exists()


def test_on_a_read_only_root_without_a_cache_there_is_a_warning_or_with_strict_an_error(root: Path) -> None:
    (root / CACHE).unlink()
    with container(root, f"mount -o remount,bind,ro {root}") as pid:
        in_container(pid, root, KERNELS[0], update)
        with pytest.raises(AssertionError, match="it cannot be made"):
            in_container(pid, root, KERNELS[0], lambda c: update(c, strict=True))


# -- failures ---------------------------------------------------------------------------------------------------


def fails(root: Path, **how: Any) -> HookError:
    before = snapshot(root)
    start = time.monotonic()
    with pytest.raises(HookError) as e:
        update(make_container(root), "/opt/nv", **how)
    assert time.monotonic() - start < 10
    assert snapshot(root) == before
    assert "\n" not in e.value.line()
    return e.value


HOSTILE = {
    "fifo": ("fifo etc/ld.so.conf", "/etc/ld.so.conf"),
    "device": ("char etc/ld.so.conf 1 5", "/etc/ld.so.conf"),
    "directory": ("dir etc/ld.so.conf", "/etc/ld.so.conf"),
    "included fifo": ("fifo etc/ld.so.conf.d/x.conf", "/etc/ld.so.conf.d/x.conf"),
    "1 TiB": ("sparse etc/ld.so.conf.d/x.conf 1T", "/etc/ld.so.conf.d/x.conf"),
    "drop-in is a directory": (f"dir {ZERO}", "00-nvcr-nvoci.conf"),
    "cache is a directory": (f"dir {CACHE}", "ld.so.cache"),
    "cache is a fifo": (f"fifo {CACHE}", "ld.so.cache"),
    "no writable place": ("symlink proc x\nsymlink dev x\nsymlink sys x\nsymlink tmp x\nsymlink run x", "/proc, /dev"),
}


@pytest.mark.parametrize("shape", HOSTILE)
def test_hostile_image_is_one_error_and_an_unchanged_root(root: Path, shape: str) -> None:
    spec, name = HOSTILE[shape]
    tree(root, spec)
    assert name in fails(root).message


@pytest.mark.parametrize("name", ["etc/ld.so.cache~", "var/cache/ldconfig/aux-cache"])
def test_ldconfigs_own_temporaries_are_not_touched(root: Path, name: str) -> None:
    tree(root, f"fifo {name}")
    update(make_container(root), "/opt/nv")
    assert "libnva.so.1" in listed(root)


def test_circles_of_includes_do_not_matter(root: Path) -> None:
    tree(root, "".join(f"file etc/ld.so.conf.d/{i}.conf include /etc/ld.so.conf.d/*.conf\\n\n" for i in range(8)))
    tree(root, "file etc/ld.so.conf include /etc/ld.so.conf\\ninclude /etc/ld.so.conf.d/*.conf\\n")
    update(make_container(root), "/opt/nv")
    assert "libnva.so.1" in listed(root)


def test_sonames_that_lead_elsewhere_make_no_link(root: Path) -> None:
    for i, name in enumerate(("../../etc/x", "/etc/x", "..", "a/b", "a\nb", "x -> y")):
        elfmaker.make_so(root / f"opt/nv/libevil{i}.so.1", name)
    before = set(snapshot(root))
    update(make_container(root), "/opt/nv")
    assert set(snapshot(root)) - before == {ZERO, ZZ, "opt/nv/libnva.so.1", "opt/nv/libnvb.so.2"}


def program(tmp_path: Path, body: str) -> str:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to build a false ldconfig with")
    out = tmp_path / "ldconfig"
    source = f"#include <stdio.h>\n#include <unistd.h>\n#include <fcntl.h>\nint main(void) {{ {body} }}"
    subprocess.run(["gcc", "-static", "-x", "c", "-o", out, "-"], input=source.encode(), check=True)
    out.chmod(0o755)
    return str(out)


FALSE = {
    "fails": ('fputs("ldconfig: Cannot do it\\n", stderr); return 1;', "exit status 1: ldconfig: Cannot do it"),
    "writes no cache": ("return 0;", "invalid"),
    "crashes": ("__builtin_trap();", "killed by signal"),
    "hangs": ("for (;;) sleep(1000);", "not finished after 1 s"),
    "writes nonsense": ('write(open("/proc/ld.so.cache", 65, 420), "x", 1); return 0;', "invalid"),
}


@pytest.mark.parametrize("kind", FALSE)
def test_failing_ldconfig_is_one_error_and_an_unchanged_root(root: Path, tmp_path: Path, kind: str) -> None:
    body, message = FALSE[kind]
    assert message in fails(root, path=program(tmp_path, body), timeout=3).message


def test_failure_after_the_links_takes_them_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ldconfig.RunLdconfig, "_publish", full)
    assert "ENOSPC" in fails(root).message


def test_later_failure_takes_everything_back(root: Path) -> None:
    before = {k: v[1:] for k, v in snapshot(root).items()}
    prepared = hook.prepare({"folder": ["/opt/nv"], "ldconfig-path": LDCONFIG}, Settings())
    transaction = Transaction()
    for operation in hook.plan(prepared, make_container(root)):
        transaction.perform("update-ldcache", operation)
    assert (root / "opt/nv/libnva.so.1").is_symlink()
    transaction.undo()
    assert {k: v[1:] for k, v in snapshot(root).items()} == before


def test_full_file_system_is_one_error_and_an_unchanged_root(root: Path, tmp_path: Path) -> None:
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
        try:
            update(make_container(small), "/opt/nv")
        except HookError as e:
            return e.line(), snapshot(small) == before
        return "no error", False

    line, unchanged = isolated(body)
    assert "ENOSPC" in line
    assert unchanged
