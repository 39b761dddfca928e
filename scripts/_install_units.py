"""The systemd units, with the path of the installed program in them.

Standard library only, Python >= 3.9.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path

from _install_lib import InstallError, read_tree

SOURCE = "systemd"  # in the checkout
PLACE = "lib/systemd/system"  # below the prefix
SEARCHED = ("/usr", "/usr/local")  # prefixes below which systemd looks by itself
PROGRAM = "bin/nvoci"
ENABLE = ("nvoci-cdi-refresh.service", "nvoci-cdi-refresh.path", "nvoci-cdi-driver.path")
_SHIPPED = re.compile(rb"^(ExecStart=)/usr/local/bin/nvoci(?= )", re.MULTILINE)


def unit_files(checkout: Path, prefix: Path) -> dict[str, bytes]:
    """Path below the prefix -> content. Raises InstallError."""
    top = checkout / SOURCE
    found = read_tree(top) if top.is_dir() else {}
    if not found:
        raise InstallError("read units", top, errno.ENOENT, "run scripts/install from a whole checkout")
    program = str(prefix / PROGRAM)
    if re.search(r"""["'\\]""", program):
        hint = "systemd starts no program with a quote or a backslash in its path: choose another prefix"
        raise InstallError("use prefix", prefix, errno.EINVAL, hint)
    word = exec_path(program).encode()
    return {f"{PLACE}/{name}": _SHIPPED.sub(lambda match: match[1] + word, text) for name, text in found.items()}


def exec_path(path: str) -> str:
    """A program's path as the first word of ExecStart= (systemd.service(5), "Command lines"): quoted where it has to
    be, and without specifiers; variables are not looked for in it."""
    plain = path.replace("%", "%%")
    return plain if re.fullmatch(r"[A-Za-z0-9/._+%@:,=~-]+", plain) else f'"{plain}"'


def is_unit(name: str) -> bool:
    """Whether a path below the prefix is one."""
    return name.startswith(f"{PLACE}/")


def enabling(prefix: Path) -> list[str]:
    """The commands that make systemd use them."""
    link = [] if str(prefix) in SEARCHED else [f"systemctl link {prefix / PLACE}/nvoci-*"]
    return [*link, "systemctl daemon-reload", f"systemctl enable --now {' '.join(ENABLE)}"]
