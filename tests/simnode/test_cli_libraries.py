"""What `nvidia-container-cli list` tells of a file, where the file itself decides."""

from __future__ import annotations

from pathlib import Path

import pytest
from lib import elfmaker
from simnode.clicalls import LIB, NO_NOTE, OTHER_NOTE, V, left_out, run
from simnode.nodes import fresh, needs_x86

pytestmark = needs_x86


def abi_note(*version: int) -> elfmaker.Note:
    """GNU/Linux, and the kernel's version that is needed at least."""
    return ".note.ABI-tag", "GNU", 1, b"".join(number.to_bytes(4, "little") for number in (0, *version))


# notes -> what is said; nothing where the library is taken
TLS: dict[str, tuple[list[elfmaker.Note], str]] = {
    "none": ([], NO_NOTE),
    "its own": ([abi_note(2, 3, 99)], ""),
    "of the other kind": ([abi_note(2, 2, 5)], OTHER_NOTE),
    "in another section": ([(".note.x", "GNU", 1, abi_note(2, 3, 99)[3])], NO_NOTE),
}


def test_libnvidia_tls_by_its_abi_note() -> None:
    """With another note than its own it is for another loader; without one nobody knows, which is no reason to fail."""
    node = fresh("no-drm")
    path = f"{LIB}/libnvidia-tls.so.{V}"
    for name, (notes, told) in TLS.items():
        elfmaker.make_so(Path(f"{node.root}{path}"), f"libnvidia-tls.so.{V}", ["libc.so.6"], notes=notes)
        result = run(node, "list", "-l")
        assert (result.rc, result.stderr) == (0, left_out(told) if told else ""), name
        assert (path in result.stdout.splitlines()) is not bool(told), name
    Path(f"{node.root}{path}").write_bytes(b"no ELF file")
    assert "libnvidia-tls" not in run(node, "list", "-l").stdout


@pytest.mark.parametrize("root", ["/", "a directory"])
def test_a_program_is_told_by_its_own_name(root: str) -> None:
    """Debian's alternatives lead to it by links."""
    node = fresh("no-drm")
    top = Path(node.root)
    own, link = top / "usr/lib/nvidia/current/nvidia-smi", top / "usr/bin/nvidia-smi"
    own.parent.mkdir(parents=True)
    link.rename(own)
    link.symlink_to("/etc/alternatives/nvidia--nvidia-smi")
    (top / "etc/alternatives").mkdir(exist_ok=True)
    (top / "etc/alternatives/nvidia--nvidia-smi").symlink_to("/usr/lib/nvidia/current/nvidia-smi")
    result = run(node, "list", "-b") if root == "/" else run(node, f"--root={top}", "list", "-b", installed=False)
    lines = result.stdout.splitlines()
    assert (result.rc, result.stderr) == (0, "")
    assert lines[:2] == ["/usr/lib/nvidia/current/nvidia-smi", "/usr/bin/nvidia-debugdump"]
