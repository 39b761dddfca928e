"""Images as people start them with GPUs: by what they have of a loader, a shell and a distribution's marks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.gpunode import LIBDIR, make_image
from lib import rootfs, session

TOOLS = "/tools"  # of a container that has no shell of its own
MUSL = f"etc/ld-musl-{rootfs.MACHINE}.path"


@dataclass(frozen=True)
class Kind:
    """libs, libs32: where the container's loader looks; merged: whether /lib is a link to /usr/lib; dynamic: whether it
    has a glibc and a program to try it with; shell: "" where the test has to bring one."""

    libs: str = LIBDIR
    libs32: str = "/usr/lib/i386-linux-gnu"
    merged: bool = True
    dynamic: bool = True
    shell: str = "/bin/sh"

    def more(self) -> dict[str, Any]:
        """For PrestartNode.start()."""
        if self.shell:
            return {"shell": self.shell}
        source = rootfs.busybox_rootfs(session.new_dir("tools")) / "bin"
        mount = {"destination": TOOLS, "source": str(source), "type": "bind", "options": ["rbind", "ro"]}
        return {"shell": f"{TOOLS}/sh", "mounts": [mount]}

    def env(self) -> dict[str, str]:
        """Of its process."""
        return {} if self.shell else {"PATH": TOOLS}


KINDS: Mapping[str, Kind] = {
    "debian": Kind(),
    "rhel": Kind("/usr/lib64", "/usr/lib"),
    "distroless": Kind(shell=""),
    "alpine": Kind("/usr/lib64", "/usr/lib32", merged=False, dynamic=False),
}


def make(kind: str) -> Path:
    """A root of this kind."""
    if kind == "alpine":
        root = rootfs.busybox_rootfs(session.new_dir("image"))
        rootfs.tree(root, f"file etc/alpine-release 3.20.0\\n\nfile lib/ld-musl-{rootfs.MACHINE}.so.1 no program\\n")
        return root
    root = make_image(session.new_dir("image"))
    if kind == "rhel":
        (root / "etc/debian_version").unlink()
        (root / "etc/os-release").write_text('ID="rhel"\nVERSION_ID="9.4"\n')
    if kind == "distroless":
        for folder in ("usr/bin", "usr/sbin"):
            for path in (root / folder).iterdir():
                if not path.name.startswith("probe-"):
                    path.unlink()
        (root / "etc/ld.so.cache").unlink()
    return root
