"""Rows H5 and H8 for the prestart hook: the container or the worker ends while it is given devices, and device rules,
mounts and files are as they were, or a rerun makes them whole."""

from __future__ import annotations

import os
import signal

import pytest
from lib.oracle import content_only, snapshot
from security.pausing import Pause, end
from security.prestartcase import errors
from security.prestartscene import Scene, Site, on_node, ready

CONTAINER = ("located", "forked", "entered", "performed", "last")
WORKER = ("forked", "entered", "performed", "last")
GONE = "the container's process is gone"
DIED = "the worker in the container's mount namespace died"


def ended(site: Site, pause: Pause, words: str) -> list[str]:
    """One call; what is wrong with what it says and leaves in the image and the device cgroup."""
    root = str(site.container.rootfs)
    rules, files = site.rules(), content_only(snapshot(root))
    result = pause.run(lambda: site.hook(extra=pause.lines, timeout=40))
    out = [] if pause.acted and not pause.problem else [f"at {pause.point}: {pause.problem or 'never came there'}"]
    if result.rc != 1 or len(errors(result.stderr)) != 1 or words not in result.stderr:
        out.append(f"{result.rc}: {result.stderr}")
    if site.rules() != rules:
        out.append(f"rules {rules} -> {site.rules()}")
    if words is GONE and content_only(snapshot(root)) != files:
        out.append("files were left")
    return out + result.survivors


@pytest.mark.parametrize("kind", ["devices", pytest.param("unified", marks=pytest.mark.long)])
def test_h5_h8_a_container_or_worker_that_ends_leaves_nothing(kind: str) -> None:
    def body() -> dict[str, list[str]]:
        undisturbed = ready(Scene(kind))
        found = {}
        for point in CONTAINER:
            with Scene(kind).container() as site:
                pause = Pause(point, lambda _, pid=site.container.pid: end(pid))
                found[f"container {point}"] = ended(site, pause, GONE)
        for point in WORKER:
            with Scene(kind).container() as site:
                out = ended(site, Pause(point, lambda pid: os.kill(pid, signal.SIGKILL)), DIED)
                again = site.hook()
                out += [again.stderr] if again.rc else []
                found[f"worker {point}"] = out + undisturbed.differences(site.view(), covered=True)
        return found

    assert {case: out for case, out in on_node(body).items() if out} == {}
