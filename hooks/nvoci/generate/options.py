"""What a specification is to be made of, and how: the settings of `generate`, and what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nvoci.cdi import names, version
from nvoci.cdi.error import SpecError
from nvoci.discover.node import DATA_DIRS, MPS_DIRECTORY, PATH
from nvoci.discover.node import Options as Search
from nvoci.discover.nvml import SECONDS
from nvoci.errors import HookError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

AUTO, CSV, NVML, WSL = "auto", "csv", "nvml", "wsl"
MANAGEMENT, IMEX = "management", "imex"
GATED = ("gdrcopy", "gds", "mofed", "nvswitch")
"""Modes whose devices are one part of the machine, asked for in addition to a GPU."""
MODES = (AUTO, CSV, "gdrcopy", "gds", IMEX, MANAGEMENT, "mofed", NVML, "nvswitch", WSL)
WITHOUT_NVML = (IMEX, *GATED)
CHOOSABLE = (CSV, NVML, IMEX)
"""Modes in which devices can be asked for by what they are called."""
INDEX, TYPE_INDEX, UUID = "index", "type-index", "uuid"
STRATEGIES = (INDEX, TYPE_INDEX, UUID)
REFERENCE, MERGED = "reference", "merged"
FORMS = (REFERENCE, MERGED)
ALL, NONE = "all", "none"
HOOK_PATH = "/usr/bin/nvidia-cdi-hook"

EXPLICIT_LIBRARIES = "enable-explicit-driver-libraries"
NO_IPC = "disable-ipc-discoverer"
NO_GIDS = "no-additional-gids-for-device-nodes"
COHERENT = "enable-coherent-annotations"
SINGLE_CSV_DEVICE = "disable-multiple-csv-devices"
FEATURES = (EXPLICIT_LIBRARIES, NO_IPC, NO_GIDS, COHERENT, SINGLE_CSV_DEVICE, "disable-nvsandboxutils",
            "disable-nvsandbox-utils")  # fmt: skip
"""The last two have no effect: what they turn off is not used here. Any other name has none either."""

_VENDORS = {MANAGEMENT: "management.nvidia.com"}
_CLASSES = {IMEX: "imex-channel", **{mode: mode for mode in GATED}}


@dataclass(frozen=True)
class GenerateOptions:
    """mode: one of MODES, in any case. driver_root, dev_root: "" for /, and for the driver root. name_strategies: each
    gives every device another name. device_ids: indices, `GPU:MIG` indices, UUIDs, channels, ALL or NONE. vendor,
    class_: "" for what is usual in the mode. hook_path: absolute, of nvidia-cdi-hook or nvidia-ctk. ldconfig_path: ""
    for the hook's own default. config_search_path, library_search_path: directories that are searched instead of the
    usual ones. csv_files, csv_ignore, csv_compat_root: of a Tegra system. disabled_hooks: ALL too. feature_flags: of
    FEATURES.

    hooks_form: REFERENCE, one hook for each task, in the arguments of the reference tools; MERGED, one hook for the
    whole container, of our own program. annotate: let a merged specification tell what it was made for (see
    `nvoci.generate.freshness`). max_cdi_version: the newest that the consumer knows, "" for any. timeout: seconds that
    NVML may take. path, data_dirs: $PATH and $XDG_DATA_DIRS; mps_directory: $CUDA_MPS_PIPE_DIRECTORY.
    """

    mode: str = AUTO
    driver_root: str = ""
    dev_root: str = ""
    name_strategies: tuple[str, ...] = (INDEX, UUID)
    device_ids: tuple[str, ...] = (ALL,)
    no_all_device: bool = False
    vendor: str = ""
    class_: str = ""
    hook_path: str = HOOK_PATH
    ldconfig_path: str = ""
    config_search_path: tuple[str, ...] = ()
    library_search_path: tuple[str, ...] = ()
    csv_files: tuple[str, ...] = ()
    csv_ignore: tuple[str, ...] = ()
    csv_compat_root: str = ""
    disabled_hooks: tuple[str, ...] = ()
    enabled_hooks: tuple[str, ...] = ()
    feature_flags: tuple[str, ...] = ()
    hooks_form: str = REFERENCE
    annotate: bool = False
    max_cdi_version: str = ""
    timeout: float = SECONDS
    path: tuple[str, ...] = PATH
    data_dirs: tuple[str, ...] = DATA_DIRS
    mps_directory: str = MPS_DIRECTORY

    def has(self, feature: str) -> bool:
        """Whether a feature is on."""
        return feature in self.feature_flags

    def search(self) -> Search:
        """What discovery is told."""
        return Search(
            self.mode if self.mode in {AUTO, CSV, WSL} else NVML,
            path=self.path,
            data_dirs=self.data_dirs,
            library_search_path=self.library_search_path,
            config_search_path=self.config_search_path,
            explicit_libraries=self.has(EXPLICIT_LIBRARIES),
            mps_directory=self.mps_directory,
            csv_files=self.csv_files,
            csv_ignore=self.csv_ignore,
            compat_root=self.csv_compat_root,
            single_device=self.has(SINGLE_CSV_DEVICE),
        )

    def kind(self, mode: str) -> str:
        """VENDOR/CLASS in a mode, which `auto` is none of."""
        vendor = self.vendor or _VENDORS.get(mode, "nvidia.com")
        return f"{vendor}/{self.class_ or _CLASSES.get(mode, 'gpu')}"


def with_environment(options: GenerateOptions, environ: Mapping[str, str]) -> GenerateOptions:
    """With the search paths of an environment, as the reference tools take them: $PATH, then the usual directories;
    $XDG_DATA_DIRS instead of the usual ones."""
    path = [each for each in environ.get("PATH", "").split(":") if each.startswith("/")]
    data = [each for each in environ.get("XDG_DATA_DIRS", "").split(":") if each.startswith("/")]
    return replace(options, path=tuple(path) or PATH, data_dirs=tuple(data) or DATA_DIRS)


def checked(options: GenerateOptions) -> GenerateOptions:
    """With the mode in lower case. Raises HookError for a setting that there is not, with the words of the reference
    tools, in their order."""
    options = replace(options, mode=options.mode.lower())
    if options.mode not in MODES:
        raise _unknown("invalid discovery mode", options.mode, MODES)
    for each in options.name_strategies:
        if each not in STRATEGIES:
            raise _unknown("invalid device name strategy", each, STRATEGIES)
    if not options.name_strategies:
        raise HookError("generate CDI spec: no device name strategy", "one of " + ", ".join(STRATEGIES))
    if options.hooks_form not in FORMS:
        raise _unknown("invalid form of hooks", options.hooks_form, FORMS)
    if not options.hook_path.startswith("/"):
        raise HookError(f"generate CDI spec: hook path `{printable(options.hook_path)}` is not absolute",
                        "an engine would not find the program")  # fmt: skip
    _check_name("vendor", names.check_vendor, options.vendor)
    _check_name("class", names.check_class, options.class_)
    if ALL in options.enabled_hooks:
        raise HookError("enabling all hooks is not supported", "name those to enable")
    if options.max_cdi_version:
        version.parse(options.max_cdi_version, "max CDI version")
    return options


def _unknown(what: str, unsafe: str, known: tuple[str, ...]) -> HookError:
    return HookError(f"{what}: {printable(unsafe)}", "one of " + ", ".join(known))


def _check_name(what: str, check: object, name: str) -> None:
    """ "" is the default."""
    assert callable(check)
    try:
        if name:
            check(name)
    except SpecError as e:
        raise HookError(f"invalid CDI {what} name: {e.why}", e.hint) from None
