"""A simulated node, containers whose config.json has the prestart hook, and what these containers then say."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from e2e.gpunode import Seen, make_image, seen
from lib import compat, hookproc, hostnode, jail, proc, runtimes, session
from lib.bundle import STANDARD_ENV, Json, make_bundle
from simnode.nodes import built

CONFIG = "/etc/nvidia-container-runtime/config.toml"
CAPS_MAJOR = 236  # of every sample with MIG devices
_STATE = "/run/prestart-state"
REPORT = r"""
say() { printf '%s\t%s\n' "$1" "$2"; }
where='^/proc/driver/nvidia|^/dev/nvidia-caps|profiles-rc.d|^/tmp/'
awk '{ sub(",relatime", "", $6); print "mount " $5 "\t" $6 }' /proc/self/mountinfo
awk -v where="$where" '$5 ~ where { print "root " $5 "\t" $4 }' /proc/self/mountinfo
for path in $(find /dev -type c); do
    case $path in /dev/nvidia*) ;; *) continue;; esac
    number=$(printf '%d:%d' "0x$(stat -c %t "$path")" "0x$(stat -c %T "$path")")
    error=$( (: <"$path") 2>&1 ) && error=ok
    say "node $path" "$number ${error##*: }"
done
for path in $(find /usr/bin /usr/lib* /etc -xdev -type l 2>/dev/null); do
    say "link $path" "$(readlink "$path")"
done
for path in $(find /proc/driver/nvidia /etc/nvidia /tmp/nvidia-mps /run/nvidia* 2>/dev/null); do
    say "file $path" "$(stat -c '%A %u:%g' "$path")"
done
say params "$(sed -n 's/^ModifyDeviceFiles: //p' /proc/driver/nvidia/params 2>/dev/null)"
error=$( (echo x >/proc/driver/nvidia/params) 2>&1 ) && error=ok
say write "${error##*: }"
say profile "$(cat /etc/nvidia/nvidia-application-profiles-rc.d/10-container.conf 2>/dev/null)"
ldconfig -p 2>/dev/null | sed -n 's/^\t\([^ ]*\) (.*) => \(.*\)$/library \1\t\2/p' | awk -F'\t' '!seen[$1]++'
/usr/bin/probe-libcuda.so.1 >/dev/null 2>&1; say loads $?
for number in ${others:-195:1}; do
    if mknod /tmp/other c ${number%:*} ${number#*:} 2>/dev/null; then
        error=$( (: </tmp/other) 2>&1 ) && error=ok
        say "other $number" "${error##*: }"
        rm /tmp/other
    fi
done
say uid "$(awk '{ print $2 }' /proc/self/uid_map)"
"""


class PrestartNode:
    """program: an installed `nvidia-container-runtime-hook`. sample: of lib.simnode."""

    def __init__(self, program: Path, sample: str = "a100", *, filtered: bool = False) -> None:
        """filtered: without the newer system calls."""
        self.program = program
        self.root = built(sample).root
        self.filtered = filtered or bool(os.environ.get(hookproc.COMPAT_SWITCH))

    def setup(self, config: str = "", inventory: Path | None = None) -> str:
        """For a jail: it is the node from here on. config: config.toml; inventory: a directory to be /run/nvoci."""
        # A procfs that nothing is mounted on: without one the kernel lets no user namespace mount its own.
        text = f"mount -t proc proc {session.new_dir('proc')}\n"
        text += jail.host_files({CONFIG: config}) if config else ""
        text += hostnode.show(self.root)
        if inventory is not None:
            text += f"mkdir /run/nvoci; mount --bind {inventory} /run/nvoci\n"
        return text

    def entry(self, *words: str, env: Sequence[str] = ("NVOCI_HOOK=e2e",), script: str = "") -> Json:
        """The hook as an entry of config.json. script: a line that ends in `exec "$@"`."""
        argv = [str(self.program), *(words or ("prestart",))]
        if self.filtered:
            # NVML's process needs some of the calls: the node is looked at before, with all of them.
            look = f'cat >{_STATE}; {self.program} -dry-run prestart <{_STATE} >/dev/null 2>&1; exec "$@" <{_STATE}'
            argv = ["/bin/sh", "-c", look, "sh", *compat.prefix(), *argv]
        if script:
            argv = ["/bin/sh", "-c", script, "sh", *argv]
        path = argv[0]
        if path == str(self.program):
            argv[0] = self.program.name
        return {"path": path, "args": argv, "env": list(env)}

    def driver_hook(self, root: Path) -> Json:
        """See lib.hostnode."""
        return hostnode.driver_hook(self.root / "proc/driver", root)

    def capability_nodes(self, *instances: str) -> dict[str, str]:
        """Path -> number of the nodes of MIG instances, such as `gpu0/gi1` and `gpu0/gi1/ci0`, by the driver's own
        table."""
        return {f"/dev/nvidia-caps/nvidia-cap{self.minors[name]}": f"{CAPS_MAJOR}:{self.minors[name]}"
                for name in instances}  # fmt: skip

    @cached_property
    def minors(self) -> dict[str, str]:
        """Of the driver's mig-minors: instance -> minor."""
        lines = (self.root / "proc/driver/nvidia-caps/mig-minors").read_text().splitlines()
        return {name.removesuffix("/access"): minor for name, _, minor in (line.rpartition(" ") for line in lines)}

    def start(
        self,
        runtime: str,
        devices: str | None,
        capabilities: str | None = None,
        *,
        root: Path | None = None,
        entries: Sequence[Json] = (),
        env: Mapping[str, str] | None = None,
        config: str = "",
        inventory: Path | None = None,
        cgroups: str = "v1",
        script: str = REPORT,
        setup: str = "",
        stage: str = "prestart",
        shell: str = "/bin/sh",
        **more: Any,
    ) -> Seen:
        """A container that asks for `devices` (None: it says nothing). shell: in the container. more: for
        make_bundle()."""
        own = root is None
        where, bundle = root or make_image(session.new_dir("image")), session.new_dir("bundle")
        variables = {"NVIDIA_VISIBLE_DEVICES": devices, "NVIDIA_DRIVER_CAPABILITIES": capabilities, **(env or {})}
        words = [*STANDARD_ENV, *(f"{name}={value}" for name, value in variables.items() if value is not None)]
        hooks = {stage: [self.driver_hook(where), *(entries or [self.entry()])]}
        make_bundle(bundle, where, [shell, "-c", script], hooks, env=words, **more)
        try:
            whole = self.setup(config, inventory) + setup
            return seen(runtimes.Runtime(runtime, cgroups).run(bundle, setup=whole, timeout=60))
        finally:
            if own:
                shutil.rmtree(where)

    def run(self, *words: str, stdin: Json | bytes = b"", config: str = "") -> proc.Result:
        """The program itself, on the node."""
        data = stdin if isinstance(stdin, bytes) else json.dumps(stdin).encode()
        return jail.run([self.program, *words], setup=self.setup(config), stdin=data, timeout=60)
