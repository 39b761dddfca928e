"""A process that has loaded a hook and has run nothing of it; each request forks one that does.

As a program, isolated as a hook is: _zygote.py HOOKS SOCKET ROOM[,ROOM…] [FOLDER…]. Every module of the rooms of
`nvoci` is loaded, and nothing of it is called here, so that whoever is forked starts from the same state. FOLDERs are
put on sys.path behind HOOKS.

A request is one JSON object with the descriptors for 0, 1 and 2 (`_run`), or none (`_unmount`); the answer is another,
when the forked process and everything it left behind have ended.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import json
import os
import socket
import struct
import sys
import time

# linux/seccomp.h, linux/prctl.h, linux/sched.h, asm/unistd.h
SET_MODE_FILTER, NEW_LISTENER, WAIT_KILLABLE_RECV = 1, 1 << 3, 1 << 5
NR_SECCOMP = {"x86_64": 317, "aarch64": 277}
PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNS, MNT_DETACH = 0x00020000, 2

libc = ctypes.CDLL(None, use_errno=True)
libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


def load(rooms: list[str], folders: list[str]) -> None:
    """Before the first request. A room is a package below `nvoci`, or one module: `discover.model`."""
    sys.path[1:1] = folders
    for room in rooms:
        package = importlib.import_module(f"nvoci.{room}")
        for where in getattr(package, "__path__", ()):
            for name in sorted(os.listdir(where)):
                if name.endswith(".py") and name != "__init__.py":
                    importlib.import_module(f"nvoci.{room}.{name[:-3]}")


def serve(control: socket.socket) -> None:
    """Until the other end is closed."""
    while True:
        data, fds, _, _ = socket.recv_fds(control, 1 << 20, 3)
        if not data:
            return
        request = json.loads(data)
        pid = os.fork()
        if pid == 0:
            try:
                _unmount(request) if "paths" in request else _run(control, request, fds)
            finally:
                os._exit(1)
        for fd in fds:
            os.close(fd)
        _, status = os.waitpid(pid, 0)
        ended = time.monotonic()
        while True:  # orphans of it are ours
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
        control.send(json.dumps({"status": status, "lingered": time.monotonic() - ended}).encode())


def _unmount(request: dict) -> None:
    """paths: in the mount namespace of `enter`, the last first."""
    _enter(request["enter"], ("mnt",))
    for path in request["paths"]:
        libc.umount2(os.fsencode(path), MNT_DETACH)


def _enter(pid: int, kinds: tuple[str, ...]) -> None:
    fds = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in kinds]
    for fd in fds:
        if libc.setns(fd, 0):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(fd)


def _run(control: socket.socket, request: dict, fds: list[int]) -> None:
    """The hook. enter: the container's process, whose namespaces it is to be in, as nsenter(1) does it; 0: none.
    filter: instructions of a filter to load right before, as hexadecimal; "": none. module, function: to be called; or
    program: a file to be run. listen: the filter has a listener, of which the other end is told before it is made."""
    if request["enter"]:
        _enter(request["enter"], ("ipc", "uts", "pid", "mnt"))
        pid = os.fork()
        if pid:
            for fd in (*fds, control.fileno()):
                os.close(fd)
            status = os.waitpid(pid, 0)[1]
            os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
    os.chdir(request["cwd"])
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    sys.argv = request["words"]
    function = None if request["program"] else getattr(sys.modules[request["module"]], request["function"])
    if request["filter"]:
        _load_filter(control, bytes.fromhex(request["filter"]), request["listen"])
    if not request["listen"]:
        control.close()
    try:
        if function is not None:
            function()
        else:
            _run_file(request["program"])
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
        if isinstance(e.code, str):
            os.write(2, f"{e.code}\n".encode())
    except BaseException:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())
        code = 1
    else:
        code = 0
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _run_file(path: str) -> None:
    with open(path) as file:
        text = file.read()
    exec(compile(text, path, "exec"), {"__name__": "__main__", "__file__": path})


def _load_filter(control: socket.socket, code: bytes, listen: bool) -> None:
    """A process with the filter can do nothing before somebody listens, so it can't hand over the listener itself. It
    says in advance which number that will have."""
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    number = NR_SECCOMP[os.uname().machine]
    if listen:
        told = fcntl.fcntl(control.fileno(), fcntl.F_DUPFD_CLOEXEC, 100)  # as any foreign one, the hook's to close
        control.close()
        lowest = os.dup(0)
        os.close(lowest)  # before it is told, so that nothing else is taken for the listener
        # By /proc, which is the host's: in a pid namespace getpid() is another number.
        os.write(told, json.dumps({"pid": int(os.readlink("/proc/self")), "listener": lowest}).encode())
    for flags in (NEW_LISTENER | WAIT_KILLABLE_RECV, NEW_LISTENER) if listen else (0,):
        if libc.syscall(number, SET_MODE_FILTER, flags, program) >= 0:
            return
    raise OSError(ctypes.get_errno(), "seccomp")


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with socket.socket(fileno=int(sys.argv[2])) as end:
        load(sys.argv[3].split(","), sys.argv[4:])
        end.send(b"{}")
        serve(end)
