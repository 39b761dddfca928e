"""`nvidia-ctk cdi generate`: what it asks the generator for, what it refuses, and which program hooks call."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from unit.ctl.ctktools import DONE, FOUND, YAML, Ctk, Generator, ctk, generate, generator, lines, only_a_hook

from nvoci.errors import HookError
from nvoci.generate.options import GenerateOptions

pytestmark = pytest.mark.usefixtures("only_a_hook")
__all__ = ["ctk", "generator", "only_a_hook"]

HOOK = "/bin/true"  # merged hooks call only what is there
CSV = "/etc/nvidia-container-runtime/host-files-for-container.d"


def test_without_a_flag(ctk: Ctk, generator: Generator, tmp_path: Path) -> None:
    done = generate(ctk)
    assert (done.rc, done.stdout, lines(done.stderr)) == (0, YAML, [FOUND, DONE])
    assert generator.last == GenerateOptions(
        vendor="nvidia.com",
        class_="gpu",
        hook_path=f"{tmp_path}/bin/nvidia-cdi-hook",
        csv_files=(f"{CSV}/devices.csv", f"{CSV}/drivers.csv", f"{CSV}/l4t.csv"),
        path=(f"{tmp_path}/bin",),
    )


def test_only_what_is_wrong_is_told_if_quiet(ctk: Ctk, generator: Generator) -> None:
    generator.warnings = ("careful",)
    assert ctk("--quiet", "cdi", "generate").stderr == ""
    assert lines(ctk("cdi", "generate", "--mode=nvml").stderr) == ["warning: careful", DONE]


G = "NVIDIA_CTK_CDI_GENERATE_"
# names of the flag, its variable, a value for each, the option it is, the value there
FLAGS: list[tuple[str, str, str, str, Any]] = [
    ("mode discovery-mode", f"{G}MODE", "CSV", "mode", "csv"),
    ("driver-root", "NVIDIA_CTK_DRIVER_ROOT", "/d", "driver_root", "/d"),
    ("dev-root", "NVIDIA_CTK_DEV_ROOT", "/e", "dev_root", "/e"),
    ("device-name-strategy", f"{G}DEVICE_NAME_STRATEGIES", "uuid, type-index", "name_strategies",
     ("uuid", "type-index")),
    ("device-id device-ids device devices", f"{G}DEVICE_IDS", "0,GPU-1", "device_ids", ("0", "GPU-1")),
    ("vendor cdi-vendor", f"{G}VENDOR", "a.com", "vendor", "a.com"),
    ("class cdi-class", f"{G}CLASS", "b", "class_", "b"),
    ("nvidia-cdi-hook-path nvidia-ctk-path", "NVIDIA_CTK_CDI_HOOK_PATH", "/h/x", "hook_path", "/h/x"),
    ("ldconfig-path", f"{G}LDCONFIG_PATH", "/l", "ldconfig_path", "/l"),
    ("config-search-path", f"{G}CONFIG_SEARCH_PATHS", "/a,/b", "config_search_path", ("/a", "/b")),
    ("library-search-path", f"{G}LIBRARY_SEARCH_PATHS", "/a,/b", "library_search_path", ("/a", "/b")),
    ("csv.file", f"{G}CSV_FILES", "/a.csv", "csv_files", ("/a.csv",)),
    ("csv.ignore-pattern", f"{G}CSV_IGNORE_PATTERNS", "**/x,/y/*", "csv_ignore", ("**/x", "/y/*")),
    ("csv.compat-container-root", f"{G}CSV_CONTAINER_COMPAT_ROOT", "/c", "csv_compat_root", "/c"),
    ("disable-hook disable-hooks", f"{G}DISABLED_HOOKS", "all", "disabled_hooks", ("all",)),
    ("enable-hook enable-hooks", f"{G}ENABLED_HOOKS", "chmod", "enabled_hooks", ("chmod",)),
    ("feature-flag feature-flags", f"{G}FEATURE_FLAGS", "a,b", "feature_flags", ("a", "b")),
    ("hooks", "", "merged", "hooks_form", "merged"),
    ("max-cdi-version", "", "v0.5.0", "max_cdi_version", "v0.5.0"),
]
IDS = [row[0].split()[0] for row in FLAGS]


@pytest.mark.parametrize(("names", "variable", "text", "option", "value"), FLAGS, ids=IDS)
def test_a_flag_by_every_name_and_its_variable(
    ctk: Ctk, generator: Generator, monkeypatch: pytest.MonkeyPatch, names: str, variable: str, text: str, option: str,
    value: Any,
) -> None:  # fmt: skip
    base = ["--nvidia-cdi-hook-path", HOOK] if option != "hook_path" else []
    generate(ctk, *base)
    plain = generator.last
    assert getattr(plain, option) != value
    for name in names.split():
        for words in ([f"--{name}", text], [f"--{name}={text}"], [f"-{name}", text], [f"-{name}={text}"]):
            assert generate(ctk, *base, *words).rc == 0
            assert generator.last == dataclasses.replace(plain, **{option: value})
    if variable:
        monkeypatch.setenv(variable, text)
        assert generate(ctk, *base).rc == 0
        assert generator.last == dataclasses.replace(plain, **{option: value})
        monkeypatch.setenv(variable, "")
        generate(ctk, *base)
        assert generator.last == plain


@pytest.mark.parametrize(("words", "value"), [((), False), (("--no-all-device",), True), (("-no-all-device=t",), True),
                         (("--no-all-device=0",), False)], ids=str)  # fmt: skip
def test_no_all_device(ctk: Ctk, generator: Generator, words: tuple[str, ...], value: bool) -> None:
    generate(ctk, *words)
    assert generator.last.no_all_device is value


def test_no_all_device_by_its_variable_and_a_word_against_it(
    ctk: Ctk, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{G}NO_ALL_DEVICE", "TRUE")
    generate(ctk)
    assert generator.last.no_all_device
    generate(ctk, "--no-all-device=false")
    assert not generator.last.no_all_device


LISTS = {
    "repeated and split": (["--device-id", "0,1", "--devices", " 2 "], ("0", "1", "2")),
    "the default does not count": (["--device", "0"], ("0",)),
    "empty": (["--device", ""], ("",)),
    "empty parts": (["--device=0,,1"], ("0", "", "1")),
    "a value that starts with a dash": (["--device", "-1"], ("-1",)),
    "words between": (["x", "--device", "0", "y", "--device", "1", "--", "--device", "2"], ("0", "1")),
}


@pytest.mark.parametrize(("words", "value"), LISTS.values(), ids=LISTS)
def test_a_flag_that_lists(ctk: Ctk, generator: Generator, words: list[str], value: tuple[str, ...]) -> None:
    assert generate(ctk, *words).rc == 0
    assert generator.last.device_ids == value


def test_a_word_counts_before_the_environment(
    ctk: Ctk, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{G}DEVICE_IDS", "0,1")
    monkeypatch.setenv(f"{G}MODE", "banana")
    generate(ctk, "--device", "2", "--mode", "wsl")
    assert (generator.last.device_ids, generator.last.mode) == (("2",), "wsl")


def test_roots_are_made_absolute(ctk: Ctk, generator: Generator, tmp_path: Path) -> None:
    generate(ctk, "--driver-root", "d", "--dev-root", "../e")
    assert (generator.last.driver_root, generator.last.dev_root) == (f"{tmp_path}/d", f"{tmp_path}/../e")


def test_the_driver_root_of_the_configuration(
    ctk: Ctk, generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c/nvidia-container-runtime/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / f"{name}.toml").write_text(f'[nvidia-container-cli]\nroot = "/{name[0]}"\n')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "c"))
    generate(ctk)
    assert generator.last.driver_root == "/c"
    monkeypatch.setenv("NVIDIA_CTK_CONFIG_FILE_PATH", "b.toml")
    generate(ctk)
    assert generator.last.driver_root == "/b"
    monkeypatch.setenv("NVIDIA_CTK_CONFIG", "gone.toml")
    generate(ctk)
    assert generator.last.driver_root == ""
    ctk("--config", "a.toml", "cdi", "generate")
    assert generator.last.driver_root == "/a"
    monkeypatch.setenv("NVIDIA_CTK_DRIVER_ROOT", "/e")
    ctk("--config", "a.toml", "cdi", "generate")
    assert generator.last.driver_root == "/e"


def test_a_configuration_that_is_none_is_an_error_only_if_it_is_needed(
    ctk: Ctk, generator: Generator, tmp_path: Path
) -> None:
    (tmp_path / "x.toml").write_text("[")
    done = ctk("--config", "x.toml", "cdi", "generate")
    assert (done.rc, len(lines(done.stderr))) == (1, 1)
    assert "read config x.toml: not valid TOML" in done.stderr
    assert ctk("--config", "x.toml", "cdi", "generate", "--driver-root", "/").rc == 0


# -- what is refused -----------------------------------------------------------------------------------------------

# in the order in which they are looked at
BAD = {
    "--format=xml": "invalid output format: xml",
    "--mode=banana": "invalid discovery mode: banana",
    "--device-name-strategy=index,Index": "invalid device name strategy: Index",
    "--vendor=-a": "invalid CDI vendor name: ",
    "--class=a/b": "invalid CDI class name: ",
    "--enable-hook=chmod,all": "enabling all hooks is not supported",
}


@pytest.mark.parametrize("word", BAD)
def test_a_bad_value_is_one_line_and_nothing_is_asked(ctk: Ctk, generator: Generator, word: str) -> None:
    (line,) = lines(generate(ctk, word).stderr)
    assert line.startswith(f"error: {BAD[word]}")
    assert (generator.asked, generate(ctk, word).rc) == ([], 1)


def test_the_first_bad_value_is_told(ctk: Ctk, generator: Generator) -> None:
    words = list(BAD)
    for at, word in enumerate(words):
        (line,) = lines(generate(ctk, *reversed(words[at:])).stderr)
        assert line.startswith(f"error: {BAD[word]}")


MORE_BAD = {
    "--vendor=": "invalid CDI vendor name: it is empty",
    "--cdi-class=": "invalid CDI class name: it is empty",
    "--hooks=both": "invalid form of hooks: both",
    "--max-cdi-version=2.0.0": 'invalid version "2.0.0"',
    "--output=a/": "write CDI spec a/: not the name of a file",
    "--output=a\x1b": "is no name for a specification",
}


@pytest.mark.parametrize("word", MORE_BAD)
def test_our_own_refusals(ctk: Ctk, generator: Generator, word: str) -> None:
    (line,) = lines(generate(ctk, word).stderr)
    assert MORE_BAD[word] in line
    assert generator.asked == []


def test_a_refusal_of_the_generator_is_one_line(ctk: Ctk, generator: Generator, tmp_path: Path) -> None:
    generator.refusal = HookError("find the driver", "install it")
    done = generate(ctk, "--output", "x.yaml")
    assert (done.rc, done.stdout, lines(done.stderr)) == (1, "", ["error: find the driver (install it)"])
    assert not (tmp_path / "x.yaml").exists()


def test_the_device_none_turns_off_all(ctk: Ctk, generator: Generator) -> None:
    told = lines(generate(ctk, "--device-id", "none").stderr)
    assert told == ["warning: Disabling generation of 'all' device", FOUND, DONE]
    assert generator.last.no_all_device
    assert lines(generate(ctk, "--device-id", "none", "--no-all-device").stderr) == [FOUND, DONE]


# -- the hook program ----------------------------------------------------------------------------------------------


def test_a_hook_program_that_is_not_found_is_where_packages_have_it(
    ctk: Ctk, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("nvoci.ctl.hookpath.PATH", ())
    for given, name in (("", "nvidia-cdi-hook"), ("nvidia-ctk", "nvidia-ctk")):
        told = lines(generate(ctk, f"--nvidia-cdi-hook-path={given}").stderr)
        assert told[0].startswith(f"warning: Failed to locate {name}: ")
        assert generator.last.hook_path == f"/usr/bin/{name}"


def test_merged_hooks_call_the_program_that_is_installed_with_this_one(
    ctk: Ctk, generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir(mode=0o755)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "own/nvidia-ctk")])
    done = generate(ctk, "--hooks", "merged")
    (line,) = lines(done.stderr)
    assert line.startswith(f"error: find nvidia-cdi-hook: not beside {tmp_path}/own/nvidia-ctk (name the program with")
    (tmp_path / "own/nvidia-cdi-hook").write_text("#!/bin/sh\n")
    (tmp_path / "own/nvidia-cdi-hook").chmod(0o755)
    assert generate(ctk, "--hooks", "merged").rc == 0
    assert generator.last.hook_path == f"{tmp_path}/own/nvidia-cdi-hook"
    generate(ctk, "--hooks", "merged", "--nvidia-cdi-hook-path", "nvidia-cdi-hook")
    assert generator.last.hook_path == f"{tmp_path}/bin/nvidia-cdi-hook"


UNSAFE = "use program {}: uid {}, mode 0777 (others can change what would run at each start)"


def test_a_given_program_is_taken_as_it_is_and_what_is_wrong_with_it_told(
    ctk: Ctk, generator: Generator, tmp_path: Path
) -> None:
    (tmp_path / "open").write_text("")
    (tmp_path / "open").chmod(0o777)
    uid = (tmp_path / "open").stat().st_uid
    for path, why in (
        ("/x/y", "use program /x/y: ENOENT (as long as it is not there no container "),
        (str(tmp_path / "open"), UNSAFE.format(tmp_path / "open", uid)),
    ):
        done = generate(ctk, "--nvidia-cdi-hook-path", path)
        told = lines(done.stderr)
        assert (done.rc, done.stdout, len(told), told[1:]) == (0, YAML, 3, [FOUND, DONE])
        assert told[0].startswith(f"warning: {why}")
        assert generator.last.hook_path == path


def test_merged_hooks_are_refused_a_program_that_is_not_there(ctk: Ctk, generator: Generator) -> None:
    for path, why in (("/x/y", "use program /x/y: ENOENT"), ("none", "find none: no such program in PATH")):
        done = generate(ctk, "--hooks", "merged", "--nvidia-cdi-hook-path", path)
        assert (done.rc, generator.asked) == (1, [])
        assert lines(done.stderr) == [f"error: {why} (name the program with --nvidia-cdi-hook-path)"]
