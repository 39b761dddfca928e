"""Whether a document has the form of a CDI specification: fields that must be there, and types. The schema stands in
schema.json beside this file (JSON Schema draft-07), for editors and other validators too. It lets unknown fields pass,
and names, paths and numbers of any kind: `nvoci.cdi.document` and `nvoci.cdi.validate` look at those.

fastjsonschema turns a schema into code. It is given none but ours, which refers to nothing outside of itself.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from importlib import import_module

from nvoci.cdi import yamlscalar
from nvoci.cdi.error import FileError, SpecError, file_error
from nvoci.cdi.validate import MAX_PROBLEMS
from nvoci.errors import HookError
from nvoci.jsonfile import load_object, read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PATH = os.path.join(os.path.dirname(__file__), "schema.json")
MAX_COLLECTED = 20_000
"""Values in a document, above which only the first problem is told: each takes 5 KiB and 0.1 ms, and all may be
wrong."""
_STAGE = "read CDI schema"
_ANNOTATION = re.compile(r"((?:devices\[\d+\]\.)?annotations)\.(.*)", re.DOTALL)


def document() -> dict[str, Any]:
    """The schema. Raises SpecError.

    >>> document()["required"]
    ['cdiVersion', 'kind', 'devices']
    """
    try:
        return load_object(read_file(PATH, 1 << 20, _STAGE), _STAGE, PATH, "install nvoci anew")
    except HookError as e:
        raise file_error(_STAGE, PATH, e) from None


def problems(doc: object) -> list[SpecError]:
    """What is wrong with a document of dict, list, str, int, float, bool, None (and `Plain`), each with its place, but
    no more than `nvoci.cdi.validate.MAX_PROBLEMS`. Raises SpecError where fastjsonschema is not installed.

    >>> for problem in problems({"kind": "nvidia.com/gpu", "devices": [{"name": 0, "containerEdits": {}}]}):
    ...     print(problem)
    CDI: it has no `cdiVersion`
    CDI: devices[0].name: must be string
    """
    try:
        plain, count = _plain(doc)
    except RecursionError:
        return [SpecError("nested too deeply")]
    found = _errors(plain, False)
    if found and count <= MAX_COLLECTED:
        found = _errors(plain, True)
    return [_told(error) for error in found[:MAX_PROBLEMS]]


def _errors(plain: object, collect: bool) -> list[Any]:
    validator, invalid = _validator(collect)
    try:
        validator(plain)
    except invalid as error:
        return getattr(error, "errors", [error])
    return []


def _plain(value: object) -> tuple[object, int]:
    """The document with what YAML's scalars stand for where no field says it, and how many values it has."""
    if isinstance(value, yamlscalar.Plain):
        return yamlscalar.generic(value), 1
    if isinstance(value, dict):
        items = [(key, _plain(item)) for key, item in value.items()]
        return {str(key): item for key, (item, _) in items}, sum(count for _, (_, count) in items) + 1
    if isinstance(value, list):
        found = [_plain(item) for item in value]
        return [item for item, _ in found], sum(count for _, count in found) + 1
    return value, 1


@lru_cache(maxsize=2)
def _validator(collect: bool) -> tuple[Callable[[object], object], type[Exception]]:
    """What raises for a wrong document, and what it raises: with all `errors`, where fastjsonschema can do that."""
    try:
        fastjsonschema: Any = import_module("fastjsonschema")
    except ImportError:
        why, hint = "fastjsonschema is not installed", "install it, or do without the schema"
        raise FileError(_STAGE, why, hint=hint) from None
    options = {"fast_fail": False} if collect else {}
    try:
        made = fastjsonschema.compile(document(), use_default=False, **options)
    except TypeError:  # before 2.22 it has no such option
        made = fastjsonschema.compile(document(), use_default=False)
    return made, fastjsonschema.JsonSchemaException


def _told(error: Any) -> SpecError:
    """A JsonSchemaValueException: its `name` is the place, below `data`, and its message starts with that."""
    place = error.name.partition("data")[2].lstrip(".")
    why = error.message[len(error.name) :].strip()
    if error.rule == "required":
        missing = [key for key in error.definition["required"] if key not in error.value]
        why = f"it has no {', '.join(f'`{key}`' for key in missing)}"
    annotation = _ANNOTATION.fullmatch(place)
    return SpecError(why, f"{annotation[1]}[{annotation[2]}]" if annotation else place)
