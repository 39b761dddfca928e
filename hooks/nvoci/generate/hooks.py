"""Which hooks a specification has, and in which form: one for each task, in the arguments of the reference tools, or
one for the whole container.

The second form is a call of our own program, `nvidia-cdi-hook run -- HOOK … -- HOOK …`, among the edits of all devices.
Links of one GPU become `--link-if`, made where that GPU's node is; so no device has a hook of its own, and a container
starts one process however many GPUs it gets.

Arguments are split at commas by whoever reads them, so a value with a comma in it cannot be said: it is left out, which
is a warning. Every hook has an environment: without one a runtime would give it its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvoci.cdi.model import Hook
from nvoci.errors import printable
from nvoci.generate.options import ALL
from nvoci.generate.parts import CHMOD, CREATE_SYMLINKS, HOOKS, UPDATE_LDCACHE, Call, Link

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nvoci.generate.options import GenerateOptions

_STAGE = "createContainer"
_ENV = ("NVIDIA_CTK_DEBUG=false",)
_MODE = "755"
_CTK = "nvidia-ctk"
_BETWEEN = "--"
_NEEDS_VALUES = (CHMOD, UPDATE_LDCACHE)


class Hooks:
    """Makes them as the options say. off: hooks that the mode does without, unless they are enabled by name. warnings:
    what was left out."""

    def __init__(self, options: GenerateOptions, off: Iterable[str] = ()) -> None:
        self._path = options.hook_path
        self._ldconfig = options.ldconfig_path
        self._disabled = {*options.disabled_hooks, *off, CHMOD}
        self._enabled = set(options.enabled_hooks)
        unknown = sorted({*options.disabled_hooks, *options.enabled_hooks} - {*HOOKS, ALL})
        self.warnings = [f"there is no hook `{printable(name)}` to enable or disable" for name in unknown]

    def allowed(self, name: str) -> bool:
        """Whether it is to be there at all."""
        if name in self._enabled:
            return True
        return name not in self._disabled and ALL not in self._disabled

    def separate(self, calls: Iterable[Call]) -> list[Hook]:
        """One for each."""
        return [self._hook([call.name, *self._words(call)]) for call in self._said(calls)]

    def together(self, calls: Iterable[Call]) -> list[Hook]:
        """One for all of them; none where nothing is left to do."""
        words = ["run"]
        for call in _merged(self._said(calls)):
            words += [_BETWEEN, call.name, *self._words(call)]
        return [self._hook(words)] if len(words) > 1 else []

    def _hook(self, words: Sequence[str]) -> Hook:
        name = self._path.rpartition("/")[2]
        return Hook(_STAGE, self._path, (name, *(["hook"] if name == _CTK else []), *words), _ENV)

    # -- what can be said ---------------------------------------------------------------------------------------------

    def _said(self, calls: Iterable[Call]) -> list[Call]:
        """Those that are allowed, with the values that an argument can hold; none that would have nothing to do."""
        found = []
        for call in calls:
            if not self.allowed(call.name):
                continue
            lists = call.name in _NEEDS_VALUES
            values = tuple(value for value in call.values if not lists or self._can_be_said(call.name, value))
            links = tuple(each for each in call.links if self._can_be_said(call.name, _link(each), each.node))
            if links or (call.name != CREATE_SYMLINKS and (values or not lists)):
                found.append(Call(call.name, values, links))
        return found

    def _can_be_said(self, name: str, value: str, node: str = "") -> bool:
        if "," not in value and "=" not in node and value == value.strip():
            return True
        warning = f"hook {name}: `{printable(value)}` is left out: no argument can say it (a comma, a space at its end)"
        if warning not in self.warnings:
            self.warnings.append(warning)
        return False

    # -- arguments ----------------------------------------------------------------------------------------------------

    def _words(self, call: Call) -> list[str]:
        if call.name == CREATE_SYMLINKS:
            return [word for each in call.links for word in ("--link-if" if each.node else "--link", _link(each))]
        if call.name == CHMOD:
            return ["--mode", _MODE, *_each("--path", call.values)]
        if call.name == UPDATE_LDCACHE:
            ldconfig = ["--ldconfig-path", self._ldconfig] if self._ldconfig else []
            return [*ldconfig, *_each("--folder", call.values)]
        return list(call.values)


def _each(flag: str, values: Iterable[str]) -> list[str]:
    return [word for value in values for word in (flag, value)]


def _link(link: Link) -> str:
    """The value of --link, or of --link-if."""
    return f"{link.node}={link.target}::{link.path}" if link.node else f"{link.target}::{link.path}"


def unconditional(call: Call) -> Call:
    """As a hook of a device's own, which is there only where the device is."""
    return Call(call.name, call.values, tuple(Link(each.target, each.path) for each in call.links))


def _merged(calls: Iterable[Call]) -> list[Call]:
    """One of each name, in the order in which they first come. Of several links at one path the last counts, as it
    would if they were made one after the other."""
    found: dict[str, Call] = {}
    for call in calls:
        before = found.get(call.name, Call(call.name))
        links = {(each.node, each.path): each for each in (*before.links, *call.links)}
        values = tuple(dict.fromkeys((*before.values, *call.values)))
        found[call.name] = Call(call.name, values, tuple(links.values()))
    return list(found.values())
