"""Why something was found, or not: the lookups of a discovery that concern a name."""

from __future__ import annotations

from nvoci.discover.libnames import CAPABILITIES, NEUTRAL, stem_of
from nvoci.discover.node import Options, plain, type_name
from nvoci.discover.search import Lookup, Search, errno_words, executable, first, regular
from nvoci.linux.pattern import is_pattern, match
from nvoci.linux.rootfs import fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.discover.found import Discovery
    from nvoci.discover.node import Node

_MAX_LOOKUPS = 500
_NOBODY = "discovery does not look for it on this node"


def why(node: Node, discovery: Discovery, name: str, options: Options | None = None) -> list[Lookup]:
    """Everything that was looked for under `name`: a library (`libcuda`, `libcuda.so.1`), a program, a file name, a
    path or the end of one, a device, a pattern of these. A name that discovery does not know is looked for now,
    wherever it could be, and the note of each lookup says that nobody asked for it."""
    name = plain(name)
    found = [each for each in discovery.search.lookups if _concerns(each.name, name)]
    found += [each for each in discovery.search.lookups if each not in found and _stepped(each, name)]
    stem = stem_of(name.rpartition("/")[2])
    names = [n for each in discovery.libraries.directories for n in each.names]
    if stem or name in CAPABILITIES or (name and any(stem_of(n) == name for n in names)):
        found.insert(0, _library(discovery, stem or name))
    if not found and name:
        found = _unknown(node, name, options or Options())
    return found[:_MAX_LOOKUPS]


def _library(discovery: Discovery, stem: str) -> Lookup:
    story = discovery.libraries.story(stem)
    version = discovery.found.driver.version or "unknown"
    for_what = " or ".join(CAPABILITIES.get(stem, ())) or "no capability that is known"
    story.note = f"driver version {version}; for {for_what}"
    if stem in NEUTRAL:
        story.note += "; no driver's own: the image has it, unless explicit libraries are asked for"
    return story


def _concerns(looked_for: str, name: str) -> bool:
    if not name:
        return False
    if is_pattern(fsencode(name)):
        return match(fsencode(name), fsencode(looked_for.rpartition("/")[2]))
    same_stem = bool(stem_of(looked_for)) and stem_of(looked_for) in (name, stem_of(name))
    return looked_for == name or looked_for.endswith("/" + name.strip("/")) or same_stem


def _stepped(lookup: Lookup, name: str) -> bool:
    """Whether a step of it ends in that name."""
    return any(step.where == name or step.where.endswith("/" + name.strip("/")) for step in lookup.steps)


def _unknown(node: Node, name: str, options: Options) -> list[Lookup]:
    """Look for it as a program, a configuration file and a device."""
    search = Search()
    if name.startswith("/"):
        lookup = search.begin("path", name, _NOBODY)
        roots = {root.host(name): root for root in (node.root, node.dev)}
        for where, root in roots.items():
            try:
                lookup.tried(where, f"there: {type_name(root.lstat(fsencode(name)).st_mode)}")
            except OSError as e:
                lookup.tried(where, errno_words(e))
        return search.lookups
    first(search, node.root, "binary", name, [f"{each}/{name}" for each in options.path], executable)
    first(search, node.root, "config", name, [f"{each}/{name}" for each in ("/etc", *options.data_dirs)], regular)
    for lookup in search.lookups:
        lookup.note = _NOBODY
        for step in lookup.steps:
            step.outcome = step.outcome.replace("used", "there")
    return search.lookups
