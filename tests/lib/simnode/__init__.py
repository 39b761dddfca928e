"""Simulated GPU nodes: real files, links and device nodes below a directory, and an NVML library that answers.

node = simnode.load(simnode.sample("a100"))
built = simnode.build(node, directory, faults={"lost": 2})
subprocess.run([…], env={**env, **built.environ({"hang": "nvmlDeviceGetName"})})
"""

from __future__ import annotations

from lib.simnode.description import Entry, Node, load
from lib.simnode.document import DescriptionError
from lib.simnode.maker import Built, build
from lib.simnode.nvmllib import BuildError
from lib.simnode.variants import sample, variants

__all__ = ["BuildError", "Built", "DescriptionError", "Entry", "Node", "build", "load", "sample", "variants"]
