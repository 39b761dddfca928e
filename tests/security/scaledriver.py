"""Starts containers, many at a time, in the jail that it is run in, and writes down what came of them.

A program with nothing but the standard library: argv is the path of a JSON file {runtime, state, scratch, report,
phases: [PHASE…]}. The phases follow one another. A PHASE is {slots: [[START…]…], gate, ready, deadline}: the starts of
a slot follow one another, the slots run side by side. A START is {bundle, expect, ok, then}: expect: its stdout, or
null for any; ok: whether it must succeed (null: either); then: words for the runtime as the gate is opened, such as
["kill", "KILL"], to which the container's name is added.

gate: a file that the hooks wait for (scalestarts.MEASURE); it is opened when `ready` of them have come to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from typing import Any

Json = dict[str, Any]


class Slot:
    """Its starts, one after the other."""

    def __init__(self, driver: Driver, number: int, starts: list[Json]) -> None:
        self.driver, self.number, self.starts = driver, number, starts
        self.out = f"{driver.scratch}/{number}.out"
        self.err = f"{driver.scratch}/{number}.err"
        self.name, self.pid, self.began = "", 0, 0.0
        self.words = [driver.runtime, "--root", driver.state]

    def next(self) -> bool:
        """Start the next; whether there was one."""
        if not self.starts:
            return False
        self.start = self.starts.pop(0)
        self.driver.serial += 1
        self.name = f"{os.path.basename(self.driver.scratch)}-{self.driver.serial}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, self.out, flags, 0o600),
            (os.POSIX_SPAWN_OPEN, 2, self.err, flags, 0o600),
        ]
        argv = [*self.words, "run", "--bundle", self.start["bundle"], self.name]
        self.began = time.monotonic()
        self.pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
        return True

    def ended(self, status: int) -> None:
        wall = time.monotonic() - self.began
        code = os.waitstatus_to_exitcode(status)
        out, err = read(self.out), read(self.err)
        expect, ok = self.start["expect"], self.start["ok"]
        wrong = ok is not None and (code == 0) != ok
        wrong |= code == 0 and expect is not None and out != expect
        wrong |= "Traceback" in err or "internal error" in err
        if wrong:
            self.driver.bad.append(f"{self.name}: {code} {out[-600:]!r} {err[-600:]!r}")
        self.driver.ends.append({"wall": wall, "rc": code, "stderr": err[-2000:], "stdout": out})
        if code != 0 or self.start["then"]:
            quietly([*self.words, "delete", "--force", self.name])

    def then(self) -> None:
        """Not waited for."""
        if self.start["then"]:
            verb, *rest = self.start["then"]
            argv = [*self.words, *([verb, "--force"] if verb == "delete" else [verb]), self.name, *rest]
            actions = [(os.POSIX_SPAWN_OPEN, n, "/dev/null", os.O_RDWR, 0) for n in range(3)]
            os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)


class Driver:
    """One run of all phases."""

    def __init__(self, spec: Json) -> None:
        self.runtime, self.state, self.scratch = spec["runtime"], spec["state"], spec["scratch"]
        self.serial = 0
        self.bad: list[str] = []
        self.ends: list[Json] = []

    def phase(self, phase: Json) -> Json:
        self.ends = []
        slots = [Slot(self, n, starts) for n, starts in enumerate(phase["slots"])]
        gate = Gate(phase) if phase["gate"] else None
        began = time.monotonic()
        running = {slot.pid: slot for slot in slots if slot.next()}
        if gate is not None:
            if not gate.wait():
                self.bad.append("not all of them came to the gate")
            for slot in slots:
                slot.then()
            gate.open()
        while running:
            pid, status = os.wait()
            slot = running.pop(pid, None)
            if slot is not None:
                slot.ended(status)
                if slot.next():
                    running[slot.pid] = slot
        self.reap()
        return {"seconds": time.monotonic() - began, "ends": self.ends}

    def reap(self) -> None:
        """What was not waited for, and orphans."""
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()

    def leftovers(self) -> list[str]:
        return [f"state {name}" for name in os.listdir(self.state)]


class Gate:
    """Closed while this process has the lock."""

    def __init__(self, phase: Json) -> None:
        self.fd = os.open(phase["gate"], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        self.phase = phase

    def wait(self) -> bool:
        """Whether `ready` hooks wait at it now."""
        until = time.monotonic() + self.phase["deadline"]
        while read(f"{self.phase['gate']}.ready").count("\n") < self.phase["ready"]:
            if time.monotonic() > until:
                return False
            time.sleep(0.005)
        return True

    def open(self) -> None:
        os.close(self.fd)


def read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def quietly(argv: list[str]) -> None:
    """A command whose outcome may be either. Its status is taken here, not by the loop over all."""
    subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    driver = Driver(spec)
    answer: Json = {"phases": [driver.phase(phase) for phase in spec["phases"]]}
    answer.update(bad=driver.bad, left=driver.leftovers())
    with open(spec["report"], "w") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main()
