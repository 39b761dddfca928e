"""Who may hand the kernel a path that no handle holds, and why: the exceptions from "one handle, one resolution".

A path of a container is resolved in `nvoci.linux.lookup` alone,
below the handle that `nvoci.linux.rootfs` opened. What
else looks a name up by a string, or below a handle with its links followed,
stands here with its reason: a name of the
host, which no container chose, or one of the kernel's own file systems. `module:function` -> (calls, reason).
"""

from __future__ import annotations

# Rooms that a hook process is made of, or that look into a root: each exception is listed.
ROOMS = ("errors", "log", "jsonfile", "linux", "oci", "elf", "ldcache", "hook", "prestart", "inject", "discover")
# Of the other rooms, those modules that look into a root.
ALSO = ("ctl.ldroot", "ctl.ldso", "ctl.ldmusl", "ctl.ldexplain", "ctl.ldcache", "ctl.lddiff", "ctl.ldtext", "ctl.why",
        "ctl.explain_plan")  # fmt: skip
# The rest reads and writes files of the host for its administrator, and gets no handle of a root at all.
HOST_ONLY = ("cdi", "generate", "ctl", "")
# The one room that makes a handle of a container's root of a string, and resolves names below it.
RESOLVES = ("linux.lookup", "linux.rootfs")

_ROOT_UID = "who the host's root is in this user namespace: `/` alone is looked at"
_OWN_PROC = "a constant name, or a number, below our own procfs, which was verified when it was opened"
_NAMED_BY_ADMIN = "a root that the administrator named; all that is below it is looked up by the handle"
_DEV_NULL = "of the host, before the container is entered"
_OWN_ROOT = "the root that this process is in, as a handle; nothing below it is named"
_CWD = "the working directory of this process, which is the host's or `/`, to come back to it"
_AT_PROCFS = "the path is `self/fd/N` with our procfs as working directory: mount(2) and umount(2) take no handle"
_HOST_FILE = "a file of the host at a fixed path, or one that its administrator named"
_MOUNT_TABLE = "a place the kernel's mount table names; what it opens is believed only if its mount id is the line's"
_CELL = "in a mount namespace that was made for one program: a name of the host, or of the tmpfs that was put there"
_SPEC = "a path of the host, as a CDI specification of its administrator has it"
_SYSFS = "a constant name, or one that the kernel lists, below a handle of procfs or sysfs"

EXCEPTIONS: dict[str, tuple[str, str]] = {
    # -- files of the host, by name -------------------------------------------------------------------------------
    "jsonfile:open_regular": ("posix.open", _HOST_FILE),
    "jsonfile:read_file": ("open_regular", _HOST_FILE),
    "jsonfile:check_trusted": ("posix.stat", _ROOT_UID),
    "jsonfile:write_atomic": ("posix.open posix.rename fsync_directory", _HOST_FILE),
    "jsonfile:_unlink_quietly": ("posix.unlink", _HOST_FILE),
    "linux.fd:fsync_directory": ("posix.open", _HOST_FILE),
    "linux.logfile:open_log": (
        "posix.open",
        "the log of hook.json or config.toml: a standard stream, or found by a walk from `/` that trusts no stranger",
    ),
    "oci.config:load": (
        "posix.stat read_file",
        "config.json of the bundle, which the runtime wrote; owner and mode are checked",
    ),
    "oci.state:read": (
        "read_file",
        "the state in a file, for tests and people: absolute, since a hook's directory may be the container's",
    ),
    "oci.hooksd:read": ("read_file", _HOST_FILE),
    "oci.hooksd:write": ("write_atomic", _HOST_FILE),
    "oci.hooksd:check_free": ("posix.lstat", _HOST_FILE),
    "oci.hooksd:listing": ("posix.listdir", _HOST_FILE),
    "oci.hooksd:remove": ("posix.unlink", _HOST_FILE),
    "hook.settings:load": ("posix.stat open_regular", "hook.json, before anything of a container is looked at"),
    "hook.ldconfig:load_program": ("open_regular", "the host's ldconfig, before the container is entered"),
    "hook.ldconfig:_exists": ("posix.stat", "the host's ldconfig, before the container is entered"),
    "hook.chmod:prepare": ("posix.stat", "the device number of the host's /dev, before the container is entered"),
    "hook.process:start": ("posix.chdir", _OWN_ROOT),
    "hook.process:_check_own_files": ("posix.stat posix.chdir", "the program's own modules, at the start, and `/`"),
    "hook.process:_standard_fds": ("posix.open", _DEV_NULL),
    "hook.process:_close_foreign": ("posix.open", "the descriptors of this process, at its start, before Linux 5.9"),
    "hook.work:_mount_label": ("posix.stat", "whether the host has SELinux, before the container is entered"),
    "hook.work:_is_as_configured": (
        "posix.stat",
        "the user namespace that the runtime's config.json names, on the host",
    ),
    "hook.worker:detach": ("posix.open", "in the parent, which stays in the host's mount namespace"),
    "hook.migcaps:Host.__init__": ("posix.open", _NAMED_BY_ADMIN),
    "prestart.cli:_check_root": ("posix.stat", _NAMED_BY_ADMIN),
    "prestart.clinode:resolved": ("posix.open", _NAMED_BY_ADMIN),
    "prestart.clitext:_date": ("posix.stat", "this file's own date, for --version"),
    "prestart.cliuser:_find": ("posix.open", "passwd and group of the host"),
    "prestart.compile:_store": ("jsonfile.write_atomic", _HOST_FILE),
    "prestart.compile:_make_directory": ("posix.mkdir posix.stat", _HOST_FILE),
    "prestart.config:compiled": ("posix.stat posix.open", "/run/nvoci, whose owner is checked on the handle"),
    "prestart.configfile:open_file": ("posix.stat open_regular", _HOST_FILE),
    "prestart.configfile:check_trusted": ("posix.stat", _ROOT_UID),
    "prestart.host:_exists": ("posix.stat", _HOST_FILE),
    "prestart.hostfiles:Host.__enter__": ("posix.open", _NAMED_BY_ADMIN),
    "prestart.kmods:Place.open": ("posix.open", _NAMED_BY_ADMIN),
    "prestart.ownlook:_cached": ("read_file", "the library cache of the host's own root"),
    "prestart.modprobe:_become": (
        "posix.open posix.stat posix.chroot posix.chdir",
        "in the child that becomes modprobe: the root is the driver's, held by a handle",
    ),
    "inject.main:use_packages": ("posix.stat", "the packages that were installed with us; they must be root's alone"),
    "inject.edits:_check_source": ("posix.stat", _SPEC),
    "inject.nodes:check": ("posix.lstat", _SPEC),
    "inject.nodes:prepare": ("posix.open", _OWN_ROOT),
    "inject.nodes:_differing": ("posix.lstat", _SPEC),
    "inject.sources:open_source": (
        "posix.open",
        "`/` of the host, from where a walk begins that trusts no directory of a stranger",
    ),
    "inject.program:check": ("posix.stat posix.open", _SPEC),
    "inject.program:RunProgram._child": (
        "posix.chdir posix.execve",
        "a hook that a specification names, run in the host's mount namespace as a runtime would",
    ),
    "discover.inventory:load": ("posix.open", "/run/nvoci, whose owner is checked on the handle"),
    "discover.inventory:_owners": ("posix.stat", _ROOT_UID),
    "discover.inventory:store": ("jsonfile.write_atomic", _HOST_FILE),
    "discover.inventory:forget": ("posix.unlink", _HOST_FILE),
    "discover.inventory:_make_directory": ("posix.mkdir posix.stat", _HOST_FILE),
    "discover.inventory:_Lock.__enter__": ("posix.open", _HOST_FILE),
    "discover.inventory:open_source": ("posix.open", _NAMED_BY_ADMIN),
    "discover.fingerprint:_open_directory": ("posix.open", _NAMED_BY_ADMIN),
    "discover.fingerprint:_stat": (
        "posix.stat",
        "a path of the host that is watched: whether it is there; nothing is opened",
    ),
    "discover.node:Root.open": ("posix.open", _NAMED_BY_ADMIN),
    "discover.node:Root.source": (
        "posix.stat",
        "whether the host's name leads to the very file that was found by handle",
    ),
    "discover.nvml:_open": ("posix.open", _NAMED_BY_ADMIN),
    "discover.nvml:node_groups": ("posix.listdir posix.stat", "/dev of the host, to know the groups of its nodes"),
    "ctl.ldroot:opened": ("os.open", _NAMED_BY_ADMIN),
    "ctl.ldroot:cache_file": ("os.open", _NAMED_BY_ADMIN),
    # -- the process that loads NVML ------------------------------------------------------------------------------
    "discover._nvml_child:main": ("posix.chdir", _OWN_ROOT),
    "discover._nvml_child:_ids_are_initial": ("posix.open", "its own uid_map, in the host's mount namespace"),
    "discover._nvml_child:_Nvml.load": (
        "ctypes.CDLL",
        "the library that its parent opened and checked; then, whether that is loaded",
    ),
    "discover._nvml_child:_same_file": (
        "posix.stat",
        "whether the host's name leads to the file that its parent opened",
    ),
    "discover._nvml_process:python_path": ("posix.stat", "the packages that were installed with us"),
    "discover._nvml_process:Process.__init__": ("posix.open", _DEV_NULL),
    "discover._nvml_process:_be_init": ("posix.chdir", _OWN_ROOT),
    "discover._nvml_process:_spawn": ("posix.posix_spawn", "the interpreter of the hooks, with our own module"),
    # -- our own procfs, and what it names ------------------------------------------------------------------------
    "linux.mountinfo:_resolved": ("posix.open", "what `Rootfs.open` opens later: its canonical name is asked for"),
    "linux.procfs:_open": ("posix.open", "/proc itself, which must be a procfs and its root"),
    "linux.procfs:read": ("posix.open", _OWN_PROC),
    "linux.procfs:ns_id": ("posix.stat", _OWN_PROC),
    "linux.confine:_fork_into_pid_namespace": ("posix.open", _OWN_PROC),
    "hook.enter:runtime": ("posix.open", _OWN_PROC),
    "hook.enter:_open_process": ("posix.open", _OWN_PROC),
    "hook.enter:_open_mnt": ("posix.open", _OWN_PROC),
    "hook.migcaps:_reason": ("posix.stat", _OWN_PROC),
    "inject.program:host_namespace": ("posix.open", _OWN_PROC),
    "discover._nvml_process:_Init.__enter__": ("posix.open", _OWN_PROC),
    "discover.fingerprint:_Proc.read": ("posix.open", _SYSFS),
    "discover.fingerprint:_Proc.listing": ("posix.open", _SYSFS),
    "prestart.kmods:_why_not": ("posix.stat", "`dxg` in the driver's own /dev: whether there is one"),
    "prestart.kmods:_count_gpus": ("posix.open", _SYSFS),
    "prestart.kmods:_read": ("posix.open", _SYSFS),
    "prestart.modprobe:program": ("posix.open", _SYSFS),
    "prestart.overlay:driver_tree": ("posix.open", _OWN_PROC),
    "prestart.makenodes:_adjust": ("posix.chown posix.chmod", "`self/fd/N` of the node that was made and checked"),
    # -- mounts and namespaces ------------------------------------------------------------------------------------
    "linux.mount:Mounted.detach": ("umount2", _AT_PROCFS),
    "linux.mount:at_procfs": ("posix.open", _CWD),
    "linux.mount:take_away": ("posix.open", _MOUNT_TABLE),
    "linux.mount:_same_here": ("posix.open", "what the kernel calls a handle of the host's; it must be the same inode"),
    "linux.cgroup:_open_below": ("posix.open", _MOUNT_TABLE),
    "linux.cgroup:_exclusive_parent": ("posix.open", "a file of the cgroup file system, which has no links"),
    "linux.generated:_cloned_elsewhere": ("posix.open", _CWD),
    "linux.cell:_attach": ("posix.open", _CELL),
    "linux.cell:_bind": ("posix.open", _CELL),
    "linux.cell:_pivot": ("pivot_root posix.chroot umount2 posix.chdir", _CELL),
    "linux.cell:_revealing": ("posix.open", _CELL),
    "linux.cell:_hide_revealing": ("umount2", _CELL),
    "linux.cell:_is_sealed": ("posix.open", _CELL),
    "linux.cell:_make_place": ("posix.open posix.chdir", _CELL),
    "linux.confine:_temporary_copy": (
        "posix.open",
        "an unnamed file on a file system of the host, where memfd_create(2) is missing",
    ),
    "linux.libc:": ("_ctypes.dlopen", "NULL: the interpreter itself"),
    "hook.enter:Place.enter": ("posix.stat posix.chdir", "`/` before and after setns(2): whether the root is another"),
    "inject.mounts:Bind._complete": ("mount_by_path", _AT_PROCFS),
    "inject.mounts:Tmpfs._mount_by_path": ("mount_by_path", _AT_PROCFS),
    "prestart.overlay:Generated._mount_in_place": ("mount_by_path", _AT_PROCFS),
    # -- the container's root -------------------------------------------------------------------------------------
    "linux.rootfs:Rootfs.open": (
        "posix.open posix.stat",
        "the one string: the root's, from the state; and whether it is the host's",
    ),
}
