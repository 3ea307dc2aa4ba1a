"""One limit for the moves of a deployment: what leaders lend never exceeds it, whatever is lost, late or replaced."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest

from mielin_cells.policy.planning.lending import LENT_S, Ask, Lending, share_of

STEP_S = 0.05


@dataclass
class Borrower:
    name: str
    todo: int
    used: int = 0
    loan: int = 0
    until: float = 0.0
    asked: int = 0

    def held(self, now: float) -> int:
        return self.loan if now < self.until else 0

    def ask(self, now: float) -> Ask:
        self.asked += 1
        want = self.used + self.todo
        self.loan = min(self.loan, want)
        return Ask(self.name, (1, self.asked), self.held(now), self.used, want)

    def work(self, now: float, rng: Random) -> None:
        if self.used and rng.random() < 0.3:
            self.used -= 1
        while self.todo and self.used < self.held(now):
            self.todo, self.used = self.todo - 1, self.used + 1


@pytest.mark.parametrize("seed", range(20))
def test_what_nodes_hold_is_never_more_than_there_is_and_all_get_their_turn(seed: int) -> None:
    """Asks and answers are lost and late, leaders are replaced without a word, nodes die."""
    rng = Random(seed)
    pool, now = rng.choice((1, 2, 3, 10)), 100.0
    nodes = [Borrower(f"n{place}", rng.choice((1, 5, 40))) for place in range(rng.choice((2, 3, 8)))]
    lending, late, most = Lending(now), list[tuple[float, Ask]](), 0
    while any(node.todo or node.used for node in nodes):
        now += STEP_S
        assert now < 5000, "somebody waits for ever"
        if rng.random() < 0.002:
            lending = Lending(now)
        for at, ask in [one for one in late if one[0] <= now]:
            late.remove((at, ask))
            lending.lend(now, ask, pool)  # nobody waits for the answer any more
        for node in nodes:
            if rng.random() < 0.3 and (node.todo or node.used or node.loan):
                ask = node.ask(now)
                fate = rng.random()
                if fate < 0.1:
                    late.append((now + rng.choice((0.1, 1.0, 6.0)), ask))
                elif fate < 0.9:
                    places = lending.lend(now, ask, pool)
                    if rng.random() < 0.9:
                        node.loan, node.until = places, now + LENT_S
            node.work(now, rng)
            if rng.random() < 0.0005:
                node.todo = node.used = 0  # it is dead, and its loan lapses
        held = sum(node.held(now) for node in nodes)
        assert held <= pool
        most = max(most, held)
    assert most > 0


def test_a_node_that_needs_fewer_gives_the_others_back_at_once() -> None:
    lending = Lending(-LENT_S)
    assert lending.lend(0.0, Ask("a", (1, 1), 0, 0, 10), 10) == 10
    assert lending.lend(0.1, Ask("b", (1, 1), 0, 0, 10), 10) == 0
    assert lending.lend(0.2, Ask("a", (1, 2), 2, 2, 2), 10) == 2
    assert lending.lend(0.3, Ask("b", (1, 2), 0, 0, 10), 10) == 8


def test_two_that_want_all_have_half_each_once_what_is_under_way_has_ended() -> None:
    lending = Lending(-LENT_S)
    assert lending.lend(0.0, Ask("a", (1, 1), 0, 0, 64), 10) == 10
    assert lending.lend(0.1, Ask("b", (1, 1), 0, 0, 64), 10) == 0
    assert lending.lend(0.2, Ask("a", (1, 2), 10, 10, 64), 10) == 5  # ten run, and no further ones begin
    assert lending.lend(0.3, Ask("b", (1, 2), 0, 0, 64), 10) == 0
    assert lending.lend(0.4, Ask("a", (1, 3), 5, 5, 64), 10) == 5
    assert lending.lend(0.5, Ask("b", (1, 3), 0, 0, 64), 10) == 5


def test_own_places_are_half_of_all_at_most() -> None:
    for limit in (1, 2, 7, 128, 512):
        for nodes in (1, 2, 3, 50, 1000):
            assert nodes * share_of(limit, nodes) <= limit / 2
