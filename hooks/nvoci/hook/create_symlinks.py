"""create-symlinks: `ln -sf TARGET LINK` for each `--link TARGET::LINK`, resolved in the container's root.

Whether a link exists already is asked in the container (the reference asks on the host, so an image whose directory
is a link can make it do nothing). All values are checked before the first link is made. `--link-if NODE=TARGET::LINK`
makes its link only if NODE exists in the container: one hook can then serve whichever devices were injected.
"""

from __future__ import annotations

from nvoci.errors import HookError, printable
from nvoci.hook.operations import MakeLink
from nvoci.linux.rootfs import fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nvoci.hook.container import Container
    from nvoci.hook.operation import Operation
    from nvoci.hook.settings import Settings


class Links:
    """(node or b"", target, link) in the order given, without repetitions."""

    __slots__ = ("wanted",)

    def __init__(self, wanted: list[tuple[bytes, bytes, bytes]]) -> None:
        self.wanted = wanted


def prepare(options: dict[str, Any], settings: Settings) -> Links | None:
    """Check every value."""
    wanted: dict[tuple[bytes, bytes, bytes], None] = {}
    for value in options["link"]:
        target, path = _split(value, value)
        wanted[b"", target, path] = None
    for value in options["link-if"]:
        node, separator, link = value.partition("=")
        if not separator or not node.startswith("/"):
            raise _invalid(value, "give it as NODE=TARGET::LINK, NODE an absolute path")
        target, path = _split(link, value)
        wanted[fsencode(node), target, path] = None
    return Links(list(wanted))


def _split(value: str, whole: str) -> tuple[bytes, bytes]:
    parts = value.split("::")
    if len(parts) != 2 or not parts[0] or not parts[1].strip("/"):
        raise _invalid(whole, "give it as TARGET::LINK")
    target, link = fsencode(parts[0]), fsencode(parts[1])
    if len(target) > 4095:
        raise _invalid(whole[:60] + "...", "a link's text has at most 4095 bytes")
    if link.rstrip(b"/").rpartition(b"/")[2] in (b".", b".."):
        raise _invalid(whole, "LINK must end in a name")
    return target, link


def _invalid(value: str, hint: str) -> HookError:
    return HookError(f"create-symlinks: invalid symlink specification `{printable(value)}`", hint)


def plan(prepared: Links, container: Container) -> list[Operation]:
    """One operation for each link whose node, if it names one, is there."""
    rootfs = container.rootfs
    return [
        MakeLink(rootfs, target, link) for node, target, link in prepared.wanted if not node or rootfs.exists(node)
    ]
