"""The YAML that we write, read by a consumer in Go: Podman gives a container the very strings that the model had."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from lib import rootfs, runtimes
from unit.cdi.strategies import TRICKY

from nvoci.cdi import text
from nvoci.cdi.model import ContainerEdits, Device, Hook, Spec

pytestmark = pytest.mark.e2e

STRINGS = list(dict.fromkeys([*TRICKY, "---a", "...a"]))
REPORT = '#!/bin/sh\ncat >/dev/null\nfor word; do printf "%s\\0" "$word"; done >{}\n'


def image(top: Path) -> Path:
    rootfs.tree(top, "\n".join(f"dir {name}" for name in ("bin", "proc", "dev", "sys", "etc", "tmp", "run")))
    shutil.copy("/usr/bin/busybox", top / "bin/busybox")
    for name in ("sh", "cat"):
        (top / "bin" / name).symlink_to("busybox")
    return top


def test_strings_reach_a_container_unchanged(tmp_path: Path) -> None:
    seen, program, root = tmp_path / "seen", tmp_path / "hook", image(tmp_path / "root")
    program.write_text(REPORT.format(seen))
    program.chmod(0o755)
    hook = Hook("createRuntime", str(program), ("hook", *STRINGS), ("PATH=/usr/bin:/bin",))
    env = tuple(f"V{n}={value}" for n, value in enumerate(STRINGS))
    devices = (Device("0", ContainerEdits(env=env, hooks=(hook,))), Device("1e3", ContainerEdits(env=("B=c",))))
    spec = text.dumps(Spec("0.5.0", "vendor.com/dev", devices))
    flags = ["--device=vendor.com/dev=0", "--device=vendor.com/dev=1e3"]
    script = "cat /proc/1/environ >/tmp/env; echo $B"
    done = runtimes.podman(root, ["/bin/sh", "-c", script], flags=flags, cdi_specs={"vendor.yaml": spec})
    assert done.stdout.strip() == "c", done.stderr
    wanted = [value.encode() for value in STRINGS]
    assert seen.read_bytes().split(b"\0")[:-1] == wanted
    got = dict(each.partition(b"=")[::2] for each in (root / "tmp/env").read_bytes().split(b"\0"))
    assert [got.get(b"V%d" % n) for n in range(len(wanted))] == wanted
