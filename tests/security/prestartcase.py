"""One call of the prestart hook with something bad, under the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kernel import namespaced
from lib.oracle import Oracle, changes, snapshot
from security import prestartscene
from security.prestartscene import Scene, Site

CONFIG = "/etc/nvidia-container-runtime/config.toml"


class Case(NamedTuple):
    """parts: of the error. config: of config.toml. host: shell lines that change the node. env: instead of the usual.
    image, container: of `Scene`. change(site) is called before the hook. how: for `Site.hook`. looked: the node was
    looked at before it was changed. kind: of device cgroup. The hook may warn of something else as well."""

    parts: Sequence[str]
    config: str = ""
    host: str = ""
    env: Sequence[str] = prestartscene.ENV
    image: str = ""
    setup: str = ""
    container: dict[str, Any] = {}
    change: Callable[[Site], object] | None = None
    how: dict[str, Any] = {}
    looked: bool = False
    kind: str = "devices"


def refused(case: Case) -> list[str]:
    """What the oracle has against it. On the node."""
    scene = Scene(case.kind, case.env, case.image, case.setup, options=dict(case.container))
    if case.looked:
        prestartscene.ready(Scene(case.kind))
    if case.config:
        Path(CONFIG).parent.mkdir(exist_ok=True)
        Path(CONFIG).write_text(case.config)
    namespaced.sh(case.host)
    with scene.container() as site:
        if case.change is not None:
            case.change(site)
        return judged(site, case.parts, **case.how)


def judged(site: Site, parts: Sequence[str], **how: Any) -> list[str]:
    """One call that must fail."""
    root = site.scene.arena.root
    with Oracle(site.scene.arena.canary, max_wall=15) as oracle:
        before, files = site.view(), snapshot(root)
        result = site.hook(**how)
        found = oracle.check(result, ok=False, rc=1, parts=parts, lines=None)
        found += before.differences(site.view())
        found += [v for v in changes(files, snapshot(root)) if "changed mtime" not in v]
    if len(errors(result.stderr)) != 1 or "internal error" in result.stderr:
        found.append(f"said {result.stderr!r}")
    return found


def errors(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if "level=error" in line]


def visible(value: str) -> tuple[str, ...]:
    return (f"NVIDIA_VISIBLE_DEVICES={value}",)
