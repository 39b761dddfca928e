"""nvoci.linux.mount, generated, mountinfo and nvoci.hook.mounts on the real kernel, new and old."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from nvoci.errors import HookError
from nvoci.hook.container import HOST, OUTSIDE, Container
from nvoci.hook.mounts import BindMount, GeneratedMount
from nvoci.hook.preview import Preview
from nvoci.linux import mount, procfs, syscalls
from tests.kernel import namespaced
from tests.kernel.mounting import FLAGS, PARAMS, TEXT, options_at, params_mount, perform, tree, with_params
from tests.kernel.namespaced import KERNELS, Kernel, isolated

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")]


def test_container_root_cannot_write_to_a_generated_file(root: Path, kernel: Kernel) -> None:
    def body() -> None:
        with namespaced.container(root, with_params(root)) as pid:
            host, files = namespaced.mountinfo(), tree(root)
            before = namespaced.mountinfo(pid)
            namespaced.in_container(pid, root, kernel, lambda c: perform(params_mount(c)) and None)
            added = [line for line in namespaced.mountinfo(pid) if line not in before]
            assert [line.split()[4] for line in added] == [f"{root}/{PARAMS.decode()}"]
            assert "shared:" not in added[0]
            assert options_at(pid, f"{root}/{PARAMS.decode()}") == [FLAGS | {"relatime"}]
            assert namespaced.run_inside(pid, root, "cat /proc/driver/nvidia/params").stdout == TEXT.decode()
            write = namespaced.run_inside(pid, root, "echo 1 > /proc/driver/nvidia/params")
            assert write.returncode != 0
            assert "Read-only file system" in write.stderr
            # All that lies on the directory is the mount on the file.
            assert namespaced.run_inside(pid, root, "ls -a /proc/driver/nvidia").stdout.split() == [".", "..", "params"]
            assert namespaced.mountinfo() == host
            assert tree(root) == files

    isolated(body)


@pytest.mark.parametrize(("data", "mode"), [(b"", 0o444), (b"x", 0o400), (b"y" * 100_000, 0o644)])
def test_generated_file_has_exactly_its_content_and_mode(root: Path, kernel: Kernel, data: bytes, mode: int) -> None:
    def work(c: Container) -> tuple[int, int, bytes]:
        os.umask(0o777)
        perform(GeneratedMount(c, b"etc/target", data, mode, "file"))
        st = c.rootfs.stat(b"etc/target")
        return stat.S_IMODE(st.st_mode), st.st_uid, c.rootfs.read_file(b"etc/target", 1 << 20)

    def body() -> Any:
        with namespaced.container(root) as pid:
            return namespaced.in_container(pid, root, kernel, work)

    assert isolated(body) == (mode, 0, data)
    assert (root / "etc/target").read_text() == "image\n"


def test_undo_leaves_the_mount_table_as_it_was(root: Path, kernel: Kernel) -> None:
    def work(c: Container) -> None:
        transaction = perform(params_mount(c))
        assert c.rootfs.read_file(PARAMS, 1000) == TEXT
        transaction.undo()
        assert c.rootfs.read_file(PARAMS, 1000) == b"ModifyDeviceFiles: 1\n"

    def body() -> None:
        with namespaced.container(root, with_params(root)) as pid:
            before = namespaced.mountinfo(pid)
            namespaced.in_container(pid, root, kernel, work)
            assert namespaced.mountinfo(pid) == before

    isolated(body)


def test_second_run_mounts_nothing(root: Path, kernel: Kernel) -> None:
    def body() -> None:
        with namespaced.container(root, with_params(root)) as pid:
            namespaced.in_container(pid, root, kernel, lambda c: perform(params_mount(c)) and None)
            once = namespaced.mountinfo(pid)
            # The same again, from an undone start of another process: the mount is not its own, and stays.
            namespaced.in_container(pid, root, kernel, lambda c: perform(params_mount(c)).undo())
            assert namespaced.mountinfo(pid) == once
            namespaced.in_container(pid, root, kernel, lambda c: perform(params_mount(c, TEXT + b"new\n")) and None)
            assert len(namespaced.mountinfo(pid)) == len(once) + 1

    isolated(body)


def test_generated_mount_leaves_process_as_it_was(root: Path, kernel: Kernel) -> None:
    def work(c: Container) -> tuple[Any, Any]:
        os.chdir(root / "etc")
        procfs.handle()
        before = os.getcwd(), procfs.ns_id(b"self/ns/mnt"), sorted(os.listdir("/proc/self/fd"))
        perform(params_mount(c)).undo()
        return before, (os.getcwd(), procfs.ns_id(b"self/ns/mnt"), sorted(os.listdir("/proc/self/fd")))

    def body() -> Any:
        with namespaced.container(root, with_params(root)) as pid:
            return namespaced.in_container(pid, root, kernel, work)

    before, after = isolated(body)
    assert before == after


def test_generated_mount_works_where_proc_is_hidden(root: Path, kernel: Kernel) -> None:
    def work(c: Container) -> bytes:
        procfs.handle()
        namespaced.sh("mount -t tmpfs none /proc")
        transaction = perform(params_mount(c))
        data = c.rootfs.read_file(PARAMS, 1000)
        transaction.undo()
        assert c.rootfs.read_file(PARAMS, 1000) != TEXT
        return data

    def body() -> Any:
        with namespaced.container(root, with_params(root)) as pid:
            return namespaced.in_container(pid, root, kernel, work)

    assert isolated(body) == TEXT


def test_generated_mount_works_in_a_user_namespace(root: Path, kernel: Kernel) -> None:
    def body() -> bytes:
        namespaced.sh(f"mount --bind {root} {root}")
        syscalls.unshare(0x10000000 | 0x00020000)  # CLONE_NEWUSER | CLONE_NEWNS
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text("0 0 1")
        Path("/proc/self/gid_map").write_text("0 0 1")
        kernel.start()
        c = namespaced.make_container(root, OUTSIDE)
        perform(GeneratedMount(c, b"etc/target", TEXT, 0o444, "file"))
        return c.rootfs.read_file(b"etc/target", 1000)

    assert isolated(body) == TEXT


def test_readonly_root_takes_a_generated_mount(root: Path, kernel: Kernel) -> None:
    def work(c: Container) -> bytes:
        perform(GeneratedMount(c, b"etc/target", TEXT, 0o444, "file"))
        return c.rootfs.read_file(b"etc/target", 1000)

    def body() -> Any:
        with namespaced.container(root, f"mount -o remount,bind,ro {root}") as pid:
            return namespaced.in_container(pid, root, kernel, work)

    assert isolated(body) == TEXT


# -- host files -----------------------------------------------------------------------------------------------------


def test_host_file_is_mounted_read_only_and_private(root: Path, kernel: Kernel, tmp_path: Path) -> None:
    host = tmp_path / "host"
    host.mkdir()

    def body() -> None:
        namespaced.sh(f"mount -t tmpfs none {host}; mount --make-shared {host}; echo host > {host}/file")
        kernel.start()
        with namespaced.container(root) as pid:
            source = mount.clone(os.open(host / "file", os.O_PATH), mount.READ_ONLY)
            namespaced.in_container(
                pid, root, Kernel("as before"), lambda c: perform(BindMount(c, source, b"etc/target", "file")) and None
            )
            line = next(m for m in namespaced.mountinfo(pid) if m.split()[4] == f"{root}/etc/target")
            assert set(line.split()[5].split(",")) == {"ro", "nosuid", "nodev", "relatime"}
            assert "shared:" not in line
            assert namespaced.run_inside(pid, root, "cat /etc/target").stdout == "host\n"
            assert "Read-only" in namespaced.run_inside(pid, root, "echo x > /etc/target").stderr
            (host / "file").write_text("still writable here\n")
            again = namespaced.mountinfo(pid)
            namespaced.in_container(
                pid, root, Kernel("as before"), lambda c: perform(BindMount(c, source, b"etc/target", "file")) and None
            )
            assert namespaced.mountinfo(pid) == again
            source.close()

    isolated(body)


def test_host_directory_is_mounted_without_what_is_mounted_below(root: Path, kernel: Kernel, tmp_path: Path) -> None:
    host = tmp_path / "host"
    (host / "sub").mkdir(parents=True)

    def body() -> None:
        namespaced.sh(f"mount -t tmpfs none {host}/sub; echo secret > {host}/sub/secret; echo host > {host}/file")
        kernel.start()
        with namespaced.container(root) as pid:
            source = mount.clone(os.open(host, os.O_PATH), mount.READ_ONLY)
            namespaced.in_container(
                pid, root, Kernel("as before"), lambda c: perform(BindMount(c, source, b"usr/lib", "dir")) and None
            )
            assert namespaced.run_inside(pid, root, "ls -A /usr/lib /usr/lib/sub").stdout.split() == [
                "/usr/lib:", "file", "sub", "/usr/lib/sub:",
            ]  # fmt: skip

    isolated(body)


def test_file_on_directory_and_the_reverse_are_refused(root: Path, kernel: Kernel) -> None:
    def work(c: Container) -> list[str]:
        said = []
        for source, target in ((b"etc/target", b"usr/lib"), (b"usr", b"etc/target")):
            cloned = mount.clone(c.rootfs.lookup(source).fileno(), mount.READ_ONLY)
            with pytest.raises(HookError) as e:
                perform(BindMount(c, cloned, target, "it"))
            said.append(e.value.message)
        with pytest.raises(HookError) as e:
            perform(GeneratedMount(c, b"usr/lib", TEXT, 0o444, "file"))
        return [*said, e.value.message]

    def body() -> Any:
        with namespaced.container(root) as pid:
            before = namespaced.mountinfo(pid)
            said = namespaced.in_container(pid, root, kernel, work)
            assert namespaced.mountinfo(pid) == before
            return said

    said = isolated(body)
    assert [m.rsplit(": ", 1)[1] for m in said] == ["EISDIR", "ENOTDIR", "EISDIR"]


# -- targets --------------------------------------------------------------------------------------------------------

TARGETS = {
    "plain": ("etc/target", "etc/target"),
    "absolute": ("/etc/target", "etc/target"),
    "absolute link": ("etc/abs", "etc/target"),
    "relative link": ("etc/rel", "etc/target"),
    "link with dots": ("etc/up", "etc/target"),
    "parent link": ("mirror/target", "etc/target"),
    "chain": ("etc/chain", "etc/target"),
    "dangling": ("etc/dangling", "ENOENT"),
    "host path": ("etc/host", "ENOENT"),
    "loop": ("etc/loop", "ELOOP"),
    "magic link": ("etc/magic", "ELOOP"),
    "no name": ("/", "EINVAL"),
    "missing": ("etc/none", "ENOENT"),
    "below a file": ("etc/target/x", "ENOTDIR"),
}


@pytest.mark.parametrize(("path", "where"), TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("kernel_", [KERNELS[0], KERNELS[3]], ids=lambda k: k.name)
def test_target_is_resolved_inside_the_root(root: Path, kernel_: Kernel, path: str, where: str) -> None:
    etc = root / "etc"
    canary = root.parent / "canary"
    canary.write_text("host")
    for name, text in {
        "abs": "/etc/target", "rel": "target", "up": "../../../../etc/target", "chain": "abs", "dangling": "/none/none",
        "host": str(canary), "loop": "loop", "magic": "/proc/self/exe",
    }.items():  # fmt: skip
        (etc / name).symlink_to(text)
    (root / "mirror").symlink_to("/etc")

    def work(c: Container) -> None:
        perform(GeneratedMount(c, path.encode(), TEXT, 0o444, "file"))

    def body() -> None:
        with namespaced.container(root) as pid:
            before = namespaced.mountinfo(pid)
            if where.startswith("E"):
                with pytest.raises(AssertionError, match=where):
                    namespaced.in_container(pid, root, kernel_, work)
            else:
                namespaced.in_container(pid, root, kernel_, work)
            added = [m.split()[4] for m in namespaced.mountinfo(pid) if m not in before]
            assert added == ([] if where.startswith("E") else [f"{root}/{where}"])

    isolated(body)


def test_nothing_is_mounted_where_the_container_has_no_namespace(root: Path) -> None:
    def body() -> str:
        before = namespaced.mountinfo()
        c = namespaced.make_container(root, HOST)
        with pytest.raises(HookError, match="no mount namespace") as e:
            perform(GeneratedMount(c, b"etc/target", TEXT, 0o444, "file"))
        assert namespaced.mountinfo() == before
        return e.value.line()

    assert isolated(body).startswith("test: mount file on /etc/target (30 bytes, read-only):")


def test_flags_that_did_not_take_are_an_error_and_the_mount_is_gone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(c: Container) -> None:
        mount.mount_setattr = lambda *args: None
        before = namespaced.mountinfo()
        with pytest.raises(HookError, match="flags 0x"):
            perform(GeneratedMount(c, b"etc/target", TEXT, 0o444, "file"))
        assert namespaced.mountinfo() == before

    def body() -> None:
        with namespaced.container(root) as pid:
            namespaced.in_container(pid, root, KERNELS[0], work)

    isolated(body)


def test_preview_shows_the_content_and_mounts_nothing(root: Path) -> None:
    c = namespaced.make_container(root, OUTSIDE)
    view = Preview(c.rootfs)
    operation = GeneratedMount(c, b"/etc/target", TEXT, 0o444, "file")
    before = namespaced.mountinfo()
    assert operation.preview(view)
    assert view.content(b"etc/target", 1000) == TEXT
    assert not operation.preview(view)
    assert namespaced.mountinfo() == before
    assert (root / "etc/target").read_text() == "image\n"
