"""For every test of the injector's first half."""

from __future__ import annotations

import pytest

from nvoci.prestart import compile


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that has just been written counts as one that stays as it is."""
    monkeypatch.setattr(compile, "SETTLED_SECONDS", 0.0)
