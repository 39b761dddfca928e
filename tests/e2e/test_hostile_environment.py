"""What an image can try while a hook runs in its container: its environment, its files, its links."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from e2e.gpunode import ALL, IMAGE_LINK, PLAIN, Node, Program, run_words
from lib import jail, oracle, proc, rootfs, runtimes, session
from lib.bundle import STANDARD_ENV

pytestmark = [pytest.mark.e2e, pytest.mark.security]
EVERYTHING = {**PLAIN, **ALL}
CWD = "/proc/self/cwd"
HOSTILE = {
    "LD_PRELOAD": f"{CWD}/pre.so", "LD_LIBRARY_PATH": CWD, "PYTHONPATH": CWD, "PYTHONSTARTUP": f"{CWD}/site.py",
    "PYTHONINSPECT": "1", "PYTHONVERBOSE": "1", "PYTHONMALLOC": "debug", "GCONV_PATH": CWD, "BASH_ENV": f"{CWD}/sh",
}  # fmt: skip
# Without LD_*, which has its effect before the program is there: only an `env` in the entry helps.
AFTER_THE_LOADER = {name: value for name, value in HOSTILE.items() if not name.startswith("LD_")}
MODULES = ("json", "site", "sitecustomize", "usercustomize", "ctypes", "_ctypes", "posixpath", "nvoci", "os")


class Canary:
    """A file that every hostile module writes to, and modules of those names in the container's root directory."""

    def __init__(self, root: Path, file: Path) -> None:
        self.file = file
        file.touch()
        file.chmod(0o666)
        code = f"open({str(file)!r}, 'a').write(__name__ + ' ')\n"
        for folder in (root, root / "usr/lib/python3.11", root / "usr/lib/python3/dist-packages"):
            folder.mkdir(parents=True, exist_ok=True)
            for name in MODULES:
                (folder / name).mkdir(exist_ok=True)
                (folder / name / "__init__.py").write_text(code)
                (folder / f"{name}.py").write_text(code)
        (root / "sh").write_text(f"echo sh >>{file}\n")

    def touched(self) -> str:
        return self.file.read_text()


@pytest.fixture
def canary(node: Node, tmp_path: Path) -> Canary:
    return Canary(node.root, tmp_path / "canary")


def runc_passes_the_container_s_environment() -> bool:
    """runc before 1.3 (what a hook entry without `env` then gets: the container's)."""
    out = proc.run(["runc", "--version"]).stdout if runtimes.available("runc") else ""
    found = re.match(r"runc version (\d+)\.(\d+)", out)
    return found is not None and tuple(map(int, found.groups())) < (1, 3)


needs_old_runc = pytest.mark.skipif(
    not runc_passes_the_container_s_environment(), reason="runc 1.3 does not pass the container's environment on"
)


def image_env(variables: dict[str, str]) -> list[str]:
    return [*STANDARD_ENV, *(f"{k}={v}" for k, v in variables.items())]


def test_with_an_env_in_the_entry_nothing_of_the_image_arrives(
    node: Node, canary: Canary, runtime: str, tmp_path: Path
) -> None:
    record = tmp_path / "env"
    shell = f'cat /proc/self/environ >{record}; exec "$@"'
    entry = node.program.entry(*run_words(), shell=shell)
    seen = node.start(runtime, "createContainer", entry, env=image_env(HOSTILE), more="echo env $PYTHONPATH")
    assert seen.said == EVERYTHING, seen.result.stderr
    assert seen.result.stdout.splitlines()[-1] == f"env {CWD}"
    names = record.read_bytes().split(b"\0")[:-1]
    assert [n for n in names if not n.startswith(b"PWD=")] == [b"NVOCI_HOOK=e2e"]  # PWD is the recording shell's
    assert canary.touched() == ""


@needs_old_runc
def test_without_it_no_module_of_the_image_is_imported(node: Node, canary: Canary, tmp_path: Path) -> None:
    """The interpreter is isolated; what is dangerous is named in the log, once, and the start goes on."""
    log = tmp_path / "hook.log"
    setup = jail.host_files({"/etc/nvoci/hook.json": json.dumps({"log": {"file": str(log)}})})
    entry = node.program.entry(*run_words(), env=None)
    seen = node.start("runc", "createContainer", entry, env=image_env(AFTER_THE_LOADER), setup=setup)
    assert seen.said == EVERYTHING, seen.result.stderr
    assert canary.touched() == ""
    lines = [line for line in log.read_text().splitlines() if "dangerous" in line]
    inert = ("PYTHONINSPECT", "PYTHONVERBOSE", "PYTHONMALLOC")  # -I takes their effect away
    named = sorted(name for name in AFTER_THE_LOADER if name not in inert)
    assert [f'variables="{" ".join(named)}"' in line for line in lines] == [True]


@needs_old_runc
def test_a_hook_that_is_not_isolated_would_import_them(node: Node, canary: Canary) -> None:
    """What the isolation is for: the same container, a plain Python hook."""
    naive = {"path": session.PYTHON, "args": ["python3", "-c", "import json"]}
    node.start("runc", "createContainer", naive, env=image_env({"PYTHONPATH": CWD}))
    assert canary.touched() != ""


@pytest.mark.parametrize("stage", ["createRuntime", "createContainer"])
def test_the_environment_of_the_runtime_does_no_harm(node: Node, canary: Canary, runtime: str, stage: str) -> None:
    """An entry without `env` gets it: dockerd passes everything that it has."""
    environ = {
        **AFTER_THE_LOADER,
        "PATH": "/nowhere:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(node.root),
        "LC_ALL": "xx_XX",
    }
    seen = node.start(runtime, stage, node.program.entry(*run_words(), env=None), environ=environ)
    assert seen.said == EVERYTHING, seen.result.stderr
    assert canary.touched() == ""


@pytest.fixture
def outside(node: Node) -> Path:
    """A directory of the host that the image's links name, and one of the same path inside, where they must lead."""
    there = session.new_dir("outside")
    folders = "dir cache 700\ndir conf.d\ndir nvidia\ndir gbm\n"
    rootfs.tree(there, f"{folders}file conf.d/host.conf /host\\n")
    rootfs.tree(node.root / str(there)[1:], folders)
    return there


@pytest.mark.parametrize("stage", ["createRuntime", "createContainer"])
@pytest.mark.parametrize("up", ["", "/../../../../../../../../.."], ids=["absolute", "dots"])
def test_links_of_the_image_lead_into_the_image(
    node: Node, each_program: Program, outside: Path, runtime: str, stage: str, up: str
) -> None:
    to = f"{up}{outside}"
    old = sorted(p.name for p in (node.root / "etc/ld.so.conf.d").iterdir())
    for name in old:
        (node.root / "etc/ld.so.conf.d" / name).rename(node.root / str(outside)[1:] / "conf.d" / name)
    (node.root / IMAGE_LINK[1:]).unlink()
    (node.root / "opt/gbm").rmdir()
    rootfs.tree(
        node.root,
        f"symlink var/cache/nvidia {to}/cache\nsymlink etc/nvidia {to}/nvidia\nsymlink etc/ld.so.conf.d {to}/conf.d\n"
        f"symlink {IMAGE_LINK[1:]} {to}/gbm\nsymlink opt/gbm {to}/gbm",
    )
    with oracle.Oracle(canary=outside, max_wall=20) as witness:
        seen = node.start(runtime, stage, each_program.entry(*run_words()), more=f"stat -c %a {outside}/cache")
    assert witness.check(seen.result, ok=True, lines=None) == []
    assert seen.said == {**EVERYTHING, "mode": "777"}, seen.result.stderr  # that of the link itself
    assert seen.result.stdout.splitlines()[-1] == "1777"


@pytest.mark.parametrize("target", ["/proc/1/root/etc", "/proc/self/cwd", "/proc/self/root/tmp"])
def test_a_link_through_proc_is_refused(node: Node, runtime: str, target: str) -> None:
    """A magic link leaves the root without a path: an error, and the container does not start."""
    rootfs.tree(node.root, f"symlink etc/nvidia {target}")
    with oracle.Oracle() as witness:
        seen = node.start(runtime, "createContainer", node.program.entry(*run_words()))
    assert witness.check(seen.result, ok=False, parts=["ELOOP"] if runtime == "runc" else [], lines=None) == []
    assert seen.said == {}
