"""What reaches a person: one bounded, printable line with stage, object, errno and remedy."""

from __future__ import annotations

import errno

import pytest

from nvoci.errors import HookError, errno_name, hook_error, printable

PRINTABLE: dict[str, tuple[object, str]] = {
    "plain": ("a b/c'\"\\", "a b/c'\"\\"),
    "empty": ("", ""),
    "newline": ("a\nb", r"a\nb"),
    "carriage return": ("a\rb", r"a\rb"),
    "escape": ("\x1b[31m", r"\x1b[31m"),
    "DEL and C1": ("\x7f\x85\x9b", r"\x7f\x85\x9b"),
    "NUL": ("\0", r"\x00"),
    "right-to-left override": ("a\u202eb", r"a\u202eb"),
    "right-to-left mark": ("\u200f", r"\u200f"),
    "isolates": ("\u2066\u2069", r"\u2066\u2069"),
    "zero width": ("a\u200b\ufeff", r"a\u200b\ufeff"),
    "line and paragraph separator": ("\u2028\u2029", r"\u2028\u2029"),
    "no-break space": ("\xa0", r"\xa0"),
    "other alphabets stay": ("\u9a71\u52a8 \u00e9", "\u9a71\u52a8 \u00e9"),
    "surrogate": ("\udcff\ud800", r"\udcff\ud800"),
    "private use": ("\U000f0000", r"\U000f0000"),
    "bytes": (b"a b", "a b"),
    "bytes that are UTF-8": ("\u00e9".encode(), "\u00e9"),
    "bytes that are not": (b"a\xff\n", r"a\xff\n"),
    "number": (3, "3"),
    "none": (None, "None"),
}


@pytest.mark.parametrize(("unsafe", "text"), PRINTABLE.values(), ids=PRINTABLE)
def test_text_of_a_stranger_is_made_printable(unsafe: object, text: str) -> None:
    assert printable(unsafe) == text
    assert printable(unsafe).isprintable()


def test_a_line_is_the_message_and_its_hint() -> None:
    assert HookError("mount x: EBUSY").line() == "mount x: EBUSY"
    assert HookError("mount x: EBUSY", "unmount it").line() == "mount x: EBUSY (unmount it)"
    assert str(HookError("mount x: EBUSY", "unmount it")) == "mount x: EBUSY"


@pytest.mark.parametrize("length", [0, 1, 3900, 4000, 4096, 1 << 20])
def test_a_line_is_bounded_and_keeps_its_end(length: int) -> None:
    line = hook_error("open", "x" * length, OSError(errno.ENOENT, ""), "look there").line()
    assert len(line) <= 4000
    assert line.startswith("open")
    assert line.endswith(": ENOENT (look there)")


def test_every_errno_is_named_and_an_unknown_one_is_a_number() -> None:
    assert all(errno_name(number) == name for number, name in errno.errorcode.items())
    assert (errno_name(0), errno_name(9999)) == ("errno 0", "errno 9999")


ERRORS: dict[str, tuple[OSError, str, str]] = {
    "usual remedy": (OSError(errno.ENOSPC, ""), "", "s o: ENOSPC (the file system is full, or out of inodes)"),
    "a better one": (OSError(errno.ENOSPC, ""), "free it", "s o: ENOSPC (free it)"),
    "none": (OSError(errno.EXDEV, ""), "", "s o: EXDEV"),
    "no errno": (OSError("x"), "", "s o: errno 0"),
    "a subclass": (FileNotFoundError(errno.ENOENT, ""), "", "s o: ENOENT"),
}


@pytest.mark.parametrize(("error", "hint", "line"), ERRORS.values(), ids=ERRORS)
def test_an_os_error_is_told_with_stage_object_errno_and_remedy(error: OSError, hint: str, line: str) -> None:
    assert hook_error("s", "o", error, hint).line() == line


OBJECTS: dict[str, tuple[str, object, str]] = {
    "none": ("prestart", "", "prestart: ENOMEM"),
    "none, in bytes": ("prestart", b"", "prestart: ENOMEM"),
    "none, after a class": ("initialization error:", "", "initialization error: ENOMEM"),
    "one, after a class": ("initialization error:", "/x", "initialization error: /x: ENOMEM"),
    "a blank": ("prestart", " ", "prestart  : ENOMEM"),
}


@pytest.mark.parametrize(("stage", "unsafe_object", "message"), OBJECTS.values(), ids=OBJECTS)
def test_an_object_without_a_name_is_left_out(stage: str, unsafe_object: object, message: str) -> None:
    assert hook_error(stage, unsafe_object, OSError(errno.ENOMEM, "")).message == message


def test_the_object_is_made_printable() -> None:
    assert hook_error("open", b"a\n\xff", OSError(errno.EIO, ""), "h").line() == r"open a\n\xff: EIO (h)"
