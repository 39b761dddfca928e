"""From what was found to specifications: kinds, forms, versions, annotations, splits. Second witness: the validator."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from unit.generate.gentools import (
    UUID,
    answer,
    edits_of,
    found,
    gpu,
    made,
    mig,
    names,
    spec_of,
    without_hooks,
    words,
)

from nvoci.cdi import text, validate, version
from nvoci.discover.model import Problem
from nvoci.discover.platform import Platform
from nvoci.errors import HookError
from nvoci.generate import freshness
from nvoci.generate.options import FEATURES, FORMS, GenerateOptions
from nvoci.generate.specs import from_found
from nvoci.hook import options as hook_options

SPLIT = gpu(1, mig_capable=True, mig_enabled=True, mig_devices=(mig(1, 0, profile="1g.5gb+gfx"), mig(1, 1)))
NODE = found(gpu(0, addressing_mode="ats"), SPLIT, gpu(2))
COHERENT = ("enable-coherent-annotations",)
MODES = ("auto", "nvml", "management", "imex", "gds", "mofed", "gdrcopy", "nvswitch")


# -- always -----------------------------------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "usual": {},
    "every feature": {"feature_flags": FEATURES},
    "every name": {"name_strategies": ("index", "uuid", "type-index")},
    "no hooks": {"disabled_hooks": ("all",)},
    "every hook": {"enabled_hooks": ("chmod", "disable-device-node-modification")},
    "annotated": {"annotate": True},
    "no all": {"no_all_device": True},
    "of another vendor": {"vendor": "v", "class_": "c.d"},
    "for 0.5.0": {"max_cdi_version": "0.5.0", "annotate": True, "feature_flags": FEATURES},
    "for 0.3.0": {"max_cdi_version": "0.3.0", "name_strategies": ("type-index", "uuid")},
    "nothing chosen": {"device_ids": ("none",)},
}


@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", MODES)
def test_every_specification_is_valid_in_the_least_version_and_survives_its_text(
    mode: str, form: str, case: str
) -> None:
    settings = {**SETTINGS[case], "mode": mode, "hooks_form": form}
    if (mode, case) == ("imex", "nothing chosen"):
        with pytest.raises(HookError):
            made(NODE, **settings)
        return
    generated = made(NODE, **settings)
    for named in generated.specs:
        spec = named.spec
        assert validate.problems(spec) == []
        assert spec.cdi_version == version.minimum(spec)
        for encoding in ("yaml", "json"):
            assert text.loads(text.dumps(spec, encoding).encode(), format=encoding) == spec
        for edits in (spec.container_edits, *[device.container_edits for device in spec.devices]):
            assert all(hook.env and hook.timeout is None and hook.path for hook in edits.hooks)
    assert all(line.isprintable() for line in generated.warnings)


@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.parametrize("mode", MODES)
def test_both_forms_say_the_same_but_for_the_hooks(mode: str, case: str) -> None:
    settings = {**SETTINGS[case], "mode": mode, "annotate": False}
    if (mode, case) == ("imex", "nothing chosen"):
        return
    reference, merged = (made(NODE, hooks_form=form, **settings) for form in FORMS)
    assert [each.suffix for each in reference.specs] == [each.suffix for each in merged.specs]
    assert reference.warnings == merged.warnings
    for one, other in zip(reference.specs, merged.specs):
        assert without_hooks(one.spec) == without_hooks(other.spec)
        assert len(other.spec.container_edits.hooks) <= 1
        assert not any(device.container_edits.hooks for device in other.spec.devices)
        assert links(one.spec.container_edits.hooks) == unconditional(other.spec.container_edits.hooks)
        for device in one.spec.devices:
            assert links(device.container_edits.hooks) <= conditional(other.spec.container_edits.hooks)


def links(hooks: tuple[Any, ...]) -> set[str]:
    """Those that hooks of the reference's form make."""
    return {each for hook in hooks if hook.args[1] == "create-symlinks" for each in hook.args[3::2]}


def arguments(hooks: tuple[Any, ...], flag: str) -> set[str]:
    found_ = set()
    for hook in hooks:
        for group in hook_options.split_run(list(hook.args[2:]))[1]:
            found_ |= {value for name, value in itertools.pairwise(group) if name == flag}
    return found_


def unconditional(hooks: tuple[Any, ...]) -> set[str]:
    return arguments(hooks, "--link")


def conditional(hooks: tuple[Any, ...]) -> set[str]:
    """Without the nodes they are for."""
    return {each.partition("=")[2] for each in arguments(hooks, "--link-if")}


def test_the_same_gives_the_same() -> None:
    assert made(NODE, hooks_form="merged", annotate=True) == made(NODE, hooks_form="merged", annotate=True)


# -- the form of one hook ---------------------------------------------------------------------------------------------


def test_a_merged_specification_has_one_hook_however_many_gpus() -> None:
    spec = spec_of(found(*[gpu(n) for n in range(8)]), hooks_form="merged")
    (line,) = words(spec.container_edits.hooks)
    tasks = [group.split()[0] for group in line.split("run -- ")[1].split(" -- ")]
    assert tasks == ["create-symlinks", "enable-cuda-compat", "update-ldcache", "disable-device-node-modification",
                     "update-application-profile"]  # fmt: skip
    assert line.count("--link-if") == 16
    assert "--link-if /dev/dri/card8=../card8::/dev/dri/by-path/pci-0000:0e:00.0-card" in line
    assert sum(len(device.container_edits.hooks) for device in spec.devices) == 0


def test_chmod_of_all_devices_is_one_task() -> None:
    spec = spec_of(found(gpu(0), gpu(1)), hooks_form="merged", enabled_hooks=("chmod",))
    (line,) = words(spec.container_edits.hooks)
    assert line.endswith(" -- chmod --mode 755 --path /dev/dri")


# -- coherent memory --------------------------------------------------------------------------------------------------


def test_gpus_are_split_by_their_memory() -> None:
    generated = made(NODE, feature_flags=COHERENT)
    assert [(each.suffix, each.spec.kind, each.spec.cdi_version, names(each.spec)) for each in generated.specs] == [
        ("", "nvidia.com/gpu", "0.7.0", names(spec_of(NODE))),
        (".coherent", "nvidia.com/gpu.coherent", "0.7.0", ["0", UUID.format(0), "all"]),
        (".noncoherent", "nvidia.com/gpu.noncoherent", "0.7.0", ["2", UUID.format(2), "all"]),
    ]
    whole, coherent, _ = [each.spec for each in generated.specs]
    assert whole == spec_of(NODE)
    assert coherent.container_edits == whole.container_edits
    assert edits_of(coherent, "all") == edits_of(whole, "0")
    assert not any(device.annotations for each in generated.specs for device in each.spec.devices)


def test_a_merged_split_has_the_links_of_its_own_gpus() -> None:
    _, coherent, _ = made(NODE, feature_flags=COHERENT, hooks_form="merged").specs
    (line,) = words(coherent.spec.container_edits.hooks)
    assert "/dev/dri/card1=" in line
    assert "/dev/dri/card3=" not in line


def test_where_all_gpus_are_alike_there_is_one_split() -> None:
    generated = made(found(gpu(0)), feature_flags=COHERENT)
    assert [each.suffix for each in generated.specs] == ["", ".noncoherent"]


# -- versions ---------------------------------------------------------------------------------------------------------

VERSIONS = {"": "0.7.0", "0.7.0": "0.7.0", "1.1.0": "0.7.0", "v0.6.0": "0.5.0", "0.5.0": "0.5.0", "0.4.0": "0.3.0"}


@pytest.mark.parametrize("newest", VERSIONS)
def test_an_older_consumer_gets_what_it_knows_and_what_is_missing_is_told(newest: str) -> None:
    generated = made(found(gpu(0), gpu(1)), max_cdi_version=newest)
    (named,) = generated.specs
    assert named.spec.cdi_version == VERSIONS[newest]
    some = "GPU-" if newest == "0.4.0" else "0, 1, "
    told = f"left out of nvidia.com/gpu: additionalGids 44, 104 of device {some}"
    assert any(line.startswith(told) for line in generated.warnings) == (VERSIONS[newest] != "0.7.0")
    assert ("0" in names(named.spec)) == (newest != "0.4.0")
    assert len(generated.warnings) == {"0.7.0": 0, "0.5.0": 1, "0.3.0": 2}[VERSIONS[newest]]


def test_a_split_that_an_older_consumer_does_not_know_is_left_out_and_told() -> None:
    generated = made(NODE, feature_flags=COHERENT, max_cdi_version="0.5.0")
    assert [each.suffix for each in generated.specs] == [""]
    for suffix in ("coherent", "noncoherent"):
        (told,) = [line for line in generated.warnings if f"gpu.{suffix} " in line]
        assert told.startswith(f"the specification for nvidia.com/gpu.{suffix} is left out: class")


# -- annotations ------------------------------------------------------------------------------------------------------

MAJORS = "nvidia=195,nvidia-caps=236,nvidia-uvm=510"
ANNOTATED: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "merged": (
        {"hooks_form": "merged", "annotate": True},
        {"nvoci.io/driver-version": "550.163.01", "nvoci.io/device-majors": MAJORS},
    ),
    "not asked for": ({"hooks_form": "merged"}, {}),
    "in the form of the reference": ({"annotate": True}, {}),
    "for an old consumer": ({"hooks_form": "merged", "annotate": True, "max_cdi_version": "0.5.0"}, {}),
}


@pytest.mark.parametrize("case", ANNOTATED)
def test_a_specification_tells_what_it_was_made_for(case: str) -> None:
    settings, annotations = ANNOTATED[case]
    generated = made(NODE, **settings)
    assert dict(generated.specs[0].spec.annotations) == annotations
    told = [line for line in generated.warnings if "annotations `nvoci.io/" in line]
    assert len(told) == (1 if "max_cdi_version" in settings else 0)


# mode: device ids, what the annotation says of them
ASKED: dict[str, tuple[dict[str, Any], str]] = {
    "all": ({}, ""),
    "all, and one": ({"device_ids": ("1", "all")}, ""),
    "one": ({"device_ids": ("2",)}, "2"),
    "a GPU and a MIG device": ({"device_ids": ("0", "1:0")}, "0,1:0"),
    "none": ({"device_ids": ("none",)}, "none"),
    "none before all": ({"device_ids": ("none", "all")}, "none"),
    "where there is nothing to choose": ({"device_ids": ("1",), "mode": "management"}, ""),
    "a channel": ({"device_ids": ("channel2",), "mode": "imex"}, "2"),
    "all channels": ({"device_ids": ("channelall",), "mode": "imex"}, ""),
}


@pytest.mark.parametrize("case", ASKED)
def test_a_specification_tells_which_devices_were_asked_for(case: str) -> None:
    settings, told = ASKED[case]
    generated = made(NODE, hooks_form="merged", annotate=True, **settings)
    assert generated.specs[0].spec.annotations.get(freshness.DEVICE_IDS, "") == told


def test_a_name_that_ends_old_engines_is_one_warning() -> None:
    generated = made(found(gpu(0)), vendor="a", class_="b")
    (told,) = [line for line in generated.warnings if "one character" in line]
    assert told.startswith("vendor `a` and class `b` are each of one character: engines with an older CDI library")


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_groups_may_be_left_out() -> None:
    spec = spec_of(NODE, feature_flags=("no-additional-gids-for-device-nodes",))
    assert not any(device.container_edits.additional_gids for device in spec.devices)
    assert spec.cdi_version == "0.5.0"
    assert edits_of(spec, "0").device_nodes[1].gid == 44


@pytest.mark.parametrize("kind", ["nvml", "csv", "wsl"])
def test_the_mode_is_the_platforms_unless_it_is_asked_for(kind: str) -> None:
    if kind == "nvml":
        assert made(NODE, kind).mode == "nvml"
    else:
        with pytest.raises(HookError):
            made(NODE, kind)
    assert made(NODE, kind, mode="Nvml").mode == "nvml"
    assert made(NODE, kind, mode="gds").mode == "gds"


def test_without_an_answer_of_nvml_nothing_is_made_of_its_gpus() -> None:
    problem = Problem(stage="find the kernel module", subject="/proc/x", error="not loaded", hint="modprobe nvidia")
    with pytest.raises(HookError, match="NVML of / gave no answer") as e:
        from_found(found(problems=(problem,)), None, GenerateOptions(), Platform("nvml", []))
    assert e.value.hint == "modprobe nvidia"


def test_what_a_person_must_not_overlook_is_a_warning() -> None:
    lost = Problem(stage="ask NVML about", subject="GPU 1", error="NVML_ERROR_GPU_IS_LOST", hint="reset it")
    control = Problem(stage="use device", subject="/dev/nvidia-uvm", error="ENOENT", hint="nvidia-modprobe -u")
    trifle = Problem(stage="use csv lib", subject="/x", error="ENOENT")
    node = found(gpu(0), problems=(lost, control, trifle))
    generated = from_found(node, answer((gpu(0),)).replace(problems=(lost,)), GenerateOptions(), Platform("nvml", []))
    assert generated.warnings == (lost.line(), control.line())
    assert made(node, mode="gds").warnings == ()


def test_bad_settings_are_refused_before_anything_is_made() -> None:
    with pytest.raises(HookError, match="invalid discovery mode: x"):
        made(NODE, mode="x")
