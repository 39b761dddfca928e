"""Show what nvoci does: containers without and with a driver and GPUs, in each way that engines ask hooks for them.

One has a driver's files mounted and is started without and with the hooks; one gets a GPU by its CDI name; others ask
the prestart hook, for GPUs or a MIG device; and Docker is told --gpus. scripts/demo has installed what is needed. This
installs nvoci into a temporary prefix and makes small images. Every line that is shown is checked as well. The driver
is this machine's own, or a simulated one. What it makes lies in a private mount namespace and goes with it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).resolve().parent.parent
# -I leaves the script's own directory out of sys.path.
sys.path[:0] = [str(CHECKOUT / "scripts"), str(CHECKOUT / "hooks"), str(CHECKOUT / "tests")]
sys.dont_write_bytecode = True

import _demo_cdi as cdi  # noqa: E402
import _demo_container as container  # noqa: E402
import _demo_docker as docker  # noqa: E402
import _demo_node as node_of  # noqa: E402
import _demo_prestart as prestart  # noqa: E402
from _demo_rows import ABSENT, Row, Rows, becomes, show, stays  # noqa: E402
from _private import WITHIN, ToolError, enter, install, run_again  # noqa: E402

PYTHON = "/usr/bin/python3"


# --- what is shown --------------------------------------------------------------------------------------------------


def rows_for(node: node_of.Node) -> Rows:
    """Heading -> claims."""
    mask = f'["EGLVisibleDGPUDevices",{sum(1 << minor for minor in node.gpus()):#x}]'
    mounted = [Row(name, f"node:{name}", stays(f"{major}:{minor}")) for name, major, minor in node.first_devices(3)]
    mounted += [
        Row(f"firmware {path.name}, bytes", f"firmware:{node.firmware_path(path)}", stays(str(path.stat().st_size)))
        for path in node.firmware[:1]
    ]
    if node.socket:
        mounted.append(Row("socket of nvidia-persistenced", "socket", stays("there")))
    # A driver that is configured not to modify device files is left as it is, and procfs refuses in its own words.
    refused = "refused: Read-only file system" if node.modifies() == "1" else "refused: "
    smi = "nvidia-smi -L" if node.smi else f"program using {container.ML}"
    return {
        "mounts and devices, as the engine gives them": mounted,
        "create-symlinks": [
            Row("libcuda.so", "link", becomes(ABSENT, container.CUDA)),
            Row("gbm/… through an absolute link", "image_link", becomes(ABSENT, "../libnvidia-allocator.so.1")),
        ],
        "chmod": [Row(f"mode of {container.CACHE}", "mode", becomes("700", "1777"))],
        "update-application-profile": [
            Row("EGL may use GPUs", "profile", lambda old, new: old == ABSENT and mask in new),
        ],
        "disable-device-node-modification": [
            Row("params: ModifyDeviceFiles", "params", becomes(node.modifies(), "0")),
            Row("writing params as root", "write", lambda old, new: new.startswith(refused)),
        ],
        "enable-cuda-compat": [
            Row(f"ld.so finds {container.CUDA}", "finds_cuda",
                lambda old, new: old == "not found" and new == f"{container.COMPAT}/{container.CUDA}"),
        ],
        "update-ldcache": [
            Row(f"ld.so finds {container.ML}", "finds_ml",
                lambda old, new: old == "not found" and new.endswith(f"/{container.ML}")),
            Row(smi, "runs", lambda old, new: old.startswith("exit status") and new == "runs"),
        ],
        "the host": [Row("processes and mounts left behind", "left", stays("nothing"))],
    }  # fmt: skip


def rows_of_cache(node: node_of.Node, before: dict[str, str], after: dict[str, str]) -> Rows:
    """Heading -> claims about `ldconfig -p` in the container, and what they are made of, in `before` and `after`: the
    directory of each new line, how many of the driver's libraries no line leads to, how many of the image's do."""
    lines = [{key: file for key, file in said.items() if key.startswith("line:")} for said in (before, after)]
    driver = {path.name for path in node.libraries}
    rows = []
    for key in sorted(lines[1].keys() - lines[0].keys()):
        _, name, directory = key.split(":")
        is_ours = lines[1][key] in driver or directory == container.COMPAT
        before[key], after[key] = ABSENT, directory
        rows.append(Row(name, key, becomes(ABSENT, directory if is_ours else "of the driver")))
    for said, found in zip((before, after), lines):
        said["unlisted"] = str(len(driver.difference(found.values())))
        said["kept"] = str(sum(found.get(key) == file for key, file in lines[0].items()))
    rows.append(Row("driver libraries without a line", "unlisted", becomes(str(len(driver)), "0")))
    rows.append(Row("lines of the image's own", "kept", stays(str(len(lines[0])))))
    return {"update-ldcache: `ldconfig -p` in the container": rows}


def rows_of_cdi(node: node_of.Node, spec: cdi.Spec) -> Rows:
    """Heading -> claims about a container before and after it was given a GPU by name."""
    devices = {path: f"{major}:{minor}" for path, major, minor in node.devices()}
    given = [path for path in devices if path in spec.nodes]
    shown = [path for path in given if path[-1].isdigit() or path.endswith("ctl")]
    others = [path for path in devices if path not in spec.nodes][:1]
    nodes = [Row(path, f"node:{path}", becomes(ABSENT, devices[path])) for path in shown]
    nodes += [Row(f"{path}, not asked for", f"node:{path}", becomes(ABSENT, ABSENT)) for path in others]
    nodes.append(Row("device nodes of the driver", "nodes", becomes("0", str(len(given)))))
    nodes.append(Row("files of the driver, mounted", "mounts", becomes("0", str(len(spec.mounts)))))
    mask = f'["EGLVisibleDGPUDevices",{spec.gpu_mask():#x}]'
    usual = rows_for(node)
    hooks = usual["create-symlinks"] if spec.links_are_usual() else []
    hooks = [*hooks, Row("EGL may use GPUs", "profile", lambda old, new: old == ABSENT and mask in new)]
    for heading in ("disable-device-node-modification", "enable-cuda-compat", "update-ldcache"):
        hooks += usual[heading]
    hooks.append(Row("hook processes", cdi.HOOKS, becomes("0", "1")))
    return {"what the name stands for": nodes, "what its hooks do": hooks, "the host": usual["the host"]}


# --- the demo -------------------------------------------------------------------------------------------------------


def _name(node: node_of.Node) -> str:
    return "this machine" if node.real else "a simulated node"


def show_cdi(place: Path, program: Path, node: node_of.Node, image: Path) -> tuple[list[str], int]:
    """The container that gets a GPU by name: the labels of the claims that do not hold, and how many there are."""
    spec = cdi.generate(place / "cdi", program, node)
    print(f"\nby the Container Device Interface, on {_name(node)} with {len(node.gpus())} GPUs:")
    for words in (spec.command, spec.inject_command("config.json")):
        print(textwrap.fill(" ".join(words), 98, initial_indent=" " * 8, subsequent_indent=" " * 14))
    before, after = (cdi.run(place / f"cdi-{name}", program, image, node, spec, is_given=name == "after")
                     for name in ("before", "after"))  # fmt: skip
    rows = rows_of_cdi(node, spec)
    return show(rows, before, after), sum(map(len, rows.values()))


def show_prestart(place: Path, program: Path, nodes: list[prestart.Host], image: Path) -> tuple[list[str], int]:
    """Containers that ask the prestart hook for GPUs: as show_cdi()."""
    wrong, count = [], 0
    for name, each, asked in nodes:
        print(f"\nby the prestart hook, on {name}; before, nothing is asked for:")
        print(f"        hooks.prestart of config.json: {prestart.HOOK} prestart")
        print(f"        process.env of config.json: {prestart.DEVICES}={asked.devices}")
        part = place / f"prestart-{asked.devices}"
        before, after = (prestart.run(part / when, program, image, each, asked, is_asked=when == "after")
                         for when in ("before", "after"))  # fmt: skip
        usual = rows_for(each)
        changed = Row("files and directories changed", "changed", lambda old, new: old == "0" != new)
        rows = {**prestart.rows_for(each, asked, usual), "the image": [changed], "the host": usual["the host"]}
        wrong += show(rows, before, after)
        count += sum(map(len, rows.values()))
        if each.real:
            print("\nMIG devices: left out, on a machine with a driver of its own")
    return wrong, count


def show_docker(place: Path, program: Path, nodes: list[prestart.Host], image: Path) -> tuple[list[str], int]:
    """Containers that Docker starts: as show_cdi(). nodes: as of show_prestart()."""
    wrong, count = [], 0
    for name, each, of_runc in nodes:
        asked, usual = docker.ask(each, of_runc), rows_for(each)
        with docker.start(place / f"docker-{asked.devices}", program, image, each) as engine:
            print(f"\nby Docker {engine.version}, on {name}; before, without --gpus:")
            print(f"        docker run {shlex.join(docker.words(asked))} IMAGE")
            before, after = (docker.run(engine, each, asked, is_asked=is_asked) for is_asked in (False, True))
        rows = {**prestart.rows_for(each, asked, usual), "the host": usual["the host"]}
        wrong += show(rows, before, after)
        count += sum(map(len, rows.values()))
    return wrong, count


def show_engines(
    place: Path, program: Path, node: node_of.Node, answering: node_of.Node
) -> Iterator[tuple[list[str], int]]:
    """Each way in which engines ask for GPUs: as show_cdi(). answering: `node` as one whose NVML answers."""
    image = container.make_image(place / "cdi-image", answering)
    yield show_cdi(place, program, answering, image)
    nodes = prestart.nodes(place, node if node.real else answering)
    yield show_prestart(place, program, nodes, image)
    yield show_docker(place, program, [each._replace(node=answering) if node.real else each for each in nodes], image)


def within(place: Path) -> int:
    """In the private mount namespace."""
    container.name_session()
    program = install(place / "nvoci", PYTHON)
    node = node_of.find(place / "driver")
    image = container.make_image(place / "image", node)
    entry = container.hook(program, node)
    kind = "this machine's" if node.real else "simulated (there is none here)"
    print(f"driver: {kind}, version {node.version}, {len(node.gpus())} GPUs, {len(node.libraries)} libraries")
    print("hook, at createContainer, one process:")
    for part in " ".join(entry["args"]).replace(" -- ", "\n  -- ").splitlines():
        print(textwrap.fill(part, 98, initial_indent=" " * 8, subsequent_indent=" " * 14, break_on_hyphens=False))
    before = container.run(place / "before", image, node, [])
    after = container.run(place / "after", image, node, [entry])
    rows = rows_for(node)
    host = rows.popitem()
    rows = {**rows, **rows_of_cache(node, before, after), host[0]: host[1]}
    wrong = show(rows, before, after)
    wrong += [f"`{path}` on the host" for path in (container.IMAGE_TARGET,) if os.path.lexists(path)]
    count = sum(map(len, rows.values()))
    answering = cdi.node_with_nvml(place / "cdi-node", node)
    if answering is None:
        print("\nCDI, the prestart hook, Docker: left out, the simulated node's NVML library is for x86-64")
    for more, claims in show_engines(place, program, node, answering) if answering else ():
        wrong += more
        count += claims
    if wrong:
        print(f"\ndemo: FAILED: {len(wrong)} of {count} claims do not hold: {'; '.join(wrong)}")
        return 1
    engines = "runc and Docker" if answering else "runc"
    print(f"\ndemo: ok: all {count} claims hold in containers started by {engines}")
    return 0


def main() -> int:
    """Exit status: 0 shown and right, 1 not, 2 usage, 130 interrupted."""
    words = sys.argv[1:]
    parser = argparse.ArgumentParser(prog="scripts/demo", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(WITHIN, metavar="DIR", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    try:
        if options.within:
            place = enter(options.within)
            try:
                return within(place)
            finally:
                container.forget_session()
        return run_again("_demo.py", words)
    except (ToolError, OSError, subprocess.SubprocessError) as error:
        print(f"demo: FAILED: {error}")
    except KeyboardInterrupt:
        if not options.within:
            print("\ndemo: FAILED: interrupted")
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
