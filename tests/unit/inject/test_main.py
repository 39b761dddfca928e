"""inject as a process: which devices, from which specifications, and what it says where it cannot."""

from __future__ import annotations

import os
import re
from pathlib import Path
from resource import RLIMIT_NOFILE, setrlimit
from typing import Any

import pytest
from lib import hookproc, oracle, proc
from lib.hookproc import FakeContainer
from unit.hook.hooktools import one_error
from unit.inject.thing import KIND, LIB, Json, Thing, hook

from nvoci.cdi import specdir
from nvoci.cdi.error import SpecError
from nvoci.errors import HookError
from nvoci.hook import options, table
from nvoci.hook.settings import Settings
from nvoci.inject import main

PATHS = (LIB, "/opt/vendor/data")


def edits(thing: Thing) -> Json:
    return {"mounts": [thing.mount("libthing.so", LIB, "ro", "nosuid", "nodev", "rbind", "rprivate")]}


def seen(container: FakeContainer) -> dict[str, list[str]]:
    """path -> options of each mount there, as mountinfo has them."""
    top = str(container.rootfs)
    found: dict[str, list[str]] = {}
    for line in container.mountinfo():
        words = line.split()
        if words[4].startswith(f"{top}/opt"):
            found.setdefault(words[4].removeprefix(top), []).append(words[5].replace(",relatime", ""))
    return found


def inject(container: FakeContainer, words: list[str], **how: Any) -> proc.Result:
    result = hookproc.run_hook(words, container=container, **how)
    assert "internal error" not in result.stderr, result.stderr
    assert (result.survivors, result.timed_out) == ([], False)
    return result


# --- which devices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["createRuntime", "prestart", "createContainer"])
@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_a_device_is_mounted_at_every_stage(thing: Thing, root: Path, stage: Any, runtime: str) -> None:
    thing.write({"a": edits(thing)})
    with FakeContainer(root) as container:
        result = inject(container, thing.words(), stage=stage, runtime=runtime)
        assert (result.rc, result.stderr) == (0, "")
        assert seen(container) == {LIB: ["ro,nosuid,nodev"]}
        assert container.run(["/bin/true"]).rc != 0  # the image has no programs: nothing in it was run
        assert container.read(LIB) == b"thing one\n"


def test_common_edits_are_made_once_and_each_device_s_own(thing: Thing, root: Path) -> None:
    common = {"mounts": [thing.mount("libthing.so", LIB)]}
    devices = {n: {"mounts": [thing.mount("tool", f"/opt/{n}/tool")]} for n in "abc"}
    thing.write(devices, common)
    with FakeContainer(root) as container:
        assert inject(container, thing.words("a", "c", "a")).rc == 0
        assert sorted(seen(container)) == ["/opt/a/tool", "/opt/c/tool", LIB]


def test_devices_in_one_option_and_a_later_directory_wins(thing: Thing, root: Path) -> None:
    first = Thing()
    first.write({n: {"mounts": [thing.mount("tool", f"/opt/first-{n}")]} for n in "ab"})
    thing.write({"a": {"mounts": [thing.mount("tool", "/opt/second")]}})
    words = ["inject", "--device", f"{KIND}=a,{KIND}=b", "--spec-dir", f"{first.specs},{thing.specs}"]
    with FakeContainer(root) as container:
        assert inject(container, words).rc == 0
        assert sorted(seen(container)) == ["/opt/first-b", "/opt/second"]


def test_without_spec_dir_the_usual_directories_are_read(thing: Thing, root: Path) -> None:
    thing.write({"a": edits(thing)})
    setup = f"mount -t tmpfs -o mode=755 none /etc/cdi || {{ mkdir /etc/cdi; }}; cp {thing.specs}/* /etc/cdi"
    overlay = f"mount -t overlay -o lowerdir=/etc,upperdir={root.parent}/up,workdir={root.parent}/work none /etc"
    for name in ("up", "work"):
        (root.parent / name).mkdir()
    with FakeContainer(root) as container:
        setup = f"{overlay}\nmkdir -p /etc/cdi; chmod 755 /etc/cdi; cp {thing.specs}/* /etc/cdi"
        result = inject(container, ["inject", "--device", f"{KIND}=a"], setup=setup)
        assert (result.rc, result.stderr) == (0, "")
        assert list(seen(container)) == [LIB]


ANNOTATIONS = {
    "one": ({"cdi.k8s.io/plugin_0": f"{KIND}=a"}, ["/opt/a"]),
    "several": (
        {"cdi.k8s.io/p_0": f"{KIND}=a,{KIND}=b", "cdi.k8s.io/p_1": f"{KIND}=c"},
        ["/opt/a", "/opt/b", "/opt/c"],
    ),
    "twice the same": ({"cdi.k8s.io/p_0": f"{KIND}=a", "cdi.k8s.io/p_1": f"{KIND}=a"}, ["/opt/a"]),
    "others": ({"cdi": f"{KIND}=a", "io.example/x": "y"}, []),
    "none": ({}, []),
}


@pytest.mark.parametrize("case", ANNOTATIONS)
def test_annotations_ask_for_devices(thing: Thing, root: Path, case: str) -> None:
    annotations, expected = ANNOTATIONS[case]
    thing.write({n: {"mounts": [thing.mount("tool", f"/opt/{n}")]} for n in "abc"})
    words = ["inject", "--from-annotations", "--spec-dir", str(thing.specs)]
    with FakeContainer(root) as container:
        result = inject(container, words, state={**container.state(), "annotations": annotations})
        assert (result.rc, result.stderr, sorted(seen(container))) == (0, "", expected)


def test_annotations_count_only_when_asked_for_and_add_to_the_devices_named(thing: Thing, root: Path) -> None:
    thing.write({n: {"mounts": [thing.mount("tool", f"/opt/{n}")]} for n in "ab"})
    annotations = {"annotations": {"cdi.k8s.io/p_0": f"{KIND}=b"}}
    with FakeContainer(root) as container:
        assert inject(container, thing.words("a"), state={**container.state(), **annotations}).rc == 0
        assert sorted(seen(container)) == ["/opt/a"]
        words = thing.words("a", options=["--from-annotations"])
        assert inject(container, words, state={**container.state(), **annotations}).rc == 0
        assert sorted(seen(container)) == ["/opt/a", "/opt/b"]


BAD_ANNOTATIONS = {
    "not qualified": ("gpu0", "annotation cdi.k8s.io/p_0: `gpu0` is no qualified name"),
    "one of several": (f"{KIND}=a,", "annotation cdi.k8s.io/p_0"),
    "a number": (7, "annotation cdi.k8s.io/p_0: not a string"),
    "unknown": (f"{KIND}=zz", f"unresolvable CDI devices {KIND}=zz"),
}


@pytest.mark.parametrize("case", BAD_ANNOTATIONS)
def test_a_bad_annotation_is_one_error(thing: Thing, root: Path, case: str) -> None:
    value, words = BAD_ANNOTATIONS[case]
    thing.write({"a": edits(thing)})
    with FakeContainer(root) as container:
        state = {**container.state(), "annotations": {"cdi.k8s.io/p_0": value}}
        given = ["inject", "--from-annotations", "--spec-dir", str(thing.specs)]
        assert words in one_error(inject(container, given, state=state))
        assert seen(container) == {}


# --- what is wrong with the command line ----------------------------------------------------------------------------

USAGE = {
    "no device": ([], "inject: no device"),
    "not qualified": (["--device", "gpu0"], "inject: `gpu0` is no qualified name"),
    "empty": (["--device", f"{KIND}=a,"], "inject: `` is no qualified name"),
    "relative directory": (["--device", f"{KIND}=a", "--spec-dir", "cdi"], "--spec-dir cdi: not an absolute path"),
    "unknown flag": (["--devices", "x"], "flag provided but not defined"),
}


@pytest.mark.parametrize("case", USAGE)
def test_a_wrong_command_line_is_one_error_before_the_state_is_read(case: str) -> None:
    words, expected = USAGE[case]
    assert expected in one_error(hookproc.run_hook(["inject", *words], b"no state"))


def test_prepare_reads_no_specification() -> None:
    """So that an entry of a hooks directory can be made before the driver is there."""
    parsed = options.parse_hook(table.HOOKS["inject"], ["--device", f"{KIND}=a", "--spec-dir", "/none"])
    assert main.prepare(parsed, Settings()).devices == [f"{KIND}=a"]
    with pytest.raises(HookError, match="no device"):
        main.prepare(options.parse_hook(table.HOOKS["inject"], []), Settings())


# --- what is wrong with specifications ------------------------------------------------------------------------------


def test_an_unknown_device_is_told_with_those_that_there_are(thing: Thing, root: Path) -> None:
    thing.write({"a": edits(thing), "b": edits(thing)})
    with FakeContainer(root) as container:
        line = one_error(inject(container, thing.words("a", "x", "y")))
    assert f"inject: unresolvable CDI devices {KIND}=x, {KIND}=y ({thing.specs}: {KIND}=a, {KIND}=b)" in line


def test_no_specification_at_all(thing: Thing, root: Path) -> None:
    with FakeContainer(root) as container:
        assert "there is no device" in one_error(inject(container, thing.words()))


def bad_file(thing: Thing, kind: str) -> str:
    """Make one; what its line says."""
    path = thing.write({"a": edits(thing)})
    if kind == "writable by all":
        path.chmod(0o666)
        return f"CDI spec {path}: "
    if kind == "of another owner":
        os.chown(path, 1000, 1000)
        return f"CDI spec {path}: owned by uid 1000"
    if kind == "directory writable by all":
        thing.specs.chmod(0o777)
        return f"CDI spec {thing.specs}: "
    if kind == "malformed":
        path.write_text("{")
        return f"CDI spec {path}: "
    if kind == "not valid":
        thing.write({"a": {"env": ["x"]}})
        return f"CDI spec {path}: devices[0].containerEdits.env[0]: "
    path.unlink()
    os.mkfifo(path)
    return f"CDI spec {path}: "


@pytest.mark.parametrize(
    "kind", ["writable by all", "of another owner", "directory writable by all", "malformed", "not valid", "fifo"]
)
def test_a_bad_file_is_a_line_of_its_own_and_its_devices_are_unknown(thing: Thing, root: Path, kind: str) -> None:
    expected = bad_file(thing, kind)
    with FakeContainer(root) as container:
        result = inject(container, thing.words(), timeout=5)
        assert (result.rc, seen(container)) == (1, {})
    lines = result.stderr.splitlines()
    assert [re.search(r"level=(\w+)", line)[1] for line in lines] == ["warning", "error"]  # type: ignore[index]
    assert f"inject: {expected}" in lines[0]
    assert f"unresolvable CDI devices {KIND}=a" in lines[1]


def test_a_bad_file_of_others_does_not_matter_to_a_device_that_is_found(thing: Thing, root: Path) -> None:
    thing.write({"a": edits(thing)})
    (thing.specs / "other.json").write_text("{")
    with FakeContainer(root) as container:
        result = inject(container, thing.words())
        assert (result.rc, result.stderr, list(seen(container))) == (0, "", [LIB])


# edits -> the place in the specification, and what is said of it
MISSING: dict[str, tuple[Json, str]] = {
    "mount": (
        {"mounts": [{"hostPath": "/none/x", "containerPath": "/x", "options": ["ro"]}]},
        "devices[1].containerEdits.mounts[0].hostPath: /none/x: ENOENT",
    ),
    "relative mount": (
        {"mounts": [{"hostPath": "none", "containerPath": "/x"}]},
        "devices[1].containerEdits.mounts[0].hostPath: mount none: not an absolute path",
    ),
    "node": (
        {"deviceNodes": [{"path": "/dev/none"}]},
        "devices[1].containerEdits.deviceNodes[0]: device node /dev/none: ENOENT",
    ),
    "mount on the root": (
        {"mounts": [{"hostPath": "/etc", "containerPath": "/./", "options": ["ro"]}]},
        "devices[1].containerEdits.mounts[0].containerPath: /./: the container's root",
    ),
    "mount at a path with ..": (
        {"mounts": [{"hostPath": "/etc", "containerPath": "/none/../opt/x"}]},
        "devices[1].containerEdits.mounts[0].containerPath: /none/../opt/x: `..` in a path",
    ),
    "node at a path with ..": (
        {"deviceNodes": [{"path": "/dev/../zero", "hostPath": "/dev/zero"}]},
        "devices[1].containerEdits.deviceNodes[0].path: /dev/../zero: `..` in a path",
    ),
    "node on the root": (
        {"deviceNodes": [{"path": "//", "hostPath": "/dev/zero"}]},
        "devices[1].containerEdits.deviceNodes[0].path: //: the container's root",
    ),
    "hook": (
        {"hooks": [hook("createRuntime", "/none/hook")]},
        "devices[1].containerEdits.hooks[0].path: run /none/hook: ENOENT",
    ),
}


@pytest.mark.parametrize("limit", [8, 9, 10])
def test_too_few_descriptors_are_named_and_not_taken_for_no_device(thing: Thing, root: Path, limit: int) -> None:
    """At the first of these numbers the directory cannot be opened."""
    thing.write({"a": edits(thing)})
    with FakeContainer(root) as container:
        line = one_error(inject(container, thing.words(), preexec=lambda: setrlimit(RLIMIT_NOFILE, (limit, limit))))
        assert seen(container) == {}
    assert "EMFILE (raise " in line


@pytest.mark.parametrize("number", ["EMFILE", "ENFILE"])
def test_a_file_that_could_not_be_opened_may_be_the_one_that_counts(number: str) -> None:
    registry = specdir.Registry(["/none"])
    registry.errors["/etc/cdi/b.json"] = [SpecError(number, file="/etc/cdi/b.json")]
    with pytest.raises(HookError, match=f"inject: CDI spec /etc/cdi/b.json: {number}") as error:
        main._resolve(registry, [])
    assert error.value.hint.startswith("raise the limit of open files")


@pytest.mark.parametrize("case", MISSING)
def test_what_the_host_does_not_have_is_told_with_its_place(thing: Thing, root: Path, case: str) -> None:
    bad, expected = MISSING[case]
    path = thing.write({"b": edits(thing), "a": bad})
    before = oracle.snapshot(root)
    with FakeContainer(root) as container:
        assert f"inject: CDI spec {path}: {expected}" in one_error(inject(container, thing.words("b", "a")))
        assert seen(container) == {}
    assert [c for c in oracle.changes(before, oracle.snapshot(root)) if "mtime" not in c] == []
