"""The container a hook works on, and how its mount namespace is reached.

Places a hook can be called from:
  outside  createRuntime and prestart: the state names a host pid; a forked worker enters its mount namespace
  inside   createContainer: the hook is already in the container's mount namespace (pid is 1 under runc, which counts
           in the container's pid namespace, and 0 under crun: both say nothing)
  host     no container process and the host's own mount namespace: files can be worked on, nothing is mounted
  caller   the mount namespace that we are in is to be changed, whosever it is, for who calls has asked for that

"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.hook.settings import Settings
    from nvoci.linux.rootfs import Rootfs
    from nvoci.oci.state import State

OUTSIDE = "outside"
INSIDE = "inside"
HOST = "host"
CALLER = "caller"


class Container:
    """What `plan()` gets: the root by handle, where we stand, the state and the settings."""

    __slots__ = ("mount_label", "place", "rootfs", "settings", "state")

    def __init__(self, rootfs: Rootfs, place: str, state: State, settings: Settings, mount_label: str = "") -> None:
        self.rootfs = rootfs
        self.place = place
        self.state = state
        self.settings = settings
        self.mount_label = mount_label
