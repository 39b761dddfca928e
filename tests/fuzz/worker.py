"""The process in which one target runs: `worker.py TARGET JOB`, started by harness.py, which also reads its answer.

JOB is JSON: engine and scratch (a directory), then seed, executions and seconds, or replay (a list of files), or step
(every so many of the systematic inputs). Before each input is tried it is put into scratch/input, a mapped file: who
kills this process still has it. The answer is scratch/report, JSON.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import mmap
import os
import resource
import struct
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent / "hooks")]
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
sys.dont_write_bytecode = True

INPUT_SIZE = 32 << 20
SPARE_MEMORY = 512 << 20
"""Address space above what the process has at its start: what asks for more gets MemoryError."""


def have_atheris() -> bool:
    """Whether the coverage-guided engine is there; it is no dependency."""
    try:
        import atheris  # type: ignore[import-not-found] # noqa: F401
    except ImportError:
        return False
    return True


class Slot:
    """The input that is being tried, and a count that shows progress, where the parent can read them."""

    def __init__(self, path: Path) -> None:
        self._count = 0
        with path.open("wb+") as file:
            file.truncate(INPUT_SIZE)
            self._map = mmap.mmap(file.fileno(), INPUT_SIZE)

    def note(self, data: bytes) -> None:
        self._count += 1
        data = data[: INPUT_SIZE - 16]
        struct.pack_into("=QQ", self._map, 0, self._count, len(data))
        self._map[16 : 16 + len(data)] = data


def read_slot(path: Path) -> tuple[int, bytes]:
    """(how many inputs were begun, the last of them)."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        head = file.read(16)
        if len(head) == 16:
            count, size = struct.unpack("=QQ", head)
            return count, file.read(size)
    return 0, b""


def main(name: str, job: dict[str, Any]) -> None:
    scratch = Path(job["scratch"])
    target = _target(name, job["engine"])
    from fuzz import engine, mutate

    def done(report: engine.Report) -> None:
        (scratch / "report").write_text(json.dumps(_plain(report)))
        os._exit(0)

    slot = Slot(scratch / "input")
    _bound()
    if "replay" in job:
        done(engine.replay(target, [Path(path).read_bytes() for path in job["replay"]], slot.note))
    if "step" in job:
        cases = [case for seed in target.corpus() for case in mutate.systematic(target, seed)]
        done(engine.replay(target, cases[:: job["step"]], slot.note))
    if job["engine"] == "atheris":
        corpus = scratch / "corpus"
        corpus.mkdir()
        engine.coverage_guided(target, job["seed"], job["seconds"], slot.note, str(corpus), done)
    bounds = engine.Bounds(job["executions"], job["seconds"])
    done(engine.mutation_loop(target, job["seed"], bounds, slot.note))


def _target(name: str, wanted: str) -> Any:
    """From the registry; for atheris, the code under test is instrumented as it is imported."""
    with contextlib.ExitStack() as stack:
        if wanted == "atheris":
            import atheris  # type: ignore[import-not-found]

            stack.enter_context(atheris.instrument_imports(include=["nvoci"]))
        from fuzz import registry

        return registry.find(name)


def _bound() -> None:
    gc.collect()
    gc.freeze()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + SPARE_MEMORY, size + SPARE_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (INPUT_SIZE, INPUT_SIZE))


def _plain(report: Any) -> dict[str, Any]:
    found = [{**vars(f), "data": base64.b64encode(f.data).decode()} for f in report.findings]
    return {**vars(report), "findings": found}


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
