"""The examples in the docstrings of the library do what they say."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module

import pytest

from nvoci import cdi

MODULES = sorted(module.name for module in pkgutil.iter_modules(cdi.__path__, "nvoci.cdi."))


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(import_module(name), raise_on_error=False).failed == 0


def test_there_are_examples() -> None:
    found = doctest.DocTestFinder(exclude_empty=True).find(import_module("nvoci.cdi.names"))
    assert sum(len(each.examples) for each in found) > 3
