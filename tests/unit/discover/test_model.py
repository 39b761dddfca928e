"""Records: immutable, strict, the same after a way through JSON; and what the model knows by itself."""

from __future__ import annotations

from typing import Any

import pytest
from unit.discover.nodetree import UUID, found, gpu, mig, mount

from nvoci import jsonfile
from nvoci.discover import model, record
from nvoci.discover.model import DeviceNode, Driver, Found, Gpu, Mount, Problem, Variable

CLASSES = [Variable, model.Hook, DeviceNode, Mount, model.MigDevice, Gpu, Driver, Problem, Found]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_a_class_has_a_slot_and_an_annotation_for_each_field(cls: type[record.Record]) -> None:
    assert tuple(cls.SCHEMA) == cls.__slots__
    assert set(cls.SCHEMA) == set(cls.__annotations__) - {"SCHEMA"}


def _everything() -> Found:
    one = gpu(1, mig_enabled=True, mig_devices=(mig(1), mig(1, 2, uuid="MIG-00000000-aaaa-5bbb-8ccc-000000010001")))
    return found().replace(gpus=(gpu(0), one))


@pytest.mark.parametrize("sparse", [False, True])
def test_json_and_back_is_the_same(sparse: bool) -> None:
    before = _everything()
    text = jsonfile.dumps(before.to_json(sparse))
    after = Found.from_json(jsonfile.loads(text.encode()))
    assert after == before
    assert hash(after) == hash(before)
    assert isinstance(after.gpus, tuple)
    assert isinstance(after.gpus[1].mig_devices[0].cap_nodes, tuple)
    assert after.mig_devices()[1].name == "1:2"


def test_sparse_json_leaves_out_defaults_and_no_more() -> None:
    full, sparse = mount("/a/liba.so.1").to_json(), mount("/a/liba.so.1").to_json(sparse=True)
    assert set(full) == set(Mount.SCHEMA)
    assert set(full) - set(sparse) == {"options"}


def test_a_record_cannot_be_changed() -> None:
    one = mount("/a/liba.so.1")
    with pytest.raises(AttributeError, match="Mount is immutable"):
        one.soname = "x"
    with pytest.raises(AttributeError, match="Mount is immutable"):
        del one.soname
    with pytest.raises(AttributeError):
        one.unknown = 1  # type: ignore[attr-defined]
    assert one.replace(soname="x").soname == "x"
    assert one.soname == "liba.so.1"


def test_equality_needs_the_same_class_and_fields() -> None:
    assert Variable(name="a", value="b") == Variable(value="b", name="a")
    assert Variable(name="a", value="b") != Variable(name="a", value="c")
    assert Variable(name="a", value="b") != ("a", "b", "")
    assert len({mount("/a/l.so.1"), mount("/a/l.so.1"), mount("/b/l.so.1")}) == 2


def test_repr_shows_what_is_not_default() -> None:
    assert repr(Variable(name="a", value="b")) == "Variable(name='a', value='b')"


PATHS = {"host_path": "/a", "container_path": "/a"}
BAD: dict[str, tuple[type[record.Record], Any, str]] = {
    "no object": (Variable, [], "Variable: not an object"),
    "missing": (Variable, {"name": "a"}, "Variable: no field 'value'"),
    "unknown": (Variable, {"name": "a", "value": "b", "x": 1}, "Variable: unknown field 'x'"),
    "number for text": (Variable, {"name": 1, "value": "b"}, "Variable.name: not str"),
    "null for text": (Variable, {"name": None, "value": "b"}, "Variable.name: not str"),
    "true for a number": (Gpu, {"index": True, "uuid": "x"}, "Gpu.index: not a whole number"),
    "negative": (Gpu, {"index": -1, "uuid": "x"}, "Gpu.index: not a whole number"),
    "fraction": (Gpu, {"index": 1.0, "uuid": "x"}, "Gpu.index"),
    "number for truth": (Gpu, {"index": 1, "uuid": "x", "mig_enabled": 1}, "Gpu.mig_enabled: not bool"),
    "triple for a pair": (Gpu, {"index": 1, "uuid": "x", "compute_capability": [1, 2, 3]}, "not a list of 2"),
    "relative path": (Driver, {"root": "run"}, "Driver.root: not an absolute path"),
    "NUL in a path": (Driver, {"root": "/r\0"}, "Driver.root: not an absolute path"),
    "string for a list": (Driver, {"library_dirs": "/a"}, "Driver.library_dirs: not a list"),
    "number in a list": (Driver, {"library_dirs": [1]}, "Driver.library_dirs: not an absolute path"),
    "link of one": (Mount, {**PATHS, "kind": "file", "links": [["a"]]}, "Mount.links"),
    "unknown kind": (Mount, {**PATHS, "kind": "thing"}, "Mount.kind: not one of"),
    "list for a word": (Mount, {**PATHS, "kind": []}, "Mount.kind: not one of"),
    "unknown capability": (DeviceNode, {**PATHS, "kind": "gpu", "capabilities": ["all"]}, "DeviceNode.capabilities"),
    "deep inside": (Found, {"driver": {}, "gpus": [{"index": 0, "uuid": 7}]}, "Found.gpus: Gpu.uuid: not str"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_a_record_is_refused_by_name(case: str) -> None:
    cls, doc, message = BAD[case]
    with pytest.raises(ValueError, match=r"^[A-Z]") as caught:
        cls.from_json(doc)
    assert message in str(caught.value)


def test_a_constructor_is_as_strict() -> None:
    with pytest.raises(ValueError, match="unknown field 'path'"):
        Mount(path="/a")
    with pytest.raises(ValueError, match="not an absolute path"):
        Mount(host_path="a", container_path="/a", kind="file")


BRANDS = {0: "Unknown", 1: "Quadro", 2: "Tesla", 14: "Nvidia", 16: "TitanRTX", 17: "Unknown", 999: "Unknown"}


@pytest.mark.parametrize("brand", BRANDS)
def test_brand_names(brand: int) -> None:
    assert gpu(0, brand=brand).brand_name == BRANDS[brand]


def test_what_a_gpu_tells_of_itself() -> None:
    assert gpu(0).architecture == "8.0"
    assert gpu(0, compute_capability=None).architecture == ""
    assert gpu(0, name="Orin (nvgpu)").integrated
    assert gpu(0, name="NVIDIA Thor").integrated
    assert not gpu(0).integrated
    assert gpu(0, addressing_mode="ats").coherent
    assert not gpu(0, addressing_mode="hmm").coherent
    assert not Gpu(index=0, uuid=UUID.format(0)).coherent


GRAPHICS = {"3g.20gb": False, "": False, "1g.5gb+me": False, "1g.12gb+gfx": True, "1c.2g.24gb+gfx": True}


@pytest.mark.parametrize("profile", GRAPHICS)
def test_graphics_profiles(profile: str) -> None:
    assert mig(profile=profile).graphics is GRAPHICS[profile]


def test_a_problem_is_one_line() -> None:
    problem = Problem(stage="find", subject="a\nb", error="ENOENT", hint="look\x1b[2J there")
    assert problem.line() == r"find a\nb: ENOENT (look\x1b[2J there)"
    assert Problem(stage="find", subject="a", error="ENOENT").line() == "find a: ENOENT"
