"""Whether a container asks at all: certain where it says no, and then next to nothing was loaded."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from unit.prestart.prestarttools import asked, container, error, place

from nvoci.oci.spec import Spec
from nvoci.prestart import ask, config, request
from nvoci.prestart.configfile import Place

HOOKS = Path(__file__).resolve().parents[3] / "hooks"
NOWHERE = Place("/nonexistent/config.toml")
SWARM = 'swarm-resource = "DOCKER_RESOURCE_GPU"'
ASKS: dict[str, tuple[Spec, bool]] = {
    "nothing": (container(), False),
    "devices": (container("NVIDIA_VISIBLE_DEVICES=0"), True),
    "all": (container("NVIDIA_VISIBLE_DEVICES=all"), True),
    "none: the driver": (container("NVIDIA_VISIBLE_DEVICES=none"), True),
    "void": (container("NVIDIA_VISIBLE_DEVICES=void"), False),
    "void among others": (container("NVIDIA_VISIBLE_DEVICES=0, void"), False),
    "void behind all": (container("NVIDIA_VISIBLE_DEVICES=all,void"), False),
    "empty": (container("NVIDIA_VISIBLE_DEVICES="), False),
    "blanks": (container("NVIDIA_VISIBLE_DEVICES= , "), False),
    "the last of two": (container("NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_VISIBLE_DEVICES=void"), False),
    "an old image": (container("CUDA_VERSION=9.0.176"), True),
    "an old image, void": (container("CUDA_VERSION=9.0.176", "NVIDIA_VISIBLE_DEVICES=void"), False),
    "an old image, empty": (container("CUDA_VERSION=9.0.176", "NVIDIA_VISIBLE_DEVICES="), False),
    "an old image, empty requirement": (container("CUDA_VERSION=9.0", "NVIDIA_REQUIRE_CUDA="), True),
    "an image with a requirement": (container("CUDA_VERSION=9.0", "NVIDIA_REQUIRE_CUDA=cuda>=9.0"), False),
    "an empty CUDA version": (container("CUDA_VERSION="), False),
    "capabilities alone": (container("NVIDIA_DRIVER_CAPABILITIES=all"), False),
    "IMEX alone": (container("NVIDIA_IMEX_CHANNELS=0"), False),
    "mounts of others": (container(mounts=[{"source": "/dev/null", "destination": "/run/x"}]), False),
    "a mount": (container(mounts=asked("0")), True),
    "a mount, to be cleaned": (
        container(mounts=[{"source": "/dev/null", "destination": "/var//run/x/../nvidia-container-devices/0"}]), True
    ),
    "1 MiB": (container("NVIDIA_VISIBLE_DEVICES=" + "0," * (1 << 19)), True),
    "1 MiB, void": (container("NVIDIA_VISIBLE_DEVICES=void," + "x" * (1 << 20)), True),
    "1 MiB of another": (container("A=" + "0," * (1 << 19)), False),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "asks"), ASKS.values(), ids=ASKS)
def test_without_a_configuration(spec: Spec, asks: bool) -> None:
    assert ask.may_ask(spec, NOWHERE) is asks


def test_a_swarm_resource_is_for_the_configuration_to_tell(tmp_path: Path) -> None:
    assert ask.may_ask(container(), place(tmp_path, SWARM)) is True
    assert ask.may_ask(container(), place(tmp_path, "#" + SWARM)) is False


@pytest.mark.parametrize("name", [name for name, (_, asks) in ASKS.items() if not asks])
@pytest.mark.parametrize(
    "text",
    ["", "accept-nvidia-visible-devices-as-volume-mounts = true", "disable-require = true\n[features]\nx = 1"],
    ids=["defaults", "mounts", "others"],
)
def test_a_no_is_what_the_whole_way_says_too(tmp_path: Path, name: str, text: str) -> None:
    given = place(tmp_path, text)
    assert request.build(ASKS[name][0], config.load(given, str(tmp_path / "run"))) is None


def test_a_variable_without_equals_is_refused_for_everybody() -> None:
    spec = container()
    spec._doc["process"]["env"].append("BAD")
    assert error(lambda: ask.may_ask(spec, NOWHERE)).message.endswith("invalid environment variable: BAD")


def test_a_broken_configuration_stops_no_container_that_does_not_ask(tmp_path: Path) -> None:
    assert ask.may_ask(container(), place(tmp_path, "[[[ broken")) is False
    assert ask.may_ask(container(), Place(str(tmp_path / "none"), "-config")) is False


QUESTION = """
import sys
sys.path.insert(0, {hooks!r})
from nvoci.oci import spec
from nvoci.prestart import ask, configfile
asks = ask.may_ask(spec.of_bundle({bundle!r}), configfile.find({{b"NVIDIA_CTK_CONFIG_FILE_PATH": {path!r}}}))
print(asks, *sys.modules)
"""


@pytest.mark.parametrize(("env", "asks"), [(["A=b"], "False"), (["NVIDIA_VISIBLE_DEVICES=all"], "True")])
def test_the_question_loads_neither_ctypes_nor_the_configuration(tmp_path: Path, env: list[str], asks: str) -> None:
    given = place(tmp_path, "disable-require = true")
    doc: dict[str, Any] = {"ociVersion": "1.0.2", "process": {"env": env}, "root": {"path": "r"}}
    (tmp_path / "config.json").write_text(json.dumps(doc))
    code = QUESTION.format(hooks=str(HOOKS), bundle=str(tmp_path), path=given.path.encode())
    done = subprocess.run(["/usr/bin/python3", "-ISB", "-c", code], capture_output=True, text=True, check=True)
    answer, *modules = done.stdout.split()
    assert answer == asks
    ours = {name.removeprefix("nvoci.") for name in modules if name.startswith("nvoci.")}
    assert ours == {
        "errors", "jsonfile", "linux", "linux.fd", "log", "oci", "oci.config", "oci.spec", "prestart", "prestart.ask",
        "prestart.configfile", "prestart.names",
    }  # fmt: skip
    assert not {"_ctypes", "ctypes", "json", "re", "enum", "typing", "tomllib"} & set(modules)


def test_a_hundred_variables_and_mounts_are_less_than_a_millisecond() -> None:
    mounts = [{"source": f"/a/{i}", "destination": f"/b/{i}", "type": "bind"} for i in range(100)]
    seconds = []
    for _ in range(20):
        spec = container(*[f"VARIABLE_{i}=value {i}" for i in range(100)], mounts=mounts)
        start = time.perf_counter()
        assert ask.may_ask(spec, NOWHERE) is False
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.001
