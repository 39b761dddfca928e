"""Help texts of the hook programs; loaded only when asked for."""

from __future__ import annotations

from nvoci.hook import table


def program(name: str, title: str) -> str:
    """What `NAME --help` prints."""
    lines = ["NAME:", f"   {title} - hooks that give containers GPUs", "", "USAGE:"]
    lines += [f"   {name} [GLOBAL OPTIONS] COMMAND [OPTIONS]", "", "COMMANDS:"]
    shown = [h for h in (*table.HOOKS.values(), table.RUN) if not h.hidden]
    width = max(len(h.name) for h in shown)
    lines += [f"   {h.name:{width}}  {h.help}" for h in shown]
    lines += ["", "GLOBAL OPTIONS:"]
    lines += [
        "   --debug, -d    debug messages on stderr [$NVIDIA_CTK_DEBUG, $NVIDIA_CDI_DEBUG]",
        "   --quiet        errors only; wins over --debug [$NVIDIA_CTK_QUIET, $NVIDIA_CDI_QUIET]",
        "   --features     print as JSON which commands and flags there are",
        "   --version, -v  print the version",
        "   --help, -h     print this",
    ]
    return "\n".join(lines) + "\n"


def hook(name: str, entry: table.Hook) -> str:
    """What `NAME HOOK --help` prints."""
    lines = ["NAME:", f"   {name} {entry.name} - {entry.help}", "", "OPTIONS:"]
    left = [(f"--{o.name} {o.metavar}".rstrip(), o) for o in entry.options if not o.hidden]
    width = max(len(text) for text, _ in left)
    for text, option in left:
        default = f" (default: {option.default})" if option.default else ""
        many = "; may be repeated, or list several with commas" if option.kind == table.LIST else ""
        lines.append(f"   {text:{width}}  {option.help}{many}{default}")
    return "\n".join(lines) + "\n"
