"""What users' exceptions bring along: any text and any fact is described so that it can be stored and sent."""

from __future__ import annotations

import pickle
from enum import IntEnum
from typing import Any

import pytest

import mielin_cells as cells
from mielin_cells.errors import TEXT_CHARS_MAX, CellError, described, from_wire, storable
from mielin_cells.log.message import Answer, decode_answer, encode_answer


def over_the_wire(error: CellError) -> CellError:
    """As a handler's error comes to the caller: inside an answer, encoded and stored."""
    told = decode_answer(encode_answer(Answer(None, error.to_wire()))).error
    assert told is not None
    return from_wire(*told)


def pickled(error: CellError) -> Any:
    return pickle.loads(pickle.dumps(error))  # noqa: S301 - made in this line


class Colour(IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (2**64 - 1, 2**64 - 1),
        (-(2**63), -(2**63)),
        (2**70, hex(2**70)),
        (1 << 20_000, hex(1 << 20_000)[:TEXT_CHARS_MAX] + "..."),
        (True, True),
        (Colour.RED, 1),
        (1.5, 1.5),
        (None, None),
        (Text("t"), "t"),
        ("\ud800", "?"),
        (("a", 1), ["a", "1"]),
        (["\udfff", object(), {}, 1 << 20_000], ["?", hex(1 << 20_000)[:TEXT_CHARS_MAX] + "..."]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_facts_arrive_as_plain_data_that_can_be_encoded(given: Any, told: Any) -> None:
    arrived = over_the_wire(cells.UsageError("x", fact=given))

    assert arrived.facts == {"fact": told}
    assert type(arrived.fact) is type(told)


@pytest.mark.parametrize("given", [object(), {"a": 1}, {1}, b"bytes", print])
def test_facts_that_are_not_plain_data_are_not_sent(given: object) -> None:
    assert over_the_wire(cells.UsageError("x", fact=given, other=1)).facts == {"other": 1}


def test_facts_may_have_any_name() -> None:
    error = from_wire("Fenced", "x", {"message": "m", "self": "s", "cls": "c", "facts": "f"})

    assert (str(error), error.facts) == ("x", {"message": "m", "self": "s", "cls": "c", "facts": "f"})
    assert pickled(error).facts == error.facts


def test_a_sentence_is_bounded_and_can_be_encoded() -> None:
    arrived = over_the_wire(cells.UsageError("\ud800" + "x" * 3_000_000))

    assert arrived.message.startswith("?x")
    assert len(arrived.message) == TEXT_CHARS_MAX + 3
    assert storable("Grüße, 世界") == "Grüße, 世界"


class Own(cells.RetryError):
    """As a user may derive one: with a signature of its own."""

    def __init__(self, shop: str) -> None:
        super().__init__(f"{shop} is closed.", shop=shop)


def test_a_derived_exception_with_a_signature_of_its_own_pickles_and_travels() -> None:
    for again in (pickled(Own("bakery")), over_the_wire(Own("bakery"))):
        assert type(again) is Own
        assert (str(again), again.shop, again.retry_after) == ("bakery is closed.", "bakery", 1.0)


def test_a_derived_exception_does_not_take_the_place_of_ours() -> None:
    taken = type("Fenced", (cells.UsageError,), {})

    assert type(from_wire("Fenced", "x", {})) is cells.errors.Fenced
    assert taken.__name__ == "Fenced"


class Unreadable(Exception):
    def __str__(self) -> str:
        raise KeyError("no")


Numeric: type[Exception] = type("Numeric", (Exception,), {"__str__": lambda self: 5})


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no"), "ValueError: no"),
        (ValueError(), "ValueError"),
        (KeyError("k"), "KeyError: 'k'"),
        (ValueError("\ud800"), "ValueError: ?"),
        (Unreadable(), "Unreadable: its text cannot be read (KeyError)"),
        (Numeric(), "Numeric: its text cannot be read (TypeError)"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (cells.AskTimeout("Too late."), "AskTimeout: Too late."),
        (OSError("x" * 10_000), ("OSError: " + "x" * 10_000)[:TEXT_CHARS_MAX] + "..."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_exception_is_described_in_text_that_can_be_stored(error: BaseException, text: str) -> None:
    assert described(error) == text
    described(error).encode()
