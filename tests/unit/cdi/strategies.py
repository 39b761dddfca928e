"""Hypothesis strategies for what `nvoci.cdi.model` can hold: `specs()` are valid, whatever their strings are."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from nvoci.cdi.model import ContainerEdits, Device, DeviceNode, Hook, IntelRdt, Mount, NetDevice, Spec

UINT32 = (1 << 32) - 1
INT64 = (1 << 63) - 1
ALNUM = "abcxyzABCXYZ0123456789"
LETTERS = "abcxyzABCXYZ"

TRICKY = (
    "", "0", "00", "0:1", "1:2:3", "1.5", "1.", ".5", "1e3", "1e+3", "-1", "+1", "0x10", "0X1f", "0o17", "0O17",
    "0b11", "017", "08", "1_000", "_1", "0_", "+.inf", "-.Inf", ".NaN", ".nan", "190:20:30", "190:20:30.15", "0:1.5",
    "-0", "0.0", "true", "True", "TRUE", "tRuE", "false", "yes", "No", "ON", "off", "y", "N", "null", "Null", "NULL",
    "~", "=", "<<", "2001-01-01", "2001-1-1", "2001-01-01 10:00:00", "2001-12-14t21:59:43.10-05:00",
    "2001-01-01T10:00:00Z", "0.7.0", "- a", "-a", "-", "--", "---", "--- a", "---a", "...", "... a", "...a", ".",
    "? a", "?a", "?", ": a", ":a", ":", "a: b", "a:b", "a:", "a :b", "#", "# a", "a #b", "a#b", ",a", "[a", "]a",
    "{a", "}a", "[]", "{}", "&a", "*a", "!a", "!!str a", "|", "|-", ">", ">2", "'", "'a'", "a'b", "''", '"', '"a"',
    'a"b', "%", "%YAML 1.2", "@a", "`a", "\\", "\\n", "a\\", "$HOME", " a", "a ", " ", "  ", "a  b", "\ta", "a\t",
    "a\tb", "\n", "a\n", "\na", "a\nb", "a\n\nb\n", "a\r\nb", "\r", "\x01", "\x1b[31m", "\x7f", "\x80", "\x85",
    "a\x85b", "\xa0", "\xad", "\ufeff", "a\ufeff", "\u2028", "\u2029x", "\u200b", "\u202e", "\ue000", "\ufffd",
    "\ufffe", "\uffff", "\U00010000", "\U0010ffff", "é", "ünï", "漢字", "🙂", "é: ü", "- é", "٣", "²", "a" * 127,
    "a" * 129, "b: " * 50, "é" * 400, "x " * 700, "/dev/nvidia0", "../card4::/dev/dri/by-path/pci-0000:4e:00.0-card",
    "0000:4e:00.0", "GPU-8f2a", "A=b", "A=b c: d #e", "</script>&",
)  # fmt: skip
"""What some reader of YAML or JSON takes for something else, or for nothing."""

# No NUL, no half of a surrogate pair: neither can stand in a specification.
plain_text = st.text(st.characters(min_codepoint=1, exclude_categories=("Cs",)), max_size=20)
texts = st.sampled_from(TRICKY) | plain_text
given_texts = texts.filter(bool)
paths = given_texts | st.lists(st.text("abc019.-_:+ é", min_size=1, max_size=8), min_size=1, max_size=5).map(
    lambda parts: "/" + "/".join(parts)
)


def names(first: str, middle: str, last: str) -> st.SearchStrategy[str]:
    """A name of the grammar: one character, or more."""
    longer = st.builds(lambda a, b, c: a + b + c, st.sampled_from(first), st.text(middle, max_size=10),
                       st.sampled_from(last))  # fmt: skip
    return st.sampled_from(first) | longer


vendors = classes = names(LETTERS, ALNUM + "_-.", ALNUM)
kinds = st.builds(lambda vendor, class_: f"{vendor}/{class_}", vendors, classes)
tricky_names = ("0", "0:1", "1e3", "true", "null", "0x10", "0b1", "017", "1.5", "y", "2001-01-01", "190:20:30", "all")
device_names = st.sampled_from(tricky_names) | names(ALNUM, ALNUM + "_-.:", ALNUM)
env = st.builds(lambda name, value: f"{name}={value}", given_texts.map(lambda t: t.replace("=", "_")), texts)
envs = st.lists(env, max_size=3).map(tuple)
lists_of_texts = st.lists(texts, max_size=4).map(tuple)
uint32 = st.sampled_from((0, 1, UINT32)) | st.integers(0, UINT32)
numbers = st.sampled_from((0, 1, INT64)) | st.integers(0, INT64)

device_nodes = st.builds(
    DeviceNode,
    path=paths,
    host_path=st.just("") | paths,
    type=st.sampled_from(("", "b", "c", "u", "p")),
    major=numbers,
    minor=numbers,
    file_mode=st.none() | uint32,
    permissions=st.sampled_from(("", "r", "rw", "rwm", "wm", "none")),
    uid=st.none() | uint32,
    gid=st.none() | uint32,
)
hooks = st.builds(
    Hook,
    hook_name=st.sampled_from(
        ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    ),
    path=paths,
    args=lists_of_texts,
    env=envs,
    timeout=st.none() | uint32,
)
mounts = st.builds(Mount, host_path=paths, container_path=paths, options=lists_of_texts, type=st.just("") | texts)
net_devices = st.builds(NetDevice, host_interface_name=given_texts, name=given_texts)
lists_of_net_devices = st.lists(
    net_devices, max_size=3, unique_by=(lambda n: n.host_interface_name, lambda n: n.name)
).map(tuple)
intel_rdts = st.builds(
    IntelRdt,
    clos_id=st.just("/") | texts.filter(lambda t: t not in {".", ".."} and not set(t) & set("/\n")),
    l3_cache_schema=texts,
    mem_bw_schema=texts,
    schemata=st.none() | lists_of_texts,
    enable_monitoring=st.booleans(),
)
edits = st.builds(
    ContainerEdits,
    env=envs,
    device_nodes=st.lists(device_nodes, max_size=3).map(tuple),
    net_devices=lists_of_net_devices,
    hooks=st.lists(hooks, max_size=2).map(tuple),
    mounts=st.lists(mounts, max_size=3).map(tuple),
    intel_rdt=st.none() | intel_rdts,
    additional_gids=st.lists(uint32, max_size=3).map(tuple),
)
# Kubernetes' annotation keys: a DNS subdomain before the slash, if there is one.
annotation_keys = st.builds(
    lambda prefix, name: prefix + name, st.sampled_from(("", "a/", "cdi.k8s.io/", "0.example.com/")),
    names(ALNUM, ALNUM + "_-.", ALNUM) | st.sampled_from(("true", "null", "0", "1e3", "n", "0x1")),
)  # fmt: skip
annotations = st.dictionaries(annotation_keys, texts, max_size=3)


def devices(name: st.SearchStrategy[str] = device_names) -> st.SearchStrategy[Device]:
    """A device that changes something."""
    return st.builds(Device, name=name, container_edits=edits.filter(bool), annotations=annotations)


def specs(max_devices: int = 3, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Spec]:
    """A valid specification of the newest version, with one device at least; `fields` replaces the strategy of one."""
    made: dict[str, st.SearchStrategy[Any]] = {
        "cdi_version": st.sampled_from(("1.1.0", "v1.1.0")),
        "kind": kinds,
        "devices": st.lists(devices(), min_size=1, max_size=max_devices, unique_by=lambda d: d.name).map(tuple),
        "container_edits": edits,
        "annotations": annotations,
    }
    return st.builds(Spec, **{**made, **fields})


def loose_specs() -> st.SearchStrategy[Spec]:
    """Any specification that can be written, valid or not: no devices, empty names and paths, any string anywhere."""
    node = st.builds(
        DeviceNode, path=texts, host_path=texts, type=texts, major=st.integers(-INT64 - 1, INT64),
        minor=st.integers(-INT64 - 1, INT64), permissions=texts,
    )  # fmt: skip
    hook = st.builds(Hook, hook_name=texts, path=texts, args=lists_of_texts, env=lists_of_texts,
                     timeout=st.none() | st.integers(-INT64 - 1, INT64))  # fmt: skip
    mount = st.builds(Mount, host_path=texts, container_path=texts, options=lists_of_texts, type=texts)
    net_device = st.builds(NetDevice, host_interface_name=texts, name=texts)
    changes = st.builds(
        ContainerEdits, env=lists_of_texts, device_nodes=st.lists(node, max_size=2).map(tuple),
        hooks=st.lists(hook, max_size=2).map(tuple), mounts=st.lists(mount, max_size=2).map(tuple),
        net_devices=st.lists(net_device, max_size=2).map(tuple), intel_rdt=st.none() | intel_rdts,
    )  # fmt: skip
    any_annotations = st.dictionaries(texts, texts, max_size=3)
    device = st.builds(Device, name=texts, container_edits=changes, annotations=any_annotations)
    return st.builds(
        Spec, cdi_version=texts, kind=texts, devices=st.lists(device, max_size=2).map(tuple), container_edits=changes,
        annotations=any_annotations,
    )  # fmt: skip
