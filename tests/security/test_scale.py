"""Row N1: many container starts at once, each with several hooks in one process.

As a program: one of the processes that start containers one after the other: test_scale.py RUNTIME ROOT COUNT
ENGINE NAIVE
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
from lib import hookproc, rootfs, runtimes, session
from lib.oracle import Oracle
from lib.runtimes import make_bundle
from security.arena import LIBDIR, NAIVE

WORDS = [
    "run", "--", "create-symlinks", "--link", f"libcuda.so.1::/{LIBDIR}/libcuda.so", "--link", "x::/opt/a/b/x",
    "--", "chmod", "--mode", "640", "--path", "/etc/hostname",
    "--", "update-application-profile", "--", "update-ldcache", "--folder", "/opt/a", "--engine",
]  # fmt: skip
PLANNED = [
    f"{LIBDIR}/*", "opt/**", "etc/hostname", "etc/nvidia/**", "etc/ld.so.cache", "etc/ld.so.conf.d/*nvoci.conf",
    "dev", "proc", "sys",
]  # fmt: skip
SCRIPT = f"readlink /{LIBDIR}/libcuda.so && readlink /opt/a/b/x && stat -c %a /etc/hostname && ldconfig -p >/dev/null"
SEEN = "libcuda.so.1\nx\n640\n"


def start(runtime: str, root: Path, number: int, engine: str, program: Path | None) -> list[str]:
    """One container; what was wrong."""
    stage = ("createRuntime", "createContainer")[number % 2]
    entry = hookproc.hook_entry([*WORDS, engine], program=program)
    bundle = make_bundle(session.new_dir("bundle"), root, ["sh", "-c", SCRIPT], {stage: [entry]})
    result = runtimes.Runtime(runtime).run(bundle, timeout=120)
    left = result.survivors + result.mounts_added
    if (result.rc, result.stdout, left) == (0, SEEN, []):
        return []
    return [f"start {number}: {result.rc} {result.stdout!r} {result.stderr[-300:]!r} {left}"]


def work(runtime: str, root: str, count: str, engine: str, naive: str) -> None:
    """`count` starts, one after the other; what was wrong as JSON on stdout."""
    program = NAIVE if naive else None
    out = [v for n in range(int(count)) for v in start(runtime, Path(root), n, engine, program)]
    json.dump(out + runtimes.leftovers(), sys.stdout)


def starts(
    runtime: str, count: int, parallel: int, *, engine: str = "builtin", naive: bool = False, shared: bool = False
) -> list[str]:
    """Violations of `count` starts by `parallel` processes."""
    roots = [rootfs.glibc_rootfs(session.new_dir("image")) for _ in range(1 if shared else parallel)]
    with Oracle(rootfs=roots[0], planned=PLANNED) as oracle:
        workers = []
        for n in range(parallel):
            words = [runtime, str(roots[n % len(roots)]), str(count // parallel), engine, "naive" if naive else ""]
            workers.append(subprocess.Popen([sys.executable, "-B", __file__, *words], stdout=subprocess.PIPE))
        answers = [worker.communicate()[0] for worker in workers]
        bad = [v for a in answers for v in (json.loads(a) if a else ["a worker died"])]
        return bad + oracle.check()


@pytest.mark.parametrize("shared", [False, True], ids=["own-roots", "one-root"])
def test_n1_every_start_succeeds_and_leaves_nothing(
    profile: str, engine: str, runtime: str, shared: bool, long: bool
) -> None:
    """Half of them on one shared root, where hooks work on the same files at the same time."""
    count, parallel = (512, 32) if long else (40 if (profile, engine) == ("new", "builtin") else 8, 8)
    assert starts(runtime, count, parallel, engine=engine, shared=shared) == []


def test_naive_n1_starts_leave_files(runtime: str) -> None:
    found = starts(runtime, 8, 8, naive=True, shared=True)
    assert any("zz-nvcr-" in v for v in found), found


if __name__ == "__main__":
    work(*sys.argv[1:])
