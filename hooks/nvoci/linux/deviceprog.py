"""Device rules of a cgroup2 directory: our rules in front of every device program attached to it.

A device is open to a process only if every program says so, those of the cgroups above among them; so one more program
can only take away. Where nothing is attached, nothing is forbidden, and nothing is to be done. The old programs are
kept by their descriptors, and undo attaches the very same ones again.
"""

from __future__ import annotations

from errno import E2BIG, EINVAL, ENOENT, ENOSYS, EPERM

from nvoci import log
from nvoci.errors import HookError, errno_name, hook_error, printable
from nvoci.linux import abi, bpf, bpfdevice
from nvoci.linux.fd import Fd
from nvoci.linux.syscalls import prlimit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvoci.linux.devicerule import DeviceRule

_NAME = b"nvoci_devices"
_RLIM_INFINITY = 0xFFFFFFFFFFFFFFFF
_PRIVILEGE = ("bpf(2) needs CAP_SYS_ADMIN on the host, and a seccomp profile may forbid it: "
              "call the hook as createRuntime or prestart")  # fmt: skip
_HINTS = {
    EPERM: _PRIVILEGE,
    ENOSYS: "the kernel has no bpf(2), or a seccomp profile forbids it",
    E2BIG: f"a cgroup can have {bpf.MAX_PROGRAMS} programs, and has them: the kernel then does not replace one either",
    ENOENT: "the program was attached by a link, or is gone: only what BPF_PROG_ATTACH attached can be replaced",
}


class _Swap:
    """One program, and what takes its place; no `new` where that is attached already."""

    __slots__ = ("new", "old", "prog_id")

    def __init__(self, prog_id: int, old: Fd, new: Fd | None) -> None:
        self.prog_id = prog_id
        self.old = old
        self.new = new

    def close(self) -> None:
        self.old.close()
        if self.new is not None:
            self.new.close()


class DevicePrograms:
    """The device programs of one cgroup2 directory, which `cgroup` has open."""

    __slots__ = ("_done", "_flags", "cgroup", "listed", "path", "shared")

    def __init__(self, cgroup: Fd, path: bytes, shared: bool = False, listed: bool = False) -> None:
        """path: of the cgroup, for messages. shared: it is not the container's alone, and a change is an error.
        listed: the container has a v1 list, which is what its runtime uses; no answer then means no programs."""
        self.cgroup = cgroup
        self.path = path
        self.shared = shared
        self.listed = listed
        self._flags = 0
        self._done: list[_Swap] = []

    def allow(self, rules: Sequence[DeviceRule]) -> None:
        """Allow `rules`, or raise HookError with everything as it was."""
        swaps = self._plan(rules)
        if swaps and self.shared:
            _close(swaps)
            raise HookError(f"{self._named()}: is the runtime's own, too",
                            "give the container a cgroup of its own, or leave device rules to the engine")  # fmt: skip
        try:
            for swap in swaps:
                self._swap(swap)
                self._done.append(swap)
        except OSError as e:
            error = self._error(swap.prog_id, "replace", e)
            try:
                self.undo()
            except HookError as second:
                log.error(second.line())
            raise error from None
        finally:
            _close([swap for swap in swaps if swap not in self._done])
        if self._done:
            log.info("device programs replaced", cgroup=self.path, programs=len(self._done))

    def undo(self) -> None:
        """Attach the old programs again. Raises HookError once all have been tried."""
        failed: HookError | None = None
        while self._done:
            swap = self._done.pop()
            try:
                self._swap_back(swap)
            except OSError as e:
                failed = failed or self._error(swap.prog_id, "put back", e)
            swap.close()
        if failed is not None:
            raise failed

    def close(self) -> None:
        """Close what is open; what was allowed stays allowed."""
        _close(self._done)
        self._done.clear()
        self.cgroup.close()

    # -- what there is to do --------------------------------------------------------------------------------------

    def _plan(self, rules: Sequence[DeviceRule]) -> list[_Swap]:
        """Everything that can be refused is refused here: nothing has been changed yet."""
        held: list[tuple[int, Fd, bytes]] = []
        swaps: list[_Swap] = []
        try:
            for prog_id in self._ids():
                fd, code = self._read(prog_id)
                held.append((prog_id, fd, code))
            for prog_id, fd, code in held:
                wanted = bpfdevice.missing(code, rules)
                if wanted:
                    merged = bpfdevice.prefix(wanted) + code
                    # A run that was killed between attaching a new program and detaching the old one left both.
                    twice = any(other == merged for _, _, other in held)
                    swaps.append(_Swap(prog_id, fd, None if twice else self._load(prog_id, merged)))
        except HookError:
            _close(swaps)
            swaps = []
            raise
        finally:
            kept = [swap.old for swap in swaps]
            for _, fd, _ in held:
                if fd not in kept:
                    fd.close()
        return swaps

    def _ids(self) -> list[int]:
        try:
            ids, self._flags = bpf.prog_query(self.cgroup.fileno())
        except OSError as e:
            if self.listed:
                log.info("no answer about device programs", cgroup=self.path, errno=errno_name(e.errno or 0))
                return []
            hint = _HINTS.get(e.errno or 0, "")
            raise hook_error(f"{self._named()}: ask for", "its device programs", e, hint) from None
        return ids

    def _read(self, prog_id: int) -> tuple[Fd, bytes]:
        try:
            fd = Fd(bpf.prog_fd(prog_id))
        except OSError as e:
            raise self._error(prog_id, "open", e) from None
        try:
            info = bpf.prog_info(fd.fileno())
            if info.maps:
                raise ValueError("it uses a map")
            if info.code is None:
                raise ValueError("the kernel does not show it: net.core.bpf_jit_harden or kernel.kptr_restrict is 2")
            return fd, bpfdevice.loadable(info.code)
        except OSError as e:
            fd.close()
            raise self._error(prog_id, "read", e) from None
        except ValueError as e:
            fd.close()
            raise self._unmergeable(prog_id, str(e)) from None

    def _load(self, prog_id: int, merged: bytes) -> Fd:
        try:
            return Fd(_load(merged))
        except OSError as e:
            if e.errno in (EPERM, ENOSYS):
                raise self._error(prog_id, "load", e) from None
            said = printable(bpf.prog_log(merged, _NAME))
            raise self._unmergeable(prog_id, f"{errno_name(e.errno or 0)} {said}".rstrip()) from None

    # -- doing it -------------------------------------------------------------------------------------------------

    def _swap(self, swap: _Swap) -> None:
        cgroup, old = self.cgroup.fileno(), swap.old.fileno()
        if swap.new is None:
            bpf.prog_detach(cgroup, old)
        else:
            _replace(cgroup, old, swap.new.fileno(), self._flags)

    def _swap_back(self, swap: _Swap) -> None:
        cgroup, old = self.cgroup.fileno(), swap.old.fileno()
        if swap.new is None:
            bpf.prog_attach(cgroup, old, self._flags)
        else:
            _replace(cgroup, swap.new.fileno(), old, self._flags)

    # -- words ----------------------------------------------------------------------------------------------------

    def _named(self) -> str:
        return f"device cgroup {printable(self.path)}"

    def _error(self, prog_id: int, verb: str, error: OSError) -> HookError:
        hint = _HINTS.get(error.errno or 0, "")
        return hook_error(f"{self._named()}: {verb} device program", prog_id, error, hint)

    def _unmergeable(self, prog_id: int, why: str) -> HookError:
        return HookError(f"{self._named()}: merge device program {prog_id}: {why}",
                         "give the devices in the container's config, or detach that program")  # fmt: skip


def _replace(cgroup: int, old: int, new: int, flags: int) -> None:
    """In one step; before Linux 5.6 attach, then detach, where for a moment both decide. Without F_ALLOW_MULTI there
    is one program only, and attaching replaces it."""
    if not flags & bpf.F_ALLOW_MULTI:
        bpf.prog_attach(cgroup, new, flags)
        return
    try:
        bpf.prog_attach(cgroup, new, flags | bpf.F_REPLACE, old)
    except OSError as e:
        if e.errno != EINVAL:
            raise
        bpf.prog_attach(cgroup, new, flags)
        try:
            bpf.prog_detach(cgroup, old)
        except OSError:
            bpf.prog_detach(cgroup, new)
            raise


def _load(code: bytes) -> int:
    try:
        return bpf.prog_load(code, _NAME)
    except OSError as e:
        if e.errno != EPERM:
            raise
    try:
        prlimit(abi.RLIMIT_MEMLOCK, _RLIM_INFINITY, _RLIM_INFINITY)  # programs counted against it before Linux 5.11
    except OSError:
        pass  # not ours to raise
    return bpf.prog_load(code, _NAME)


def _close(swaps: Sequence[_Swap]) -> None:
    for swap in swaps:
        swap.close()
