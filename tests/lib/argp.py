"""glibc's argp as the second witness of a command line: a program compiled from our own tables of options.

It prints one line for each option it reads, as JSON text in a form of its own: `name` or `name=value`, and `=word` for
a word that is no option; its help, usage and complaints are those of the C library.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Sequence

import pytest

from lib import session
from nvoci.prestart import cliargs
from nvoci.prestart.cliargs import Command

COMPILER = "gcc"
needs_argp = pytest.mark.skipif(
    not shutil.which(COMPILER) or not os.path.exists("/usr/include/argp.h"), reason="no compiler, or no argp of glibc"
)
_PROGRAM = """
#include <argp.h>
#include <stdio.h>
#include <string.h>
const char *argp_program_version = "VERSION";
static const char *names[] = {@NAMES@};
static error_t parse(int key, char *arg, struct argp_state *state) {
    if (key == ARGP_KEY_ARG) {
        if (@WORDS@ == 0) return ARGP_ERR_UNKNOWN;
        if (@WORDS@ == 1 && state->arg_num > 0) argp_usage(state);
        printf("=%s\\n", arg);
        if (@IN_ORDER@) {
            for (; state->next < state->argc; state->next++) printf("=%s\\n", state->argv[state->next]);
        }
        return 0;
    }
    if (key == ARGP_KEY_NO_ARGS && @WORDS@ > 0) argp_usage(state);
    if (key >= 256 && key < 256 + @COUNT@) { key -= 256; }
    else { const char *at = key > 0 && key < 256 ? strchr(@LETTERS@, key) : NULL; if (!at) return ARGP_ERR_UNKNOWN;
           key = @INDEX@[at - @LETTERS@]; }
    printf(arg ? "%s=%s\\n" : "%s\\n", names[key], arg);
    return 0;
}
static struct argp_option options[] = {@OPTIONS@ {0}};
static struct argp argp = {options, parse, @ARGS@, @DOC@, 0, 0, 0};
int main(int argc, char **argv) {
    argp_err_exit_status = 1;
    return argp_parse(&argp, argc, argv, @IN_ORDER@, NULL, NULL);
}
"""


@functools.cache
def program(command: Command) -> str:
    """Path of the program."""
    own = [option for option in command.options if option not in cliargs.DEFAULT]
    letters = [(number, option.key) for number, option in enumerate(own) if option.key]
    groups = []
    if command.commands:
        groups.append('{0, 0, 0, 0, "Commands:", -2},')
        for name, text in command.commands:
            groups.append(f"{{{_c(name)}, 0, 0, OPTION_DOC|OPTION_NO_USAGE, {_c(text)}, -2}},")
        groups.append('{0, 0, 0, 0, "Options:", -1},')
    for number, option in enumerate(own):
        key = f"{ord(option.key)}" if option.key else str(256 + number)
        flags = "OPTION_ARG_OPTIONAL" if option.optional else "0"
        argument = _c(option.argument) if option.argument else "0"
        groups.append(f"{{{_c(option.name)}, {key}, {argument}, {flags}, {_c(option.help)}, -1}},")
    filled = {
        "NAMES": ", ".join([_c(option.name) for option in own]),
        "COUNT": str(len(own)),
        "LETTERS": _c("".join([key for _, key in letters])),
        "INDEX": "((int[]){" + ", ".join([str(number) for number, _ in letters] or ["0"]) + "})",
        "OPTIONS": " ".join(groups),
        "ARGS": _c(command.words) if command.words else "0",
        "DOC": _c("\n\n".join(command.about)),
        "IN_ORDER": "ARGP_IN_ORDER" if command.commands else "0",
        "WORDS": "2" if command.commands else "1" if command.words else "0",
    }
    source = _PROGRAM
    for name, text in filled.items():
        source = source.replace(f"@{name}@", text)
    folder = session.new_dir("argp")
    (folder / "argp.c").write_text(source)
    subprocess.run([COMPILER, "-o", folder / "argp", folder / "argp.c"], check=True, timeout=60)
    return str(folder / "argp")


def _c(text: str) -> str:
    return json.dumps(text)


def run(command: Command, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """What the C library makes of it, under the command's name."""
    environ = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
    return subprocess.run(
        [command.name, *words], executable=program(command), capture_output=True, text=True, env=environ, timeout=10
    )
