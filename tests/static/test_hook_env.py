"""Every entry of a hook that we write has an environment that is not empty, also after a reader that drops empty lists.

runc before 1.3 starts a createContainer hook without one in the *container's* environment, LD_PRELOAD included.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from unit.generate.gentools import found, gpu, made, mig

from nvoci.cdi import text
from nvoci.cdi.model import Hook
from nvoci.ctl import cdispec, entries, prestartentry, regex
from nvoci.errors import HookError
from nvoci.generate.hooks import Hooks
from nvoci.generate.options import GenerateOptions
from nvoci.generate.parts import HOOKS, Call, Link
from nvoci.hook import table
from nvoci.oci import hooksd

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((ROOT / "oci-hooks.d").glob("*.json.in"))
ALWAYS = hooksd.When(always=True)

# Where an entry is made: module:function -> how it gets its environment.
MAKERS = {
    "generate.hooks:Hooks._hook": "a constant of its own",
    "oci.hooksd:ours": "the mark that says it is ours",
    "oci.hooksd:_entry": "what a file says, which may be anybody's; `write` refuses one without",
}
# Dicts with `path` and `args` of a hook that are written out.
WRITERS = {
    "cdi.document:": "names of fields; `apply` adds a hook to a config as its specification has it, which is anybody's",
    "oci.hooksd:Entry.document": "an entry, by `write` and `ours`",
    "ctl.cdispec:_entry": "made into one of `ours`",
}


def dropped(value: Any) -> Any:
    """Without the empty lists, objects and nulls, as some readers and writers of JSON and YAML leave them out."""
    if isinstance(value, dict):
        return {k: d for k, v in value.items() if (d := dropped(v)) not in ([], {}, None)}
    return [dropped(v) for v in value] if isinstance(value, list) else value


def hooks_in(value: Any) -> Iterator[dict[str, Any]]:
    """Whatever has the form of a hook: a `path` and `args`, or a `hookName`; or what stands under `hook`."""
    if isinstance(value, dict):
        if "hookName" in value or ("path" in value and "args" in value):
            yield value
        elif isinstance(value.get("hook"), dict) and "stages" in value:
            yield value["hook"]
            return
        for each in value.values():
            yield from hooks_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from hooks_in(each)


def check(document: Any, least: int = 1) -> None:
    """All of its hooks, as they are read again from JSON and from YAML."""
    for read in (json.loads(json.dumps(document)), yaml.safe_load(yaml.safe_dump(document))):
        seen = list(hooks_in(dropped(read)))
        assert len(seen) >= least
        for hook in seen:
            assert hook.get("env"), hook
            assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*=.*", pair) for pair in hook["env"])
            assert not [pair for pair in hook["env"] if pair.startswith(("LD_", "PYTHON", "GCONV_PATH", "BASH_ENV"))]


# -- where ------------------------------------------------------------------------------------------------------------


def constructions(source: str) -> Iterator[tuple[str, str]]:
    """(function, what) where an entry, or a dict of its form, is made."""
    yield from _walk(ast.parse(source), ())


def _walk(node: ast.AST, inside: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        inside = (*inside, node.name)
    if isinstance(node, ast.Call) and ast.unparse(node.func) in {"Hook", "Entry", "hooksd.Entry", "model.Hook"}:
        yield ".".join(inside), "entry"
    if isinstance(node, ast.Dict):
        keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
        if keys >= {"path", "args"}:
            yield ".".join(inside), "dict"
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, inside)


def _modules() -> dict[str, str]:
    """Of the package, those that can mean an entry of a hook by these names."""
    found = {}
    for path in sorted((ROOT / "hooks/nvoci").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "hooks/nvoci").with_suffix("").parts)
        source = path.read_text()
        # `Hook` of nvoci.hook.table is a subcommand, that of discover.model a task: neither is written anywhere.
        if "from nvoci.cdi.model import" in source or name in {"oci.hooksd", "generate.hooks"} or '"args"' in source:
            found[name] = source
    return found


def test_entries_are_made_in_a_few_places_and_each_gives_an_environment() -> None:
    seen: dict[str, set[str]] = {"entry": set(), "dict": set()}
    for name, source in _modules().items():
        for function, what in constructions(source):
            if what == "dict" or name.startswith(("oci.", "generate.hooks", "cdi.document", "ctl.")):
                seen[what].add(f"{name}:{function}")
    assert seen["entry"] == set(MAKERS)
    assert seen["dict"] == set(WRITERS)


def test_a_new_place_would_be_found() -> None:
    assert list(constructions("def f():\n    return Hook('prestart', path, args)")) == [("f", "entry")]
    assert list(constructions("def f():\n    return {'path': p, 'args': a}")) == [("f", "dict")]


# -- what -------------------------------------------------------------------------------------------------------------

CALLS = [
    Call("create-symlinks", links=(Link("a", "/b"), Link("c", "/d", "/dev/nvidia0"))),
    *[
        Call(name, ("/a",) if name in {"chmod", "update-ldcache"} else ("--x=1",))
        for name in HOOKS
        if name != "create-symlinks"
    ],
]


@pytest.mark.parametrize("path", ["/usr/bin/nvidia-cdi-hook", "/usr/bin/nvidia-ctk"])
@pytest.mark.parametrize("form", ["separate", "together"])
def test_each_hook_of_generate(path: str, form: str) -> None:
    hooks = Hooks(GenerateOptions(hook_path=path, enabled_hooks=("all", *HOOKS)))
    for call in CALLS:
        got: list[Hook] = getattr(hooks, form)([call])
        assert all(hook.env for hook in got)
    assert getattr(hooks, form)(CALLS)


STYLES: dict[str, dict[str, Any]] = {
    "reference": {}, "merged": {"hooks_form": "merged"}, "management": {"mode": "management"},
}  # fmt: skip


@pytest.mark.parametrize("form", text.FORMATS)
@pytest.mark.parametrize("style", STYLES)
def test_each_specification(style: str, form: str) -> None:
    """As text in its own format, read by a stranger."""
    gpus = (gpu(0), gpu(1, mig_capable=True, mig_enabled=True, mig_devices=[mig(1, 0)]))
    for named in made(found(*gpus), "nvml", **STYLES[style]).specs:
        written = text.dumps(named.spec, form)
        check(json.loads(written) if form == "json" else yaml.safe_load(written))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_each_template(path: Path) -> None:
    check(json.loads(path.read_text()))


@pytest.mark.parametrize("name", [path.name.split("-nvoci-")[1].removesuffix(".json.in") for path in TEMPLATES])
def test_each_entry_that_a_command_makes_of_a_template(name: str) -> None:
    _, template = entries.read_template(name, "/usr/bin/nvidia-cdi-hook")
    if name == prestartentry.NAME:
        made_of = prestartentry.fill_in(template, ALWAYS, ["prestart"], debug=True)
    else:
        made_of = entries.fill_in(template, ["--x", "y"], ALWAYS, ["createRuntime"])
    assert made_of.origin()
    check(json.loads(hooksd.render(made_of)))


def test_every_hook_that_is_not_hidden_has_a_template() -> None:
    names = {path.name.split("-nvoci-")[1].removesuffix(".json.in") for path in TEMPLATES}
    assert names >= {name for name, hook in table.HOOKS.items() if not hook.hidden}


@pytest.mark.parametrize("env", [(), ("A=b",)], ids=["without", "with"])
def test_an_entry_made_of_anybodys_specification(env: tuple[str, ...]) -> None:
    """One that the author of a specification left out is given."""
    hook = {"hookName": "createContainer", "path": "/usr/bin/x", "args": ["x"], "env": list(env)}
    device = {"name": "0", "containerEdits": {"hooks": [hook]}}
    spec = {"cdiVersion": "0.5.0", "kind": "a/b", "devices": [device]}
    source = cdispec.Source("/etc/cdi/x.json", text.loads(json.dumps(spec).encode()))
    made_of = cdispec.entries(source, ["0"], ALWAYS)
    assert made_of
    for _, entry in made_of:
        check(json.loads(hooksd.render(entry)))


def test_an_entry_without_is_not_written(tmp_path: Path) -> None:
    bare = hooksd.Entry("/usr/bin/x", ["x"], [], ALWAYS, ["prestart"])
    with pytest.raises(HookError, match=r"hook\.env"):
        hooksd.write(str(tmp_path), "x", bare, regex.check)
    assert list(tmp_path.iterdir()) == []


def test_the_oracle_finds_one_that_has_none_once_empty_lists_are_gone() -> None:
    with pytest.raises(AssertionError):
        check({"hook": {"path": "/a", "args": ["a"], "env": []}, "stages": ["prestart"]})
    with pytest.raises(AssertionError):
        check({"containerEdits": {"hooks": [{"hookName": "createContainer", "path": "/a"}]}})
    with pytest.raises(AssertionError):
        check({"hooks": {"prestart": [{"path": "/a", "args": ["a"], "env": ["LD_PRELOAD=/x"]}]}})


# -- documents and scripts --------------------------------------------------------------------------------------------

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "oci-hooks.d/README.md"]


def json_in(page: str) -> Iterator[Any]:
    """Every piece of a page that is a JSON object."""
    decoder = json.JSONDecoder()
    at = page.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(page, at)
        except ValueError:
            end = at + 1
        else:
            yield value
        at = page.find("{", end)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_example_of_a_page_is_without(path: Path) -> None:
    for value in json_in(path.read_text()):
        if any(True for _ in hooks_in(value)):
            check(value)


def test_no_script_writes_one_without() -> None:
    """A dict with `path` and `args` has an `env` that is a list with something in it."""
    seen = 0
    for path in sorted((ROOT / "scripts").iterdir()):
        source = path.read_text(errors="replace") if path.is_file() else ""
        if path.suffix != ".py" and not re.match(r"#!.*python", source):
            continue
        for node in ast.walk(ast.parse(source)):
            pairs = zip(node.keys, node.values) if isinstance(node, ast.Dict) else ()
            keys = {k.value: v for k, v in pairs if isinstance(k, ast.Constant)}
            if {"path", "args"} <= set(keys):
                env = keys.get("env")
                assert isinstance(env, ast.List), f"{path.name}:{node.lineno}"
                assert env.elts
                seen += 1
    assert seen >= 3
