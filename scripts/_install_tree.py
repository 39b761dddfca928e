"""An installed tree: its places, its lock, its manifests; files written and renamed, verified, removed.

Standard library only, Python >= 3.9.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _install_hot as hot
import _install_units as units
from _install_lib import InstallError, Interpreter, doing, require_trusted, sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

LINK = "nvoci"
MANIFEST = "MANIFEST"
TEMPORARY = ".nvoci-tmp-"
COMPILE = """
import os, sys, py_compile
staging, final = sys.argv[1:]
for top, _, names in os.walk(staging):
    for name in names:
        if name.endswith('.py'):
            path = os.path.join(top, name)
            try:
                py_compile.compile(path, dfile=final + path[len(staging):], doraise=True,
                                   invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
            except py_compile.PyCompileError as error:
                sys.exit(f'{path[len(staging) + 1:]}: {error.exc_type_name}: {error.exc_value}')
"""


class Tree:
    """The places below one prefix."""

    def __init__(self, prefix: str) -> None:
        path = Path(prefix).absolute()
        if not re.fullmatch(r"[ -~]+", prefix):
            raise InstallError(
                "use prefix", prefix, errno.EINVAL, "printable ASCII only: the path stands in the entry files"
            )
        with doing("use prefix", prefix):
            self.prefix = path.resolve()
        self.lib = self.prefix / "lib"
        self.bin = self.prefix / "bin"
        self.units = self.prefix / units.PLACE
        self.link = self.lib / LINK

    def require_trusted(self) -> None:
        """Refuse directories that others can write, and links and files where directories are needed."""
        for place in (self.prefix, self.lib, self.bin, self.units.parent, self.units):
            if place.is_symlink() or (place.exists() and not place.is_dir()):
                raise InstallError(
                    "use prefix", place, errno.ENOTDIR, "a directory is needed there: choose another prefix"
                )
            require_trusted(place, "prefix")
        if os.path.lexists(self.link) and not (self.link.is_symlink() and self.current()):
            hint = "no link of ours: move it away, or choose another prefix"
            raise InstallError("replace", self.link, errno.EEXIST, hint)

    def current(self) -> str:
        """The name of the versioned directory the link points to; "" when there is none."""
        try:
            target = os.readlink(self.link)
        except OSError:
            return ""
        return target if re.fullmatch(r"nvoci-[^/]+", target) else ""

    def versions(self) -> dict[str, dict[str, Any]]:
        """Name -> manifest of every versioned directory that is ours."""
        found = {path.name: read_manifest(path) for path in sorted(self.lib.glob("nvoci-*")) if not path.is_symlink()}
        return {name: manifest for name, manifest in found.items() if manifest}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One installer at a time; what a killed one left behind is removed."""
        handle = os.open(self.lib, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with doing("lock", self.lib, "another scripts/install is at work: wait for it"):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for place in [left for top in (self.lib, self.bin, self.units) for left in top.glob(f"{TEMPORARY}*")]:
                with doing("remove", place):
                    shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
            yield
        finally:
            os.close(handle)


# --- writing -------------------------------------------------------------------------------------------------------


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, content: bytes, mode: int = 0o644) -> None:
    """A new durable file, root's, with exactly `mode` whatever umask and the directory's setgid bit say."""
    with doing("write", path), path.open("xb") as file:
        file.write(content)
        os.fchown(file.fileno(), 0, 0)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())


def make_directories(path: Path, made: list[str]) -> None:
    """mkdir -p with mode 0755 and owner root; what it makes is appended to `made` at once, outermost first."""
    for place in reversed((path, *path.parents)):
        if not place.exists():
            with doing("make directory", place):
                place.mkdir()
                made.append(str(place))
                os.chown(place, 0, 0)
                place.chmod(0o755)


def settle(top: Path) -> None:
    """After the compiler: owner, modes and durability of everything below `top`."""
    for place, _, names in os.walk(top):
        for name in names:
            with doing("write", Path(place, name)), Path(place, name).open("rb") as file:
                os.fchown(file.fileno(), 0, 0)
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
        with doing("write", place):
            os.chown(place, 0, 0)
            Path(place).chmod(0o755)
            sync_directory(Path(place))


def run_python(python: Interpreter, staging: Path, *words: str) -> None:
    """A program of ours in the interpreter of the hooks: what it writes is code for that one."""
    command = [python.path, "-ISB", *words]
    done = subprocess.run(command, env={}, cwd="/", capture_output=True, text=True, check=False)
    if done.returncode:
        last = ascii((done.stderr.strip().splitlines() or ["no message"])[-1])[1:-1]
        raise InstallError("compile", staging, errno.ENOEXEC, f"{python.path}: {last}")


def stage(lib: Path, final: Path, files: dict[str, bytes], python: Interpreter) -> Path:
    """Write and compile everything in a temporary directory beside its place; the caller renames or removes it."""
    with doing("make directory", lib):
        staging = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=lib))
    try:
        for name, content in files.items():
            make_directories((staging / name).parent, [])
            write_file(staging / name, content)
        # dfile: tracebacks name the place where the file will be.
        run_python(python, staging, "-c", COMPILE, str(staging), str(final))
        run_python(python, staging, "-X", "no_debug_ranges", hot.__file__, str(staging), str(final))
        settle(staging)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return staging


def replace_entry(path: Path, content: bytes, mode: int, undo: ExitStack) -> None:
    """Write beside and rename; a hard link keeps the old file until everything has succeeded."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    old = path.with_name(f"{TEMPORARY}{path.name}.old")
    undo.callback(temporary.unlink, missing_ok=True)
    write_file(temporary, content, mode)
    with doing("replace", path):
        if os.path.lexists(path):
            os.link(path, old, follow_symlinks=False)
            undo.callback(os.replace, old, path)
        else:
            undo.callback(path.unlink, missing_ok=True)
        temporary.replace(path)


def point_link(tree: Tree, target: str) -> None:
    """The one rename that makes a version the current one."""
    temporary = tree.lib / f"{TEMPORARY}link"
    with doing("replace", tree.link):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.chown(temporary, 0, 0, follow_symlinks=False)
        temporary.replace(tree.link)
        sync_directory(tree.lib)


def switch(tree: Tree, target: str, undo: ExitStack) -> None:
    """Point the link at `target`; undo points it back."""
    before = tree.current()
    if before:
        undo.callback(point_link, tree, before)
    else:
        undo.callback(tree.link.unlink, missing_ok=True)
    point_link(tree, target)


# --- the manifest --------------------------------------------------------------------------------------------------


def describe_tree(top: Path) -> dict[str, dict[str, str]]:
    """Relative path -> sha256 and mode of every file below `top`."""
    found = {}
    for path in sorted(top.rglob("*")):
        if path.is_file():
            mode = f"{stat.S_IMODE(path.stat().st_mode):04o}"
            found[str(path.relative_to(top))] = {"sha256": sha256(path.read_bytes()), "mode": mode}
    return found


def read_manifest(version: Path) -> dict[str, Any] | None:
    """The manifest of a versioned directory; None when it has none of ours."""
    try:
        found = json.loads((version / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("format") == 1 else None


def file_finding(path: Path, entry: dict[str, str]) -> str:
    """What is wrong with one file that was laid down; "" when nothing is."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return "is no longer a plain file"
        if sha256(path.read_bytes()) != entry["sha256"]:
            return "was changed"
    except OSError as error:
        return "is missing" if error.errno == errno.ENOENT else errno.errorcode.get(error.errno or 0, "EIO")
    mode = f"{stat.S_IMODE(status.st_mode):04o}"
    if status.st_uid or status.st_gid or mode != entry["mode"]:
        return f"has owner {status.st_uid}:{status.st_gid} mode {mode}, not root's {entry['mode']}"
    return ""


def tree_findings(version: Path, manifest: dict[str, Any]) -> list[str]:
    """One line for each file of a versioned directory that is not as it was laid down, or was not laid down at all."""
    lines = []
    for name, entry in manifest["files"].items():
        finding = file_finding(version / name, entry)
        if finding:
            lines.append(f"{version / name} {finding}")
    for path in sorted(version.rglob("*")):
        name = str(path.relative_to(version))
        if path.is_dir() and not path.is_symlink():
            if path.stat().st_uid or path.stat().st_mode & 0o022:
                lines.append(f"{path} can be written by others")
        elif name != MANIFEST and name not in manifest["files"]:
            lines.append(f"{path} was not laid down by scripts/install")
    return lines


# --- removing -----------------------------------------------------------------------------------------------------


def remove_directories(places: list[str]) -> None:
    """Those that are empty, innermost first."""
    for place in sorted(places, key=len, reverse=True):
        try:
            Path(place).rmdir()
        except OSError:
            continue


def remove_files(top: Path, files: dict[str, dict[str, str]]) -> list[str]:
    """Remove what is as it was laid down; returns one line for each file that is not."""
    left = []
    for name, entry in files.items():
        finding = file_finding(top / name, {**entry})
        if finding in {"", "is missing"}:
            with doing("remove", top / name):
                (top / name).unlink(missing_ok=True)
        else:
            left.append(f"{top / name} {finding}")
    return left


def remove_version(version: Path, manifest: dict[str, Any]) -> list[str]:
    """A versioned directory, MANIFEST last; MANIFEST stays while something else does, for the next attempt."""
    left = remove_files(version, manifest["files"])
    places = [str(path) for path in version.rglob("*") if path.is_dir() and not path.is_symlink()]
    remove_directories(places)
    rest = [path for path in version.rglob("*") if path.name != MANIFEST and not path.is_dir()]
    known = {line.split(" ", 1)[0] for line in left}
    left += [f"{path} was not laid down by scripts/install" for path in rest if str(path) not in known]
    if not rest:
        with doing("remove", version):
            (version / MANIFEST).unlink()
            version.rmdir()
    return left
