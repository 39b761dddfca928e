"""Every test here closes the roots that it opened: they hold descriptors, and there are thousands of tests."""

from __future__ import annotations

from tests.kernel.closing import closed_roots

__all__ = ["closed_roots"]
