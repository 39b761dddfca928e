"""What a container asks for: devices, capabilities of the driver, MIG management, IMEX channels, requirements.

Everything here comes from the container's own configuration and is unsafe: a name may be any text. What it means on
this node is for `devices` and `requirements` to tell. `ask.may_ask` comes before this.
"""

from __future__ import annotations

from nvoci import log
from nvoci.discover.record import REQUIRED, Record, links, natural, texts, tuple_of
from nvoci.errors import HookError, printable
from nvoci.prestart import capabilities, devices, volumes
from nvoci.prestart.ask import CUDA_VERSION, MAX_VALUE, MOUNTS, REQUIRE_CUDA, VISIBLE_DEVICES, is_legacy
from nvoci.prestart.names import ALL, NONE, TRUE, VOID, items, narrowed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.oci.spec import Spec
    from nvoci.prestart.config import Config

IMEX_CHANNELS = "NVIDIA_IMEX_CHANNELS"
MIG = "NVIDIA_MIG_{}_DEVICES"
DISABLE_REQUIRE, REQUIRE, REQUIRE_JETPACK = "NVIDIA_DISABLE_REQUIRE", "NVIDIA_REQUIRE_", "NVIDIA_REQUIRE_JETPACK"
_PRIVILEGED = "CAP_SYS_ADMIN"
_OLD_IMAGE = f"{CUDA_VERSION} without {REQUIRE_CUDA}: an old image"
_MAX_NUMBER = 1 << 32


class Request(Record):
    """devices: ("all",), names, or () for the driver without a GPU. mig_config, mig_monitor: the MIG devices to be
    managed or watched. requirements: (variable, expression). reasons: (what, why) for a person, in the order in which
    it was decided."""

    SCHEMA = {
        "devices": (texts, REQUIRED),
        "capabilities": (texts, ()),
        "mig_config": (texts, ()),
        "mig_monitor": (texts, ()),
        "imex_channels": (tuple_of(natural), ()),
        "requirements": (links, ()),
        "privileged": (bool, False),
        "reasons": (links, ()),
    }
    __slots__ = tuple(SCHEMA)
    devices: tuple[str, ...]
    capabilities: tuple[str, ...]
    mig_config: tuple[str, ...]
    mig_monitor: tuple[str, ...]
    imex_channels: tuple[int, ...]
    requirements: tuple[tuple[str, str], ...]
    privileged: bool
    reasons: tuple[tuple[str, str], ...]


def build(spec: Spec, config: Config) -> Request | None:
    """None: it is no container with a GPU. Raises HookError."""
    asker = _Asker(spec, config)
    names = asker.devices()
    if not names or VOID in names:
        return None
    wanted = narrowed(names)
    asker.tell("devices", ",".join(wanted) or NONE)
    return Request(
        devices=wanted,
        capabilities=asker.capabilities(),
        mig_config=asker.management("CONFIG"),
        mig_monitor=asker.management("MONITOR"),
        imex_channels=asker.imex_channels(),
        requirements=asker.requirements(),
        privileged=asker.privileged,
        reasons=tuple(asker.reasons),
    )


class _Asker:
    """One container and the configuration; `reasons` grows with each question."""

    __slots__ = ("config", "env", "legacy", "privileged", "reasons", "spec", "why")

    def __init__(self, spec: Spec, config: Config) -> None:
        self.spec = spec
        self.config = config
        self.env = spec.environment()
        self.legacy = is_legacy(self.env)
        self.privileged = spec.privileged()
        self.reasons: list[tuple[str, str]] = []
        self.why = ""

    def tell(self, what: str, value: str) -> None:
        """Note the answer, and where it comes from."""
        self.reasons.append((f"{what}: {printable(value)}", self.why))

    def _value(self, name: str) -> str | None:
        value = self.env.get(name)
        if value is not None and len(value) > MAX_VALUE:
            raise HookError(f"read environment: {printable(name[:200])}: longer than {MAX_VALUE} characters",
                            "see the container's variables")  # fmt: skip
        return value

    def devices(self) -> list[str]:
        """As they are asked for; [] for none."""
        if self.config.accept_volume_mounts:
            names = volumes.devices(self.spec.mounts())
            if names:
                self.why = f"mounts below {MOUNTS}"
                return names
        names = self._devices_of_environment()
        return names if self._may_by_environment(names, "devices") else []

    def _devices_of_environment(self) -> list[str]:
        found = [name for name in self.config.swarm_resources if name in self.env]
        if not found and VISIBLE_DEVICES in self.env:
            found = [VISIBLE_DEVICES]
        if found:
            self.why = " and ".join([printable(name) for name in found])
            return [name for variable in found for name in items(self._value(variable) or "")]
        if self.legacy:
            self.why = _OLD_IMAGE
            return [ALL]
        return []

    def _may_by_environment(self, names: list[str], what: str) -> bool:
        """Whether variables are heard at all, which is a decision of the administrator."""
        if self.privileged or self.config.accept_env_when_unprivileged:
            return True
        if names:
            shown = printable(" ".join(names[:20]))[:300]
            log.warning(f"Ignoring {what} requested by environment variable(s) in unprivileged container: [{shown}]")
        return False

    def capabilities(self) -> tuple[str, ...]:
        value = self._value(capabilities.VARIABLE)
        found = capabilities.wanted(value, self.config.allowed_capabilities, self.legacy)
        self.why = capabilities.VARIABLE if value else "the default"
        if value is None and self.legacy:
            self.why = _OLD_IMAGE
        self.tell("capabilities", ",".join(found) or NONE)
        return found

    def management(self, what: str) -> tuple[str, ...]:
        self.why = MIG.format(what)
        value = self._value(self.why)
        if not value:
            return ()
        if not self.privileged:
            raise HookError(f"cannot set MIG_{what}_DEVICES in non privileged container",
                            f"{self.why} needs {_PRIVILEGED} in the bounding set, and no user namespace")  # fmt: skip
        self.tell(f"MIG {what.lower()}", value)
        return tuple(dict.fromkeys(items(value)))

    def imex_channels(self) -> tuple[int, ...]:
        if self.config.ignore_imex_channel_requests:
            return ()
        names = volumes.imex_channels(self.spec.mounts()) if self.config.accept_volume_mounts else []
        self.why = f"mounts below {MOUNTS}"
        if not names:
            self.why = IMEX_CHANNELS
            names = items(self._value(IMEX_CHANNELS) or "")
            if not self._may_by_environment(names, "IMEX channels"):
                return ()
        wanted = narrowed(names)
        if not wanted or wanted == (ALL,) or VOID in wanted:
            return ()
        channels = devices.imex_channels(wanted)
        self.tell("IMEX channels", ",".join([str(each) for each in channels]))
        return channels

    def requirements(self) -> tuple[tuple[str, str], ...]:
        switch = self.env.get(DISABLE_REQUIRE)
        if self.config.disable_require or switch in TRUE:
            self.why = "disable-require in config.toml" if self.config.disable_require else DISABLE_REQUIRE
            self.tell("requirements", "not checked")
            return ()
        found = [
            (name, self._value(name) or "")
            for name in self.env
            if name.startswith(REQUIRE) and not name.startswith(REQUIRE_JETPACK)
        ]
        if self.legacy:
            found.append((CUDA_VERSION, f"cuda>={major_minor(self._value(CUDA_VERSION) or '')}"))
        for name, expression in found:
            self.why = printable(name[:200])
            self.tell("requirement", expression)
        return tuple(found)


def major_minor(version: str) -> str:
    """`12.4` of a semantic version, with or without `v`, such as `12.4.1-rc1+build`; of a short one: 12.4, and 12.0 of
    12. Raises HookError."""
    core, plus, build = version[version[:1] == "v" :].partition("+")
    core, dash, release = core.partition("-")
    parts = core.split(".")
    good = len(parts) <= 3 and all(_is_number(part) for part in parts) and (len(parts) == 3 or not plus + dash)
    if good and (not plus or _are_identifiers(build)) and (not dash or _are_identifiers(release, numbers=True)):
        return f"{parts[0]}.{parts[1] if len(parts) > 1 else 0}"
    raise HookError(f"invalid CUDA version: {CUDA_VERSION}={printable(version[:200])}",
                    f"a version such as 12.4 or 12.4.1 is wanted; or set {DISABLE_REQUIRE}=1")  # fmt: skip


def _is_number(text: str) -> bool:
    plain = text.isascii() and text.isdigit() and (text == "0" or text[0] != "0") and len(text) < 11
    return plain and int(text) < _MAX_NUMBER


def _are_identifiers(text: str, numbers: bool = False) -> bool:
    """Words between dots; numbers: those that are all digits have no zero before others."""
    for word in text.split("."):
        if not word.isascii() or not word.replace("-", "a").isalnum():
            return False
        if numbers and word.isdigit() and word[0] == "0" and word != "0":
            return False
    return True
