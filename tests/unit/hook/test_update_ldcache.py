"""update-ldcache: which engine, which ldconfig is trusted, what is planned, what is believed of ldconfig's output."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from lib import elfmaker
from lib.rootfs import tree

from nvoci.errors import HookError
from nvoci.hook import ldconfig
from nvoci.hook import update_ldcache as hook
from nvoci.hook.ldconfig import parse_output
from nvoci.hook.operations import MakeLink, RemoveFile, WriteFile
from nvoci.hook.preview import Preview
from nvoci.hook.settings import ENGINES, Settings
from nvoci.linux import abi
from nvoci.linux.rootfs import Rootfs
from tests.kernel.namespaced import make_container

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="ldconfig must belong to root")
CONF = "file etc/ld.so.conf include /etc/ld.so.conf.d/*.conf\\n"


def options(*folders: str, ldconfig: str = "/sbin/ldconfig", engine: str = "") -> dict[str, Any]:
    return {"folder": list(folders), "engine": engine, "ldconfig-path": ldconfig}


def program(path: Path) -> Any:
    """The ldconfig that was taken, where it is the engine."""
    return hook.prepare(options(ldconfig=str(path), engine="ldconfig"), Settings()).program


def static(path: Path, mode: int = 0o755) -> Path:
    shutil.copy("/bin/busybox", path)
    path.chmod(mode)
    return path


# -- which engine -----------------------------------------------------------------------------------------------


def settings(engine: str) -> Settings:
    found = Settings()
    found.ldcache_engine = engine
    return found


CHOICES = {
    "default": ("", Settings().ldcache_engine, "builtin"),
    "flag": ("ldconfig", "builtin", "ldconfig"),
    "settings": ("", "ldconfig", "ldconfig"),
    "flag against settings": ("builtin", "ldconfig", "builtin"),
}


@pytest.mark.parametrize(("flag", "configured", "wanted"), CHOICES.values(), ids=CHOICES)
def test_engine_is_chosen_by_the_flag_then_by_the_settings(flag: str, configured: str, wanted: str) -> None:
    found = hook.prepare(options(engine=flag), settings(configured)).program
    assert ("builtin" if found is None else "ldconfig") == wanted


def test_unknown_engine_is_one_error_that_names_the_known_ones() -> None:
    with pytest.raises(HookError, match="engine `magic` is not known") as e:
        hook.prepare(options(engine="magic"), Settings())
    assert "builtin, ldconfig" in e.value.line()


def test_builtin_engine_does_not_look_for_an_ldconfig(tmp_path: Path) -> None:
    """A node without one is served, too; only an empty path is the references' error."""
    assert hook.prepare(options(ldconfig=str(tmp_path / "none")), Settings()).program is None


def test_engine_is_not_chosen_by_what_the_image_holds(tmp_path: Path) -> None:
    """A cache that cannot be read never makes the other engine run."""
    tree(tmp_path, CONF + "\nfile etc/ld.so.cache nonsense")
    for engine, last in (("builtin", WriteFile), ("ldconfig", ldconfig.RunLdconfig)):
        operations = hook.plan(hook.prepare(options(engine=engine), Settings()), make_container(tmp_path))
        assert [type(o) for o in operations] == [RemoveFile, WriteFile, last]


# -- which ldconfig ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_empty_path_is_the_references_error(engine: str) -> None:
    with pytest.raises(HookError, match="ldconfig-path must be specified"):
        hook.prepare(options(ldconfig="", engine=engine), Settings())


def test_real_beside_it_is_preferred(tmp_path: Path) -> None:
    (tmp_path / "ldconfig").write_text("#!/bin/sh\n")
    real = static(tmp_path / "ldconfig.real")
    for given in ("ldconfig", "ldconfig.real"):
        assert program(tmp_path / given).name == str(real)


def test_real_that_is_not_there_falls_back_to_the_plain_name(tmp_path: Path) -> None:
    plain = static(tmp_path / "ldconfig")
    assert program(Path(f"{plain}.real")).name == str(plain)


def bad_ldconfig(kind: str, path: Path) -> None:
    if kind == "script":
        path.write_text("#!/bin/sh\n")
    elif kind == "empty":
        path.touch()
    elif kind == "dynamic":
        shutil.copy("/bin/sh" if not os.path.islink("/bin/sh") else os.path.realpath("/bin/sh"), path)
    elif kind == "another machine":
        elfmaker.make_so(path, machine="s390x")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to("none")
    else:
        static(path, {"writable by others": 0o777, "writable by its group": 0o775}.get(kind, 0o755))
    if kind == "of another owner":
        os.chown(path, 1234, 0)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("script", "no ELF magic"), ("empty", "no ELF magic"), ("dynamic", "not a static program"),
        ("another machine", "not a static program"), ("fifo", "EINVAL"), ("directory", "EINVAL"),
        ("dangling", "ENOENT"), ("writable by others", "mode 0777"), ("writable by its group", "mode 0775"),
        ("of another owner", "owned by uid 1234"),
    ],
)  # fmt: skip
def test_ldconfig_that_cannot_be_trusted_is_one_error(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "ldconfig"
    bad_ldconfig(kind, path)
    with pytest.raises(HookError, match=message) as e:
        program(path)
    assert str(path) in e.value.message


def test_relative_path_is_an_error() -> None:
    with pytest.raises(HookError, match="not an absolute path"):
        program(Path("sbin/ldconfig"))


@pytest.mark.parametrize("folder", ["a", "../a", "/a#b", "/a=libc6"])
def test_folder_that_ld_so_conf_reads_otherwise_is_an_error(folder: str) -> None:
    with pytest.raises(HookError, match="absolute path without"):
        hook.prepare(options(folder), Settings())


@pytest.mark.parametrize("folder", ["/a\nb", "/a\0", "/\x7f"])
def test_folder_that_no_line_can_hold_is_an_error(folder: str) -> None:
    with pytest.raises(HookError, match="control character"):
        hook.prepare(options(folder), Settings())


def test_folders_are_taken_once() -> None:
    assert hook.prepare(options("/b", "/a", "/b", ""), Settings()).folders == [b"/b", b"/a"]


# -- the plan ---------------------------------------------------------------------------------------------------


def plan(root: Path, *folders: str, engine: str = "") -> dict[str, Any]:
    """By path: the content of each planned file of configuration, None for a removal."""
    found: dict[str, Any] = {}
    for operation in hook.plan(hook.prepare(options(*folders, engine=engine), Settings()), make_container(root)):
        if isinstance(operation, WriteFile):
            found[operation.path.decode().lstrip("/")] = operation.data
        elif isinstance(operation, RemoveFile):
            found[operation.path.decode()] = None
        else:
            assert isinstance(operation, (MakeLink, ldconfig.RunLdconfig))
    found.pop("etc/ld.so.cache", None)
    return found


def test_both_engines_write_the_same_drop_ins(tmp_path: Path) -> None:
    tree(tmp_path, CONF + "\nfile etc/alpine-release 3\nfile etc/ld.so.conf.d/a.conf /known\\n")
    assert plan(tmp_path, "/new", "/known", engine="ldconfig") == plan(tmp_path, "/new", "/known", engine="builtin")


ZERO, ZZ = "etc/ld.so.conf.d/00-nvcr-nvoci.conf", "etc/ld.so.conf.d/zz-nvcr-nvoci.conf"


def test_system_paths_depend_on_the_container() -> None:
    triplet = [b"/lib/x86_64-linux-gnu", b"/usr/lib/x86_64-linux-gnu", b"/lib", b"/usr/lib"]
    assert list(hook.system_paths(True, "x86_64")) == triplet
    assert hook.system_paths(True, "aarch64")[0] == b"/lib/aarch64-linux-gnu"
    plain = [b"/lib", b"/usr/lib", b"/lib64", b"/usr/lib64", b"/libx32", b"/usr/libx32"]
    assert list(hook.system_paths(False, "x86_64")) == plain
    assert list(hook.system_paths(False, "aarch64")) == plain[:4]
    assert list(hook.system_paths(False, "ppc64le")) == plain[:2]


def test_conf_is_made_only_where_there_is_none(tmp_path: Path) -> None:
    tree(tmp_path, "dir etc")
    assert plan(tmp_path)["etc/ld.so.conf"] == b"include /etc/ld.so.conf.d/*.conf\n"
    link = "symlink etc/ld.so.conf /usr/x"
    for spec in ("file etc/ld.so.conf /x", link, link + "\nfile usr/x y"):
        assert "etc/ld.so.conf" not in plan(tree(tmp_path, spec))


def test_folders_that_are_searched_already_are_left_out(tmp_path: Path) -> None:
    tree(tmp_path, CONF + "\nfile etc/debian_version 12\nfile etc/ld.so.conf.d/a.conf /known/\\n# /commented\\n")
    found = plan(tmp_path, "/known", "/usr/lib", "/new", "/commented", "/lib64")
    assert found[ZERO] == b"/new\n/commented\n/lib64\n"
    assert found[ZZ] == b"".join(p + b"\n" for p in hook.system_paths(True))


def test_own_drop_in_does_not_make_its_folders_known(tmp_path: Path) -> None:
    tree(tmp_path, CONF + f"\nfile {ZERO} /new\\n\nfile {ZZ} /other\\n")
    assert plan(tmp_path, "/new", "/other")[ZERO] == b"/new\n/other\n"


def test_drop_in_is_removed_where_no_folder_remains(tmp_path: Path) -> None:
    tree(tmp_path, CONF)
    assert plan(tmp_path)[ZERO] is None
    assert plan(tmp_path, "/usr/lib")[ZERO] is None
    assert plan(tmp_path)[ZZ].startswith(b"/lib\n")


def test_debian_version_that_is_a_directory_does_not_count(tmp_path: Path) -> None:
    tree(tmp_path, CONF + "\ndir etc/debian_version")
    assert plan(tmp_path)[ZZ] == b"".join(p + b"\n" for p in hook.system_paths(False))


MUSL = f"etc/ld-musl-{abi.MACHINE}.path"


def test_musl_gets_its_default_and_the_folders(tmp_path: Path) -> None:
    tree(tmp_path, CONF + "\nfile etc/alpine-release 3.20")
    found = plan(tmp_path, "/new")[MUSL]
    assert found.startswith(b"/lib\n/usr/local/lib\n/usr/lib\n/new\n")
    assert sorted(found.split()) == sorted(set(found.split()))


def test_musl_entries_of_the_image_are_kept_and_a_second_run_adds_nothing(tmp_path: Path) -> None:
    tree(tmp_path, CONF + f"\nfile etc/alpine-release 3.20\nfile {MUSL} /a:/usr/lib\\n/b\nmode {MUSL} 600")
    found = plan(tmp_path, "/new")[MUSL]
    assert found.startswith(b"/a:/usr/lib\n/b\n/new\n/lib\n")
    assert found.count(b"/usr/lib\n") == 1
    (tmp_path / MUSL).write_bytes(found)
    assert plan(tmp_path, "/new")[MUSL] == found


def write(root: Path, planned: dict[str, Any]) -> None:
    for name, data in planned.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if data is not None:
            path.write_bytes(data)


def test_musl_forgets_the_folders_of_an_earlier_driver(tmp_path: Path) -> None:
    tree(tmp_path, CONF + f"\nfile etc/alpine-release 3.20\nfile {MUSL} /a\n")
    write(tmp_path, plan(tmp_path, "/old"))
    assert b"/old\n" in (tmp_path / MUSL).read_bytes()
    write(tmp_path, plan(tmp_path, "/new"))
    upgraded = (tmp_path / MUSL).read_bytes()
    fresh = tree(tmp_path / "fresh", CONF + f"\nfile etc/alpine-release 3.20\nfile {MUSL} /a\n")
    assert upgraded == plan(fresh, "/new")[MUSL]
    assert plan(tmp_path, "/new")[MUSL] == upgraded


def test_without_alpine_release_the_musl_file_is_not_touched(tmp_path: Path) -> None:
    tree(tmp_path, CONF + f"\nfile {MUSL} /a")
    assert MUSL not in plan(tmp_path)


@pytest.mark.parametrize("kind", ["fifo", "char {} 1 5", "dir", "sparse {} 1T", "socket"])
@pytest.mark.parametrize("name", ["etc/ld.so.conf", "etc/ld.so.conf.d/x.conf", MUSL])
def test_what_is_not_a_readable_file_is_named(tmp_path: Path, kind: str, name: str) -> None:
    line = kind.format(name) if "{}" in kind else f"{kind} {name}"
    tree(tmp_path, CONF + "\nfile etc/alpine-release 3\n" + line)
    if kind == "dir" and name.endswith("x.conf"):
        assert plan(tmp_path)[ZZ]
        return
    with pytest.raises(HookError) as e:
        plan(tmp_path)
    assert "/" + name in e.value.message or name in e.value.message


LAST = {
    "builtin": ["symlink /new/libx.so.1 -> libx.so.1.2", "write /etc/ld.so.cache"],
    "ldconfig": ["run /sbin/ldconfig confined, and write its soname links and /etc/ld.so.cache"],
}


@pytest.mark.parametrize("engine", ENGINES)
def test_preview_says_what_would_be_done(tmp_path: Path, engine: str) -> None:
    tree(tmp_path, CONF)
    elfmaker.make_so(tmp_path / "new/libx.so.1.2", "libx.so.1")
    container = make_container(tmp_path)
    view = Preview(container.rootfs)
    operations = hook.plan(hook.prepare(options("/new", engine=engine), Settings()), container)
    told = [o.describe() for o in operations if o.preview(view)]
    assert [re.sub(r" \(.*", "", t) for t in told] == [f"write /{ZERO}", f"write /{ZZ}", *LAST[engine]]
    assert not (tmp_path / ZERO).exists()


# -- ldconfig's output ------------------------------------------------------------------------------------------

OUTPUT = b"""\
/usr/local/lib: (from /proc/ld.so.conf:1)
/lib/x86_64-linux-gnu: (from /proc/ld.so.conf:2)
\tliba.so.1 -> liba.so.1.2
\tlibb.so -> libb.so (changed)
\tlibc.so.6 -> libc-2.31.so (SKIPPED)
/lib/x86_64-linux-gnu/tls: (hwcap: 0x8000000000000000)
\tlibd.so.1 -> libd.so.1.0
/lib/glibc-hwcaps/x86-64-v2: (hwcap: "x86-64-v2") (from /etc/ld.so.conf:1)
\tlibf.so.1 -> libf.so.1.5
/old:
\tlibe.so.1 -> libe.so.1.0
"""


def test_output_of_all_versions_is_understood() -> None:
    assert list(parse_output(OUTPUT)) == [
        (b"/lib/x86_64-linux-gnu", b"liba.so.1", b"liba.so.1.2"),
        (b"/lib/x86_64-linux-gnu", b"libb.so", b"libb.so"),
        (b"/lib/x86_64-linux-gnu", b"libc.so.6", b"libc-2.31.so"),
        (b"/lib/x86_64-linux-gnu/tls", b"libd.so.1", b"libd.so.1.0"),
        (b"/old", b"libe.so.1", b"libe.so.1.0"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"../../etc/x -> liba.so", b"/etc/x -> liba.so", b" -> liba.so", b". -> liba.so", b".. -> liba.so",
        b"a -> ../b", b"a -> ", b"a -> .", b"a", b"a -> b -> c", b"a\x1b[2J -> b", b"a\x7f -> b", b"a" * 256 + b" -> b",
        b"a\0 -> b", b"",
    ],
)  # fmt: skip
def test_names_that_no_library_can_have_are_refused(line: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    assert list(parse_output(b"/lib: (from x:1)\n\t" + line + b"\n")) == []
    assert "no link made" in capfd.readouterr().err


def test_links_before_any_directory_are_refused() -> None:
    assert list(parse_output(b"\ta -> b\nrelative: (from x:1)\n\tc -> d\n")) == []


WANTED = {
    "missing": ("file l/libx.so.1.2 x", True),
    "right": ("file l/libx.so.1.2 x\nsymlink l/libx.so.1 libx.so.1.2", False),
    "right by another way": ("file l/libx.so.1.2 x\nsymlink l/libx.so.1 /l/libx.so.1.2", False),
    "to another file": ("file l/libx.so.1.2 x\nfile l/libx.so.1.1 x\nsymlink l/libx.so.1 libx.so.1.1", True),
    "dangling": ("file l/libx.so.1.2 x\nsymlink l/libx.so.1 none", True),
    "to the host's file": ("file l/libx.so.1.2 x\nsymlink l/libx.so.1 /etc/passwd", True),
    "a file of its own": ("file l/libx.so.1.2 x\nfile l/libx.so.1 y", False),
    "a directory": ("file l/libx.so.1.2 x\ndir l/libx.so.1", False),
    "no library": ("dir l", False),
    "no directory": ("dir x", False),
}


@pytest.mark.parametrize("shape", WANTED)
def test_only_missing_and_wrong_links_are_made(tmp_path: Path, shape: str) -> None:
    spec, wanted = WANTED[shape]
    tree(tmp_path, spec)
    output = b"/l: (from x:1)\n\tlibx.so.1 -> libx.so.1.2\n\tliby.so -> liby.so\n"
    found = [o.describe() for o in ldconfig.wanted_links(Rootfs.open(str(tmp_path)), output)]
    assert found == (["symlink /l/libx.so.1 -> libx.so.1.2"] if wanted else [])
