"""The table of hooks: the reference's names, flags and defaults, and ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lib import session

from nvoci.hook import help as hook_help
from nvoci.hook import table
from nvoci.hook.settings import ENGINES

# name: (the reference's flags with their defaults, those it hides)
REFERENCE: dict[str, tuple[dict[str, str], set[str]]] = {
    "create-symlinks": ({"link": "", "container-spec": ""}, {"container-spec"}),
    "chmod": ({"path": "", "mode": "", "container-spec": ""}, set()),
    "enable-cuda-compat": (
        {"host-driver-version": "", "host-cuda-version": "", "cuda-compat-container-root": "/usr/local/cuda/compat",
         "container-spec": ""}, {"container-spec"}),
    "update-ldcache": ({"folder": "", "ldconfig-path": "/sbin/ldconfig", "container-spec": ""}, set()),
    "disable-device-node-modification": ({"container-spec": ""}, {"container-spec"}),
    "update-application-profile": ({"container-spec": ""}, {"container-spec"}),
    "noop": ({}, set()),
}  # fmt: skip
OURS = {"inject", "mount-mig-devices"}
LISTS = {("create-symlinks", "link"), ("create-symlinks", "link-if"), ("chmod", "path"), ("update-ldcache", "folder"),
         ("inject", "device"), ("inject", "spec-dir"), ("mount-mig-devices", "gpu-instance"),
         ("mount-mig-devices", "compute-instance"), ("mount-mig-devices", "gpu")}  # fmt: skip


def test_the_hooks_are_those_of_the_reference_and_ours() -> None:
    assert set(table.HOOKS) == set(REFERENCE) | OURS


@pytest.mark.parametrize("name", REFERENCE)
def test_a_hook_has_the_flags_of_the_reference(name: str) -> None:
    flags, hidden = REFERENCE[name]
    ours = {o.name: o for o in table.HOOKS[name].options}
    assert set(flags) <= set(ours)
    assert {n: ours[n].default for n in flags} == flags
    assert {n for n in flags if ours[n].hidden} == hidden


@pytest.mark.parametrize("hook", table.HOOKS.values(), ids=table.HOOKS)
def test_a_hook_has_the_common_flags_and_each_name_once(hook: table.Hook) -> None:
    names = [o.name for o in hook.options]
    assert {"dry-run", "strict", "timeout"} <= set(names)
    assert len(names) == len(set(names))


def test_update_ldcache_has_an_engine_of_our_own_which_the_settings_decide_by_default() -> None:
    (engine,) = [o for o in table.HOOKS["update-ldcache"].options if o.name == "engine"]
    assert (engine.kind, engine.default, engine.hidden) == (table.TEXT, "", False)
    assert all(name in engine.help for name in (*ENGINES, "hook.json"))


def test_lists_are_the_flags_that_repeat() -> None:
    lists = {(h.name, o.name) for h in table.HOOKS.values() for o in h.options if o.kind == table.LIST}
    assert lists == LISTS


def test_only_noop_is_hidden() -> None:
    assert [h.name for h in table.HOOKS.values() if h.hidden] == ["noop"]


@pytest.mark.parametrize("hook", table.HOOKS.values(), ids=table.HOOKS)
def test_the_module_of_a_hook_is_there_and_has_prepare_and_plan(hook: table.Hook) -> None:
    source = (session.HOOKS / Path(*hook.module.split("."))).with_suffix(".py").read_text()
    assert "\ndef prepare(options: dict[str, Any], settings: Settings)" in source
    assert "\ndef plan(prepared: " in source


def test_features_are_json_with_every_hook_and_flag() -> None:
    doc = json.loads(json.dumps(table.features()))
    assert doc["version"] == 1
    assert set(doc["hooks"]) == set(table.HOOKS)
    assert "link-if" in doc["hooks"]["create-symlinks"]
    assert "engine" in doc["hooks"]["update-ldcache"]
    assert {"device", "from-annotations", "spec-dir"} <= set(doc["hooks"]["inject"])
    assert {"dry-run", "strict", "timeout", "container-spec"} == set(doc["run"])


def test_program_help_names_all_but_the_hidden() -> None:
    text = hook_help.program("nvidia-cdi-hook", "NVIDIA CDI Hook")
    assert all(f"   {name} " in text for name in [*REFERENCE, *OURS, "run"] if name != "noop")
    assert "noop" not in text


@pytest.mark.parametrize("hook", [*table.HOOKS.values(), table.RUN], ids=lambda h: h.name)
def test_hook_help_names_all_but_the_hidden_options(hook: table.Hook) -> None:
    text = hook_help.hook("nvidia-cdi-hook", hook)
    for option in hook.options:
        assert (f"--{option.name} " in text) is not option.hidden
        assert not option.default or option.hidden or f"(default: {option.default})" in text
