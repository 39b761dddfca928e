"""A simulated node whose GPUs are in CDI specifications, containers that get them by name, and what these then say."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from e2e.gpunode import CUDA, ML, PARAMS, PROFILE, Seen, make_image, seen
from lib import compat, hookproc, hostnode, jail, proc, runtimes, session
from lib.bundle import Json, make_bundle
from simnode.nodes import built

SAMPLE = "a100"  # 8 GPUs
KIND = "nvidia.com/gpu"
MERGED, REFERENCE = "merged", "reference"
FORMS = {MERGED: "nvoci", REFERENCE: "nvidia-ctk"}  # each program's own default
PODMAN_NEWEST = "0.5.0"  # podman 4.3 leaves out a newer specification without a word
SIMNODE = session.CHECKOUT / "scripts/simnode"
EIGHT = tuple(f"{KIND}={number}" for number in range(8))
_MAJORS = (195, 510, 226)  # nvidia, nvidia-uvm, drm
_ALLOWED = ("No such device or address", "possible")  # no driver, or this machine's own

_REPORT = rf"""
say() {{ printf '%s\t%s\n' "$1" "$2"; }}
opens() {{ error=$( (: <"$1") 2>&1 ) && echo possible || echo "${{error##*: }}"; }}
awk '$5 != "/" {{ print "mount " $5 "\t" $4 " " $6 " " $7 }}' /proc/self/mountinfo
for path in $(find /lib /dev /etc /opt /usr/lib /usr/local -xdev -type l); do
    say "link $path" "$(readlink "$path")"
done
for path in $(find /dev -xdev -type c -o -xdev -type b); do
    number=$(printf '%d:%d' "0x$(stat -c %t "$path")" "0x$(stat -c %T "$path")")
    say "node $path" "$number $(stat -c '%a %u:%g' "$path")"
    case $path in /dev/nvidia*) say "open $path" "$(opens "$path")";; esac
done
mknod /dev/other c 195 200 2>/dev/null; say "open other" "$(opens /dev/other)"
env | sed 's/^/env /; s/=/\t/'
ldconfig -p | sed -n 's/^\t\([^ ]*\) (.*) => \(.*\)$/library \2\t\1/p'
say params "$(sed -n 's/^ModifyDeviceFiles: //p' {PARAMS})"
say profile "$(cat {PROFILE})"
for name in {CUDA} {ML}; do "/usr/bin/probe-$name" >/dev/null 2>&1; say "loads $name" $?; done
say groups "$(id -G)"
"""


class Inspected(NamedTuple):
    """A podman container after its end: what it said, `podman inspect`, and the config.json that podman wrote."""

    seen: Seen
    inspect: Json
    config: Json


class CdiNode:
    """program: an installed `nvidia-cdi-hook`."""

    def __init__(self, program: Path) -> None:
        self.program = program
        self.root = built(SAMPLE).root
        self._hook = _filtered(program) if os.environ.get(hookproc.COMPAT_SWITCH) else program
        self._specs: dict[tuple[str, str], Path] = {}

    def spec_dir(self, form: str, newest: str = "") -> Path:
        """A directory with nvidia.yaml, generated on this node. newest: the version of CDI that it may have."""
        if (form, newest) not in self._specs:
            folder = session.new_dir("cdi")
            command: list[str | Path] = [SIMNODE, "run", "--installed", self.root, "--"]
            command += [self.program.with_name(FORMS[form]), "cdi", "generate", "--output", folder / "nvidia.yaml"]
            command += ["--nvidia-cdi-hook-path", self._hook]
            command += ["--max-cdi-version", newest] if newest else []
            done = proc.run(command, timeout=60)
            assert done.rc == 0, done.stderr
            self._specs[form, newest] = folder
        return self._specs[form, newest]

    def document(self, form: str, newest: str = "") -> Json:
        """The same as PyYAML reads it."""
        text = (self.spec_dir(form, newest) / "nvidia.yaml").read_text()
        found: Json = yaml.safe_load(text)
        return found

    def setup(self) -> str:
        """For a jail: it is the node from here on."""
        return hostnode.show(self.root)

    def params_hook(self, root: Path) -> Json:
        """What the driver's kernel module adds to every procfs: mounted in the container by a hook before ours."""
        return hostnode.driver_hook(self.root / "proc/driver", root)

    def start(self, runtime: str, form: str, names: Sequence[str], newest: str = "") -> Seen:
        """By `runtime`, with a config.json into which `nvoci cdi inject` put the devices on this node."""
        root, bundle = make_image(session.new_dir("image")), session.new_dir("bundle")
        make_bundle(bundle, root, ["/bin/sh", "-c", _REPORT], {"createRuntime": [self.params_hook(root)]})
        inject = [self.program.with_name("nvoci"), "cdi", "inject", "--in-place", bundle / "config.json"]
        inject += ["--spec-dir", self.spec_dir(form, newest), *names]
        setup = f"{self.setup()}{shlex.join(map(str, inject))}\n"
        found = seen(runtimes.Runtime(runtime).run(bundle, setup=setup))
        shutil.rmtree(root)
        return found

    def podman(self, runtime: str, form: str, names: Sequence[str], newest: str = PODMAN_NEWEST) -> Seen:
        """By podman, with the specification in /etc/cdi."""
        root = make_image(session.new_dir("image"))
        specs = {"nvidia.yaml": (self.spec_dir(form, newest) / "nvidia.yaml").read_text()}
        found = runtimes.podman(
            root,
            ["/bin/sh", "-c", _REPORT],
            runtime=runtime,
            hooks_dir=self._hooks_dir(root),
            cdi_specs=specs,
            flags=[f"--device={name}" for name in names],
            setup=self.setup(),
        )
        shutil.rmtree(root)
        return seen(found)

    def inspected(self, form: str, names: Sequence[str]) -> Inspected:
        """By podman and runc, and looked at by podman before it is removed."""
        root, storage = make_image(session.new_dir("image")), session.new_dir("podman")
        name = session.unique("podman")
        podman = ["podman", f"--root={storage}/root", f"--runroot={storage}/run", f"--tmpdir={storage}/tmp"]
        podman += ["--cgroup-manager=cgroupfs", "--runtime=runc", "--events-backend=none"]
        podman += [f"--hooks-dir={self._hooks_dir(root)}"]
        run = ["run", "--network=none", "--ulimit=nofile=512:512", "--ulimit=nproc=256:256", f"--name={name}"]
        run += [f"--cgroup-parent=/{session.TOKEN}", *(f"--device={each}" for each in names)]
        inspect, config = storage / "inspect.json", storage / "config.json"
        call, path = shlex.join(podman), "'{{.OCIConfigPath}}'"
        script = (
            f"{call} {shlex.join([*run, '--rootfs', str(root), '/bin/sh', '-c', _REPORT])}; code=$?\n"
            f'{call} inspect {name} >{inspect}; cp "$({call} inspect --format {path} {name})" {config}\n'
            f"{call} rm -f {name} >/dev/null; exit $code"
        )
        specs = {"/etc/cdi/nvidia.yaml": (self.spec_dir(form, PODMAN_NEWEST) / "nvidia.yaml").read_text()}
        setup = "mount -t tmpfs run /run\nmount -t tmpfs shm /dev/shm\n" + jail.host_files(specs) + self.setup()
        try:
            done = jail.run(["/bin/sh", "-c", script], setup=setup, timeout=60, grace=3)
            assert done.rc == 0, done.stderr
            return Inspected(seen(done), json.loads(inspect.read_text())[0], json.loads(config.read_text()))
        finally:
            runtimes.remove_cgroups()
            shutil.rmtree(storage, ignore_errors=True)
            shutil.rmtree(root)

    def _hooks_dir(self, root: Path) -> Path:
        folder = session.new_dir("hooks.d")
        entry = {"version": "1.0.0", "hook": self.params_hook(root), "when": {"always": True}}
        (folder / "params.json").write_text(json.dumps({**entry, "stages": ["createRuntime"]}))
        return folder


def _filtered(program: Path) -> Path:
    """The same program, without the newer system calls."""
    path = session.new_dir("filtered") / program.name
    path.write_text(f'#!/bin/sh\nexec {shlex.join([*compat.prefix(), str(program)])} "$@"\n')
    path.chmod(0o755)
    return path


# -- what a specification promises -------------------------------------------------------------------------------------


def edits(document: Json, names: Iterable[str]) -> list[Json]:
    """Those for all devices, then those of each that is named."""
    known = {f"{document['kind']}={device['name']}": device["containerEdits"] for device in document["devices"]}
    return [document["containerEdits"], *(known[name] for name in names)]


def parts(document: Json, names: Iterable[str], key: str) -> list[Any]:
    """All `mounts`, `hooks`, `deviceNodes` or `env` of those."""
    return [each for found in edits(document, names) for each in found.get(key, ())]


def links(document: Json, names: Iterable[str]) -> dict[str, str]:
    """Path -> target, by the `--link` options of hooks in the reference's form."""
    words = [word for hook in parts(document, names, "hooks") for word in hook["args"]]
    pairs = [value.split("::") for flag, value in zip(words, words[1:]) if flag == "--link"]
    return {path: target for target, path in pairs}


def place(path: str, said: dict[str, str]) -> str:
    """Where `path` lies in a container, whose image has links on the way to it."""
    folder, _, name = path.rpartition("/")
    if not folder:
        return path
    folder = place(folder, said)
    target = said.get(f"link {folder}")
    return f"{folder}/{name}" if target is None else place(os.path.join(os.path.dirname(folder), target, name), said)


def broken(document: Json, names: Sequence[str], said: dict[str, str]) -> list[str]:
    """Promises of a specification, in the reference's form, that a container does not keep; empty is good."""
    exact = _exact(document, names, said)
    wrong = [f"{key} is {said.get(key)}, not {value}" for key, value in exact if said.get(key) != value]
    for each in parts(document, names, "mounts"):
        found = said.get(f"mount {place(each['containerPath'], said)}", "")
        root, options, propagation, *_ = [*found.split(), "", "", ""]
        flags = {"ro", "nosuid", "nodev", "noexec"}
        if os.path.basename(root) != os.path.basename(each["hostPath"]):
            wrong.append(f"{each['containerPath']} is a mount of {root or 'nothing'}")
        elif flags & set(options.split(",")) != flags & set(each["options"]) or propagation != "-":
            wrong.append(f"{each['containerPath']} has {options} {propagation}")
    wrong += [f"{key} is {value}" for key, value in said.items()
              if key.startswith("open ") and (value in _ALLOWED) == (key == "open other")]  # fmt: skip
    nodes = {f"node {each['path']}" for each in parts(document, names, "deviceNodes")}
    ours = tuple(f"{major}:" for major in _MAJORS)
    wrong += [f"{key} was not asked for" for key, value in said.items()
              if key.startswith("node ") and value.startswith(ours) and key not in nodes]  # fmt: skip
    listed = {said[key] for key in said if key.startswith("library ")}
    missing = {CUDA, ML, "libcuda.so", "libnvidia-ml.so"} - listed
    return [*wrong, *(f"ldconfig -p has no {name}" for name in sorted(missing))]


def _exact(document: Json, names: Sequence[str], said: dict[str, str]) -> list[tuple[str, str]]:
    """What the container has to say, by key."""
    found = [(f"link {place(path, said)}", target) for path, target in links(document, names).items()]
    for each in parts(document, names, "deviceNodes"):
        number = f"{each['major']}:{each.get('minor', 0)}"
        found.append((f"node {each['path']}", f"{number} {each['fileMode']:o} 0:{each.get('gid', 0)}"))
    for each in parts(document, names, "env"):
        name, _, value = each.partition("=")
        found.append((f"env {name}", value))
    gids = sorted({gid for each in edits(document, names) for gid in each.get("additionalGids", ())})
    found += [("groups", " ".join(map(str, [0, *gids])))]
    return [*found, ("params", "0"), (f"loads {CUDA}", "0"), (f"loads {ML}", "0")]


def of_driver(document: Json, names: Sequence[str], said: dict[str, str]) -> dict[str, str]:
    """The part of a report that does not depend on the engine: what the specification names, and the libraries."""
    keys = [f"mount {place(each['containerPath'], said)}" for each in parts(document, names, "mounts")]
    keys += [key for key, _ in _exact(document, names, said)]
    keys += [key for key in said if key.startswith(("library ", "link /dev/dri"))]
    return {key: said.get(key, "") for key in [*keys, "profile", f"mount {PARAMS}"]}
