"""Every public exception: one of three families, and the same after pickling and after a way over the wire."""

from __future__ import annotations

import pickle
import re
from typing import Any

import msgspec
import pytest

import mielin_cells as cells
from mielin_cells import errors
from mielin_cells.errors import CellError, LostError, RetryError, UsageError, from_wire
from mielin_cells.log.message import Answer, decode_answer, encode_answer
from mielin_cells.rpc import requests

ALL: list[type[CellError]] = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, CellError)
]
BASES = {CellError, UsageError, RetryError, LostError, errors.InternalError}
NO_FAMILY = (CellError, errors.InternalError, errors.MigrationError)
VALUES: list[Any] = ["text \N{SNOWMAN}", 5, -1.5, True, None, ["a", "b"]]


def made(cls: type[CellError]) -> CellError:
    """One with a value for each fact that its docstring names."""
    named = re.search(r"Facts: ([\w, ]+)", cls.__doc__ or "")
    names = named.group(1).split(", ") if named else []
    return cls("What happened, and what to do next.", **dict(zip(names, VALUES * 2, strict=False)))


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_an_exception_is_of_one_family_and_is_public(cls: type[CellError]) -> None:
    families = [family for family in (UsageError, RetryError, LostError) if issubclass(cls, family)]
    assert len(families) == (0 if cls in NO_FAMILY else 1)
    assert cls in BASES or getattr(errors, cls.__name__) is cls
    assert cls.__doc__


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_an_exception_is_the_same_after_pickling(cls: type[CellError]) -> None:
    error = made(cls)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - its own bytes, in the same process
    assert type(again) is cls
    assert (str(again), again.facts, again.retry_after) == (str(error), error.facts, error.retry_after)
    for name, value in error.facts.items():
        assert getattr(again, name) == value


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_an_exception_is_the_same_after_the_wire(cls: type[CellError]) -> None:
    error = made(cls)
    with pytest.raises(CellError) as refused:
        requests.decode_response(requests.Ping(), requests.encode_error(error), "node-1")
    stored = decode_answer(encode_answer(Answer(None, error.to_wire()))).error
    assert stored is not None
    for again in (refused.value, from_wire(*stored)):
        assert type(again) is cls
        assert (str(again), again.facts, again.code) == (str(error), error.facts, cls.__name__)


def test_a_retry_says_when() -> None:
    for cls in ALL:
        wait = cls("x").retry_after
        assert (wait is not None and wait > 0) is issubclass(cls, RetryError)


def test_an_unknown_code_is_still_an_exception_of_ours() -> None:
    error = from_wire("FromTheFuture", "It says what to do.", {"agent": "a", "message": "m", "code": 5})
    assert type(error) is CellError
    assert (str(error), error.agent) == ("It says what to do.", "a")


def test_a_fact_that_is_not_there_is_an_attribute_error() -> None:
    error = cells.NoSuchAgent("x", agent="a")
    assert error.agent == "a"
    assert not hasattr(error, "node")


@pytest.mark.parametrize("text", ["\ud800", "x" * 1_000_000])
def test_any_text_can_travel(text: str) -> None:
    error = cells.HandlerFailed(f"It raised {text}", cause=text, asks=[text], odd={1: object()}, big=2**70)
    answer = decode_answer(encode_answer(Answer(None, error.to_wire())))
    assert answer.error is not None
    again = from_wire(*answer.error)
    assert type(again) is cells.HandlerFailed
    assert str(again).startswith("It raised ")
    assert len(msgspec.msgpack.encode(error.to_wire())) < 100_000
