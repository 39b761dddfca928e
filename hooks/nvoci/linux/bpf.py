"""bpf(2) for programs of type BPF_PROG_TYPE_CGROUP_DEVICE: one small function for each command, no policy.

Layouts and numbers are those of linux/bpf.h; every command gets as much of `union bpf_attr` as it needs, and the kernel
takes what is missing as zero. Needs CAP_SYS_ADMIN (or CAP_BPF and CAP_NET_ADMIN; PROG_GET_FD_BY_ID the former) in the
initial user namespace. All functions raise OSError.
"""

from __future__ import annotations

import posix
from _struct import pack, unpack_from
from errno import EFBIG

from nvoci.linux import abi
from nvoci.linux.libc import address, buffer, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _ctypes

    from nvoci.linux.libc import CChar

# enum bpf_cmd
_PROG_LOAD = 5
_PROG_ATTACH = 8
_PROG_DETACH = 9
_PROG_GET_FD_BY_ID = 13
_OBJ_GET_INFO_BY_FD = 15
_PROG_QUERY = 16
# enum bpf_prog_type, enum bpf_attach_type
_PROG_TYPE_CGROUP_DEVICE = 15
_CGROUP_DEVICE = 6
# attach_flags; none of the first two: a cgroup below may have no program of its own
F_ALLOW_OVERRIDE = 1
F_ALLOW_MULTI = 2
F_REPLACE = 4  # Linux 5.6

MAX_PROGRAMS = 64  # include/linux/bpf-cgroup.h: BPF_CGROUP_MAX_PROGS
_USUAL_BYTES = 4096 * 8  # BPF_MAXINSNS, as many as a program had before 5.2
MAX_BYTES = 1 << 19  # 65,536 instructions; a device program has some dozens
_LOG_BYTES = 1 << 16


class ProgInfo:
    """Of struct bpf_prog_info: `code` is the program as the verifier left it (8 bytes an instruction; None where the
    kernel does not show it), `maps` how many maps it uses."""

    __slots__ = ("code", "maps", "name")

    def __init__(self, name: bytes, maps: int, code: bytes | None) -> None:
        self.name = name
        self.maps = maps
        self.code = code


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """(result, the attributes as the kernel left them)."""
    attr = _filled(attributes)
    result = syscall(abi.NR["bpf"], command, attr, len(attributes))
    return result, bytes(attr)


def _filled(data: bytes) -> _ctypes.Array[CChar]:
    array = buffer(len(data))
    array[:] = data  # type: ignore[call-overload]
    return array


def prog_load(code: bytes, name: bytes) -> int:
    """BPF_PROG_LOAD of a device program: its descriptor, close-on-exec.

    {u32 prog_type, insn_cnt; u64 insns, license; u32 log_level, log_size; u64 log_buf; u32 kern_version, prog_flags;
    char prog_name[16]}
    """
    return _load(code, name, 0, 0)


def prog_log(code: bytes, name: bytes) -> str:
    """What the verifier says against a program, its last line; "" where it says nothing."""
    log = buffer(_LOG_BYTES)
    try:
        fd = _load(code, name, _LOG_BYTES, address(log))
    except OSError:
        lines = [line for line in bytes(log).partition(b"\0")[0].split(b"\n") if line]
        # The statistics come last.
        lines = [line for line in lines if not line.startswith(b"processed ")]
        return lines[-1].decode("ascii", "replace") if lines else ""
    posix.close(fd)
    return ""


def _load(code: bytes, name: bytes, log_size: int, log: int) -> int:
    instructions, license_text = _filled(code), _filled(b"Apache-2.0\0")
    where = address(instructions), address(license_text)
    level = 1 if log_size else 0
    return _bpf(_PROG_LOAD, pack("=IIQQIIQII16s", _PROG_TYPE_CGROUP_DEVICE, len(code) // 8, *where,
                                 level, log_size, log, 0, 0, name))[0]  # fmt: skip


def prog_attach(cgroup: int, prog: int, flags: int, replaced: int = 0) -> None:
    """BPF_PROG_ATTACH to a cgroup2 directory, with F_REPLACE in place of program `replaced`.

    {u32 target_fd, attach_bpf_fd, attach_type, attach_flags, replace_bpf_fd}
    """
    _bpf(_PROG_ATTACH, pack("=IIIII", cgroup, prog, _CGROUP_DEVICE, flags, replaced))


def prog_detach(cgroup: int, prog: int) -> None:
    """BPF_PROG_DETACH, {u32 target_fd, attach_bpf_fd, attach_type}."""
    _bpf(_PROG_DETACH, pack("=III", cgroup, prog, _CGROUP_DEVICE))


def prog_query(cgroup: int) -> tuple[list[int], int]:
    """BPF_PROG_QUERY: (ids of the device programs attached to this very cgroup, attach_flags).

    {u32 target_fd, attach_type, query_flags, attach_flags; u64 prog_ids; u32 prog_cnt}
    """
    ids = buffer(4 * MAX_PROGRAMS)
    attributes = pack("=IIIIQII", cgroup, _CGROUP_DEVICE, 0, 0, address(ids), MAX_PROGRAMS, 0)
    flags, count = unpack_from("=I8xI", _bpf(_PROG_QUERY, attributes)[1], 12)
    return list(unpack_from(f"={count}I", bytes(ids))), flags


def prog_fd(prog_id: int) -> int:
    """BPF_PROG_GET_FD_BY_ID, {u32 prog_id, next_id, open_flags}: a descriptor, close-on-exec."""
    return _bpf(_PROG_GET_FD_BY_ID, pack("=III", prog_id, 0, 0))[0]


def prog_info(prog: int) -> ProgInfo:
    """BPF_OBJ_GET_INFO_BY_FD, {u32 bpf_fd, info_len; u64 info}, with the instructions. EFBIG beyond MAX_BYTES."""
    size = _USUAL_BYTES
    while True:
        code = buffer(size)
        # struct bpf_prog_info: u32 xlated_prog_len at 20, u64 xlated_prog_insns at 32, u32 nr_map_ids at 52,
        # char name[16] at 64
        info = _filled(pack("=20xI8xQ40x", size, address(code)))
        _bpf(_OBJ_GET_INFO_BY_FD, pack("=IIQ", prog, len(info), address(info)))
        raw = bytes(info)
        length, shown, maps, name = unpack_from("=20xI8xQ12xI8x16s", raw)
        if length <= size:
            return ProgInfo(name.partition(b"\0")[0], maps, bytes(code)[:length] if shown else None)
        if length > MAX_BYTES:
            raise OSError(EFBIG, "a device program of this size is not looked at")
        size = length
