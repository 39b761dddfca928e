"""inject: apply CDI devices to a container that exists already.

On the host, before anything is entered: the specifications are read, the devices resolved, what they mount and run is
looked up, and it is said what comes too late for them. In the container: mounts, device nodes, then hooks, on one undo
stack with whatever else the same process does.

Performance contract: none of the hot path. This module, nvoci.cdi and the packages beside nvoci (PyYAML) are loaded for
this subcommand only, and before imports are sealed.
"""

from __future__ import annotations

import posix
import sys
from _stat import S_IMODE

import nvoci
from nvoci import log
from nvoci.cdi import annotations as cdi_annotations
from nvoci.cdi import apply, names, specdir
from nvoci.cdi.error import SpecError
from nvoci.errors import HookError, printable
from nvoci.inject import edits, hooks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nvoci.cdi.specdir import Entry
    from nvoci.hook.container import Container
    from nvoci.hook.enter import Place
    from nvoci.hook.operation import Operation
    from nvoci.hook.settings import Settings
    from nvoci.hook.work import Step
    from nvoci.oci.state import State

NAME = hooks.NAME
DEVICES = True  # its operations may ask for device rules
_NAMES_SHOWN = 20
_ERRORS_SHOWN = 20
_TOO_FEW = ("EMFILE", "ENFILE")


def use_packages() -> None:
    """Let PyYAML be found where scripts/install puts it: beside the package. Raises HookError where others can write
    there."""
    vendor = nvoci.__path__[0].rpartition("/")[0] + "/vendor"
    try:
        st = posix.stat(vendor)
    except OSError:
        return  # a checkout, where whoever starts us says where packages are
    if st.st_uid not in (0, posix.stat("/").st_uid) or st.st_mode & 0o022:
        raise HookError(f"{NAME}: {vendor}: owned by uid {st.st_uid}, mode {S_IMODE(st.st_mode):04o}",
                        "what a hook runs from must belong to root and be writable by nobody else")  # fmt: skip
    if vendor not in sys.path:
        sys.path.append(vendor)


def prepare(options: dict[str, Any], settings: Settings) -> Request:
    """Check the names; the specifications are read when the container is known."""
    devices = list(dict.fromkeys(options["device"]))
    for device in devices:
        try:
            names.parse_qualified(device)
        except SpecError as e:
            raise HookError(f"{NAME}: {e.why}", e.hint) from None
    if not devices and not options["from-annotations"]:
        raise HookError(f"{NAME}: no device", "name one with --device, or give --from-annotations")
    for directory in options["spec-dir"]:
        if not directory.startswith("/"):
            raise HookError(f"{NAME}: --spec-dir {printable(directory)}: not an absolute path", "give it from / on")
    directories = tuple(options["spec-dir"]) or specdir.DEFAULT_DIRS
    return Request(devices, directories, settings, annotated=options["from-annotations"])


class Request:
    """The devices asked for by name, and whether the container's annotations name more."""

    __slots__ = ("annotated", "devices", "directories", "settings")

    def __init__(
        self, devices: list[str], directories: tuple[str, ...], settings: Settings, *, annotated: bool
    ) -> None:
        self.devices = devices
        self.directories = directories
        self.settings = settings
        self.annotated = annotated

    def steps(self, state: State, place: Place) -> list[Step]:
        """What the devices come to; nothing where none is asked for. Raises HookError."""
        try:
            wanted = dict.fromkeys([*self.devices, *(_annotated(state) if self.annotated else ())])
            if not wanted:
                log.debug("no annotation asks for a CDI device")
                return []
            use_packages()
            entries = _resolve(specdir.Registry(self.directories), list(wanted))
            found = apply.combined(entries, lambda part: edits.looked_up(part, place))
            prepared = edits.Prepared(found, place)
            return [(NAME, plan, prepared), *hooks.steps(found.hooks, state, place, self.settings)]
        except HookError as e:
            raise HookError(e.message if e.message.startswith(NAME) else f"{NAME}: {e.message}", e.hint) from None


def _annotated(state: State) -> list[str]:
    """The devices named in the state's annotations. Raises SpecError."""
    asked = {key: value for key, value in state.annotations.items() if key.startswith(cdi_annotations.PREFIX)}
    for key, value in asked.items():
        if not isinstance(value, str):
            raise SpecError("not a string", f"annotation {key}", hint="qualified names of devices, with commas between")
    return cdi_annotations.parse(asked)[1]


def _resolve(registry: specdir.Registry, wanted: list[str]) -> list[Entry]:
    """One entry for each name. Where one is missing, what is wrong with files is told first, a line each."""
    errors = [error for found in registry.errors.values() for error in found]
    for error in errors:
        if error.why.endswith(_TOO_FEW):  # what could not be read may be what counts
            raise HookError(f"{NAME}: {error.message}", "raise the limit of open files of whoever starts the container")
    try:
        entries = registry.resolve(wanted)
    except SpecError as e:
        for error in errors[:_ERRORS_SHOWN]:
            log.warning(f"{NAME}: {error.line()}")
        there = registry.devices()
        shown = ", ".join(there[:_NAMES_SHOWN]) + (", ..." if len(there) > _NAMES_SHOWN else "")
        where = ", ".join(registry.dirs)
        raise HookError(f"{NAME}: {e.why}", printable(f"{where}: {shown or 'there is no device'}")) from None
    for error in errors:
        log.info(f"{NAME}: {error.line()}")
    return entries


def plan(prepared: edits.Prepared, container: Container) -> list[Operation]:
    """Mounts, parents first, then device nodes."""
    return prepared.operations(container)
