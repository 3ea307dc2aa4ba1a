"""What a parent does about a child that has failed: the machine alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mielin_cells.log.family.notices import due
from mielin_cells.log.family.rules import wrong_family
from mielin_cells.log.family.supervise import Supervision, decide
from mielin_cells.log.family.tree import (
    Carried,
    Child,
    Decided,
    Down,
    Family,
    FamilyChange,
    Gone,
    Told,
    Watched,
    Watcher,
)

NAMES = ("a", "b", "c")


def family(**over: Any) -> Family:
    kids = {
        name: Child(name, "Kid", name.encode(), "restart", "terminate", 0, status="running") for name in NAMES
    }  # fmt: skip
    for kid in kids.values():
        for field, value in over.items():
            setattr(kid, field, value)
    return Family(children=kids)


def down(agent: str, n: int, kind: Any = "failed", **over: Any) -> Down:
    return Down(agent=agent, kind=kind, n=n, failure=n, cause="x", **over)


def takes(one: Family, rules: Supervision, notice: Down, now: float) -> tuple[FamilyChange | None, str]:
    decision = decide(one, rules, notice, now)
    if decision.change is not None:
        assert not wrong_family(one, [decision.change])
        one.apply(decision.change)
    return decision.change, decision.escalates


events = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(["failed", "dead_letters"]), st.floats(0, 30)), max_size=40
)


@given(
    events,
    st.integers(0, 4),
    st.sampled_from([1.0, 10.0, 60.0]),
    st.sampled_from(["one_for_one", "one_for_all", "rest_for_one"]),
)
def test_there_are_never_more_restarts_within_the_window_than_allowed(
    story: list[tuple[str, Any, float]], most: int, within: float, strategy: Any
) -> None:
    one, now, counts = family(), 0.0, dict.fromkeys(NAMES, 0)
    rules, made = Supervision(strategy=strategy, max_restarts=most, within_s=within), list[float]()
    for name, kind, rest in story:
        now += rest
        counts[name] += 1
        change, why = takes(one, rules, down(name, counts[name], kind), now)
        assert isinstance(change, Decided)
        before = [at for at in made if at > now - within]
        assert bool(why) == (len(before) >= most)
        assert bool(change.orders) != bool(why)
        if change.orders:
            made.append(now)
        assert takes(one, rules, down(name, counts[name], kind), now) == (None, "")  # the same notice once more


@pytest.mark.parametrize(
    ("strategy", "orders"),
    [
        ("one_for_one", [("b", "restart")]),
        ("one_for_all", [("a", "reload"), ("b", "restart"), ("c", "reload")]),
        ("rest_for_one", [("b", "restart"), ("c", "reload")]),
    ],
)
def test_a_strategy_says_which_children_are_restarted(strategy: Any, orders: list[tuple[str, str]]) -> None:
    change, _ = takes(family(), Supervision(strategy=strategy), down("b", 1), 0.0)
    assert isinstance(change, Decided)
    assert change.orders == orders


def test_a_child_that_is_not_to_be_restarted_is_not() -> None:
    rules = Supervision()
    for kind, orders in (("failed", []), ("dead_letters", [("a", "suspend")])):
        change, why = takes(family(on_failure="stop"), rules, down("a", 1, kind), 0.0)
        assert (getattr(change, "orders", None), why) == (orders, "")
    assert takes(family(on_failure="escalate"), rules, down("a", 1), 0.0)[1]
    assert "cannot be resumed" in takes(family(), rules, down("a", 1, fatal=True), 0.0)[1]
    assert isinstance(takes(family(), rules, down("a", 1, "terminated"), 0.0)[0], Gone)
    assert takes(family(), rules, down("stranger", 1), 0.0) == (None, "")


def test_an_order_ends_when_it_was_carried_out_for_its_own_failure() -> None:
    one, rules = family(), Supervision()
    takes(one, rules, down("a", 1), 0.0)
    takes(one, rules, down("a", 2), 0.0)
    one.apply(Carried("a", "restart", 1))
    assert one.children["a"].order == "restart"
    one.apply(Carried("a", "restart", 2))
    assert not one.has_orders


def test_after_an_escalation_a_resume_restarts_what_was_given_up() -> None:
    one, rules = family(), Supervision(max_restarts=0)
    takes(one, rules, down("b", 1), 0.0)
    assert (one.children["b"].status, one.has_orders) == ("escalated", False)
    one.was_resumed()
    assert (one.children["b"].status, one.children["b"].order, one.restarts) == ("running", "restart", [])


def test_a_log_with_notices_out_of_order_or_taken_twice_is_refused() -> None:
    one = family()
    assert "(rule F2)" in wrong_family(one, [Told(2, 1, 0)])
    again = Decided("a", 1, 1, "running", [], [])
    assert "(rule F3)" in wrong_family(one, [again, again])
    assert not wrong_family(one, [Told(1, 1, 0), Told(2, 2, 0), again, Watched(Watcher("x", "h", "p"))])


def test_who_gives_up_on_a_child_restarts_it_no_more() -> None:
    """An earlier order that was not carried out yet would restart the child for the failure at which its parent gave up."""
    one, rules = family(), Supervision(max_restarts=1)
    takes(one, rules, down("a", 1), 0.0)
    assert takes(one, rules, down("a", 2), 0.0)[1]
    assert not one.has_orders


def test_a_watcher_is_told_nothing_of_what_happened_before_it_came() -> None:
    one = family()
    one.has_failed()
    one.apply(Watched(Watcher("x", "h", "p")))
    assert due("me", one, None) is None
    one.has_failed()
    told = due("me", one, None)
    assert told is not None
    assert (told[1].failure, told[1].n) == (2, 1)
