"""One look at the node: its NVML found and asked, its files joined to what that said.

NVML is asked first and answered in a process of its own, so the modules that look at files are loaded meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvoci.discover import nvml
from nvoci.discover.fingerprint import Sources
from nvoci.discover.libnames import version_key
from nvoci.discover.libraries import Libraries
from nvoci.discover.model import Problem
from nvoci.discover.node import Node, Options
from nvoci.discover.nvml import SONAME
from nvoci.discover.search import Search
from nvoci.errors import HookError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nvoci.discover.found import Discovery
    from nvoci.discover.model import Found
    from nvoci.discover.nvml import NvmlAnswer

PROC, SYS = "/proc", "/sys"  # of which only tests name others
_DEVICE_STAGE = "use device"  # of discover.devnode
_CONTROL = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
_STEM = SONAME.partition(".")[0]
# Windows' libraries are in no directory that the dynamic linker knows of by itself.
_WSL = (f"/usr/lib/wsl/lib/{SONAME}", f"/usr/lib/wsl/drivers/*/{SONAME}")


class Place:
    """Where to look. root: the driver root; dev_root: the directory that has `dev`, "" for the driver root; seconds:
    that NVML may take; options: of the search for files."""

    __slots__ = ("dev_root", "options", "root", "seconds")

    def __init__(
        self, root: str = "/", dev_root: str = "", seconds: float = nvml.SECONDS, options: Options | None = None
    ) -> None:
        self.root = root
        self.dev_root = dev_root
        self.seconds = seconds
        self.options = options or Options()

    def sources(self) -> Sources:
        """What an inventory of this place depends on."""
        from nvoci.discover.found import configuration, watch_paths

        watch = watch_paths(self.root, self.dev_root, self.options)
        return Sources(self.root, self.dev_root, configuration=configuration(self.options), watch=watch, proc=PROC)


class Look:
    """What was seen. discovery: with the trace, and with NVML's refusal among the problems of `found`. answer: NVML's;
    refusal: why it gave none, None also where there is no NVML. node: still open, for `why`; leave the `with`."""

    __slots__ = ("answer", "discovery", "node", "refusal")

    def __init__(self, node: Node, discovery: Discovery, answer: NvmlAnswer | None, refusal: HookError | None) -> None:
        self.node = node
        self.discovery = discovery
        self.answer = answer
        self.refusal = refusal

    @property
    def found(self) -> Found:
        """All of it."""
        return self.discovery.found

    def __enter__(self) -> Look:
        return self

    def __exit__(self, *exc: object) -> None:
        self.node.close()


def _silent(phase: str) -> None:
    pass


def look(
    place: Place, done: Callable[[str], None] = _silent, wanted: Iterable[str] = (),
    meanwhile: Callable[[], None] | None = None,
) -> Look:  # fmt: skip
    """Look at everything. done: told the name of each phase at its end. wanted: GPUs asked for by name, as for
    `nvml.query`; where one does not answer, that is NVML's refusal. meanwhile: called when NVML was asked and has not
    answered. Raises HookError for what keeps us from looking at all; anything about the node is among the problems."""
    node = Node.open(place.root, place.dev_root, proc=PROC, sys=SYS)
    try:
        return _look(node, place, done, wanted, meanwhile)
    except BaseException:
        node.close()
        raise


def _look(
    node: Node, place: Place, done: Callable[[str], None], wanted: Iterable[str], meanwhile: Callable[[], None] | None
) -> Look:
    libraries = Libraries(node, Search(), place.options.library_search_path)
    path = nvml_path(node, libraries)
    done("find NVML")
    with _Asked(path, place.root, place.seconds) as asked:
        from nvoci.discover.found import discover  # 20 ms of modules, while NVML starts

        if meanwhile:
            meanwhile()
        done("start NVML, load modules")
        asked.wait(wanted)
    done("wait for NVML")
    discovery = discover(node, asked.answer, place.options, asked.path, libraries=libraries, done=done)
    if asked.refusal:
        problems = (_problem(asked.refusal, asked.path), *discovery.found.problems)
        discovery.found = discovery.found.replace(problems=problems)
    return Look(node, discovery, asked.answer, asked.refusal)


def look_at_files(place: Place, done: Callable[[str], None] = _silent) -> Discovery:
    """As `look`, without asking NVML."""
    from nvoci.discover.found import discover

    done("load modules")
    with Node.open(place.root, place.dev_root, proc=PROC, sys=SYS) as node:
        return discover(node, None, place.options, done=done)


class _Asked:
    """The question to NVML, asked when made. path: of the library, on the host once it is open; "" for none."""

    __slots__ = ("_question", "answer", "path", "refusal")

    def __init__(self, path: str, root: str, seconds: float) -> None:
        self.path = path
        self.answer: NvmlAnswer | None = None
        self.refusal: HookError | None = None
        self._question: nvml.Question | None = None
        if not path:
            return
        try:
            with nvml.open_library(path, root) as library:
                self.path = library.path
                self._question = nvml.Question(library, seconds=seconds)
        except HookError as e:
            self.refusal = e

    def wait(self, wanted: Iterable[str] = ()) -> None:
        """For the answer, or the refusal."""
        try:
            self.answer = self._question.answer(wanted) if self._question else None
        except HookError as e:
            self.refusal = e

    def __enter__(self) -> _Asked:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._question:
            self._question.__exit__(*exc)


def _problem(refusal: HookError, path: str) -> Problem:
    """NVML's refusal among the others."""
    stage, there, error = refusal.message.partition(f"{path}: ")
    if not there:
        return Problem(stage="ask NVML", subject=path, error=refusal.message, hint=refusal.hint)
    return Problem(stage=stage.strip(), subject=path, error=error, hint=refusal.hint)


def nvml_path(node: Node, libraries: Libraries) -> str:
    """Where the driver root has NVML's library, in that root; "" where it has none for this machine. It is the one that
    the dynamic linker would take; without a link of that name the newest."""
    found = [each for each in libraries.matching(SONAME) if not each.compat32]
    if found:
        return found[0].path
    versions = libraries.named(_STEM)
    for version in sorted(versions, key=version_key, reverse=True):
        for each in versions[version]:
            if not each.compat32:
                return each.path
    for pattern in _WSL:
        for path in reversed(node.root.glob(pattern)):
            library = libraries.library(path)
            if library is not None and not library.compat32:
                return library.path
    return ""


# -- judging ----------------------------------------------------------------------------------------------------------


def failure(seen: Look) -> HookError | None:
    """Why this node has nothing for a container, in one line; None where it has. A Tegra system and WSL may go without
    NVML, any other node may not."""
    from nvoci.discover.driver import FIND_STAGE
    from nvoci.discover.platform import NVML

    found = seen.found
    if seen.discovery.platform.kind == NVML:
        if seen.refusal:
            return seen.refusal
        if seen.answer is None:
            missing = [each for each in found.problems if each.stage == FIND_STAGE]
            return _error(missing) or HookError(
                f"find NVML: no {SONAME} in {found.driver.root}", "install the NVIDIA driver, or name its root"
            )
        return _error(seen.answer.problems) if seen.answer.count and not found.gpus else None
    if found.device_nodes and found.mounts:
        return None
    return seen.refusal or _error(found.problems)


def warnings(seen: Look) -> list[Problem]:
    """The problems that a person must not overlook: a GPU that was left out, a driver that will not work, a device node
    that is missing."""
    return list(dict.fromkeys([*_refused(seen), *grave(seen.found, seen.answer)]))


def _refused(seen: Look) -> tuple[Problem, ...]:
    """NVML's refusal."""
    return seen.found.problems[:1] if seen.refusal else ()


def grave(found: Found, answer: NvmlAnswer | None) -> list[Problem]:
    """As `warnings`, without NVML's refusal."""
    from nvoci.discover.driver import FIND_STAGE, MATCH_STAGE

    silent = answer.problems if answer else ()
    bad = [each for each in found.problems if each.stage in (FIND_STAGE, MATCH_STAGE) or _of_every_container(each)]
    return list(dict.fromkeys([*silent, *bad]))


def _of_every_container(problem: Problem) -> bool:
    """Whether it is about a control node or a GPU's own one, which a container cannot do without."""
    name = problem.subject.rpartition("/")[2]
    return problem.stage == _DEVICE_STAGE and (name in _CONTROL or (name[:6] == "nvidia" and name[6:].isdigit()))


def _error(problems: Iterable[Problem]) -> HookError | None:
    """The first of them."""
    for each in problems:
        return HookError(Problem.line(each.replace(hint="")), each.hint)
    return None
