"""What counts as a try of a deploy to move an agent, and which node is next."""

from __future__ import annotations

from typing import Any

import pytest

from mielin_cells.agents.reports import MigrationReport
from mielin_cells.client.deploys.tries import PATIENCE_S, TRIES, Failure, Tries, failure_of_error, failure_of_move
from mielin_cells.errors import (
    CellError,
    Fenced,
    HandlerFailed,
    MigrationInProgress,
    MigrationRefused,
    NodeStopping,
    NoResponder,
    NoSuchAgent,
    RetryError,
    StateTooNew,
    StoreUnreachable,
    UnknownNode,
    UsageError,
)

AWAY = Failure("new-1 does not answer", "TargetUnreachable", passes=True, target="new-1")
WRONG = Failure("healthy() answered False", "Returned", passes=False, target="new-1")


def moved(code: str, **fields: Any) -> MigrationReport:
    fields = {"reason": "why", **fields}
    return MigrationReport(
        migration="m", agent="a", source="old-1", target="new-1", outcome="rolled_back", code=code, **fields
    )


@pytest.mark.parametrize(
    "code", ["TargetUnreachable", "NoResponder", "NodeCordoned", "NodeStopping", "StoreUnreachable"]
)
def test_a_node_that_is_away_cordoned_or_stopping_is_waited_for(code: str) -> None:
    assert failure_of_move(moved(code), target_stays=True) == Failure("why", code, passes=True, target="new-1")


@pytest.mark.parametrize("error_type", ["TargetUnreachable", "InsufficientResources", "NetworkTransient"])
def test_the_type_of_the_failure_counts_more_than_the_code_in_which_the_move_ended(error_type: str) -> None:
    refused = moved("MigrationRefused", error_type=error_type, reasons=("new-1 is full", "new-1 is cordoned"))
    found = failure_of_move(refused, target_stays=True)
    assert (found.passes, found.why) == (True, "new-1 is full; new-1 is cordoned")
    assert not failure_of_move(moved("MigrationRefused", error_type="IncompatibleTarget"), target_stays=True).passes
    assert failure_of_move(moved("NodeStopping", error_type="of a newer version"), target_stays=True).passes


@pytest.mark.parametrize("code", ["Fenced", "MigrationInProgress", "SourceLost"])
def test_an_agent_that_somebody_else_moves_or_claims_meanwhile_is_waited_for(code: str) -> None:
    assert failure_of_move(moved(code), target_stays=True).passes


@pytest.mark.parametrize(
    "code", ["Returned", "UnknownClass", "StateTooNew", "HandlerFailed", "InternalError", "Cancelled"]
)
def test_what_the_new_code_or_an_operator_has_decided_is_a_try(code: str) -> None:
    assert not failure_of_move(moved(code), target_stays=False).passes


def test_a_move_without_time_is_a_try_only_if_its_target_had_the_agent_and_still_serves() -> None:
    before = moved("Timeout", phases=(("PREPARING", 0.1), ("PAUSED", 5.0)))
    behind = moved("Timeout", phases=(("PREPARING", 0.1), ("VERIFYING", 10.0)))
    assert failure_of_move(before, target_stays=True).passes
    assert failure_of_move(behind, target_stays=False).passes
    assert not failure_of_move(behind, target_stays=True).passes


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (NoResponder("x"), True), (StoreUnreachable("x"), True), (UnknownNode("x"), True), (NodeStopping("x"), True),
        (NoSuchAgent("x"), True), (Fenced("x"), True), (MigrationInProgress("x"), True), (RetryError("None serves."), True),
        (MigrationRefused("x", kinds=["cordoned"]), True), (MigrationRefused("x", kinds=["full", "memory"]), True),
        (MigrationRefused("x", kinds=["full", "class unknown"]), False), (StateTooNew("x"), False),
        (HandlerFailed("x"), False), (UsageError("x"), False), (CellError("x"), False),
    ],
)  # fmt: skip
def test_errors_of_requests_are_told_apart_as_ends_of_moves_are(error: CellError, passes: bool) -> None:
    assert failure_of_error(error, "new-1") == Failure(error.message, error.code, passes, "new-1")


def test_an_agent_has_three_tries_and_those_that_pass_by_themselves_do_not_count() -> None:
    tries = Tries()
    for number in range(50):
        assert tries.may("a")
        tries.failed("a", AWAY, now=float(number))
    for _ in range(TRIES):
        assert tries.may("a")
        tries.failed("a", WRONG, now=50.0)
    assert not tries.may("a")
    assert tries.failure("a") == WRONG
    assert tries.may("b")


def test_what_never_passes_counts_once_patience_is_over() -> None:
    tries = Tries()
    tries.failed("a", AWAY, now=100.0)
    tries.failed("a", AWAY, now=100.0 + PATIENCE_S)
    for number in range(TRIES):
        assert tries.may("a")
        tries.failed("a", AWAY, now=101.0 + PATIENCE_S + number)
    assert not tries.may("a")


def test_patience_begins_anew_behind_a_success_and_behind_a_failure_of_another_kind() -> None:
    tries, late = Tries(), 100.0 + PATIENCE_S
    tries.failed("a", AWAY, now=0.0)
    tries.succeeded("a")
    assert tries.failure("a") is None
    tries.failed("b", AWAY, now=0.0)
    tries.failed("b", WRONG, now=1.0)
    for agent in "ab":
        for _ in range(TRIES):
            tries.failed(agent, AWAY, now=late)
        assert tries.may(agent)


def test_the_next_try_goes_to_another_node_if_there_is_one() -> None:
    tries = Tries()
    assert {tries.choose("a", ["n1", "n2", "n3"]) for _ in range(3)} == {"n1", "n2", "n3"}
    tries.failed("a", AWAY._replace(target="n1"), now=0.0)
    assert {tries.choose("a", ["n1", "n2", "n3"]) for _ in range(6)} == {"n2", "n3"}
    assert {tries.choose("a", ["n1"]) for _ in range(3)} == {"n1"}
    assert {tries.choose("b", ["n1", "n2"]) for _ in range(4)} == {"n1", "n2"}
