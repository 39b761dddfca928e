"""What a start knows of the node: the same inventory as the commands for people, and a look where that does not do."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.discover.nodetree import Node, found
from unit.prestart.chosentools import a_node, asked, control, without

from nvoci.discover import inventory
from nvoci.discover.fingerprint import Sources
from nvoci.discover.inventory import Stale
from nvoci.discover.look import Place
from nvoci.discover.model import Found
from nvoci.discover.node import Options
from nvoci.errors import HookError
from nvoci.prestart import kmods, node
from nvoci.prestart.choose import choose


def fields(sources: Sources) -> dict[str, object]:
    return {name: getattr(sources, name) for name in Sources.__slots__}


@pytest.mark.parametrize(("root", "mps"), [("/", ""), ("/run/nvidia/driver", ""), ("/", "/run/mps"), ("/d/", "/q'x")])
def test_the_inventory_depends_on_what_the_commands_for_people_say(root: str, mps: str) -> None:
    """Else each would throw the other's away."""
    more = {"mps_directory": mps} if mps else {}
    wanted = asked("0", driver_root=root, **more)
    assert fields(node.sources(wanted)) == fields(Place(root, options=Options(**more)).sources())


@pytest.fixture
def looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Found]:
    """A made-up node; the looks that are taken."""
    made = Node(tmp_path)
    taken: list[Found] = []

    def look(wanted: object) -> Found:
        taken.append(found(8, 3 + len(taken)))
        return taken[-1]

    monkeypatch.setattr(node, "look", look)
    monkeypatch.setattr(node, "sources", lambda wanted: made.sources())
    return taken


def test_a_look_is_kept(looks: list[Found], tmp_path: Path) -> None:
    path = str(tmp_path / "run/inventory")
    for _ in range(3):
        assert node.use(asked("0", "GPU-x"), lambda seen: seen, path) == looks[0]
    assert len(looks) == 1
    assert inventory.load(path).inventory is not None


def test_who_asks_for_a_mig_device_asks_nvml(looks: list[Found], tmp_path: Path) -> None:
    path = str(tmp_path / "run/inventory")
    for number, name in enumerate(("0", "MIG-x", "0:1", "all"), 1):
        assert node.use(asked(name), lambda seen: seen, path) == looks[-1]
        assert len(looks) == min(number, 3)


def test_what_proves_wrong_is_looked_at_once_more(looks: list[Found], tmp_path: Path) -> None:
    path = str(tmp_path / "run/inventory")
    seen: list[int] = []

    def fails_once(each: Found) -> int:
        seen.append(len(each.mounts))
        if len(seen) == 2:
            raise Stale("open /usr/lib/x: ENOENT")
        return len(each.mounts)

    assert [node.use(asked("0"), fails_once, path) for _ in range(2)] == [3, 4]
    assert seen == [3, 3, 4]


def test_what_is_still_wrong_then_is_an_error(looks: list[Found], tmp_path: Path) -> None:
    def fails(each: Found) -> None:
        raise Stale("open /dev/nvidia0: not the device c 195:0 any more")

    with pytest.raises(HookError, match="not the device c 195:0 any more, though it was found a moment ago"):
        node.use(asked("0"), fails, str(tmp_path / "run/inventory"))
    assert len(looks) == 1


# --- nodes that loading modules would make ---------------------------------------------------------------------------

WHOLE = a_node()
NO_GPU = WHOLE.replace(gpus=(), device_nodes=control())
LACKS: dict[str, tuple[Found, dict[str, object]]] = {
    "GPU": (without("/dev/nvidia0"), {}),
    "control": (without("/dev/nvidiactl"), {}),
    "channel": (without("/dev/nvidia-caps-imex-channels/channel3"), {"imex_channels": (3,)}),
    "every GPU": (NO_GPU, {}),
}
DOES_NOT_MATTER: dict[str, tuple[Found, dict[str, object]]] = {
    "nothing": (WHOLE, {}),
    "another GPU": (without("/dev/nvidia1"), {}),
    "modeset": (without("/dev/nvidia-modeset"), {"capabilities": "display"}),
}


def looks_of(
    first: Found, more: dict[str, object], place: Path, monkeypatch: pytest.MonkeyPatch, *, load: bool = True
) -> tuple[list[object], int]:
    """What three starts get, or their errors, and how often they look; from the second look on the node is whole."""
    made, looks = Node(place), [first, *[WHOLE] * 5]
    monkeypatch.setattr(node, "look", lambda wanted: looks.pop(0))
    monkeypatch.setattr(node, "sources", lambda wanted: made.sources())
    got: list[object] = []
    wanted = asked("0", load_kmods=load, **more)
    for _ in range(3):
        try:
            got.append(node.use(wanted, lambda each: bool(choose(each, wanted)), str(place / "run/inventory")))
        except HookError as e:
            got.append(e.message.partition(":")[0])
    return got, 6 - len(looks)


@pytest.mark.parametrize("case", LACKS)
def test_a_node_that_could_be_made_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """By the next start: the first has just tried to make it."""
    got, looks = looks_of(*LACKS[case], tmp_path, monkeypatch)
    assert (got[0] in {"mount error", "device error"}, got[1:], looks) == (True, [True, True], 2)


@pytest.mark.parametrize("case", LACKS)
def test_who_may_not_make_it_does_not_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    got, looks = looks_of(*LACKS[case], tmp_path, monkeypatch, load=False)
    assert (True in got, looks) == (False, 1)


@pytest.mark.parametrize("loaded", [False, True])
def test_modules_are_loaded_once_and_before_the_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: bool
) -> None:
    """loaded: the caller has done it."""
    made, did = Node(tmp_path), []
    monkeypatch.setattr(kmods, "load_on_host", lambda root, channels: did.append(("load", root, channels)))
    monkeypatch.setattr(node, "look", lambda wanted: did.append(("look",)) or WHOLE)
    monkeypatch.setattr(node, "sources", lambda wanted: made.sources())
    wanted = asked("0", load_kmods=True, imex_channels=(3,), driver_root="/d")
    for _ in range(2):
        node.use(wanted, lambda each: bool(choose(each, wanted)), str(tmp_path / "run/inventory"), loaded=loaded)
    assert did == [*([] if loaded else [("load", "/d", (3,))]), ("look",)]


def test_who_has_loaded_modules_may_find_nodes_that_the_inventory_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, looks, path = Node(tmp_path), [without("/dev/nvidia0"), WHOLE], str(tmp_path / "run/inventory")
    monkeypatch.setattr(kmods, "load_on_host", lambda root, channels: pytest.fail("loaded again"))
    monkeypatch.setattr(node, "look", lambda wanted: looks.pop(0))
    monkeypatch.setattr(node, "sources", lambda wanted: made.sources())
    wanted = asked("0", load_kmods=True)
    with pytest.raises(HookError, match="stat failed: /dev/nvidia0"):
        node.use(wanted, lambda each: choose(each, wanted), path, loaded=True)
    assert node.use(wanted, lambda each: choose(each, wanted), path, loaded=True).gpu_nodes


def test_a_library_cache_of_its_own_is_another_node_for_the_inventory() -> None:
    usual, own = (fields(node.sources(asked("0", ldcache=path))) for path in ("", "/opt/d.cache"))
    assert {name for name in usual if usual[name] != own[name]} == {"configuration", "ldcache"}
    assert own["ldcache"] == "/opt/d.cache"
    assert fields(node.sources(asked("0", user="root:video"))) == usual


@pytest.mark.parametrize("case", DOES_NOT_MATTER)
def test_what_a_container_does_not_need_is_not_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    assert looks_of(*DOES_NOT_MATTER[case], tmp_path, monkeypatch) == ([True] * 3, 1)
