"""`nvidia-container-cli info` and `list` as scripts call them on a node: whole processes, the real /dev and /proc."""

from __future__ import annotations

import platform
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lib import proc, session, simnode
from simnode.clicalls import (
    CAPABILITIES,
    CONTROL,
    LIB,
    NO_NOTE,
    PROGRAM,
    SIMNODE,
    UUID,
    V,
    cli,
    each,
    left_out,
    run,
    shell,
)
from simnode.nodes import built, fresh, needs_x86

from nvoci.prestart import choose

pytestmark = needs_x86


# -- info -------------------------------------------------------------------------------------------------------------

INFO = f"""\
NVRM version:   {V}
CUDA version:   12.4

Device Index:   0
Device Minor:   0
Model:          NVIDIA A100-SXM4-40GB
Brand:          Nvidia
GPU UUID:       {UUID}0
Bus Location:   00000000:07:00.0
Architecture:   8.0

Device Index:   1
Device Minor:   1
Model:          NVIDIA A100-SXM4-40GB
Brand:          Nvidia
GPU UUID:       {UUID}1
Bus Location:   00000000:0f:00.0
Architecture:   8.0
"""
CSV = f"""\
NVRM version,CUDA version
{V},12.4

Device Index,Device Minor,Model,Brand,GPU UUID,Bus Location,Architecture
0,0,NVIDIA A100-SXM4-40GB,Nvidia,{UUID}0,00000000:07:00.0,8.0
1,1,NVIDIA A100-SXM4-40GB,Nvidia,{UUID}1,00000000:0f:00.0,8.0
"""


def test_info() -> None:
    for words, text in ((["info"], INFO), (["info", "--csv"], CSV)):
        result = run(built("no-drm"), *words)
        assert (result.rc, result.stdout, result.stderr, result.survivors) == (0, text, "", [])


def test_of_a_driver_in_a_root_of_its_own() -> None:
    result = run(built("linked-root"), "--root=/run/nvidia/driver", "info", installed=False)
    assert (result.rc, result.stdout, result.stderr) == (0, INFO, "")
    result = run(built("linked-root"), "--root", "driver", "list", "-l", installed=False, cwd=Path("/run"))
    assert result.rc == 1
    result = shell(built("linked-root"), f"cd /run/nvidia && {cli()} --root driver list -l")
    assert result.stdout.splitlines()[0] == f"{LIB}/libnvidia-ml.so.{V}"


# -- list -------------------------------------------------------------------------------------------------------------


def libraries(*stems: str, directory: str = LIB) -> list[str]:
    return [f"{directory}/{stem}.so.{V}" for stem in stems]


def nodes(*minors: int) -> list[str]:
    return [f"/dev/nvidia{minor}" for minor in minors]


def mig(gpu: int, gi: int, ci: int, *caps: int) -> list[str]:
    top = f"{CAPABILITIES}/gpu{gpu}/mig/gi{gi}"
    return [f"{top}/access", f"{top}/ci{ci}/access", *[f"/dev/nvidia-caps/nvidia-cap{cap}" for cap in caps]]


BINARIES = [f"/usr/bin/{name}" for name in ("nvidia-smi", "nvidia-debugdump", "nvidia-persistenced",
                                            "nvidia-cuda-mps-control", "nvidia-cuda-mps-server")]  # fmt: skip
IPCS = ["/run/nvidia-persistenced/socket", "/run/nvidia-fabricmanager/socket"]
FIRMWARE = [f"/lib/firmware/nvidia/{V}/gsp_{name}10x.bin" for name in ("ga", "tu")]
LISTS: dict[str, tuple[str, list[str], list[str]]] = {
    "devices in their order": ("a100", ["-d3", "-d0,0000:0f:00.0", "--device", f"{UUID}3"],
                               [*CONTROL, *nodes(3, 0, 1)]),
    "no device": ("a100", ["-d", ""], CONTROL),
    "nothing": ("a100", ["--compat32"], []),
    "programs": ("a100", ["-b"], BINARIES),
    "sockets": ("a100", ["-i"], IPCS),
    "one socket": ("a100", ["-i", "--no-fabricmanager"], IPCS[:1]),
    "the other": ("a100", ["-i", "--no-persistenced"], IPCS[1:]),
    "firmware": ("a100", ["--firmwares"], FIRMWARE),
    "no firmware": ("a100", ["-f", "--no-gsp-firmware"], []),
    "in the order of the groups": ("a100", ["-fib"], [*BINARIES, *IPCS, *FIRMWARE]),
    "channels, there or not": ("imex", ["--imex-channel=7,0", "--imex-channel=0", "-f"],
                               [*(f"/dev/nvidia-caps-imex-channels/channel{n}" for n in (7, 0)), *FIRMWARE]),
    "a MIG device brings its GPU": ("a100-mig", ["-d", "4:0"], [*CONTROL, *nodes(4), *mig(4, 7, 0, 606, 607)]),
    "a MIG device, then its GPU and another": ("a100-mig", ["-d", "1:1,0"],
                                               [*CONTROL, *nodes(1, 0), *mig(1, 2, 1, 156, 158)]),
    "a GPU alone brings no MIG device": ("a100-mig", ["-d", "4"], [*CONTROL, *nodes(4)]),
    "MIG management without a GPU": ("a100-mig", ["--mig-config=all"], []),
    "MIG management of a GPU without MIG": ("thor", ["-d1", "--mig-monitor=all"], [*CONTROL, *nodes(1)]),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_list(name: str) -> None:
    sample, words, paths = LISTS[name]
    rc, stdout, stderr = each(sample, [["list", *other] for one, other, _ in LISTS.values() if one == sample])[
        shlex.join(["list", *words])
    ]
    assert (rc, stdout.splitlines(), stderr) == (0, paths, "")


def test_a_list_of_everything() -> None:
    """As the reference has it with nothing said: devices, programs, libraries, 32-bit ones, sockets, firmware; nothing
    twice."""
    result = run(built("i386"), "list")
    lines = result.stdout.splitlines()
    assert (result.rc, result.stderr, len(set(lines))) == (0, left_out(NO_NOTE), len(lines))
    top = [*CONTROL, *nodes(0, 1), *BINARIES]
    end = [*IPCS, *FIRMWARE]
    assert (lines[: len(top)], lines[-len(end) :]) == (top, end)
    middle = lines[len(top) : -len(end)]
    stems = [re.sub(r".*/|\.so\..*", "", path) for path in middle]
    order = choose.all_library_names()
    narrow = [path for path in middle if path.startswith("/usr/lib/i386-linux-gnu/")]
    assert middle == [path for path in middle if path not in narrow] + narrow
    wide = stems[: len(middle) - len(narrow)]
    assert wide[:4] == ["libnvidia-ml", "libnvidia-cfg", "libcuda", "libcudadebugger"]
    for group in (wide, stems[len(wide) :]):
        assert [order.index(stem) for stem in group] == sorted({order.index(stem) for stem in group})
    assert {"libGLX_nvidia", "libnvidia-ngx", "libnvcuvid", "libnvidia-encode"} <= set(wide)
    assert not {"libnvidia-egl-gbm", "libnvidia-api", "libnvidia-sandboxutils"} & set(wide)
    channel = run(built("i386"), "list", "--imex-channel=5").stdout.splitlines()
    assert channel == [*top[:6], "/dev/nvidia-caps-imex-channels/channel5", *lines[6:]]


@pytest.mark.parametrize(("what", "minor"), [("config", 1), ("monitor", 2)])
def test_mig_management(what: str, minor: int) -> None:
    result = run(built("a100-mig"), "list", "-d4,0", f"--mig-{what}=all")
    lines = result.stdout.splitlines()
    assert (result.rc, result.stderr) == (0, "")
    assert lines[:6] == [*CONTROL, *nodes(4, 0)]
    assert lines[6:10] == [f"{CAPABILITIES}/mig/{what}", f"/dev/nvidia-caps/nvidia-cap{minor}", f"{CAPABILITIES}/gpu4",
                           "/dev/nvidia-caps"]  # fmt: skip
    again = lines.index(f"{CAPABILITIES}/gpu0")
    table = [entry for entry in simnode.sample("a100-mig")["files"] if entry["path"].endswith("/mig-minors")]
    minors = dict(line.rsplit(" ", 1) for line in table[0]["text"].splitlines())
    for gpu, found in ((4, lines[10:again]), (0, lines[again + 2 :])):
        wanted = [f"/dev/nvidia-caps/nvidia-cap{n}" for key, n in minors.items() if key.startswith(f"gpu{gpu}/")]
        assert (found, len(found) > 100) == (wanted, True)


# -- what can be wrong ------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """told: the beginning of the line on stderr."""

    node: str
    words: list[str]
    told: str
    faults: dict[str, Any] | None = None


CASES = {
    "unknown device": Case("a100", ["list", "-d9"], "device error: 9: unknown device (this node has GPU 0 to 7"),
    "lost device": Case("gpu-lost", ["list", "-d1"], "device error: 1: unknown device (this node has GPU 0 to 2;"),
    "channel": Case("a100", ["list", "--imex-channel=1048576"],
                    "error parsing IMEX info: unsupported IMEX channel value: 1048576"),
    "MIG of some": Case("a100-mig", ["list", "-d0", "--mig-config=0"], "mig-config error: 0: only 'all'"),
    "MIG beside a MIG device": Case("a100-mig", ["list", "-d4:0", "--mig-monitor=all"],
                                    "mig-monitor error: cannot enable mig-monitor with specific MIG devices selected"),
    "no module": Case("driver-not-loaded", ["info"], "initialization error: nvml error: driver not loaded: "),
    "no module, a list": Case("driver-not-loaded", ["list", "-l"],
                              "initialization error: nvml error: driver not loaded: "),
    "another module": Case("version-mismatch", ["info"],
                           "initialization error: nvml error: driver/library version mismatch: "),
    "no library": Case("half-removed", ["info"], "initialization error: load library failed: libnvidia-ml.so.1: "
                       "cannot open shared object file: no such file or directory (find the driver "),
    "Tegra": Case("tegra", ["info"], "initialization error: load library failed: libnvidia-ml.so.1: cannot open "
                  "shared object file: no such file or directory (a Tegra system without it: use CDI)"),
    "crash": Case("no-drm", ["info"], "initialization error: driver rpc error: failed to process request: ",
                  {"crash": "init"}),
    "no user": Case("no-drm", ["--user=nobody-here", "info"],
                    "input error: parse user/group failed: no such file or directory"),
    "no root": Case("no-drm", ["--root=/nowhere", "info"],
                    "initialization error: change root failed: /nowhere: no such file or directory (ENOENT; "),
    "empty root": Case("no-drm", ["-r", "", "info"], "initialization error: invalid argument"),
    "no cache": Case("no-drm", ["--ldcache=/nowhere", "info"],
                     "detection error: open failed: /nowhere: no such file or directory (ENOENT; see --ldcache"),
    "a cache that is none": Case("no-drm", ["--ldcache=/etc/passwd", "info"],
                                 "detection error: unsupported file format: /etc/passwd"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_error_is_one_line_of_its_class(name: str) -> None:
    case = CASES[name]
    if case.faults:
        result = run(fresh(case.node, case.faults), *case.words)
        rc, stdout, stderr = result.rc, result.stdout, result.stderr
        assert result.survivors == []
    else:
        calls = [other.words for other in CASES.values() if other.node == case.node and not other.faults]
        rc, stdout, stderr = each(case.node, calls)[shlex.join(case.words)]
    lines = [line for line in stderr.splitlines() if not line.startswith(f"{PROGRAM}warning: ")]
    assert (rc, stdout, len(lines)) == (1, "", 1), stderr
    assert lines[0].startswith(PROGRAM + case.told), stderr


def test_a_lost_gpu_is_told_and_the_others_are_not_lost_with_it() -> None:
    result = run(built("gpu-lost"), "info", "--csv")
    assert (result.rc, [line.split(",")[0] for line in result.stdout.splitlines()[4:]]) == (0, ["0", "2"])
    assert result.stderr.startswith(f"{PROGRAM}warning: ask NVML about GPU 1: ")
    assert len(result.stderr.splitlines()) == 1


USAGE = {
    "": "Usage: ",
    "x": "Usage: ",
    "info x": "Too many arguments",
    "-x": "invalid option",
    "list --no": "is ambiguous",
}


@pytest.mark.parametrize("words", USAGE)
def test_a_usage_error_ends_with_1(words: str) -> None:
    result = proc.run([cli(), *words.split()])
    assert (result.rc, result.stdout, USAGE[words] in result.stderr.splitlines()[0]) == (1, "", True)
    assert result.stderr.splitlines()[-1].endswith("information.")


def test_version_and_help() -> None:
    result = proc.run([cli(), "configure", "--version"])
    keys = ["cli-version", "lib-version", "build date", "build revision", "build compiler", "build platform",
            "build flags"]  # fmt: skip
    rows = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert (result.rc, list(rows), result.stderr) == (0, keys, "")
    assert re.fullmatch(r"\d+\.\d+\.\d+", rows["cli-version"])
    assert rows["build platform"] == platform.machine()
    result = proc.run([cli(), "list", "--help"])
    assert (result.rc, result.stdout.split("\n")[0]) == (0, "Usage: nvidia-container-cli list [OPTION...]")


# -- who, how, and from what ------------------------------------------------------------------------------------------

NOBODY = ("/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
TOP_OF_A_USERNS = ("/usr/bin/setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "/usr/bin/unshare", "--user",
                   "--map-root-user")  # fmt: skip


@pytest.mark.parametrize("wrapper", [NOBODY, TOP_OF_A_USERNS], ids=["nobody", "root of a user namespace"])
@pytest.mark.parametrize("main", [[], ["--user"], ["--user=0:0"], ["-u65534:65534"]], ids=str)
def test_it_needs_no_root(wrapper: tuple[str, ...], main: list[str]) -> None:
    node = built("no-drm")
    if wrapper is NOBODY and "--user=0:0" in main:
        pytest.skip("it cannot become root")
    check = f"open({str(session.HOOKS / 'nvoci/__init__.py')!r})"
    if proc.run([SIMNODE, "run", node.root, "--", *NOBODY, session.PYTHON, "-ISc", check]).rc:
        pytest.skip("uid 65534 can not read this checkout")
    result = run(node, *main, "info", wrapper=wrapper)
    assert (result.rc, result.stdout, result.stderr) == (0, INFO, "")


def test_root_asks_as_who_is_named_and_other_options_change_nothing() -> None:
    calls = [[word, "info"] for word in ("--user=65534:65534", "--user", "-u0:0", "-k", "-n", "--no-create-imex")]
    assert list(each("no-drm", calls).values()) == [(0, INFO, "")] * 6


def test_a_library_cache_of_ones_own() -> None:
    """Of directories that nobody else looks in."""
    node = fresh("cache-only")
    cache = f"{node.root}/etc/other.cache"
    there = proc.run(["/sbin/ldconfig", "-r", node.root, "-C", "/etc/other.cache", "-X"])
    assert there.rc == 0, there.stderr
    assert Path(cache).exists()
    result = run(node, f"--root={node.root}", "--ldcache=/etc/other.cache", "list", "-l", installed=False)
    told = left_out(NO_NOTE, f"{node.root}/opt/nvidia/driver/lib")
    assert (result.rc, result.stderr) == (0, told)
    assert result.stdout.splitlines()[0] == f"/opt/nvidia/driver/lib/libnvidia-ml.so.{V}"


def test_the_first_call_makes_the_inventory_and_the_next_asks_no_nvml() -> None:
    """A library that does not answer any more is not noticed, unless a MIG device is named."""
    node = fresh("a100-mig")
    faults = "echo hang=init > /run/.simnode-faults"
    script = f"""
        {cli()} info --csv > /tmp/cli-1.$$ && test -s /run/nvoci/inventory && {faults}
        {cli()} info --csv | cmp - /tmp/cli-1.$$ && echo same
        {cli()} --user info --csv | cmp - /tmp/cli-1.$$ && echo same
        {cli()} list -d 0 | wc -l
        setpriv --reuid=65534 --regid=65534 --clear-groups {cli()} info --csv | cmp - /tmp/cli-1.$$ && echo same
        rm /tmp/cli-1.$$
    """
    result = shell(node, script)
    assert (result.stdout.split(), result.stderr, result.rc) == (["same", "same", "5", "same"], "", 0)


LINE = re.compile(r"[IWE]\d{4} \d\d:\d\d:\d\d\.\d{6} \d+ \w+\.py:\d+\] .+")


@pytest.mark.parametrize("how", ["option", "relative", "variable", "stderr"])
def test_a_debug_log(how: str, tmp_path: Path) -> None:
    """Appended to, in the form that people and scripts know."""
    path = tmp_path / "x.log"
    path.write_text("before\n")
    words = {"option": ["-d", str(path)], "relative": ["--debug=x.log"], "stderr": ["-d/dev/stderr"]}.get(how, [])
    env = {"NVC_DEBUG_FILE": str(path)} if how == "variable" else {}
    result = run(built("no-drm"), *words, "list", "-d9", env=env, cwd=tmp_path)
    text = result.stderr if how == "stderr" else path.read_text()
    assert result.rc == 1
    assert how == "stderr" or text.startswith("before\n")
    lines = text[text.index("\n-- WARNING") :].splitlines()
    error = [line for line in lines if line.startswith(PROGRAM)]
    lines = [line for line in lines if line not in error]
    assert lines[:3] == ["", "-- WARNING, the following logs are for debugging purposes only --", ""]
    assert [line for line in lines[3:] if not LINE.fullmatch(line)] == []
    assert "] nvidia-container-cli " in lines[3]
    assert lines[-1].startswith("E")
    assert "] device error: 9: unknown device (" in lines[-1]


def test_a_log_that_cannot_be_written_is_no_error() -> None:
    calls = [[f"--debug={path}", "info"] for path in ("/nowhere/x", "/", "", "/proc/version")]
    assert list(each("no-drm", calls).values()) == [(0, INFO, "")] * 4
