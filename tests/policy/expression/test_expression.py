"""The language of rules: what it says, what it does not know, and where a text cannot be read."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import mielin_cells as cells
from mielin_cells.policy.expression.names import Facts
from mielin_cells.policy.expression.parser import Answer, check, parse
from mielin_cells.policy.expression.tokens import CHARS_MAX
from mielin_cells.policy.expression.tree import STEPS_MAX

NODE = Facts(
    {"cpu": 40.0, "mains": True, "agents": 7, "battery": None, "name": "node-1", "architecture": "x86_64"},
    {"labels": {"zone": "eu-1", "rank": "3", "a.b/c": "x"}, "sensors": {"gpu": 2}},
)
AGENT = Facts({"class": "Chat", "id": "c-1", "version": 2}, {"attributes": {"vip": True}})


def said(text: str) -> Answer:
    return parse(text).evaluate({"node": NODE, "agent": AGENT})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("node.cpu < 80", True),
        ("node.cpu < 80 and not node.mains", False),
        ("node.cpu > 80 or node.mains", True),
        ("node.labels.zone in ['eu-1', 'eu-2']", True),
        ("node.labels.zone not in ['eu-2']", True),
        ("'eu' in node.labels.zone", True),
        ('node.labels["a.b/c"] == "x"', True),
        ("node.sensors.gpu >= 2", True),
        ("node.cpu = 40", True),
        ("agent.class == 'Chat' and agent.attributes.vip", True),
        ("1 + 2 * 3 - 4 / 2", 5.0),
        ("-(1 - 3) % 2", 0.0),
        ("min(node.cpu, 10, 90)", 10.0),
        ("max(1, abs(-5))", 5.0),
        ("number(node.labels.rank) > 2", True),
        ("starts(node.name, 'node-') and ends(node.name, '1')", True),
        ("known(node.battery)", False),
        ("node.mains == true", True),
        ("1_000 == 1e3", True),
    ],
)
def test_what_it_says(text: str, value: object) -> None:
    assert said(text).value == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("node.battery < 20", "node.battery is not known"),
        ("node.battery >= 0", "node.battery is not known"),
        ("not node.battery == 0", "node.battery is not known"),
        ("node.labels.rack == 'r'", "node.labels.rack is not known"),
        ("node.labels.zone > 3", "text"),
        ("node.mains > false", "no >"),
        ("node.cpu and node.mains", "where true or false is wanted"),
        ("number(node.labels.zone) > 2", "is not a number"),
        ("1 / (node.cpu - 40) > 0", "is no number"),
        ("1e300 * 1e300 > 0", "too large"),
        ("3 in node.labels.zone", "cannot be in"),
    ],
)
def test_what_it_cannot_say_is_neither_true_nor_false(text: str, why: str) -> None:
    answer = said(text)
    assert answer.truth is None
    assert why in answer.why


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("node.battery < 20 and node.cpu > 80", False),
        ("node.battery < 20 or node.mains", True),
        ("node.battery < 20 or node.cpu > 80", None),
        ("node.battery < 20 and node.mains", None),
        ("not known(node.battery) or node.battery > 20", True),
    ],
)
def test_an_absent_fact_decides_only_what_it_can(text: str, truth: bool | None) -> None:
    assert said(text).truth is truth


def test_an_answer_has_the_values_that_decided() -> None:
    assert said("node.battery < 20 or node.cpu < 80").values == {"node.battery": None, "node.cpu": 40.0}
    assert said("node.mains or node.cpu < 80").values == {"node.mains": True}  # the rest was not looked at


@pytest.mark.parametrize(
    ("text", "column", "why"),
    [
        ("", 1, "the text ends"),
        ("node.cpu <", 11, "the text ends"),
        ("node.cpu < 80 and", 18, "the text ends"),
        ("node.cpuu < 80", 1, "it has cpu"),
        ("nod.cpu < 80", 1, "names begin with agent. or node."),
        ("cpu < 80", 1, "names begin with"),
        ("node.lables.zone == 'a'", 1, "it has labels"),
        ("node.cpu < 80)", 14, "an operator or the end"),
        ("(node.cpu < 80", 15, "the text ends"),
        ("node.cpu < 'a", 12, "a text is not closed"),
        ("node.cpu $ 3", 10, "means nothing here"),
        ("1 < 2 < 3", 7, "not chained"),
        ("open('x')", 1, "there is no function open"),
        ("abs(1, 2)", 1, "takes 1 arguments"),
        ("node.labels[3]", 13, "a name in quotes"),
        ("[1, 2", 6, "the text ends"),
        ("(" * 40 + "1" + ")" * 40, 34, "nested more than"),
        ("not " * 40 + "node.mains", 129, "nested more than"),
        ("-" * 40 + "1", 33, "nested more than"),
        ("1" * (CHARS_MAX + 1), CHARS_MAX + 1, "characters"),
    ],
)
def test_what_cannot_be_read_is_pointed_at(text: str, column: int, why: str) -> None:
    with pytest.raises(cells.errors.ExpressionInvalid) as caught:
        parse(text)
    assert caught.value.facts["column"] == column
    assert why in caught.value.message
    assert check(text) == caught.value.message


def test_what_takes_too_many_steps_is_not_known() -> None:
    long = " and ".join(["1 < 2"] * 200)
    assert parse(long).evaluate({}).truth is True
    assert f"more than {STEPS_MAX} steps" not in parse(long).evaluate({}).why
    assert "more than 100 steps" in parse(long).evaluate({}, steps=100).why
    longest = "+".join(["1"] * (CHARS_MAX // 2))
    assert f"more than {STEPS_MAX} steps" in parse(longest).evaluate({}).why


words = st.sampled_from(
    [
        "node.cpu",
        "node.battery",
        "node.labels.zone",
        "agent.id",
        "known(node.cpu)",
        "1",
        "2.5",
        "'a'",
        "true",
        "[1, 'b']",
    ]
)
signs = st.sampled_from(
    ["and", "or", "not", "in", "not in", "<", "==", "!=", "+", "-", "*", "/", "%", "(", ")", "min(", ","]
)


@given(st.lists(st.one_of(words, signs), max_size=40).map(" ".join))
@example("1 in 'a'")
@example("not not node.mains")
def test_whatever_can_be_read_has_an_answer(text: str) -> None:
    """Evaluation never raises, and always ends."""
    if not check(text):
        answer = said(text)
        assert answer.truth in (True, False, None)
        assert (answer.truth is None) >= (answer.number is None and not answer.why)


@given(st.text(alphabet=string.printable, max_size=200))
def test_whatever_is_written_is_read_or_refused_with_a_column(text: str) -> None:
    column = 1
    try:
        said(text)
    except cells.errors.ExpressionInvalid as error:
        column = int(error.facts["column"] or 0)
    assert 1 <= column <= len(text) + 1
