"""What scripts/bench measures of CDI: containers that runc starts with GPUs by name, a specification made, many read.

What hooks add is the difference between containers with the same mounts and devices, with hooks and without. Needs
gcc, for the node's NVML library, and runc.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, NamedTuple

from _bench_cases import CDI, LARGE, SMALL, Case
from _bench_images import LIBRARIES, listed
from _private import CHECKOUT, ToolError

GPUS = 8
SAMPLE = "a100"
RUNC = "runc run"  # the stage of a case that is a container
IDLE_SECONDS = 0.15  # the teardown of a container's namespaces delays the next by up to 10 ms
LOOPS = 11
MOST_MS = 60.0
DEVICES = 200
PLAIN, MERGED, REFERENCE = "plain", "merged", "reference"
_DRIVER_LINK = f"{LIBRARIES}/libcuda.so.1"
_GENERATED = "generated/nvidia.yaml"

_HEAD = """
import posix, sys
tree, root, path, hook = sys.argv[1:5]
sys.path[:0] = [tree, tree + "/vendor"]
from nvoci.discover import look
look.PROC, look.SYS = root + "/proc", root + "/sys"
words = ["cdi", "generate", "--driver-root", root, "--nvidia-cdi-hook-path", hook, "--output", path]
"""
PROGRAMS = {
    "nvoci": _HEAD + """
posix.dup2(posix.open("/dev/null", posix.O_WRONLY), 2)
from nvoci.ctl.main import run
run(words)
""",
    "nvidia-ctk": _HEAD + """
from nvoci.ctl.ctk import run
sys.exit(run(["--quiet", *words]))
""",
}  # fmt: skip
# A directory of two kinds, each with half of the devices: those of the node, over and over, by numbers.
_MAKE_DIRECTORY = """
import sys
tree, source, directory, count = sys.argv[1:5]
sys.path[:0] = [tree, tree + "/vendor"]
from dataclasses import replace
from nvoci.cdi import store, text
spec = text.read(source)
gpus = [device for device in spec.devices if device.name.isdigit()]
for kind in ("nvidia.com/gpu", "nvidia.com/mig"):
    devices = tuple([replace(gpus[i % len(gpus)], name=str(i)) for i in range(int(count) // 2)])
    store.write(replace(spec, kind=kind, devices=devices), directory, kind.replace("/", "-"))
"""
_LOOP = f"""
import sys, time
tree, yaml, directory = sys.argv[1:4]
sys.path[:0] = [tree, yaml, tree + "/vendor"]
from nvoci.cdi import apply
from nvoci.cdi.specdir import Registry
config = {{"process": {{"env": ["PATH=/bin"]}}, "mounts": [], "linux": {{}}}}
names = [f"nvidia.com/{{kind}}={{i}}" for kind in ("gpu", "mig") for i in range({GPUS} // 2)]
times = []
for _ in range({LOOPS} + 1):
    begin = time.perf_counter_ns()
    registry = Registry([directory])
    made = apply.inject(registry, config, names)
    times.append(time.perf_counter_ns() - begin)
    assert len(registry.devices()) == {DEVICES} and not registry.errors and len(made["linux"]["devices"]) > {GPUS}
print(*times[1:])
"""


def _made(top: Path) -> bool:
    """Each GPU by index and by UUID, and all of them."""
    path = top / _GENERATED
    found = path.read_text().count("\n    - name: ") if path.exists() else 0
    path.unlink(missing_ok=True)
    return found == 2 * GPUS + 1


def _hooked(root: Path) -> bool:
    """The links are made, and the cache leads to the driver, whose mounts are gone with the container."""
    found = listed(root)
    return os.path.lexists(root / _DRIVER_LINK) and {"libcuda.so", "libnvidia-ml.so.1"} <= found.keys()


def _plain(root: Path) -> bool:
    """There are mount targets, and nothing else of the driver."""
    return not os.path.lexists(root / _DRIVER_LINK) and any((root / LIBRARIES).glob("libcuda.so.*"))


def _container(name: str, form: str, gpus: int = 1, libraries: int = SMALL) -> Case:
    """words: the form of hooks, and how many GPUs."""
    what = f"{gpus} GPU{'s' if gpus > 1 else ''}" + (", 1,155 libr." if libraries == LARGE else "")
    what += {PLAIN: ", no hooks", MERGED: ", merged", REFERENCE: ", reference form"}[form]
    proof = _plain if form == PLAIN else _hooked
    return Case(name, what, (form, str(gpus)), proof, 0.0, CDI, libraries)


CASES = (
    Case("generate", "nvoci cdi generate, 8 GPUs", ("nvoci",), _made, 20.0, CDI, rss_mib=60.0),
    Case("ctk-generate", "nvidia-ctk cdi generate, 8 GPUs", ("nvidia-ctk",), _made, 20.0, CDI, rss_mib=60.0),
    _container("plain-1", PLAIN),
    _container("merged-1", MERGED),
    _container("reference-1", REFERENCE),
    _container("plain-8", PLAIN, GPUS),
    _container("merged-8", MERGED, GPUS),
    _container("reference-8", REFERENCE, GPUS),
    _container("plain-large", PLAIN, libraries=LARGE),
    _container("merged-large", MERGED, libraries=LARGE),
)


class Tax(NamedTuple):
    """What hooks add, as a ratio to the floor, or to what others add; most: that it may be, 0 for information."""

    what: str
    hooked: str
    plain: str
    most: float
    to: tuple[str, str] = ("", "")


TAXES = (
    Tax("what hooks add, 1 GPU", "merged-1", "plain-1", 3.5),
    Tax("8 GPUs by name, to 1 GPU", "merged-8", "plain-8", 1.2, ("merged-1", "plain-1")),
    Tax("what hooks add, 1,155 libraries", "merged-large", "plain-large", 5.0),
    Tax("what hooks add in the reference's form, 1 GPU", "reference-1", "plain-1", 0.0),
    Tax("what hooks add in the reference's form, 8 GPUs", "reference-8", "plain-8", 0.0),
)


def taxes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of what was measured, by its medians."""
    times = {row["case"]: row["median_ms"] for row in rows if "failed" not in row and row["stage"] == RUNC}
    found = []
    for each in TAXES:
        others = [name for name in each.to if name] or ["floor"]
        if any(name not in times for name in (each.hooked, each.plain, *others)):
            continue
        base = times[each.to[0]] - times[each.to[1]] if each.to[0] else times["floor"]
        ratio = (times[each.hooked] - times[each.plain]) / base
        met = ratio <= each.most if each.most else None
        found.append({"what": each.what, "stage": RUNC, "ratio": ratio, "target": each.most or None, "met": met})
    return found


class Node:
    """A simulated node with specifications of it in both forms, and the configurations of containers."""

    def __init__(self, top: Path, python: str, tree: str, root: Path) -> None:
        """tree: of an installed nvoci. root: where a container's root file system will be. Raises ToolError."""
        self.top, self.python, self.tree, self.container_root = top, python, tree, root
        self.hook = str(top / "prefix/bin/nvidia-cdi-hook")
        self.runc = shutil.which("runc", path="/usr/sbin:/usr/bin:/sbin:/bin") or ""
        if not self.runc:
            raise ToolError("use `runc`: ENOENT (apt-get install runc)")
        simnode: Any = importlib.import_module("lib.simnode")  # scripts/bench has put tests on the path
        try:
            self.root = simnode.build(simnode.load(simnode.sample(SAMPLE)), top / "cdi-node").root
        except simnode.BuildError as e:
            raise ToolError(str(e)) from None
        self.specs = {form: self._generate(form) for form in (MERGED, REFERENCE)}
        self.bundles: dict[tuple[str, ...], Path] = {}

    def generate(self, program: str) -> list[str]:
        """The command line of a case that makes a specification."""
        words = [self.tree, str(self.root), str(self.top / _GENERATED), self.hook]
        return [self.python, "-ISB", "-c", PROGRAMS[program], *words]

    def start(self, case: Case) -> list[str]:
        """The command line of a case that is a container."""
        if case.words not in self.bundles:
            self.bundles[case.words] = self._bundle(*case.words)
        state, bundle = self.top / "runc", self.bundles[case.words]
        return [self.runc, "--root", str(state), "run", "--bundle", str(bundle), f"nvoci-bench-{os.getpid()}"]

    def _generate(self, form: str) -> Path:
        folder = self.top / "specs" / form
        program = PROGRAMS["nvidia-ctk"].replace("*words", f'*words, "--hooks", "{form}"')
        _output([self.python, "-ISB", "-c", program, self.tree, str(self.root), f"{folder}/nvidia.yaml", self.hook])
        return folder

    def _bundle(self, form: str, count: str) -> Path:
        """A configuration with the first GPUs by name, as `nvoci cdi inject` makes it; PLAIN: less the hooks of it."""
        make: Callable[..., Path] = importlib.import_module("lib.bundle").make_bundle
        folder = self.top / "bundles" / f"{form}-{count}"
        driver = f"{self.root}/proc/driver"
        there = ["mount", "--bind", driver, f"{self.container_root}/proc/driver"]  # as if procfs had it
        mount = {"path": "/usr/bin/mount", "args": there, "env": ["PATH=/usr/bin"]}

        def edit(config: dict[str, Any]) -> None:
            config["linux"]["cgroupsPath"] = f"/nvoci-bench-{os.getpid()}"

        make(folder, self.container_root, ["/bin/true"], {"createContainer": [mount]}, edit=edit)
        names = [f"nvidia.com/gpu={number}" for number in range(int(count))]
        specs = self.specs[MERGED if form == PLAIN else form]
        nvoci = str(self.top / "prefix/bin/nvoci")
        _output([nvoci, "cdi", "inject", "-i", "--spec-dir", str(specs), f"{folder}/config.json", *names])
        if form == PLAIN:
            config = json.loads((folder / "config.json").read_text())
            del config["hooks"]["createContainer"][1:]
            (folder / "config.json").write_text(json.dumps(config))
        return folder

    def loaded(self) -> list[dict[str, Any]]:
        """How long a process that has loaded all it needs takes for a directory, among what stands in relation: by
        libyaml where the project's venv has it, and by the parser in Python that an installed tree has."""
        directory = self.top / "specs" / "many"
        source = self.specs[MERGED] / "nvidia.yaml"
        words = [self.tree, str(source), str(directory), str(DEVICES)]
        _output([self.python, "-ISB", "-c", _MAKE_DIRECTORY, *words])
        found = []
        for parser, folder, most in (("libyaml", _libyaml(self.top), MOST_MS), ("Python's parser", "", 0.0)):
            argv = [self.python, "-ISB", "-c", _LOOP, self.tree, folder or self.tree, str(directory)]
            ms = statistics.median(map(int, _output(argv).split())) / 1e6
            met = ms <= most if most else None
            what = f"{DEVICES} devices loaded and {GPUS} injected, {parser}"
            found.append({"what": what, "stage": "ms", "ratio": ms, "target": most or None, "met": met})
        return found


def _libyaml(top: Path) -> str:
    """A directory with the venv's PyYAML alone."""
    folder = top / "libyaml"
    folder.mkdir(exist_ok=True)
    for path in (CHECKOUT / ".venv/lib").glob("python*/site-packages/yaml"):
        if any(path.glob("_yaml.*.so")) and not (folder / "yaml").exists():
            (folder / "yaml").symlink_to(path)
    if not (folder / "yaml").exists():
        raise ToolError(f"use libyaml: PyYAML in `{CHECKOUT}/.venv` is built without it")
    return str(folder)


def tree_peak_kib(argv: list[str]) -> int:
    """The most memory that a program and all processes below it have had at one time, in KiB: the sum of what each has
    resident, so that what they share counts several times."""
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env={})
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(_resident, _tree(process.pid))))
        time.sleep(0.0005)
    if process.returncode:
        raise ToolError(f"measure the memory of `{argv[0]}`: exit status {process.returncode}")
    return peak


def _tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(each for child in children for each in _tree(int(child)))]


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * (os.sysconf("SC_PAGE_SIZE") >> 10)
    except (OSError, IndexError):
        return 0


def _output(argv: list[str]) -> str:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env={})
    if done.returncode or done.stderr:
        raise ToolError(f"run `{argv[0]}` on a simulated node: {done.stderr.strip()[-300:]}")
    return done.stdout
