"""What kind of node it is, and what tells so."""

from __future__ import annotations

from nvoci.discover.search import USED, first, read_text
from nvoci.discover.tegra import RELEASE
from nvoci.discover.wsl import DEVICE, DXCORE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.discover.libraries import Libraries
    from nvoci.discover.node import Node, Options
    from nvoci.discover.nvml import NvmlAnswer
    from nvoci.discover.search import Search

NVML, CSV, WSL = "nvml", "csv", "wsl"
_FAMILY = "/devices/soc0/family"


class Platform:
    """kind: nvml, csv (Tegra) or wsl, as `nvidia-ctk cdi generate --mode` spells them. evidence: in words."""

    __slots__ = ("evidence", "kind")

    def __init__(self, kind: str, evidence: list[str]) -> None:
        self.kind = kind
        self.evidence = evidence


def platform(
    node: Node, search: Search, libraries: Libraries, answer: NvmlAnswer | None, options: Options
) -> Platform:
    """Of the node, or as the options say. Nothing is loaded: where NVML has not answered, its library counts."""
    if options.mode != "auto":
        return Platform(options.mode, [f"mode {options.mode} was asked for"])
    dxcore = first(search, node.root, "platform", "libdxcore.so", [DXCORE])
    if dxcore or libraries.matching("libdxcore.so"):
        there = "there" if node.dev.exists(DEVICE.encode()) else "not there"
        return Platform(WSL, [f"libdxcore.so is there, {DEVICE} is {there}"])
    tegra, nvml = _tegra(node, search), _nvml(libraries, answer)
    integrated = [gpu.name for gpu in answer.gpus if gpu.integrated] if answer else []
    if integrated:
        return Platform(CSV, [*tegra, f"NVML has an integrated GPU, {integrated[0]}"])
    if tegra and not nvml:
        return Platform(CSV, [*tegra, "there is no NVML"])
    if not nvml:
        return Platform(NVML, ["no sign of any kind: taken for a node with NVML"])
    return Platform(NVML, [*tegra, nvml])


def _tegra(node: Node, search: Search) -> list[str]:
    found = []
    if first(search, node.root, "platform", RELEASE, [RELEASE]):
        found.append(f"{RELEASE} is there")
    family = (read_text(search, node.sys, _FAMILY, "system family", limit=4096) or "").strip()
    lookup = search.begin("platform", _FAMILY)
    is_tegra = family.lower().startswith("tegra")
    lookup.tried(node.sys.host(_FAMILY), f"{USED}: {family}" if is_tegra else (family or "not there"))
    return [*found, f"system family {family}"] if is_tegra else found


def _nvml(libraries: Libraries, answer: NvmlAnswer | None) -> str:
    if answer is not None:
        return "NVML answers"
    return "libnvidia-ml.so.1 is there" if libraries.matching("libnvidia-ml.so.1") else ""
