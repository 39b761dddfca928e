"""The table of hook subcommands: one place for both command lines (the hook's own parser and click).

Flags, defaults and hidden ones are those of the reference tools, plus our own, which are marked in their help. A
hook is one module below `nvoci.hook`, or, where it may import more than a hook, in a room of its own, with

    prepare(options, settings) -> object | None     on the host, before the state is read; None: nothing to do
    plan(prepared, container) -> list[Operation]    in the container's mount namespace; changes nothing yet

What `prepare` returns may have a method `steps(state, place)`, called on the host when the state is known: the steps
(name, plan, prepared) that take its place.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LIST, TEXT, FLAG, NUMBER = "list", "text", "flag", "number"


class Option:
    """`--name`. LIST may be repeated and is split at commas, as the reference does; FLAG takes no value."""

    __slots__ = ("default", "help", "hidden", "kind", "metavar", "name")

    def __init__(
        self, name: str, kind: str, help: str, metavar: str = "", default: str = "", hidden: bool = False
    ) -> None:
        self.name = name
        self.kind = kind
        self.help = help
        self.metavar = metavar
        self.default = default
        self.hidden = hidden


class Hook:
    """One subcommand and the module that implements it."""

    __slots__ = ("help", "hidden", "module", "name", "options")

    def __init__(self, name: str, module: str, help: str, options: tuple[Option, ...], hidden: bool = False) -> None:
        self.name = name
        self.module = module
        self.help = help
        self.options = options
        self.hidden = hidden


DRY_RUN = Option("dry-run", FLAG, "print the operations and do nothing")
STRICT = Option("strict", FLAG, "a read-only file system is an error, not a warning")
TIMEOUT = Option("timeout", NUMBER, "give up after this many seconds (hook.json: timeout; else 30)", "SECONDS")
COMMON = (DRY_RUN, STRICT, TIMEOUT)
SPEC = Option("container-spec", TEXT, "read the OCI state from this file; `-` or nothing: from stdin", "PATH")
SPEC_HIDDEN = Option("container-spec", TEXT, SPEC.help, "PATH", hidden=True)

_HOOKS = (
    Hook(
        "create-symlinks",
        "nvoci.hook.create_symlinks",
        "Create symbolic links in the container, as `ln -sf` would",
        (
            Option("link", LIST, "a link to make: the text of the link, two colons, its path", "TARGET::LINK"),
            Option("link-if", LIST, "make the link only if NODE exists in the container", "NODE=TARGET::LINK"),
            SPEC_HIDDEN,
            *COMMON,
        ),
    ),
    Hook(
        "chmod",
        "nvoci.hook.chmod",
        "Set the mode of paths in the container (deprecated)",
        (
            Option("path", LIST, "a path in the container", "PATH"),
            Option("mode", TEXT, "the mode, in octal", "OCTAL"),
            SPEC,
            *COMMON,
        ),
    ),
    Hook(
        "enable-cuda-compat",
        "nvoci.hook.enable_cuda_compat",
        "Let the CUDA forward compatibility libraries of the image be found, where the host driver allows it",
        (
            Option("host-driver-version", TEXT, "the version of the host's driver", "VERSION"),
            Option("host-cuda-version", TEXT, "the CUDA version of the host's driver", "VERSION"),
            Option(
                "cuda-compat-container-root",
                TEXT,
                "where the image has the libraries",
                "PATH",
                default="/usr/local/cuda/compat",
            ),
            SPEC_HIDDEN,
            *COMMON,
        ),
    ),
    Hook(
        "update-ldcache",
        "nvoci.hook.update_ldcache",
        "Update the container's ld.so.cache",
        (
            Option("folder", LIST, "a directory to add to the library search path", "PATH"),
            Option("engine", TEXT, "builtin, or ldconfig: the host's, confined (hook.json: ldcache-engine)", "NAME"),
            Option("ldconfig-path", TEXT, "the host's ldconfig", "PATH", default="/sbin/ldconfig"),
            SPEC,
            *COMMON,
        ),
    ),
    Hook(
        "disable-device-node-modification",
        "nvoci.hook.disable_device_node_modification",
        "Keep the driver in the container from making or changing device nodes",
        (SPEC_HIDDEN, *COMMON),
    ),
    Hook(
        "update-application-profile",
        "nvoci.hook.update_application_profile",
        "Tell EGL which GPUs the container has",
        (SPEC_HIDDEN, *COMMON),
    ),
    Hook(
        "inject",
        "nvoci.inject.main",
        "Give CDI devices to a container that exists already: for engines that know no CDI",
        (
            Option("device", LIST, "a device, by its qualified name", "VENDOR/CLASS=NAME"),
            Option("from-annotations", FLAG, "also the devices that the container's cdi.k8s.io/ annotations ask for"),
            Option("spec-dir", LIST, "where the specifications are; default: /etc/cdi, then /var/run/cdi", "DIR"),
            SPEC,
            *COMMON,
        ),
    ),
    Hook(
        "mount-mig-devices",
        "nvoci.hook.mount_mig_devices",
        "Give a container instances of GPUs (MIG), or the right to manage them",
        (
            Option("gpu-instance", LIST, "a GPU instance: minor number of the GPU, and its id", "MINOR:GI"),
            Option(
                "compute-instance",
                LIST,
                "a compute instance; an application needs its GPU instance as well",
                "MINOR:GI:CI",
            ),
            Option("config", FLAG, "let the container configure MIG; it must be privileged"),
            Option("monitor", FLAG, "let the container watch all MIG instances; it must be privileged"),
            Option("gpu", LIST, "with --config, --monitor: this GPU only, by its minor number; default: all", "MINOR"),
            Option("driver-root", TEXT, "the directory that has the driver's dev/nvidia-caps", "DIR", default="/"),
            Option("no-cgroups", FLAG, "do not allow the devices in the container's cgroup"),
            SPEC,
            *COMMON,
        ),
    ),
    Hook("noop", "nvoci.hook.noop", "Do nothing", (SPEC_HIDDEN, *COMMON), hidden=True),
)

HOOKS = {hook.name: hook for hook in _HOOKS}
RUN = Hook(
    "run",
    "",
    "Several hooks in one process: run [OPTIONS] -- HOOK ... -- HOOK ...; all of them, or none",
    (SPEC, *COMMON),
)


def features() -> dict[str, Any]:
    """What `--features` prints: the subcommands and flags of this program, for those who generate specs."""
    hooks = {h.name: sorted(o.name for o in h.options) for h in HOOKS.values()}
    return {"version": 1, "run": sorted(o.name for o in RUN.options), "hooks": hooks}
