"""NVIDIA_REQUIRE_*: truth tables of the reference, written from its grammar; what is said where one does not hold."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
from unit.discover.nodetree import gpu
from unit.prestart.prestarttools import error

from nvoci.discover.model import Driver, Gpu
from nvoci.prestart import requirements
from nvoci.prestart.requirements import Host, Invalid, Unknown, compare, holds

HOST = Host("12.4", "550.163.01", "8.0", "Tesla")
NO_GPU = Host("12.4", "550.163.01")
TRUE, FALSE, INVALID, UNKNOWN = "true", "false", "invalid", "unknown"

# One a line: what comes of it, then the expression between bars.
TABLE = {
    "numbers": """
        true |cuda=12.4|          false |cuda=12.3|        false |cuda=12.5|       false |cuda=11.4|
        true |cuda!=12.3|         false |cuda!=12.4|       true |cuda<12.5|        false |cuda<12.4|
        true |cuda<13|            false |cuda<12|          true |cuda<=12.4|       true |cuda<=12.5|
        false |cuda<=12.3|        true |cuda>12.3|         false |cuda>12.4|       false |cuda>12.5|
        true |cuda>=12.4|         true |cuda>=12.3|        false |cuda>=12.5|      true |cuda>=9.0|
        false |cuda>=13.0|        true |cuda>=12|          false |cuda=12|         true |cuda!=12|
        true |cuda>12|            true |cuda<=13|          true |cuda>=0|          false |cuda<=0|
        false |cuda=124|          false |cuda>=100|        true |cuda>=2|          true |cuda<20|
    """,
    "zeros and dots": """
        true |cuda=12.4.0|        true |cuda=12.4.0.0|     true |cuda=12.4.|       true |cuda=12.4..|
        true |cuda=12.4.0.|       true |cuda=012.4|        true |cuda=12.04|       true |cuda=0012.0004|
        false |cuda=12.40|        false |cuda>=12.40|      false |cuda=12.4.1|     false |cuda>=12.4.1|
        true |cuda<12.4.1|        false |cuda=12.4.0.1|    true |cuda<=12.4.0|     true |cuda>=12.4.0|
        false |cuda>12.4.0|       false |cuda!=12.4.0|     true |cuda>=12.|        true |cuda>=12.0|
        true |driver=550.163.1|   true |driver=550.163.01| true |driver=550.163.001.0|
        false |driver=550.163.10| false |driver=550.163|   true |driver>550.163|   true |driver<550.163.2|
    """,
    "other properties": """
        true |driver>=550|        true |driver>=535|       false |driver>=560|     true |driver<551|
        false |driver<550|        true |driver>=550.54.15| false |driver<550.54|   true |driver!=535|
        true |driver<=550.163.01| true |arch=8.0|          true |arch=8|           false |arch=8.6|
        true |arch>=7.5|          true |arch>=7|           false |arch>=9.0|       true |arch<9|
        true |arch!=8.6|          false |arch!=8|          false |arch<8.0|        true |arch<=8.0|
        true |brand=Tesla|        true |brand=tesla|       true |brand=TESLA|      false |brand=geforce|
        true |brand!=geforce|     false |brand!=tesla|     false |brand=unknown|   false |brand=tesl|
        false |brand=tesla.|      false |brand=a=b|        invalid |brand=>|       true |brand!=x!=y|
    """,
    "every operator of a version": """
        false |driver<549.9|      false |driver<550.163.1| true |driver<550.163.02|
        false |driver<=549.9|     true |driver<=550.163.1| true |driver<=550.163.02|
        false |driver=549.9|      true |driver=550.163.1.0| false |driver=550.163.02|
        true |driver!=549.9|      false |driver!=550.163.1| true |driver!=550.163.02|
        true |driver>=549.9|      true |driver>=550.163.1| false |driver>=550.163.02|
        true |driver>549.9|       false |driver>550.163.1| false |driver>550.163.02|
        false |arch<7.9|          false |arch<8.0.0|       true |arch<8.1|
        false |arch<=7.9|         true |arch<=8.0.0|       true |arch<=8.1|
        false |arch=7.9|          true |arch=8.0.0|        false |arch=8.1|
        true |arch!=7.9|          false |arch!=8.0.0|      true |arch!=8.1|
        true |arch>=7.9|          true |arch>=8.0.0|       false |arch>=8.1|
        true |arch>7.9|           false |arch>8.0.0|       false |arch>8.1|
    """,
    "names": """
        true |CUDA>=12.4|         true |Cuda>=12.4|        false |CUDA>=13|        true |DRIVER>=550|
        true |ARCH=8.0|           true |Brand=TESLA|       invalid |foo=1|         invalid |cud=1|
        invalid |cudas=1|         invalid |cuda |          invalid |cuda|          invalid |=|
        invalid |=1|              invalid |>=12.4|         invalid |!|             invalid |12.4|
        invalid |cuda12.4|        invalid |.cuda>=1|       invalid |csv-mounts=all|
    """,
    "operators": """
        false |cuda!12.4|         true |cuda!12.3|         true |brand!geforce|    false |brand!tesla|
        invalid |cuda==12.4|      invalid |cuda=>12.4|     invalid |cuda<>12.3|    invalid |cuda=<12.4|
        invalid |cuda>>12|        invalid |cuda<<13|       invalid |cuda!!12.3|    invalid |cuda=!12|
        invalid |cuda>==12|       invalid |cuda!==12|      invalid |cuda><12|      invalid |cuda!>12|
        invalid |brand>tesla|     invalid |brand<tesla|    invalid |brand>=tesla|  invalid |brand<=tesla|
        invalid |brand==tesla|    invalid |cuda>|          invalid |cuda>=|        invalid |brand=|
        invalid |cuda~12.4|       invalid |cuda:12.4|
    """,
    "values": """
        invalid |cuda>=x|         invalid |cuda>=12.x|     invalid |cuda>=12.4a|   invalid |cuda>=v12.4|
        invalid |cuda>=-1|        invalid |cuda>=+1|       invalid |cuda>=.4|      invalid |cuda>=.|
        invalid |cuda>=..|        invalid |cuda>=12..4|    invalid |cuda>=12.4-rc| invalid |cuda>=1e3|
        invalid |cuda>=0x1|       invalid |cuda>=12.4>=1|  invalid |cuda>=1=1|     invalid |driver>=550_1|
        invalid |arch>=sm_80|     invalid |cuda>=12/4|     invalid |cuda>="12.4"|  invalid |cuda>='1'|
        true |cuda<18446744073709551614|                   invalid |cuda<18446744073709551615|
        invalid |cuda<18446744073709551616|                invalid |cuda<99999999999999999999999|
        true |cuda<00000000000000000000013|                invalid |cuda>=12.18446744073709551615|
        false |cuda>=13.18446744073709551615|              true |cuda<12.4.18446744073709551615|
    """,
    "AND": """
        true |cuda>=12.4,driver>=550|         false |cuda>=12.4,driver>=560|  false |cuda>=13,driver>=550|
        false |cuda>=13,driver>=560|          true |cuda>=12,driver>=535,driver<551,arch>=8,brand=tesla|
        false |cuda>=12,driver>=535,driver<550|  true |cuda>=12.4,|           true |,cuda>=12.4|
        true |cuda>=12.4,,driver>=550|        true |,|                        true |,,,|
        false |cuda>=13,|                     false |,cuda>=13|               invalid |cuda>=12,foo=1|
        invalid |foo=1,cuda>=12|              false |cuda>=13,foo=1|          invalid |cuda>=12,driver|
    """,
    "OR": """
        true |cuda>=13 cuda>=12|              true |cuda>=12 cuda>=13|        false |cuda>=13 cuda>=14|
        true |cuda>=13 driver>=550|           false |cuda>=13 driver>=560|    true || true | | true |   |
        true |  cuda>=12|                     true |cuda>=12  |               false |  cuda>=13  |
        true |cuda>=13  cuda>=12|             true |cuda>=12 foo=1|           invalid |foo=1 cuda>=12|
        invalid |cuda>=13 foo=1|              true |cuda>=13 ,|               true |, foo=1|
        invalid |cuda>=13 foo=1 cuda>=12|     true |cuda>=12 cuda>=x|         invalid |cuda>=x cuda>=12|
    """,
    "both": """
        true |cuda>=13,driver>=550 cuda>=12,driver>=535|
        false |cuda>=13,driver>=550 cuda>=12,driver>=560|
        true |cuda>=12.6 brand=tesla,driver>=470,driver<471 brand=tesla,driver>=550,driver<551|
        false |cuda>=12.6 brand=tesla,driver>=470,driver<471 brand=geforce,driver>=550,driver<551|
        true |brand=geforce,foo=1 arch>=8|    invalid |brand=tesla,foo=1 arch>=8|
        true |cuda>=13, ,driver>=550|         false |arch>=9 arch<8 brand=a,brand=b|
    """,
    "blanks": """
        invalid |cuda >= 12.4|                invalid |cuda>= 12.4|           invalid |cuda >=12.4|
        true |cuda>=12.4 , driver>=560|       invalid |\tcuda>=12|            invalid |cuda>=12\t|
        invalid |cuda>=13\tcuda>=12|          invalid |cuda>=12\n|            invalid |cuda\x00>=12|
    """,
}  # fmt: skip


def cases(text: str) -> list[tuple[str, str]]:
    """(what comes of it, expression) of a block. A bar is in no expression."""
    parts = text.split("|")
    return [(parts[at].strip(), parts[at + 1]) for at in range(0, len(parts) - 1, 2)]


CASES = [pytest.param(*case, id=f"{name}: {ascii(case[1])[1:-1]}") for name in TABLE for case in cases(TABLE[name])]


def outcome(expression: str, host: Host = HOST) -> str:
    """In one word."""
    try:
        return TRUE if holds(expression, host) else FALSE
    except Invalid:
        return INVALID
    except Unknown:
        return UNKNOWN


def test_there_are_enough_cases() -> None:
    assert len(CASES) == len({case.values[1] for case in CASES}) >= 200


@pytest.mark.parametrize(("wanted", "expression"), CASES)
def test_an_expression_is(wanted: str, expression: str) -> None:
    assert outcome(expression) == wanted


# Without a GPU, whatever is asked of one holds; what is no expression is none.
WITHOUT_GPU = {
    "arch=9": TRUE, "arch>99": TRUE, "arch!=8.0": TRUE, "brand=geforce": TRUE, "brand!=tesla": TRUE,
    "cuda>=13": FALSE, "cuda>=12": TRUE, "driver>=560": FALSE, "brand=geforce,cuda>=13": FALSE,
    "brand=geforce,cuda>=12": TRUE, "cuda>=13 arch>=9": TRUE, "arch": INVALID, "arch==8": INVALID, "brand=": INVALID,
    "foo=1": INVALID, "": TRUE,
}  # fmt: skip


@pytest.mark.parametrize(("expression", "wanted"), WITHOUT_GPU.items(), ids=WITHOUT_GPU)
def test_without_a_gpu(expression: str, wanted: str) -> None:
    assert outcome(expression, NO_GPU) == wanted


SILENT = {
    "cuda>=12": UNKNOWN, "driver>=1": UNKNOWN, "arch>=8": UNKNOWN, "brand=unknown": TRUE, "brand=unknown cuda>=1": TRUE,
    "cuda>=1 brand=unknown": UNKNOWN, "": TRUE, "foo=1": INVALID,
}  # fmt: skip


@pytest.mark.parametrize(("expression", "wanted"), SILENT.items(), ids=SILENT)
def test_what_the_node_does_not_tell_is_neither_true_nor_false(expression: str, wanted: str) -> None:
    assert outcome(expression, Host("", "", "", "Unknown")) == wanted


def test_a_version_of_the_node_that_is_none_counts_as_unknown() -> None:
    assert outcome("driver>=550", Host("12.4", "550.54-grid")) == UNKNOWN


@pytest.mark.parametrize("value", ["Nvidia", "NvidiaRTX", "GeForceRTX", "Unknown"])
def test_every_brand_is_spelled_in_any_case(value: str) -> None:
    host = Host("12.4", "550", "8.0", value)
    assert {outcome(f"brand={each}", host) for each in (value, value.lower(), value.upper())} == {TRUE}


@pytest.mark.parametrize(("length", "wanted"), [(127, FALSE), (128, INVALID), (5000, INVALID)])
def test_a_false_term_is_not_longer_than_the_reference_can_hold(length: int, wanted: str) -> None:
    assert outcome("brand=" + "x" * (length - 6)) == wanted
    assert outcome("cuda<" + "0" * (length - 5)) == wanted
    assert outcome("cuda>" + "0" * (length - 5)) == TRUE


ORDER = ["0", "0.1", "1", "1.0.1", "1.1", "1.2", "1.10", "1.10.1", "2", "9", "10", "10.0.0.1", "550.54.15",
         "550.163.01", "550.163.1.1", "550.163.2", "551"]  # fmt: skip


def test_versions_are_in_this_order() -> None:
    for i, one in enumerate(ORDER):
        for j, other in enumerate(ORDER):
            assert compare(one, other) == (i > j) - (i < j), (one, other)
            assert compare(one + ".0", other) == compare(one, other + ".00.0") == compare(one, other)


# -- the whole check ------------------------------------------------------------------------------------------------

DRIVER = Driver(version="550.163.01", cuda_version=(12, 4))
TESLA, GEFORCE = 2, 5


def gpus(*kinds: tuple[int, tuple[int, int] | None]) -> list[Gpu]:
    """(brand, compute capability) of each."""
    return [gpu(i, brand=brand, compute_capability=arch) for i, (brand, arch) in enumerate(kinds)]


def check(*expressions: str, driver: Driver = DRIVER, of: Any = ((TESLA, (8, 0)),)) -> None:
    requirements.check([(f"NVIDIA_REQUIRE_{i}", e) for i, e in enumerate(expressions)], driver, gpus(*of))


def test_all_must_hold_for_each_gpu() -> None:
    both = ((TESLA, (8, 0)), (GEFORCE, (7, 5)))
    check("cuda>=12", "arch>=7", "brand!=grid", of=both)
    assert error(lambda: check("cuda>=12", "arch>=8", of=both)).message.endswith("unsatisfied condition: arch>=8")
    assert error(lambda: check("brand=tesla", of=both)).message.endswith("unsatisfied condition: brand=tesla")
    check("brand=tesla brand=geforce", of=both)
    check("brand=quadro", "arch>=99", of=())
    check()


NEWER = ", please update your driver to a newer version, or use an earlier cuda container"
MESSAGES: dict[str, tuple[str, str]] = {
    "old driver": (
        "cuda>=13.0",
        f"unsatisfied condition: cuda>=13.0{NEWER}",
    ),
    "the first alternative": (
        " cuda>=13.0,driver>=580 brand=quadro",
        f"unsatisfied condition: cuda>=13.0,driver>=580{NEWER}",
    ),
    "capitals": ("CUDA>=13", "unsatisfied condition: CUDA>=13"),
    "another": ("driver>=580", "unsatisfied condition: driver>=580"),
    "another operator": ("cuda>13", "unsatisfied condition: cuda>13"),
    "no expression": ("foo=1", "invalid expression"),
    "hostile": ("a\nb\x1b=1", "invalid expression"),
}


@pytest.mark.parametrize(("expression", "message"), MESSAGES.values(), ids=MESSAGES)
def test_message(expression: str, message: str) -> None:
    caught = error(lambda: check("cuda>=1", expression))
    assert caught.message == f"requirement error: {message}"
    assert "NVIDIA_REQUIRE_1" in caught.hint


def test_the_hint_tells_what_the_node_has_and_how_to_go_on() -> None:
    assert error(lambda: check("cuda>=13")).hint == (
        "NVIDIA_REQUIRE_0; this node has CUDA 12.4, driver 550.163.01, compute capability 8.0, brand Tesla; "
        "NVIDIA_DISABLE_REQUIRE=1 in the container, or disable-require in config.toml, skips this"
    )
    assert "this node has CUDA 12.4, driver 550.163.01; " in error(lambda: check("cuda>=13", of=())).hint


def test_what_the_node_does_not_tell_is_an_error_where_it_is_asked_for() -> None:
    silent = Driver(version="550.163.01")
    check("driver>=550", driver=silent)
    assert error(lambda: check("cuda>=12", driver=silent)).message == "requirement error: unknown cuda of this node"
    caught = error(lambda: check("arch>=8", of=((TESLA, None),)))
    assert caught.message == "requirement error: unknown arch of this node"


def test_limits() -> None:
    check(*["cuda>=12"] * 32)
    assert error(lambda: check(*["cuda>=12"] * 33)).message == "input error: too many requirements"
    check(" " * requirements.MAX_EXPRESSION)
    for many in ([" " * (requirements.MAX_EXPRESSION + 1)], [" " * requirements.MAX_EXPRESSION] * 5):
        caught = error(lambda many=many: check(*many))
        assert caught.message == "requirement error: invalid expression"
        assert "too long" in caught.hint


BOMBS: dict[str, str] = {
    "alternatives": "arch=9 " * 2340,
    "terms": "cuda>1," * 2340,
    "commas": "," * 16384,
    "blanks": " " * 16384,
    "operators": "<" * 16384,
    "digits": "cuda>" + "9" * 16000,
    "dots": "cuda>12" + ".0" * 8000,
    "components": "cuda>" + "1." * 8000,
    "zeros": "cuda>12.4" + "." * 16000,
    "a name": "x" * 16384,
}


@pytest.mark.skipif(sys.gettrace() is not None, reason="takes longer where lines are traced")
@pytest.mark.parametrize("expression", BOMBS.values(), ids=BOMBS)
def test_an_expression_is_read_in_less_than_ten_milliseconds(expression: str) -> None:
    assert len(expression) <= requirements.MAX_EXPRESSION
    seconds = []
    for _ in range(5):
        start = time.thread_time()
        outcome(expression)
        seconds.append(time.thread_time() - start)
    assert min(seconds) < 0.010


def test_gpus_that_look_the_same_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(requirements, "holds", lambda expression, host: bool(asked.append(host)) or True)
    check("arch>=1", of=((TESLA, (8, 0)),) * 64)
    assert len(asked) == 1
