"""scripts/install: what it lays down, and how one version takes the place of another."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest
from install.conftest import Checkout, copy_project, listing, output

ENTRIES = (
    "nvidia-cdi-hook",
    "nvidia-container-cli",
    "nvidia-container-runtime-hook",
    "nvidia-container-toolkit",
    "nvidia-ctk",
    "nvoci",
)


def versions(prefix: Path) -> list[str]:
    """The versioned directories below a prefix."""
    return sorted(path.name for path in (prefix / "lib").glob("nvoci-*"))


def test_entry_files_have_the_written_form(checkout: Checkout, prefix: Path) -> None:
    assert checkout.install(prefix).code == 0
    python = os.path.realpath("/usr/bin/python3")
    assert (prefix / "bin/nvidia-cdi-hook").read_text().splitlines() == [
        f"#!{python} -ISB",
        "import sys, posix",
        f"sys.path.insert(0, '{prefix}/lib/' + posix.readlink('{prefix}/lib/nvoci'))",
        "try:",
        "    import nvoci_hot",
        "except Exception:",
        "    pass",
        "from nvoci.hook.main import cdi_hook",
        "cdi_hook()",
    ]
    assert (prefix / "bin/nvidia-ctk").read_text().splitlines() == [
        *(prefix / "bin/nvidia-cdi-hook").read_text().splitlines()[:-2],
        "from nvoci.hook.main import ctk",
        "ctk()",
        "sys.path.insert(1, sys.path[0] + '/vendor')",
        "from nvoci.ctl.ctk import main",
        "main()",
    ]
    assert sorted(path.name for path in (prefix / "bin").iterdir()) == sorted(ENTRIES)


def test_only_the_command_for_people_sees_vendored_packages(checkout: Checkout, prefix: Path) -> None:
    checkout.install(prefix)
    version = prefix / "lib" / os.readlink(prefix / "lib/nvoci")
    assert output(prefix / "bin/nvidia-cdi-hook") == f"one {version}\n"
    click, structlog, first, second = output(prefix / "bin/nvoci").split()
    assert (first, second) == (str(version), f"{version}/vendor")
    assert click == f"{version}/vendor/click/__init__.py"
    assert structlog == f"{version}/vendor/structlog/__init__.py"


def test_a_command_of_ctk_that_is_no_hook_sees_vendored_packages(checkout: Checkout, prefix: Path) -> None:
    checkout.install(prefix)
    version = prefix / "lib" / os.readlink(prefix / "lib/nvoci")
    assert output(prefix / "bin/nvidia-ctk", "hook") == f"one {version}\n"
    click, _, first, second = output(prefix / "bin/nvidia-ctk", "cdi").split()
    assert (first, second) == (str(version), f"{version}/vendor")
    assert click == f"{version}/vendor/click/__init__.py"


def test_environment_and_directory_do_not_reach_a_hook(checkout: Checkout, prefix: Path, tmp_path: Path) -> None:
    checkout.install(prefix)
    evil = tmp_path / "evil"
    for name in ("nvoci/__init__.py", "sitecustomize.py", "posix.py"):
        (evil / name).parent.mkdir(exist_ok=True, parents=True)
        (evil / name).write_text("print('caught')\nraise SystemExit(9)\n")
    env = {"PYTHONPATH": str(evil), "PYTHONSTARTUP": str(evil / "posix.py"), "PYTHONHOME": str(evil)}
    assert output(prefix / "bin/nvidia-cdi-hook", env=env, cwd=evil).startswith("one ")


@pytest.mark.parametrize("umask", [0, 0o777], ids=oct)
def test_owner_and_modes_do_not_depend_on_umask(checkout: Checkout, prefix: Path, umask: int) -> None:
    assert checkout.install(prefix, umask=umask).code == 0
    modes = {0o755: "directory or entry", 0o644: "file"}
    for path in (prefix, *prefix.rglob("*")):
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (0, 0)
        if not path.is_symlink():
            executable = path.is_dir() or path.parent == prefix / "bin"
            assert modes[stat.S_IMODE(status.st_mode)] == ("directory or entry" if executable else "file")


def test_owner_and_modes_do_not_depend_on_a_setgid_directory(checkout: Checkout, prefix: Path) -> None:
    prefix.mkdir()
    os.chown(prefix, 0, 50)
    prefix.chmod(0o2755)
    assert checkout.install(prefix).code == 0
    assert {(entry[1], entry[2]) for entry in listing(prefix).values()} == {(0, 0)}


def test_every_source_has_an_unchecked_hash_pyc(checkout: Checkout, prefix: Path) -> None:
    checkout.install(prefix)
    version = prefix / "lib" / os.readlink(prefix / "lib/nvoci")
    sources = list(version.rglob("*.py"))
    assert {"main.py", "core.py"} <= {path.name for path in sources}
    for source in sources:
        (compiled,) = (source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc")
        assert struct.unpack("<I", compiled.read_bytes()[4:8]) == (0b01,)  # PEP 552: hash-based, not checked


# nvoci_hot.pyc; without it nvoci, nvoci.hook, nvoci.hook.main, nvoci.hook.late.
@pytest.mark.parametrize("files", [1, 4])
def test_a_pyc_is_used_and_none_is_written(checkout: Checkout, prefix: Path, files: int) -> None:
    checkout.install(prefix)
    if files > 1:
        (prefix / "lib/nvoci/nvoci_hot.pyc").unlink()
    before = listing(prefix)
    words = [os.path.realpath("/usr/bin/python3"), "-ISBv", prefix / "bin/nvidia-cdi-hook"]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stderr
    loaded = [line for line in told.splitlines() if line.startswith(f"# code object from '{prefix}/lib/")]
    assert len(loaded) == files
    assert all(line.endswith(".pyc'") for line in loaded)
    assert listing(prefix) == before


def test_traceback_names_the_place_of_the_file(checkout: Checkout, prefix: Path) -> None:
    (checkout.top / "hooks/nvoci/hook/late.py").write_text("1 / 0\n")
    checkout.install(prefix)
    done = subprocess.run([prefix / "bin/nvidia-cdi-hook"], capture_output=True, text=True)
    assert f'File "{prefix}/lib/{os.readlink(prefix / "lib/nvoci")}/nvoci/hook/late.py", line 1' in done.stderr


def test_manifest_lists_every_file_with_hash_and_mode(checkout: Checkout, prefix: Path) -> None:
    checkout.install(prefix)
    version = prefix / "lib" / os.readlink(prefix / "lib/nvoci")
    manifest = json.loads((version / "MANIFEST").read_text())
    laid = {str(path.relative_to(version)) for path in version.rglob("*") if path.is_file()} - {"MANIFEST"}
    assert set(manifest["files"]) == laid
    assert set(manifest["entries"]) == {f"bin/{name}" for name in ENTRIES}
    for top, part in ((version, "files"), (prefix, "entries")):
        for name, entry in manifest[part].items():
            path = top / name
            assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
            assert entry["mode"] == f"{stat.S_IMODE(path.stat().st_mode):04o}"
    assert manifest["interpreter"]["path"] == os.path.realpath("/usr/bin/python3")


def test_the_hooks_data_is_laid_down(checkout: Checkout, prefix: Path) -> None:
    (checkout.top / "oci-hooks.d").mkdir()
    (checkout.top / "oci-hooks.d/10-x.json").write_text("{}")
    checkout.install(prefix)
    assert (prefix / "lib/nvoci/oci-hooks.d/10-x.json").read_text() == "{}"


def test_the_same_content_again_changes_nothing(checkout: Checkout, prefix: Path) -> None:
    checkout.install(prefix)
    before = {path: (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in prefix.rglob("nvoci*/**/*")}
    again = checkout.install(prefix)
    after = {path: (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in prefix.rglob("nvoci*/**/*")}
    assert (again.code, again.out.split(":")[1]) == (0, " already installed")
    assert after == before
    assert before


def test_upgrade_keeps_the_version_before_and_no_older_one(checkout: Checkout, prefix: Path) -> None:
    checkout.install(prefix)
    first = os.readlink(prefix / "lib/nvoci")
    entry = (prefix / "bin/nvoci").stat().st_ino
    checkout.change("two")
    checkout.install(prefix)
    second = os.readlink(prefix / "lib/nvoci")
    assert versions(prefix) == sorted([first, second])
    assert output(prefix / "bin/nvidia-ctk").startswith("two ")
    checkout.change("three")
    checkout.install(prefix)
    assert versions(prefix) == sorted([second, os.readlink(prefix / "lib/nvoci")])
    assert (prefix / "bin/nvoci").stat().st_ino == entry


def test_going_back_to_the_version_before_only_moves_the_link(checkout: Checkout, prefix: Path) -> None:
    checkout.install(prefix)
    first = os.readlink(prefix / "lib/nvoci")
    inode = (prefix / "lib" / first).stat().st_ino
    checkout.change("two")
    checkout.install(prefix)
    checkout.change("one")
    checkout.install(prefix)
    assert os.readlink(prefix / "lib/nvoci") == first
    assert (prefix / "lib" / first).stat().st_ino == inode


def test_a_running_hook_sees_one_version_all_its_life(checkout: Checkout, prefix: Path) -> None:
    checkout.install(prefix)
    words = [prefix / "bin/nvidia-cdi-hook", "late"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hook:
        assert hook.stdout is not None
        assert hook.stdout.readline() == "ready\n"
        checkout.change("two")
        checkout.install(prefix)
        out, _ = hook.communicate("\n", timeout=30)
    assert out.startswith("one ")
    assert output(prefix / "bin/nvidia-cdi-hook").startswith("two ")


def test_an_entry_that_is_no_longer_made_goes(checkout: Checkout, prefix: Path) -> None:
    script = checkout.top / "scripts/install"
    text = script.read_text()
    script.write_text(text.replace("ENTRIES = (", 'ENTRIES = (\n    Entry("nvidia-old", "nvoci.hook.main", "ctk"),', 1))
    checkout.install(prefix)
    assert (prefix / "bin/nvidia-old").exists()
    script.write_text(text)
    checkout.install(prefix)
    assert sorted(path.name for path in (prefix / "bin").iterdir()) == sorted(ENTRIES)


def test_what_a_killed_installer_left_is_removed(checkout: Checkout, prefix: Path) -> None:
    checkout.install(prefix)
    (prefix / "lib/.nvoci-tmp-x/nvoci").mkdir(parents=True)
    (prefix / "bin/.nvoci-tmp-nvoci").write_text("half")
    checkout.install(prefix)
    assert not list(prefix.rglob(".nvoci-tmp-*"))


def test_two_installers_do_not_meet(checkout: Checkout, prefix: Path) -> None:
    checkout.install(prefix)
    with (prefix / "lib").joinpath("lockholder").open("w"):
        handle = os.open(prefix / "lib", os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        second = checkout.install(prefix)
        os.close(handle)
    assert second.code == 1
    assert "EAGAIN (another scripts/install is at work" in second.err


def make_wheels(checkout: Checkout, wheels: Path) -> None:
    """Wheels of what the checkout's venv has; the venv goes."""
    wheels.mkdir()
    site = next((checkout.top / ".venv/lib").glob("python3*/site-packages"))
    for info in site.glob("*.dist-info"):
        with zipfile.ZipFile(wheels / f"{info.name[: -len('.dist-info')]}-py3-none-any.whl", "w") as wheel:
            for line in (info / "RECORD").read_text().splitlines():
                name = line.split(",")[0]
                if "__pycache__" not in name and ".." not in name:
                    wheel.write(site / name, name)
    shutil.rmtree(checkout.top / ".venv")


def test_wheels_and_venv_give_the_same(checkout: Checkout, prefix: Path, tmp_path: Path) -> None:
    checkout.install(prefix)
    before = os.readlink(prefix / "lib/nvoci")
    make_wheels(checkout, tmp_path / "wheels")
    done = checkout.install(prefix, "--wheels", tmp_path / "wheels")
    assert (done.code, os.readlink(prefix / "lib/nvoci")) == (0, before)


def test_real_hooks_run_with_checkout_and_venv_gone(tmp_path: Path, prefix: Path) -> None:
    copy = copy_project(tmp_path / "copy")
    assert copy.install(prefix).code == 0
    shutil.rmtree(copy.top)
    assert (prefix / "lib/nvoci/nvoci/cdi/schema.json").is_file()
    before = listing(prefix)
    root = tmp_path / "bundle/rootfs"
    root.mkdir(parents=True)
    (root.parent / "config.json").write_text(json.dumps({"ociVersion": "1.0.2", "root": {"path": "rootfs"}}))
    state = {"ociVersion": "1.0.2", "id": "x", "status": "creating", "pid": 0, "bundle": str(root.parent)}
    env = {"PATH": "/usr/bin:/bin"}
    listed = ["nvidia-ctk", "--quiet", "cdi", "list", "--spec-dir", "/nowhere"]
    for words in (["nvidia-cdi-hook", "noop"], ["nvidia-ctk", "hook", "noop"], listed, ["nvoci", "--help"]):
        command = [str(prefix / "bin" / words[0]), *words[1:]]
        done = subprocess.run(command, input=json.dumps(state), capture_output=True, text=True, env=env, cwd="/")
        assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: nvoci" in done.stdout
    assert listing(prefix) == before
