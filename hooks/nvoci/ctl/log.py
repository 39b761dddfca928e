"""structlog, set up to print the same lines as the hooks do; loaded at the first line, as it costs 37 ms."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from nvoci.errors import printable

if TYPE_CHECKING:
    from collections.abc import MutableMapping


def warning(event: str, **fields: object) -> None:
    """Something was left out or looks wrong, and the command goes on."""
    _logger().warning(event, **fields)


def _logger() -> Any:
    import structlog

    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%SZ", utc=True, key="time"),
            structlog.processors.add_log_level,
            structlog.processors.EventRenamer("msg"),
            _printable,
            structlog.processors.LogfmtRenderer(key_order=["time", "level", "msg"]),
        ],
        wrapper_class=structlog.BoundLogger,
    )


def _printable(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: printable(value) for key, value in event.items()}
