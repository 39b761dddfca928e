"""Files of the host in JSON: hook.json, the inventory, entries of oci-hooks.d, annotations that ask for CDI devices."""

from __future__ import annotations

import json
from typing import Any

from fuzz.registry import Target, register
from fuzz.words import JSON_TOKENS, dump, one_line, short

from nvoci.cdi import annotations, names
from nvoci.cdi.error import SpecError
from nvoci.ctl.regex import check as check_regex
from nvoci.discover import inventory
from nvoci.discover.fingerprint import Fingerprint
from nvoci.discover.inventory import Inventory
from nvoci.discover.model import DeviceNode, Driver, Found, Gpu, Hook, MigDevice, Mount, Problem, Variable
from nvoci.errors import HookError
from nvoci.hook.settings import ENGINES, LEVELS, NODES, Settings, apply
from nvoci.jsonfile import dumps, load_object, loads
from nvoci.oci import hooksd

# -- hook.json ------------------------------------------------------------------------------------------------------

_SETTINGS = {"log": {"file": "/var/log/x", "syslog": True, "level": "info"}, "ldcache-engine": "ldconfig",
             "device-nodes": "mknod", "strict": True, "timeout": 7.5}  # fmt: skip


def _settings(data: bytes) -> Settings:
    settings = Settings()
    apply(settings, load_object(data, "read settings", "hook.json"))
    return settings


def _check_settings(data: bytes, case: bytes, settings: Settings) -> None:
    """Each is of its kind, and what the document says; what it does not say is as without a file."""
    doc, plain = json.loads(data), Settings()
    log = doc.get("log", {})
    assert type(settings.strict) is type(settings.log_syslog) is bool
    assert 0 < settings.timeout <= 600
    assert settings.ldcache_engine in ENGINES
    assert settings.device_nodes in NODES
    assert settings.log_level in LEVELS
    assert settings.log_file == "" or (settings.log_file.startswith("/") and "\0" not in settings.log_file)
    told = [doc.get("ldcache-engine", plain.ldcache_engine), doc.get("device-nodes", plain.device_nodes)]
    told += [doc.get("strict", plain.strict), doc.get("timeout", plain.timeout), log.get("file", plain.log_file)]
    assert told == [
        settings.ldcache_engine,
        settings.device_nodes,
        settings.strict,
        settings.timeout,
        settings.log_file,
    ]


register(
    Target(
        "hook.json", parse=_settings, errors=(HookError,), allowed=one_line, check=_check_settings, max_size=1 << 11,
        executions=2500, seeds=lambda: [dump(_SETTINGS), b"{}", b'{"log": {}}', b'{"timeout": true}', b'{"logs": 1}'],
        tokens=(*JSON_TOKENS, *[f'"{key}":'.encode() for key in (*_SETTINGS, "file", "syslog", "level")],
                b'"builtin"',
                b'"bind"', b'"debug"', b"600", b"601"),
    )
)  # fmt: skip


# -- the inventory --------------------------------------------------------------------------------------------------

_MIG = MigDevice(
    uuid="MIG-1", parent="GPU-1", parent_index=0, index=0, gpu_instance=1, compute_instance=0, cap_nodes=("/dev/a",)
)
_FOUND = Found(
    driver=Driver(version="550.54.15", cuda_version=(12, 4), library_dirs=("/usr/lib",)),
    gpus=(Gpu(index=0, uuid="GPU-1", minor=0, compute_capability=(8, 0), addressing_mode="ats", mig_devices=(_MIG,)),),
    device_nodes=(DeviceNode(host_path="/dev/nvidia0", container_path="/dev/nvidia0", kind="gpu", major=195, minor=0),),
    mounts=(Mount(host_path="/a", container_path="/b", kind="library", links=(("a", "b"),)),),
    variables=(Variable(name="A", value="b"),),
    hooks=(Hook(name="update-ldcache", args=("--folder", "/x")),),
    problems=(Problem(stage="use device", subject="/dev/x", error="ENOENT"),),
)
_MARK = Fingerprint(
    boot_id="b", module="m", gpus=(("0", "x"),), capabilities=("gpu0",), majors=("195 nvidia",), root="/ 1:2",
    dev_root="/ 1:2",
    ldcache="-", watched=(("/dev/nvidia0", "20000 195:0"),), configuration="", program="1",
)  # fmt: skip


def _inventory(data: bytes) -> Inventory:
    """With what is built only when it is asked for."""
    made = inventory._parse(loads(data))
    assert made.found
    return made


def _check_inventory(data: bytes, case: bytes, made: Inventory) -> None:
    """Stored and read again it is the same, whole or without what is as by default; and nothing is as it was given."""
    again = inventory._parse(loads(dumps(made.to_json()).encode()))
    assert (again.found, again.fingerprint) == (made.found, made.fingerprint)
    assert Found.from_json(loads(dumps(made.found.to_json()).encode())) == made.found
    assert isinstance(hash(made.found), int), "something in it can be changed"
    for node in made.found.device_nodes:
        assert node.host_path.startswith("/")
        assert node.container_path.startswith("/")
        assert node.major >= 0
        assert node.minor >= 0
    assert all(problem.line().isprintable() for problem in made.found.problems)


register(
    Target(
        "inventory", parse=_inventory, errors=(ValueError,), check=_check_inventory, max_size=1 << 13,
        executions=1500, seeds=lambda: [dump(Inventory(_MARK, _FOUND).to_json()), dump(Inventory(_MARK,
            Found(driver=Driver())).to_json()), b"{}"],
        tokens=(*JSON_TOKENS, *[f'"{key}":'.encode() for key in (*Found.SCHEMA, *Gpu.SCHEMA, *DeviceNode.SCHEMA,
                *Mount.SCHEMA)],
                b'"nvoci-inventory":1', b'[["a","b"]]', b"[8,0]"),
    )
)  # fmt: skip


# -- oci-hooks.d ----------------------------------------------------------------------------------------------------

_ENTRY = hooksd.ours(
    "/usr/bin/nvidia-cdi-hook", ["nvidia-cdi-hook", "run"], ["PATH=/bin"],
    hooksd.When(annotations={"^a$": "^(b|c)+$"}, commands=[".*"], always=True, has_bind_mounts=False),
    ["createContainer", "prestart"], 20,
)  # fmt: skip


def _entry(data: bytes) -> hooksd.Entry:
    return hooksd.parse(load_object(data, "read entry", "x.json"), "x.json", check_regex)


def _check_entry(data: bytes, case: bytes, entry: hooksd.Entry) -> None:
    """Written and read again it is the same; it says what the document says; a program is named from / on."""
    again = _entry(hooksd.render(entry))
    assert again.document() == entry.document()
    doc = json.loads(data)
    assert entry.document() == doc
    assert entry.path.startswith("/")
    assert entry.timeout is None or 0 < entry.timeout < 1 << 31
    assert set(entry.stages) <= {*hooksd.STAGES, *hooksd.EXTENSION_STAGES}
    ours = hooksd.ours(entry.path, entry.args, entry.env, entry.when, entry.stages, entry.timeout)
    assert _entry(hooksd.render(ours)).origin() == hooksd.ORIGIN, "ours always has an environment"


register(
    Target(
        "hooks.d", parse=_entry, errors=(HookError,), allowed=one_line, check=_check_entry, max_size=1 << 11,
        executions=1500, seconds=0.05,
        seeds=lambda: [hooksd.render(_ENTRY), dump({"version": "1.0.0", "hook": {"path": "/a"},
            "when": {"always": True}, "stages": ["prestart"]})],
        tokens=(*JSON_TOKENS, b'"path":', b'"args":', b'"env":', b'"timeout":', b'"when":', b'"always":',
                b'"annotations":',
                b'"commands":', b'"stages":', b'"poststop"', b'"A=b"', b'"(?i)a"', b'"[a"', b'"a{2,1}"', b'"(a+)+"',
                b"\\\\Q", b"[[:alpha:]]"),
    )
)  # fmt: skip


# -- annotations ----------------------------------------------------------------------------------------------------


def _asked(data: bytes) -> tuple[dict[str, Any], list[str], list[str]]:
    doc = load_object(data, "read state", "stdin")
    return doc, *annotations.parse(doc)


def _check_asked(data: bytes, case: bytes, answer: tuple[dict[str, Any], list[str], list[str]]) -> None:
    """The keys are of CDI; each name is a qualified one, in the order of the keys; written again it asks for the
    same."""
    doc, keys, asked = answer
    assert keys == sorted(key for key in doc if key.startswith(annotations.PREFIX))
    assert asked == [name for key in keys for name in doc[key].split(",")]
    assert all(names.qualified(*names.parse_qualified(name)) == name for name in asked)
    if asked:
        again = annotations.update({}, "nvidia.gpu", "0", asked)
        assert annotations.parse(again)[1] == asked


def _told(error: Exception) -> bool:
    return short(error) if isinstance(error, SpecError) else one_line(error)


register(
    Target(
        "annotations", parse=_asked, errors=(HookError, SpecError), allowed=_told, check=_check_asked,
        max_size=1 << 11,
        executions=2000, seeds=lambda: [
            dump({"cdi.k8s.io/a_0": "nvidia.com/gpu=0,nvidia.com/gpu=1:2", "cdi.k8s.io/b": "v/c=d", "x": 3}),
            dump({"cdi.k8s.io/a": ""}), b"{}",
        ],
        tokens=(*JSON_TOKENS, b'"cdi.k8s.io/', b"nvidia.com/gpu=0", b",", b"=", b"/", b"all", b"-", b"."),
    )
)  # fmt: skip
