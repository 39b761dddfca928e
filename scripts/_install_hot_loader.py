"""The program inside `nvoci_hot.pyc`, whose data scripts/_install_hot.py adds as a call of `start`.

Performance contract: runs at every container start, and is compiled into the bundle without this text. The modules
every hook needs are executed one after the other, each after those it imports, so that no import statement of theirs
comes to the import system (25 us a module, its file not counted). The others wait here for the import that names them.
"""

from __future__ import annotations

import sys
from _frozen_importlib import ModuleSpec
from marshal import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType

    # Path, the modules it needs first, marshalled code.
    _Late = tuple[str, tuple[str, ...], bytes]

_Module = type(sys)


class _Finder:
    """Stands in sys.meta_path until imports are sealed."""

    __slots__ = ("found",)

    def __init__(self, found: dict[str, _Late]) -> None:
        self.found = found

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """For sys.meta_path."""
        return ModuleSpec(name, self, origin=self.found[name][0]) if name in self.found else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module, executed already: in this way it is made as those of `start` are, and so is what it needs."""
        for name in self.found[spec.name][1]:
            if name not in sys.modules:
                self._define(name)
        return self._define(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Done in create_module."""

    def _define(self, name: str) -> ModuleType:
        path, _, code = self.found[name]
        return _define(name, path, loads(code))  # noqa: S302  # a part of the file that is running


def start(core: tuple[tuple[str, str, CodeType], ...], rest: tuple[tuple[str, _Late], ...]) -> None:
    """Execute `core` (name, path, code of each, in order) and offer `rest`."""
    for name, path, code in core:
        _define(name, path, code)
    sys.meta_path.insert(0, _Finder(dict(rest)))


def _define(name: str, path: str, code: CodeType) -> ModuleType:
    """What the import system does for a module with a source file, less `__spec__`, `__loader__`, `__cached__`."""
    module = sys.modules[name] = _Module(name)
    space = module.__dict__
    parent, _, tail = name.rpartition(".")
    space["__file__"] = path
    space["__package__"] = parent
    if path.endswith("/__init__.py"):
        space["__package__"] = name
        space["__path__"] = [path[:-12]]
    try:
        exec(code, space)
    except BaseException:
        del sys.modules[name]  # so that a plain import of it can be tried
        raise
    if parent:
        setattr(sys.modules[parent], tail, module)
    return module
