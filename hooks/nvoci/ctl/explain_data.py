"""What `nvoci explain` tells, as one document of JSON values: the decisions of the prestart hook, in its order, made by
its own modules. Nothing is changed, and nothing is kept for later starts.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from nvoci.ctl import explain_node
from nvoci.ctl.explain_notes import collected
from nvoci.ctl.explain_plan import Planned
from nvoci.errors import HookError, hook_error, printable
from nvoci.hook import settings as hook_settings
from nvoci.linux import procfs
from nvoci.oci import spec as oci_spec
from nvoci.oci.state import State, rootfs_path
from nvoci.prestart import ask, compile, configfile, mode, plan, request
from nvoci.prestart import config as configuration
from nvoci.prestart.names import VOID, items
from nvoci.prestart.wanted import of_request

if TYPE_CHECKING:
    from nvoci.ctl.explain_node import Seen
    from nvoci.oci.spec import Spec
    from nvoci.prestart.config import Config
    from nvoci.prestart.configfile import Place
    from nvoci.prestart.plan import Prepared
    from nvoci.prestart.request import Request

    Json = dict[str, Any]

FORMAT = 1
INJECTS, NOTHING, FAILS = "injects", "nothing", "fails"
_STAGE = "prestart"
_NOWHERE = "/dev/null/none"  # where the compiled configuration is not found, and cannot be kept
_ENVIRONMENT = "accept-nvidia-visible-devices-envvar-when-unprivileged"
_MOUNTS = "accept-nvidia-visible-devices-as-volume-mounts"
_CLI, _RUNTIME, _HOOK = "nvidia-container-cli", "nvidia-container-runtime", "nvidia-container-runtime-hook"
COMPAT, SKIP, MODE = f"{_RUNTIME}.modes.legacy.cuda-compat-mode", f"{_HOOK}.skip-mode-detection", f"{_RUNTIME}.mode"
# The keys of config.toml that this hook goes by, and what they decide.
KEYS = {
    _ENVIRONMENT: "whether variables of an unprivileged container are heard",
    _MOUNTS: f"whether mounts below {ask.MOUNTS} ask for devices",
    "swarm-resource": f"variables that replace {ask.VISIBLE_DEVICES}",
    "supported-driver-capabilities": "what NVIDIA_DRIVER_CAPABILITIES may ask for",
    "disable-require": "whether NVIDIA_REQUIRE_* is checked",
    MODE: "whether this hook is to inject at all",
    SKIP: "whether that is checked",
    COMPAT: "what becomes of the image's CUDA compatibility libraries",
    "features.allow-cuda-compat-libs-from-container": "the same, where the mode is not known",
    "features.ignore-imex-channel-requests": "whether IMEX channels may be asked for",
    "features.disable-imex-channel-creation": "whether nodes of IMEX channels are made",
    f"{_CLI}.root": "where the driver is",
    f"{_CLI}.ldcache": "the library cache that tells where the driver is",
    f"{_CLI}.user": "as whom NVML is asked",
    f"{_CLI}.environment": "the directory of the MPS daemon",
    f"{_CLI}.ldconfig": "the host's ldconfig, where that is the engine of the library cache",
    f"{_CLI}.load-kmods": "whether kernel modules are loaded first, where a GPU or node is missing",
    f"{_CLI}.no-cgroups": "whether no device rules are given",
}


def explain(bundle: str, config: str = "") -> Json:
    """The document of docs/explain.md; every text in it is printable. bundle: absolute; config: as the hook's -config.
    Raises HookError where config.json cannot be read."""
    place = configfile.find(os.environb, config)
    bundle = bundle.rstrip("/") or "/"
    spec = oci_spec.of_bundle(bundle)
    document: Json = {"nvoci-explain": FORMAT, "bundle": bundle, "result": FAILS, "reason": "", "error": None}
    document.update(dict.fromkeys([
        "config", "request", "mode", "rootfs", "node", "requirements", "selected", "device_nodes", "device_rules",
        "mounts", "generated", "links", "cuda_compat", "library_cache", "not_found", "library_directories",
    ]))  # fmt: skip
    explainer = _Explainer(document, spec, place)
    with collected() as notes:
        try:
            document["result"] = explainer.explain(bundle)
        except HookError as e:
            document["error"] = {"message": e.message, "hint": e.hint}
        except OSError as e:
            error = hook_error(_STAGE, e.filename or "", e)
            document["error"] = {"message": error.message, "hint": error.hint}
    if explainer.seen is not None and explainer.seen.note:
        notes.append(("warning", explainer.seen.note))
    document["notes"] = [{"level": level, "text": text} for level, text in notes]
    found: Json = _printable(document)
    return found


class _Explainer:
    """Fills in a document, question by question; what is not reached stays None."""

    def __init__(self, document: Json, spec: Spec, place: Place) -> None:
        self.document = document
        self.spec = spec
        self.place = place
        self.seen: Seen | None = None

    def explain(self, bundle: str) -> str:
        """The result. Raises HookError as the hook would."""
        document = self.document
        if not ask.may_ask(self.spec, self.place):
            document["reason"] = _why_nothing(self.spec, None)
            return NOTHING
        current = hook_settings.load()
        config = configuration.load(self.place, _NOWHERE)
        document["config"] = _configuration(self.place, config)
        asked = request.build(self.spec, config)
        if asked is None:
            document["reason"] = _why_nothing(self.spec, config)
            return NOTHING
        document["request"] = _request(asked)
        mode.check(config, asked)
        state = State("", None, bundle, "", {})
        root = rootfs_path(state)
        there = os.path.lexists(root)
        document["rootfs"] = {"path": root, "there": there}
        procfs.handle()
        wanted = of_request(asked, config)

        def prepare(seen: Seen) -> Prepared:
            self.seen = seen
            document["node"] = seen.to_json()
            mode.check_node(config, seen.found)
            document["mode"] = _mode(config)
            document["requirements"] = _requirements(asked, "")
            return plan.prepare(seen.found, wanted, current)

        planned = Planned(explain_node.use(wanted, prepare), root if there else "", state, current)
        try:
            chosen = planned.prepared.chosen
            document["requirements"] = _requirements(asked, "hold")
            document["selected"] = explain_node.selected(chosen.found, wanted.devices)
            document.update(planned.to_json())
            document["cuda_compat"]["because"] = _because(config, COMPAT)
            engine = wanted.engine or current.ldcache_engine
            document["library_cache"] = {"engine": engine, "directories": planned.folders if there else None}
            missing, directories = explain_node.not_found(chosen, wanted)
            document["not_found"], document["library_directories"] = missing, directories
        finally:
            planned.close()
        return INJECTS


# -- parts of the document --------------------------------------------------------------------------------------------


def _configuration(place: Place, config: Config) -> Json:
    rows = []
    for key, decides in KEYS.items():
        field = compile.KEYS[key]
        value = getattr(config, field)
        default = value == config.SCHEMA[field][1]
        shown = list(value) if isinstance(value, tuple) else value
        rows.append({"key": key, "value": shown, "default": default, "decides": decides})
    return {"file": place.path, "named_by": place.named_by, "there": os.path.lexists(place.path), "settings": rows,
            "unknown_keys": list(config.unknown)}  # fmt: skip


def _request(asked: Request) -> Json:
    found = asked.to_json()
    found["requirements"] = [{"variable": name, "expression": text} for name, text in asked.requirements]
    found["reasons"] = [{"what": what, "because": why} for what, why in asked.reasons]
    return found


def _mode(config: Config) -> Json:
    if config.skip_mode_detection:
        return {"mode": configuration.LEGACY, "because": f"{SKIP}: nothing else is considered"}
    detected = config.mode == configuration.AUTO
    return {"mode": configuration.LEGACY, "because": "detected" if detected else _because(config, MODE)}


def _because(config: Config, key: str) -> str:
    """`KEY = value`, and whether that is the default."""
    field = compile.KEYS[key]
    value = getattr(config, field)
    return f"{key} = {as_toml(value)}" + (" (default)" if value == config.SCHEMA[field][1] else "")


def as_toml(value: Any) -> str:
    """A setting, about as the file has it."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _requirements(asked: Request, result: str) -> Json:
    """result: of the check, "" where it is not known yet."""
    if not asked.requirements:
        off = [why for what, why in asked.reasons if what.startswith("requirements:")]
        return {"result": "not checked" if off else "none", "because": off[0] if off else ""}
    return {"result": result, "because": ", ".join(name for name, _ in asked.requirements)}


def _why_nothing(spec: Spec, config: Config | None) -> str:
    """In words, why a container gets no GPU. config: None where it does not matter."""
    env = spec.environment()
    names = [name for name in config.swarm_resources if name in env] if config else []
    names = names or [name for name in (ask.VISIBLE_DEVICES,) if name in env]
    words = [item for name in names for item in items(env[name])]
    if config and not config.accept_env_when_unprivileged and (VOID not in words if words else ask.is_legacy(env)):
        return f"variables of an unprivileged container are not heard: {_because(config, _ENVIRONMENT)}"
    if not names:
        found = f"{ask.VISIBLE_DEVICES} is not set"
    else:
        found = f"{' and '.join(names)} " + (f"has `{VOID}`" if VOID in words else "is empty")
    if config and not config.accept_volume_mounts and any(ask.MOUNTS in path for _, path in spec.mounts()):
        found += f", and mounts below {ask.MOUNTS} are not heard: {_because(config, _MOUNTS)}"
    return found


def _printable(value: Any) -> Any:
    """The same with every text made printable: most of them come from outside."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _printable(each) for key, each in value.items()}
    return [_printable(each) for each in value] if isinstance(value, (list, tuple)) else value
