"""Whether agents fare worse in new code: what is counted of turns, and what is said of it."""

from __future__ import annotations

import pytest

from mielin_cells.policy.deploys.health import Limits, Sample, Turns, judge, summed

ALLOWED = Limits()


def turns(ended: int, failed: int = 0, buried: int = 0, seconds: float = 0.001) -> Turns:
    made = Turns()
    for _ in range(ended):
        made.count(seconds)
    made.failed, made.buried = failed, buried
    return made


def said(old: Turns, new: Turns, limits: Limits = ALLOWED) -> str:
    return judge(Sample({"Health": old}), Sample({"Health": new}), limits)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (turns(100), turns(100), ""),
        (turns(100, failed=50), turns(100, failed=50), ""),
        (turns(100), turns(100, failed=2), "2 of 100 turns of Health failed"),
        (turns(100), turns(19, failed=19), ""),
        (turns(0), turns(100, failed=2), "2.0%"),
        (turns(100), turns(100, buried=1), "1 messages to agents of Health became dead letters"),
        (turns(200, seconds=0.010), turns(200, seconds=0.300), "the slowest hundredth"),
        (turns(200, seconds=0.300), turns(200, seconds=0.500), ""),
        (turns(200, seconds=0.001), turns(200, seconds=0.050), ""),
        (turns(199, seconds=0.001), turns(200, seconds=9.0), ""),
        (turns(200, seconds=0.001), turns(199, seconds=9.0), ""),
    ],
)
def test_new_code_is_compared_with_old_code_once_there_is_enough_of_both(old: Turns, new: Turns, says: str) -> None:
    found = said(old, new)
    assert says in found
    assert bool(found) == bool(says)


def test_nothing_is_said_of_what_is_not_looked_at() -> None:
    lax = Limits(errors=None, dead=None, latency=None, crashes=None)
    assert said(turns(100), turns(100, failed=100, buried=9, seconds=9.0), lax) == ""
    assert judge(Sample(), Sample(crashes=99), lax) == ""


def test_nodes_that_end_or_fall_silent_and_agents_in_error_are_named() -> None:
    assert "ended by themselves 3 times" in judge(Sample(), Sample(crashes=3), Limits())
    assert judge(Sample(), Sample(crashes=2), Limits()) == ""
    assert "n1 did not answer" in judge(Sample(), Sample(silent=["n1"]), Limits())
    assert judge(Sample(), Sample(broken=["a: why", "b: why"]), Limits()) == "a: why (and 1 more)"


def test_turns_add_up_and_differ_and_a_process_that_began_anew_counts_from_nothing() -> None:
    first, second = turns(10, failed=1), turns(30, failed=2, seconds=0.5)
    both = summed([{"A": first}, {"A": second, "B": first}])
    assert (both["A"].ended, both["A"].failed, both["B"].ended) == (40, 3, 10)
    later = both["A"].since(first)
    assert (later.ended, later.failed, later.quantile_s(0.5)) == (30, 2, second.quantile_s(0.5))
    assert first.since(both["A"]) is first


@pytest.mark.parametrize("seconds", [1e-6, 1e-4, 0.003, 1.0, 600.0])
def test_a_duration_is_known_to_a_factor_of_two(seconds: float) -> None:
    assert seconds <= turns(5, seconds=seconds).quantile_s(0.99) <= 2 * seconds + 1e-6
