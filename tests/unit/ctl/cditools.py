"""Specifications for the tests of `nvoci cdi`."""

from __future__ import annotations

from pathlib import Path

GPUS = """---
cdiVersion: 0.7.0
kind: a.org/gpu
annotations: {driver: "550"}
devices:
    - name: "0"
      annotations: {slot: "1"}
      containerEdits:
          deviceNodes: [{path: /dev/gpu0, type: c, major: 195, minor: 0}]
          additionalGids: [44]
    - name: "1"
      containerEdits:
          deviceNodes: [{path: /dev/gpu1, type: c, major: 195, minor: 1}]
containerEdits:
    env: [GPUS=void]
    mounts: [{hostPath: /lib/a, containerPath: /lib/a, options: [rbind]}]
"""
NICS = '{"cdiVersion": "0.5.0", "kind": "b.org/nic", "devices": [{"name": "x", "containerEdits": {"env": ["NIC=x"]}}]}'


def directory(path: Path, name: str, text: str) -> Path:
    """A new directory with one file."""
    path.mkdir()
    (path / name).write_text(text)
    return path
