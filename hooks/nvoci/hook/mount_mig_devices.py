"""mount-mig-devices: give a container instances of GPUs (MIG), or the right to manage them, without a whole injector.

    --gpu-instance MINOR:GI, --compute-instance MINOR:GI:CI
        The access file of the instance is mounted over that of the container's procfs, read-only; its node in
        /dev/nvidia-caps, where the driver has nodes for capabilities, is mounted too, and the device rule asked for.
        Each gives what it names and no more: an application needs those of both its instances, and its GPU's node.
    --config, --monitor
        For containers that create and destroy instances, or watch them: all access files, the directory of nodes as
        the host has it, and rules for every instance that may come. Only for privileged containers.

Performance contract: the bundle's config.json is read only for the latter two.
"""

from __future__ import annotations

from nvoci.errors import HookError, printable
from nvoci.hook import migcaps, migmounts
from nvoci.linux.rootfs import fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nvoci.hook.container import Container
    from nvoci.hook.enter import Place
    from nvoci.hook.migcaps import Capability, Management
    from nvoci.hook.operation import Operation
    from nvoci.hook.settings import Settings
    from nvoci.hook.work import Step
    from nvoci.oci.state import State

NAME = "mount-mig-devices"
DEVICES = True  # its operations may ask for device rules
_PRIVILEGED = "CAP_SYS_ADMIN"
_MAX_NUMBER = 0xFFFF
_MAX_CAPABILITIES = 200  # four descriptors each, and select(2) knows no number above 1023


def prepare(options: dict[str, Any], settings: Settings) -> Request:
    """Check every value; the host is looked at when the container is known. Raises HookError."""
    paths: dict[bytes, None] = {}
    for text in options["gpu-instance"]:
        minor, instance = _numbers(text, "gpu-instance", "MINOR:GI")
        paths[migcaps.access_path(minor, instance)] = None
    for text in options["compute-instance"]:
        minor, instance, compute = _numbers(text, "compute-instance", "MINOR:GI:CI")
        paths[migcaps.access_path(minor, instance, compute)] = None
    if len(paths) > _MAX_CAPABILITIES:
        raise HookError(f"{NAME}: {len(paths)} instances: too many", f"at most {_MAX_CAPABILITIES} for one container")
    kinds = [kind for kind in (migcaps.CONFIG, migcaps.MONITOR) if options[kind]]
    if not paths and not kinds:
        raise HookError(f"{NAME}: no instance", "name one with --gpu-instance and --compute-instance")
    gpus = [_numbers(text, "gpu", "MINOR")[0] for text in options["gpu"]]
    if gpus and not kinds:
        raise HookError(f"{NAME}: --gpu without --config or --monitor", "name instances with --gpu-instance")
    root = options["driver-root"]
    if not root.startswith("/"):
        raise HookError(f"{NAME}: --driver-root `{printable(root)}`: not an absolute path", "give it from / on")
    return Request(list(paths), kinds, gpus or None, root, allow=not options["no-cgroups"])


def _numbers(text: str, name: str, form: str) -> list[int]:
    found = [migcaps.number(fsencode(part)) for part in text.split(":")]
    good = [each for each in found if each is not None and each <= _MAX_NUMBER]
    if len(good) != len(found) or len(found) != form.count(":") + 1:
        raise HookError(f"{NAME}: --{name} `{printable(text[:60])}`: not {form}",
                        "decimal numbers, as nvidia-smi -L and nvidia-smi mig -lci show them")  # fmt: skip
    return good


class Request:
    """What was asked for: access files by their paths below /proc; CONFIG and MONITOR, and for which GPUs."""

    __slots__ = ("allow", "gpus", "kinds", "paths", "root")

    def __init__(self, paths: list[bytes], kinds: list[str], gpus: list[int] | None, root: str, *, allow: bool) -> None:
        self.paths = paths
        self.kinds = kinds
        self.gpus = gpus
        self.root = root
        self.allow = allow

    def steps(self, state: State, place: Place) -> list[Step]:
        """Take it all of the host. Raises HookError."""
        try:
            if self.kinds:
                self._check_privileged(state.bundle)
            with migcaps.Host(self.root) as host:
                managed = host.management(self.kinds, self.gpus) if self.kinds else None
                given = [host.capability(path) for path in self.paths]
        except HookError as e:
            raise HookError(f"{NAME}: {e.message}", e.hint) from None
        return [(NAME, plan, Prepared(given, managed, allow=self.allow))]

    def _check_privileged(self, bundle: str) -> None:
        from nvoci.oci.spec import of_bundle

        if not bundle or not of_bundle(bundle).privileged():
            raise HookError(f"--{self.kinds[0]}: the container is not privileged",
                            f"it needs {_PRIVILEGED} in its bounding set, and no user namespace")  # fmt: skip


class Prepared:
    """What the host has of it, ready to be mounted."""

    __slots__ = ("allow", "given", "managed")

    def __init__(self, given: list[Capability], managed: Management | None, *, allow: bool) -> None:
        self.given = given
        self.managed = managed
        self.allow = allow


def plan(prepared: Prepared, container: Container) -> list[Operation]:
    """Directories first, since single files lie in them."""
    found: list[Operation] = []
    if prepared.managed is not None:
        found += migmounts.management(container, prepared.managed, allow=prepared.allow)
    for each in prepared.given:
        found += migmounts.capability(container, each, allow=prepared.allow)
    return found
