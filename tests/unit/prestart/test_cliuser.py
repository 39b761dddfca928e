"""Names and numbers of users and groups."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.prestart.prestarttools import error

from nvoci.prestart import cliuser

PASSWD = "root:x:0:0:root:/root:/bin/sh\nbroken\nnvml:x:61:62::/:\nodd:x:no:62::/:\n7:x:70:71::/:\n"
GROUP = "root:x:0:\nvideo:x:44:me\nodd:x\n9:x:90:\n"
GOOD = {
    "0": (0, 0),
    "0:0": (0, 0),
    "61": (61, 62),
    "1234:5678": (1234, 5678),
    "nvml": (61, 62),
    "nvml:video": (61, 44),
    "61:video": (61, 44),
    "nvml:9": (61, 9),
    "4294967294:0": (4294967294, 0),
    "007:0": (7, 0),
}
MISSING, RANGE = "no such file or directory", "numerical result out of range"
BAD = {
    "nobody-here": MISSING,
    "1234": MISSING,
    "0:": MISSING,
    ":0": MISSING,
    "0:wheel": MISSING,
    "odd": MISSING,
    "0:odd": MISSING,
    "-1:0": MISSING,
    "0:0:0": MISSING,
    "4294967295:0": RANGE,
    "0:99999999999": RANGE,
    "9" * 6000: RANGE,
    "a\nb": MISSING,
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    for name, text in (("passwd", PASSWD), ("group", GROUP)):
        (tmp_path / name).write_text(text)
    return str(tmp_path / "passwd"), str(tmp_path / "group")


@pytest.mark.parametrize("text", GOOD)
def test_ids(text: str, files: tuple[str, str]) -> None:
    assert cliuser.parse(text, *files) == GOOD[text]


@pytest.mark.parametrize("text", BAD)
def test_what_there_is_not(text: str, files: tuple[str, str]) -> None:
    assert error(lambda: cliuser.parse(text, *files)).message == f"input error: parse user/group failed: {BAD[text]}"


def test_without_files_numbers_remain(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert cliuser.parse("1:2", nowhere, nowhere) == (1, 2)
    assert MISSING in error(lambda: cliuser.parse("1", nowhere, nowhere)).message
