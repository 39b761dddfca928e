"""Files with specifications of devices that set a variable."""

from __future__ import annotations

from pathlib import Path

SPEC = """---
cdiVersion: 0.6.0
kind: {kind}
devices:
{devices}containerEdits:
    env:
        - COMMON={mark}
"""
DEVICE = '    - name: "{name}"\n      containerEdits:\n          env:\n              - DEVICE={mark}\n'


def text(kind: str, *names: str, mark: str = "1") -> str:
    return SPEC.format(kind=kind, devices="".join(DEVICE.format(name=n, mark=mark) for n in names), mark=mark)


def put(path: Path, kind: str, *names: str, mark: str = "1") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text(kind, *names, mark=mark))
    path.chmod(0o644)
    return path
