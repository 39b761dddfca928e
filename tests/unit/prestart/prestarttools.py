"""Configurations and containers for the tests of the injector's first half."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nvoci.errors import HookError
from nvoci.oci.spec import Spec
from nvoci.prestart import compile
from nvoci.prestart.config import Config
from nvoci.prestart.configfile import Place

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes files of other users")
SHIPPED = """\
#accept-nvidia-visible-devices-as-volume-mounts = false
#accept-nvidia-visible-devices-envvar-when-unprivileged = true
disable-require = false
supported-driver-capabilities = "compat32,compute,display,graphics,ngx,utility,video"
#swarm-resource = "DOCKER_RESOURCE_GPU"

[nvidia-container-cli]
#debug = "/var/log/nvidia-container-toolkit.log"
environment = []
#ldcache = "/etc/ld.so.cache"
ldconfig = "@/sbin/ldconfig.real"
load-kmods = true
#no-cgroups = false
#path = "/usr/bin/nvidia-container-cli"
#root = "/run/nvidia/driver"
#user = "root:video"

[nvidia-container-runtime]
#debug = "/var/log/nvidia-container-runtime.log"
log-level = "info"
mode = "auto"
runtimes = ["runc", "crun"]

[nvidia-container-runtime.modes]
[nvidia-container-runtime.modes.cdi]
annotation-prefixes = ["cdi.k8s.io/"]
default-kind = "nvidia.com/gpu"
spec-dirs = ["/etc/cdi", "/var/run/cdi"]

[nvidia-container-runtime.modes.csv]
mount-spec-path = "/etc/nvidia-container-runtime/host-files-for-container.d"

[nvidia-container-runtime.modes.legacy]
cuda-compat-mode = "ldconfig"

[nvidia-container-runtime-hook]
path = "nvidia-container-runtime-hook"
skip-mode-detection = false

[nvidia-ctk]
path = "nvidia-ctk"
"""


def settings(text: str = "") -> Config:
    """The settings in a config.toml."""
    return compile.parse(text.encode(), "/c/config.toml")


def place(folder: Path, text: str | bytes = "") -> Place:
    """A config.toml that was named and is there."""
    path = folder / "config.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o644)
    return Place(str(path), "-config")


def container(*env: str, mounts: Any = None, privileged: bool = False, **more: Any) -> Spec:
    """A container with these variables."""
    bounding = ["CAP_CHOWN", *(["CAP_SYS_ADMIN"] * privileged)]
    process = {"env": ["PATH=/bin", *env], "capabilities": {"bounding": bounding}}
    doc = {"ociVersion": "1.0.2", "process": process, "root": {"path": "r"}, "mounts": mounts or [], **more}
    return Spec(doc, "/b/config.json")


def asked(*paths: str, source: str = "/dev/null") -> list[dict[str, str]]:
    """The mounts that ask for devices."""
    top = "/var/run/nvidia-container-devices/"
    return [{"source": source, "destination": top + path, "type": "bind"} for path in paths]


def error(call: Any) -> HookError:
    """The error of a call; one line."""
    with pytest.raises(HookError) as caught:
        call()
    assert "\n" not in caught.value.line()
    assert caught.value.line().isprintable()
    return caught.value
