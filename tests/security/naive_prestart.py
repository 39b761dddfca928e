"""The prestart hook as one would write it in an afternoon: device rules first, then one file after the other by its
joined name, and nothing is ever taken back. The cases of `test_prestart_crash.py` must fail on this program."""

from __future__ import annotations

import glob
import json
import os
import subprocess
import sys

NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia1")


def main() -> None:
    state = json.load(sys.stdin)
    with open(state["bundle"] + "/config.json") as f:
        root = json.load(f)["root"]["path"]
    with open(f"/proc/{state['pid']}/cgroup") as f:
        cgroup = next(line.split(":")[2].strip() for line in f if ":devices:" in line)
    for node in NODES:
        number = os.stat(node).st_rdev
        with open(f"/sys/fs/cgroup/devices{cgroup}/devices.allow", "w") as f:
            f.write(f"c {os.major(number)}:{os.minor(number)} rw")
    libraries = [path for name in ("cuda", "nvidia-ml") for path in glob.glob(f"/usr/lib/*-linux-gnu/lib{name}.so.5*")]
    for path in [*libraries, "/usr/bin/nvidia-smi", *NODES]:
        target = root + path
        enter = ["nsenter", "-t", str(state["pid"]), "-m"]
        os.makedirs(os.path.dirname(target), exist_ok=True)
        subprocess.run([*enter, "touch", target], check=True)
        subprocess.run([*enter, "mount", "--bind", path, target], check=True)


if __name__ == "__main__":
    main()
