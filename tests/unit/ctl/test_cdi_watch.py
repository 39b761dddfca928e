"""`nvoci cdi watch`: a line for each change, whatever becomes of the directories."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from lib import proc
from unit.ctl.cditools import GPUS, NICS, directory

from nvoci.ctl import cdi_watch

Invoke = Callable[..., proc.Result]


@pytest.fixture(autouse=True)
def _plain_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def low(tmp_path: Path) -> Path:
    return directory(tmp_path / "low", "gpus.yaml", GPUS)


@pytest.fixture
def high(tmp_path: Path) -> Path:
    return directory(tmp_path / "high", "nics.json", NICS)


class Watcher:
    """A running `nvoci cdi watch`."""

    def __init__(self, argv: list[str | Path]) -> None:
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        while not self.line(self.process.stderr).startswith("nvoci: watching "):
            pass

    @staticmethod
    def line(stream: IO[str], seconds: float = 10.0) -> str:
        assert select.select([stream], [], [], seconds)[0], "no line"
        return stream.readline()

    def lines(self, count: int) -> list[str]:
        assert self.process.stdout is not None
        data = b""
        end = time.monotonic() + 10
        while data.count(b"\n") < count and not self.is_silent(max(0, end - time.monotonic())):
            data += os.read(self.process.stdout.fileno(), 4096)
        return data.decode().splitlines()

    def is_silent(self, seconds: float = 0.4) -> bool:
        return not select.select([self.process.stdout], [], [], seconds)[0]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(10)


@pytest.fixture
def watch(bin_dir: Path) -> Iterator[Callable[..., Watcher]]:
    started: list[Watcher] = []

    def start(*words: str | Path) -> Watcher:
        started.append(Watcher([bin_dir / "nvoci", "cdi", "watch", *words]))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


def put(path: Path, text: str) -> None:
    """As `store.write` does: whole, under another name first."""
    temporary = path.parent / f".{path.name}.1"
    temporary.write_text(text)
    temporary.rename(path)


def test_watch_prints_a_line_for_each_change(watch: Callable[..., Watcher], low: Path, high: Path) -> None:
    watcher = watch("--spec-dir", low, "--spec-dir", high)
    put(low / "b.json", NICS.replace('"x"', '"y"'))
    assert watcher.lines(1) == [f"+ b.org/nic=y  {low}/b.json"]
    (low / "unrelated").write_text("")
    put(low / "b.json", NICS.replace('"x"', '"y"').replace("NIC=x", "NIC=z"))
    assert watcher.lines(1) == [f"~ b.org/nic=y  {low}/b.json"]
    (low / "b.json").chmod(0o666)
    first, second = watcher.lines(2)
    assert first == "- b.org/nic=y"
    assert second.startswith(f"! CDI spec {low}/b.json: mode 0666: others can write it (")
    (low / "b.json").chmod(0o644)
    assert watcher.lines(2) == [f"+ b.org/nic=y  {low}/b.json", f"= {low}/b.json"]
    (high / "nics.json").unlink()
    assert watcher.lines(1) == ["- b.org/nic=x"]
    (high / "c.json").symlink_to(low / "b.json")
    assert watcher.lines(1) == [f"~ b.org/nic=y  {high}/c.json"]
    assert watcher.end() == 0


def test_watch_waits_for_the_end_of_a_file(watch: Callable[..., Watcher], high: Path) -> None:
    watcher = watch("--spec-dir", high)
    with open(high / "slow.json", "w") as file:
        for part in (NICS[:20], NICS[20:].replace('"x"', '"y"')):
            file.write(part)
            file.flush()
            assert watcher.is_silent()
    assert watcher.lines(1) == [f"+ b.org/nic=y  {high}/slow.json"]
    assert watcher.end(signal.SIGINT) == 0


def test_watch_follows_directories_that_come_and_go(watch: Callable[..., Watcher], tmp_path: Path, high: Path) -> None:
    where = tmp_path / "run" / "deep" / "cdi"
    watcher = watch("--spec-dir", where)
    where.mkdir(parents=True)
    put(where / "a.json", NICS)
    added, removed = [f"+ b.org/nic=x  {where}/a.json"], ["- b.org/nic=x"]
    assert watcher.lines(1) == added
    shutil.rmtree(tmp_path / "run")
    assert watcher.lines(1) == removed
    where.parent.mkdir(parents=True)
    shutil.copytree(high, where)
    assert watcher.lines(1) == [f"+ b.org/nic=x  {where}/nics.json"]
    (tmp_path / "run").rename(tmp_path / "away")
    assert watcher.lines(1) == removed
    put(tmp_path / "away" / "deep" / "cdi" / "b.json", NICS)
    assert watcher.is_silent()
    where.parent.mkdir(parents=True)
    where.symlink_to(high)
    assert watcher.lines(1) == [f"+ b.org/nic=x  {where}/nics.json"]
    (high / "nics.json").unlink()
    assert watcher.lines(1) == removed
    where.parent.parent.joinpath("unrelated").mkdir()
    assert watcher.is_silent()
    assert watcher.end() == 0


def test_watch_prints_objects(watch: Callable[..., Watcher], low: Path) -> None:
    watcher = watch("--json", "--spec-dir", low)
    put(low / "b.json", NICS)
    put(low / "c.json", "")
    put(low / "gpus.yaml", GPUS.replace("GPUS=", "GPU=").replace('name: "1"', 'name: "2"'))
    rows = [json.loads(line) for line in watcher.lines(5)]
    assert sorted((row["change"], row.get("device", row.get("path"))) for row in rows) == [
        ("added", "a.org/gpu=2"), ("added", "b.org/nic=x"), ("changed", "a.org/gpu=0"), ("error", f"{low}/c.json"),
        ("removed", "a.org/gpu=1"),
    ]  # fmt: skip
    assert watcher.end() == 0


def test_watch_says_at_once_what_is_wrong(bin_dir: Path, high: Path) -> None:
    (high / "bad.json").write_text("")
    argv = [bin_dir / "nvoci", "cdi", "watch", "--spec-dir", high]
    result = proc.run(["timeout", "--preserve-status", "2", *argv])
    assert (result.rc, result.stdout) == (0, "")
    first, last = result.stderr.splitlines()
    assert first.startswith(f"nvoci: warning: CDI spec {high}/bad.json: ")
    assert last == f"nvoci: watching {high}"


def test_a_limit_of_watches_is_named(monkeypatch: pytest.MonkeyPatch, nvoci: Invoke, high: Path) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "no space")

    monkeypatch.setattr(cdi_watch.Inotify, "add", full)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    result = nvoci("cdi", "watch", "--spec-dir", high)
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])
    assert (result.rc, result.stderr) == (1, "nvoci: watch /: ENOSPC (raise fs.inotify.max_user_watches)\n")
