"""Whether Go's regexp package, with which the engines match, would compile a pattern (RE2 syntax).

Python's `re` is asked, after what only one of the two knows has been refused or rewritten. An unsure case counts as
good: the engines have the last word, and say so at their next start.
"""

from __future__ import annotations

import re
import warnings

_MAX_REPEAT = 1000  # regexp/syntax: maxRepeat
_CLASS = r"\\[pP](?:\{\^?\w+\}|\w)|\\x\{[0-9A-Fa-f]+\}|\[:\^?\w+:\]"  # what stands for characters, in RE2 only
_TOKEN = re.compile(
    rf"""(?P<quote>\\Q.*?(?:\\E|$))
      | (?P<set>\[\^?\]?(?:{_CLASS}|\\.|[^\]\\])*\])
      | (?P<only>{_CLASS})
      | (?P<escape>\\.)
      | (?P<flags>\(\?[imsU]*(?:-[imsU]+)?[:)])
      | (?P<named>\(\?P?<\w+>)
      | (?P<group>\(\?.{{0,2}})
      | (?P<twice>(?:[*+?]|\{{\d+(?:,\d*)?\}})\+)
      | (?P<repeat>\{{(?P<low>\d+)(?:,(?P<high>\d*))?\}})
      | .""",
    re.VERBOSE | re.DOTALL,
)


def check(pattern: str) -> None:
    """Raises ValueError with the reason."""
    translated = "".join(_translate(found) for found in _TOKEN.finditer(pattern))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(translated)
    except (re.error, RecursionError, OverflowError) as e:
        raise ValueError(str(e)) from None


def _translate(found: re.Match[str]) -> str:
    """One piece of the pattern as `re` writes it. Raises ValueError for what RE2 does not know."""
    kind, text = found.lastgroup, found[0]
    if found["repeat"]:
        kind = "repeat"  # lastgroup is one inside it
    if kind == "quote":
        return re.escape(text[2:].removesuffix("\\E"))
    if kind == "set":
        return re.sub(_CLASS, "x", text)
    if kind == "only":
        return "x"
    if kind == "flags":
        return "(?:" if text.endswith(":") else ""
    if kind == "named":
        return text if text.startswith("(?P") else "(?P" + text[2:]
    if kind == "group":
        raise ValueError(f"`{text}`: RE2 has no look-around, back-references or conditions")
    if kind == "twice":
        raise ValueError(f"`{text}`: a repetition of a repetition")
    if kind == "repeat" and max(int(found["low"]), int(found["high"] or 0)) > _MAX_REPEAT:
        raise ValueError(f"`{text}`: more than {_MAX_REPEAT} repetitions")
    if kind == "escape":
        if text[1] in "123456789Z":
            raise ValueError(f"`{text}` is not known to RE2")
        return {"\\z": "\\Z", "\\C": "."}.get(text, text)
    return text
