"""Minor numbers of capability nodes: what /dev/nvidia-caps/nvidia-capN gives access to which MIG instance.

Two tables of the driver say it: /proc/driver/nvidia-caps/mig-minors has every instance that there may be, and a file
`access` of /proc/driver/nvidia/capabilities each instance that there is. The latter is the one in force.
"""

from __future__ import annotations

from nvoci.discover.devnode import numbered
from nvoci.discover.search import NOT_THERE, USED, Search, read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.discover.model import MigDevice
    from nvoci.discover.node import Node

MINORS = "/driver/nvidia-caps/mig-minors"
CAPABILITIES = "/driver/nvidia/capabilities"
DEVICES = "/dev/nvidia-caps"
_MAX_MINORS = 4 << 20
_HINT = "update the driver, or reload its kernel module"


class CapabilityMinors:
    """Both tables; the large one is read when it is first needed."""

    __slots__ = ("_node", "_search", "_table")

    def __init__(self, node: Node, search: Search) -> None:
        self._node = node
        self._search = search
        self._table: dict[str, int] | None = None

    def minor(self, in_table: str, in_tree: str) -> int | None:
        """in_table: `gpu0/gi1/access`, `config`; in_tree: `gpu0/mig/gi1/access`, `mig/config`. None where neither
        knows."""
        path = f"{CAPABILITIES}/{in_tree}"
        lookup = self._search.begin("MIG capability", in_table)
        told = self._device_file_minor(path)
        listed = self._listed().get(in_table)
        lookup.tried(self._node.proc.host(path), NOT_THERE if told is None else f"{USED}: minor {told}")
        words = NOT_THERE if listed is None else f"minor {listed}"
        lookup.tried(self._node.proc.host(MINORS), words if told is not None or listed is None else f"{USED}: {words}")
        if told is not None and listed is not None and told != listed:
            self._search.problem("look up MIG capability", in_table, f"minor {told} or {listed}",
                                 "the driver's tables differ: reload its kernel module")  # fmt: skip
        return listed if told is None else told

    def _device_file_minor(self, path: str) -> int | None:
        text = read_text(self._search, self._node.proc, path, "MIG capability", _HINT, 1 << 16)
        if text is None:
            return None
        for line in text.split("\n"):
            key, _, value = line.partition(":")
            if key.strip() == "DeviceFileMinor":
                minor = numbered(value.strip(), "")
                if minor is not None:
                    return minor
        self._search.problem("read MIG capability", self._node.proc.host(path), "no DeviceFileMinor", _HINT)
        return None

    def _listed(self) -> dict[str, int]:
        if self._table is None:
            self._table = {}
            text = read_text(self._search, self._node.proc, MINORS, "MIG capabilities", _HINT, _MAX_MINORS) or ""
            bad = ""
            for line in text.split("\n"):
                name, _, number = line.strip().rpartition(" ")
                minor = numbered(number, "")
                if name and minor is not None:
                    self._table[name] = minor
                elif line.strip():
                    bad = bad or line
            if bad:
                self._search.problem("read MIG capabilities", self._node.proc.host(MINORS), f"line `{bad[:80]}`", _HINT)
        return self._table

    def of(self, mig: MigDevice, gpu_minor: int) -> list[int]:
        """The nodes of a MIG device: of its GPU instance, then of its compute instance. Fewer where one is not known,
        which is a problem."""
        instance = f"gi{mig.gpu_instance}"
        compute = f"{instance}/ci{mig.compute_instance}"
        found = []
        for below in (instance, compute):
            minor = self.minor(f"gpu{gpu_minor}/{below}/access", f"gpu{gpu_minor}/mig/{below}/access")
            if minor is None:
                self._search.problem("look up MIG capability", f"gpu{gpu_minor}/{below}/access", NOT_THERE,
                                     "was the instance destroyed? list them: nvidia-smi mig -lci")  # fmt: skip
            else:
                found.append(minor)
        return found
