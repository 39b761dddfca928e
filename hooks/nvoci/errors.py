"""The one exception type that reaches a person, and the exit codes.

Below this sits OSError, with errno and path; a HookError is made where the stage and the remedy are known, and
only main prints it. Hot module: no imports beside errno.
"""

import errno as _errno

OK = 0
FAILED = 1


class HookError(Exception):
    """A failure, told in one line: `message` names stage, object and errno; `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def line(self) -> str:
        """The message and its hint on one line, at most 4 KiB (a runtime buffers and prints all of it). A longer one
        loses its middle, which is an object's name: the errno and the hint stand at the end."""
        text = f"{self.message} ({self.hint})" if self.hint else self.message
        return text if len(text) <= 4000 else text[:3000] + " [cut] " + text[-900:]


def printable(unsafe: object) -> str:
    """Text from a container or the command line, safe for a log line: no control character, no bidi mark."""
    if isinstance(unsafe, bytes):
        text = unsafe.decode("utf-8", "backslashreplace")
    else:
        text = str(unsafe)
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


_HINTS = {
    _errno.ENOSPC: "the file system is full, or out of inodes",
    _errno.EDQUOT: "the disk quota is used up",
    _errno.EROFS: "the file system is mounted read-only",
    _errno.ELOOP: "a symbolic link loops, or leads through a /proc magic link, which is not followed",
    _errno.ENOTDIR: "a component of the path is not a directory",
    _errno.EISDIR: "a directory is in the way, and is never removed",
    _errno.EBUSY: "a mount point is in the way",
    _errno.EEXIST: "something else is in the way",
    _errno.ENAMETOOLONG: "the path, or a component of it, is too long",
    _errno.EPERM: "check the hook's capabilities, the file's attributes and the security module's log",
    _errno.EACCES: "check the owner: an id the container's user namespace does not map can't be written to, "
    "and without CAP_DAC_OVERRIDE nobody else's either; call the hook as createRuntime",
    _errno.EOVERFLOW: "the owner's id is not mapped in the container's user namespace; call the hook as createRuntime",
    _errno.EMFILE: "raise RLIMIT_NOFILE of the runtime",
    _errno.ENFILE: "raise fs.file-max",
    _errno.ENOMEM: "out of memory, or RLIMIT_AS is too small",
    _errno.EIO: "check the disk and the kernel's log",
    _errno.EAGAIN: "the path changed each time it was looked up",
    _errno.ESRCH: "the container's process is gone",
}


# How the texts of errors of our own begin that are the hint.
_SAYS_MORE = ("a lease", "links of the image")


def errno_name(number: int) -> str:
    """`ENOENT` for 2; the number itself where it has no name."""
    return _errno.errorcode.get(number, f"errno {number}")


def hook_error(stage: str, unsafe_object: object, error: OSError, hint: str = "") -> HookError:
    """`STAGE OBJECT: ERRNO`, with the usual remedy of that errno unless the caller knows a better one. An empty object
    is left out: `e.filename or ""` of a call that names no file."""
    number = error.errno or 0
    text = error.strerror or ""
    if text.startswith(_SAYS_MORE):
        hint = text  # whatever the caller knows of the object, this is what is amiss with it
    name = printable(unsafe_object)
    what = f"{stage} {name}" if name else stage.rstrip(":")
    return HookError(f"{what}: {errno_name(number)}", hint or _HINTS.get(number, ""))
