"""A command in a private mount and pid namespace where the fixed places of a GPU node show a simulated one.

What the kernel permits: procfs and sysfs take no new names, and a device file system is the whole machine's. So
/proc/driver, which is there on every Linux, and /proc/devices are mounted on; /dev, /run and /sys/bus/pci/devices (or
the nearest directory above that is there) are covered by a tmpfs which has everything again that was there before,
with the simulated things beside it. Opening a simulated device node is ENXIO: there is no driver.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lib.simnode import faults, majors
from lib.simnode.maker import LDCONFIG, SYSTEM_DIRECTORIES, UNSHARE
from lib.simnode.nvmllib import BuildError
from nvoci.linux import abi
from nvoci.linux.syscalls import mount, prctl

# What another GPU of the machine has in /dev.
_GPU_NODES = ("nvidia*", "dri", "nvhost*", "nvmap", "nvgpu", "gdrdrv", "dxg")
_PCI = "/sys/bus/pci/devices"
_OWN = ".simnode"
_WORK = f"/run/{_OWN}"
_MOST_WORDS = 4095  # FAULTS_TEXT of nvml_faults.h, less the NUL
_SHOWN = ("run", "dev", "proc", "sys", "usr", "etc", "opt")
_NEVER_COVERED = ("/", "/proc", "/sys")


def outer(inner: Sequence[str]) -> int:
    """Run `inner`, a command that calls `inside`, in new namespaces; its exit status. All of it dies with this
    process."""
    if os.geteuid() != 0:
        raise BuildError("make a mount namespace: EPERM (it mounts, and makes device nodes: run as root)")
    unshare = [UNSHARE, "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = subprocess.run(
        [*unshare, "/bin/true"], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise BuildError(
            f"make mount and pid namespaces: {done.stderr.strip()} (CAP_SYS_ADMIN and a whole /proc are needed)"
        )
    child = subprocess.Popen([*unshare, *inner], preexec_fn=lambda: prctl(abi.PR_SET_PDEATHSIG, signal.SIGKILL))

    def end(number: int, frame: object) -> None:
        os.kill(child.pid, signal.SIGKILL)  # not by its methods: this may have interrupted one that holds their lock
        try:
            os.waitpid(child.pid, 0)
        except ChildProcessError:
            pass
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells the command as well, and that decides
    code = child.wait()
    return code if code >= 0 else 128 - code


def inside(root: Path, command: Sequence[str], *, installed: bool) -> int:
    """In the namespaces, as their first process: mount, run the command, return its exit status."""
    show(root, installed=installed)
    try:
        child = subprocess.Popen(command)
    except OSError as e:
        print(f"simnode: run `{command[0]}`: {errno.errorcode.get(e.errno or 0)}", file=sys.stderr)
        return 127 if e.errno == errno.ENOENT else 126
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: child.send_signal(number))
    code = child.wait()
    return code if code >= 0 else 128 - code


def show(root: Path, *, installed: bool) -> None:
    """All mounts, in a mount namespace that is nobody else's. A node whose top directories are links is refused: what
    they lead to would be mounted."""
    for name in _SHOWN:
        if os.path.islink(root / name):
            raise BuildError(f"show `{root / name}`: ELOOP (it is a link; a node that is run needs a directory)")
    mask = os.umask(0)
    try:
        _show_run(root)
        _show_dev(root)
        _show_proc(root)
        _show_sys(root)
        if installed:
            _install(root)
    except OSError as e:
        raise BuildError(f"mount on `{e.filename}`: {errno.errorcode.get(e.errno or 0)} ({e.strerror})")
    finally:
        os.umask(mask)


def _bind(source: str | Path, target: str | Path) -> None:
    mount(os.fsencode(source), os.fsencode(target), None, abi.MS_BIND | abi.MS_REC)


def _names(path: Path) -> list[str]:
    return sorted(os.listdir(path)) if path.is_dir() else []


def _cover(directory: str, drop: Callable[[str], bool] = lambda name: False) -> None:
    """A tmpfs on `directory` with everything in it that was there, but for the names to drop."""
    old = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mode = stat.S_IMODE(os.fstat(old).st_mode)
        mount(b"simnode", os.fsencode(directory), b"tmpfs", 0, f"mode={mode:o}".encode())
        for name in os.listdir(old):
            if not drop(name):
                _again(f"/proc/self/fd/{old}/{name}", f"{directory}/{name}")
    finally:
        os.close(old)


def _again(source: str, target: str) -> None:
    """The same file at `target`: links and device nodes anew, everything else mounted."""
    try:
        status = os.lstat(source)
    except FileNotFoundError:  # it went meanwhile
        return
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFLNK:
        os.symlink(os.readlink(source), target)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        os.mknod(target, status.st_mode, status.st_rdev)
        os.chown(target, status.st_uid, status.st_gid)
        os.chmod(target, stat.S_IMODE(status.st_mode))
    elif kind == stat.S_IFDIR:
        os.mkdir(target)
        _bind(source, target)
    else:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        _bind(source, target)


def _show_run(root: Path) -> None:
    """Directories and sockets of the node in place of the machine's; /run/nvoci, where an inventory lies, is empty."""
    names = [
        name for name in _names(root / "run") if os.path.islink(root / "run" / name) or _names(root / "run" / name)
    ]
    _cover("/run", lambda name: name in (*names, "nvoci", _OWN, os.path.basename(faults.RUN_FILE)))
    os.mkdir(_WORK, 0o700)
    _show_faults(root)
    for name in _names(root / "run"):
        if not os.path.lexists(f"/run/{name}"):
            _again(str(root / "run" / name), f"/run/{name}")


def _show_faults(root: Path) -> None:
    """The faults of the environment, else the node's as they are now, in a file for processes that clear their
    environment. Where the node has a file of its own, that of the environment covers it."""
    own, words = root / faults.FILE, os.environ.get(faults.VARIABLE)
    is_file = stat.S_ISREG(_mode(own)) and stat.S_ISDIR(_mode(own.parent))
    data = words.encode("utf-8", "surrogateescape") if words is not None else own.read_bytes() if is_file else b""
    if not data and words is None:
        return
    fd = os.open(faults.RUN_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "wb") as file:
        file.write(data[:_MOST_WORDS])
    if words is not None and is_file:
        _bind(faults.RUN_FILE, own)


def _mode(path: Path) -> int:
    """st_mode of the file itself, were it a link; 0 if it is not there."""
    try:
        return path.lstat().st_mode
    except OSError:
        return 0


def _show_dev(root: Path) -> None:
    names = _names(root / "dev")
    _cover("/dev", lambda name: name in names or any(fnmatch.fnmatchcase(name, each) for each in _GPU_NODES))
    for name in names:
        _copy(str(root / "dev" / name), f"/dev/{name}")


def _copy(source: str, target: str) -> None:
    """Device nodes made anew: the node's directory may lie on a file system without devices."""
    if not os.path.isdir(source) or os.path.islink(source):
        _again(source, target)
        return
    os.mkdir(target, stat.S_IMODE(os.stat(source).st_mode))
    for name in os.listdir(source):
        _copy(f"{source}/{name}", f"{target}/{name}")


def _show_proc(root: Path) -> None:
    for name in _names(root / "proc"):
        source, target = root / "proc" / name, f"/proc/{name}"
        if name == "devices":
            merged = Path(_WORK, "devices")
            merged.write_text(majors.merge(Path(target).read_text(), source.read_text()))
            merged.chmod(0o444)
            source = merged
        if os.path.exists(target):
            _bind(source, target)
        else:
            print(f"simnode: show `{target}`: ENOENT (nothing to mount on: left out)", file=sys.stderr)


def _show_sys(root: Path) -> None:
    devices = _names(root / _PCI[1:])
    if (root / _PCI[1:]).is_dir():
        _make_room(_PCI, lambda name: name in devices or _is_nvidia(name))
    for name in devices:
        _again(str(root / _PCI[1:] / name), f"{_PCI}/{name}")
    for folder, directories, files in os.walk(root / "sys"):
        place = f"/{os.path.relpath(folder, root)}"
        if place == _PCI:
            directories.clear()
        for name in files:
            if not os.path.exists(f"{place}/{name}"):
                _make_room(place, lambda each: False)
                Path(place, name).touch()
            _bind(f"{folder}/{name}", f"{place}/{name}")


def _is_nvidia(name: str) -> bool:
    try:
        return Path(_PCI, name, "vendor").read_text().strip() == "0x10de"
    except OSError:
        return False


def _make_room(directory: str, drop: Callable[[str], bool]) -> None:
    """A directory in sysfs in which names can be made."""
    there = directory
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    if there in _NEVER_COVERED:
        raise OSError(errno.EPERM, "nothing to mount on but all of it", there)
    _cover(there, drop if there == directory else lambda name: False)
    os.makedirs(directory, exist_ok=True)


def _install(root: Path) -> None:
    """The node's /usr, /etc and /opt on top of the machine's, and an ld.so.cache of both."""
    for name in ("usr", "etc", "opt"):
        if (root / name).is_dir() and os.path.isdir(f"/{name}"):
            upper, work = f"{_WORK}/{name}", f"{_WORK}/{name}.work"
            os.mkdir(upper, 0o755)
            os.mkdir(work)
            lower = str(root / name).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")
            options = f"lowerdir={lower}:/{name},upperdir={upper},workdir={work}"
            mount(b"overlay", f"/{name}".encode(), b"overlay", 0, os.fsencode(options))
    if os.path.isdir("/var/cache/ldconfig"):
        mount(b"simnode", b"/var/cache/ldconfig", b"tmpfs", 0, b"mode=700")
    directories = [name for name in SYSTEM_DIRECTORIES if os.path.isdir(name) and not os.path.islink(name)]
    done = subprocess.run(
        [LDCONFIG, "-X", *directories], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise BuildError(f"run `{LDCONFIG}`: it ends with {done.returncode}")
