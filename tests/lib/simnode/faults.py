"""Faults of the simulated NVML library, as text: in NVOCI_SIMNODE_FAULTS; else in the file /.simnode/faults of the
node, where the library finds it by its own path; else in /run/.simnode-faults, which `simnode run` makes for its
command.

One word for each, separated by blanks or newlines; CALL is the name of an NVML function, whatever its _vN, or `init`
(nvmlInit and nvmlInitWithFlags), `load` (while it is loaded), `any`; CALL@2 is meant for GPU 2 and its MIG devices.

    lost=INDEX         every call about this GPU answers NVML_ERROR_GPU_IS_LOST
    hang=CALL          never returns
    crash=CALL         SIGSEGV
    slow=CALL:MS       waits first
    error=CALL:CODE    answers with this nvmlReturn_t
    print=CALL         writes a line to standard output
    stdout             the same as print=init
    mismatch           nvmlInit: NVML_ERROR_LIB_RM_VERSION_MISMATCH
    not-loaded         nvmlInit: NVML_ERROR_DRIVER_NOT_LOADED
    version=TEXT       nvmlSystemGetDriverVersion answers this
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

VARIABLE = "NVOCI_SIMNODE_FAULTS"
FILE = ".simnode/faults"
RUN_FILE = "/run/.simnode-faults"  # for programs that clear the environment, and a library that lies at /usr/lib
MOST = 32  # FAULTS_MAX of nvml.c
_CALL = r"(?:init|load|any|nvml[A-Za-z0-9]+(?:_v\d+)?)(?:@\d{1,3})?"
_FORMS = {
    "lost": r"\d{1,3}",
    "hang": _CALL,
    "crash": _CALL,
    "print": _CALL,
    "slow": _CALL + r":\d{1,6}",
    "error": _CALL + r":\d{1,3}",
    "version": r"[0-9A-Za-z.]{1,79}",
    "mismatch": "",
    "not-loaded": "",
    "stdout": "",
}


def text(faults: Mapping[str, Any] | str | None) -> str:
    """The words for {"lost": [1, 2], "hang": "init", "mismatch": True…}, or a checked string of words. ValueError."""
    words = (
        faults.split()
        if isinstance(faults, str)
        else [w for key in faults or {} for w in _words(key, (faults or {})[key])]
    )
    for word in words:
        name, equals, value = word.partition("=")
        if name not in _FORMS:
            raise ValueError(f"fault `{word}`: none of {', '.join(_FORMS)}")
        if bool(equals) != bool(_FORMS[name]) or not re.fullmatch(_FORMS[name], value):
            raise ValueError(f"fault `{word}`: not of the form {name}{'=' if _FORMS[name] else ''}{_FORMS[name]}")
    if len(words) > MOST:
        raise ValueError(f"{len(words)} faults, {MOST} at most")
    return " ".join(words)


def _words(name: str, value: Any) -> Iterator[str]:
    name = name.replace("_", "-")
    if value is True:
        yield name
    elif isinstance(value, (list, tuple, set)):
        for each in value:
            yield from _words(name, each)
    elif value is not False and value is not None:
        yield f"{name}={value}"
