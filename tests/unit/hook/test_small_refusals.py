"""Refusals of hooks that take one call: each is one line that names what could not be done."""

from __future__ import annotations

import os
import posix
from collections.abc import Iterator
from errno import EACCES, EBUSY, EIO, ELOOP, ENOENT, ENOMEM
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kernel.refusal import descriptors_closed, refusing
from lib import rootfs as trees

from nvoci import log
from nvoci.errors import HookError
from nvoci.hook import cachefile, devices, grant, ldconfig, logs, migcaps, mount_mig_devices, noop
from nvoci.hook.container import HOST, INSIDE
from nvoci.hook.mount_mig_devices import Request
from nvoci.hook.settings import Settings
from nvoci.linux import confine, mount, procfs, syslog
from nvoci.linux.devicerule import DeviceRule
from nvoci.linux.fd import Fd
from nvoci.linux.rootfs import Rootfs
from nvoci.linux.syscalls import memfd_create

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    procfs.handle()  # which stays open
    with descriptors_closed():
        yield


OURS = [DeviceRule("c", 195, n) for n in range(8)]


@pytest.fixture
def warnings(monkeypatch: Patch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(log, "_sinks", [(log.WARNING, lines.append)])
    return lines


def _container(root: Path, **settings: Any) -> Any:
    made = Settings()
    for name, value in settings.items():
        setattr(made, name, value)
    return SimpleNamespace(rootfs=Rootfs.open(str(root)), settings=made, place=INSIDE, mount_label="")


# -- logs -------------------------------------------------------------------------------------------------------------


def test_syslog_gets_lines_of_the_level_that_the_settings_name(monkeypatch: Patch) -> None:
    said: list[str] = []
    monkeypatch.setattr(log, "_sinks", [])
    monkeypatch.setattr(syslog, "connect", lambda: said.append("connected"))
    monkeypatch.setattr(syslog, "write", said.append)
    settings = Settings()
    settings.log_syslog, settings.log_level = True, "error"
    logs.open_logs(settings)
    log.warning("not this")
    log.error("this")
    assert said[0] == "connected"
    assert len(said) == 2
    assert 'level=error msg="this"' in said[1]


# -- ld.so.cache ------------------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return trees.tree(tmp_path / "rootfs", "dir etc\ndir proc\ndir usr/lib\nfile usr/lib/libx.so.1.2 x\n")


@pytest.mark.parametrize("missing", ["nothing", "the file", "the directory"])
def test_a_read_only_root_without_a_cache(image: Path, warnings: list[str], monkeypatch: Patch, missing: str) -> None:
    monkeypatch.setattr(cachefile, "is_read_only", lambda rootfs, path: True)
    if missing == "nothing":
        (image / "etc/ld.so.cache").write_text("same")
    elif missing == "the directory":
        (image / "etc").rmdir()
    assert cachefile.put(_container(image), cachefile.CACHE, b"same", 0o644, "it") == []
    assert len(warnings) == (missing != "nothing")
    if missing != "nothing":
        assert "/etc/ld.so.cache: not there, and the root is read-only" in warnings[0]
        with pytest.raises(HookError, match="not there, and the root is read-only"):
            cachefile.put(_container(image, strict=True), cachefile.CACHE, b"same", 0o644, "it")


def test_musl_reads_no_cache(image: Path, warnings: list[str], monkeypatch: Patch) -> None:
    monkeypatch.setattr(cachefile, "is_read_only", lambda rootfs, path: True)
    (image / "etc/alpine-release").write_text("3.20\n")
    assert cachefile.publish(_container(image), b"cache") == []
    assert warnings == []
    (image / "etc/ld.so.cache").write_text("old")
    assert [type(each).__name__ for each in cachefile.publish(_container(image), b"cache")] == ["GeneratedMount"]


def test_a_cache_that_cannot_be_read_is_one_line(image: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(cachefile, "is_read_only", lambda rootfs, path: True)
    monkeypatch.setattr(Rootfs, "read_file", refusing(Rootfs.read_file, EIO))
    with pytest.raises(HookError, match=r"^read etc/ld.so.cache: EIO"):
        cachefile.put(_container(image), cachefile.CACHE, b"", 0o644, "it")


def test_what_is_missing_is_as_the_root(image: Path, monkeypatch: Patch) -> None:
    opened = Rootfs.open(str(image))
    assert not cachefile.is_read_only(opened, b"none/x")
    monkeypatch.setattr(Rootfs, "lookup", refusing(Rootfs.lookup, ELOOP))
    with pytest.raises(OSError, match="symbolic links"):
        cachefile.is_read_only(opened, b"etc")


# -- ldconfig ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "reason"), [("", "must be specified"), ("sbin/ldconfig", "not an absolute path"),
                                              ("/etc/passwd", "no ELF magic"), ("/a\0b", "ldconfig")])  # fmt: skip
def test_an_ldconfig_that_is_none(path: str, reason: str) -> None:
    with pytest.raises(HookError, match=reason):
        ldconfig.load_program(path)


RESULTS: dict[str, tuple[dict[str, Any], str]] = {
    "late": ({"timed_out": True}, r"not finished after \d+ s, and killed"),
    "status": ({"status": 3, "stderr": b"(x)\nldconfig: oh\n/x: Can't stat /none\n"}, "exit status 3: ldconfig: oh$"),
    "silent": ({"status": 1, "stderr": b"\n(x)\n"}, "exit status 1$"),
    "signal": ({"status": -11}, "killed by signal 11$"),
    "long": ({"status": 0, "truncated": True}, "its list of libraries is longer than 32 MiB"),
    "no cache": ({"status": 0}, "the cache it wrote is invalid"),
    "bad cache": ({"status": 0, "outputs": {b"ld.so.cache": b"x" * 100}}, "the cache it wrote is invalid"),
    "no filter": ({"status": 0, "filtered": False}, "the cache it wrote is invalid"),
}


@pytest.mark.parametrize("case", RESULTS)
def test_an_ldconfig_that_goes_wrong(image: Path, warnings: list[str], monkeypatch: Patch, case: str) -> None:
    fields, reason = RESULTS[case]
    result = confine.Result()
    for name, value in fields.items():
        setattr(result, name, value)
    monkeypatch.setattr(confine, "run", lambda *args, **named: result)
    with Fd(memfd_create(b"x", 0)) as fd:
        run = ldconfig.RunLdconfig(_container(image), confine.Program(fd, "/sbin/ldconfig"), [b"/usr/lib"])
        with pytest.raises(HookError, match=f"^run /sbin/ldconfig: {reason}"):
            run._run()
    assert ["no seccomp filter" in line or "takes no seccomp" in line for line in warnings] == [True] * (
        case == "no filter"
    )


LINKS = b"/usr/lib: (from x:1)\n\tlibx.so.1 -> libx.so.1.2\n"


@pytest.mark.parametrize(
    "there", ["nothing", "the right link", "a file", "a link elsewhere", "a link to it", "no file"]
)
def test_which_links_of_its_list_are_wanted(image: Path, there: str) -> None:
    link = image / "usr/lib/libx.so.1"
    if there == "the right link":
        link.symlink_to("libx.so.1.2")
    elif there == "a file":
        link.write_text("own")
    elif there == "a link elsewhere":
        link.symlink_to("other")
    elif there == "a link to it":
        link.symlink_to("/usr/lib/libx.so.1.2")
    elif there == "no file":
        (image / "usr/lib/libx.so.1.2").unlink()
    found = [each.link for each in ldconfig.wanted_links(Rootfs.open(str(image)), LINKS)]
    assert found == ([b"/usr/lib/libx.so.1"] if there in ("nothing", "a link elsewhere") else [])


@pytest.mark.parametrize("call", ["readlink", "stat"])
def test_links_that_cannot_be_looked_at_are_one_line(image: Path, monkeypatch: Patch, call: str) -> None:
    opened = Rootfs.open(str(image))
    opened.dir(b"/usr/lib").fileno()
    if call == "readlink":
        monkeypatch.setattr(posix, "readlink", refusing(posix.readlink, EIO))
    else:
        monkeypatch.setattr(Rootfs, "stat", refusing(Rootfs.stat, EIO))
    with pytest.raises(HookError, match=r"^look at /usr/lib/libx.so.1.2: EIO"):
        list(ldconfig.wanted_links(opened, LINKS))


# -- device rules -----------------------------------------------------------------------------------------------------


class _Cgroup:
    def __init__(self, *errors: str) -> None:
        self.errors = errors
        self.undone = 0

    def allow(self, rules: Any) -> None:
        if "allow" in self.errors:
            raise HookError("no", "as told")

    def undo(self) -> None:
        self.undone += 1
        if "undo" in self.errors:
            raise HookError("not undone", "as told")


def test_where_the_runtime_is_not_seen_only_what_is_allowed_already_is(monkeypatch: Patch) -> None:
    def runtime() -> Fd:
        raise HookError("find the runtime: none")

    monkeypatch.setattr(grant.enter, "runtime", runtime)
    for cgroup in (_Cgroup(), _Cgroup("allow")):
        monkeypatch.setattr(grant, "_cgroup_of", lambda *args, cgroup=cgroup, **named: cgroup)
        give = grant.GiveHere(OURS, INSIDE)
        if cgroup.errors:
            with pytest.raises(HookError, match="is not seen from here: find the runtime: none"):
                give.execute(None)  # type: ignore[arg-type]
        else:
            give.execute(None)  # type: ignore[arg-type]
        give.undo()
        assert cgroup.undone == 1


def test_without_a_container_there_is_nobody_to_allow_it_to() -> None:
    with pytest.raises(HookError, match=r"^allow c 195:0 rw, .* and 2 more: there is no container"):
        grant.GiveHere(OURS, HOST)
    grant.GiveHere(OURS, INSIDE).undo()


def _ask(answer: bytes, rules: list[DeviceRule]) -> None:
    read, write = os.pipe()
    report = os.open("/dev/null", os.O_WRONLY)
    os.write(write, answer)
    os.close(write)
    with Fd(read) as end:
        try:
            grant._Ask(rules, report, end).execute(None)  # type: ignore[arg-type]
        finally:
            os.close(report)


def test_what_a_parent_answers(monkeypatch: Patch) -> None:
    _ask(b"+", OURS)
    with pytest.raises(HookError, match=r"the parent is gone"):
        _ask(b"", OURS)
    with pytest.raises(HookError, match=r"^no$"):
        _ask(b"no\0hint", OURS)
    with pytest.raises(HookError, match="too many devices for one container"):
        _ask(b"", OURS * 1000)
    monkeypatch.setattr(grant, "_ANSWER_MAX", 4)
    with pytest.raises(HookError, match="ask the parent: EFBIG"):
        _ask(b"x" * 100, OURS)


def _giver(cgroup: _Cgroup | None) -> grant.Giver:
    giver = grant.Giver(-1, -1)
    giver._cgroup = cgroup  # type: ignore[assignment]
    return giver


def test_what_is_asked_for_twice_or_of_a_worker_that_is_gone(warnings: list[str]) -> None:
    giver = _giver(_Cgroup("undo"))
    assert giver.feed(b"0\0") == b"0\0"
    assert giver.feed(b"+c 195:0 rw") == b"+c 195:0 rw"
    giver._answer.close()
    os.set_inheritable(giver._question.fileno(), False)
    giver._question.close()
    giver.undo()
    giver.undo()
    assert "undo device rules: not undone" in warnings[0]
    twice = _giver(None)
    assert twice.feed(b"+c 195:0 rw\nrest") == b"rest"
    assert os.read(twice._answer.fileno(), 1000).startswith(b"device rules: internal error: asked for twice\0")
    gone = _giver(_Cgroup())
    gone._answer.close()
    assert gone.feed(b"+c 195:0 rw\n") == b""


def test_a_parent_that_cannot_load_what_it_needs_says_so_when_asked(monkeypatch: Patch) -> None:
    def load() -> None:
        raise ImportError("half installed")

    monkeypatch.setattr(grant, "load", load)
    monkeypatch.setattr(grant.process, "seal_imports", lambda: None)
    giver = _giver(None)
    answer = os.dup(giver._answer.fileno())
    giver.in_parent()
    assert giver.feed(b"+c 195:0 rw\n") == b""
    said = os.read(answer, 1000)
    os.close(answer)
    assert said == b"device rules: load nvoci.linux.cgroup: ImportError: half installed\0reinstall nvoci"


# -- MIG --------------------------------------------------------------------------------------------------------------


def test_a_root_without_devices_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HookError, match=f"^open {tmp_path}/none: ENOENT"):
        migcaps.Host(str(tmp_path / "none"))


def _host(root: Path) -> migcaps.Host:
    host = migcaps.Host(str(root))
    host.major = 235
    return host


def test_nodes_that_cannot_be_made_ready_are_one_line(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(migcaps, "_open", lambda *args: Fd(os.open("/etc/passwd", os.O_PATH)))
    monkeypatch.setattr(mount, "clone", refusing(mount.clone, ENOMEM))
    with _host(tmp_path) as host, pytest.raises(HookError, match=r"^mount /proc/driver/nvidia/capabilities: ENOMEM"):
        host.management(["config"])
    with Fd(os.open("/etc", os.O_PATH)) as fd:
        assert fd.stat()


@pytest.mark.parametrize("what", ["node", "directory"])
def test_a_host_that_lacks_its_nodes_is_one_line(tmp_path: Path, monkeypatch: Patch, what: str) -> None:
    monkeypatch.setattr(migcaps, "_open", lambda *args: Fd(os.open("/etc/passwd", os.O_PATH)))
    monkeypatch.setattr(migcaps, "_ready", lambda *args: None)
    monkeypatch.setattr(migcaps.Host, "rules", lambda *args: [])
    with _host(tmp_path) as host:
        if what == "directory":
            with pytest.raises(HookError, match=r"^use devices /dev/nvidia-caps: ENOENT"):
                host.management(["config"], [0])
            return
        monkeypatch.setattr(host.__class__, "_open_node", lambda *args: _refused())
        with pytest.raises(HookError, match=r"^use device /dev/nvidia-caps/nvidia-cap7: EBUSY"):
            host._node(b"x", ("c", 235, 7))


def _refused() -> Any:
    raise OSError(EBUSY, os.strerror(EBUSY))


def test_a_driver_without_nodes_has_no_rules(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(migcaps, "_open", lambda *args: Fd(os.open("/etc/passwd", os.O_PATH)))
    monkeypatch.setattr(migcaps, "_ready", lambda *args: None)
    with _host(tmp_path) as host:
        host.major = None
        assert host.rules(["config"], [0]) == []
        managed = host.management(["config"])
        assert (managed.nodes, managed.rules) == (None, [])
        assert host.check(b"x") is None


def test_what_procfs_does_not_tell_is_one_line(monkeypatch: Patch) -> None:
    assert migcaps.has_nodes() in (True, False)
    monkeypatch.setattr(procfs, "read", refusing(procfs.read, EACCES))
    with pytest.raises(HookError, match=r"^read /proc/devices: EACCES"):
        migcaps.has_nodes()
    monkeypatch.setattr(procfs, "reopen", refusing(procfs.reopen, EIO))
    monkeypatch.setattr(migcaps, "_open", lambda *args: Fd(os.open("/etc/passwd", os.O_PATH)))
    with pytest.raises(HookError, match=r"^list GPUs /proc/driver/nvidia/gpus: EIO"):
        migcaps.present_gpus()


def test_managing_mig_needs_a_privileged_container(tmp_path: Path) -> None:
    request = Request([], [migcaps.CONFIG], None, str(tmp_path), allow=True)
    with pytest.raises(HookError, match=f"^{mount_mig_devices.NAME}: --config: the container is not privileged"):
        request.steps(SimpleNamespace(bundle=""), None)  # type: ignore[arg-type]


# -- nodes ------------------------------------------------------------------------------------------------------------


def test_a_file_that_is_gone_needs_no_undo(tmp_path: Path) -> None:
    trees.tree(tmp_path / "r", "file made\n")
    directory = Rootfs.open(str(tmp_path / "r")).dir(b"")
    new = devices._New(directory, b"made", (tmp_path / "r/made").stat())
    (tmp_path / "r/made").unlink()
    new.remove()
    (tmp_path / "r/made").write_text("another's")
    new.remove()
    assert (tmp_path / "r/made").read_text() == "another's"


def test_the_owner_above_is_that_of_the_innermost_directory(tmp_path: Path, monkeypatch: Patch) -> None:
    trees.tree(tmp_path / "r", "dir dev\nowner dev 7 8\n")
    opened = Rootfs.open(str(tmp_path / "r"))
    assert devices._owner_above(opened, b"/dev/a/b/c") == (7, 8)
    assert devices._owner_above(opened, b"/none/x") == (os.getuid(), os.getgid())
    monkeypatch.setattr(Rootfs, "lookup", refusing(Rootfs.lookup, ENOENT))
    with pytest.raises(FileNotFoundError):
        devices._owner_above(opened, b"/dev/a")


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_a_hook_that_does_nothing() -> None:
    assert noop.prepare({}, Settings()) is None
    assert noop.plan(None, None) == []  # type: ignore[arg-type]
