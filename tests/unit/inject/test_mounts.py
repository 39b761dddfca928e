"""What a mount is in the container, on kernels old and new; mountinfo is the witness."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kernel import namespaced
from kernel.namespaced import KERNELS, Kernel
from lib import oracle
from lib.flipper import Flipper
from unit.inject.thing import Thing

from nvoci.cdi.model import ContainerEdits, Mount
from nvoci.errors import HookError
from nvoci.hook.container import OUTSIDE
from nvoci.hook.enter import Place
from nvoci.hook.operation import Operation, Transaction
from nvoci.inject import edits, mountopts
from nvoci.inject.sources import open_source
from nvoci.linux import abi, fd, guarded, procfs, syscalls
from nvoci.linux.fd import Fd

CALLS = {"open_tree", "move_mount"}


def has(kernel: Kernel, *calls: str) -> bool:
    return not set(calls) & set(kernel.blocked)


def lines(root: Path) -> list[str]:
    """path options propagation, and what it is, of each mount below `opt`, in mountinfo's order."""
    found = []
    for line in namespaced.mountinfo():
        before, _, after = line.partition(" - ")
        words = before.split()
        if words[4].startswith(f"{root}/opt"):
            options = words[5].replace(",relatime", "")
            tags = "slave" if any(w.startswith("master:") for w in words[6:]) else "private" if not words[6:] else "?"
            what = "tmpfs" if after.split()[1] in ("nvoci", "below") else "host"
            found.append(f"{words[4].removeprefix(str(root))} {options} {tags} {what}")
    return found


def in_container(
    root: Path,
    kernel: Kernel,
    mounts: list[Mount],
    body: Callable[[list[Operation]], Any],
    setup: str = "",
    host: str = "",
) -> Any:
    """Everything as in a createRuntime hook: prepared on the host (`host`: shell there), then a worker that enters."""
    (root / "opt").mkdir(exist_ok=True)

    def work() -> Any:
        namespaced.sh(host)
        with namespaced.container(root, setup) as pid:
            kernel.start()
            procfs.handle()
            prepared = edits.Prepared(ContainerEdits(mounts=tuple(mounts)), Place(OUTSIDE))
            host_lives_on = os.open("/proc/self/ns/mnt", os.O_RDONLY)
            with Fd(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)) as ns:
                syscalls.setns(ns.fileno(), abi.CLONE_NEWNS)
            found = body(prepared.operations(namespaced.make_container(root, OUTSIDE)))
            os.close(host_lives_on)
            return found

    return namespaced.isolated(work)


def execute(operations: list[Operation]) -> Transaction:
    transaction = Transaction()
    for operation in operations:
        transaction.perform("inject", operation)
    return transaction


def mounted(root: Path, kernel: Kernel, *mounts: Mount, **how: str) -> list[str]:
    """Which mounts there are then; and that a second run changes nothing, and undo takes all of it away."""
    before = oracle.content_only(oracle.snapshot(root))

    def body(operations: list[Operation]) -> list[str]:
        transaction = execute(operations)
        found = lines(root)
        transaction.undo()
        assert lines(root) == []
        return found

    found: list[str] = in_container(root, kernel, list(mounts), body, **how)
    after = oracle.content_only(oracle.snapshot(root))
    assert {k: v for k, v in after.items() if k not in ("opt", "proc")} == {
        k: v for k, v in before.items() if k not in ("opt", "proc")
    }
    return found


KERNEL = pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)


@KERNEL
def test_files_directories_and_tmpfs(thing: Thing, root: Path, kernel: Kernel) -> None:
    found = mounted(
        root,
        kernel,
        Mount(thing.host("libthing.so"), "/opt/a/lib", ("ro", "nosuid", "nodev", "noexec", "bind")),
        Mount(thing.host("data"), "/opt/data", ("rbind",)),
        Mount("tmpfs", "/opt/scratch", ("size=64k", "mode=700", "nosuid"), "tmpfs"),
        Mount("tmpfs", "/opt/empty", ("ro", "noexec"), "tmpfs"),
        Mount(thing.host("tool"), "/opt/scratch/tool", ("ro",)),
    )
    assert sorted(found) == [
        "/opt/a/lib ro,nosuid,nodev,noexec private host",
        "/opt/data rw private host",
        "/opt/empty ro,noexec private tmpfs",
        "/opt/scratch rw,nosuid private tmpfs",
        "/opt/scratch/tool ro private host",
    ]


def below(thing: Thing) -> str:
    """Shell: a mount below the vendor's directory."""
    return f"mount -t tmpfs -o nosuid below {thing.host('data/sub')}"


@KERNEL
def test_bind_leaves_what_is_mounted_below_and_rbind_takes_it_along(thing: Thing, root: Path, kernel: Kernel) -> None:
    only = [Mount(thing.host("data"), "/opt/data", ("bind", "ro"))]
    assert mounted(root, kernel, *only, host=below(thing)) == ["/opt/data ro private host"]
    both = [Mount(thing.host("data"), "/opt/data", ("rbind", "ro"))]
    if has(kernel, *CALLS):
        expected = ["/opt/data ro private host", "/opt/data/sub rw,nosuid private tmpfs"]
        assert mounted(root, kernel, *both, host=below(thing)) == expected
    else:
        with pytest.raises(AssertionError, match="has mounts below it, and this kernel cannot take them along"):
            mounted(root, kernel, *both, host=below(thing))


@KERNEL
def test_rro_is_for_all_of_them(thing: Thing, root: Path, kernel: Kernel) -> None:
    wanted = Mount(thing.host("data"), "/opt/data", ("rbind", "rro", "rnoexec", "nodev"))
    if has(kernel, "mount_setattr", *CALLS):
        found = mounted(root, kernel, wanted, host=below(thing))
        assert found == ["/opt/data ro,nodev,noexec private host", "/opt/data/sub ro,nosuid,noexec private tmpfs"]
    else:
        with pytest.raises(AssertionError, match="has mounts below it, and this kernel cannot"):
            mounted(root, kernel, wanted, host=below(thing))
    assert mounted(root, kernel, wanted) == ["/opt/data ro,nodev,noexec private host"]


@pytest.mark.parametrize("kernel", [KERNELS[0], KERNELS[2], KERNELS[3]], ids=lambda k: k.name)
@pytest.mark.parametrize("option", ["", "private", "rprivate", "slave", "rslave", "rshared"])
def test_propagation_is_private_or_slave_and_never_to_the_host(
    thing: Thing, root: Path, kernel: Kernel, option: str
) -> None:
    host = f"mount --bind {thing.host('data')} {thing.host('data')}; mount --make-shared {thing.host('data')}"
    options = ("rbind", *([option] if option else []))
    slave = option in ("slave", "rslave") and has(kernel, "mount_setattr", *CALLS)
    found = mounted(root, kernel, Mount(thing.host("data"), "/opt/data", options), host=host)
    assert found == [f"/opt/data rw {'slave' if slave else 'private'} host"]


@KERNEL
def test_a_second_run_finds_everything_there(thing: Thing, root: Path, kernel: Kernel) -> None:
    wanted = [
        Mount(thing.host("data"), "/opt/v", ("rbind", "ro")),
        Mount(thing.host("tool"), "/opt/v/model", ("ro", "nosuid")),
        Mount("tmpfs", "/opt/scratch", (), "tmpfs"),
    ]

    def body(operations: list[Operation]) -> tuple[list[str], list[str]]:
        execute(operations)
        first = lines(root)
        place = namespaced.make_container(root, OUTSIDE)
        again = edits.Prepared(ContainerEdits(mounts=tuple(wanted)), Place(OUTSIDE)).operations(place)
        execute(again).undo()
        return first, lines(root)

    first, second = in_container(root, kernel, wanted, body)
    assert first == second
    assert len(first) == 3


def test_a_root_that_is_shared_with_the_host_is_refused(thing: Thing, root: Path) -> None:
    wanted = [Mount(thing.host("data"), "/opt/data", ("rbind",)), Mount("tmpfs", "/opt/t", (), "tmpfs")]

    def body(operations: list[Operation]) -> list[str]:
        for operation in operations:
            with pytest.raises(HookError, match="lies on a shared mount, and would appear on the host"):
                operation.execute(Transaction())
        return lines(root)

    for kernel in (KERNELS[0], KERNELS[3]):
        assert in_container(root, kernel, wanted, body, setup=f"mount --make-shared {root}") == []


ORDERS = {
    "parents first, the rest as it is written": (
        "/opt/a/b/c /opt/b /opt/a /opt/a/b",
        "/opt/b /opt/a /opt/a/b /opt/a/b/c",
    ),
    "one path twice": ("/opt/x /opt/y /opt/x/", "/opt/y /opt/x"),
    "the same path by other words": ("/opt/x opt/./x /opt//x", "/opt/x"),
}


@pytest.mark.parametrize("case", ORDERS)
def test_the_order_of_mounts(thing: Thing, case: str) -> None:
    given, expected = ORDERS[case]
    late: dict[str, list[str]] = {}
    found = edits._prepare_mounts([Mount(thing.host("data"), path, ("bind",)) for path in given.split()], late)
    assert ([each.path.decode() for each in found], late) == (expected.split(), {})


def test_many_mounts_take_one_descriptor_each(thing: Thing) -> None:
    before = len(os.listdir("/proc/self/fd"))
    wanted = [Mount(thing.host("data"), f"/opt/{n}", ("rbind",)) for n in range(100)]
    found = edits._prepare_mounts(wanted, {})
    assert len(os.listdir("/proc/self/fd")) - before == 100
    for each in found:
        assert each.source is not None
        each.source.close()


def test_too_many_mounts_are_one_error(thing: Thing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvoci.inject.sources.MAX_SOURCES", 3)
    wanted = tuple(Mount(thing.host("data"), f"/opt/{n}", ("rbind",)) for n in range(4))
    with pytest.raises(HookError, match="4 mounts and 0 device nodes: too many"):
        edits.Prepared(ContainerEdits(mounts=wanted), Place(OUTSIDE))


def filled() -> int:
    """The lowest descriptor above which all are free; those that are free below are taken."""
    top = max(int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}"))
    while (taken := os.dup(0)) < top:
        pass
    os.close(taken)
    return taken


@pytest.mark.parametrize("kernel", [KERNELS[0], KERNELS[2], KERNELS[3]], ids=lambda k: k.name)
def test_too_few_descriptors_leave_nothing_behind(thing: Thing, root: Path, kernel: Kernel) -> None:
    """Any limit from none to spare to enough: what fails is undone with what was kept by."""
    wanted = [
        Mount(thing.host("libthing.so"), "/opt/a/b/lib", ("ro", "bind")),
        Mount(thing.host("data"), "/opt/data", ("ro", "rbind")),
        Mount("tmpfs", "/opt/s/scratch", ("size=64k",), "tmpfs"),
    ]
    before = oracle.content_only(oracle.snapshot(root)).keys() | {"opt", "proc"}

    def body(operations: list[Operation]) -> int:
        failures = 0
        for spare in range(40):
            transaction = Transaction()
            fd.hold_reserve(procfs.handle())
            limit = filled() + spare
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, 4096))
            try:
                for operation in operations:
                    transaction.perform("inject", operation)
            except HookError as e:
                assert "EMFILE" in e.message  # noqa: PT017
                failures += 1
            else:
                return failures
            finally:
                fd.free_reserve()
                transaction.undo()
                resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
                assert lines(root) == []
                assert {str(p.relative_to(root)) for p in (root / "opt").rglob("*")} == {"opt/file"}
            prepared = edits.Prepared(ContainerEdits(mounts=tuple(wanted)), Place(OUTSIDE))
            operations = prepared.operations(namespaced.make_container(root, OUTSIDE))
        raise AssertionError("never enough")

    assert in_container(root, kernel, wanted, body) > 3
    assert oracle.content_only(oracle.snapshot(root)).keys() <= before


ANOTHER = {
    "flags": (("ro", "nosuid"), "size=64k", "rw,nosuid"),
    "size": (("size=1m", "nosuid"), "size=64k", "nosuid"),
    "mode": (("size=64k", "mode=700", "nosuid"), "size=64k", "nosuid"),
}


@pytest.mark.parametrize("case", ANOTHER)
@pytest.mark.parametrize("kernel", [KERNELS[0], KERNELS[3]], ids=lambda k: k.name)
def test_an_engines_tmpfs_of_our_name_with_other_options_is_covered(
    thing: Thing, root: Path, kernel: Kernel, case: str
) -> None:
    options, data, flags = ANOTHER[case]
    setup = f"mkdir -p {root}/opt/t; mount -t tmpfs -o {flags},{data} nvoci {root}/opt/t"

    def body(operations: list[Operation]) -> int:
        execute(operations)
        wanted = ContainerEdits(mounts=(Mount("tmpfs", "/opt/t", options, "tmpfs"),))
        execute(edits.Prepared(wanted, Place(OUTSIDE)).operations(namespaced.make_container(root, OUTSIDE)))
        return len(lines(root))

    assert in_container(root, kernel, [Mount("tmpfs", "/opt/t", options, "tmpfs")], body, setup=setup) == 2


# -- what others may have put there -----------------------------------------------------------------------------------


def shared(thing: Thing) -> Path:
    """A directory of the host's in one that everybody may write."""
    (thing.folder / "tmp/own").mkdir(parents=True)
    (thing.folder / "tmp").chmod(0o1777)
    (thing.folder / "tmp/x").symlink_to("../data")
    return thing.folder / "tmp/own"


@pytest.mark.security
@pytest.mark.parametrize("name", ["tmp/x", "tmp/x/sub"])
def test_no_link_of_a_directory_for_everybody_is_followed(thing: Thing, name: str) -> None:
    shared(thing)
    with pytest.raises(HookError) as caught:
        open_source(thing.host(name), mountopts.parse(("rbind",)))
    assert caught.value.line() == (
        f"mount {thing.host(name)}: ELOOP: leads through a link in a directory that others may write "
        "(name in the specification what it leads to)"
    )


@pytest.mark.security
@pytest.mark.parametrize("kernel", [KERNELS[0], KERNELS[3]], ids=lambda k: k.name)
def test_in_a_race_for_a_directory_no_other_is_taken(thing: Thing, kernel: Kernel) -> None:
    own = shared(thing)
    wanted = own.stat().st_ino

    def body() -> set[int]:
        kernel.start()
        found: set[int] = set()
        for _ in range(1000):
            try:
                with open_source(str(own), mountopts.parse(("rbind",))) as source:
                    found.add(source.object.stat().st_ino)
            except HookError as e:
                if guarded.LINK not in e.message:
                    raise
        return found

    with Flipper(own, own.with_name("x")) as flipper:
        assert namespaced.isolated(body) <= {wanted}
        assert flipper.rounds > 10
