"""inject as one would write it in an afternoon: paths are strings that are joined to the root, and looked up again for
each step. The cases of `test_inject.py` must fail on this program."""

from __future__ import annotations

import json
import os
import subprocess
import sys


def main() -> None:
    state = json.load(sys.stdin)
    root = state.get("root")
    if not root:
        with open(state["bundle"] + "/config.json") as f:
            root = json.load(f)["root"]["path"]
    specs = sys.argv[sys.argv.index("--spec-dir") + 1]
    with open(f"{specs}/thing.json") as f:
        edits = json.load(f)["devices"][0]["containerEdits"]
    mounts = [(m["hostPath"], m["containerPath"]) for m in edits.get("mounts", [])]
    mounts += [(n["hostPath"], n["path"]) for n in edits.get("deviceNodes", [])]
    pid = state.get("pid", 0)
    for source, destination in mounts:
        target = root + destination
        if os.path.isdir(source):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "a"):
                pass
        enter = ["nsenter", "-t", str(pid), "-m"] if pid > 1 else []
        subprocess.run([*enter, "mount", "--bind", source, target], check=True)


if __name__ == "__main__":
    main()
