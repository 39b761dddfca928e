"""Specifications of whole nodes. Second witness: those that the reference tools made for the samples."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from unit.discover.looktools import LIB, UUID, V, asked, built, discovery, needs_gcc, needs_mknod
from unit.generate.gentools import edits_of, mount_paths, names, node_paths, without_hooks

from nvoci.cdi import document, text, validate
from nvoci.cdi.model import Spec
from nvoci.discover.model import Found
from nvoci.errors import HookError
from nvoci.generate.options import FORMS, GenerateOptions
from nvoci.generate.specs import Generated, from_found
from nvoci.hook import create_symlinks, table
from nvoci.hook import options as hook_options
from nvoci.hook.settings import Settings

pytestmark = [needs_gcc, needs_mknod]
DATA = Path(__file__).resolve().parents[2] / "data/nodes"
SAMPLES = ("a100", "a100-mig", "tegra")
DRIVER_ROOT = f"/run/nvidia/drivers/{V}"
# What the reference does not find, as it would write it.
MPS_OPTIONS = ["nosuid", "nodev", "rbind", "rprivate", "noexec"]
MPS = {"hostPath": "/tmp/nvidia-mps", "containerPath": "/tmp/nvidia-mps", "options": MPS_OPTIONS}
MPS_TEXT = (
    "        - hostPath: /tmp/nvidia-mps\n          containerPath: /tmp/nvidia-mps\n          options:\n"
    + "".join(f"            - {option}\n" for option in MPS_OPTIONS)
)


def unrooted(found: Found, root: str) -> Found:
    """As if the node's directory were /."""

    def plain(record: Any) -> Any:
        return record.replace(host_path=record.host_path.removeprefix(root))

    return found.replace(
        device_nodes=tuple(map(plain, found.device_nodes)),
        mounts=tuple(map(plain, found.mounts)),
        driver=found.driver.replace(root="/", dev_root="/"),
    )


def made(name: str, root: str = "", **settings: Any) -> Generated:
    """root: of the driver, below the node's directory."""
    options = GenerateOptions(**settings)
    with discovery(name, options.search(), root=root) as seen:
        found = unrooted(seen.found, str(built(name).root))
        return from_found(found, asked(name), options, seen.platform, seen.link_lists)


def spec_of(name: str, root: str = "", **settings: Any) -> Spec:
    (named,) = made(name, root, **settings).specs
    return named.spec


# -- the samples ------------------------------------------------------------------------------------------------------


def reference_text(name: str) -> str:
    """What `nvidia-ctk cdi generate` wrote on that node, and the MPS directory where there is one."""
    written = (DATA / f"{name}.cdi.yaml").read_text()
    if name == "tegra":
        return written
    return written.replace("    mounts:\n", f"    mounts:\n{MPS_TEXT}", 1)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_has_the_specification_of_the_reference_to_the_byte(name: str) -> None:
    assert text.dumps(spec_of(name)) == reference_text(name)


@pytest.mark.parametrize("name", SAMPLES)
def test_as_json_too(name: str) -> None:
    import json

    written = text.dumps(spec_of(name), "json")
    assert json.loads(written) == yaml.safe_load(reference_text(name))
    assert "\n" not in written


# -- other nodes ------------------------------------------------------------------------------------------------------


def of_two() -> dict[str, Any]:
    """The sample's document, with two of its GPUs."""
    found: dict[str, Any] = yaml.safe_load(reference_text("a100"))
    known = ("0", "1", UUID.format(0), UUID.format(1))
    everything = found["devices"][-1]
    devices = [device for device in found["devices"] if device["name"] in known]
    edits = everything["containerEdits"]
    nodes = [node for device in devices for node in device["containerEdits"]["deviceNodes"]]
    edits["deviceNodes"] = [node for node in edits["deviceNodes"] if node in nodes]
    edits["hooks"] = edits["hooks"][:2]
    return {**found, "devices": [*devices, everything]}


def replaced(value: Any, pairs: dict[str, str]) -> Any:
    """With other paths in all texts."""
    if isinstance(value, dict):
        return {key: replaced(each, pairs) for key, each in value.items()}
    if isinstance(value, list):
        return [replaced(each, pairs) for each in value]
    if isinstance(value, str):
        for old, new in pairs.items():
            value = value.replace(old, new)
    return value


def by_place(found: dict[str, Any]) -> dict[str, Any]:
    """With mounts in the order of their paths, whatever these are."""
    ordered = copy.deepcopy(found)
    ordered["containerEdits"]["mounts"].sort(key=lambda mount: mount["containerPath"])
    return ordered


# What is elsewhere than on the sample.
ELSEWHERE: dict[str, dict[str, str]] = {
    "i386": {},
    "two-versions": {},
    "rhel-lib64": {LIB: "/usr/lib64", "/usr/lib/xorg": "/usr/lib64/xorg"},
    "cache-only": {LIB: "/opt/nvidia/driver/lib"},
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_libraries_elsewhere_give_the_same_with_other_paths(name: str) -> None:
    mine = document.to_object(spec_of(name))
    assert by_place(mine) == by_place(replaced(of_two(), ELSEWHERE[name]))


def test_a_driver_root_is_in_the_hosts_paths_and_nowhere_else() -> None:
    mine, theirs = document.to_object(spec_of("linked-root", DRIVER_ROOT)), of_two()
    common = theirs["containerEdits"]
    # sockets are looked for below the driver root
    common["mounts"] = [mount for mount in common["mounts"] if not mount["hostPath"].startswith("/run/")]
    for mount in common["mounts"]:
        mount["hostPath"] = DRIVER_ROOT + mount["hostPath"]
    assert mine == theirs


def test_sixteen_gpus_are_named_in_the_order_of_text_and_joined_in_that_of_nvml() -> None:
    spec, sample = spec_of("gpus-16"), spec_of("a100")
    assert spec.container_edits == sample.container_edits
    assert names(spec)[:8] == ["0", "1", "10", "11", "12", "13", "14", "15"]
    assert len(names(spec)) == 33
    for index in range(16):
        nodes = [f"/dev/nvidia{index}", f"/dev/dri/card{index + 1}", f"/dev/dri/renderD{index + 128}"]
        assert node_paths(edits_of(spec, str(index))) == nodes
    cards = [hook.args[3].partition("::")[0] for hook in edits_of(spec, "all").hooks]
    assert cards == [f"../card{index + 1}" for index in range(16)]


def test_a_compute_node_has_no_graphics_and_needs_no_new_version() -> None:
    spec = spec_of("no-drm")
    assert spec.cdi_version == "0.5.0"
    assert node_paths(edits_of(spec, "1")) == ["/dev/nvidia1"]
    assert (edits_of(spec, "all").hooks, edits_of(spec, "all").additional_gids) == ((), ())
    assert node_paths(spec.container_edits) == ["/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidiactl"]
    assert not [path for path in mount_paths(spec.container_edits) if "xorg/modules" in path]


def test_imex_is_a_mode_and_its_programs_are_mounted_in_all() -> None:
    common = mount_paths(spec_of("imex").container_edits)
    assert {"/usr/bin/nvidia-imex", "/usr/bin/nvidia-imex-ctl"} <= set(common)
    assert not [path for path in node_paths(edits_of(spec_of("imex"), "all")) if "imex" in path]
    assert names(spec_of("imex", mode="imex")) == ["0", "1", "2", "2047", "3", "all"]
    managed = node_paths(edits_of(spec_of("imex", mode="management"), "all"))
    assert [path for path in managed if "imex" in path] == [
        f"/dev/nvidia-caps-imex-channels/channel{n}" for n in (0, 1, 2, 2047, 3)
    ]


IGPU, DGPU = "GPU-5b8b3d2c-0000-5000-8000-000000000001", UUID.format(0)


def test_thor_gives_each_gpu_its_own() -> None:
    spec, tegra = spec_of("thor"), spec_of("tegra")
    assert names(spec) == ["0", "1", DGPU, IGPU, "all"]
    integrated, discrete = node_paths(edits_of(spec, "0")), node_paths(edits_of(spec, "1"))
    assert {"/dev/nvidia0", "/dev/nvidia2"} <= set(integrated)
    assert "/dev/nvidia1" not in integrated
    assert {"/dev/nvidia1", "/dev/nvidia-uvm", "/dev/nvidiactl", "/dev/dri/renderD129", "/dev/nvmap"} <= set(discrete)
    assert not {"/dev/nvidia0", "/dev/nvidia2"} & set(discrete)
    assert edits_of(spec, IGPU) == edits_of(spec, "0")
    tasks = [hook.args[1:] for hook in spec.container_edits.hooks]
    assert tasks[:2] == [hook.args[1:] for hook in tegra.container_edits.hooks[:2]]
    assert tasks[2] == ("enable-cuda-compat", "--host-cuda-version=13.0")
    assert spec.container_edits.device_nodes == ()


def test_thor_is_one_device_if_that_is_asked_for() -> None:
    spec = spec_of("thor", feature_flags=("disable-multiple-csv-devices",))
    assert names(spec) == ["0", "all"]
    assert set(node_paths(edits_of(spec, "0"))) == {*node_paths(edits_of(spec_of("tegra"), "0")), "/dev/dri/renderD129"}
    assert [hook.args[1] for hook in spec.container_edits.hooks][2] == "enable-cuda-compat"


def test_wsl_is_one_device() -> None:
    spec = spec_of("wsl")
    (store,) = {path.rpartition("/")[0] for path in mount_paths(spec.container_edits) if "drivers" in path}
    assert (names(spec), node_paths(edits_of(spec, "all"))) == (["all"], ["/dev/dxg"])
    assert {
        f"{store}/libcuda.so.1.1",
        f"{store}/nvidia-smi",
        f"{store}/nvcubins.bin",
        "/usr/lib/wsl/lib/libdxcore.so",
    } < {*mount_paths(spec.container_edits)}
    assert [hook.args[1:] for hook in spec.container_edits.hooks] == [
        ("create-symlinks", "--link", f"{store}/nvidia-smi::/usr/bin/nvidia-smi"),
        ("update-ldcache", "--folder", store, "--folder", "/usr/lib/wsl/lib"),
    ]
    assert spec.container_edits.env == ("NVIDIA_VISIBLE_DEVICES=void",)


def test_a_lost_gpu_is_left_out_and_told() -> None:
    generated = made("gpu-lost")
    assert names(generated.specs[0].spec) == ["0", "2", UUID.format(0), UUID.format(2), "all"]
    (told,) = generated.warnings
    assert "NVML_ERROR_GPU_IS_LOST" in told
    assert "/dev/nvidia1" in node_paths(edits_of(spec_of("gpu-lost", mode="management"), "all"))


REFUSED = {
    "mig-empty": "GPU 0, 1: MIG mode is on and there is no MIG device",
    "version-mismatch": f"kernel module {V}, libraries 535.183.01: the versions differ",
    "driver-not-loaded": "gave no answer",
    "half-removed": "gave no answer",
    "hostile": "no GPU that answers: ask NVML about GPU 0: an answer that makes no sense: UUID 'GPU-\\n  - path",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_node_that_has_nothing_for_a_container_is_one_line(name: str) -> None:
    with pytest.raises(HookError) as e:
        made(name, mode="management" if name == "version-mismatch" else "auto")
    assert REFUSED[name] in e.value.message
    assert e.value.line().isprintable()


class Kind(NamedTuple):
    """A node, and the modes in which it has something."""

    name: str
    modes: tuple[str, ...]


GATED = ("gdrcopy", "gds", "mofed", "nvswitch")
EVERY = [
    Kind("a100", ("auto", "management", *GATED)),
    Kind("a100-mig", ("auto", "management")),
    Kind("tegra", ("auto",)),
    Kind("thor", ("auto",)),
    Kind("imex", ("auto", "imex")),
    Kind("rhel-lib64", ("auto",)),
    Kind("wsl", ("auto",)),
]
SETTINGS: list[dict[str, Any]] = [
    {},
    {
        "enabled_hooks": ("chmod",),
        "feature_flags": ("enable-coherent-annotations",),
        "name_strategies": ("type-index",),
    },
    {"feature_flags": ("enable-explicit-driver-libraries",), "max_cdi_version": "0.5.0", "annotate": True},
]


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.name)
def test_specifications_are_valid_and_both_forms_say_the_same(kind: Kind) -> None:
    for mode in kind.modes:
        for settings in SETTINGS:
            one, other = (made(kind.name, mode=mode, hooks_form=form, **settings) for form in FORMS)
            assert len(one.specs) == len(other.specs)
            for a, b in zip(one.specs, other.specs):
                assert validate.problems(a.spec) == validate.problems(b.spec) == []
                assert without_hooks(a.spec) == without_hooks(b.spec)
                assert len(b.spec.container_edits.hooks) == (0 if mode in {*GATED, "imex"} else 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["a100", "a100-mig", "tegra", "thor", "wsl"])
def test_the_program_takes_what_it_is_told(name: str, form: str) -> None:
    spec = spec_of(name, hooks_form=form, enabled_hooks=("chmod",), ldconfig_path="/sbin/ldconfig")
    hooks = [*spec.container_edits.hooks, *[hook for device in spec.devices for hook in device.container_edits.hooks]]
    assert hooks
    for hook in hooks:
        rest = list(hook.args[1:])
        groups = hook_options.split_run(rest[1:])[1] if form == "merged" else [rest]
        assert groups
        for group in groups:
            given = hook_options.parse_hook(table.HOOKS[group[0]], group[1:])
            if group[0] == "create-symlinks":
                links = given["link"] + given["link-if"]
                assert len(create_symlinks.prepare(given, Settings()).wanted) == len(links) > 0
