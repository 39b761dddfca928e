"""A small checkout of its own for the installer, and a way to run the installer of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = next((ROOT / ".venv/lib").glob("python3*/site-packages"), ROOT)

INIT = '"""A package for the tests of scripts/install."""\n\n__version__ = "0.1.0"\n'
MAIN = '''"""Entry points that say what they see."""
import sys

def cdi_hook():
    if sys.argv[1:] == ["late"]:
        print("ready", flush=True)
        sys.stdin.readline()
    from nvoci.hook import late
    print(late.VALUE, *[p for p in sys.path if "nvoci" in p])

def ctk():
    if sys.argv[1:] != ["cdi"]:
        cdi_hook()
        sys.exit()
'''
CTL = '''"""Needs a third-party package."""
import sys

def main():
    import click, fastjsonschema, structlog, tomlkit, yaml
    yaml.safe_load('a: 1')
    print(click.__file__, structlog.__file__, *sys.path[:2])
'''
PACKAGE = {
    "__init__": INIT,
    "hook/__init__": "",
    "hook/main": MAIN,
    "ctl/__init__": "",
    "ctl/main": CTL,
    "ctl/ctk": CTL,
}


@dataclass
class Done:
    """What came of one run."""

    code: int
    out: str
    err: str


@dataclass
class Checkout:
    """A copy of the installer beside some package."""

    top: Path

    def install(self, prefix: Path | str, *words: object, umask: int = 0o022) -> Done:
        """Run scripts/install."""
        command = [self.top / "scripts/install", "--prefix", prefix, *words]
        done = subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            cwd="/",
            preexec_fn=lambda: os.umask(umask) and None,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def change(self, value: str) -> None:
        """Another version of the package."""
        (self.top / "hooks/nvoci/hook/late.py").write_text(f'"""Imported late."""\nVALUE = "{value}"\n')


def copy_installer(top: Path) -> Checkout:
    """scripts/install and its modules, and a venv with nothing but what is vendored."""
    (top / "scripts").mkdir(parents=True)
    for source in (ROOT / "scripts/install", *(ROOT / "scripts").glob("_install_*.py")):
        shutil.copy(source, top / "scripts")
    site = top / ".venv/lib/python3.11/site-packages"
    site.mkdir(parents=True)
    for name in (
        "click",
        "nvidia_ml_py-*.dist-info",
        "pynvml*",
        "example.py",
        "yaml",
        "_yaml",
        "fastjsonschema",
        "structlog",
        "tomlkit",
        "click-*.dist-info",
        "fastjsonschema-*.dist-info",
        "pyyaml-*.dist-info",
        "structlog-*.dist-info",
        "tomlkit-*.dist-info",
    ):
        for source in SITE.glob(name):
            (shutil.copytree if source.is_dir() else shutil.copy)(source, site / source.name)
    return Checkout(top)


def copy_project(top: Path) -> Checkout:
    """The installer and the real package."""
    found = copy_installer(top)
    for name in ("hooks", "oci-hooks.d"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, top / name, ignore=shutil.ignore_patterns("__pycache__"))
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout with a package of three modules."""
    found = copy_installer(tmp_path / "checkout")
    for name, text in PACKAGE.items():
        path = found.top / f"hooks/nvoci/{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found.change("one")
    return found


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A prefix that is not there yet."""
    return tmp_path / "prefix"


def listing(top: Path) -> dict[str, tuple[int, int, int, str]]:
    """Path -> mode, owner, group, content of everything below `top`."""
    found = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else "" if path.is_dir() else path.read_bytes().hex()
        found[str(path.relative_to(top))] = (status.st_mode, status.st_uid, status.st_gid, content)
    return found


def output(*command: object, **options: object) -> str:
    """stdout of a program that succeeds."""
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, check=True, **options).stdout  # type: ignore[call-overload, no-any-return]
