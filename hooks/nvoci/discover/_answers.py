"""What the process that loaded NVML has said, judged: a library may lie, and what it says becomes paths and names.

Records come out, or a reason why not. A UUID has the form of one, a version is digits and dots, numbers are in range,
text is printable; nothing is told twice.
"""

from __future__ import annotations

from nvoci import jsonfile
from nvoci.discover.model import ADDRESSING_MODES, Gpu, MigDevice
from nvoci.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_MINOR_MAX = (1 << 20) - 1  # linux/kdev_t.h
_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1
_TEXT_MAX = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE
_GROUPS = (8, 4, 4, 4, 12)
_HEX = frozenset("0123456789abcdefABCDEF")
# NVML_GPU_INSTANCE_PROFILE_* -> what it adds to the name of a profile
_ATTRIBUTES = {7: "+me", 8: "+me", 10: "+gfx", 11: "+gfx", 12: "+gfx", 13: "-me", 14: "-me", 15: "+me.all",
               16: "+me.all", 17: "+gfx"}  # fmt: skip


class Lost:
    """A GPU (mig -1) or MIG device that does not answer as it should. uuid, pci: "" where that much is not known."""

    __slots__ = ("call", "error", "index", "mig", "pci", "uuid")

    def __init__(self, index: int, mig: int, call: str, error: str) -> None:
        self.index = index
        self.mig = mig
        self.call = call
        self.error = error
        self.uuid = ""
        self.pci = ""

    def subject(self) -> str:
        """`GPU 3`, `MIG device 3:1`."""
        return f"GPU {self.index}" if self.mig < 0 else f"MIG device {self.index}:{self.mig}"

    def may_be(self, name: str) -> bool:
        """Whether `name`, in lower case, means this one, or may: what is not known cannot be ruled out."""
        whole = self.mig < 0
        parts = name.split(":")
        if len(parts) <= 2 and all(is_natural(part) for part in parts):
            return parts[0] == str(self.index) and (whole if len(parts) == 1 else whole or parts[1] == str(self.mig))
        parent = old_mig_parts(name)[0]
        if parent:
            return not whole or self.uuid.lower() in ("", parent)
        if is_uuid(name, "mig-"):
            return whole or self.uuid.lower() in ("", name)
        bus_id = kernel_bus_id(name)
        if bus_id:
            return whole and self.pci in ("", bus_id)
        return whole and is_uuid(name, "gpu-", "") and self.uuid.lower() in ("", name)


class Answers:
    """failed: (call, error) where it came to nothing. complete: whether it came to its end."""

    __slots__ = ("complete", "failed", "gpus", "lost", "system")

    def __init__(self) -> None:
        self.system: dict[str, Any] = {}
        self.gpus: list[Gpu] = []
        self.lost: list[Lost] = []
        self.failed: tuple[str, str] | None = None
        self.complete = False


def read(lines: Iterable[bytes]) -> Answers:
    """Raises ValueError where it is not our child that speaks, or the driver as a whole makes no sense."""
    found = Answers()
    for line in lines:
        doc = jsonfile.loads(line)
        if type(doc) is not dict or len(doc) != 1:
            raise ValueError("not one object")
        ((key, value),) = doc.items()
        if key == "end":
            found.complete = True
        elif type(value) is not dict:
            raise ValueError(f"`{key[:20]}` is not an object")
        elif key == "system":
            found.system = _system(value)
        elif key == "failed":
            found.failed = _text(value.get("call")), _text(value.get("error"))
        elif key == "gpu":
            _take_gpu(found, value)
        elif key == "lost":
            found.lost.append(_lost(value))
        else:
            raise ValueError(f"unknown `{key[:20]}`")
    return found


def kernel_bus_id(text: str) -> str:
    """A PCI address in any spelling, as the kernel has it: `00000000:0F:00.0` -> `0000:0f:00.0`; "" if it is none."""
    domain, _, rest = text.partition(":")
    bus, _, rest = rest.partition(":")
    device = rest.partition(".")[0]
    if not _HEX.issuperset(domain + bus + device):
        return ""  # int() takes signs, blanks, underscores and other alphabets' digits, too
    try:
        return _bus_id(int(domain, 16), int(bus, 16), int(device, 16))
    except ValueError:
        return ""


def is_uuid(text: object, *prefixes: str) -> bool:
    """Whether it is one of the prefixes and a UUID, in hexadecimal."""
    if type(text) is not str or not text.isascii():
        return False
    for prefix in prefixes:
        groups = text[len(prefix) :].split("-")
        if text.startswith(prefix) and tuple(len(g) for g in groups) == _GROUPS and "".join(groups).isalnum():
            return _HEX.issuperset("".join(groups))
    return False


def is_natural(text: str) -> bool:
    """Whether it is decimal digits alone. They may be too many for int()."""
    return text.isascii() and text.isdigit()


def old_mig_parts(name: str) -> tuple[str, str, str]:
    """The GPU's UUID, the GPU instance and the compute instance of a `mig-gpu-uuid/gi/ci`, in lower case; empty for any
    other name."""
    parts = name.split("/")
    if len(parts) == 3 and is_uuid(parts[0], "mig-gpu-") and all(is_natural(part) for part in parts[1:]):
        return parts[0][4:], parts[1], parts[2]
    return "", "", ""


def _is_mig_uuid(text: object) -> bool:
    """`MIG-UUID`, or, before R470, `MIG-GPU-UUID/GI/CI`."""
    if is_uuid(text, "MIG-"):
        return True
    return type(text) is str and text.startswith("MIG-GPU-") and old_mig_parts(text.lower())[0] != ""


# -- the driver -------------------------------------------------------------------------------------------------------


def _system(value: dict[str, Any]) -> dict[str, Any]:
    version = value.get("driver_version")
    parts = version.split(".") if type(version) is str and len(version) < 80 else []
    if len(parts) < 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"driver version {printable(repr(version))[:_TEXT_MAX]}")
    cuda = value.get("cuda_version")
    nvml = value.get("nvml_version")
    return {
        "driver_version": version,
        "nvml_version": _text(nvml) if type(nvml) is str else "",
        "cuda_version": divmod(cuda // 10, 100) if type(cuda) is int and 0 <= cuda <= _U32 else None,
        "count": _number("count", value.get("count"), _U32),
    }


def _lost(value: dict[str, Any]) -> Lost:
    about = value.get("gpu")
    if type(about) is not dict or type(value.get("mig")) is not int:
        raise ValueError("`lost` is not complete")
    index = _number("index", about.get("index"), _U32)
    lost = Lost(index, value["mig"], _text(value.get("call")), _text(value.get("error")))
    if is_uuid(about.get("uuid"), "GPU-", ""):
        lost.uuid = about["uuid"]
    try:
        lost.pci = _pci(about).get("pci_bus_id", "")
    except ValueError:
        pass
    return lost


# -- GPUs -------------------------------------------------------------------------------------------------------------


def _take_gpu(found: Answers, value: dict[str, Any]) -> None:
    index = _number("index", value.get("index"), _U32)
    try:
        gpu = _gpu(index, value, found.lost)
        for other in found.gpus:
            if gpu.uuid == other.uuid or (gpu.pci_bus_id and gpu.pci_bus_id == other.pci_bus_id):
                raise ValueError(f"the same UUID or PCI address as GPU {other.index}")
            if gpu.minor is not None and gpu.minor == other.minor:
                raise ValueError(f"the same minor number as GPU {other.index}")
        found.gpus.append(gpu)
    except ValueError as e:
        found.lost.append(Lost(index, -1, "an answer that makes no sense", printable(e)))


def _gpu(index: int, value: dict[str, Any], lost: list[Lost]) -> Gpu:
    uuid, mode = value.get("uuid"), value.get("mig_mode")
    if not is_uuid(uuid, "GPU-", ""):
        raise ValueError(f"UUID {printable(repr(uuid))[:_TEXT_MAX]}")
    capability, numa, addressing = value.get("compute_capability"), value.get("numa_node"), value.get("addressing_mode")
    fields: dict[str, Any] = {
        "index": index,
        "uuid": uuid,
        "minor": _maybe("minor", value.get("minor"), _MINOR_MAX),
        "name": _text(value.get("name") or ""),
        "brand": _maybe("brand", value.get("brand"), _U32) or 0,
        "compute_capability": None if capability is None else tuple(_numbers("compute capability", capability, 2)),
        "memory": _maybe("memory", value.get("memory"), _U64),
        "numa_node": numa if type(numa) is int and 0 <= numa < 1 << 16 else None,  # -1: none
        "addressing_mode": ADDRESSING_MODES[addressing + 1] if addressing in (0, 1, 2) else "",
        **_pci(value),
    }
    if mode is not None:
        fields["mig_capable"], fields["mig_enabled"] = True, _numbers("MIG mode", mode, 2)[0] == 1
        fields["max_mig_devices"] = _maybe("number of MIG devices", value.get("max_mig_devices"), _U32) or 0
        fields["mig_devices"] = _migs(fields, value.get("migs"), lost)
    return Gpu(**fields)


def _pci(value: dict[str, Any]) -> dict[str, Any]:
    pci = value.get("pci")
    if pci is None:
        return {}
    if type(pci) is not list or len(pci) != 5:
        raise ValueError("PCI address")
    domain, bus, device, device_id = _numbers("PCI address", pci[:4], 4)
    kernel, said = _bus_id(domain, bus, device), _text(pci[4])
    return {
        "pci_bus_id": kernel,
        "nvml_bus_id": said if kernel_bus_id(said) == kernel else f"{domain:08X}:{bus:02X}:{device:02X}.0",
        "pci_device_id": device_id,
    }


def _bus_id(domain: int, bus: int, device: int) -> str:
    if not (0 <= domain <= _U32 and 0 <= bus <= 0xFF and 0 <= device <= 0x1F):
        raise ValueError("PCI address out of range")
    return f"{domain:04x}:{bus:02x}:{device:02x}.0"


def _migs(parent: dict[str, Any], migs: Any, lost: list[Lost]) -> tuple[MigDevice, ...]:
    found: list[MigDevice] = []
    for value in migs if type(migs) is list else ():
        if type(value) is not dict:
            raise ValueError("a MIG device that is no object")
        index = _number("index of a MIG device", value.get("index"), _U32)
        try:
            mig = _mig(parent, index, value)
            if any(m.uuid == mig.uuid or _place(m) == _place(mig) for m in found):
                raise ValueError("the same UUID or instances as another")
            found.append(mig)
        except ValueError as e:
            lost.append(Lost(parent["index"], index, "an answer that makes no sense", printable(e)))
    return tuple(found)


def _place(mig: MigDevice) -> tuple[int, int]:
    return mig.gpu_instance, mig.compute_instance


def _mig(parent: dict[str, Any], index: int, value: dict[str, Any]) -> MigDevice:
    uuid = value.get("uuid")
    if not _is_mig_uuid(uuid):
        raise ValueError(f"UUID {printable(repr(uuid))[:_TEXT_MAX]}")
    said = value.get("attributes")
    counts = [0] * 9 if said is None else _numbers("attributes", said, 9)
    fields = {
        "multiprocessors": counts[0],
        "copy_engines": counts[1],
        "decoders": counts[2],
        "encoders": counts[3],
        "jpeg_engines": counts[4],
        "ofa_engines": counts[5],
        "gpu_instance_slices": counts[6],
        "compute_instance_slices": counts[7],
        "memory_mib": counts[8],
    }
    return MigDevice(
        uuid=uuid,
        parent=parent["uuid"],
        parent_index=parent["index"],
        index=index,
        gpu_instance=_number("GPU instance", value.get("gpu_instance"), 0xFFFF),
        compute_instance=_number("compute instance", value.get("compute_instance"), 0xFFFF),
        profile=_profile(value, fields, parent["memory"] or 0),
        profile_id=_maybe("profile id", value.get("profile_id"), _U32),
        **fields,
    )


def _profile(value: dict[str, Any], counts: dict[str, int], memory: int) -> str:
    """NVML has it at the end of the device's name; where that is not told it follows from the slices and the memory,
    which is rounded to eighths of the GPU's, as `nvidia-smi` names profiles."""
    said = str(value.get("name") or "").rpartition(" MIG ")[2]
    if said and said[0].isdigit() and said.isascii() and all(c.isalnum() or c in ".+-" for c in said):
        return said[:_TEXT_MAX]
    slices, compute = counts["gpu_instance_slices"], counts["compute_instance_slices"]
    if not slices or not memory:
        return ""
    eighths = -(-counts["memory_mib"] * (8 << 20) // memory)
    gigabytes = round(eighths * -(-memory // (1 << 30)) / 8)
    profile = value.get("profile")
    added = _ATTRIBUTES.get(profile, "") if type(profile) is int else ""
    return f"{f'{compute}c.' if compute != slices else ''}{slices}g.{gigabytes}gb{added}"


# -- values -----------------------------------------------------------------------------------------------------------


def _number(what: str, value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{what} {printable(repr(value))[:_TEXT_MAX]}")
    return value


def _maybe(what: str, value: Any, most: int) -> int | None:
    return None if value is None else _number(what, value, most)


def _numbers(what: str, values: Any, count: int) -> list[int]:
    if type(values) is not list or len(values) != count:
        raise ValueError(what)
    return [_number(what, value, _U64) for value in values]


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("text that is none")
    return printable(value)[:300]
