"""What is the builtin engine's own: it extends the image's cache, by names. Second witness: ldconfig, ld.so."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib import elfmaker
from lib.rootfs import TRIPLET, add_probe, glibc_rootfs, tree

from nvoci.hook.container import Container
from nvoci.hook.operations import MakeLink, RemoveFile, WriteFile
from nvoci.ldcache import cache as ldcache
from tests.kernel.ldcaches import (
    CACHE,
    LDCONFIG,
    MARKS,
    ZZ,
    driver,
    fails,
    lines,
    links,
    listed,
    pairs,
    reference,
    run_ldconfig,
    snapshot,
    update,
)
from tests.kernel.namespaced import KERNELS, container, in_container, make_container, run_inside

pytestmark = MARKS
LIBDIR = f"usr/lib/{TRIPLET}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return glibc_rootfs(tmp_path / "rootfs")


def run(c: Container, *folders: str, **how: Any) -> None:
    update(c, *folders, engine="builtin", **how)


def library(root: Path, path: str, soname: str | None = None) -> Path:
    return elfmaker.make_so(root / path, soname or Path(path).name)


def installed(root: Path) -> None:
    """As an image is built: libraries, then ldconfig."""
    for name in ("libone.so.1", "libtwo.so.2"):
        library(root, f"{LIBDIR}/{name}.5", name)
    run_ldconfig(root)


# -- by names ---------------------------------------------------------------------------------------------------


def test_a_library_that_the_cache_has_keeps_its_entry_whatever_it_holds_now(root: Path) -> None:
    """Times and contents are not looked at: the image was made with it."""
    installed(root)
    (root / f"{LIBDIR}/libone.so.1.5").write_bytes(b"x" * 4096)
    run(make_container(root))
    assert listed(root)["libone.so.1"] == f"/lib/{TRIPLET}/libone.so.1"


def test_a_library_that_is_gone_is_dropped(root: Path) -> None:
    installed(root)
    (root / f"{LIBDIR}/libone.so.1.5").unlink()
    run(make_container(root))
    assert "libone.so.1" not in listed(root)
    assert "libtwo.so.2" in listed(root)


def test_an_empty_leftover_of_an_earlier_start_is_dropped(root: Path) -> None:
    library(root, f"{LIBDIR}/libnvcuvid.so.1.5", "libnvcuvid.so.1")
    installed(root)
    assert "libnvcuvid.so.1" in listed(root)
    (root / f"{LIBDIR}/libnvcuvid.so.1.5").write_bytes(b"")
    run(make_container(root))
    assert "libnvcuvid.so.1" not in listed(root)
    assert os.readlink(root / f"{LIBDIR}/libnvcuvid.so.1") == "libnvcuvid.so.1.5"  # the image's own: left alone


def test_a_mount_point_is_opened_though_the_cache_has_its_name(root: Path, tmp_path: Path) -> None:
    installed(root)
    new = library(tmp_path, "new", "libthree.so.3")
    with container(root, f"mount --bind {new} {root}/{LIBDIR}/libone.so.1.5") as pid:
        in_container(pid, root, KERNELS[0], run)
    assert "libone.so.1" not in listed(root)
    assert listed(root)["libthree.so.3"] == f"/lib/{TRIPLET}/libthree.so.3"
    assert os.readlink(root / f"{LIBDIR}/libthree.so.3") == "libone.so.1.5"


def test_a_new_file_for_a_soname_of_the_cache_wins_by_ldconfigs_rules(root: Path) -> None:
    """A greater name wins, a smaller one does not; the library that was there is compared with it."""
    installed(root)
    library(root, f"{LIBDIR}/libone.so.1.10", "libone.so.1")
    library(root, f"{LIBDIR}/libtwo.so.2.1", "libtwo.so.2")
    run(make_container(root))
    assert os.readlink(root / f"{LIBDIR}/libone.so.1") == "libone.so.1.10"
    assert os.readlink(root / f"{LIBDIR}/libtwo.so.2") == "libtwo.so.2.5"


STALE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "nonsense": lambda path: path.write_bytes(b"x" * 5000),
    "truncated": lambda path: os.truncate(path, 100),
    "other byte order": lambda path: path.write_bytes(swapped(path.read_bytes())),
    "unknown extension": lambda path: path.write_bytes(tagged(path.read_bytes(), 7)),
    "damaged extension": lambda path: path.write_bytes(path.read_bytes().replace(MAGIC, bytes(4))),
}
MAGIC = b"\x74\x21\xa4\xea"  # dl-cache.h: cache_extension_magic, before the number of sections and their tags


def tagged(data: bytes, tag: int) -> bytes:
    at = data.index(MAGIC) + 8
    return data[:at] + tag.to_bytes(4, "little") + data[at + 4 :]


def swapped(data: bytes) -> bytes:
    """The same cache as a machine of the other byte order has it; no extension."""
    out = ldcache.NEW_MAGIC
    entries = ldcache.parse(data).entries
    strings = b"".join(e.unsafe_soname + b"\0" + e.unsafe_path + b"\0" for e in entries)
    out += len(entries).to_bytes(4, "big") + len(strings).to_bytes(4, "big") + b"\x03" + bytes(19)
    at = len(out) + 24 * len(entries)
    for e in entries:
        numbers = (e.flags, at, at + len(e.unsafe_soname) + 1, 0)
        out += b"".join(n.to_bytes(4, "big") for n in numbers) + bytes(8)
        at += len(e.unsafe_soname) + len(e.unsafe_path) + 2
    return out + strings


def old_format(cache: Path) -> None:
    """What ld.so no longer reads."""
    root = cache.parents[1]
    subprocess.run([LDCONFIG, "-r", root, "-c", "old", "-C", f"/{CACHE}"], check=True, capture_output=True)


STALE["old format"] = old_format


@pytest.mark.parametrize("kind", STALE)
def test_a_cache_that_is_not_ldconfigs_means_that_everything_is_opened(root: Path, kind: str) -> None:
    installed(root)
    library(root, f"{LIBDIR}/libone.so.1.5", "libother.so.9")
    STALE[kind](root / CACHE)
    run(make_container(root))
    assert "libone.so.1" not in listed(root)
    assert listed(root)["libother.so.9"] == f"/lib/{TRIPLET}/libother.so.9"
    other = lines(root)
    run_ldconfig(root)
    assert lines(root) == other


def test_the_swapped_cache_of_the_table_is_one_that_parses(root: Path) -> None:
    installed(root)
    cache = ldcache.parse(swapped((root / CACHE).read_bytes()))
    assert cache.order == ">"
    assert b"libone.so.1" in {e.unsafe_soname for e in cache.entries}


# -- a stopped container is started again ---------------------------------------------------------------------------


def started(root: Path, folder: Path, version: str, probes: list[str]) -> None:
    """What a runtime does: mount targets for the driver's files, the hook, the program."""
    setup = ""
    for name in ("libcuda.so", "libnvidia-ml.so"):
        file = library(folder, f"{version}/{name}.{version}", f"{name}.1")
        target = root / LIBDIR / file.name
        target.touch()  # stays in the root for good
        setup += f"mount --bind {file} {target}; "
    with container(root, setup) as pid:
        in_container(pid, root, KERNELS[0], run)
        assert {probe: run_inside(pid, root, probe).returncode for probe in probes} == dict.fromkeys(probes, 0)
        script = f"readlink -f /{LIBDIR}/libcuda.so; readlink -f /{LIBDIR}/libnvidia-ml.so.1"
        shown = run_inside(pid, root, script).stdout
    assert shown == f"/{LIBDIR}/libcuda.so.{version}\n/{LIBDIR}/libnvidia-ml.so.{version}\n"


def test_after_an_upgrade_and_a_downgrade_the_mounted_driver_is_found(root: Path, tmp_path: Path) -> None:
    """Old mount targets are empty files in the root by then, and old soname links lead to them."""
    fresh = glibc_rootfs(tmp_path / "fresh")
    names = ("libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1")
    probes = [[add_probe(r, name) for name in names] for r in (root, fresh)]
    for version in ("550.54", "560.1", "535.9", "550.54"):
        started(root, tmp_path / "drivers", version, probes[0])
    started(fresh, tmp_path / "drivers", "550.54", probes[1])
    assert lines(root) == lines(fresh)
    assert (root / CACHE).read_bytes() == (fresh / CACHE).read_bytes()


def test_when_the_driver_is_no_longer_mounted_it_is_no_longer_listed(root: Path, tmp_path: Path) -> None:
    started(root, tmp_path / "drivers", "550.54", [add_probe(root, "libcuda.so.1")])
    run(make_container(root))
    assert not {"libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1"} & set(listed(root))


# -- development links ----------------------------------------------------------------------------------------------

INJECTED = ("libcuda.so", "libnvidia-opticalflow.so", "libnvidia-ml.so")


def test_development_links_are_made_for_two_mounted_libraries_only(root: Path, tmp_path: Path) -> None:
    setup = ""
    for name in INJECTED:
        (root / LIBDIR / f"{name}.550.1").touch()
        setup += f"mount --bind {library(tmp_path, f'{name}.550.1', f'{name}.1')} {root}/{LIBDIR}/{name}.550.1; "
    with container(root, setup) as pid:
        in_container(pid, root, KERNELS[0], run)
    texts = links(root, f"{LIBDIR}/lib")
    assert {name: texts.get(f"{LIBDIR}/{name}") for name in INJECTED} == {
        "libcuda.so": "libcuda.so.1", "libnvidia-opticalflow.so": "libnvidia-opticalflow.so.1", "libnvidia-ml.so": None,
    }  # fmt: skip
    assert all(texts[f"{LIBDIR}/{name}.1"] == f"{name}.550.1" for name in INJECTED)
    found = listed(root)
    assert found["libcuda.so"] == f"/lib/{TRIPLET}/libcuda.so"
    assert "libnvidia-ml.so" not in found


def test_no_development_link_for_a_library_of_the_image(root: Path) -> None:
    library(root, f"{LIBDIR}/libcuda.so.550.1", "libcuda.so.1")
    run(make_container(root))
    assert not (root / LIBDIR / "libcuda.so").is_symlink()
    assert "libcuda.so.1" in listed(root)
    assert "libcuda.so" not in listed(root)


TAKEN = {"file": "file {} text", "other link": "symlink {} libother.so", "directory": "dir {}", "fifo": "fifo {}"}


@pytest.mark.parametrize("kind", TAKEN)
def test_what_has_the_name_of_a_development_link_stays(root: Path, tmp_path: Path, kind: str) -> None:
    tree(root, TAKEN[kind].format(f"{LIBDIR}/libcuda.so"))
    (root / LIBDIR / "libcuda.so.550.1").touch()
    before = snapshot(root / LIBDIR).get("libcuda.so")
    file = library(tmp_path, "libcuda.so.550.1", "libcuda.so.1")
    with container(root, f"mount --bind {file} {root}/{LIBDIR}/libcuda.so.550.1") as pid:
        in_container(pid, root, KERNELS[0], run)
    assert snapshot(root / LIBDIR).get("libcuda.so") == before
    assert listed(root)["libcuda.so.1"] == f"/lib/{TRIPLET}/libcuda.so.1"


# -- directories ----------------------------------------------------------------------------------------------------


def test_an_alias_of_a_directory_does_not_list_it_twice_and_is_spelled_as_configured(root: Path) -> None:
    """The image's cache says /lib/…, its new configuration says /usr/lib/… first."""
    installed(root)
    assert listed(root)["libone.so.1"].startswith("/lib/")
    tree(root, f"file etc/ld.so.conf.d/{TRIPLET}.conf /usr/lib/{TRIPLET}\\n/lib/{TRIPLET}\\n")
    run(make_container(root))
    assert listed(root)["libone.so.1"] == f"/usr/lib/{TRIPLET}/libone.so.1"
    found = lines(root)
    assert reference(root) == found
    assert len({m for m in found if "libone.so.1 " in m}) == 1


def outside(root: Path, *names: str) -> None:
    """Libraries that only a folder on ldconfig's command line has brought into the image's cache."""
    for name in names:
        library(root, f"opt/away/{name}")
    argv = [LDCONFIG, "-r", root, "-i", "-f", "/etc/ld.so.conf", "-C", f"/{CACHE}", "/opt/away"]
    subprocess.run(argv, check=True, capture_output=True)


def test_entries_outside_of_the_configuration_stay_behind_all_others_while_their_file_is_there(root: Path) -> None:
    installed(root)
    outside(root, "libone.so.1", "libaway.so.1")
    run(make_container(root))
    assert [path for name, path in pairs(root) if name == "libone.so.1"] == [
        f"/lib/{TRIPLET}/libone.so.1", "/opt/away/libone.so.1",
    ]  # fmt: skip
    assert listed(root)["libaway.so.1"] == "/opt/away/libaway.so.1"
    (root / "opt/away/libaway.so.1").unlink()
    run(make_container(root))
    assert "libaway.so.1" not in listed(root)
    assert "/opt/away/libone.so.1" in dict(map(reversed, pairs(root)))  # type: ignore[arg-type]


def test_entries_outside_stay_behind_the_drivers_folder(root: Path) -> None:
    outside(root, "libnva.so.1")
    driver(root)
    run(make_container(root), "/opt/nv")
    assert [path for name, path in pairs(root) if name == "libnva.so.1"] == [
        "/opt/nv/libnva.so.1", "/opt/away/libnva.so.1",
    ]  # fmt: skip


# -- a soname's place ---------------------------------------------------------------------------------------------

PLACES = {**TAKEN, "socket": "socket {}", "device": "char {} 1 3"}
del PLACES["other link"]  # is replaced


@pytest.mark.parametrize("kind", PLACES)
def test_where_the_sonames_name_is_taken_the_cache_names_the_file(root: Path, kind: str) -> None:
    library(root, f"{LIBDIR}/libnew.so.1.5", "libnew.so.1")
    tree(root, PLACES[kind].format(f"{LIBDIR}/libnew.so.1"))
    before = os.lstat(root / LIBDIR / "libnew.so.1")
    run(make_container(root))
    assert listed(root)["libnew.so.1"] == f"/lib/{TRIPLET}/libnew.so.1.5"
    assert os.lstat(root / LIBDIR / "libnew.so.1").st_ino == before.st_ino
    probe = add_probe(root, "libnew.so.1")
    assert subprocess.run(["/usr/sbin/chroot", root, probe], capture_output=True).returncode == 0


# -- read-only roots ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["/", "/usr"])
def test_on_a_read_only_root_every_name_leads_to_the_file_itself(root: Path, tmp_path: Path, place: str) -> None:
    """Sonames and development links as keys. Also where only the libraries' directory is read-only."""
    (root / LIBDIR / "libcuda.so.550.1").touch()
    before = {k: v for k, v in snapshot(root).items() if not k.startswith("etc")}
    probes = [add_probe(root, name, "var") for name in ("libcuda.so.1", "libcuda.so")]
    file = library(tmp_path, "libcuda.so.550.1", "libcuda.so.1")
    setup = f"mount --bind {file} {root}/{LIBDIR}/libcuda.so.550.1; "
    setup += f"mount -o remount,bind,ro {root}" if place == "/" else (
        f"mount --bind {root}/usr {root}/usr; mount --bind {file} {root}/{LIBDIR}/libcuda.so.550.1; "
        f"mount -o remount,bind,ro {root}/usr"
    )
    with container(root, setup) as pid:
        in_container(pid, root, KERNELS[0], run)
        text = run_inside(pid, root, "/usr/sbin/ldconfig -p | grep cuda").stdout
        codes = [run_inside(pid, root, probe).returncode for probe in probes]
    assert codes == [0, 0]
    assert [line.split()[0::3] for line in text.splitlines()] == [
        ["libcuda.so.1", f"/lib/{TRIPLET}/libcuda.so.550.1"], ["libcuda.so", f"/lib/{TRIPLET}/libcuda.so.550.1"],
    ]  # fmt: skip
    after = snapshot(root)
    assert {k: v for k, v in after.items() if not k.startswith(("etc", "var"))} == {
        k: v for k, v in before.items() if not k.startswith("var")
    }
    assert (root / ZZ).exists() == (place == "/usr")


# -- undo ---------------------------------------------------------------------------------------------------------


def test_a_failure_of_any_operation_takes_everything_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(root)
    tree(root, "symlink opt/nv/libnva.so.1 wrong\nfile etc/ld.so.conf.d/00-nvcr-nvoci.conf /old\\n")
    left = -1

    def failing(method: Callable[..., None]) -> Callable[..., None]:
        def execute(self: Any, transaction: Any) -> None:
            nonlocal left
            left -= 1
            method(self, transaction)
            if left == 0:
                raise OSError(28, "No space left on device")

        return execute

    for operation in (MakeLink, WriteFile, RemoveFile):
        monkeypatch.setattr(operation, "execute", failing(operation.execute))
    copy = root.parent / "copy"
    for count in range(1, 6):
        left = count
        assert "ENOSPC" in fails(root, "builtin").message
    shutil.copytree(root, copy, symlinks=True)
    left = 6
    run(make_container(copy), "/opt/nv")
    assert left == 1, "there are operations that were not made to fail"
