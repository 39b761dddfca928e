"""The third part of scripts/demo: GPUs by the prestart hook, which engines without CDI call.

config.json has that hook and nothing of a driver; the container's environment says what it is to have. The containers
`before` are the same but for that environment: what asks for nothing is left as it is. The nodes are this machine if it
has a driver, else simulated ones: eight GPUs, and MIG devices.
"""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import _demo_cdi as cdi
import _demo_container as container
from _demo_node import Node
from _demo_rows import ABSENT, Row, Rows, becomes
from _private import ToolError

HOOK = "nvidia-container-runtime-hook"
DEVICES = "NVIDIA_VISIBLE_DEVICES"
MIG_SAMPLE = "a100-mig"
LEFT_OUT = "left out, the simulated node's NVML library is for x86-64"
TIMEOUT = 60.0
VIDEO = "libnvidia-encode.so.1"
_CONFIG = "/etc/nvidia-container-runtime/config.toml"
_ALLOWED = "may be opened"
_REFUSED = "refused: EPERM"
_LISTED = ", each in `ldconfig -p`"
_SHARED = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")  # with compute and utility, the default
# A node that cannot be opened because no driver is behind it is one that the device rules allow.
_REPORT = r"""
opens() {
    error=$( (: <"$1") 2>&1 ) && error=
    case $error in *'not permitted') echo 'refused: EPERM';; *) echo 'may be opened';; esac
}
say asked "${NVIDIA_VISIBLE_DEVICES:--}"
for node in $watched; do
    test -c "$node" && numbers=$(printf '%d:%d' "0x$(stat -c %t "$node")" "0x$(stat -c %T "$node")") || numbers=
    say "opens:$node" "${numbers:--}${numbers:+, $(opens "$node")}"
done
say count "$(find /dev -type c -path '/dev/nvidia*' | grep -vc /dev/nvidia-caps/)"
say caps "$(find /dev -type c -path '/dev/nvidia-caps/*' | grep -c .)"
for number in $numbered; do
    mknod /tmp/made c "${number%:*}" "${number#*:}" && say "made:$number" "$(opens /tmp/made)"
    rm -f /tmp/made
done
say smi "$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ')"
say gpus "$(ls /proc/driver/nvidia/gpus 2>/dev/null | tr '\n' ' ')"
say access "$(cd /proc/driver/nvidia/capabilities 2>/dev/null && find . -name access | sort | tr '\n' ' ')"
"""


class Asked(NamedTuple):
    """What a container asks for, and what it is promised by that: device nodes with their numbers; numbers that it may
    not open (its own node, made by mknod) with whose they are; bus ids of GPUs; access files of MIG instances, without
    the name, where the node has them."""

    devices: str
    nodes: dict[str, str]
    refused: dict[str, str]
    gpus: list[str]
    access: list[str] | None = None


# --- what is asked for ----------------------------------------------------------------------------------------------


def ask_gpus(node: Node, *indices: int) -> Asked:
    """GPUs by their indices, which NVML gives in the order of the bus ids."""
    found = _minors(node)
    if len(found) <= max(indices):
        raise ToolError(
            f"find GPU {max(indices)} in `{node.params.parent}/gpus`: {len(found)} there have a device node"
        )
    gpus = [sorted(found)[index] for index in indices]
    minors = {found[gpu] for gpu in gpus}
    devices = {path: f"{major}:{minor}" for path, major, minor in node.devices()}
    paths = [*(f"/dev/nvidia{minor}" for minor in sorted(minors)), *(each for each in _SHARED if each in devices)]
    major = devices[paths[0]].partition(":")[0]
    other = next(minor for minor in range(len(minors) + 1) if minor not in minors)
    refused = {f"{major}:{other}": f"GPU {other}"}
    return Asked(",".join(map(str, indices)), {path: devices[path] for path in paths}, refused, gpus)


def ask_mig(node: Node) -> Asked:
    """The first MIG device of a simulated node's GPU 0, by its UUID."""
    assert node.proc is not None
    simnode: Any = importlib.import_module("lib.simnode")
    first = simnode.load(simnode.sample(MIG_SAMPLE)).nvml["gpus"][0]["mig_devices"][0]
    instance = f"gpu0/mig/gi{first['gpu_instance_id']}"
    own = [instance, f"{instance}/ci{first['compute_instance_id']}"]
    major = re.search(r"^ *(\d+) nvidia-caps$", (node.proc.parent / "devices").read_text(), re.MULTILINE)
    assert major is not None
    minors = _access(node)
    another = next(name for name in sorted(minors) if name.startswith("gpu0/") and not name.startswith(instance))
    whole = ask_gpus(node, 0)
    caps = {f"/dev/nvidia-caps/nvidia-cap{minors[name]}": f"{major[1]}:{minors[name]}" for name in own}
    refused = {
        **{f"{major[1]}:{minors[name]}": name for name in (another, "mig/config")},
        **whole.refused,
    }
    return Asked(first["uuid"], {**caps, **whole.nodes}, refused, whole.gpus, sorted(own))


def _minors(node: Node) -> dict[str, int]:
    """Bus id -> minor of each GPU that has a device node."""
    found = {}
    for file in (node.params.parent / "gpus").glob("*/information"):
        minor = re.search(r"^Device Minor:\s*(\d+)", file.read_text(), re.MULTILINE)
        if minor and int(minor[1]) in node.gpus():
            found[file.parent.name] = int(minor[1])
    return found


def _access(node: Node) -> dict[str, int]:
    """Access files below `capabilities`, without their name -> minor of the capability's node."""
    top = node.params.parent / "capabilities"
    files = {file.relative_to(top): file for file in (*top.rglob("access"), *top.glob("mig/*")) if file.is_file()}
    return {re.sub("/access$", "", str(name)): int(file.read_text().split()[1]) for name, file in sorted(files.items())}


# --- what is shown --------------------------------------------------------------------------------------------------


def rows_for(node: Node, asked: Asked, usual: Rows) -> Rows:
    """Heading -> claims. usual: those of a container that is given all of the node by createContainer hooks."""
    nodes = [
        Row(path.rpartition("/")[2] if "caps" in path else path, f"opens:{path}",
            becomes(ABSENT, f"{number}, {_ALLOWED}"))
        for path, number in asked.nodes.items()
    ]  # fmt: skip
    absent = sorted((path for path, _, _ in node.devices() if path not in asked.nodes), key=lambda path: "-" in path)
    nodes += [Row(f"{path}, not asked for", f"node:{path}", becomes(ABSENT, ABSENT)) for path in absent[:1]]
    counts = {"device nodes of the driver": "count"}
    counts.update({"device nodes of capabilities": "caps"} if asked.access is not None else {})
    for label, key in counts.items():
        count = sum(path.startswith("/dev/nvidia-caps/") == (key == "caps") for path in asked.nodes)
        nodes.append(Row(label, key, becomes("0", str(count))))
    number = next(iter(asked.nodes.values()))
    nodes.append(Row(f"{number} by mknod", f"made:{number}", becomes(_REFUSED, _ALLOWED)))
    for number, whose in asked.refused.items():
        nodes.append(Row(f"{number} by mknod: {whose}", f"made:{number}", becomes(_REFUSED, _REFUSED)))
    proc = [Row("gpus", "gpus", lambda old, new: new == " ".join(asked.gpus))]
    if asked.access is not None:
        own = asked.access
        proc.append(Row("access files in capabilities", "access", lambda old, new: new == " ".join(own)))
    proc += usual["disable-device-node-modification"]
    files = [
        Row("libraries of the driver", "libraries", lambda old, new: old == "0" and new.endswith(_LISTED)),
        *(Row(f"`ldconfig -p`: {name}", f"cached:{name}", _is_found) for name in (container.CUDA, container.ML)),
    ]
    if any(path.name.startswith(VIDEO.partition(".")[0]) for path in node.libraries):
        files.append(Row(f"{VIDEO}, for video", f"cached:{VIDEO}", becomes(ABSENT, ABSENT)))
    if asked.access is None:  # the other sample's NVML library needs one that no driver has
        files += [*usual["enable-cuda-compat"], *usual["update-ldcache"]]
        files += [Row("GPUs that it lists", "smi", becomes("0", str(len(asked.gpus))))] if node.smi else []
    return {
        "what the container asks for": [Row(DEVICES, "asked", becomes(ABSENT, asked.devices))],
        "device nodes": nodes,
        "/proc/driver/nvidia": proc,
        "the driver's files, of capabilities compute and utility": files,
    }


def _is_found(old: str, new: str) -> bool:
    return old == ABSENT and new.startswith("/")


def digest(node: Node, said: dict[str, str]) -> dict[str, str]:
    """What a container said, and what follows from that for the rows."""
    own = {path.name for path in node.libraries}
    lines = [(key.split(":")[1:], file) for key, file in said.items() if key.startswith("line:")]
    cached = {f"cached:{name}": ABSENT for name in (container.CUDA, container.ML, VIDEO)}
    cached.update({f"cached:{name}": directory for (name, directory), file in lines if file in own})
    mounted = {Path(path).name for path in said["mounts"].split()} & own
    listed = mounted.intersection(file for _, file in lines)
    gpus, access = said["gpus"].split(), [re.sub(r"^\./|/access$", "", each) for each in said["access"].split()]
    libraries = f"{len(mounted)}{_LISTED if listed == mounted else f', of these {len(listed)} listed'}"
    return {
        **said,
        **cached,
        "libraries": libraries if mounted else "0",
        "gpus": " ".join(gpus) if len(gpus) < 3 else f"{len(gpus)} GPUs",
        "access": " ".join(access) if len(access) < 3 else f"{len(access)} files",
    }


# --- the containers -------------------------------------------------------------------------------------------------


class Host(NamedTuple):
    """A node that containers are started on, what the claims call it, and what is asked for there."""

    name: str
    node: Node
    asked: Asked


def nodes(place: Path, node: Node) -> list[Host]:
    """This machine, or the simulated nodes; `node` has NVML."""
    if node.real:
        smi = node.smi if node.smi and str(node.smi.parent) in {"/usr/bin", "/bin"} else None
        return [Host("this machine", node._replace(smi=smi), ask_gpus(node, 0))]
    mig = cdi.simulated(place / "mig-node", MIG_SAMPLE)
    assert mig is not None
    several = f"a simulated node with {len(node.gpus())} GPUs"
    return [Host(several, node, ask_gpus(node, 0, 3)), Host("a simulated node with MIG devices", mig, ask_mig(mig))]


def script(node: Node, asked: Asked) -> str:
    """What runs in the container."""
    numbers = [next(iter(asked.nodes.values())), *asked.refused]
    names = {"watched": " ".join(asked.nodes), "numbered": " ".join(numbers)}
    return container.script(
        node, "\n".join([*(f"{name}={shlex.quote(each)}" for name, each in names.items()), _REPORT])
    )


def host(place: Path, node: Node) -> str:
    """Set-up of a jail whose engine is to see `node`, with an empty configuration and no inventory. place: where a file
    for that is made."""
    empty = place / "config.toml"
    empty.write_text("")
    config = f"if [ -e {_CONFIG} ]; then mount --bind {shlex.quote(str(empty))} {_CONFIG}; fi\n"
    if node.proc is None:
        return f"mount -t tmpfs run /run\n{config}"
    return f"{importlib.import_module('lib.hostnode').show(node.proc.parent.parent)}{config}"


def run(place: Path, program: Path, image: Path, node: Node, asked: Asked, *, is_asked: bool) -> dict[str, str]:
    """Start a container through runc that asks, or one that does not; what it says, by key. program: of the installed
    tree."""
    bundle, runtimes = importlib.import_module("lib.bundle"), importlib.import_module("lib.runtimes")
    oracle = importlib.import_module("lib.oracle")
    root = place / "rootfs"
    shutil.copytree(image, root, symlinks=True)
    before = oracle.content_only(oracle.snapshot(root))
    ours = {"path": str(program.with_name(HOOK)), "args": [HOOK, "prestart"], "env": ["NVOCI_HOOK=demo"]}
    driver = [importlib.import_module("lib.hostnode").driver_hook(node.proc, root)] if node.proc else []
    hooks = {"prestart": [*driver, ours]}
    env = [*bundle.STANDARD_ENV, *([f"{DEVICES}={asked.devices}"] if is_asked else [])]
    bundle.make_bundle(place, root, ["/bin/sh", "-c", script(node, asked)], hooks, env=env)
    done = runtimes.Runtime("runc").run(place, timeout=TIMEOUT, setup=host(place, node))
    said = container.said(done, "runc")
    after = oracle.content_only(oracle.snapshot(root))
    changed = sum(before.get(name) != after.get(name) for name in {*before, *after})
    return digest(node, {**said, "changed": str(changed), "left": container.left(done)})
