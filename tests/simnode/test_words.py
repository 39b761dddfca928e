"""The pure pieces: words for faults, the table of major numbers, C text of answers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lib import simnode
from lib.simnode import faults, header, majors
from lib.simnode.answers import architecture

GOOD: dict[str, tuple[Any, str]] = {
    "none": (None, ""),
    "one": ({"lost": 2}, "lost=2"),
    "several": ({"lost": [1, 2], "hang": "init"}, "lost=1 lost=2 hang=init"),
    "flags": ({"mismatch": True, "not_loaded": True, "stdout": False}, "mismatch not-loaded"),
    "call of a GPU": ({"error": "nvmlDeviceGetName@3:15"}, "error=nvmlDeviceGetName@3:15"),
    "text": ("crash=load  slow=any:10\n", "crash=load slow=any:10"),
}


@pytest.mark.parametrize("what", GOOD)
def test_faults_become_words(what: str) -> None:
    given, words = GOOD[what]
    assert faults.text(given) == words


BAD = {
    "unknown": ("lose=2", "fault `lose=2`: none of lost, hang,"),
    "no number": ("lost=x", r"fault `lost=x`: not of the form lost=\\d"),
    "no value": ("hang", "fault `hang`: not of the form hang="),
    "a value too much": ("mismatch=1", "fault `mismatch=1`: not of the form mismatch$"),
    "no function": ("crash=system", "fault `crash=system`: not of the form"),
    "no code": ("error=init", "fault `error=init`: not of the form"),
    "too many": ("stdout " * 33, "33 faults, 32 at most"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_wrong_fault_is_told(what: str) -> None:
    words, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        faults.text(words)


def test_the_table_of_majors_follows_from_the_nodes() -> None:
    table = majors.derive(simnode.load(simnode.sample("imex"))).decode()
    assert table.startswith("Character devices:\n 10 misc\n195 nvidia\n195 nvidia-modeset\n195 nvidiactl\n226 drm\n")
    assert "\n234 nvidia-caps-imex-channels\n236 nvidia-caps\n" in table
    assert table.endswith("\n\nBlock devices:\n")


def test_a_table_is_merged_into_that_of_the_machine() -> None:
    host = "Character devices:\n  1 mem\n226 drm\n195 nvidia-frontend\n240 nvidia-caps\n\n"
    host += "Block devices:\n  7 loop\n254 virtblk\n"
    simulated = "Character devices:\n195 nvidia\n236 nvidia-caps\n\nBlock devices:\n"
    merged = (
        "Character devices:\n  1 mem\n195 nvidia\n226 drm\n236 nvidia-caps\n\nBlock devices:\n  7 loop\n254 virtblk\n"
    )
    assert majors.merge(host, simulated) == merged


def test_the_own_version_is_that_of_the_name() -> None:
    names = {
        "libnvidia-ml.so.550.163.01": "550.163.01",
        "libnvidia-ml.so.580.00": "580.00",
        "libnvidia-ml.so.1": "",
        "x.so": "",
    }
    assert {name: header.own_version(f"/a/{name}") for name in names} == names


def test_text_in_c_holds_nothing_that_c_would_read() -> None:
    sample = simnode.sample("hostile")
    node = simnode.load(sample)
    text = header.text(node.nvml_libraries[0], node.nvml or {})
    assert r'"GPU-\012  - path: /dev/sda"' in text
    assert r"\042\047\140\044\050id\051" in text
    assert "\\033[2J" not in text  # nor a bracket
    assert "\x1b" not in text


AWKWARD = {
    "quote": 'a"b',
    "ends the string": 'GPU"; int x; static const char y[] = "',
    "backslash": "a\\nb\\",
    "line ends": "a\nb\r\n",
    "trigraphs": "??/\"??'??=include <x>",
    "digit after an escape": "\n1\x018",
    "comment": "/* // */",
    "format": "%s%n",
    "other bytes": "\u00e9\u4e2d\udcff\x7f",
}


@pytest.mark.parametrize("what", AWKWARD)
def test_a_compiler_reads_the_text_that_was_meant(what: str, tmp_path: Path) -> None:
    text = AWKWARD[what]
    literal = header._string(text)
    assert re.fullmatch(r'"([A-Za-z0-9 _.:/+-]|\\[0-7]{3})*"', literal)
    (tmp_path / "x.c").write_text(
        f"#include <stdio.h>\nint main(void) {{ static const char t[] = {literal};\n"
        "return fwrite(t, 1, sizeof t, stdout) != sizeof t; }\n"
    )
    subprocess.run(["gcc", "-trigraphs", "-Werror", "-o", tmp_path / "x", tmp_path / "x.c"], check=True)
    done = subprocess.run([tmp_path / "x"], capture_output=True, check=True)
    assert done.stdout == text.encode("utf-8", "surrogateescape") + b"\0"


def test_every_text_of_a_description_is_escaped_in_c() -> None:
    """All that may be any text: path, versions, name, UUIDs, serial number, also of MIG devices."""
    document, evil = simnode.sample("a100-mig"), '"??=\\\n};'
    library = next(e for e in document["files"] if e.get("elf", {}).get("soname") == "libnvidia-ml.so.1")
    document["files"].append({**library, "path": library["path"] + evil})
    nvml = document["nvml"]
    nvml.update(driver_version=evil, nvml_version=evil)
    nvml["gpus"][0].update({key: evil + key for key in ("name", "uuid", "serial")})
    nvml["gpus"][0]["mig_devices"][0].update(name=evil, uuid=evil + "mig")
    node = simnode.load(document)
    text = header.text(node.entry(library["path"] + evil), node.nvml or {})
    escaped = r"\042\077\077\075\134\012\175\073"
    assert text.count(escaped) == 8
    assert "?" not in text
    assert all(line.count('"') % 2 == 0 for line in text.splitlines())


ARCHITECTURES = {
    (5, 2): 3,
    (6, 1): 4,
    (7, 0): 5,
    (7, 5): 6,
    (8, 0): 7,
    (8, 6): 7,
    (8, 9): 8,
    (9, 0): 9,
    (10, 0): 10,
    (12, 0): 10,
    (2, 0): 0xFFFFFFFF,
}


def test_an_architecture_follows_from_the_capability() -> None:
    assert {capability: architecture(list(capability)) for capability in ARCHITECTURES} == ARCHITECTURES
    assert architecture({"error": 15}) == {"error": 15}
