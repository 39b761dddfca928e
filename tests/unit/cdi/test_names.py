"""Names of vendors, classes and devices: what they may be, and which character is wrong; second witness: patterns."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.cdi.spectools import DEVICE_NAME, VENDOR

from nvoci.cdi import names
from nvoci.cdi.error import SpecError

FAST = settings(max_examples=200, deadline=None)
KIND_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
DEVICE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?")
CHECKS: dict[str, tuple[Callable[[str], None], re.Pattern[str]]] = {
    "vendor": (names.check_vendor, KIND_NAME),
    "class": (names.check_class, KIND_NAME),
    "device": (names.check_device, DEVICE),
}

# Name -> whom it suits: (k)ind's both halves, (d)evice.
NAMES = {
    "a": "kd", "Z": "kd", "0": "d", "9": "d", "nvidia.com": "kd", "gpu": "kd", "a0": "kd", "0a": "d", "a-b_c.d": "kd",
    "gpu.coherent": "kd", "0:1": "d", "a:b": "d", "GPU-8f3b-01": "kd", "a" * 300: "kd", "a..b": "kd", "a--b": "kd",
    "": "", "-": "", "_a": "", ".a": "", ":a": "", "a-": "", "a_": "", "a.": "", "a:": "", "a b": "", " a": "",
    "a ": "", "a/b": "", "a=b": "", "a,b": "", "a\n": "", "a\nb": "", "a\0b": "", "é": "", "aéb": "", "aé": "",
    "\u0661": "", "a\u0661": "", "\uff21": "", "a\u2024b": "", "\u212a": "", "a@b": "", "a+b": "",
}  # fmt: skip


@pytest.mark.parametrize("text", NAMES, ids=ascii)
@pytest.mark.parametrize("what", CHECKS)
def test_a_name_is_accepted_or_refused(what: str, text: str) -> None:
    check, pattern = CHECKS[what]
    right = ("d" if what == "device" else "k") in NAMES[text]
    assert bool(pattern.fullmatch(text)) == right
    if right:
        check(text)
        return
    with pytest.raises(SpecError, match=what) as caught:
        check(text)
    assert "\n" not in str(caught.value)


@FAST
@given(st.text(max_size=5) | st.text("a0_-.:= /é", max_size=6))
def test_the_patterns_agree(text: str) -> None:
    for what, (check, pattern) in CHECKS.items():
        try:
            check(text)
            accepted = True
        except SpecError:
            accepted = False
        assert accepted == bool(pattern.fullmatch(text)), what


@pytest.mark.parametrize(
    ("check", "text", "words"),
    [
        (names.check_vendor, "", "the name of the vendor is empty"),
        (names.check_class, "", "the name of the class is empty"),
        (names.check_device, "", "the name of the device is empty"),
        (names.check_vendor, "0a", "`0` where it must not: its name starts with a letter"),
        (names.check_device, ":a", "`:` where it must not: its name starts with a letter or digit"),
        (names.check_class, "a:b", "`:` where it must not: its name holds letters, digits and _ - ."),
        (names.check_device, "a/b=c", "`/` where it must not: its name holds letters, digits and _ - . :"),
        (names.check_class, "a.", "`.` where it must not: its name ends with a letter or digit"),
        (names.check_device, "a\x1bb", r"`\x1b` where it must not"),
    ],
    ids=str,
)
def test_an_error_says_which_character_is_wrong(check: Callable[[str], None], text: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        check(text)
    assert words in caught.value.why
    assert caught.value.hint


def test_an_error_names_the_place_it_is_told() -> None:
    with pytest.raises(SpecError) as caught:
        names.check_device("-", "devices[2].name")
    assert caught.value.where == "devices[2].name"


QUALIFIED = {
    "nvidia.com/gpu=0": ("nvidia.com", "gpu", "0"),
    "a/b=c": ("a", "b", "c"),
    "nvidia.com/gpu.x=0:1": ("nvidia.com", "gpu.x", "0:1"),
    "k8s.device-plugin.nvidia.com/gpu=GPU-1": ("k8s.device-plugin.nvidia.com", "gpu", "GPU-1"),
}
UNQUALIFIED = {
    "": "has no vendor", "/dev/nvidia0": "has no vendor", "/a/b=c": "has no vendor", "=": "has no vendor",
    "/b=c": "has no vendor", "=c": "has no vendor", "a": "has no class", "a=c": "has no class", "a/=c": "has no class",
    "a=b/c": "has no class", "a/b": "has no device", "a/b=": "has no device", "a/b=c=d": "`=`", "a/b/c=d": "`/`",
    "a/b=c/d": "`/`", "a=/b=c": "has no class", "0/b=c": "vendor", "a/0=c": "class", "a/b=-": "device",
    " a/b=c": "vendor", "a/b=c ": "device", "a/b=c,a/b=d": "`,`", "a/b:c=d": "class",
}  # fmt: skip


@pytest.mark.parametrize("text", QUALIFIED)
def test_a_qualified_name_is_taken_apart_and_put_together(text: str) -> None:
    assert names.parse_qualified(text) == QUALIFIED[text]
    assert names.qualified(*QUALIFIED[text]) == text
    assert names.is_qualified(text)


@pytest.mark.parametrize("text", UNQUALIFIED, ids=ascii)
def test_what_is_no_qualified_name_is_told_why(text: str) -> None:
    assert not names.is_qualified(text)
    with pytest.raises(SpecError) as caught:
        names.parse_qualified(text)
    assert UNQUALIFIED[text] in caught.value.why


@FAST
@given(VENDOR, VENDOR, DEVICE_NAME)
def test_any_right_parts_make_a_qualified_name(vendor: str, class_: str, device: str) -> None:
    assert names.parse_qualified(names.qualified(vendor, class_, device)) == (vendor, class_, device)


@pytest.mark.parametrize("kind", ["a/b", "nvidia.com/gpu", "nvidia.com/gpu.coherent", "A-1/B_2"])
def test_a_kind_is_taken_apart(kind: str) -> None:
    assert "/".join(names.parse_kind(kind)) == kind


@pytest.mark.parametrize("kind", ["", "a", "/", "a/", "/b", "a/b/c", "a=b", "a/b=c", "0/b", "a/0", "a b/c", "a/b "])
def test_what_is_no_kind_is_refused(kind: str) -> None:
    with pytest.raises(SpecError) as caught:
        names.parse_kind(kind, "kind")
    assert caught.value.where == "kind"
