"""Starts a worker for a target, waits with bounds, and brings home what it found, even if it was killed."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuzz.engine import Report
from fuzz.judge import Finding
from fuzz.registry import HERE, Target
from fuzz.worker import have_atheris, read_slot

STALLED = 60.0
"""Wall seconds that one input may take, on a busy machine, before the worker is taken to hang."""
_POLL = 0.05
_QUIET = 0x100 + signal.SIGKILL


def fuzz(target: Target, seed: int, seconds: float, executions: int = 1 << 62, engine: str = "") -> Report:
    """Try new inputs until `seconds` or `executions` are used up. engine: `own`, `atheris`, or the better there is."""
    chosen = engine or ("atheris" if have_atheris() else "own")
    report = _work(target, {"seed": seed, "seconds": seconds, "executions": executions, "engine": chosen})
    if chosen == "atheris":
        report.findings = [f for f in report.findings if f.kind != "time" or _again(target, f)]
    return report


def _again(target: Target, finding: Finding) -> bool:
    """Whether it is found without the instrumentation, too, which takes time itself."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(finding.data)
        file.flush()
        return any(f.kind == "time" for f in replay(target, [Path(file.name)]).findings)


def replay(target: Target, paths: Sequence[Path]) -> Report:
    """Try the inputs in these files."""
    return _work(target, {"replay": [str(path) for path in paths], "engine": "own"})


def exhaust(target: Target, step: int = 1) -> Report:
    """Try every systematic input of every seed, or every `step`-th."""
    return _work(target, {"step": step, "engine": "own"})


def save(target: Target, findings: Sequence[Finding]) -> list[Path]:
    """Keep the inputs as regression cases; one with the same name is the same input."""
    saved = []
    for finding in findings:
        path = target.crashes() / f"{finding.kind}-{hashlib.sha256(finding.data).hexdigest()[:16]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(finding.data)
        saved.append(path)
    return saved


def told(target: Target, seed: int, report: Report) -> str:
    """What a person reads: how to see it again, and each finding with its input."""
    reached = f"{report.lines} lines reached, " if report.lines else ""
    head = (
        f"{target.name}: seed {seed}, {report.engine}: {report.executions} inputs, "
        f"{report.corpus} kept, {reached}{len(report.findings)} findings"
    )
    found = [f"{f.kind} {f.where}: {f.message.rstrip()}\n  input: {_shown(f.data)}" for f in report.findings]
    return "\n".join([head, *found])


def _shown(data: bytes) -> str:
    text = repr(data)
    return text if len(text) < 1000 else f"{text[:800]}... ({len(data)} bytes)"


def _work(target: Target, job: dict[str, Any]) -> Report:
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # many small files
    scratch = Path(tempfile.mkdtemp(prefix="nvoci-fuzz-", dir=in_memory))
    try:
        job["scratch"] = str(scratch)
        command = [sys.executable, "-B", str(HERE / "worker.py"), target.name, json.dumps(job)]
        with open(scratch / "log", "wb") as log:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(scratch)}
            )
            try:
                status = _wait(child, scratch)
            finally:
                child.kill()
                child.wait()
        return _answer(scratch, status, job)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _wait(child: subprocess.Popen[bytes], scratch: Path) -> int:
    """Its exit status; _QUIET where it had to be killed because it stayed at one input."""
    count, since = -1, time.monotonic()
    while True:
        try:
            return child.wait(_POLL)
        except subprocess.TimeoutExpired:
            now, _ = read_slot(scratch / "input")
            if now != count:
                count, since = now, time.monotonic()
            elif time.monotonic() - since > STALLED:
                return _QUIET


def _answer(scratch: Path, status: int, job: dict[str, Any]) -> Report:
    if status == 0 and (scratch / "report").exists():
        plain = json.loads((scratch / "report").read_text())
        findings = [Finding(**{**f, "data": base64.b64decode(f["data"])}) for f in plain.pop("findings")]
        return Report(**plain, findings=findings)
    count, data = read_slot(scratch / "input")
    log = (scratch / "log").read_bytes()[-2000:].decode(errors="replace")
    if not count:
        raise RuntimeError(f"the worker ended with {status} before its first input:\n{log}")
    kind, message = ("endless", "no end") if status == _QUIET else ("died", f"exit status {status}\n{log}")
    return Report(job["engine"], executions=count, findings=[Finding(kind, "", message, data)])
