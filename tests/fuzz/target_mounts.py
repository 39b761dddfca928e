"""Tables of /proc about mounts and cgroups, and the list of a v1 device cgroup."""

from __future__ import annotations

import re

from fuzz.registry import Target, register
from fuzz.words import one_line, short

from nvoci.errors import HookError
from nvoci.linux import cgroup, mountinfo
from nvoci.linux.devicelist import Lines
from nvoci.linux.devicerule import DeviceRule
from nvoci.linux.mountinfo import Mount

_TABLE = b"""\
22 28 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,discard,errors=remount-ro
31 28 0:25 /a\\040b /mnt/x\\011y\\134\\012 ro - overlay overlay rw,lowerdir=/l\\0721:/l2
32 31 0:4 mnt:[4026532288] /run/ns rw shared:3 master:4 propagate_from:2 unbindable - nsfs nsfs rw
33 22 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate
"""
_DEEP = b"".join(b"%d %d 0:1 / /d%d rw - tmpfs t rw\n" % (n + 1, n, n) for n in range(60))


def _table_seeds() -> list[bytes]:
    loop = b"1 2 0:1 / /a rw - tmpfs t rw\n2 1 0:1 / /b rw - tmpfs t rw\n3 3 0:1 / /c rw - tmpfs t rw\n"
    return [_TABLE, _DEEP, loop, _TABLE[:-1], b"", b"\n\n", b"1 1 0:1 / / rw - a b c"]


def _mounts(data: bytes) -> tuple[list[Mount], list[tuple[list[int], list[int]]]]:
    """Each mount; and where all lines are as the kernel writes them, what lies above and below each."""
    found = list(mountinfo.parse(data))
    heads = [line.split(b" ", 2)[:2] for line in data.split(b"\n") if line]
    if heads != [[b"%d" % one.id, b"%d" % one.parent] for one in found]:
        return found, []
    return found, [(mountinfo.lineage(one.id, data), mountinfo.tree_of(one.id, data)) for one in found[:8]]


def _escaped(text: bytes) -> bytes:
    """As the kernel's mangle_path() does."""
    return b"".join(b"\\%03o" % c if c in b" \t\n\\" else bytes((c,)) for c in text)


def _check_mounts(data: bytes, case: bytes, answer: tuple[list[Mount], list[tuple[list[int], list[int]]]]) -> None:
    found, trees = answer
    lines = [line for line in data.split(b"\n") if line]
    assert len(found) == len(lines)
    for one, line in zip(found, lines):
        for text in (one.root, one.target, one.fstype, one.source):
            assert mountinfo.unescape(_escaped(text)) == text
        plain = line.split(b" ")
        if b"\\" not in plain[3] + plain[4]:
            assert (one.root, one.target) == (plain[3], plain[4])
        assert b",".join(one.options) == plain[5]
        assert plain[6:].index(b"-") == len(one.propagation)
    parents = mountinfo.ids(data) if trees else {}
    for (above, below), one in zip(trees, found):
        assert above[0] == below[0] == one.id
        assert len(set(above)) == len(above)
        assert set(below) <= {*parents}
        assert len(set(below)) == len(below), "a mount twice"
        assert all(parents[each] in below for each in below[1:])
        first = mountinfo.find(one.id, data)
        assert first is not None
        assert first.id == one.id


register(
    Target(
        "mountinfo", parse=_mounts, errors=(ValueError,), allowed=short, check=_check_mounts, seeds=_table_seeds,
        max_size=1 << 12, executions=1500, tokens=(
            b" - ", b" ", b"\n", b"\\040", b"\\", b"\\400", b"\\08", b"1 ", b"1 1 ", b"2 1 ", b"28 31 ", b"-1 ",
            b"+1 ",
            b"\0", b"\xff", b"/", b",", b" shared:1", b" - cgroup ", b"\n1 2 0:1 / /a rw - tmpfs t rw\n", b"1_0 ",
            b"9" * 30,
        ),
    )
)  # fmt: skip


# -- /proc/PID/cgroup -----------------------------------------------------------------------------------------------

_HYBRID = b"""\
12:devices:/docker/abc
5:cpu,cpuacct:/
3:memory,devices,pids:/x y:z
1:name=systemd:/d
0::/user.slice/a.scope
"""


def _cgroup_seeds() -> list[bytes]:
    return [
        _HYBRID,
        b"0::/\n",
        b"0::/../../a\n",
        b"4:devices:/..\n",
        b"0::/a/..b/c..\n",
        b"0::\n",
        b"",
        b":::\n0:devices:/",
    ]


def _plain_lines(data: bytes) -> list[tuple[bytes, bytes]]:
    found = []
    for line in data.split(b"\n"):
        match = re.fullmatch(rb"([^:]*):([^:]*):(.+)", line, re.DOTALL)
        if match and ((match[1] == b"0" and not match[2]) or b",devices," in b"," + match[2] + b","):
            found.append((match[2], match[3]))
    return found


def _check_cgroups(data: bytes, case: bytes, answer: list[tuple[bytes, bytes]]) -> None:
    """What a regular expression finds; and none of it leads above the root of the namespace."""
    assert sorted(answer) == sorted(_plain_lines(data))
    assert not any(b"/../" in path + b"/" for _, path in answer)
    names = [controllers for controllers, _ in answer]
    assert names == sorted(names, reverse=True), "the unified hierarchy comes last"


register(
    Target(
        "cgroup", parse=cgroup.parse, errors=(HookError,), allowed=one_line, check=_check_cgroups,
        seeds=_cgroup_seeds,
        max_size=1 << 12, executions=1200,
        tokens=(b"0::/", b"0::", b"devices", b",", b":", b"/..", b"/../", b"..", b"\n", b"name=devices", b"\0",
                b"\xff"),
    )
)  # fmt: skip


# -- devices.list ---------------------------------------------------------------------------------------------------

RULES = [
    DeviceRule(kind, major, minor, access)
    for kind in "bc"
    for major in (1, 195)
    for minor in (0, 3, 255)
    for access in ("r", "w", "rw")
]


def _list_seeds() -> list[bytes]:
    return [b"a *:* rwm\n", b"c 1:3 rwm\nc 195:* rw\nb *:0 r\nc 195:0 r\nb 1:255 m\n", b"c 1:3 \n", b"", b"c 1:3 rwm"]


def _lines(data: bytes) -> list[tuple[bool, str]]:
    lines = Lines(data)
    return [(lines.allow(rule), lines.missing(rule)) for rule in RULES]


def _check_list(data: bytes, case: bytes, answer: list[tuple[bool, str]]) -> None:
    """One line has to allow all of it, read by a regular expression; numbers that stand there twice the kernel never
    writes."""
    lines = [line.split(" ") for line in data.decode().split("\n") if line]
    numbers = [line[1] for line in lines if line[0] != "a" and "*" not in line[1].split(":")]
    if len(set(numbers)) != len(numbers):
        return
    for rule, (allowed, missing) in zip(RULES, answer):
        wanted = False
        for kind, number, access in lines:
            plain = re.fullmatch(r"(\*|[0-9]+):(\*|[0-9]+)", number) is not None
            matches = plain and re.fullmatch(number.replace("*", "[0-9]+"), f"{rule.major}:{rule.minor}")
            both = set(rule.access) <= set(access)
            wanted = wanted or kind == "a" or bool(kind == rule.type and matches and both)
        assert allowed == wanted, str(rule)
        assert set(missing) <= set(rule.access)


register(
    Target(
        "devices.list", parse=_lines, errors=(ValueError,), allowed=short, check=_check_list, seeds=_list_seeds,
        max_size=1 << 10, executions=2000, tokens=(
            b"c ", b"b ", b"a ", b"*:*", b"*", b"1:3", b"195:0", b"195:255", b" rwm", b" r", b" w", b" m", b"\n",
            b":", b" ",
            b"\xff", b"\nc 195:0 rw\n", b"\nb 1:* r\n",
        ),
    )
)  # fmt: skip
