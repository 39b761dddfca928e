"""NVIDIA_DRIVER_CAPABILITIES against what the configuration allows."""

from __future__ import annotations

import pytest
from unit.prestart.prestarttools import error

from nvoci.discover.model import CAPABILITIES
from nvoci.prestart import capabilities
from nvoci.prestart.capabilities import EVERY, supported, wanted

SOME = ("compute", "utility", "video")

SUPPORTED: dict[str, tuple[str, tuple[str, ...]]] = {
    "default": (",".join(EVERY), EVERY),
    "all": ("all", EVERY),
    "all among others": ("compute,all", EVERY),
    "some, unsorted, with blanks": (" video, compute ,,utility", SOME),
    "twice": ("compute,compute", ("compute",)),
    "none": ("", ()),
}


@pytest.mark.parametrize(("text", "found"), SUPPORTED.values(), ids=SUPPORTED)
def test_supported(text: str, found: tuple[str, ...]) -> None:
    assert supported(text) == found


@pytest.mark.parametrize("text", ["gpu", "compute,Compute", "compute;utility", "none"])
def test_what_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not among compat32, compute, display"):
        supported(text)


# value, allowed, legacy image -> found
WANTED: dict[str, tuple[str | None, tuple[str, ...], bool, tuple[str, ...]]] = {
    "not set": (None, EVERY, False, ("compute", "utility")),
    "empty": ("", EVERY, False, ("compute", "utility")),
    "not set, old image": (None, EVERY, True, EVERY),
    "not set, old image, some allowed": (None, SOME, True, SOME),
    "empty, old image": ("", EVERY, True, ("compute", "utility")),
    "set, old image": ("video", EVERY, True, ("video",)),
    "not set, utility allowed": (None, ("utility",), False, ("utility",)),
    "not set, others allowed": (None, ("video",), False, ()),
    "one": ("graphics", EVERY, False, ("graphics",)),
    "sorted": ("utility,compute,video", EVERY, False, SOME),
    "twice, blanks": (" video ,,video", EVERY, False, ("video",)),
    "all": ("all", EVERY, False, EVERY),
    "all, some allowed": ("all", SOME, False, SOME),
    "all among others": ("video,all", SOME, False, SOME),
    "all, unknown ones beside it": ("all,nothing", SOME, False, SOME),
    "commas": (",,", EVERY, False, ()),
}


@pytest.mark.parametrize(("value", "allowed", "legacy", "found"), WANTED.values(), ids=WANTED)
def test_wanted(value: str | None, allowed: tuple[str, ...], legacy: bool, found: tuple[str, ...]) -> None:
    assert wanted(value, allowed, legacy) == found


REFUSED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "not allowed": (
        "compute,graphics",
        SOME,
        "unsupported capabilities found in 'compute,graphics' (allowed 'compute')",
    ),
    "unknown": ("gpu", EVERY, "unsupported capabilities found in 'gpu' (allowed '')"),
    "capitals": ("Compute,video", EVERY, "unsupported capabilities found in 'Compute,video' (allowed 'video')"),
    "blank between": ("compute utility", EVERY, "unsupported capabilities found in 'compute utility' (allowed '')"),
    "hostile": ("a\nb\x00", EVERY, r"unsupported capabilities found in 'a\nb\x00' (allowed '')"),
    "none allowed": ("compute", (), "unsupported capabilities found in 'compute' (allowed '')"),
}


@pytest.mark.parametrize(("value", "allowed", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_allowed_is_refused(value: str, allowed: tuple[str, ...], message: str) -> None:
    caught = error(lambda: wanted(value, allowed, False))
    assert caught.message == message
    assert "NVIDIA_DRIVER_CAPABILITIES" in caught.hint


def test_a_long_value_is_one_short_line() -> None:
    assert len(error(lambda: wanted("x" * 60_000, EVERY, False)).line()) < 1000


def test_the_node_knows_these_capabilities() -> None:
    assert set(EVERY) < set(CAPABILITIES)
    assert set(capabilities.DEFAULT) < set(EVERY)
