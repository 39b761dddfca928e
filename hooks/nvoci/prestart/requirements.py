"""NVIDIA_REQUIRE_*: what an image demands of the driver and the GPUs.

    cuda>=12.4 brand=tesla,driver>=535,driver<536        12.4, or a Tesla with a driver of branch 535

A blank is OR, a comma is AND; empty parts say nothing. NAME is cuda, driver, arch (compute capability) or brand. An
expression is read from left to right only as far as its value needs: an error behind that is not found.
"""

from __future__ import annotations

from nvoci.errors import HookError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvoci.discover.model import Driver, Gpu

MAX_EXPRESSIONS = 32
MAX_EXPRESSION = 1 << 14  # characters; those of the CUDA images have 3,000
MAX_ALL = 1 << 16
_MAX_TERM = 128
_OPERATOR = "<>=!"
_OPERATORS = ("=", "!=", "<", "<=", ">", ">=")
_MAX_COMPONENT = 0xFFFFFFFFFFFFFFFF
_DIGITS = "0123456789"
_OLD_DRIVER = ", please update your driver to a newer version, or use an earlier cuda container"
_SWITCH = "NVIDIA_DISABLE_REQUIRE=1 in the container, or disable-require in config.toml, skips this"


class Invalid(ValueError):
    """Not an expression."""


class Unknown(ValueError):
    """The expression asks for something that the node does not tell."""


class Host:
    """What expressions are about. cuda, driver, arch: versions; brand: as `nvidia-container-cli info` spells it; "" for
    what is not known. arch, brand: None where there is no GPU: then they hold whatever is asked."""

    __slots__ = ("arch", "brand", "cuda", "driver")

    def __init__(self, cuda: str, driver: str, arch: str | None = None, brand: str | None = None) -> None:
        self.cuda = cuda
        self.driver = driver
        self.arch = arch
        self.brand = brand

    def words(self) -> str:
        """For a message."""
        told = {"CUDA": self.cuda, "driver": self.driver, "compute capability": self.arch, "brand": self.brand}
        return ", ".join([f"{name} {printable(value)}" for name, value in told.items() if value])


def holds(expression: str, host: Host) -> bool:
    """The value of an expression. Raises Invalid, or Unknown."""
    told = False
    for alternative in expression.split(" "):
        if alternative:
            told = True
            if all(_term(term, host) for term in alternative.split(",") if term):
                return True
    return not told


def _term(term: str, host: Host) -> bool:
    start = next((at for at, c in enumerate(term) if c in _OPERATOR), len(term))
    value = term[start:].lstrip(_OPERATOR)
    name, given = term[:start], term[start : len(term) - len(value)]
    # An operator may be cut short: `!` means `!=`.
    operator = next((each for each in _OPERATORS if each.startswith(given)), "")
    if not name or not value or not operator:
        raise Invalid(term)
    true = _compared(name.lower(), operator, value, host)
    if not true and len(name + operator + value) >= _MAX_TERM:
        raise Invalid(term)
    return true


def _compared(name: str, operator: str, value: str, host: Host) -> bool:
    if name not in ("cuda", "driver", "arch", "brand"):
        raise Invalid(name)
    actual: str | None = getattr(host, name)
    if actual is None:
        return True
    if not actual or (name != "brand" and actual.strip(_DIGITS + ".")):
        raise Unknown(name)
    if name == "brand":
        if operator not in ("=", "!="):
            raise Invalid(operator)
        return (actual.lower() == value.lower()) is (operator == "=")
    order = compare(actual, value)
    return {"=": order == 0, "!=": order != 0, "<": order < 0, "<=": order <= 0, ">": order > 0, ">=": order >= 0}[
        operator
    ]


def compare(one: str, other: str) -> int:
    """-1, 0 or 1 as version `one` is older than, equal to or newer than `other`: number by number; zeros that only one
    of them has at its end do not count. Raises Invalid for what is not digits and dots."""
    for version in (one, other):
        if version.strip(_DIGITS + ".") or version[:1] in (".", ""):
            raise Invalid(version)
    left, right = one.rstrip(".").split("."), other.rstrip(".").split(".")
    for a, b in zip(left, right):
        difference = _number(a) - _number(b)
        if difference:
            return 1 if difference > 0 else -1
    common = min(len(left), len(right))
    longer = any(part.strip("0") for part in left[common:]), any(part.strip("0") for part in right[common:])
    return longer[0] - longer[1]


def _number(text: str) -> int:
    digits = text.lstrip("0")
    if not text or len(digits) > 20 or int(digits or "0") >= _MAX_COMPONENT:
        raise Invalid(text)
    return int(digits or "0")


def check(requirements: Iterable[tuple[str, str]], driver: Driver, gpus: Iterable[Gpu]) -> None:
    """Demand that all hold, for each of the GPUs. requirements: (variable, expression). Raises HookError."""
    pairs = tuple(requirements)
    if len(pairs) > MAX_EXPRESSIONS:
        raise HookError("input error: too many requirements", f"at most {MAX_EXPRESSIONS}")
    total = 0
    for name, expression in pairs:
        total += len(expression)
        if len(expression) > MAX_EXPRESSION or total > MAX_ALL:
            raise HookError("requirement error: invalid expression", f"{printable(name)}: too long")
    hosts = _hosts(driver, gpus) if pairs else []
    for name, expression in pairs:
        for host in hosts:
            _check_one(name, expression, host)


def _hosts(driver: Driver, gpus: Iterable[Gpu]) -> list[Host]:
    """Of GPUs that look the same to an expression only one is asked."""
    cuda = "{}.{}".format(*driver.cuda_version) if driver.cuda_version else ""
    kinds = dict.fromkeys([(gpu.architecture, gpu.brand_name) for gpu in gpus])
    return [Host(cuda, driver.version, *kind) for kind in kinds] or [Host(cuda, driver.version)]


def _check_one(name: str, expression: str, host: Host) -> None:
    shown = printable(name)
    try:
        if holds(expression, host):
            return
    except Invalid as e:
        raise HookError("requirement error: invalid expression", f"{shown}: `{printable(str(e)[:200])}`") from None
    except Unknown as e:
        raise HookError(f"requirement error: unknown {e} of this node", f"{shown} asks for it; {_SWITCH}") from None
    first = next(part for part in expression.split(" ") if part)
    newer = _OLD_DRIVER if first.startswith("cuda>=") else ""
    raise HookError(f"requirement error: unsatisfied condition: {printable(first[:1000])}{newer}",
                    f"{shown}; this node has {host.words()}; {_SWITCH}")  # fmt: skip
