"""Commands of `nvoci cdi` on simulated nodes, beside a hook program as an installation has it."""

from __future__ import annotations

from pathlib import Path

from lib import proc, session, simnode
from simnode.nodes import nvoci

SIMNODE = session.CHECKOUT / "scripts/simnode"


def hook_program() -> Path:
    """Beside `nvoci`, as an installation has it."""
    path = nvoci().parent / "nvidia-cdi-hook"
    if not path.exists():
        path.write_text(nvoci().read_text().replace("nvoci.ctl.main import main", "nvoci.hook.main import cdi_hook")
                        .replace("\nmain()", "\ncdi_hook()"))  # fmt: skip
        path.chmod(0o755)
    return path


def run(node: simnode.Built, *commands: str, wrapper: str = "", installed: bool = True) -> proc.Result:
    """Shell commands on a node, where NVOCI is ours; they end at the first that fails."""
    hook_program()
    script = " && ".join([each.replace("NVOCI", f"{wrapper} {nvoci()} cdi") for each in commands])
    options = ("--installed",) if installed else ()
    return proc.run([SIMNODE, "run", *options, node.root, "--", "sh", "-c", script], timeout=60)
