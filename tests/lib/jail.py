"""A private mount (and pid) namespace around a command, so that it can neither hang a test nor leave anything behind.

`set-up` snippets are shell lines run inside before the command; add them together as strings.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from lib import proc, session


def run(
    argv: Sequence[str | Path],
    *,
    setup: str = "",
    post: Sequence[Sequence[str]] = (),
    pid_ns: bool = True,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    timeout: float = 30.0,
    grace: float = 1.0,
) -> proc.Result:
    """Run `argv` in new mount and pid namespaces with a procfs of their own; all of it dies at the deadline.

    The Result tells of processes still there `grace` seconds after the command and of mounts it added to its namespace.
    """
    folder = session.new_dir("jail")
    report = folder / "report.json"
    spec = {"setup": setup, "argv": [str(a) for a in argv], "post": [list(p) for p in post]}
    (folder / "spec.json").write_text(json.dumps({**spec, "report": str(report), "pid_ns": pid_ns, "grace": grace}))
    unshare = ["/usr/bin/unshare", "--mount", "--propagation", "private"]
    if pid_ns:
        unshare += ["--pid", "--fork", "--kill-child", "--mount-proc"]
    jailer = [session.PYTHON, "-IS", str(session.LIB / "_jailer.py"), str(folder / "spec.json")]
    result = proc.run([*unshare, *jailer], stdin=stdin, env=env, cwd=cwd, timeout=timeout)
    if report.exists() and not result.timed_out:
        seen = json.loads(report.read_text())
        result.rc, result.maxrss = seen["rc"], seen["maxrss"]
        result.survivors += seen["survivors"]
        result.mounts_added, result.mounts_removed = seen["mounts_added"], seen["mounts_removed"]
    return result


def prefix(setup: str) -> list[str]:
    """A wrapper command: a private mount namespace with `setup` done in it. Pids stay those of the host."""
    script = f'set -e\n{setup}\nexec "$@"'
    return ["/usr/bin/unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", script, "sh"]


def driver_proc(source: str | Path) -> str:
    """Set-up: `source` (with nvidia/params in it) is seen at /proc/driver.

    fstatfs of /proc is still procfs; /proc/driver below it is a tmpfs, so a reader may not ask for RESOLVE_NO_XDEV. A
    second, uncovered procfs is mounted as well: without one the kernel lets no user namespace mount its own.
    """
    clean = session.new_dir("proc")
    return (
        f"mount -t proc proc {clean}\n"
        f"mount -t tmpfs -o mode=555 driver /proc/driver\ncp -a {shlex.quote(str(source))}/. /proc/driver/\n"
    )


def host_files(files: Mapping[str, str | bytes]) -> str:
    """Set-up: host files with other contents, as {"/etc/nvoci/hook.json": "{}"}; overlays, the host is not written."""
    script = ""
    tops: dict[str, list[str]] = {}
    for name in files:
        tops.setdefault(Path(name).parts[1], []).append(name)
    for top, names in tops.items():
        upper, work = session.new_dir("upper"), session.new_dir("work")
        for name in names:
            data = files[name]
            target = upper / Path(name).relative_to(f"/{top}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data if isinstance(data, bytes) else data.encode())
        script += f"mount -t overlay -o lowerdir=/{top},upperdir={upper},workdir={work} overlay /{top}\n"
    return script


def cgroup_v1_only() -> str:
    """Set-up for crun 1.8, which refuses a hybrid host; nothing to do elsewhere."""
    return "if [ -d /sys/fs/cgroup/unified ]; then umount -l /sys/fs/cgroup/unified; fi\n"


def cgroup_v2_only() -> str:
    """Set-up: /sys/fs/cgroup is a cgroup2 alone, so that runtimes use device programs."""
    return (
        "if [ ! -e /sys/fs/cgroup/cgroup.controllers ]; then\n"
        "umount -l /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup\nfi\n"
    )
