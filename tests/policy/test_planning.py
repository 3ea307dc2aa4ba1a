"""What a leader plans: at most one move in a window, within limits, to nodes that fit, in proportion to what changed."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from support.scripted_policies import Scripted
from support.scripted_policies import node as place

from mielin_cells.log.policy import Policy
from mielin_cells.log.triggers.values import Cost, Latency, Load, MigrationPolicy, Thermal
from mielin_cells.policy.evaluation.evaluation import Came, Evaluation, Gone, Leaving, Measured, Passed, Weighed
from mielin_cells.policy.evaluation.wishes import Wish
from mielin_cells.policy.facts import Facts
from mielin_cells.policy.planning.choice import Node
from mielin_cells.policy.planning.plan import HOUR_S, Limits, Plan, PlannedMove, Plans, Recent, why_rests
from mielin_cells.policy.planning.planner import PLAN_S, Begin, Cancel, Close, Ended, Looked, Planner, Record, Wished
from mielin_cells.policy.triggers.conditions import CRITICAL
from mielin_cells.policy.triggers.needs import Fits, Need, check

NODES = {name: place(name, Facts(cpu=10)) for name in ("n1", "n2", "n3")}
HOT = Need("temperature_c", at_most=70)


def wish(agent: str, priority: int = 70, **more: object) -> Wish:
    return Wish(agent, "load", priority, "cpu 90 %", **more)  # type: ignore[arg-type]


def look(
    planner: Planner, plans: Plans, now: float = 0.0, seq: int = 1, nodes: dict[str, Node] = NODES
) -> list[object]:
    return list(planner.on(Looked(now, 1, seq, nodes, plans))[1])


def planned(planner: Planner, plans: Plans, now: float = 0.0, seq: int = 1) -> Plan:
    """Of the record that follows, as if it had landed."""
    [record] = [effect for effect in look(planner, plans, now, seq) if isinstance(effect, Record)]
    plan = Plan(seq, 1, record.run, record.at, record.until, record.moves)
    plans.begin(plan)
    return plan


# ---- a fact that fluctuates --------------------------------------------------------------------------------------

FACT = st.one_of(
    st.builds(lambda cpu: Facts(cpu=cpu), st.floats(0, 100)),
    st.builds(lambda t: Facts(temperature_c=t), st.floats(40, 99)),
    st.builds(lambda c, t: Facts(cpu=c, temperature_c=t, mains=False, battery=c), st.floats(0, 100), st.floats(40, 99)),
    st.just(Facts()),
)
QUICK = MigrationPolicy(
    thermal=Thermal(sustained_s=0), load=Load(sustained_s=0), latency=Latency(sustained_s=0), cooldown_s=10
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["n1", "n2", "n3"]), FACT), max_size=60), st.integers(0, 59))
def test_facts_that_fluctuate_move_an_agent_at_most_once_in_a_window(
    changes: list[tuple[str, Facts]], new_leader: int
) -> None:
    limits = Limits(moves=3, moves_out=2, moves_in=2)
    world = Scripted(
        dict.fromkeys(("n1", "n2", "n3"), Facts(cpu=10)), {f"a{n}": ("n1", QUICK) for n in range(4)}, limits=limits
    )
    for step, (node, facts) in enumerate(changes):
        world.measure(node, facts)
        known, before = dict(world.nodes), len(world.moves)
        world.step()
        if step == new_leader:
            world.new_leader()
        assert_limits(world.plans, limits)
        for _, move in world.moves[before:]:
            assert check((HOT,), known[move.target]).fits is not Fits.NO, f"{move} goes to a hot node"
    by_agent = defaultdict[str, list[tuple[float, bool]]](list)
    for at, move in world.moves:
        for earlier, critical in by_agent[move.agent]:
            if critical or not move.is_critical:  # only a critical move may follow another within the window
                assert at - earlier >= QUICK.cooldown_s, f"{move.agent} is moved at {earlier} and at {at}"
        by_agent[move.agent].append((at, move.is_critical))


def assert_limits(plans: Plans, limits: Limits) -> None:
    for critical in (False, True):
        moves = [move for move in plans if move.is_critical == critical]
        assert len(moves) <= limits.moves
        assert all(n <= limits.moves_out for n in Counter(move.source for move in moves).values())
        assert all(n <= limits.moves_in for n in Counter(move.target for move in moves).values())


def test_a_fact_that_swings_around_its_threshold_for_an_hour_moves_nothing_twice_in_a_window() -> None:
    policy = MigrationPolicy(load=Load(sustained_s=2), cooldown_s=300)
    world = Scripted({"n1": Facts(cpu=50), "n2": Facts(cpu=50)}, {"a": ("n1", policy)})
    while world.now < HOUR_S:
        high = 90.0 if world.now % 20 < 10 else 60.0
        where = world.where["a"]
        for node in ("n1", "n2"):
            world.measure(node, Facts(cpu=high if node == where else 30.0))
        world.step()
    times = [at for at, _ in world.moves]
    assert 2 <= len(times) <= HOUR_S / 300
    assert min(later - earlier for earlier, later in pairwise(times)) >= 300


# ---- cooldown and hourly limit -----------------------------------------------------------------------------------


def test_the_hourly_limit_slides_and_does_not_hold_back_what_is_critical() -> None:
    recent = [Recent("a", 100.0 * n, is_critical=False) for n in range(10)]

    def rests(now: float, critical: bool = False) -> str:
        return why_rests(recent, now, cooldown_s=60, per_hour=10, is_critical=critical)

    assert "10 times within an hour" in rests(3500)
    assert rests(3600) == "", "the first of them is an hour ago"
    assert rests(3500, True) == ""
    assert "stays for 60 s" in why_rests(recent, 930, cooldown_s=60, per_hour=100, is_critical=False)


def test_a_store_whose_time_was_put_back_delays_and_does_not_crash() -> None:
    recent = [Recent("a", 5000.0, is_critical=True)]
    assert "moved 0 s ago" in why_rests(recent, 100.0, cooldown_s=60, per_hour=10, is_critical=False)
    assert "critical" in why_rests(recent, 100.0, cooldown_s=60, per_hour=10, is_critical=True)


def test_an_agent_that_has_just_come_stays_unless_the_trigger_is_critical() -> None:
    evaluation = Evaluation()
    evaluation.on(Came(100.0, "a", MigrationPolicy(thermal=Thermal(sustained_s=0))))
    evaluation.on(Measured(101.0, Facts(temperature_c=75)))
    assert evaluation.wishes(0.0) == []
    assert evaluation.next_wake() == 160.0
    evaluation.on(Passed(160.0))
    assert [one.priority for one in evaluation.wishes(0.0)] == [80]
    evaluation.on(Came(170.0, "b", MigrationPolicy()))
    evaluation.on(Measured(170.0, Facts(temperature_c=85)))
    assert {one.agent: one.priority for one in evaluation.wishes(0.0)} == {"a": 100, "b": 100}


def test_agents_that_leave_are_not_wished_away_again_and_those_that_are_gone_are_forgotten() -> None:
    evaluation = Evaluation()
    for agent in "ab":
        evaluation.on(Came(-100.0, agent, MigrationPolicy()))
    evaluation.on(Measured(0.0, Facts(temperature_c=85)))
    evaluation.on(Leaving(0.0, ("a",)))
    assert [one.agent for one in evaluation.wishes(0.0)] == ["b"]
    evaluation.on(Gone(1.0, "b"))
    assert evaluation.wishes(0.0) == []
    assert evaluation.agents == ["a"]


def loaded(facts: Facts, weights: dict[str, float], *, came: float = -100.0) -> Evaluation:
    """Of a node with too much to do; `hot` came then, the others long ago."""
    evaluation = Evaluation()
    for agent in weights:
        evaluation.on(Came(came if agent == "hot" else -1000.0, agent, MigrationPolicy(load=Load(sustained_s=0))))
    evaluation.on(Measured(0.0, facts))
    evaluation.on(Weighed(0.0, {agent: weight for agent, weight in weights.items() if weight}))
    return evaluation


def shed(evaluation: Evaluation) -> list[str]:
    return [one.agent for one in evaluation.wishes(0.0)]


IDLE = {f"idle{n}": 0.0 for n in range(20)}


def test_agents_with_nothing_to_do_stay_on_a_loaded_node_while_the_one_that_works_may_not_leave() -> None:
    evaluation = loaded(Facts(cpu=95), {"hot": 1000.0} | IDLE, came=-10.0)
    assert shed(evaluation) == []
    evaluation.on(Passed(50.0))
    assert shed(evaluation) == ["hot"], "it has been here for long enough"


def test_agents_that_leave_already_count_for_what_a_loaded_node_should_lose() -> None:
    evaluation = loaded(Facts(cpu=95), {"hot": 60.0, "warm": 30.0, "cool": 10.0})
    assert shed(evaluation) == ["hot"], "more than a third of its work should go"
    evaluation.on(Leaving(0.0, ("hot",)))
    assert shed(evaluation) == []
    evaluation.on(Passed(70.0))
    assert shed(evaluation) == ["hot"], "it is still here"


def test_agents_with_nothing_to_do_leave_a_node_that_has_too_little_memory() -> None:
    assert len(shed(loaded(Facts(memory=95), {"hot": 1000.0} | IDLE, came=-10.0))) == 6, (
        "of 21, a bit more than a quarter"
    )


# ---- what it costs -----------------------------------------------------------------------------------------------


def test_a_measurement_costs_by_the_policies_that_look_at_what_changed_and_not_by_the_agents() -> None:
    evaluation = Evaluation()
    policies = [MigrationPolicy(thermal=None, cooldown_s=60 + n) for n in range(19)]
    policies.append(MigrationPolicy(battery=None, load=None, latency=None, cost=Cost(), thermal=None))
    for n in range(10_000):
        evaluation.on(Came(0.0, f"a{n}", policies[n % 20]))
    evaluation.on(Measured(1.0, Facts(cpu=10, cost_per_hour=0.1)))
    before = evaluation.judged
    evaluation.on(Measured(2.0, Facts(cpu=10, cost_per_hour=0.2)))
    assert evaluation.judged - before == 1, "the one condition on costs"
    before = evaluation.judged
    for n in range(100):
        evaluation.on(Measured(3.0 + n, Facts(cpu=10, cost_per_hour=0.2, disk=float(n))))
        evaluation.on(Passed(3.0 + n))
    assert evaluation.judged == before, "nothing that any policy looks at has changed"


def test_twenty_policies_on_ten_thousand_agents_are_evaluated_in_under_a_second() -> None:
    evaluation = Evaluation()
    began = time.process_time()
    for n in range(10_000):
        evaluation.on(Came(-1000.0, f"a{n}", MigrationPolicy(cooldown_s=60 + n % 20)))
    evaluation.on(Measured(0.0, Facts(temperature_c=90, cpu=99)))
    evaluation.on(Passed(60.0))
    assert len(evaluation.wishes(0.0, 20_000)) == 10_000
    assert time.process_time() - began < 5.0, "a few times what it takes, since the machine is shared"


# ---- plans -------------------------------------------------------------------------------------------------------


def test_the_most_urgent_wishes_get_the_places_and_critical_ones_have_places_of_their_own() -> None:
    planner, plans = Planner(Limits(moves=2)), Plans()
    planner.on(Wished(0.0, "n1", (wish("slow", 40), wish("warm", 80), wish("full", 75))))
    assert [move.agent for move in planned(planner, plans).moves] == ["warm", "full"]
    assert planner.waits == {"slow": "2 moves are open, which is the limit"}
    planner.on(Wished(1.0, "n2", (wish("hot", CRITICAL),)))
    assert [move.agent for move in planned(planner, plans, 1.0, 2).moves] == ["hot"]


def test_moves_begin_once_the_plan_is_in_the_log_and_once_only() -> None:
    planner, plans = Planner(), Plans()
    planner.on(Wished(0.0, "n1", (wish("a"),)))
    assert not any(isinstance(effect, Begin) for effect in look(planner, plans))
    plan = planned(planner, plans)
    assert look(planner, plans, seq=2) == [Begin(plan, plan.moves[0])]
    assert look(planner, plans, seq=2) == []
    assert look(Planner(), plans, seq=2) == [Begin(plan, plan.moves[0])], "a new leader begins it under the same id"


def test_a_plan_ends_with_its_moves_and_says_which_failed() -> None:
    planner, plans = Planner(), Plans()
    planner.on(Wished(0.0, "n1", (wish("a"), wish("b"))))
    plan = planned(planner, plans)
    look(planner, plans)
    planner.on(Ended(1.0, plan.moves[0], "completed"))
    assert look(planner, plans, 1.0) == []
    planner.on(Ended(1.0, plan.moves[1], "rolled_back", "no memory"))
    assert look(planner, plans, 1.0) == [Close(plan, 1, ("b: no memory",), 0)]


def test_a_target_that_has_refused_an_agent_is_not_asked_again_soon() -> None:
    planner, plans = Planner(), Plans()
    planner.on(Wished(0.0, "n1", (wish("a", cooldown_s=0.0),)))
    plan = planned(planner, plans)
    look(planner, plans)
    planner.on(Ended(1.0, plan.moves[0], "rolled_back", "no memory"))
    plans.end(plan.seq)
    again = planned(planner, plans, 1.0, 2)
    assert (plan.moves[0].target, again.moves[0].target) == ("n2", "n3")


def test_a_plan_that_is_too_old_is_dropped_and_nothing_of_it_begins() -> None:
    planner, plans = Planner(), Plans()
    planner.on(Wished(0.0, "n1", (wish("a"),)))
    plan = planned(planner, plans)
    assert look(Planner(), plans, PLAN_S) == [Close(plan, 0, (), 1)]


def test_a_plan_that_an_operator_stops_begins_nothing_more_and_cancels_what_runs() -> None:
    planner, plans = Planner(), Plans()
    planner.on(Wished(0.0, "n1", (wish("a"),), "r-1"))
    plan = planned(planner, plans)
    look(planner, plans)
    plans.stop("r-1")
    assert look(planner, plans) == [Cancel(plan.moves[0])]
    planner.on(Ended(1.0, plan.moves[0], "rolled_back", "Cancelled"))
    [close] = look(planner, plans, 1.0)
    assert isinstance(close, Close)
    plans.end(plan.seq)
    planner.on(Wished(2.0, "n1", (wish("b"),), "r-1"))
    assert look(planner, plans, 2.0) == [], "the run is over"


def test_a_stopped_plan_of_a_lost_leader_is_ended_without_beginning_anything() -> None:
    move = PlannedMove("a", "m-1", 1, "n1", "n2")
    plans = Plans({7: Plan(7, 1, "r-1", 0.0, PLAN_S, (move,), is_stopped=True)})
    assert look(Planner(), plans) == [Cancel(move), Close(plans.open[7], 0, (), 1)]


def test_wishes_that_are_not_repeated_are_forgotten_and_a_run_has_a_plan_of_its_own() -> None:
    planner, plans = Planner(), Plans()
    planner.on(Wished(0.0, "n1", (wish("a"),)))
    assert look(planner, plans, 10.0) == []
    planner.on(Wished(20.0, "n1", (wish("a"),)))
    planner.on(Wished(20.0, "n1", (wish("b", 30),), "r-1"))
    assert [move.agent for move in planned(planner, plans, 20.0).moves] == ["a"]
    second = planned(planner, plans, 20.0, 2)
    assert (second.run, [move.agent for move in second.moves]) == ("r-1", ["b"])


def test_an_agent_waits_and_says_why_for_each_node() -> None:
    planner, plans = Planner(), Plans()
    nodes = {
        "n1": place("n1"), "n2": place("n2", is_open=False), "n3": place("n3", Facts(temperature_c=80)),
        "n4": place("n4", classes={"Other": 1}), "n5": place("n5", architecture="riscv"),
    }  # fmt: skip
    some = wish("a", needs=(HOT,), cls="Mine", version=2, policy=Policy(preferred_architectures=("x86_64",)))
    planner.on(Wished(0.0, "n1", (some,)))
    assert look(planner, plans, nodes=nodes) == []
    assert planner.waits["a"] == (
        "n2: n2 is cordoned or is about to stop; n3: temperature 80 C, and at most 70 is wanted; n4: n4 does not know the class "
        "Mine; n5: n5 is riscv"
    )
