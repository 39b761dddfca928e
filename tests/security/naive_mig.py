"""mount-mig-devices as one would write it in an afternoon: numbers are not looked at, paths are strings that are joined
to the root, and whatever has a node's name is that node. The cases of `test_mig.py` must fail on this program."""

from __future__ import annotations

import json
import os
import subprocess
import sys


def main() -> None:
    state = json.load(sys.stdin)
    with open(state["bundle"] + "/config.json") as f:
        root = json.load(f)["root"]["path"]
    words = sys.argv[2:]
    given = dict(zip(words[::2], words[1::2]))
    gpu, instance = given["--gpu-instance"].split(":", 1)
    access = f"/proc/driver/nvidia/capabilities/gpu{gpu}/mig/gi{instance}/access"
    with open(access) as f:
        minor = f.readline().split(":")[1].strip()
    node = f"/dev/nvidia-caps/nvidia-cap{minor}"
    for source, path in ((access, access), (given["--driver-root"] + node, node)):
        target = root + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "a"):
            pass
        enter = ["nsenter", "-t", str(state["pid"]), "-m"] if state["pid"] > 1 else []
        subprocess.run([*enter, "mount", "--bind", source, target], check=True)


if __name__ == "__main__":
    main()
