"""Requests for devices in a container's annotations: made, added, read back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.cdi.spectools import DEVICE_NAME, KIND

from nvoci.cdi import annotations
from nvoci.cdi.error import SpecError

FAST = settings(max_examples=100, deadline=None)
KEYS = {
    ("nvidia.gpu", "0"): "cdi.k8s.io/nvidia.gpu_0",
    ("nvidia-device-plugin", "8f3b/1"): "cdi.k8s.io/nvidia-device-plugin_8f3b_1",
    ("a", "b"): "cdi.k8s.io/a_b",
    ("0", "a//b"): "cdi.k8s.io/0_a__b",
    ("p" * 31, "d" * 31): f"cdi.k8s.io/{'p' * 31}_{'d' * 31}",
}
BAD_KEYS = {
    ("", "0"): "the name of the plugin is empty",
    ("a", ""): "the name of the device id is empty",
    ("p" * 32, "d" * 31): "64 characters",
    ("-a", "b"): "start and end",
    ("_", "b"): "start and end",
    ("a", "b-"): "start and end",
    ("a", "/"): "start and end",
    ("a b", "c"): "has ` `",
    ("a", "b:c"): "has `:`",
    ("a/b", "c"): "has `/`",
    ("a", "é"): "has `é`",
    ("a\n", "b"): r"has `\n`",
}


@pytest.mark.parametrize("of", KEYS, ids=str)
def test_a_key_names_the_plugin_and_what_it_allocates(of: tuple[str, str]) -> None:
    assert annotations.key(*of) == KEYS[of]


@pytest.mark.parametrize("of", BAD_KEYS, ids=ascii)
def test_a_key_that_cannot_be_is_refused(of: tuple[str, str]) -> None:
    with pytest.raises(SpecError) as caught:
        annotations.key(*of)
    assert BAD_KEYS[of] in caught.value.why


@pytest.mark.parametrize("devices", [[""], ["gpu0"], ["a/b=c", "a/b"], ["a/b=c,a/b=d"], ["a/b=c "], []], ids=str)
def test_a_value_of_anything_but_qualified_names_is_refused(devices: list[str]) -> None:
    with pytest.raises(SpecError):
        annotations.value(devices)


def test_a_request_is_added_to_a_copy() -> None:
    given_ones = {"a": "b"}
    made = annotations.update(given_ones, "nvidia.gpu", "0", iter(["a/b=c", "a/b=d"]))
    assert made == {"a": "b", "cdi.k8s.io/nvidia.gpu_0": "a/b=c,a/b=d"}
    assert given_ones == {"a": "b"}


@pytest.mark.parametrize(("plugin", "device_id"), [("a", "b/c"), ("a", "b_c"), ("a_b", "c")])
def test_a_request_is_not_made_twice(plugin: str, device_id: str) -> None:
    with pytest.raises(SpecError, match="is there already"):
        annotations.update({"cdi.k8s.io/a_b_c": "a/b=c"}, plugin, device_id, ["a/b=c"])


def test_requests_are_read_in_the_order_of_their_keys() -> None:
    found = annotations.parse({"cdi.k8s.io/b": "a/b=2", "x": "?", "cdi.k8s.io/a": "a/b=1,a/b=0", "Cdi.k8s.io/c": "?"})
    assert found == (["cdi.k8s.io/a", "cdi.k8s.io/b"], ["a/b=1", "a/b=0", "a/b=2"])


def test_without_a_request_there_is_nothing_to_read() -> None:
    assert annotations.parse({}) == ([], [])
    assert annotations.parse({"cdi.k8s.io": "gpu0"}) == ([], [])


@pytest.mark.parametrize("text", ["", "gpu0", "a/b=c,", ",a/b=c", "a/b=c, a/b=d", "a/b=c;a/b=d", "/dev/x"])
def test_one_name_that_is_not_qualified_fails_them_all(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        annotations.parse({"cdi.k8s.io/a": "a/b=c", "cdi.k8s.io/b": text})
    assert caught.value.where == "annotation cdi.k8s.io/b"


@pytest.mark.parametrize("value", [None, 1, ["a/b=c"], b"a/b=c"])
def test_a_value_that_is_no_string_fails_with_its_place(value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        annotations.parse({"cdi.k8s.io/a": value, "x": None})
    assert caught.value.where == "annotation cdi.k8s.io/a"
    assert caught.value.why == f"{type(value).__name__}, not a string"
    with pytest.raises(SpecError, match="not a string"):
        annotations.value([value])
    with pytest.raises(SpecError, match="not a string"):
        annotations.key(value, "a")


def test_one_name_in_place_of_several_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(TypeError, match=r"^devices: a list or tuple is wanted, not str 'a/b=c'$"):
        annotations.value("a/b=c")


@FAST
@given(st.lists(st.builds(lambda kind, name: f"{kind}={name}", KIND, DEVICE_NAME), min_size=1, max_size=5))
def test_what_is_written_is_read(devices: list[str]) -> None:
    assert annotations.parse(annotations.update({}, "p", "d", devices)) == (["cdi.k8s.io/p_d"], devices)
