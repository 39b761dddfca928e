"""The lines that `nvoci explain` prints, made of its document."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Any

from nvoci.ctl.explain_data import FAILS, INJECTS, as_toml
from nvoci.ctl.explain_node import INVENTORY
from nvoci.ctl.node import table
from nvoci.discover.search import NOT_THERE
from nvoci.errors import HookError, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    Json = dict[str, Any]
    Rows = list[tuple[str, str]]  # a label, "" for the same as before, and what is told

_WIDTH, _LABEL = 100, 13
_MANY, _LONG = 12, 300  # rules, and characters of what a container says, that are shown
_LIBRARY_DIRECTORY = "the library directory of its root"
_KINDS = {
    "program": "programs", "library": "libraries", "library32": "32-bit", "cuda-compat": "CUDA compat",
    "firmware": "firmware", "socket": "sockets", "procfs": "procfs", "directory": "directories",
}  # fmt: skip


def lines(document: Json) -> list[str]:
    """One fact a line; nothing in them has a control character."""
    if document["result"] == FAILS:
        error = document["error"]
        out = [f"fails: {HookError(error['message'], error['hint']).line()}"]
        out += [f"note: {note['text']}" for note in document["notes"] if note["level"] == "warning"]
    elif document["result"] == INJECTS:
        rows = [*_question(document), *_node(document), *_devices(document), *_files(document), *_rest(document)]
        out = [line for label, text in rows for line in _lines(label, text)]
    else:
        out = [f"asks for no GPU: {document['reason']}"]
    return [printable(line) for line in out]


def _lines(label: str, text: str) -> list[str]:
    """Words are kept whole, and blanks at the start of a text indent all of it."""
    indent = " " * (_LABEL + 2 + len(text) - len(text.lstrip(" ")))
    whole = " " * (_LABEL + 2) + text
    folded = [whole]
    if len(whole) > _WIDTH:
        folded = wrap(text.strip(), _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False,
                      break_on_hyphens=False)  # fmt: skip
    return [f"{label:{_LABEL}}  {folded[0][_LABEL + 2 :]}".rstrip(), *folded[1:]]


def _labelled(label: str, texts: Iterable[str]) -> Rows:
    return [("" if number else label, text) for number, text in enumerate(texts)]


# -- what was asked, and of which node --------------------------------------------------------------------------------


def _question(document: Json) -> Rows:
    config, root = document["config"], document["rootfs"]
    words = [f"by {config['named_by']}"] if config["named_by"] else []
    words += [] if config["there"] else ["not there: the defaults hold"]
    settings = [
        f"{row['key']} = {as_toml(row['value'])}: {row['decides']}" for row in config["settings"] if not row["default"]
    ]
    settings += [f"unknown, ignored: {', '.join(config['unknown_keys'])}"] if config["unknown_keys"] else []
    asked = [(each["what"][:_LONG], each["because"][:_LONG]) for each in document["request"]["reasons"]]
    width = max((len(what) for what, _ in asked if len(what) < 40), default=0)
    mode, demands = document["mode"], document["requirements"]
    rows = [
        ("bundle", document["bundle"]),
        ("root", root["path"] + ("" if root["there"] else " (not there: what depends on the image is not told)")),
        ("config", config["file"] + (f" ({', '.join(words)})" if words else "")),
        *[("", text) for text in settings],
        *_labelled("asked", [f"{what:{width}}  {why}" for what, why in asked]),
        ("mode", f"{mode['mode']}: {mode['because']}"),
    ]
    if document["request"]["privileged"]:
        rows.append(("privileged", "CAP_SYS_ADMIN is in the bounding set"))
    if demands["result"] == "hold":
        rows.append(("requirements", f"hold: {demands['because']}"))
    return rows


def _node(document: Json) -> Rows:
    node, driver = document["node"], document["node"]["driver"]
    cuda = ", CUDA {}.{}".format(*driver["cuda_version"]) if driver["cuda_version"] else ""
    source = f"{node['inventory']} holds"
    if node["source"] != INVENTORY:
        source = f"looked at now ({node['inventory']} is not used: {node['reason']})"
    rows = [("node", source), ("driver", f"{driver['version'] or 'unknown'}{cuda}, in {driver['root']}")]
    if not document["selected"]:
        rows.append(("devices", "none: the driver without a GPU"))
    for row in document["selected"]:
        found = [_gpu(gpu) for gpu in row["gpus"]] if not row["mig_devices"] else []
        found += [f"MIG {mig['name']} {mig['profile'] or '-'} {mig['uuid']}" for mig in row["mig_devices"]]
        if row["mig_devices"] and row["word"].lower() == "all":
            found = [*[_gpu(gpu) for gpu in row["gpus"]], *found]
        word = row["word"] if len(row["word"]) <= _LABEL * 3 else row["word"][: _LABEL * 3] + "..."
        texts = found or ["no GPU of its own: all are behind one device node"]
        rows += [("devices" if row is document["selected"][0] and not number else "",
                  f"{'' if number else word:{max(3, min(len(word), _LABEL))}}  {text}")
                 for number, text in enumerate(texts)]  # fmt: skip
    return rows


def _gpu(gpu: Json) -> str:
    return f"GPU {gpu['index']}  {gpu['uuid']}  {gpu['pci_bus_id'] or '-'}"


# -- what it gets -----------------------------------------------------------------------------------------------------


def _devices(document: Json) -> Rows:
    nodes = document["device_nodes"]
    cells = [(_moved(each), each["rule"] or "no rule", f"({','.join(each['options'])})") for each in nodes]
    rows = _labelled("device nodes", table(cells) if cells else ["none"])
    own = {each["rule"] for each in nodes}
    more = [rule for rule in document["device_rules"] if rule not in own]
    if len(more) > _MANY:
        more = [f"{len(more)} without a node of their own, from {more[0]} to {more[-1]}"]
    return rows + ([("device rules", ", ".join(more))] if more else [])


def _moved(each: Json) -> str:
    """Where it is on the host, and in the container unless that is the same."""
    path = each["container_path"]
    if path == each["host_path"]:
        return str(path)
    return f"{each['host_path']} -> {path or _LIBRARY_DIRECTORY}"


def _files(document: Json) -> Rows:
    """Files that go the same way together: by kind, for what, directories and options."""
    rows: Rows = []
    for kind, label in _KINDS.items():
        groups: dict[tuple[str, str | None, str, str], list[Json]] = {}
        for each in document["mounts"]:
            if each["kind"] == kind:
                groups.setdefault(_way(each), []).append(each)
        texts = [text for way, group in groups.items() for text in _group(way, group)]
        rows += _labelled(label, texts)
    trees = [f"{each['container_path']} ({','.join(each['options'])}): {' '.join(each['files']) or 'empty'}"
             for each in document["generated"]]  # fmt: skip
    rows += _labelled("generated", trees)
    links = [f"{each['path']} -> {each['target']}, unless something is there" for each in document["links"]]
    return rows + _labelled("links", links)


def _way(each: Json) -> tuple[str, str | None, str, str]:
    """What files that are told together have in common: directories, purpose and options."""
    top = each["host_path"].rpartition("/")[0]
    there = each["container_path"] and each["container_path"].rpartition("/")[0]
    purpose = f"for {' or '.join(each['for'])}: " if each["for"] else ""
    return top, there, purpose, f"({','.join(each['options'])})"


def _group(way: tuple[str, str | None, str, str], group: list[Json]) -> list[str]:
    top, there, purpose, options = way
    if len(group) == 1 and there is not None:
        return [f"{purpose}{_moved(group[0])} {options}"]
    names = []
    for each in group:
        old, new = [(path or "").rpartition("/")[2] for path in (each["host_path"], each["container_path"])]
        names.append(old if not new or new == old else f"{old} -> {new}")
    way_of_all = _moved({"host_path": top or "/", "container_path": there})
    return [f"{purpose}{way_of_all} {options}", "  " + " ".join(names)]


def _rest(document: Json) -> Rows:
    compat, cache = document["cuda_compat"], document["library_cache"]
    words = {True: "used", False: "not used", None: "what of them is used depends on the root"}[compat["used"]]
    where = f": {compat['directory']} is searched first" if compat["directory"] else ""
    rows = [("CUDA compat", f"{compat['mode']}: {words}{where}")]
    folders = cache["directories"]
    told = f", with {' '.join(folders)}" if folders else ""
    rows.append(("library cache", f"by the engine {cache['engine']}{told}"))
    rows += _not_found(document)
    rows += _labelled("notes", [f"{note['level']}: {note['text']}" for note in document["notes"]])
    return rows + _labelled("problems", document["node"]["problems"])


def _not_found(document: Json) -> Rows:
    """Libraries together, as the places are the same; the others with theirs."""
    found = document["not_found"]
    texts = []
    plain = [row for row in found if row["kind"].startswith("library") and not row["looked"]]
    for kind, words in (("library", "libraries"), ("library32", "32-bit libraries")):
        names = [row["name"].removesuffix(".so") for row in plain if row["kind"] == kind]
        if kind == "library32" and not any(each["kind"] == kind for each in document["mounts"]):
            names = names and ["none at all"]
        texts += [f"{words}: {' '.join(names)}"] if names else []
    searched = [row["path"] for row in document["library_directories"] if row["state"] == "searched"]
    texts += [f"  in {' '.join(searched)}"] if plain and searched else []
    for row in found:
        if row not in plain:
            absent = [each["where"] for each in row["looked"] if each["outcome"] == NOT_THERE]
            texts += [f"{row['kind']} {row['name']}:"] + ([f"  not there: {' '.join(absent)}"] if absent else [])
            texts += [f"  {each['where']}: {each['outcome']}" for each in row["looked"] if each["where"] not in absent]
    return _labelled("not found", texts)
