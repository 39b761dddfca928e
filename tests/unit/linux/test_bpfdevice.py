"""nvoci.linux.bpfdevice: what merged programs say, run by an interpreter."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lib import bpfvm, devprogs
from lib.bpfvm import EXIT, LDX_W, MOV64_K, assemble
from lib.devprogs import FORMS, Rule

from nvoci.linux import bpfdevice
from nvoci.linux.devicerule import DeviceRule

# Few numbers, so that rules and accesses meet.
MAJORS, MINORS = (1, 195, 4095), (0, 3, 255, (1 << 20) - 1)
ACCESSES = ("", "r", "w", "m", "rw", "rm", "wm", "rwm")
rules = st.lists(
    st.builds(
        Rule,
        st.booleans(),
        st.sampled_from("abc"),
        st.none() | st.sampled_from(MAJORS),
        st.none() | st.sampled_from(MINORS),
        st.sampled_from(ACCESSES[1:]),
    ),
    max_size=6,
)
ours = st.lists(
    st.builds(
        DeviceRule,
        st.sampled_from("bc"),
        st.sampled_from(MAJORS),
        st.sampled_from(MINORS),
        st.sampled_from(("r", "w", "rw")),
    ),
    max_size=5,
)
accesses = st.tuples(st.sampled_from("bc"), st.sampled_from(MAJORS), st.sampled_from(MINORS), st.sampled_from(ACCESSES))
forms = st.sampled_from(sorted(FORMS))
NULL = [Rule(True, "c", 1, 3)]


def expected(wanted: list[DeviceRule], kind: str, major: int, minor: int, access: str) -> bool:
    """What our rules are to say, without a word about instructions."""
    return any(
        (rule.type, rule.major, rule.minor) == (kind, major, minor) and set(access) <= set(rule.access)
        for rule in wanted
    )


@given(rules, accesses)
def test_the_interpreter_and_the_forms_agree_with_the_rules(
    listed: list[Rule], access: tuple[str, int, int, str]
) -> None:
    allowed = [rule for rule in listed if rule.allow]
    assert bpfvm.allows(devprogs.runc(listed), *access) == devprogs.verdict(listed, *access)
    assert bpfvm.allows(devprogs.systemd(listed), *access) == devprogs.verdict(allowed, *access)


@settings(max_examples=300)
@given(forms, rules, ours, accesses)
def test_merged_says_ours_or_the_original(
    form: str, listed: list[Rule], wanted: list[DeviceRule], access: tuple[str, int, int, str]
) -> None:
    original = FORMS[form](listed)
    merged = bpfdevice.prefix(wanted) + bpfdevice.loadable(original)
    assert bpfvm.allows(merged, *access) == (expected(wanted, *access) or bpfvm.allows(original, *access))


@given(forms, rules, ours, ours)
def test_what_is_there_already_is_recognised(
    form: str, listed: list[Rule], first: list[DeviceRule], second: list[DeviceRule]
) -> None:
    """After any number of runs nothing is missing, and what was found is what was put there."""
    code = bpfdevice.prefix(second) + bpfdevice.prefix(first) + FORMS[form](listed)
    there = {(r.type, r.major, r.minor, r.access) for r in (*first, *second)}
    assert bpfdevice.allowed_by_prefix(code) == there
    assert bpfdevice.missing(code, [*first, *second]) == []


@given(forms, rules, ours, st.integers(0, 1 << 30))
def test_hidden_constants_are_made_plain(form: str, listed: list[Rule], wanted: list[DeviceRule], seed: int) -> None:
    """The very program that was loaded comes out, so that our own rules are known again."""
    code = bpfdevice.prefix(wanted) + FORMS[form](listed)
    hidden = bpfvm.blind(code, seed)
    assert bpfdevice.loadable(hidden) == code


@given(forms, rules, accesses, st.integers(0, 1 << 30))
def test_the_model_of_hiding_keeps_the_meaning(
    form: str, listed: list[Rule], access: tuple[str, int, int, str], seed: int
) -> None:
    code = FORMS[form](listed)
    blinded = bpfvm.blind(code, seed).replace(b"\xaf\x00" + bytes(6), struct.pack("=BBhi", MOV64_K, 0, 0, 0))
    assert bpfvm.allows(blinded, *access) == bpfvm.allows(code, *access)


# -- the instructions -----------------------------------------------------------------------------------------------


def test_rules_of_one_major_number_share_a_group() -> None:
    gpus = [DeviceRule("c", 195, minor) for minor in (*range(8), 254, 255)]
    caps = [DeviceRule("c", 235, minor) for minor in range(4)]
    assert len(bpfdevice.prefix(gpus)) == 8 * (9 + 10)
    assert len(bpfdevice.prefix([*gpus, *caps])) == 8 * (9 + 10 + 9 + 4)


def test_no_rules_add_nothing() -> None:
    assert bpfdevice.prefix([]) == b""


def test_more_minors_than_one_jump_reaches() -> None:
    many = [DeviceRule("c", 500, minor) for minor in range(70_000)]
    code = bpfdevice.prefix(many) + devprogs.runc(NULL)
    assert len(bpfdevice.allowed_by_prefix(code)) == 70_000
    for minor, allowed in ((0, True), (4095, True), (4096, True), (69_999, True), (70_000, False)):
        assert bpfvm.allows(code, "c", 500, minor, "rw") is allowed
    assert bpfvm.allows(code, "c", 1, 3, "r")


@pytest.mark.parametrize(
    ("there", "wanted", "missing"),
    [
        ("rw", "r", False),
        ("rw", "rw", False),
        ("r", "r", False),
        ("r", "rw", True),
        ("r", "w", True),
    ],
)
def test_a_wider_rule_covers_a_narrower_one(there: str, wanted: str, missing: bool) -> None:
    code = bpfdevice.prefix([DeviceRule("c", 1, 11, there)]) + devprogs.runc(NULL)
    rule = DeviceRule("c", 1, 11, wanted)
    assert bpfdevice.missing(code, [rule]) == ([rule] if missing else [])


@pytest.mark.parametrize("at", range(10))
def test_a_group_that_was_changed_is_not_taken_for_ours(at: int) -> None:
    code = bytearray(bpfdevice.prefix([DeviceRule("c", 1, 11)]) + devprogs.runc(NULL))
    code[8 * at] ^= 0x20
    assert bpfdevice.allowed_by_prefix(bytes(code)) == set()


@given(st.binary(max_size=400))
def test_any_bytes_are_looked_at_without_harm(data: bytes) -> None:
    whole = data[: len(data) // 8 * 8]
    bpfdevice.allowed_by_prefix(whole)
    try:
        bpfdevice.loadable(whole)
    except ValueError:
        pass


# -- programs that cannot be loaded again ---------------------------------------------------------------------------

END = [(MOV64_K, 0, 0, 0, 1), (EXIT, 0, 0, 0, 0)]
REFUSED = {
    "helper": ([(0x85, 0, 0, 0, 269_488)], "calls a function"),
    "subprogram": ([(0x85, 0, 1, 0, 1)], "calls a function"),
    "kfunc": ([(0x85, 0, 2, 0, 7)], "calls a function"),
    "indirect call": ([(0x8D, 0, 0, 0, 0)], "calls a function"),
    "tail call": ([(0xF5, 0, 0, 0, 0)], "calls a function"),
    "map": ([(0x18, 2, 1, 0, 12), (0, 0, 0, 0, 0)], "refers to an object"),
    "map value": ([(0x18, 2, 2, 0, 12), (0, 0, 0, 0, 0)], "refers to an object"),
    "packet load": ([(0x20, 0, 0, 0, 0)], "refers to an object"),
    "register 11": ([(0xBF, 11, 3, 0, 0)], "the kernel's own register"),
    "half of a hidden constant": ([(0xB7, 11, 0, 0, 5), (0xA7, 11, 0, 0, 4)], "the kernel's own register"),
    "register 15": ([(0xBF, 15, 3, 0, 0)], "does not exist"),
}


@pytest.mark.parametrize("length", [0, 8, 80, 87, 88])
def test_a_group_that_is_cut_off_is_not_taken_for_ours(length: int) -> None:
    code = bpfdevice.prefix([DeviceRule("c", 1, 11), DeviceRule("c", 1, 12)])
    assert len(code) == 88
    assert bpfdevice.allowed_by_prefix(code[:length]) == (bpfdevice.allowed_by_prefix(code) if length == 88 else set())


def test_a_64_bit_immediate_that_is_cut_off_is_refused() -> None:
    with pytest.raises(ValueError, match="in the middle of a constant"):
        bpfdevice.loadable(assemble([(MOV64_K, 0, 0, 0, 1), (0x18, 2, 0, 0, 7)]))


def test_hidden_constants_that_are_stored_or_that_no_kernel_makes() -> None:
    """BPF_ST becomes BPF_STX of the kernel's own register; a load by it is no form of a constant."""
    hidden = [(0xB7, 11, 0, 0, 5), (0xA7, 11, 0, 0, 4)]
    assert bpfdevice.loadable(assemble([*hidden, (0x7B, 10, 11, -8, 0), *END])) == assemble(
        [(0x7A, 10, 0, -8, 1), *END]
    )
    with pytest.raises(ValueError, match="the kernel's own register"):
        bpfdevice.loadable(assemble([*hidden, (LDX_W, 2, 11, 0, 0), *END]))


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_with_its_reason(name: str) -> None:
    lines, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason):
        bpfdevice.loadable(assemble([*lines, *END]))


def test_a_jump_into_a_hidden_constant_is_refused() -> None:
    hidden = [(0xB7, 11, 0, 0, 5), (0xA7, 11, 0, 0, 4), (0x5D, 2, 11, -2, 0)]
    with pytest.raises(ValueError, match="jumps into"):
        bpfdevice.loadable(assemble([(LDX_W, 2, 1, 0, 0), *hidden, *END]))


def test_the_second_half_of_a_64_bit_immediate_is_no_instruction() -> None:
    """Its bytes may look like a call; also where constants are hidden around it."""
    wide = [(0x18, 2, 0, 0, 7), (0, 0, 0, 0, 0x85)]
    code = assemble([*wide, *END])
    assert bpfdevice.loadable(code) == code
    hidden = assemble(
        [(0x05, 0, 0, 2, 0), *wide, *wide, (0xB7, 11, 0, 0, 5), (0xA7, 11, 0, 0, 4), (0xBF, 0, 11, 0, 0), END[1]]
    )
    assert bpfdevice.loadable(hidden) == assemble([(0x05, 0, 0, 2, 0), *wide, *wide, *END])


def test_backward_jumps_over_hidden_constants_are_kept_right() -> None:
    loop = assemble([(MOV64_K, 2, 0, 0, 3), "again", (0x17, 2, 0, 0, 1), (0x55, 2, 0, "again", 0), *END])
    assert bpfdevice.loadable(bpfvm.blind(loop, 7)) == loop
    assert bpfvm.allows(loop, "c", 1, 1, "r")
