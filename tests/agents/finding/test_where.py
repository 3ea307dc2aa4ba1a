"""Conditions on attributes: in Python, as text, and what is refused."""

from __future__ import annotations

import string
from random import Random
from typing import Any

import pytest

import mielin_cells as cells
from mielin_cells.agents.finding.parse import CHARS_MAX, parse
from mielin_cells.agents.finding.where import Where, key_of
from mielin_cells.errors import AttributeInvalid, UsageError, WhereInvalid
from mielin_cells.log.attributes.values import ATTRIBUTES_MAX, Attributes, Value, changed

ORDER: dict[str, Value] = {"region": "eu", "load": 3, "share": 0.5, "vip": True, "old": False, "say": 'a "b" \\'}

HOLDS = [
    'region == "eu"', "region = 'eu'", "load < 4", "load <= 3", "load > 2.5", "load >= 3", "load == 3.0", "share < 1", "vip",
    "not old",
    'region in ("us", "eu")', 'region not in ("us",)', "exists(load)", "not exists(price)", 'region == "eu" and load < 4',
    'region == "us" or vip and load == 3', 'not (region == "us" or load > 3)', "vip == true", "old == False", "price != 1",
    'region != "us"',
    r'say == "a \"b\" \\"', "load>-1", "load > -1e3", '((region=="eu"))', "share == .5",
]  # fmt: skip
FAILS = [
    'region == "us"', "load < 3", "price", "price == 1", "price < 1", "vip == 1", "load == true", 'load == "3"', 'load < "4"',
    'region < 1',
    "old", "not vip", "exists(price)", "vip > 0", 'region in ("us", "ch")', "region", "load", "not not price",
]  # fmt: skip


@pytest.mark.parametrize("text", HOLDS)
def test_a_condition_holds(text: str) -> None:
    assert parse(text).holds(ORDER)
    assert parse(str(parse(text))).holds(ORDER)


@pytest.mark.parametrize("text", FAILS)
def test_a_condition_fails(text: str) -> None:
    assert not parse(text).holds(ORDER)
    assert not parse(str(parse(text))).holds(ORDER)


def test_a_condition_in_python_is_the_one_in_text() -> None:
    attr = cells.attr
    pairs: list[tuple[Where, str]] = [
        (attr("region") == "eu", 'region == "eu"'),
        (attr("region") != "eu", 'not (region == "eu")'),
        ((attr("load") < 3) & (attr("vip") | (attr("load") >= 1)), "(load < 3) and ((vip) or (load >= 1))"),
        (~attr("load").is_in(1, 2), "not (load in (1, 2))"),
        (attr("load").exists() & (attr("load") > 2) & (attr("load") <= 3), "((exists(load)) and (load > 2)) and (load <= 3)"),
    ]  # fmt: skip
    for where, text in pairs:
        assert str(where) == text
        assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "column", "why"),
    [
        ("", 1, "an attribute is wanted"),
        ("region ==", 10, "a value"),
        ('region == "eu" load', 16, "and, or, or the end"),
        ('region == "eu', 11, "not closed"),
        ("region == eu", 11, "there is eu"),
        ("(a", 3, ") is wanted"),
        ("a in 3", 6, "( is wanted"),
        ("a in ()", 7, "a value"),
        ("a not b", 7, "in is wanted"),
        ("exists(3)", 8, "an attribute"),
        ("a == 1 and", 11, "an attribute"),
        ("a ~ 1", 3, "means nothing"),
        ("and", 1, "an attribute"),
        ("x" * (CHARS_MAX + 1), CHARS_MAX + 1, "characters"),
        ("(" * 100 + "a", 66, "nested"),
        ("not " * 200 + "a", 261, "nested"),
        ("a" * 65, 1, "an attribute"),
        ("a\n== ", 6, "a value"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_column(text: str, column: int, why: str) -> None:
    with pytest.raises(WhereInvalid) as refused:
        parse(text)
    assert refused.value.column == column
    assert why in str(refused.value)
    line, pointer = str(refused.value).splitlines()[1:]
    if "nested" not in why and len(text) < 50 and column <= len(text):
        assert line[pointer.index("^")] == text[column - 1]


def test_random_texts_are_read_or_refused() -> None:
    rng = Random(1)
    pieces = [
        "a",
        "b",
        "==",
        "<",
        "(",
        ")",
        "and",
        "or",
        "not",
        "in",
        "exists",
        '"x"',
        "'",
        "1",
        ",",
        "true",
        "\\",
        " ",
        ".5",
        "\0",
        "é",
    ]
    read, columns = 0, list[int]()
    for _ in range(5000):
        text = rng.choice(("", " ")).join(
            rng.choice([*pieces, rng.choice(string.printable)]) for _ in range(rng.randint(1, 9))
        )
        try:
            where = parse(text)
        except WhereInvalid as error:
            columns.append(error.column - len(text) - 1)
            continue
        read += 1
        some: list[dict[str, Value]] = [{}, {"a": 1}, {"a": True, "b": "x"}]
        for values in some:
            assert parse(str(where)).holds(values) == where.holds(values)
    assert read > 50
    assert max(columns) == 0


def test_what_an_index_looks_for_is_met_by_all_that_meet_the_condition() -> None:
    rng, texts = Random(2), [*HOLDS, *FAILS]
    for _ in range(2000):
        where = parse(
            " ".join(f"({rng.choice(texts)}) {rng.choice(('and', 'or'))}" for _ in range(2)) + f" {rng.choice(texts)}"
        )
        values: dict[str, Value] = {
            name: rng.choice((value, 3, "eu", "us", True)) for name, value in ORDER.items() if rng.random() < 0.7
        }
        needs = where.needs
        if needs is not None and where.holds(values):
            assert needs.name in values
            assert key_of(values[needs.name]) in needs.keys


def test_misuse_in_python_is_refused() -> None:
    with pytest.raises(UsageError, match="Join conditions by &"):
        _ = (cells.attr("a") == 1) and (cells.attr("b") == 2)
    odd: Any = cells.attr("a")
    with pytest.raises(UsageError, match="is none"):
        _ = (odd == 1) & True
    with pytest.raises(UsageError, match="it is str, int, float or bool"):
        _ = odd == None  # noqa: E711
    for name in ("", "a b", "3a", "and", "x" * 65, "é"):
        with pytest.raises(AttributeInvalid):
            cells.attr(name)


def test_attributes_change_and_their_number_grows() -> None:
    one = changed(None, {"b": 1, "a": "x"})
    assert one == Attributes(1, {"a": "x", "b": 1})
    assert changed(one, {"b": 1}) is None
    assert changed(one, {"c": None}) is None
    assert changed(None, {"c": None}) is None
    assert changed(one, {"b": True}) == Attributes(2, {"a": "x", "b": True})
    assert changed(one, {"b": 1.0}) == Attributes(2, {"a": "x", "b": 1.0})
    assert changed(one, {"a": None, "b": None}) == Attributes(2, {})


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 2**63, -(2**64), "x" * 257, "\ud800", b"x", [], object()]
)
def test_a_value_that_cannot_be_is_refused(value: Any) -> None:
    with pytest.raises(AttributeInvalid, match="'a' cannot be"):
        changed(None, {"a": value})


def test_an_agent_has_a_limited_number_of_attributes() -> None:
    most = changed(None, {f"a{n}": n for n in range(ATTRIBUTES_MAX)})
    assert most is not None
    with pytest.raises(AttributeInvalid, match=f"at most {ATTRIBUTES_MAX}"):
        changed(most, {"one": 1})
    assert changed(most, {"one": 1, "a0": None}) is not None
