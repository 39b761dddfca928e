"""nvidia-container-cli on a simulated node: how it is called there, and what it says of every node."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import pynvml
from lib import proc, session, simnode
from simnode.nodes import built

SIMNODE = session.CHECKOUT / "scripts/simnode"
V = "550.163.01"
LIB = "/usr/lib/x86_64-linux-gnu"
UUID = "GPU-12345678-1234-1234-1234-12345678000"
PROGRAM = "nvidia-container-cli: "
CONTROL = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"]
CAPABILITIES = "/proc/driver/nvidia/capabilities"
# Why a libnvidia-tls is left out.
NO_NOTE, OTHER_NOTE = "it has no ABI note", "its ABI note is that of another loader"


@functools.cache
def cli() -> Path:
    """An entry file in the installer's form."""
    path = session.new_dir("bin") / "nvidia-container-cli"
    vendor = Path(pynvml.__file__).parent
    path.write_text(
        f"#!{session.ENTRY_PYTHON} -ISB\nimport sys\nsys.path[:0] = [{str(session.HOOKS)!r}]\n"
        f"sys.path += [{str(vendor)!r}]\n"
        "from nvoci.prestart.cli import main\nmain()\n"
    )
    path.chmod(0o755)
    return path


def run(
    node: simnode.Built, *words: str | Path, installed: bool = True, env: Mapping[str, str] | None = None,
    wrapper: tuple[str, ...] = (), cwd: Path | None = None,
) -> proc.Result:  # fmt: skip
    """The program on a node that has its driver in `/`, or, if not installed, in a directory."""
    options = ("--installed",) if installed else ()
    command = [SIMNODE, "run", *options, node.root, "--", *wrapper, cli(), *words]
    return proc.run(command, env={**proc.PLAIN_ENV, **(env or {})}, timeout=30, cwd=cwd)


def shell(node: simnode.Built, script: str) -> proc.Result:
    """Several calls in one run: what they leave in /run/nvoci is there for the next."""
    return proc.run([SIMNODE, "run", "--installed", node.root, "--", "/bin/sh", "-c", script], timeout=30)


@functools.cache
def _all(sample: str, lines: tuple[str, ...]) -> list[str]:
    script = [f"{cli()} {line} 2>$err; echo $?; echo ///; cat $err; echo ///" for line in lines]
    result = shell(built(sample), "\n".join(["err=$(mktemp)", *script, "rm $err"]))
    return result.stdout.split("///\n")


def each(sample: str, calls: Sequence[Sequence[str]]) -> dict[str, tuple[int, str, str]]:
    """Command line -> (exit status, stdout, stderr) of several calls on a node, made in one run."""
    lines = tuple([shlex.join(words) for words in calls])
    told = _all(sample, lines)
    found = {}
    for number, line in enumerate(lines):
        out, stderr = told[2 * number : 2 * number + 2]
        head, _, rc = out[:-1].rpartition("\n")
        found[line] = (int(rc), f"{head}\n" if head else "", stderr)
    return found


def left_out(reason: str, directory: str = LIB) -> str:
    """What is said of a libnvidia-tls that no container gets."""
    return f"{PROGRAM}warning: {directory}/libnvidia-tls.so.{V}: left out: {reason}\n"
