"""config.toml of the reference tools, as typed settings: every key that they read, whoever uses it.

    {"nvoci-config": 1, "program": "…", "source": [path, dev, ino, size, mtime_ns, ctime_ns], "set": {…}}

TOML costs a hook 10 ms. So the first that reads a file compiles it into such a document in /run/nvoci, and the others
take that for as long as it is root's alone and its `source` is the file as it is now.

Performance contract: with the compiled form in place, 0.2 ms; hot module.
"""

from __future__ import annotations

import posix
from _stat import S_ISREG

from nvoci import __version__, jsonfile, log
from nvoci.discover.record import Record, texts
from nvoci.errors import printable
from nvoci.linux.fd import Fd, read_at_most
from nvoci.prestart import capabilities, configfile
from nvoci.prestart.names import items

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nvoci.prestart.configfile import Place

    Source = list[Any]

RUN = "/run/nvoci"
FORMAT = 1
KEY = "nvoci-config"
LIMIT = 1 << 20
AUTO, LEGACY = "auto", "legacy"
MOUNT, LDCONFIG, DISABLED, HOOK = "mount", "ldconfig", "disabled", "hook"
_DIRECTORY = posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC
_FILE = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_NOCTTY | posix.O_CLOEXEC


class Config(Record):
    """The keys are those of `compile.KEYS`, in their order. unknown: names of keys in the file that nobody knows.

    A default is what holds where the file has no such key. "" of root, ldcache, user and ldconfig: see `host`.
    """

    SCHEMA = {
        "disable_require": (bool, False),
        "swarm_resource": (str, ""),
        "accept_env_when_unprivileged": (bool, True),
        "accept_volume_mounts": (bool, False),
        "supported_capabilities": (str, ",".join(capabilities.EVERY)),
        "root": (str, ""),
        "cli_path": (str, ""),
        "environment": (texts, ()),
        "debug": (str, ""),
        "ldcache": (str, ""),
        "load_kmods": (bool, True),
        "no_pivot": (bool, False),
        "no_cgroups": (bool, False),
        "user": (str, ""),
        "ldconfig": (str, ""),
        "ctk_path": (str, "nvidia-ctk"),
        "runtime_debug": (str, "/dev/null"),
        "runtime_log_level": (str, "info"),
        "runtimes": (texts, ("runc", "crun")),
        "mode": (str, AUTO),
        "csv_mount_spec_path": (str, "/etc/nvidia-container-runtime/host-files-for-container.d"),
        "csv_compat_container_root": (str, ""),
        "cdi_spec_dirs": (texts, ("/etc/cdi", "/var/run/cdi")),
        "cdi_default_kind": (str, "nvidia.com/gpu"),
        "cdi_annotation_prefixes": (texts, ("cdi.k8s.io/",)),
        "jit_cdi_feature_flags": (texts, ()),
        "jit_cdi_disable_hooks": (texts, ()),
        "cuda_compat_mode": (str, LDCONFIG),
        "hook_path": (str, "nvidia-container-runtime-hook"),
        "skip_mode_detection": (bool, False),
        "allow_cuda_compat_libs_from_container": (bool, False),
        "allow_ldconfig_from_container": (bool, False),
        "allow_unknown_oci_spec_fields": (bool, False),
        "disable_cuda_compat_lib_hook": (bool, False),
        "disable_imex_channel_creation": (bool, False),
        "ignore_imex_channel_requests": (bool, False),
        "no_additional_gids_for_device_nodes": (bool, False),
        "unknown": (texts, ()),
    }
    __slots__ = tuple(SCHEMA)
    disable_require: bool
    swarm_resource: str
    accept_env_when_unprivileged: bool
    accept_volume_mounts: bool
    supported_capabilities: str
    root: str
    cli_path: str
    environment: tuple[str, ...]
    debug: str
    ldcache: str
    load_kmods: bool
    no_pivot: bool
    no_cgroups: bool
    user: str
    ldconfig: str
    ctk_path: str
    runtime_debug: str
    runtime_log_level: str
    runtimes: tuple[str, ...]
    mode: str
    csv_mount_spec_path: str
    csv_compat_container_root: str
    cdi_spec_dirs: tuple[str, ...]
    cdi_default_kind: str
    cdi_annotation_prefixes: tuple[str, ...]
    jit_cdi_feature_flags: tuple[str, ...]
    jit_cdi_disable_hooks: tuple[str, ...]
    cuda_compat_mode: str
    hook_path: str
    skip_mode_detection: bool
    allow_cuda_compat_libs_from_container: bool
    allow_ldconfig_from_container: bool
    allow_unknown_oci_spec_fields: bool
    disable_cuda_compat_lib_hook: bool
    disable_imex_channel_creation: bool
    ignore_imex_channel_requests: bool
    no_additional_gids_for_device_nodes: bool
    unknown: tuple[str, ...]

    @property
    def driver_root(self) -> str:
        """`root`, "/" where it is not set."""
        return self.root or "/"

    @property
    def swarm_resources(self) -> tuple[str, ...]:
        """The variables that replace NVIDIA_VISIBLE_DEVICES where a container has them."""
        return tuple(items(self.swarm_resource))

    @property
    def allowed_capabilities(self) -> tuple[str, ...]:
        """What NVIDIA_DRIVER_CAPABILITIES may ask for, sorted."""
        return capabilities.supported(self.supported_capabilities)

    @property
    def compat_mode(self) -> str:
        """What becomes of the image's CUDA compatibility libraries: mount, ldconfig or disabled."""
        if self.cuda_compat_mode in (MOUNT, LDCONFIG):
            return self.cuda_compat_mode
        known = self.cuda_compat_mode in (DISABLED, HOOK)
        return MOUNT if self.allow_cuda_compat_libs_from_container and not known else DISABLED


def load(place: Place, run: str = RUN) -> Config:
    """What the file says, the defaults where it may be absent and is. run: where compiled forms are kept. To be called
    before imports are sealed. Raises HookError naming file, key and what it should be."""
    fd = configfile.open_file(place)
    if fd is None:
        return Config()
    with fd:
        configfile.check_trusted(fd, place.path)
        made = compiled(source(fd, place.path), run)
        if made is not None:
            return made
        from nvoci.prestart import compile

        log.debug("configuration compiled", file=place.path)
        return compile.compile_file(fd, place.path, run)


def source(fd: Fd, path: str) -> Source:
    """What tells one state of a file from another."""
    st = fd.stat()
    return [path, st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns]


def compiled_name(path: str) -> str:
    """The name of the compiled form in its directory: people look there, so it is no hash."""
    return f"config{path.replace('/', ',')[-180:]}.json"


def compiled(wanted: Source, run: str = RUN) -> Config | None:
    """The compiled form, if there is one to be trusted, of just that state of the file."""
    owners = (0, posix.stat("/").st_uid)
    try:
        with Fd(posix.open(run, _DIRECTORY)) as top:
            if not _is_private(top.stat(), owners):
                return None
            with Fd(posix.open(compiled_name(wanted[0]), _FILE, dir_fd=top.fileno())) as fd:
                st = fd.stat()
                if not S_ISREG(st.st_mode) or not _is_private(st, owners):
                    return None
                doc = jsonfile.loads(read_at_most(fd.fileno(), LIMIT))
        return _of(doc, wanted)
    except (OSError, ValueError) as e:
        log.debug("no compiled configuration", reason=printable(e)[:200])
        return None


def _is_private(st: posix.stat_result, owners: tuple[int, ...]) -> bool:
    """Whether only root could have written it."""
    return st.st_uid in owners and not st.st_mode & 0o022


def _of(doc: Any, wanted: Source) -> Config | None:
    if type(doc) is not dict or doc.get(KEY) != FORMAT or doc.get("program") != __version__:
        return None
    return Config.from_json(doc.get("set")) if doc.get("source") == wanted else None


def document(config: Config, of: Source) -> dict[str, Any]:
    """The compiled form."""
    return {KEY: FORMAT, "program": __version__, "source": of, "set": config.to_json(sparse=True)}
