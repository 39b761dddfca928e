"""Names: of GPUs, MIG devices, CDI devices, versions and numbers, each against a regular expression or libc."""

from __future__ import annotations

import ctypes
import re

from fuzz.registry import Target, register

from nvoci.cdi import names as cdi_names
from nvoci.discover import _answers
from nvoci.discover.devnode import numbered
from nvoci.discover.fingerprint import module_version
from nvoci.discover.libnames import stem_of, version_of
from nvoci.errors import HookError, printable
from nvoci.generate.devices import is_identifier
from nvoci.hook import migcaps
from nvoci.linux.devicerule import DeviceRule
from nvoci.prestart import devices
from nvoci.prestart import names as prestart_names

_HEX = "[0-9a-fA-F]"
_UUID = f"{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}"
_NATURAL = r"(?:0|[1-9][0-9]*)"
_libc = ctypes.CDLL(None)
_libc.strtoumax.restype = ctypes.c_ulonglong


def _seeds() -> list[bytes]:
    uuid = "12345678-1234-1234-1234-12345678abcd"
    texts = [
        f"GPU-{uuid}", f"MIG-{uuid}", f"MIG-GPU-{uuid}/7/0", uuid, "00000000:0F:00.0", "0000:0f:1f.7", "0:f:0",
        "1:2", "+3", " 07",
        "nvidia.com/gpu=0", "a/b=c:d", "v-_.w/c=GPU-1", "libcuda.so.550.54.15", "libnvidia-ml.so.1",
        "x Module  550.163.01  y",
        "c 195:0 rw", "b 8:1048575 r", "c :5 rw", "nvidia12", "007", "",
    ]  # fmt: skip
    return [text.encode() for text in texts]


def _all(data: bytes) -> dict[str, object]:
    """What each reader makes of it; of the rule, the error too."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        rule: object = str(DeviceRule.parse(text))
    except HookError as e:
        rule = e
    return {
        "text": text,
        "printable": printable(text),
        "uuid": _answers.is_uuid(text, "GPU-", ""),
        "identifier": is_identifier(text),
        "bus id": _answers.kernel_bus_id(text),
        "address": devices._address(text.lower()),
        "old mig": _answers.old_mig_parts(text.lower()),
        "natural": _answers.is_natural(text),
        "cdi": cdi_names.is_qualified(text),
        "prestart": prestart_names.qualified(text),
        "number": devices._number(text),
        "kernel": migcaps.number(data),
        "numbered": numbered(text, "nvidia"),
        "version": version_of(text),
        "stem": stem_of(text),
        "module": module_version(text),
        "rule": rule,
    }


def _check(data: bytes, case: bytes, answer: dict[str, object]) -> None:
    text = data.decode("utf-8", "surrogateescape")
    assert str(answer["printable"]).isprintable()
    assert answer["uuid"] == bool(re.fullmatch(f"(?:GPU-)?{_UUID}", text))
    old = re.fullmatch(f"mig-(gpu-{_UUID})/([0-9]+)/([0-9]+)", text.lower(), re.ASCII)
    assert answer["old mig"] == (old.groups() if old else ("", "", ""))
    assert answer["natural"] == bool(re.fullmatch("[0-9]+", text))
    assert not answer["identifier"] or re.fullmatch(
        rf"(?:GPU|MIG|MIG-GPU)-{_UUID}(?:/[0-9]+/[0-9]+)?|[0-9]+(?::[0-9]+)?", text
    )
    assert answer["kernel"] == (int(data) if re.fullmatch(rb"0|[1-9][0-9]{0,6}", data) else None)
    _check_addresses(text, answer)
    _check_cdi(text, answer)
    _check_numbers(text, answer)
    _check_versions(text, answer)


def _check_addresses(text: str, answer: dict[str, object]) -> None:
    """Both readers of PCI addresses take the same for one, where it has as many digits as an address has."""
    found = re.fullmatch(f"({_HEX}{{1,8}}):({_HEX}{{1,2}}):({_HEX}{{1,2}})(?:[.](.*))?", text, re.DOTALL)
    address = answer["address"]
    if address is not None:
        assert found
        assert address == tuple(int(part, 16) for part in found.groups()[:3])
    said = answer["bus id"]
    if said:
        assert re.fullmatch(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.0", str(said))
        parts = [part.partition(".")[0] for part in text.split(":", 2)]
        assert all(re.fullmatch(f"{_HEX}+", part) for part in parts), f"{text!r} is taken for {said}"


def _check_cdi(text: str, answer: dict[str, object]) -> None:
    word = r"[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
    device = r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?"
    assert answer["cdi"] == answer["prestart"] == bool(re.fullmatch(f"{word}/{word}={device}", text))


def _check_numbers(text: str, answer: dict[str, object]) -> None:
    """As strtoumax(3), where that takes all of it for a decimal number and no sign turns it round."""
    plain = re.fullmatch(r"[ \t\n\v\f\r]*\+?([0-9]+)", text)
    value = _libc.strtoumax(text.encode("utf-8", "replace"), None, 10) if plain else None
    number = answer["number"]
    assert number == (value if plain and len(plain[1].lstrip("0")) < 10 else None)
    wanted = re.fullmatch(f"nvidia({_NATURAL})", text)
    assert answer["numbered"] == (int(wanted[1]) if wanted and len(wanted[1]) <= 7 else None)
    rule = answer["rule"]
    if isinstance(rule, HookError):
        assert rule.line().isprintable()
    else:
        assert str(DeviceRule.parse(str(rule))) == rule
        assert re.fullmatch(r"[bc] [0-9]+:[0-9]+ (?:r|w|rw)", str(rule))


def _check_versions(text: str, answer: dict[str, object]) -> None:
    version, stem, module = str(answer["version"]), str(answer["stem"]), str(answer["module"])
    if version:
        assert re.fullmatch(r"[0-9]+(?:\.[0-9]+){1,3}", version)
        assert text.endswith(f".so.{version}")
    if stem:
        assert text == f"{stem}.so" or text.startswith(f"{stem}.so.")
    if module:
        assert module in text.split()
        assert re.fullmatch(r"[0-9]+(?:\.[0-9]+){1,2}", module)


register(
    Target(
        "names", parse=_all, errors=(), check=_check, seeds=_seeds, max_size=1 << 10, executions=2000,
        tokens=(
            b"GPU-", b"MIG-", b"mig-gpu-", b"12345678", b"-1234", b"123456780001", b"/0", b":", b".", b"0x", b"_",
            b"+", b" ",
            b"-", b"=", b"/", b"nvidia.com/gpu=", b".so.", b".so", b"\xd9\xa1", b"\xc2\xb2", b"\n", b"\0",
            b"c 195:0 rw", b"1", b"a",
        ),
    )
)  # fmt: skip
