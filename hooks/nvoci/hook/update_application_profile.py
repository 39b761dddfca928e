"""update-application-profile: a driver application profile that tells EGL which GPUs the container has.

The GPUs are the character devices /dev/nvidiaN of the container; what counts is the minor number, not the name. All
paths are resolved in the container's root, so that an absolute link at /etc/nvidia stays there.
"""

from __future__ import annotations

import posix
from stat import S_ISCHR

from nvoci import log
from nvoci.errors import hook_error
from nvoci.hook.operations import WriteFile
from nvoci.linux.canonical import canonical, link_text
from nvoci.linux.rootfs import split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nvoci.hook.container import Container
    from nvoci.hook.operation import Operation, Transaction
    from nvoci.hook.settings import Settings
    from nvoci.linux.rootfs import Rootfs

DIRECTORY = b"etc/nvidia/nvidia-application-profiles-rc.d"
NAME = b"10-container.conf"
_BITS = 64


def prepare(options: dict[str, Any], settings: Settings) -> object | None:
    """Nothing of the host is needed."""
    return True


def plan(prepared: object, container: Container) -> list[Operation]:
    """One file, or nothing where the container has no GPU. Raises HookError."""
    try:
        mask = _mask(container.rootfs)
    except OSError as e:
        raise hook_error("list", "/dev", e) from None
    if not mask:
        return []
    # /etc/nvidia may be a link, and what it leads to be missing in the container: the file goes where it leads to.
    path = canonical(DIRECTORY, lambda path: link_text(container.rootfs, path)) + b"/" + NAME
    return [WriteProfile(container.rootfs, path, profile(mask), 0o444, dir_mode=0o555)]


class WriteProfile(WriteFile):
    """Its path is where links of the image lead to; whether it may be changed is asked for the path that has them. The
    guard takes a volume that lies on the path it is asked for to be meant."""

    __slots__ = ()

    def execute(self, transaction: Transaction) -> None:
        folder, name = split(self.path)
        above = folder
        while True:
            try:
                directory = self.rootfs.dir(above)
                break
            except FileNotFoundError:
                above = above.rpartition(b"/")[0]
        if above != folder or not self._is_right(directory, name):
            self.rootfs.check(DIRECTORY, directory)
        super().execute(transaction)


def profile(mask: int) -> bytes:
    """The driver's own format: like JSON, with a hexadecimal number."""
    setting = f'["EGLVisibleDGPUDevices",0x{mask:x}]'
    return (
        f'{{"profiles":[{{"name":"_container_","settings":{setting}}}],'
        '"rules":[{"pattern":[],"profile":"_container_"}]}'
    ).encode()


def _mask(rootfs: Rootfs) -> int:
    try:
        names = rootfs.list(b"dev")
        directory = rootfs.dir(b"dev").fileno()
    except FileNotFoundError:
        return 0
    mask = 0
    dropped: list[tuple[int, bytes]] = []
    for name in sorted(names):
        minor = _gpu_minor(directory, name)
        if minor is None:
            continue
        if minor < _BITS:
            mask |= 1 << minor
        else:
            dropped.append((minor, b"/dev/" + name))
    if dropped:
        minor, node = dropped[0]
        more: dict[str, object] = {"count": len(dropped)} if len(dropped) > 1 else {}
        log.warning(f"dropping invalid minor number {minor}", node=node, **more)
    return mask


def _gpu_minor(directory: int, name: bytes) -> int | None:
    if not name.startswith(b"nvidia") or not name[len(b"nvidia") :].isdigit():
        return None
    try:
        st = posix.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return posix.minor(st.st_rdev) if S_ISCHR(st.st_mode) else None
