"""What a caller in Python puts into a model is a problem with a place, whatever it is; never an AttributeError."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from unit.cdi import strategies
from unit.cdi.spectools import ENV, one

from nvoci.cdi import apply, document, hostnodes, shape, store, text, validate, version
from nvoci.cdi.error import SpecError
from nvoci.cdi.model import ContainerEdits, Device, DeviceNode, Hook, IntelRdt, Mount, NetDevice, Spec

FAST = settings(max_examples=60, deadline=None)
X: Any = 1  # what is no string
D = "devices[0]"
E = f"{D}.containerEdits"
WRONG: dict[str, tuple[Spec, dict[str, str]]] = {
    "env": (one(ContainerEdits(env=(X, "A=1", b"B=1"))),  # type: ignore[arg-type]
            {f"{E}.env[0]": "int, not a string", f"{E}.env[2]": "bytes, not a string"}),
    "env of every device": (one(container_edits=ContainerEdits(env=(X,))),
                            {"containerEdits.env[0]": "int, not a string"}),
    "device name": (one(devices=(Device(X, ENV),)), {f"{D}.name": "int, not a string"}),
    "no device": (one(devices=("gpu0",)), {D: "str, not Device"}),
    "no edits": (one(devices=(Device("a", None),)), {E: "NoneType, not ContainerEdits"}),  # type: ignore[arg-type]
    "version and kind": (one(cdi_version=0.5, kind=None),
                         {"cdiVersion": "float, not a string", "kind": "NoneType, not a string"}),
    "node": (one(ContainerEdits(device_nodes=(DeviceNode(X, major="1", file_mode=True, uid="0"),))),  # type: ignore[arg-type]
             {f"{E}.deviceNodes[0].path": "int, not a string", f"{E}.deviceNodes[0].major": "str, not an integer",
              f"{E}.deviceNodes[0].fileMode": "bool, not an integer",
              f"{E}.deviceNodes[0].uid": "str, not an integer"}),
    "no node": (one(ContainerEdits(device_nodes=("/dev/a",))), {f"{E}.deviceNodes[0]": "str, not DeviceNode"}),  # type: ignore[arg-type]
    "interface": (one(ContainerEdits(net_devices=(NetDevice(X, "a"),))),
                  {f"{E}.netDevices[0].hostInterfaceName": "int, not a string"}),
    "hook": (one(ContainerEdits(hooks=(Hook("prestart", "/a", ("a", X), (X,), timeout=1.5),))),  # type: ignore[arg-type]
             {f"{E}.hooks[0].timeout": "float, not an integer", f"{E}.hooks[0].args[1]": "int, not a string",
              f"{E}.hooks[0].env[0]": "int, not a string"}),
    "mount": (one(ContainerEdits(mounts=(Mount("/a", "/b", (X,), X),))),
              {f"{E}.mounts[0].type": "int, not a string", f"{E}.mounts[0].options[0]": "int, not a string"}),
    "intelRdt": (one(ContainerEdits(intel_rdt=IntelRdt(X, schemata=(X,), enable_monitoring=X))),
                 {f"{E}.intelRdt.closID": "int, not a string", f"{E}.intelRdt.enableMonitoring": "int, not a boolean",
                  f"{E}.intelRdt.schemata[0]": "int, not a string"}),
    "no intelRdt": (one(ContainerEdits(intel_rdt=X)), {f"{E}.intelRdt": "int, not IntelRdt"}),
    "group": (one(ContainerEdits(additional_gids=(1, True, "2"))),  # type: ignore[arg-type]
              {f"{E}.additionalGids[1]": "bool, not an integer", f"{E}.additionalGids[2]": "str, not an integer"}),
    "annotations": (one(annotations={"a": None, 1: "b"}),
                    {"annotations[a]": "NoneType, not a string", "annotations[1]": "int, not a string"}),
    "no annotations": (one(devices=(Device("a", ENV, X),)), {f"{D}.annotations": "int, not an object"}),
    "no specification": (X, {"": "int, not Spec"}),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_type_is_a_problem_with_its_place(what: str) -> None:
    spec, places = WRONG[what]
    assert {problem.where: problem.why for problem in validate.problems(spec)} == places


USES: dict[str, Callable[[Spec, str], object]] = {
    "validate": lambda spec, directory: validate.validate(spec),
    "minimum": lambda spec, directory: version.minimum(spec),
    "reduced": lambda spec, directory: version.reduced(spec, "0.5.0"),
    "dumps": lambda spec, directory: text.dumps(spec),
    "dumps json": lambda spec, directory: text.dumps(spec, "json"),
    "to_object": lambda spec, directory: document.to_object(spec),
    "write": lambda spec, directory: store.write(spec, directory, least_version=True),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("what", WRONG)
def test_whatever_is_done_with_it(what: str, use: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        USES[use](WRONG[what][0], str(tmp_path))
    assert caught.value.where in WRONG[what][1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["env", "node", "no node", "mount", "intelRdt", "group"])
def test_edits_alone_too(what: str) -> None:
    spec, places = WRONG[what]
    edits = spec.devices[0].container_edits
    wanted = {place.replace(E, "containerEdits"): why for place, why in places.items()}
    assert {problem.where: problem.why for problem in validate.edits_problems(edits)} == wanted
    for use in (lambda: apply.apply(edits, {}), lambda: document.edits_to_object(edits)):
        with pytest.raises(SpecError):
            use()
    if edits.device_nodes:
        with pytest.raises(SpecError, match=r"deviceNodes\[0\]"):
            hostnodes.fill_in(edits)


@FAST
@given(strategies.loose_specs())
def test_what_is_read_from_a_document_has_the_right_types(spec: Spec) -> None:
    assert shape.problems(spec) == []
    assert shape.problems(document.from_object(document.to_object(spec))) == []


MODELS = (
    Spec("", ""),
    Device(""),
    ContainerEdits(),
    DeviceNode(""),
    NetDevice("", ""),
    Hook("", ""),
    Mount("", ""),
    IntelRdt(),
)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_no_field_is_forgotten(model: Any) -> None:
    for field in fields(model):
        is_list = isinstance(getattr(model, field.name), tuple) or field.name == "schemata"
        wrong = replace(model, **{field.name: (object(),) if is_list else object()})
        assert len(shape.problems(wrong, type(model))) == 1, field.name
