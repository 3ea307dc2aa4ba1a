"""Spreading agents: fewer differences with each move, no agent twice, and nothing to do once it is even."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.proposals import propose
from support.scripted_policies import node

from mielin_cells.policy.facts import Facts
from mielin_cells.policy.planning.choice import Node
from mielin_cells.policy.rebalance.proposal import (
    SLICE_AGENTS,
    SLICE_MOVES,
    WITHIN,
    _Spreading,
    proposing,
    seems_uneven,
    unevenness,
)
from mielin_cells.policy.rebalance.values import AgentLoad, Proposal

NODES = {name: node(name) for name in ("n1", "n2", "n3")}


def skewed(agents: int, seed: int = 1) -> list[AgentLoad]:
    """Few agents do most of the work."""
    rng = Random(seed)
    return [AgentLoad(f"a{seed}.{n}", 100 * rng.paretovariate(1.5) / (n + 1) ** 0.5) for n in range(agents)]


def after(loads: dict[str, list[AgentLoad]], proposal: Proposal) -> dict[str, list[AgentLoad]]:
    moved = {move.agent: move.target for move in proposal.moves}
    found: dict[str, list[AgentLoad]] = {name: [] for name in loads}
    for name, some in loads.items():
        for one in some:
            found[moved.get(one.agent, name)].append(one)
    return found


def test_agents_on_one_node_are_spread_by_their_load() -> None:
    loads = {"n1": skewed(400), "n2": [], "n3": []}
    proposal = propose(NODES, loads)
    assert unevenness(proposal.before) == pytest.approx(2.0)
    assert unevenness(proposal.after) <= WITHIN / 2
    assert len({move.agent for move in proposal.moves}) == len(proposal.moves) < 200, (
        "the heavy ones first, and each once"
    )
    assert proposal.moves[0].why.startswith(
        f"{proposal.moves[0].rate:.3g} messages/s: n1 goes from 300% of the mean to "
    )
    rates = {name: sum(one.rate for one in some) for name, some in after(loads, proposal).items()}
    assert unevenness(rates) <= WITHIN


def test_agents_without_any_messages_are_spread_by_their_number() -> None:
    loads = {"n1": [AgentLoad(f"a{n}", 0.0) for n in range(30)], "n2": [], "n3": []}
    assert {name: len(some) for name, some in after(loads, propose(NODES, loads)).items()} == {
        "n1": 10,
        "n2": 10,
        "n3": 10,
    }


def test_what_is_even_stays_and_a_second_proposal_has_nothing_to_move() -> None:
    loads = {"n1": skewed(200), "n2": skewed(100, 2), "n3": []}
    first = propose(NODES, loads)
    assert first.moves
    assert propose(NODES, after(loads, first)).moves == []


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1000), max_size=40), min_size=2, max_size=5))
def test_no_proposal_makes_the_spread_worse_or_moves_an_agent_to_and_fro(rates: list[list[float]]) -> None:
    nodes = {f"n{place}": node(f"n{place}") for place in range(len(rates))}
    loads = {
        f"n{place}": [AgentLoad(f"a{place}.{n}", rate) for n, rate in enumerate(some)]
        for place, some in enumerate(rates)
    }
    proposal = propose(nodes, loads)
    assert unevenness(proposal.after) <= unevenness(proposal.before) + 1e-9
    assert len({move.agent for move in proposal.moves}) == len(proposal.moves)
    again = propose(nodes, after(loads, proposal))
    back = {(move.agent, move.target) for move in again.moves} & {(move.agent, move.source) for move in proposal.moves}
    # The node that is farthest from the mean may be stuck while the others come nearer to it.
    assert not back or squares(again.after) < squares(again.before)


def squares(parts: dict[str, float]) -> float:
    """Falls with every move from a node to one that has less by more than what is moved, so such moves come to an end."""
    mean = sum(parts.values()) / len(parts)
    return sum((part - mean) ** 2 for part in parts.values())


def test_an_agent_goes_back_only_if_that_makes_the_nodes_more_even_though_one_is_stuck() -> None:
    rates = [[], [0, 0, 463], [0, 287, 308], [157, 232, 119, 571, 727], [49, 529, 305]]
    loads = {f"n{at}": [AgentLoad(f"a{at}.{n}", rate) for n, rate in enumerate(some)] for at, some in enumerate(rates)}
    nodes = {name: node(name) for name in loads}
    first = propose(nodes, loads)
    second = propose(nodes, after(loads, first))
    assert unevenness(second.after) == unevenness(first.after)  # by one node, of two agents that cannot be split
    assert squares(second.after) < squares(first.after)
    assert propose(nodes, after(after(loads, first), second)).moves == []


def test_agents_that_talk_are_brought_together_while_the_load_stays_even() -> None:
    loads = {
        "n1": [AgentLoad("a", 10, {"b": 9.0}), *(AgentLoad(f"x{n}", 1) for n in range(300))],
        "n2": [AgentLoad("b", 10), *(AgentLoad(f"y{n}", 1) for n in range(300))],
    }
    [move] = propose({name: NODES[name] for name in loads}, loads).moves
    assert (move.agent, move.source, move.target) == ("a", "n1", "n2")
    assert move.why == "it exchanges 9 messages/s with agents of n2"


def test_talk_does_not_fill_a_node() -> None:
    loads = {"n1": [AgentLoad("a", 100, {"b": 90.0})], "n2": [AgentLoad("b", 100)]}
    assert propose({name: NODES[name] for name in loads}, loads).moves == []


def test_a_node_that_takes_no_agents_is_neither_filled_nor_emptied_and_others_lack_the_class() -> None:
    nodes = {"n1": node("n1"), "n2": node("n2", is_open=False), "n3": node("n3", classes={"Other": 1})}
    assert propose(nodes, {"n1": [AgentLoad(f"a{n}", 5, cls="Mine") for n in range(9)], "n2": []}).moves == []


@pytest.mark.parametrize("light", [0, 2000])
def test_nodes_that_cannot_take_agents_are_not_tried_again_for_each_move(
    monkeypatch: pytest.MonkeyPatch, light: int
) -> None:
    """The leader does nothing else meanwhile, and is suspected if it is not heard of for some seconds."""
    asked, fits = [0], _Spreading.fits

    def counted(self: _Spreading, one: AgentLoad, there: Node) -> bool:
        asked[0] += 1
        return fits(self, one, there)

    monkeypatch.setattr(_Spreading, "fits", counted)
    nodes = {f"n{n}": node(f"n{n}", classes={"Mine": 1} if n < 2 else {"Other": 1}) for n in range(8)}
    agents = [AgentLoad(f"a{n}", 1.0 + n % 7, cls="Mine", version=1) for n in range(2000)]
    agents += [AgentLoad(f"b{n}", 0.5, cls="Other", version=1) for n in range(light)]
    proposal = propose(nodes, {name: agents if name == "n0" else [] for name in nodes})
    assert {move.target for move in proposal.moves if move.agent.startswith("a")} == {"n1"}
    assert len(proposal.moves) > 500
    assert {move.target for move in proposal.moves} == (set(nodes) - {"n0"} if light else {"n1"})
    assert asked[0] < len(nodes) * 2000, "and light agents are not looked for among all of them each time"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.tuples(st.floats(0, 1000), st.sampled_from("ABC")), max_size=30), min_size=2, max_size=4))
def test_no_agent_is_sent_where_its_class_is_not_known(there: list[list[tuple[float, str]]]) -> None:
    classes = [{"A": 1, "B": 1, "C": 1}, {"A": 1}, {"B": 1, "C": 1}, {"B": 1}]
    nodes = {f"n{at}": node(f"n{at}", classes=classes[at]) for at in range(len(there))}
    loads = {
        f"n{at}": [AgentLoad(f"a{at}.{n}", rate, cls=cls, version=1) for n, (rate, cls) in enumerate(some)]
        for at, some in enumerate(there)
    }
    proposal = propose(nodes, loads)
    of = {one.agent: one.cls for some in loads.values() for one in some}
    assert all(of[move.agent] in nodes[move.target].candidate.classes for move in proposal.moves)
    assert len({move.agent for move in proposal.moves}) == len(proposal.moves)
    assert squares(proposal.after) <= squares(proposal.before) + 1e-9


def test_moves_are_found_in_slices() -> None:
    loads = {"n1": [AgentLoad(f"a{n}", 1.0) for n in range(SLICE_AGENTS + 1)], "n2": [], "n3": []}
    *before, last = proposing(NODES, loads)
    assert last is not None
    assert set(before) == {None}
    assert len(before) >= 1 + len(last.moves) // SLICE_MOVES
    assert last == propose(NODES, loads)


def test_agents_that_are_fixed_stay_and_those_that_are_told_together_count() -> None:
    loads = {"n1": [AgentLoad(f"a{n}", 5) for n in range(9)], "n2": [], "n3": []}
    assert propose(NODES, loads, fixed={f"a{n}" for n in range(9)}).moves == []
    assert propose(NODES, loads).moves
    many = {"n1": [AgentLoad("a", 0.0)], "n2": [AgentLoad("", 0.0, count=99)], "n3": [AgentLoad("", 0.0, count=100)]}
    proposal = propose(NODES, many)
    assert proposal.moves == []
    assert proposal.before == pytest.approx({"n1": 0.005, "n2": 0.495, "n3": 0.5})


def test_an_agent_that_two_nodes_name_is_where_it_came_last() -> None:
    loads = {
        "n1": [AgentLoad("a", 10, epoch=1), *(AgentLoad(f"b{n}", 10) for n in range(9))],
        "n2": [AgentLoad("a", 2, epoch=2)],
    }
    proposal = propose({name: NODES[name] for name in loads}, loads)
    assert all(move.source == "n1" and move.agent != "a" for move in proposal.moves)
    assert len(proposal.moves) == 4


def test_what_the_table_says_suggests_to_measure_or_not() -> None:
    def nodes(*agents: int, cpu: float = 10.0) -> list[Node]:
        return [node(f"n{n}", Facts(cpu=cpu * n), count) for n, count in enumerate(agents)]

    assert not seems_uneven(nodes(100, 110, 90))
    assert seems_uneven(nodes(0, 0, 300))
    assert not seems_uneven(nodes(3, 0, 0)), "so few are not worth it"
    assert seems_uneven(nodes(10, 10, 10, cpu=40.0))
    assert not seems_uneven(nodes(300))


MIB = 1 << 20


def test_large_states_leave_the_node_that_holds_most_bytes_while_the_load_stays_even() -> None:
    loads = {
        name: [
            AgentLoad(f"{name}.{n}", 10.0, size_bytes=60 * MIB if name == "n1" and n < 9 else MIB) for n in range(90)
        ]
        for name in NODES
    }
    proposal = propose(NODES, loads)
    assert proposal.bytes == {"n1": 621 * MIB, "n2": 90 * MIB, "n3": 90 * MIB}
    assert {move.size_bytes for move in proposal.moves if move.source == "n1"} == {60 * MIB}
    assert {move.size_bytes for move in proposal.moves if move.source != "n1"} == {MIB}, "they make up for the work"
    assert proposal.moves[0].why == "60.0 MiB of state: n1 goes from 233% of the mean to 210%"
    found = after(loads, proposal)
    held = {name: sum(one.size_bytes for one in some) for name, some in found.items()}
    assert unevenness(held) <= 0.3
    assert unevenness({name: sum(one.rate for one in some) for name, some in found.items()}) <= WITHIN / 2
    assert propose(NODES, found).moves == []


def test_small_states_are_not_moved_for_their_memory_and_large_ones_not_against_the_load() -> None:
    small = {
        name: [AgentLoad(f"{name}.{n}", 1.0, size_bytes=1000 if name == "n1" else 1) for n in range(90)]
        for name in NODES
    }
    assert propose(NODES, small).moves == []
    heavy = {name: [AgentLoad(name, 100.0, size_bytes=900 * MIB if name == "n1" else MIB)] for name in NODES}
    assert propose(NODES, heavy).moves == []


def test_of_agents_that_do_as_much_the_large_ones_leave_the_fuller_node() -> None:
    loads = {"n1": [AgentLoad(f"a{n}", 5.0, size_bytes=MIB * (1 + 9 * (n % 2))) for n in range(12)], "n2": [], "n3": []}
    moves = propose(NODES, loads).moves
    assert len(moves) == 8
    assert {move.size_bytes for move in moves[:4]} == {10 * MIB}


def test_memory_of_nodes_that_differs_suggests_to_measure() -> None:
    assert seems_uneven([node("n1", Facts(memory=80.0), 5), node("n2", Facts(memory=50.0), 5), node("n3", agents=5)])
    assert not seems_uneven([node("n1", Facts(memory=60.0), 5), node("n2", Facts(memory=50.0), 5)])
