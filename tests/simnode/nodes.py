"""Nodes that are built once for all tests here, and programs that ask their NVML library."""

from __future__ import annotations

import functools
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from lib import proc, session, simnode

needs_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the nodes' libraries are x86-64: this machine can not load them"
)


@functools.cache
def nvoci() -> Path:
    """An entry file in the installer's form, for the interpreter that runs these tests."""
    path = session.new_dir("bin") / "nvoci"
    vendor = Path(click.__file__).parent.parent
    path.write_text(
        f"#!{session.ENTRY_PYTHON} -ISB\nimport sys\nsys.path[:0] = [{str(session.HOOKS)!r}, {str(vendor)!r}]\n"
        "from nvoci.ctl.main import main\nmain()\n"
    )
    path.chmod(0o755)
    return path


_ASK = """
import json, sys
import pynvml as n

def ask(call, *arguments):
    try:
        return plain(getattr(n, call)(*arguments))
    except n.NVMLError as e:
        return {"error": e.value}

def plain(value):
    if isinstance(value, (int, str, type(None))):
        return value
    if isinstance(value, (list, tuple)) or hasattr(value, "_length_"):
        return [plain(each) for each in value]
    if hasattr(value, "_fields_"):
        return {name: plain(getattr(value, name)) for name, _ in value._fields_}
    return value

answers = {}
"""


@functools.cache
def built(name: str) -> simnode.Built:
    """A node nobody may change."""
    return simnode.build(simnode.load(simnode.sample(name)), session.new_dir(f"node-{name}"))


def fresh(name: str, faults: Mapping[str, Any] | None = None) -> simnode.Built:
    """A node of one's own."""
    return simnode.build(simnode.load(simnode.sample(name)), session.new_dir(f"node-{name}"), faults)


def run(
    node: simnode.Built, program: str, faults: Mapping[str, Any] | str | None = None, timeout: float = 10
) -> proc.Result:
    """Run Python code in a process that loads the node's library. `ask(name, *arguments)` calls pynvml; what stands in
    `answers` at the end is printed as JSON."""
    env = {**proc.PLAIN_ENV, **node.environ(faults)}
    code = f"{_ASK}\n{program}\nprint(json.dumps(answers))"
    return proc.run([sys.executable, "-I", "-B", "-c", code], env=env, timeout=timeout)


def answers(node: simnode.Built, program: str, faults: Mapping[str, Any] | str | None = None) -> dict[str, Any]:
    """`answers` of a program that must end well."""
    done = run(node, program, faults)
    assert done.rc == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
