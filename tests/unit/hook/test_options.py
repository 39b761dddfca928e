"""The hook programs' own command line, as the reference tools read theirs."""

from __future__ import annotations

from typing import Any

import pytest

from nvoci.errors import HookError
from nvoci.hook import options, table
from nvoci.hook.table import FLAG, LIST, NUMBER, TEXT, Hook, Option

HOOK = Hook("h", "", "", (Option("list", LIST, ""), Option("text", TEXT, "", default="d"), Option("flag", FLAG, ""),
                          Option("number", NUMBER, "")))  # fmt: skip
DEFAULTS: dict[str, Any] = {"list": [], "text": "d", "flag": False, "number": 0.0}

GOOD: dict[str, tuple[list[str], dict[str, Any]]] = {
    "nothing": ([], {}),
    "two dashes": (["--text", "a"], {"text": "a"}),
    "one dash": (["-text", "a"], {"text": "a"}),
    "equals": (["--text=a=b"], {"text": "a=b"}),
    "one dash and equals": (["-text=a"], {"text": "a"}),
    "empty value": (["--text="], {"text": ""}),
    "empty word as value": (["--text", ""], {"text": ""}),
    "last text wins": (["--text", "a", "--text", "b"], {"text": "b"}),
    "value that looks like a flag": (["--text", "--flag"], {"text": "--flag"}),
    "value of two dashes": (["--text", "--", "--flag"], {"text": "--", "flag": True}),
    "one dash as value": (["--text", "-"], {"text": "-"}),
    "list repeats": (["--list", "a", "--list", "b"], {"list": ["a", "b"]}),
    "list splits at commas": (["--list", "a,b", "--list=c"], {"list": ["a", "b", "c"]}),
    "list strips white space": (["--list", " a , b\t"], {"list": ["a", "b"]}),
    "list keeps empty parts": (["--list", ",a,"], {"list": ["", "a", ""]}),
    "list of one empty value": (["--list", ""], {"list": [""]}),
    "text is not split": (["--text", "a,b "], {"text": "a,b "}),
    "flag": (["--flag"], {"flag": True}),
    "flag does not take the next word": (["--flag", "false"], {"flag": True}),
    "flag=false": (["--flag=false"], {"flag": False}),
    "flag=T": (["--flag=T"], {"flag": True}),
    "flag off again": (["--flag", "--flag=0"], {"flag": False}),
    "number": (["--number", "2.5"], {"number": 2.5}),
    "number at the limit": (["--number", "600"], {"number": 600.0}),
    "other words are passed over": (["x", "--flag", "y", "-", ""], {"flag": True}),
    "two dashes end the options": (["--", "--flag", "--unknown"], {}),
}


@pytest.mark.parametrize(("words", "changed"), GOOD.values(), ids=GOOD)
def test_options_of_a_hook(words: list[str], changed: dict[str, Any]) -> None:
    assert options.parse_hook(HOOK, words) == {**DEFAULTS, **changed}


BAD: dict[str, tuple[list[str], str]] = {
    "unknown": (["--bar"], "h: flag provided but not defined: `--bar`"),
    "unknown with a value": (["--bar=1"], "not defined: `--bar=1`"),
    "unknown with one dash": (["-b"], "not defined: `-b`"),
    "unknown behind good ones": (["--flag", "x", "--bar"], "not defined: `--bar`"),
    "a prefix is not enough": (["--tex", "a"], "not defined"),
    "another case": (["--Text", "a"], "not defined"),
    "three dashes": (["---text", "a"], "not defined"),
    "unknown with control characters": (["--b\n\x1b"], r"not defined: `--b\n\x1b`"),
    "no value left": (["--text"], "flag needs an argument: `--text`"),
    "list without a value": (["--list", "a", "--list"], "flag needs an argument: `--list`"),
    "flag that is no boolean": (["--flag=maybe"], "could not parse `maybe` as bool value from --flag"),
    "flag with an empty boolean": (["--flag="], "could not parse `` as bool"),
    "flag yes": (["--flag=yes"], "could not parse `yes`"),
    "a NUL": (["--text", "a\0b"], "`--text` holds a NUL"),
    **{f"number {text!r}": (["--number", text], "is not a number of seconds")
       for text in ("", "x", "-1", "0", "0.0", "601", "1e2", "inf", "nan", "1.2.3", ".", "\u0661", "1_0", " 1",
                    "0x1", "9" * 400)},
}  # fmt: skip


@pytest.mark.parametrize(("words", "reason"), BAD.values(), ids=BAD)
def test_a_wrong_option_is_an_error_that_names_it(words: list[str], reason: str) -> None:
    with pytest.raises(HookError) as caught:
        options.parse_hook(HOOK, words)
    assert reason in caught.value.line()
    assert caught.value.line().isprintable()


@pytest.mark.parametrize("word", ["--help", "-h", "-help", "--h"])
def test_help_of_one_hook(word: str) -> None:
    with pytest.raises(options.Help) as caught:
        options.parse_hook(HOOK, ["--text", "a", word])
    assert caught.value.hook is HOOK


def test_options_of_one_parse_do_not_leak_into_the_next() -> None:
    options.parse_hook(HOOK, ["--list", "a"])
    assert options.parse_hook(HOOK, [])["list"] == []


@pytest.mark.parametrize("hook", [*table.HOOKS.values(), table.RUN], ids=lambda h: h.name)
def test_every_option_of_every_hook_is_understood(hook: Hook) -> None:
    words = {LIST: "a,b", TEXT: "a", NUMBER: "3"}
    expected = {LIST: ["a", "b"], TEXT: "a", NUMBER: 3.0, FLAG: True}
    for option in hook.options:
        given = [f"--{option.name}"] if option.kind == FLAG else [f"--{option.name}", words[option.kind]]
        assert options.parse_hook(hook, given)[option.name] == expected[option.kind]


# -- before the subcommand -----------------------------------------------------------------------------------------

GLOBALS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "nothing": ([], {}),
    "a hook": (["foo", "--bar"], {"words": ["foo", "--bar"]}),
    "debug": (["--debug", "foo"], {"debug": True, "words": ["foo"]}),
    "d": (["-d", "foo"], {"debug": True, "words": ["foo"]}),
    "debug=false": (["--debug=false", "foo"], {"words": ["foo"]}),
    "quiet": (["--quiet", "foo", "--debug"], {"quiet": True, "words": ["foo", "--debug"]}),
    "both": (["-d", "-quiet", "foo"], {"debug": True, "quiet": True, "words": ["foo"]}),
    "version": (["--version"], {"version": True}),
    "v": (["-v"], {"version": True}),
    "features": (["--features"], {"features": True}),
    "unknown flag": (["--bar"], {}),
    "unknown flag, then a hook": (["--bar", "foo"], {}),
    "unknown flag behind a known one": (["-d", "--bar", "foo"], {"debug": True}),
    "one dash is a word": (["-", "foo"], {"words": ["-", "foo"]}),
    "an empty word is a word": (["", "foo"], {"words": ["", "foo"]}),
}


def _fields(found: options.Globals) -> dict[str, Any]:
    return {name: getattr(found, name) for name in options.Globals.__slots__}


@pytest.mark.parametrize(("words", "changed"), GLOBALS.values(), ids=GLOBALS)
def test_global_flags(words: list[str], changed: dict[str, Any]) -> None:
    assert _fields(options.parse_globals(words, {})) == {**_fields(options.Globals()), **changed}


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_of_the_program(word: str) -> None:
    with pytest.raises(options.Help) as caught:
        options.parse_globals([word, "foo"], {})
    assert caught.value.hook is None


ENVIRONMENTS: dict[str, tuple[dict[bytes, bytes], tuple[bool, bool]]] = {
    "none": ({}, (False, False)),
    "ctk debug": ({b"NVIDIA_CTK_DEBUG": b"true"}, (True, False)),
    "cdi debug": ({b"NVIDIA_CDI_DEBUG": b"1"}, (True, False)),
    "first set wins, false": ({b"NVIDIA_CTK_DEBUG": b"false", b"NVIDIA_CDI_DEBUG": b"true"}, (False, False)),
    "first set wins, true": ({b"NVIDIA_CTK_DEBUG": b"t", b"NVIDIA_CDI_DEBUG": b"banana"}, (True, False)),
    "quiet": ({b"NVIDIA_CTK_QUIET": b"T"}, (False, True)),
    "cdi quiet": ({b"NVIDIA_CDI_QUIET": b"TRUE"}, (False, True)),
    "empty": ({b"NVIDIA_CTK_DEBUG": b""}, (False, False)),
    "unrelated": ({b"NVIDIA_DEBUG": b"x", b"DEBUG": b"x"}, (False, False)),
}


@pytest.mark.parametrize(("env", "expected"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_environment_switches(env: dict[bytes, bytes], expected: tuple[bool, bool]) -> None:
    found = options.parse_globals(["foo"], env)
    assert (found.debug, found.quiet) == expected


@pytest.mark.parametrize("name", [b"NVIDIA_CTK_DEBUG", b"NVIDIA_CDI_DEBUG", b"NVIDIA_CTK_QUIET", b"NVIDIA_CDI_QUIET"])
@pytest.mark.parametrize("value", [b"banana", b"yes", b"2", b" true", b"tRuE", b"\xff"])
def test_a_switch_that_is_no_boolean_is_an_error_that_names_it(name: bytes, value: bytes) -> None:
    with pytest.raises(HookError, match=f"as bool value from environment variable {name.decode()}"):
        options.parse_globals(["noop"], {name: value})


def test_a_flag_wins_over_its_switch() -> None:
    assert options.parse_globals(["--debug=false"], {b"NVIDIA_CTK_DEBUG": b"true"}).debug is False


# -- run -----------------------------------------------------------------------------------------------------------

RUNS: dict[str, tuple[list[str], tuple[list[str], list[list[str]]]]] = {
    "nothing": ([], ([], [])),
    "options only": (["--strict"], (["--strict"], [])),
    "one": (["--", "a", "--x"], ([], [["a", "--x"]])),
    "two with options": (["-s", "--", "a", "--x", "--", "b"], (["-s"], [["a", "--x"], ["b"]])),
    "empty groups are left out": (["--", "--", "a", "--", "--"], ([], [["a"]])),
    "a hook before the first dashes is no hook": (["a", "--", "b"], (["a"], [["b"]])),
}


@pytest.mark.parametrize(("words", "expected"), RUNS.values(), ids=RUNS)
def test_run_is_taken_apart_at_two_dashes(words: list[str], expected: tuple[list[str], list[list[str]]]) -> None:
    assert options.split_run(words) == expected
