"""The command line's rules, compared with the C library's own argp on the same tables."""

from __future__ import annotations

import random

import pytest
from lib import argp

from nvoci.prestart import clihelp, clioptions
from nvoci.prestart.cliargs import Command, Shown, UsageError, read

COMMANDS = {command.name: command for command in (clioptions.MAIN, *clioptions.COMMANDS.values())}


def ours(command: Command, words: list[str]) -> tuple[int, str, str]:
    """Exit status, stdout, stderr, as the program of lib.argp gives them."""
    told: list[str] = []
    try:
        rest = read(command, words, lambda name, value: told.append(name if value is None else f"{name}={value}"))
        told += [f"={word}" for word in rest[: None if command.commands else bool(command.words)]]
        if not command.words and rest:
            raise UsageError(command, "Too many arguments")
        if command.words and (not rest or (len(rest) > 1 and not command.commands)):
            raise UsageError(command)
    except Shown as e:
        text = {"help": clihelp.page, "usage": clihelp.usage}.get(e.what, lambda _: "VERSION\n")(command)
        return 0, "".join(f"{line}\n" for line in told) + text, ""
    except UsageError as e:
        message = f"{command.name}: {e.message}\n" if e.message else ""
        return 1, "".join(f"{line}\n" for line in told), message + clihelp.hint(command, not e.message) + "\n"
    return 0, "".join(f"{line}\n" for line in told), ""


WORDS: dict[str, list[list[str]]] = {
    "nvidia-container-cli": [
        [], ["info"], ["-kn", "info", "--csv"], ["-dFILE", "list"], ["-d", "FILE", "list"], ["--debug", "-k", "list"],
        ["--deb=x=y", "list"], ["--debug=", "list"], ["-u", "1:2", "info"], ["-u1:2", "info"], ["--user", "info"],
        ["--user=", "info"], ["--user=0:0", "info"], ["-uk", "info"], ["-ku", "info"], ["-knu1", "info"], ["--us"],
        ["--no"], ["--no-p", "info"], ["--no-c", "info"], ["--load=1"], ["-x"], ["-kx"], ["--x"], ["--x=1"], ["-d"],
        ["--debug"], ["-r"], ["-kr"], ["--", "info"], ["-k", "--", "-k"], ["-", "x"], ["--program-name=x", "info"],
        ["--prog", "x", "info"], ["--p"], ["-?"], ["--help"], ["--h"], ["--usage"], ["--version"], ["-V"],
        ["-kV", "-x"], ["-k?"], ["--help=1"], ["--version", "-x"], ["-x", "--version"], ["", "x"], ["-k", ""], ["--"],
    ],
    "nvidia-container-cli info": [
        [], ["--csv"], ["--c"], ["--csv", "x"], ["x"], ["--csv=1"], ["-c"], ["-?"], ["-V"], ["--usage"], ["--", "x"],
        ["--", "--csv"],
    ],
    "nvidia-container-cli list": [
        [], ["-lbif"], ["-d", "0", "-d1", "--device=GPU-x"], ["--l"], ["--mig"], ["--mig-c=all"], ["--no"], ["--no-f"],
        ["--imex-channel", "0"], ["--imex=0,1"], ["-d"], ["x"], ["-l", "x", "-b"], ["--com"], ["-lz"], ["--help"],
    ],
    "nvidia-container-cli configure": [
        [], ["/r"], ["/r", "/s"], ["/r", "-c"], ["-cugDnv", "/r"], ["-p1", "/r"], ["-p", "-1", "/r"], ["--pid=", "/r"],
        ["--p=1", "/r"], ["--pi=1", "/r"], ["-r", "cuda>=12", "--require=brand=tesla", "/r"], ["--c", "/r"],
        ["--cuda-compat-mode", "mount", "/r"], ["--no-c", "/r"], ["--no-cg", "/r"], ["--u", "/r"], ["--ut", "/r"],
        ["--", "/r", "-c"], ["/r", "--", "-c"], ["/r", "--", ], ["-c", "--ldconfig=@/sbin/ldconfig", "/r", "--utility"],
        ["/r", "-x"], ["-?"], ["--usage"], ["/r", "-V"], ["-dv", "/r"], ["-vd", "/r"], ["--v", "/r"], ["--vi", "/r"],
    ],
}  # fmt: skip


@argp.needs_argp
@pytest.mark.parametrize("name", COMMANDS)
def test_it_reads_a_command_line_as_argp_does(name: str) -> None:
    command = COMMANDS[name]
    for words in WORDS[name]:
        theirs = argp.run(command, words)
        assert ours(command, words) == (theirs.returncode, theirs.stdout, theirs.stderr), words


@argp.needs_argp
@pytest.mark.parametrize("name", COMMANDS)
def test_it_reads_made_up_command_lines_as_argp_does(name: str) -> None:
    command, made = COMMANDS[name], random.Random(name)
    letters = "".join(option.key for option in command.options) + "?xz-="
    for _ in range(60):
        words = []
        for _ in range(made.randint(1, 4)):
            option = made.choice([each for each in command.options if not each.hidden])
            long = "--" + option.name[: made.randint(1, len(option.name))] + made.choice(["", "", "=", "=v", "=-a=b"])
            short = "-" + "".join(made.choices(letters, k=made.randint(1, 4)))
            words.append(made.choice([long, long, short, short, "word", "-", "--", ""]))
        theirs = argp.run(command, words)
        assert ours(command, words) == (theirs.returncode, theirs.stdout, theirs.stderr), words


def test_what_comes_from_outside_is_printable_in_a_message() -> None:
    for words in (["--x\n\x1b[2J"], ["-\x07"], ["--" + "x" * 100_000]):
        with pytest.raises(UsageError) as caught:
            read(clioptions.MAIN, words, lambda name, value: None)
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 300
