"""Which agent of a service is called, and which are left out: the pure machines."""

from __future__ import annotations

from collections import Counter
from random import Random

from mielin_cells.agents.reports import NodeInfo
from mielin_cells.agents.services.choice import Rota, by_key, distance, least
from mielin_cells.agents.services.circuit import FAILURES_MAX, PROBE_S, REST_S, REST_S_MAX, Circuit, Circuits


def opened(now: float = 0.0) -> Circuit:
    circuit = Circuit()
    for _ in range(FAILURES_MAX):
        assert circuit.is_closed
        circuit = circuit.failed(now)
    return circuit


def test_failures_in_a_row_leave_an_agent_out() -> None:
    circuit = Circuit()
    for _ in range(10):
        for _ in range(FAILURES_MAX - 1):
            circuit = circuit.failed(1.0)
        assert circuit.is_closed
        circuit = circuit.succeeded()
    assert not opened().is_closed


def test_an_agent_that_is_left_out_is_probed_once_at_a_time_and_less_and_less_often() -> None:
    circuit, now, rests = opened(), 0.0, list[float]()
    for _ in range(12):
        assert not circuit.may_probe(circuit.until - 0.001)
        now = circuit.until
        assert circuit.may_probe(now)
        circuit = circuit.probing(now)
        assert not circuit.may_probe(now + PROBE_S - 0.1)
        assert circuit.may_probe(now + PROBE_S), "its task may be gone"
        circuit = circuit.failed(now)
        rests.append(circuit.until - now)
    assert rests[:3] == [2 * REST_S, 4 * REST_S, 8 * REST_S]
    assert rests[-1] == REST_S_MAX
    assert circuit.probing(now).succeeded().is_closed


def test_calls_that_fail_late_do_not_lengthen_the_rest() -> None:
    circuit = opened(5.0)
    assert circuit.failed(5.5) == circuit


def test_what_is_due_is_given_once_and_what_is_gone_is_forgotten() -> None:
    circuits = Circuits.none()
    for agent in ("a", "b"):
        for _ in range(FAILURES_MAX):
            circuits.failed(agent, 0.0)
    assert circuits.left_out == ["a", "b"]
    assert circuits.take_due(REST_S - 0.1) == []
    assert circuits.take_due(REST_S) == ["a", "b"]
    assert circuits.take_due(REST_S) == []
    circuits.succeeded("a")
    assert circuits.left_out == ["b"]
    circuits.keep({"a"})
    assert circuits.left_out == []


def test_random_stories_never_leave_an_agent_out_for_ever() -> None:
    rng = Random(3)
    for _ in range(300):
        circuit, now = Circuit(), 0.0
        for _ in range(60):
            now += rng.random() * 5
            match rng.choice(("failed", "succeeded", "probe")):
                case "failed":
                    circuit = circuit.failed(now)
                case "succeeded" if circuit.is_closed or circuit.probed_at is not None:
                    circuit = circuit.succeeded()
                case "probe" if circuit.may_probe(now):
                    circuit = circuit.probing(now)
            assert circuit.is_closed == (circuit.rest_s == 0)
        assert circuit.is_closed or circuit.may_probe(now + REST_S_MAX + PROBE_S)


def test_a_rota_gives_each_its_turn_while_some_come_and_go() -> None:
    rota = Rota()
    assert [rota.next(["a", "b", "c"]) for _ in range(4)] == ["a", "b", "c", "a"]
    assert rota.next(["a", "aa", "b"]) == "aa"
    assert rota.next(["a", "c"]) == "c"
    assert rota.next(["b"]) == "b"


def test_a_key_stays_with_its_agent_and_only_those_of_a_lost_agent_move() -> None:
    ids = [f"w{n}" for n in range(10)]
    before = {f"k{n}": by_key(f"k{n}", ids) for n in range(2000)}
    counts = Counter(before.values())
    assert min(counts.values()) > 120
    after = {key: by_key(key, [one for one in ids if one != "w3"]) for key in before}
    assert all(after[key] == agent for key, agent in before.items() if agent != "w3")
    moved = Counter(after[key] for key, agent in before.items() if agent == "w3")
    assert len(moved) == 9
    more = {key: by_key(key, [*ids, "w10"]) for key in before}
    assert all(more[key] in (agent, "w10") for key, agent in before.items())


def test_the_quietest_are_those_with_the_fewest_messages() -> None:
    assert least(["a", "b", "c", "d"], {"a": 3, "b": 1, "d": 1}) == ["b", "d"]
    assert least(["a", "b"], {}) == ["a", "b"]


def test_nodes_are_near_by_name_host_and_labels() -> None:
    def node(name: str, host: str = "", **labels: str) -> NodeInfo:
        return NodeInfo(name=name, incarnation=1, agents=0, host=host, labels=labels)

    nodes = {one.name: one for one in (
        node("n1", "h1", zone="a", row="1"), node("n2", "h1", zone="a", row="2"), node("n3", "h2", zone="a", row="1"),
        node("n4", "h3", zone="b", row="9"),
    )}  # fmt: skip
    assert [distance(nodes[name], "n1", nodes) for name in nodes] == [0, 1, 2, 4]
    assert [distance(nodes[name], {"zone": "b"}, nodes) for name in nodes] == [1, 1, 1, 0]
    assert distance(None, "n1", nodes) > 1000
    assert distance(nodes["n1"], "elsewhere", nodes) == 2
