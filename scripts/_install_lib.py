"""What scripts/install starts from: errors, who may write where, the interpreter, the sources.

Standard library only, Python >= 3.9, no network. Every refusal and every failure is one InstallError: verb, `object`,
errno name, what to do.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import re
import stat
import subprocess
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

SHEBANG_MAX = 127  # BINPRM_BUF_SIZE before Linux 5.1, less the NUL
OLDEST_PYTHON = (3, 9)
DATA_ROOMS = ("oci-hooks.d",)  # copied when the checkout has them
VENDORED = ("click", "fastjsonschema", "nvidia_ml_py", "pyyaml", "structlog", "tomlkit")
WITHOUT_COMPILED = ("pyyaml",)  # works without its compiled part, which fits one Python only and is left out
VENDORED_BEFORE_3_11 = ("typing_extensions",)

PROBE = """
import sys, _frozen_importlib_external as external
print(sys.version.split()[0], external.MAGIC_NUMBER.hex(), *sys.path, sep='\\n')
"""


class InstallError(Exception):
    """One line: verb, `object`, errno name, what to do."""

    def __init__(self, verb: str, thing: object, code: int | None, hint: str) -> None:
        name = errno.errorcode.get(code or 0, "EIO")
        super().__init__(f"{verb} `{ascii(str(thing))[1:-1]}`: {name} ({hint})")


HINTS = {
    errno.ENOSPC: "make room there, then run the same command again",
    errno.EROFS: "the file system is read-only: choose another prefix or remount it",
    errno.EACCES: "run as root",
    errno.EPERM: "look for an immutable flag or a security module",
    errno.ENOENT: "it is not there",
}


@contextmanager
def doing(verb: str, thing: object, hint: str = "") -> Iterator[None]:
    """Every OSError inside becomes an InstallError that names the object."""
    try:
        yield
    except OSError as error:
        advice = hint or HINTS.get(error.errno or 0, "nothing was changed: mend this and run the same command again")
        raise InstallError(verb, thing if hint else error.filename or thing, error.errno, advice)


# --- who may write -------------------------------------------------------------------------------------------------


def require_trusted(path: Path, what: str) -> None:
    """Refuse `path` (absolute, without links) when somebody beside root can change it or put another in its place.

    A root-owned sticky directory (/tmp) passes as a parent: nobody else can rename what root has made in it. What does
    not exist yet is skipped; it is made by us, with mkdir, which does not follow a link that came in between.
    """
    for place in (path, *path.parents):
        try:
            status = place.lstat()
        except FileNotFoundError:
            continue
        sticky = place != path and stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if status.st_uid != 0:
            raise InstallError(
                f"trust {what}", path, errno.EPERM, f"{place} is owned by uid {status.st_uid}: chown root it"
            )
        writable = status.st_mode & 0o022 and not stat.S_ISLNK(status.st_mode)
        if writable and not sticky:
            raise InstallError(f"trust {what}", path, errno.EPERM, f"others can write {place}: chmod go-w it")


# --- the interpreter -----------------------------------------------------------------------------------------------


class Interpreter(NamedTuple):
    """A Python that entry files name: resolved path, full version, magic number of its .pyc files in hex."""

    path: str
    version: str
    magic: str

    @property
    def minor(self) -> tuple[int, int]:
        """(3, 11): what decides whether .pyc files are found; a patch release changes nothing."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)


def probe_interpreter(python: str) -> Interpreter:
    """Resolve, check and ask an interpreter. PATH is never consulted, so a shim there is never met."""
    verb = "use interpreter"
    if not python.startswith("/"):
        raise InstallError(verb, python, errno.EINVAL, "name it by its absolute path")
    with doing(verb, python, "no such interpreter: name one with --python"):
        path = Path(python).resolve(strict=True)
        with path.open("rb") as file:
            magic = file.read(4)
    if magic != b"\x7fELF":
        raise InstallError(
            verb, path, errno.ENOEXEC, "not an ELF executable but a script, perhaps a shim: name the real one"
        )
    if not re.fullmatch(r"[!-~]+", str(path)):
        raise InstallError(verb, path, errno.EINVAL, "a #! line takes no space: use a path without")
    if len(f"#!{path} -ISB") > SHEBANG_MAX:
        raise InstallError(verb, path, errno.ENAMETOOLONG, f"a #! line holds {SHEBANG_MAX} bytes: use a shorter path")
    require_trusted(path, "interpreter")
    return _ask(path)


def _ask(path: Path) -> Interpreter:
    with doing("run interpreter", path):
        done = subprocess.run([path, "-ISB", "-c", PROBE], env={}, cwd="/", capture_output=True, text=True, check=False)
    answer = done.stdout.splitlines()
    if done.returncode or len(answer) < 2 or not re.match(r"\d+\.\d+", answer[0]):
        raise InstallError(
            "run interpreter", path, errno.ENOEXEC, "it does not answer as Python 3: name one with --python"
        )
    found = Interpreter(str(path), answer[0], answer[1])
    if found.minor < OLDEST_PYTHON:
        raise InstallError(
            "use interpreter", path, errno.EINVAL, f"it is Python {found.version}: 3.9 is the oldest that will do"
        )
    for place in answer[2:]:
        require_trusted(Path(place).resolve(), "standard library")
    return found


def interpreter_findings(manifest: dict[str, Any]) -> list[str]:
    """Whether the interpreter of the entry files is still the one that compiled the .pyc files."""
    was = Interpreter(**manifest["interpreter"])
    try:
        now = probe_interpreter(was.path)
    except InstallError as error:
        return [f"interpreter {was.path} (Python {was.version}) cannot be used: {error}"]
    if now.minor != was.minor:
        return [f"interpreter {was.path} is Python {now.version}, the .pyc files are for {was.version}"]
    if now.magic != was.magic:
        return [f"interpreter {was.path} has .pyc magic {now.magic}, the .pyc files have {was.magic}"]
    return []


def sha256(content: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(content).hexdigest()


# --- what is laid down ---------------------------------------------------------------------------------------------


def read_tree(top: Path) -> dict[str, bytes]:
    """Relative path -> content of every plain file below `top`, without caches and hidden files; a link is refused."""
    found = {}
    for path in sorted(top.rglob("*")):
        name = path.relative_to(top)
        if any(part.startswith(".") or part == "__pycache__" for part in name.parts) or path.suffix == ".pyc":
            continue
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InstallError(
                "copy", path, errno.EINVAL, "neither a plain file nor a directory: take it out of the tree"
            )
        if path.is_file():
            found[str(name)] = path.read_bytes()
    return found


def wanted(name: str) -> bool:
    """Of a distribution: its modules, its METADATA and its licences."""
    first, _, rest = name.partition("/")
    if ".." in name.split("/") or name.startswith("/") or "__pycache__" in name:
        return False
    return rest == "METADATA" or rest.startswith("licenses/") if first.endswith(".dist-info") else True


def read_distribution(name: str, record: bytes, read: Callable[[str], bytes]) -> dict[str, bytes]:
    """The files that RECORD lists, each held to the hash written there; `read` fetches one."""
    found = {}
    for line in record.decode().splitlines():
        path, digest, _ = line.rsplit(",", 2)
        compiled = path.endswith((".so", ".pyd"))
        if not wanted(path) or (compiled and name in WITHOUT_COMPILED):
            continue
        content = read(path)
        if compiled:
            raise InstallError("vendor", path, errno.EINVAL, f"{name} has compiled parts: take its pure Python wheel")
        if digest.split("=")[-1] != base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode():
            raise InstallError(
                "vendor", path, errno.EINVAL, f"it is not what {name}'s RECORD says: install {name} anew"
            )
        found[path] = content
    return found


def require_python(name: str, package: dict[str, bytes], python: Interpreter) -> None:
    """Refuse a distribution whose METADATA asks for a newer Python."""
    metadata = next((content for path, content in package.items() if path.endswith("/METADATA")), b"").decode()
    least = re.search(r"^Requires-Python:.*>= *3\.(\d+)", metadata, re.MULTILINE)
    if least and python.minor < (3, int(least[1])):
        hint = f"it needs Python 3.{least[1]}, {python.path} is {python.version}: pass --wheels DIR with an older one"
        raise InstallError("vendor", name, errno.EINVAL, hint)


def _from_wheels(name: str, wheels: Path) -> dict[str, bytes]:
    found = sorted(path for path in wheels.glob("*.whl") if path.name.lower().startswith(f"{name}-"))
    if len(found) != 1:
        hint = f"{len(found)} wheels of {name} there: one is needed"
        raise InstallError("vendor", wheels / f"{name}-*.whl", errno.ENOENT, hint)
    try:
        with zipfile.ZipFile(found[0]) as wheel:
            record = next(n for n in wheel.namelist() if n.endswith(".dist-info/RECORD"))
            return read_distribution(name, wheel.read(record), wheel.read)
    except (zipfile.BadZipFile, StopIteration, KeyError, ValueError):
        raise InstallError("vendor", found[0], errno.EINVAL, "not a whole wheel: fetch it again")


def _from_venv(name: str, venv: Path) -> dict[str, bytes]:
    found = sorted(venv.glob("lib/python3*/site-packages/*.dist-info/RECORD"))
    records = [path for path in found if path.parent.name.lower().startswith(f"{name}-")]
    if not records:
        raise InstallError("vendor", name, errno.ENOENT, "run scripts/setup-venv, or pass --wheels DIR with its wheel")
    site = records[0].parent.parent
    return read_distribution(name, records[0].read_bytes(), lambda path: (site / path).read_bytes())


def collect(checkout: Path, wheels: Path | None, python: Interpreter) -> dict[str, bytes]:
    """Path in the versioned directory -> content, of everything but .pyc files and MANIFEST."""
    files = {}
    for room, source in (("nvoci", "hooks/nvoci"), *((name, name) for name in DATA_ROOMS)):
        with doing("copy", checkout / source):
            files.update({f"{room}/{name}": content for name, content in read_tree(checkout / source).items()})
    if "nvoci/__init__.py" not in files:
        raise InstallError("copy", checkout / "hooks/nvoci", errno.ENOENT, "run scripts/install from a whole checkout")
    for name in VENDORED + (VENDORED_BEFORE_3_11 if python.minor < (3, 11) else ()):
        with doing("vendor", name):
            package = _from_wheels(name, wheels) if wheels else _from_venv(name, checkout / ".venv")
        require_python(name, package, python)
        files.update({f"vendor/{path}": content for path, content in package.items()})
    return files
