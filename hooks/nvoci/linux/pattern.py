"""glob(7) patterns of one path component, matched in linear steps; `Rootfs.match` applies them to a tree."""

from __future__ import annotations


def is_pattern(text: bytes) -> bool:
    """Whether `text` has a wildcard."""
    return any(c in text for c in (b"*", b"?", b"["))


def literal_prefix(pattern: bytes) -> bytes:
    """What every name that matches begins with: quicker to ask than `match`, where there are many names."""
    end = 0
    while end < len(pattern) and pattern[end] not in b"*?[\\":
        end += 1
    return pattern[:end]


def match(pattern: bytes, name: bytes) -> bool:
    """fnmatch(3) of one path component: `*`, `?`, `[…]`, `\\`. A leading dot is matched only by itself.

    At most len(pattern) x len(name) steps: after a mismatch only the last `*` takes one more character.
    """
    if name.startswith(b".") and not pattern.startswith((b".", b"\\.")):
        return False
    p = n = 0
    star = mark = -1
    while n < len(name):
        if pattern[p : p + 1] == b"*":
            star, mark = p, n
            p += 1
            continue
        end = _one(pattern, p, name[n])
        if end > 0:
            p, n = end, n + 1
        elif star >= 0:
            mark += 1
            p, n = star + 1, mark
        else:
            return False
    return not pattern[p:].strip(b"*")


def _one(pattern: bytes, at: int, char: int) -> int:
    """Match one character against the pattern's element at `at`: where the next begins, or 0."""
    element = pattern[at : at + 1]
    if not element:
        return 0
    if element == b"?":
        return at + 1
    if element == b"[":
        close = pattern.find(b"]", at + 3 if pattern[at + 1 : at + 2] in (b"!", b"^") else at + 2)
        if close > 0:
            return close + 1 if _in_set(pattern[at + 1 : close], char) else 0
    if element == b"\\" and at + 1 < len(pattern):
        return at + 2 if pattern[at + 1] == char else 0
    return at + 1 if element[0] == char else 0


def _in_set(members: bytes, char: int) -> bool:
    negated = members[:1] in (b"!", b"^")
    members = members[negated:]
    found, i = False, 0
    while i < len(members):
        if members[i + 1 : i + 2] == b"-" and i + 2 < len(members):
            found |= members[i] <= char <= members[i + 2]
            i += 3
        else:
            found |= members[i] == char
            i += 1
    return found != negated
