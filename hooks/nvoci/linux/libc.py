"""The C library through `_ctypes`: one prototype for syscall(2), and errno.

Performance contract: `_ctypes` alone costs 0.3 ms, the `ctypes` package 2.0 ms, at every container start; so the
three types needed are declared here. All arguments travel as machine words: an int, bytes (NUL-terminated by
CPython), None (NULL) or a buffer made by `buffer()`. Python's own `posix` is used wherever it has the call.
"""

from __future__ import annotations

import posix

try:
    import _ctypes
except ImportError as e:
    # Before there is a program that could catch an error of ours: an interpreter that was built without libffi.
    raise SystemExit(f"start: import _ctypes: {e} (this Python has no ctypes: install nvoci with another)") from None

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Union

    Word = Union[int, bytes, None, "_ctypes.Array[CChar]"]


class CLong(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """C `long`."""

    _type_ = "l"


class CInt(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """C `int`."""

    _type_ = "i"


class CChar(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """C `char`."""

    _type_ = "c"


class CVoidP(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """C `void *`: accepts int, bytes, None and arrays."""

    _type_ = "P"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = CLong


def load(name: str, *argtypes: type) -> _Function:
    """A function of the C library with a fixed prototype; it returns `long`."""
    function = _Function(_ctypes.dlsym(_SELF, name))
    function.argtypes = argtypes
    return function


# dlopen(NULL): the interpreter itself, which has libc loaded. 4 us, where find_library() would spawn helpers (10 ms).
_SELF = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # NULL, as ctypes.CDLL(None) does
# syscall(2) is variadic; x86_64 and aarch64 Linux pass variadic integers like any other.
_syscall = load("syscall", CLong, CVoidP, CVoidP, CVoidP, CVoidP, CVoidP, CVoidP)


def syscall(number: int, a: Word = 0, b: Word = 0, c: Word = 0, d: Word = 0, e: Word = 0, f: Word = 0) -> int:
    """syscall(2). Returns its result; raises OSError(errno) without a path, which the caller adds."""
    result: int = _syscall(number, a, b, c, d, e, f)
    if result == -1:
        number = _ctypes.get_errno()
        raise OSError(number, posix.strerror(number))
    return result


def buffer(size: int) -> _ctypes.Array[CChar]:
    """A zeroed buffer of `size` bytes that a system call may write to; `bytes(buffer)` reads it."""
    array: _ctypes.Array[CChar] = (CChar * size)()
    return array


def address(array: _ctypes.Array[CChar]) -> int:
    """The address of a buffer, to be put into a structure that the kernel reads."""
    return _ctypes.addressof(array)
