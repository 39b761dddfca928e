"""What `nvidia-ctk cdi generate` and `nvoci cdi generate` share: the flags, and the way from them to the output."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from nvoci.cdi import consumers
from nvoci.ctl import hookpath, specout, tomlconfig
from nvoci.ctl.flags import BOOL, LIST, TEXT, Flag
from nvoci.errors import HookError, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvoci.generate.options import GenerateOptions

    Say = Callable[[str], None]

_CSV = "/etc/nvidia-container-runtime/host-files-for-container.d"
_CSV_FILES = tuple(f"{_CSV}/{name}.csv" for name in ("devices", "drivers", "l4t"))
_MODES = "auto, csv, gdrcopy, gds, imex, management, mofed, nvml, nvswitch or wsl"
_PREFIX = "NVIDIA_CTK_CDI_GENERATE_"


class Defaults(NamedTuple):
    """What the two commands do unless told. hooks: the form of hooks. vendor, class_: "" for what is usual in the mode.
    annotate: let the specification tell what it was made for. anywhere: write into directories that others can write
    too, which is then a warning."""

    hooks: str
    vendor: str
    class_: str
    annotate: bool
    anywhere: bool = False


class Voice(NamedTuple):
    """Where lines go that are no error."""

    info: Say
    warning: Say
    debug: Say


def flags(defaults: Defaults) -> list[Flag]:
    """A new list of all of them."""
    return [*_outputs(), *_node(), *_devices(defaults), *_hooks(defaults), *_searches()]


def _outputs() -> list[Flag]:
    return [
        Flag("output", metavar="FILE", env=["NVIDIA_CTK_CDI_OUTPUT_FILE_PATH"],
             help="The file to write; without it, stdout."),
        Flag("format", metavar="json|yaml", default="yaml", env=[f"{_PREFIX}OUTPUT_FORMAT"],
             help="The form of the output, unless its file's name says another."),
        Flag("max-cdi-version", metavar="VERSION",
             help="The newest CDI version that the engine knows; what it cannot say is left out, and told."),
    ]  # fmt: skip


def _node() -> list[Flag]:
    return [
        Flag("mode", "discovery-mode", metavar="MODE", default="auto", env=[f"{_PREFIX}MODE"],
             help=f"What to look for: {_MODES}."),
        Flag("driver-root", metavar="DIR", env=["NVIDIA_CTK_DRIVER_ROOT"],
             otherwise="nvidia-container-cli.root of config.toml, or /", help="Where the driver's files are."),
        Flag("dev-root", metavar="DIR", env=["NVIDIA_CTK_DEV_ROOT"],
             otherwise="the driver root", help="The directory that has `dev`."),
    ]  # fmt: skip


def _devices(defaults: Defaults) -> list[Flag]:
    return [
        Flag("device-name-strategy", kind=LIST, metavar="HOW", default=("index", "uuid"),
             env=[f"{_PREFIX}DEVICE_NAME_STRATEGIES"],
             help="What devices are named by, index, uuid or type-index; each gives every device a name."),
        Flag("device-id", "device-ids", "device", "devices", kind=LIST, metavar="ID", default=("all",),
             env=[f"{_PREFIX}DEVICE_IDS"], help="The devices to include, by index or UUID; all or none."),
        Flag("no-all-device", kind=BOOL, env=[f"{_PREFIX}NO_ALL_DEVICE"], help="No device `all`."),
        Flag("vendor", "cdi-vendor", metavar="NAME", default=defaults.vendor, env=[f"{_PREFIX}VENDOR"],
             help="The vendor of the devices."),
        Flag("class", "cdi-class", metavar="NAME", default=defaults.class_, env=[f"{_PREFIX}CLASS"],
             help="The class of the devices."),
    ]  # fmt: skip


def _hooks(defaults: Defaults) -> list[Flag]:
    return [
        Flag("hooks", metavar="reference|merged", default=defaults.hooks,
             help="One hook for each task, in the reference's arguments; or one of ours for the whole container."),
        Flag("nvidia-cdi-hook-path", "nvidia-ctk-path", metavar="PATH", env=["NVIDIA_CTK_CDI_HOOK_PATH"],
             help="The program that the hooks call: a path, or a name to look for in PATH."),
        Flag("ldconfig-path", metavar="PATH", env=[f"{_PREFIX}LDCONFIG_PATH"],
             help="The host's ldconfig, for the hook that calls it."),
        Flag("disable-hook", "disable-hooks", kind=LIST, metavar="HOOK", env=[f"{_PREFIX}DISABLED_HOOKS"],
             help="A hook to leave out; all for every one."),
        Flag("enable-hook", "enable-hooks", kind=LIST, metavar="HOOK", env=[f"{_PREFIX}ENABLED_HOOKS"],
             help="A hook to keep though it is disabled."),
        Flag("feature-flag", "feature-flags", kind=LIST, metavar="NAME", env=[f"{_PREFIX}FEATURE_FLAGS"],
             help="A feature to turn on."),
    ]  # fmt: skip


def _searches() -> list[Flag]:
    return [
        Flag("config-search-path", kind=LIST, metavar="DIR", env=[f"{_PREFIX}CONFIG_SEARCH_PATHS"],
             help="Where to look for configuration files, instead of the usual directories."),
        Flag("library-search-path", kind=LIST, metavar="DIR", env=[f"{_PREFIX}LIBRARY_SEARCH_PATHS"],
             help="Where to look for libraries, instead of the usual directories."),
        Flag("csv.file", kind=LIST, metavar="FILE", default=_CSV_FILES, env=[f"{_PREFIX}CSV_FILES"],
             help="A file that lists what a Tegra system has."),
        Flag("csv.ignore-pattern", kind=LIST, metavar="PATTERN", env=[f"{_PREFIX}CSV_IGNORE_PATTERNS"],
             help="Links in those files to leave out."),
        Flag("csv.compat-container-root", kind=TEXT, metavar="DIR", env=[f"{_PREFIX}CSV_CONTAINER_COMPAT_ROOT"],
             help="Where a container of a Tegra system has CUDA's compatibility libraries."),
    ]  # fmt: skip


def run(given: dict[str, Any], defaults: Defaults, config: str, voice: Voice, *, is_format_given: bool,
        timeout: float = 0.0) -> None:  # fmt: skip
    """Generate and write. given: the values of `flags`. config: the path that --config gives. timeout: seconds for
    NVML, 0 for the usual. Raises HookError."""
    form = given["format"].lower()
    if form not in specout.FORMATS:
        raise HookError(f"invalid output format: {printable(form)}", "use " + " or ".join(specout.FORMATS))
    options = options_of(given, defaults, config, voice, timeout)
    form = settled_format(form, given["output"], voice, is_format_given=is_format_given)
    if given["output"]:
        _check_place(specout.place(given["output"], form), defaults, voice)  # before the node is looked at
    from nvoci.generate.specs import generate

    generated = generate(options)
    for line in generated.warnings:
        voice.warning(line)
    if options.mode == "auto":
        voice.info(f"Auto-detected mode as '{generated.mode}'")
    outputs = [specout.Output(_path(given["output"], each.suffix, form), each.spec) for each in generated.specs]
    specout.emit(outputs, form)
    for _, spec in outputs:
        voice.info(f"Generated CDI spec with version {spec.cdi_version}")
    if defaults.annotate and consumers.passed_over(outputs[0].spec):
        voice.info(f"Podman 4 reads at most version {consumers.OLD}, and passes over a newer one without a word: "
                   f"--max-cdi-version {consumers.OLD} makes one for it")  # fmt: skip


def _check_place(path: str, defaults: Defaults, voice: Voice) -> None:
    """Raises HookError, or warns, where no specification would be read from it."""
    try:
        specout.check_directory(path)
    except HookError as e:
        if not defaults.anywhere:
            raise
        voice.warning(e.line())


def _path(output: str, infix: str, form: str) -> str:
    if not output:
        return ""
    return specout.place(specout.infixed(output, infix) if infix else output, form)


def options_of(given: dict[str, Any], defaults: Defaults, config: str, voice: Voice, timeout: float) -> GenerateOptions:
    from nvoci.generate import options

    found = options.GenerateOptions(
        mode=given["mode"],
        driver_root=_absolute(given["driver_root"] or tomlconfig.driver_root(tomlconfig.find(config))),
        dev_root=_absolute(given["dev_root"]),
        name_strategies=given["device_name_strategy"],
        device_ids=given["device_id"],
        no_all_device=given["no_all_device"],
        vendor=given["vendor"],
        class_=given["class_"],
        ldconfig_path=given["ldconfig_path"],
        config_search_path=given["config_search_path"],
        library_search_path=given["library_search_path"],
        csv_files=given["csv_file"],
        csv_ignore=given["csv_ignore_pattern"],
        csv_compat_root=given["csv_compat_container_root"],
        disabled_hooks=given["disable_hook"],
        enabled_hooks=given["enable_hook"],
        feature_flags=given["feature_flag"],
        hooks_form=given["hooks"],
        annotate=defaults.annotate,
        max_cdi_version=given["max_cdi_version"],
    )
    found = options.checked(found)
    for what, default in (("vendor", defaults.vendor), ("class_", defaults.class_)):
        if default and not given[what]:
            raise HookError(f"invalid CDI {what.rstrip('_')} name: it is empty", "such as nvidia.com/gpu")
    if options.NONE in found.device_ids and not found.no_all_device:
        voice.warning("Disabling generation of 'all' device")
        found = replace(found, no_all_device=True)
    program = given["nvidia_cdi_hook_path"]
    is_own = found.hooks_form == options.MERGED
    found = replace(found, hook_path=hookpath.own(program) if is_own else hookpath.resolve(program, voice.warning))
    if timeout:
        found = replace(found, timeout=timeout)
    return options.with_environment(found, os.environ)


def _absolute(path: str) -> str:
    return os.path.join(os.getcwd(), path) if path else ""


def settled_format(form: str, output: str, voice: Voice, *, is_format_given: bool) -> str:
    """The file's name decides where it says anything."""
    implied = specout.format_of(output)
    if not implied:
        return form
    voice.debug(f'Inferred output format as "{implied}" from output file name')
    if not is_format_given:
        return implied
    if implied != form:
        voice.warning(f'Requested output format "{form}" does not match format implied by output file name: '
                      f'"{implied}"')  # fmt: skip
    return form
