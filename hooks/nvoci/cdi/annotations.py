"""Requests for CDI devices in the annotations of a container, as a Kubernetes device plugin makes them and a container
engine reads them: `cdi.k8s.io/PLUGIN_ID: vendor/class=a,vendor/class=b`.
"""

from __future__ import annotations

from nvoci.cdi import names
from nvoci.cdi.error import SpecError, several

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PREFIX = "cdi.k8s.io/"
MAX_NAME = 63
_HINT = "qualified names of devices, with commas between"
_ENDS = names.LETTERS | names.DIGITS
_MIDDLE = _ENDS | frozenset("_-.")


def key(plugin: str, device_id: str) -> str:
    """The key for what `plugin` allocates as `device_id`. Raises SpecError where there is no such key.

    >>> key("nvidia.gpu", "GPU-0/1")
    'cdi.k8s.io/nvidia.gpu_GPU-0_1'
    """
    for what, text in (("plugin", plugin), ("device id", device_id)):
        if not isinstance(text, str):
            raise SpecError(f"the name of the {what} is {type(text).__name__}, not a string")
        if not text:
            raise SpecError(f"the name of the {what} is empty: it is part of an annotation's key")
    name = f"{plugin}_{device_id.replace('/', '_')}"
    if len(name) > MAX_NAME:
        raise SpecError(f"annotation `{name}` has {len(name)} characters: at most {MAX_NAME} may be")
    wrong = next((c for c in name if c not in _MIDDLE), "")
    if wrong:
        raise SpecError(f"annotation `{name}` has `{wrong}`: it may have letters, digits and _ - .")
    if not {name[0], name[-1]} <= _ENDS:
        raise SpecError(f"annotation `{name}` must start and end with a letter or digit")
    return PREFIX + name


def value(devices: Iterable[str]) -> str:
    """The value that asks for `devices`, by their qualified names. Raises SpecError; also for none at all, as nobody
    could read that.

    >>> value(["nvidia.com/gpu=0", "nvidia.com/gpu=1"])
    'nvidia.com/gpu=0,nvidia.com/gpu=1'
    """
    asked = several(devices, "devices")
    if not asked:
        raise SpecError("an annotation must ask for a device")
    for device in asked:
        names.parse_qualified(device)
    return ",".join(asked)


def update(annotations: Mapping[str, str], plugin: str, device_id: str, devices: Iterable[str]) -> dict[str, str]:
    """`annotations` and the request of `plugin`. Raises SpecError; also where it has made that request before.

    >>> update({"a": "b"}, "nvidia.gpu", "0", ["nvidia.com/gpu=0"])
    {'a': 'b', 'cdi.k8s.io/nvidia.gpu_0': 'nvidia.com/gpu=0'}
    """
    made = key(plugin, device_id)
    if made in annotations:
        raise SpecError(f"annotation `{made}` is there already")
    return {**annotations, made: value(devices)}


def parse(annotations: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The keys of requests, in order, and the qualified names they ask for. Raises SpecError if one of those is none:
    a container with half of its devices would be worse than no container.

    >>> parse({"a": "b", "cdi.k8s.io/nvidia.gpu_0": "nvidia.com/gpu=0,nvidia.com/gpu=1"})
    (['cdi.k8s.io/nvidia.gpu_0'], ['nvidia.com/gpu=0', 'nvidia.com/gpu=1'])
    """
    keys = sorted(each for each in annotations if isinstance(each, str) and each.startswith(PREFIX))
    asked = []
    for each in keys:
        text = annotations[each]
        if not isinstance(text, str):
            raise SpecError(f"{type(text).__name__}, not a string", f"annotation {each}", hint=_HINT)
        for device in text.split(","):
            names.parse_qualified(device, f"annotation {each}")
            asked.append(device)
    return keys, asked
