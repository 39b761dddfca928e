"""What `nvoci explain` says of a container a moment before the hook runs, and what that container then has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from e2e.gpunode import Seen
from e2e.prestartnode import PrestartNode
from e2e.prestartview import ALLOWED, asks_nvml, clean, mounts, part
from lib import session
from lib.bundle import shell_hook

pytestmark = pytest.mark.e2e
Json = dict[str, Any]


def explained(node: PrestartNode, runtime: str, devices: str, **more: Any) -> tuple[Json, Seen]:
    """The document, made by a hook before ours, and the container."""
    out = session.new_dir("out") / "document"
    find = """bundle=$(tr -d '\\n' | sed 's/.*"bundle": *"\\([^"]*\\)".*/\\1/')"""
    before = shell_hook(f'{find}; {node.program.with_name("nvoci")} explain --json --bundle "$bundle" >{out}')
    seen = node.start(runtime, devices, entries=[before, node.entry()], **more)
    assert seen.result.rc == 0, seen.result.stderr
    clean(seen)
    document: Json = json.loads(out.read_text())
    assert (document["result"], document["rootfs"]["there"]) == ("injects", True)
    return document, seen


def check(document: Json, seen: Seen) -> None:
    """The same mounts with the same options, the same nodes and numbers, no other device, the links and the cache."""
    rows = [*document["mounts"], *document["device_nodes"], *document["generated"]]
    told = {each["container_path"]: ",".join(each["options"]) for each in rows}
    # /lib is a link of the image's, and the kernel tells of a mount where that leads.
    assert mounts(seen) == {f"/usr{path}" if path.startswith("/lib/") else path: told[path] for path in told}
    nodes = {each["container_path"]: each["rule"].split()[1] for each in document["device_nodes"]}
    assert part(seen, "node") == {path: f"{number} {ALLOWED}" for path, number in nodes.items()}
    links = part(seen, "link")
    for each in document["links"]:
        assert links[each["path"]] == each["target"]
    where = {path.rpartition("/")[0].removeprefix("/usr") for name, path in part(seen, "library").items()
             if name in ("libcuda.so.1", "libnvidia-ml.so.1")}  # fmt: skip
    cached = {path.removeprefix("/usr") for path in document["library_cache"]["directories"]}
    compat = {document["cuda_compat"]["directory"].removeprefix("/usr")} if document["cuda_compat"]["used"] else set()
    assert where <= cached | compat


@asks_nvml
def test_eight_gpus_with_everything(hook: Path, runtime: str) -> None:
    document, seen = explained(PrestartNode(hook), runtime, "all", capabilities="all")
    check(document, seen)
    assert document["cuda_compat"]["used"] is ("cuda" in seen.said.get("library libcuda.so.1", ""))
    assert len(document["device_nodes"]) == 12


@asks_nvml
def test_some_gpus_with_mounted_compatibility_libraries(hook: Path) -> None:
    config = '[nvidia-container-runtime.modes.legacy]\ncuda-compat-mode = "mount"\n'
    document, seen = explained(PrestartNode(hook), "runc", "3,0", config=config)
    check(document, seen)
    compat = [each["container_path"] for each in document["mounts"] if each["kind"] == "cuda-compat"]
    assert (compat, document["cuda_compat"]["used"]) == (document["cuda_compat"]["files"], True)
    assert len(compat) == 1


@asks_nvml
def test_mig_devices(hook: Path) -> None:
    document, seen = explained(PrestartNode(hook, "a100-mig"), "runc", "4:0,1:1", capabilities="compute")
    check(document, seen)
    assert [row["word"] for row in document["selected"]] == ["4:0", "1:1"]
