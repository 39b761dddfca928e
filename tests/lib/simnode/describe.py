"""The description of a node that is there: a real one, or one that was built.

A description read, built and described is the same again, but for: the order of its files; directories that other
entries make necessary; `uid` and `gid` of 0; the case of hexadecimal digits; zero words at the end of an affinity;
files longer than 256 KiB, which keep their first 256 bytes; and bits of a regular file's mode above 777. ld.so.cache is
never described, and /proc/devices only where it does not follow from the device nodes.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import stat
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

from lib.simnode import elfread, majors, places
from lib.simnode import faults as fault_words
from lib.simnode.description import DRIVER_NOT_LOADED, ElfFile, Entry, Node, load
from lib.simnode.nvmllib import can_answer

CHECKOUT = Path(__file__).resolve().parents[3]
PYTHON = CHECKOUT / ".venv/bin/python"
NVML_SECONDS = 20
_ENVIRONMENT = ("PATH", fault_words.VARIABLE)
_TIMEOUT, _UNKNOWN = 10, 999
_WHOLE, _PART = 256 << 10, 256
_KINDS = {
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFREG: "file",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFSOCK: "socket",
    stat.S_IFIFO: "fifo",
}
# Attributes of a PCI device that are worth telling.
_PCI_FILES = ("vendor", "device", "class", "subsystem_vendor", "subsystem_device", "numa_node", "local_cpulist")
_NVIDIA = "0x10de"


def describe(root: str | Path = "/", *, nvml: bool = True) -> tuple[dict[str, Any], list[str]]:
    """The description, and a line for each thing that could not be read. nvml=False loads no library of the node."""
    top = Path(root).resolve()
    if not top.is_dir():
        raise OSError(errno.ENOTDIR, "not a directory", str(top))
    teller = _Teller("" if str(top) == "/" else str(top))
    for prefix in ("", *teller.driver_roots()):
        teller.take(prefix)
    files = teller.entries()
    answers = _ask_nvml(teller, files) if nvml else None
    document = Node(tuple(files), answers).document()
    load(document)  # what is written here can be read again
    return document, teller.warnings


class _Teller:
    """Entries by path, and what went wrong."""

    def __init__(self, root: str) -> None:
        self.root = root  # "" for /
        self.found: dict[str, Entry] = {}
        self.warnings: list[str] = []

    def on_disk(self, path: str) -> str:
        """Where `path` is on this machine."""
        return self.root + path

    def driver_roots(self) -> list[str]:
        """/run/nvidia/driver, where a driver container has its root: a directory, or a link to one."""
        path = "/run/nvidia/driver"
        for _ in range(8):
            if not os.path.islink(self.on_disk(path)):
                break
            path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(self.on_disk(path))))
        return [path] if os.path.isdir(self.on_disk(f"{path}/usr")) else []

    def take(self, prefix: str) -> None:
        """Everything of the driver below one root."""
        top = self.on_disk(prefix)
        patterns = [*places.TOP, *(f"usr/{name}" for name in places.USR), *places.DIRECTORIES, *places.FILES]
        for directory in _configured(top):
            patterns += places.in_library_directory(directory)
        for path in places.find(top, patterns):
            self.add(prefix + path)
        self.add_pci(prefix)

    def add(self, path: str) -> None:
        """One path, with the directories on the way to it."""
        for each in (*reversed(PurePosixPath(path).parents[:-1]), PurePosixPath(path)):
            if str(each) not in self.found:
                self._add(str(each))

    def _add(self, path: str) -> None:
        try:
            status = os.lstat(self.on_disk(path))
            entry = self._entry(path, status)
        except OSError as e:
            self.warn(path, e)
            return
        self.found[path] = entry

    def _entry(self, path: str, status: os.stat_result) -> Entry:
        kind = _KINDS[stat.S_IFMT(status.st_mode)]
        if kind == "symlink":
            return Entry(path, kind, target=os.readlink(self.on_disk(path)))
        values: dict[str, Any] = {"mode": stat.S_IMODE(status.st_mode)}
        if (status.st_uid, status.st_gid) != (0, 0):
            values.update(uid=status.st_uid, gid=status.st_gid)
        if kind in {"char", "block"}:
            values.update(major=os.major(status.st_rdev), minor=os.minor(status.st_rdev))
        if kind == "file":
            values["content"] = self._content(path)
        return Entry(path, kind, **values)

    def _content(self, path: str) -> bytes | ElfFile:
        elf = elfread.read(Path(self.on_disk(path)))
        if elf:
            return elf
        with open(self.on_disk(path), "rb") as file:
            data = file.read(_WHOLE + 1)
        return data if len(data) <= _WHOLE else data[:_PART]

    def add_pci(self, prefix: str) -> None:
        """NVIDIA's devices in sysfs: there links into /sys/devices, here directories with a few files and drm/*."""
        place = f"{prefix}/sys/bus/pci/devices"
        for address in places.find(self.on_disk(place), ["*"]) if os.path.isdir(self.on_disk(place)) else ():
            device = place + address
            vendor = self._first_line(f"{device}/vendor")
            if vendor not in ("", _NVIDIA):
                continue
            self.found[device] = Entry(device, "dir", 0o755)
            names = places.find(
                os.path.realpath(self.on_disk(device)), [*_PCI_FILES, "drm", "drm/card*", "drm/renderD*"]
            )
            for name in sorted(names):
                is_directory = name.startswith("/drm")
                path = device + name
                if is_directory:
                    self.found[path] = Entry(path, "dir", 0o755)
                else:
                    self._add(path)

    def _first_line(self, path: str) -> str:
        try:
            return Path(self.on_disk(path)).read_text(errors="replace")[:64].strip()
        except OSError:
            return ""

    def warn(self, path: str, error: OSError) -> None:
        """Remember what could not be read."""
        self.warnings.append(f"read `{path}`: {errno.errorcode.get(error.errno or 0, str(error))}")

    def entries(self) -> list[Entry]:
        """In the order of paths; without a table of majors that says nothing new."""
        for path in [p for p in self.found if p.endswith("/proc/devices")]:
            rest = tuple(e for e in self.found.values() if e.path != path)
            if self.found[path].content == majors.derive(Node(rest)):
                del self.found[path]
        return [self.found[path] for path in sorted(self.found) if self._has_parents(path)]

    def _has_parents(self, path: str) -> bool:
        parents = [self.found.get(str(parent)) for parent in PurePosixPath(path).parents[:-1]]
        return all(parent is not None and parent.kind == "dir" for parent in parents)


def _configured(top: str) -> list[str]:
    """Directories named in ld.so.conf and the files beside it; each but the usual ones."""
    found: list[str] = []
    for name in sorted(places.find(top, ["etc/ld.so.conf", "etc/ld.so.conf.d/*.conf"])):
        try:
            text = Path(top + name).read_text(errors="replace")[:_WHOLE]
        except OSError:
            continue
        found += re.findall(r"^\s*(/[^\s#]*)", text, re.MULTILINE)
    return list(dict.fromkeys(os.path.normpath(each) for each in found))


def _run(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    """As subprocess.run; what the command has started in its process group ends with it."""
    pipe = subprocess.PIPE
    child = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True, cwd="/"
    )
    try:
        stdout, stderr = child.communicate(timeout=NVML_SECONDS)
    finally:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
    return subprocess.CompletedProcess(command, child.returncode, stdout, stderr)


def _ask_nvml(teller: _Teller, files: list[Entry]) -> dict[str, Any] | None:
    """The answers of the library that libnvidia-ml.so.1 leads to; None where none can be loaded here."""
    able = [e for e in Node(tuple(files)).nvml_libraries if can_answer(e)]
    if not able:
        return None
    linked = {str(PurePosixPath(e.path).parent / e.target) for e in files if e.path.endswith("/libnvidia-ml.so.1")}
    library = next((e.path for e in able if e.path in linked), able[-1].path)
    if not PYTHON.exists():
        teller.warnings.append(f"ask `{library}`: ENOENT (`{PYTHON}` is not there: run scripts/setup-venv)")
        return None
    command = [str(PYTHON), "-I", str(Path(__file__).with_name("_nvml_child.py")), teller.on_disk(library)]
    # A stranger's library: it sees nothing of the caller's environment, and _nvml_child.py gives it nobody's rights.
    env = {key: value for key, value in os.environ.items() if key in _ENVIRONMENT}
    try:
        done = _run(command, env)
    except subprocess.TimeoutExpired:
        teller.warnings.append(f"ask `{library}`: ETIMEDOUT (no answer in {NVML_SECONDS} s)")
        return {"error": _TIMEOUT}
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        teller.warnings.append(f"ask `{library}`: ends with {done.returncode} {last}".rstrip())
        return {"error": DRIVER_NOT_LOADED if b"OSError" in done.stderr else _UNKNOWN}
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers
