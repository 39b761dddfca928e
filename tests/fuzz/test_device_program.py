"""Merged device programs in the kernel: for each node it lets a process of the cgroup do what the interpreter says.

Programs are those of runtimes with random rules, and mutants of them that the verifier takes. BPF_PROG_TEST_RUN knows
no device programs, so each is attached to a cgroup, and a process in there opens nodes.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from fuzz.mutate import Mutator
from fuzz.registry import find
from fuzz.target_device_program import merge, rules_of, verdict
from lib import devprogs
from lib.devprogs import Rule

from nvoci.linux import bpf, bpfdevice
from nvoci.linux.devicerule import DeviceRule
from tests.kernel import devcgroups

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="device programs need root")]

# With drivers that do nothing at an open: null, zero, full, random; and of another major number loop-control.
NODES = [("c", 1, 3), ("c", 1, 5), ("c", 1, 7), ("c", 1, 8), ("c", 10, 237)]
FLAGS = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}
ASKED = [(*node, access) for node in NODES for access in FLAGS] + [(*NODES[0], "m"), (*NODES[4], "m")]
NAME = b"nvoci_fuzz"


@contextmanager
def asked(folder: Path, cgroup: Path) -> Iterator[list[int]]:
    """A process in the cgroup: for each byte written to the first descriptor, the second has one for each of ASKED."""
    for number, (kind, major, minor) in enumerate(NODES):
        mode = 0o666 | (stat.S_IFCHR if kind == "c" else stat.S_IFBLK)
        os.mknod(folder / f"node{number}", mode, os.makedev(major, minor))
    hear, ask = os.pipe()
    told, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ask)
            devcgroups.join(cgroup)
            while os.read(hear, 1):
                os.write(say, bytes([_may(folder, *one) for one in ASKED]))
        finally:
            os._exit(0)
    os.close(hear)
    os.close(say)
    try:
        yield [ask, told]
    finally:
        os.close(ask)
        os.close(told)
        os.waitpid(pid, 0)


def _may(folder: Path, kind: str, major: int, minor: int, access: str) -> bool:
    """Whether it is not forbidden; what the driver says of it is another matter."""
    try:
        if access == "m":
            made = folder / "made"
            os.mknod(made, 0o600 | stat.S_IFCHR, os.makedev(major, minor))
            made.unlink()
        else:
            os.close(os.open(folder / f"node{NODES.index((kind, major, minor))}", FLAGS[access] | os.O_NONBLOCK))
    except PermissionError:
        return False
    except OSError:
        return True
    return True


def _rule(source: Random) -> Rule:
    numbers = source.choice((None, 1, 10)), source.choice((None, 3, 5, 7, 237))
    return Rule(source.random() < 0.7, source.choice("aacb"), *numbers, source.choice(("r", "w", "rw", "m", "rwm")))


def _ours(source: Random) -> list[DeviceRule]:
    return [DeviceRule(*source.choice(NODES), source.choice(("r", "w", "rw"))) for _ in range(source.randrange(5))]


def _made(source: Random) -> tuple[bytes, bytes]:
    """(theirs, merged) of rules."""
    form = source.choice(list(devprogs.FORMS.values()))
    theirs = form([_rule(source) for _ in range(source.randrange(6))])
    return theirs, bpfdevice.prefix(_ours(source)) + bpfdevice.loadable(theirs)


def _mutants(source: Random) -> Iterator[tuple[bytes, bytes]]:
    """(theirs, merged), of what the interpreter knows how to run."""
    target = find("device-program")
    mutator, seeds = Mutator(target, source), target.corpus()
    seeds += [b"\0" + _made(source)[0] for _ in range(20)]
    while True:
        data = mutator.mutant(source.choice(seeds), source.choice(seeds))
        _, theirs = rules_of(data)
        try:
            yield theirs, merge((_ours(source), theirs))[3]
        except ValueError:
            continue


def _load(code: bytes) -> int | None:
    try:
        return bpf.prog_load(code, NAME)
    except OSError:
        return None


def _compare(folder: Path, programs: Iterator[tuple[bytes, bytes]], wanted: int, tries: int) -> tuple[int, int, int]:
    """(compared, allowed, forbidden) after `wanted` programs, or `tries` that the verifier may refuse."""
    compared, verdicts = 0, [0, 0]
    with devcgroups.cgroup("unified") as path, asked(folder, path) as (ask, told):
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for _ in range(tries):
                theirs, merged = next(programs)
                alone, both = _load(theirs), _load(merged)
                assert (both is None) <= (alone is None), f"with ours in front it is refused: {merged.hex()}"
                for fd in (alone, both):
                    if fd is not None:
                        bpf.prog_attach(directory, fd, 0)  # in place of the one before
                        os.close(fd)
                if both is None:
                    continue
                os.write(ask, b"?")
                answer = os.read(told, len(ASKED))
                said = [verdict(merged, *one) for one in ASKED]
                assert said == [bool(each) for each in answer], f"{merged.hex()}: {list(answer)}"
                verdicts[0] += sum(answer)
                verdicts[1] += len(answer) - sum(answer)
                compared += 1
                if compared == wanted:
                    break
        finally:
            os.close(directory)
    return compared, *verdicts


@pytest.fixture
def wanted(request: pytest.FixtureRequest) -> int:
    return 2000 if request.config.getoption("--long") else 100


def test_the_kernel_says_what_the_interpreter_says_of_merged_programs(tmp_path: Path, wanted: int) -> None:
    """A rule for everything ends a program early: the verifier refuses what cannot be reached."""
    source = Random(1)
    compared, allowed, forbidden = _compare(tmp_path, iter(lambda: _made(source), None), wanted, 2 * wanted)
    assert compared == wanted
    assert min(allowed, forbidden) > wanted


def test_and_of_what_the_verifier_takes_of_mutants(tmp_path: Path, wanted: int) -> None:
    compared, allowed, forbidden = _compare(tmp_path, _mutants(Random(2)), wanted, wanted * 40)
    assert compared > wanted // 4
    assert min(allowed, forbidden) > compared


def test_a_merge_that_gives_too_much_is_found(tmp_path: Path) -> None:
    """What is compared sees one rule that is not there, and one that is not kept."""
    theirs = devprogs.runc([Rule(True, "c", 1, 3)])
    ours = bpfdevice.prefix([DeviceRule("c", 1, 5)])
    with devcgroups.cgroup("unified") as path, asked(tmp_path, path) as (ask, told):
        answers = []
        for code in (theirs, ours + theirs):
            devcgroups.attach(path, code, 0)
            os.write(ask, b"?")
            answers.append(list(os.read(told, len(ASKED))))
    assert [verdict(theirs, *one) for one in ASKED] == [bool(each) for each in answers[0]] != answers[1]
    assert [one for one, before, after in zip(ASKED, *answers) if before != after] == [(*NODES[1], a) for a in FLAGS]


def test_a_long_program_that_begins_like_ours_is_theirs() -> None:
    """Its first jump goes further than one of ours could, behind a list of minor numbers without end."""
    head = bpfdevice.prefix([DeviceRule("c", 195, 0)])
    n = 32_763
    code = bytearray(head[: 6 * 8])
    struct.pack_into("=h", code, 2 * 8 + 2, n + 6 - (1 << 16))
    struct.pack_into("=h", code, 4 * 8 + 2, n + 4)
    code += struct.pack("=BBhi", 0x15, 4, 0, 0) * (n + 12)
    assert bpfdevice.allowed_by_prefix(bytes(code)) == set()
