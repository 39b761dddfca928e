"""What consumers in use make of specifications that are right."""

from __future__ import annotations

import pytest

from nvoci.cdi import consumers
from nvoci.cdi.model import Spec

KINDS = {"nvidia.com/gpu": 0, "ab/cd": 0, "a/gpu": 1, "nvidia.com/g": 1, "a/b": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_a_vendor_or_class_of_one_character_is_one_warning(kind: str) -> None:
    assert len(consumers.warnings(Spec("0.5.0", kind))) == KINDS[kind]


@pytest.mark.parametrize(("version", "expected"), [("0.3.0", False), ("0.5.0", False), ("0.6.0", True),
                                                   ("1.1.0", True), ("v0.7.0", True)])  # fmt: skip
def test_which_versions_old_consumers_pass_over(version: str, expected: bool) -> None:
    assert consumers.passed_over(Spec(version, "a.org/b")) is expected
