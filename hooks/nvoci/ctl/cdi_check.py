"""`nvoci cdi check`: whether specifications are what this node has."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from nvoci.cdi import names as cdi_names
from nvoci.cdi import specdir, text, validate
from nvoci.cdi.error import SpecError
from nvoci.ctl import cdi, node
from nvoci.ctl.cdi_programs import Programs
from nvoci.errors import FAILED, HookError, printable
from nvoci.generate import freshness, now, origin, stale, stalegpus
from nvoci.generate.findings import REFRESH, Finding
from nvoci.generate.specs import COHERENT_SUFFIX, NONCOHERENT_SUFFIX
from nvoci.jsonfile import dumps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from nvoci.cdi.model import Spec
    from nvoci.cdi.specdir import Registry
    from nvoci.discover.look import Place
    from nvoci.generate.now import Now

FRESH, STALE, BROKEN = "fresh", "stale", "broken"
_MAKE = "nvoci cdi refresh"
_NVIDIA = "nvidia"


@dataclass
class Candidate:
    """A file to be judged. spec: None where `errors` keep it from being one. shadow: the file whose devices are used
    instead of its own."""

    path: str
    spec: Spec | None
    errors: list[SpecError]
    shadow: str = ""


@dataclass
class Judgement:
    """What came of it."""

    candidate: Candidate
    findings: list[Finding]
    not_compared: list[str]

    @property
    def verdict(self) -> str:
        """FRESH; STALE where another look at the node mends something; BROKEN where it mends nothing."""
        if self.candidate.spec is not None and any(each.mended for each in self.findings):
            return STALE
        return BROKEN if self.candidate.errors or self.findings else FRESH

    @property
    def command(self) -> str:
        """That makes it anew."""
        spec, path = self.candidate.spec, self.candidate.path
        words = [*_MAKE.split(), "--output", _base(path, spec) if spec else path]
        return shlex.join([*words, *(origin.remake(spec) if spec else [])])


def _base(path: str, spec: Spec) -> str:
    """The file of which this is the part with coherent memory, or without."""
    stem, end = os.path.splitext(path)
    for suffix in (NONCOHERENT_SUFFIX, COHERENT_SUFFIX):
        if spec.class_.endswith(suffix):
            return stem.removesuffix(suffix) + end
    return path


@click.command("check")
@click.argument("wanted", nargs=-1, metavar="[FILE|VENDOR/CLASS]...")
@click.option("--no-nvml", is_flag=True, help="Compare with what files and the kernel tell, and ask NVML nothing.")
@node.looks
@cdi.in_dirs
@cdi.as_json
@click.pass_context
def command(
    ctx: click.Context, wanted: tuple[str, ...], *, registry: Registry, place: Place, phases: node.Phases,
    no_nvml: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compare specifications with this node: FILEs, those of a kind, or else all for NVIDIA's devices.

    Compared are the driver's version, device numbers, device nodes and files, GPUs and MIG devices, and whether the
    programs that the hooks call are there and know what they are asked. A line for each finding says what is not so,
    where it stands, and what to do; then comes one with the verdict.

    Without --driver-root and --dev-root they are those that the host paths of the specification begin with.

    Exit status: 0 if all are fresh, 1 if one is stale or broken, or there is none.
    """
    chosen = _chosen(registry, wanted)
    is_given = any(
        ctx.get_parameter_source(name) is not ParameterSource.DEFAULT for name in ("driver_root", "dev_root")
    )
    nodes = _Nodes(place, not no_nvml, phases.done, is_given=is_given)
    programs = Programs()
    judged = [_judge(each, nodes, programs) for each in chosen]
    phases.total()
    if as_json:
        click.echo(dumps(_document(judged), indent=2))
    else:
        for each in judged:
            for line in _lines(each):
                click.echo(f"{printable(each.candidate.path)}: {line}")
    ctx.exit(0 if all(each.verdict == FRESH for each in judged) else FAILED)


# -- which ------------------------------------------------------------------------------------------------------------


def _chosen(registry: Registry, wanted: Sequence[str]) -> list[Candidate]:
    """Raises HookError where there is none of those that are wanted."""
    if not wanted:
        found = [each for each in _in_directories(registry) if _is_ours(each)]
        paths = {each.path for each in found}
        for error in [error for path, errors in registry.errors.items() if path not in paths for error in errors]:
            node.warn(error.line())
        if not found:
            raise HookError(f"check CDI specs: none for NVIDIA devices in {_dirs(registry)}", f"make one: {_MAKE}")
        return found
    found = []
    for each in wanted:
        found += [_file(registry, each)] if _is_file(each) else _of_kind(registry, each)
    return list({each.path: each for each in found}.values())


def _is_file(name: str) -> bool:
    """Rather than VENDOR/CLASS."""
    if os.path.lexists(name) or name.startswith(("/", ".")) or name.endswith(specdir.SUFFIXES):
        return True
    try:
        cdi_names.parse_kind(name)
    except SpecError as e:
        raise click.BadParameter(f"`{printable(name)}` is no file, and no VENDOR/CLASS: {e.why}") from None
    return False


def _of_kind(registry: Registry, kind: str) -> list[Candidate]:
    found = [each for each in _in_directories(registry) if each.spec is not None and each.spec.kind == kind]
    if not found:
        raise HookError(f"check CDI specs: none of kind {kind} in {_dirs(registry)}", "`nvoci cdi list` lists all")
    return found


def _dirs(registry: Registry) -> str:
    return ", ".join([printable(each) for each in registry.dirs])


def _file(registry: Registry, name: str) -> Candidate:
    """One of the directories, or any other."""
    path = os.path.abspath(name)
    for each in _in_directories(registry):
        if each.path == path:
            return each
    try:
        spec = text.loads(specdir.read_trusted(path), path)
        return Candidate(path, spec, validate.problems(spec))
    except SpecError as e:
        return Candidate(path, None, [e])


def _in_directories(registry: Registry) -> Iterator[Candidate]:
    loaded = {each.path: each.spec for each in registry.specs()}
    for path in registry.paths():
        spec = loaded.get(path)
        yield Candidate(path, spec, registry.errors.get(path, []), _shadow(registry, path, spec) if spec else "")


def _shadow(registry: Registry, path: str, spec: Spec) -> str:
    """The file whose devices count, where none of this one does."""
    entries = [registry.find(f"{spec.kind}={device.name}") for device in spec.devices]
    others = [entry.path for entry in entries if entry is not None and entry.path != path]
    return others[0] if len(others) == len(entries) else ""


def _is_ours(candidate: Candidate) -> bool:
    """What cannot be read is told by its name."""
    if candidate.spec is None:
        return _NVIDIA in os.path.basename(candidate.path).lower()
    return origin.is_nvidia(candidate.spec)


# -- judging ----------------------------------------------------------------------------------------------------------


class _Nodes:
    """Looks at each place once, and at each only when it is needed."""

    def __init__(self, place: Place, ask: bool, done: Callable[[str], None], *, is_given: bool) -> None:
        self._place = place
        self._ask = ask
        self._done = done
        self._is_given = is_given
        self._known: dict[tuple[tuple[str, str], bool], Now] = {}

    def now(self, spec: Spec) -> Now:
        """As it is for a specification. A driver root that is not there has no driver."""
        from nvoci.discover.look import Place

        roots = (self._place.root, self._place.dev_root) if self._is_given else origin.roots(spec)
        ask = self._ask and stalegpus.has_gpus(spec)
        if (roots, ask) not in self._known:
            try:
                found = now.at(Place(*roots, self._place.seconds), ask, self._done)
            except HookError as e:
                found = now.Now(root=roots[0], dev_root=roots[1] or roots[0], silence=e.line())
            self._known[roots, ask] = found
        return self._known[roots, ask]


def _judge(candidate: Candidate, nodes: _Nodes, programs: Programs) -> Judgement:
    if candidate.spec is None:
        return Judgement(candidate, [], [])
    seen = nodes.now(candidate.spec)
    found = [*stale.findings(candidate.spec, seen), *programs.findings(candidate.spec)]
    return Judgement(candidate, found, stale.not_compared(candidate.spec, seen))


# -- telling ----------------------------------------------------------------------------------------------------------


def _lines(judged: Judgement) -> Iterable[str]:
    candidate = judged.candidate
    for error in candidate.errors:
        where = f"{error.where}: " if error.where else ""
        yield f"{where}{error.why} ({error.hint})"
    yield from [each.line() for each in judged.findings]
    yield from [f"not compared: {printable(each)}" for each in judged.not_compared]
    if candidate.shadow:
        yield f"none of its devices is used: {printable(candidate.shadow)} has them with a higher priority"
    if judged.verdict == STALE:
        yield f"{STALE}; {REFRESH}: {printable(judged.command)}"
    else:
        yield judged.verdict


def _document(judged: Sequence[Judgement]) -> dict[str, Any]:
    return {"fresh": all(each.verdict == FRESH for each in judged), "specs": [_row(each) for each in judged]}


def _row(judged: Judgement) -> dict[str, Any]:
    candidate, spec = judged.candidate, judged.candidate.spec
    return {
        "path": printable(candidate.path),
        "kind": spec.kind if spec else "",
        "verdict": judged.verdict,
        "driver_version": printable(origin.driver_version(spec)[0]) if spec else "",
        "device_majors": freshness.parse_majors(spec.annotations.get(freshness.DEVICE_MAJORS, "")) if spec else {},
        "errors": [error.line() for error in candidate.errors],
        "findings": [{key: _plain(value) for key, value in asdict(each).items()} for each in judged.findings],
        "not_compared": [printable(each) for each in judged.not_compared],
        "shadowed_by": printable(candidate.shadow),
        "refresh": judged.command if judged.verdict == STALE else "",
    }


def _plain(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value
