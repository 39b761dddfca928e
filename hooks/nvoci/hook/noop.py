"""noop: a hook that does nothing, for specs that must name one."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nvoci.hook.container import Container
    from nvoci.hook.operation import Operation
    from nvoci.hook.settings import Settings


def prepare(options: dict[str, Any], settings: Settings) -> object | None:
    """Nothing to do."""
    return None


def plan(prepared: object, container: Container) -> list[Operation]:
    """No operations."""
    return []
