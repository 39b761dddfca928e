"""First process of a jail: prepares its namespaces, runs one command, and writes down what the command left behind.

Started by jail.py as a file of its own, with nothing but the standard library: argv is the path of a JSON spec
{setup, argv, post, report, pid_ns}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time


def mountinfo() -> list[str]:
    with open("/proc/self/mountinfo", errors="surrogateescape") as lines:
        return lines.read().splitlines()


def others() -> dict[int, str]:
    """Every other process of this pid namespace; zombies are reaped on the way."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as f:
                    found[int(name)] = f.read().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
    return found


def main() -> int:
    with open(sys.argv[1]) as f:
        spec = json.load(f)
    if spec["setup"]:
        done = subprocess.run(["/bin/sh", "-e", "-u", "-c", spec["setup"]], stdin=subprocess.DEVNULL)
        if done.returncode:
            print("jail: set-up failed", file=sys.stderr)
            return 125
    before = mountinfo()
    pid = os.posix_spawnp(spec["argv"][0], spec["argv"], os.environ)
    _, status, usage = os.wait4(pid, 0)
    deadline = time.monotonic() + spec["grace"]
    while (left := others() if spec["pid_ns"] else {}) and time.monotonic() < deadline:
        time.sleep(0.01)
    after = mountinfo()
    for argv in spec["post"]:
        subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    code = os.waitstatus_to_exitcode(status)
    report = {
        "rc": code,
        "maxrss": usage.ru_maxrss,
        "survivors": [f"{p} {c}" for p, c in left.items()],
        "mounts_added": [m for m in after if m not in before],
        "mounts_removed": [m for m in before if m not in after],
    }
    with open(spec["report"], "w") as f:
        json.dump(report, f)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
