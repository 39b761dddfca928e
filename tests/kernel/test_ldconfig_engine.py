"""What is the ldconfig engine's own: the confined program and its failures."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from lib.rootfs import glibc_rootfs, tree

from nvoci.hook.container import Container
from tests.kernel.ldcaches import MARKS, driver, fails, listed, update
from tests.kernel.namespaced import make_container

pytestmark = MARKS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = glibc_rootfs(tmp_path / "rootfs")
    driver(path)
    return path


def run(c: Container, *folders: str) -> None:
    update(c, *folders, engine="ldconfig")


def test_no_folder_takes_its_libraries_out_of_the_cache(root: Path) -> None:
    """ldconfig knows nothing but its configuration; the builtin engine keeps what is still there."""
    run(make_container(root), "/opt/nv")
    run(make_container(root))
    assert "libnva.so.1" not in listed(root)


def test_root_without_a_place_for_the_new_cache_is_one_error(root: Path) -> None:
    tree(root, "".join(f"symlink {name} x\n" for name in ("proc", "dev", "sys", "tmp", "run")))
    assert "/proc, /dev" in fails(root, "ldconfig").message


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
    assert message in fails(root, "ldconfig", path=program(tmp_path, body), timeout=3).message
