"""A made-up vendor: files of a host, and specifications of `vendor.example/thing` that name them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib import rootfs, session

Json = dict[str, Any]
KIND = "vendor.example/thing"
LIB = "/opt/vendor/lib/libthing.so"
# What the vendor's driver has on the host.
HOST = """
file libthing.so thing one\\n
file tool #!/bin/sh\\necho tool\\n
dir data
file data/model model\\n
dir data/sub
"""


class Thing:
    """`folder` has the host's files, `specs` the specifications. Both are root's, and everybody may pass through."""

    def __init__(self) -> None:
        self.folder = rootfs.tree(session.new_dir("vendor"), HOST)
        self.specs = session.new_dir("cdi")

    def host(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def mount(self, name: str, path: str, *options: str, kind: str = "") -> Json:
        """A mount of one of the host's files."""
        found = {"hostPath": self.host(name), "containerPath": path, "options": list(options or ("ro", "rbind"))}
        return {**found, "type": kind} if kind else found

    def write(
        self,
        devices: Mapping[str, Json],
        common: Json | None = None,
        *,
        name: str = "thing.json",
        kind: str = KIND,
        version: str = "1.1.0",
        annotations: Mapping[str, str] | None = None,
    ) -> Path:
        """A specification with these edits by device, and those that all of them have in common."""
        doc: Json = {"cdiVersion": version, "kind": kind}
        if annotations:
            doc["annotations"] = dict(annotations)
        doc["devices"] = [{"name": each, "containerEdits": edits} for each, edits in devices.items()]
        if common:
            doc["containerEdits"] = common
        path = self.specs / name
        path.write_text(json.dumps(doc))
        path.chmod(0o644)
        return path

    def words(self, *devices: str, options: Sequence[str] = ()) -> list[str]:
        """`inject`, and which devices of the kind; `a` where none is named."""
        named = [word for each in devices or ("a",) for word in ("--device", each if "=" in each else f"{KIND}={each}")]
        return ["inject", *named, "--spec-dir", str(self.specs), *options]


def hook(stage: str, path: str, *args: str, **more: Any) -> Json:
    """A hook of a specification."""
    return {"hookName": stage, "path": path, "args": [path.rpartition("/")[2], *args], **more}
