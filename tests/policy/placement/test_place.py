"""Placement: what must hold for every table of nodes, whatever they say of themselves."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from mielin_cells.errors import ExpressionInvalid
from mielin_cells.log.policy import Affinity, Policy, Preference
from mielin_cells.policy.expression.parser import parse
from mielin_cells.policy.facts import Facts
from mielin_cells.policy.placement.board import Board
from mielin_cells.policy.placement.place import place
from mielin_cells.policy.placement.values import Candidate, Need, Term, terms_of

ZONES = ("a", "b", "c")

facts = st.builds(
    Facts, cpu=st.none() | st.integers(0, 100).map(float), battery=st.none() | st.integers(0, 100).map(float),
    mains=st.none() | st.booleans(), slots=st.none() | st.integers(0, 3),
    sensors=st.dictionaries(st.just("gpu"), st.integers(0, 2), max_size=1),
)  # fmt: skip
labels = st.dictionaries(st.sampled_from(("zone", "rack")), st.sampled_from(ZONES))
nodes = st.lists(
    st.builds(
        Candidate, name=st.sampled_from([f"n{n}" for n in range(8)]), is_starting=st.booleans(),
        is_cordoned=st.sampled_from((False, False, False, True)), architecture=st.sampled_from(("", "x86_64", "aarch64")),
        classes=st.sampled_from(({}, {"Chat": 1}, {"Chat": 2}, {"Other": 1})), labels=labels, facts=facts,
    ),
    max_size=8, unique_by=lambda node: node.name,
)  # fmt: skip
RULES = (
    "node.cpu < 50", "node.battery > 20", "node.mains or node.battery > 50", "node.labels.zone in ['a', 'b']", "node.sensors.gpu > 0",
    "not known(node.battery) or node.battery > 20", "agent.class == 'Chat'", "node.cpu", "this is no rule",
)  # fmt: skip
PREFERENCES = ("node.mains", "node.cpu / 100", "node.labels.zone == 'a'", "node.battery")
affinities = st.builds(
    Affinity, agent=st.sampled_from(("", "peer")), where=st.just("vip"), by=st.sampled_from(("", "zone")),
    weight=st.integers(-2, 3), required=st.booleans(),
)  # fmt: skip
policies = st.builds(
    Policy, preferred_architectures=st.sampled_from(((), ("x86_64",), ("x86_64", "aarch64"))),
    require=st.lists(st.sampled_from(RULES), max_size=2).map(tuple),
    prefer=st.lists(st.builds(Preference, st.sampled_from(PREFERENCES), st.integers(-3, 3)), max_size=2).map(tuple),
    near=st.lists(affinities, max_size=1).map(tuple), apart=st.lists(affinities, max_size=1).map(tuple),
    spread=st.sampled_from(((), ("zone",), ("zone", "rack"))),
)  # fmt: skip
needs = st.builds(
    Need, st.sampled_from(("a1", "a2", "peer")), st.sampled_from(("", "Chat")), st.sampled_from((0, 1, 2)), policies
)
where = st.dictionaries(
    st.sampled_from(("a1", "peer", "other-1", "other-2")), st.sampled_from([f"n{n}" for n in range(9)])
)


def holds(rule: str, node: Candidate, need: Need) -> bool:
    try:
        return parse(rule).evaluate({"node": node.scope(), "agent": need.scope()}).truth is True
    except ExpressionInvalid:  # a rule that cannot be read is not met
        return False


@settings(max_examples=150, deadline=None)
@given(nodes, needs, st.data())
def test_nobody_is_placed_where_a_hard_requirement_does_not_hold(
    there: list[Candidate], need: Need, data: st.DataObject
) -> None:
    places = {term: data.draw(where) for term in terms_of(need)}
    loads = {node.name: data.draw(st.integers(0, 20)) for node in there}
    answer = place(need, there, loads, places=places)
    known = {node.name: node for node in there}
    assert len(answer.verdicts) == len(there)
    if answer.node is None:
        assert not any(one.fits for one in answer.verdicts)
        return
    node = known[answer.node]
    assert not node.is_cordoned
    assert not need.cls or not node.classes or node.classes.get(need.cls, -1) >= need.version
    assert need.policy.allows_architecture(node.architecture)
    assert all(holds(rule, node, need) for rule in need.policy.require)
    assert node.facts.slots is None or node.facts.slots > 0
    for affinity in need.policy.apart:
        if affinity.required:
            peers = [n for a, n in places[Term.of(affinity)].items() if a != need.agent and n in known]
            domains = {known[peer].labels.get(affinity.by) if affinity.by else peer for peer in peers}
            assert (node.labels.get(affinity.by) if affinity.by else node.name) not in domains


@settings(max_examples=80, deadline=None)
@given(nodes, needs)
def test_an_absent_fact_never_counts_as_a_value(there: list[Candidate], need: Need) -> None:
    """Whoever says nothing of its battery is chosen by no rule on its battery, neither below nor above any value."""
    mute = [replace(node, facts=replace(node.facts, battery=None, mains=None)) for node in there]
    for rule in ("node.battery < 1000", "node.battery >= 0", "node.battery == 0", "node.mains or node.battery > -1"):
        answer = place(need._replace(policy=Policy(require=(rule,))), mute, Counter())
        assert answer.node is None
        for verdict in answer.verdicts:
            assert [one.holds for one in verdict.findings if one.rule == "require"] == [None]
    preferred = place(need._replace(policy=Policy(prefer=(Preference("node.battery", 3),))), mute, Counter())
    plain = place(need._replace(policy=Policy()), mute, Counter())
    assert preferred.node == plain.node


@settings(max_examples=100, deadline=None)
@given(nodes, st.lists(needs, min_size=1, max_size=4), st.integers(0, 10**6))
def test_the_board_gives_the_same_answers_one_after_the_other(
    there: list[Candidate], wanted: list[Need], seed: int
) -> None:
    """The fast way and the one that looks at everything agree, also after refusals and news."""
    rng, names = Random(seed), [f"n{n}" for n in range(9)]
    board = Board()
    board.order = {node.name: rng.choice((0.0, 0.5)) for node in there}
    board.update(there, {node.name: rng.randrange(20) for node in there})
    for number in range(40):
        need = rng.choice(wanted)
        need = need._replace(agent=f"{need.agent}-{number}" if rng.random() < 0.5 else need.agent)
        places = {
            term: {agent: rng.choice(names) for agent in ("a1", "peer", "other-1", "other-2") if rng.random() < 0.7}
            for term in terms_of(need)
        }
        but = {rng.choice(names) for _ in range(rng.randrange(3))}
        expected = board.explain(need, but, places).node
        chosen = board.choose(need, but, places)
        assert chosen == expected
        if chosen is not None and rng.random() < 0.3:
            board.gives_back(chosen, need)
        if rng.random() < 0.1:
            board.update(there, {node.name: rng.randrange(20) for node in there})


@given(nodes, needs, st.randoms(use_true_random=False))
def test_equal_inputs_give_equal_answers_in_any_order(there: list[Candidate], need: Need, rng: Random) -> None:
    loads = {node.name: len(node.labels) for node in there}
    shuffled = list(there)
    rng.shuffle(shuffled)
    assert place(need, there, loads) == place(need, shuffled, loads)


def test_agents_without_a_policy_are_spread_evenly() -> None:
    board = Board()
    board.update([Candidate(name=f"n{n}") for n in range(7)], {f"n{n}": n for n in range(7)})
    for n in range(200):
        board.choose(Need(f"a{n}", "Chat"))
    assert max(board.loads.values()) - min(board.loads.values()) <= 1


def test_a_class_is_spread_over_zones_and_within_them() -> None:
    there = [Candidate(name=f"n{n}", labels={"zone": ZONES[n % 3] if n < 7 else "c"}) for n in range(9)]
    board = Board()
    board.update(there, {node.name: 50 * n for n, node in enumerate(there)})
    need = Need("", "Chat", 1, Policy(spread=("zone",)))
    chosen = [board.choose(need._replace(agent=f"a{n}")) for n in range(30)]
    zones = Counter(node.labels["zone"] for name in chosen for node in there if node.name == name)
    assert zones == {"a": 10, "b": 10, "c": 10}


def test_a_preference_of_one_point_is_worth_the_agents_of_an_average_node() -> None:
    there = [Candidate(name="n1", facts=Facts(mains=True)), Candidate(name="n2", facts=Facts(mains=False))]
    board = Board()
    board.update(there, {"n1": 8, "n2": 8})
    need = Need("", "Chat", 1, Policy(prefer=(Preference("node.mains"),)))
    chosen = [board.choose(need) for _ in range(8)]
    assert chosen == ["n1"] * 8
    assert board.loads == {"n1": 16, "n2": 8}


def test_near_and_apart_look_at_where_the_others_are() -> None:
    there = [Candidate(name=f"n{n}", labels={"zone": ZONES[n]}) for n in range(3)]
    places = {Term("agent", "db"): {"db": "n1"}, Term("where", "vip"): {"x": "n0", "y": "n1", "a": "n2"}}
    near = Need("a", "Chat", 1, Policy(near=(Affinity(agent="db", by="zone", required=True),)))
    apart = Need("a", "Chat", 1, Policy(apart=(Affinity(where="vip", required=True),)))
    board = Board()
    board.update(there, {"n0": 0, "n1": 100, "n2": 50})
    assert board.choose(near, (), places) == "n1"
    assert board.choose(apart, (), places) == "n2"  # where it is itself is not in its way
    assert board.choose(apart._replace(agent="b"), (), places) is None
    assert board.choose(near, (), {}) == "n0"  # none is known yet: the first may go anywhere


def test_each_verdict_says_which_rule_and_which_values_decided() -> None:
    there = [
        Candidate(name="n1", classes={"Chat": 1}, facts=Facts(cpu=90.0)), Candidate(name="n2", classes={"Other": 1}),
        Candidate(name="n3", classes={"Chat": 1}), Candidate(name="n4", classes={"Chat": 1}, facts=Facts(cpu=10.0)),
    ]  # fmt: skip
    answer = place(Need("a", "Chat", 1, Policy(require=("node.cpu < 80",))), there, Counter(n4=3))
    assert answer.node == "n4"
    found = {one.node: {f.rule: (f.holds, f.values) for f in one.findings} for one in answer.verdicts}
    assert found["n1"]["require"] == (False, {"node.cpu": 90.0})
    assert found["n2"]["class"] == (False, {"node.classes.Chat": None})
    assert found["n3"]["require"] == (None, {"node.cpu": None})
    assert found["n4"]["require"] == (True, {"node.cpu": 10.0})
    assert [one.fits for one in answer.verdicts] == [False, False, False, True]
