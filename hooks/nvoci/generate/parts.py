"""What a mode gives: shares, which are discovery's nouns, each for one device or for all. No word of CDI yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nvoci.errors import HookError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvoci.discover.model import DeviceNode, Mount

EMPTY = "invalid device, empty device edits"
"""Of an error: consumers look for it, and take it to mean that a node has none of a kind of device."""
STAGE = "generate CDI spec"
CREATE_SYMLINKS, CHMOD, UPDATE_LDCACHE = "create-symlinks", "chmod", "update-ldcache"
CUDA_COMPAT, NO_NODE_CHANGES = "enable-cuda-compat", "disable-device-node-modification"
HOOKS = (CREATE_SYMLINKS, CHMOD, CUDA_COMPAT, UPDATE_LDCACHE, NO_NODE_CHANGES, "update-application-profile")
VOID = "NVIDIA_VISIBLE_DEVICES=void"


@dataclass(frozen=True)
class Link:
    """A symbolic link for the container. node: a path of the container; where no such node was injected there is to be
    no link either. "" for a link that is always made."""

    target: str
    path: str
    node: str = ""


@dataclass(frozen=True)
class Call:
    """A task for nvidia-cdi-hook. links: of create-symlinks; values: the paths of chmod, the folders of update-ldcache,
    the arguments of any other."""

    name: str
    values: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()


@dataclass(frozen=True)
class Share:
    """What goes into one container. path_only: nodes are told by their paths alone, the host's always written."""

    env: tuple[str, ...] = ()
    nodes: tuple[DeviceNode, ...] = ()
    mounts: tuple[Mount, ...] = ()
    calls: tuple[Call, ...] = ()
    path_only: bool = False


@dataclass(frozen=True)
class Entry:
    """One device by all of its names. coherent: whether it shares memory coherently with the CPU; None where nobody
    asks."""

    names: tuple[str, ...]
    share: Share
    coherent: bool | None = None


@dataclass(frozen=True)
class Parts:
    """common: for every container that gets any of the devices. warnings: one line each."""

    entries: tuple[Entry, ...]
    common: Share = field(default_factory=lambda: Share(env=(VOID,)))
    warnings: tuple[str, ...] = ()


def nothing(what: str, hint: str) -> HookError:
    """There is no device. what: which, and where it was looked for."""
    return HookError(f"{STAGE}: {what}: {EMPTY}", hint)


def unique(texts: Iterable[str]) -> tuple[str, ...]:
    """The first of each."""
    return tuple(dict.fromkeys(texts))
