"""Which hooks there are, and in which form. Second witness of the arguments: the parser of the hooks themselves."""

from __future__ import annotations

from typing import Any

import pytest

from nvoci.cdi.model import Hook
from nvoci.generate.hooks import Hooks, unconditional
from nvoci.generate.options import HOOK_PATH, GenerateOptions
from nvoci.generate.parts import HOOKS, Call, Link
from nvoci.hook import options as hook_options
from nvoci.hook import table

CARD = Link("../card1", "/dev/dri/by-path/pci-0000:07:00.0-card", "/dev/dri/card1")
CALLS = [
    Call("create-symlinks", links=(Link("liba.so.1", "/lib/liba.so"),)),
    Call("create-symlinks", links=(Link("liba.so.2", "/lib/liba.so"), Link("libb.so.1", "/lib/libb.so"))),
    Call("enable-cuda-compat", ("--host-driver-version=550.163.01",)),
    Call("update-ldcache", ("/lib", "/lib/vdpau")),
    Call("disable-device-node-modification"),
    Call("update-application-profile"),
    Call("create-symlinks", links=(CARD,)),
    Call("chmod", ("/dev/dri",)),
]
MADE = ["create-symlinks", "create-symlinks", "enable-cuda-compat", "update-ldcache",
        "disable-device-node-modification", "update-application-profile", "create-symlinks"]  # fmt: skip


def hooks(**more: Any) -> Hooks:
    return Hooks(GenerateOptions(**more))


def parsed(hook: Hook) -> list[tuple[str, dict[str, Any]]]:
    """Hook and options of each call, as the program reads them."""
    name, *rest = hook.args
    assert (name, hook.path) == ("nvidia-cdi-hook", HOOK_PATH)
    groups = [rest]
    if rest[0] == "run":
        own, groups = hook_options.split_run(rest[1:])
        assert own == []
    return [(group[0], hook_options.parse_hook(table.HOOKS[group[0]], group[1:])) for group in groups]


# -- which ------------------------------------------------------------------------------------------------------------

C, L, U = "create-symlinks", "update-ldcache", "update-application-profile"
CHOICES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "usual": ({}, MADE),
    "one disabled": ({"disabled_hooks": (L,)}, [name for name in MADE if name != L]),
    "all disabled": ({"disabled_hooks": ("all",)}, []),
    "all but one": ({"disabled_hooks": ("all",), "enabled_hooks": (U,)}, [U]),
    "enabled wins": ({"disabled_hooks": (C, L), "enabled_hooks": (C,)}, [name for name in MADE if name != L]),
    "chmod enabled": ({"enabled_hooks": ("chmod",)}, [*MADE, "chmod"]),
    "chmod both": ({"disabled_hooks": ("chmod",), "enabled_hooks": ("chmod",)}, [*MADE, "chmod"]),
    "all disabled, chmod enabled": ({"disabled_hooks": ("all",), "enabled_hooks": ("chmod",)}, ["chmod"]),
}


@pytest.mark.parametrize("case", CHOICES)
def test_hooks_are_disabled_and_enabled(case: str) -> None:
    settings, names = CHOICES[case]
    maker = hooks(**settings)
    assert [hook.args[1] for hook in maker.separate(CALLS)] == names
    merged = maker.together(CALLS)
    assert [name for each in merged for name, _ in parsed(each)] == list(dict.fromkeys(names))
    assert maker.warnings == []


def test_what_the_mode_does_without_is_there_if_it_is_enabled() -> None:
    off = (U,)
    assert not Hooks(GenerateOptions(), off).allowed(U)
    assert Hooks(GenerateOptions(enabled_hooks=(U,)), off).allowed(U)


def test_a_hook_that_there_is_not_is_a_warning() -> None:
    assert hooks(disabled_hooks=("x\n", C)).warnings == ["there is no hook `x\\n` to enable or disable"]


def test_the_hooks_are_those_of_the_program() -> None:
    assert set(HOOKS) <= set(table.HOOKS)


@pytest.mark.parametrize("name", ["create-symlinks", "chmod", "update-ldcache"])
def test_a_hook_with_nothing_to_do_is_left_out_even_if_it_is_enabled(name: str) -> None:
    maker = hooks(enabled_hooks=(name,))
    assert maker.separate([Call(name)]) == []
    assert maker.together([Call(name)]) == []


# -- the forms --------------------------------------------------------------------------------------------------------


def test_one_for_each_task_has_the_arguments_of_the_reference() -> None:
    made = hooks(enabled_hooks=("chmod",), ldconfig_path="/sbin/ldconfig.real").separate(map(unconditional, CALLS))
    assert [list(hook.args[1:]) for hook in made] == [
        ["create-symlinks", "--link", "liba.so.1::/lib/liba.so"],
        ["create-symlinks", "--link", "liba.so.2::/lib/liba.so", "--link", "libb.so.1::/lib/libb.so"],
        ["enable-cuda-compat", "--host-driver-version=550.163.01"],
        ["update-ldcache", "--ldconfig-path", "/sbin/ldconfig.real", "--folder", "/lib", "--folder", "/lib/vdpau"],
        ["disable-device-node-modification"],
        ["update-application-profile"],
        ["create-symlinks", "--link", "../card1::/dev/dri/by-path/pci-0000:07:00.0-card"],
        ["chmod", "--mode", "755", "--path", "/dev/dri"],
    ]
    for hook in made:
        assert len(parsed(hook)) == 1


def test_one_for_the_whole_container_says_the_same_once() -> None:
    (hook,) = hooks().together(CALLS)
    (_, links), (_, compat), (_, ldcache), *rest = parsed(hook)
    # the later of two links at one path is what would remain
    assert links["link"] == ["liba.so.2::/lib/liba.so", "libb.so.1::/lib/libb.so"]
    assert links["link-if"] == ["/dev/dri/card1=../card1::/dev/dri/by-path/pci-0000:07:00.0-card"]
    assert compat["host-driver-version"] == "550.163.01"
    assert ldcache["folder"] == ["/lib", "/lib/vdpau"]
    assert [name for name, _ in rest] == ["disable-device-node-modification", "update-application-profile"]


def test_a_link_of_two_devices_is_made_where_either_node_is() -> None:
    other = Link(CARD.target, CARD.path, "/dev/dri/card2")
    (hook,) = hooks().together([Call("create-symlinks", links=(CARD, CARD)), Call("create-symlinks", links=(other,))])
    ((_, links),) = parsed(hook)
    assert len(links["link-if"]) == 2


PROGRAMS = {
    "/usr/bin/nvidia-cdi-hook": ("nvidia-cdi-hook",),
    "/opt/nvoci/bin/nvidia-cdi-hook": ("nvidia-cdi-hook",),
    "/usr/bin/nvidia-ctk": ("nvidia-ctk", "hook"),
    "/usr/bin/nvidia-ctk.real": ("nvidia-ctk.real",),
}


@pytest.mark.parametrize("path", PROGRAMS)
def test_the_program_is_called_by_its_name(path: str) -> None:
    maker = hooks(hook_path=path)
    for made in (*maker.separate(CALLS), *maker.together(CALLS)):
        first = PROGRAMS[path]
        assert (made.path, made.args[: len(first)]) == (path, first)
        assert made.args[len(first)] in {"run", *table.HOOKS}
        assert made.hook_name == "createContainer"
        assert made.env == ("NVIDIA_CTK_DEBUG=false",)
        assert made.timeout is None


# -- what cannot be said ----------------------------------------------------------------------------------------------

UNSAID = {
    "comma in a target": Call(C, links=(Link("a,b", "/lib/x"),)),
    "comma in a path": Call(C, links=(Link("a", "/lib/x,y"),)),
    "space at the end": Call(C, links=(Link("a", "/lib/x "),)),
    "space before": Call(C, links=(Link(" a", "/lib/x"),)),
    "comma in a node": Call(C, links=(Link("a", "/lib/x", "/dev/a,b"),)),
    "equals in a node": Call(C, links=(Link("a", "/lib/x", "/dev/a=b"),)),
    "comma in a folder": Call(L, ("/opt/a,b/lib",)),
}


@pytest.mark.parametrize("case", UNSAID)
def test_what_an_argument_cannot_hold_is_left_out_and_told(case: str) -> None:
    call = UNSAID[case]
    for form in ("separate", "together"):
        maker = hooks()
        assert getattr(maker, form)([call]) == []
        (told,) = maker.warnings
        assert told.startswith(f"hook {call.name}: `")
        assert "is left out" in told
    maker = hooks()
    rest = Call(call.name, ("/good", *call.values) if call.values else (), (Link("a", "/good"), *call.links))
    made, _ = maker.separate([rest, rest])
    assert len(maker.warnings) == 1
    assert [word for word in made.args if "good" in word]


def test_what_needs_no_splitting_may_have_a_comma() -> None:
    (made,) = hooks().separate([Call("enable-cuda-compat", ("--cuda-compat-container-root=/a,b",))])
    assert parsed(made)[0][1]["cuda-compat-container-root"] == "/a,b"
