"""What makes agents leave a node: thresholds, how long they must be exceeded, and when that is over."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest

from mielin_cells.errors import ConfigError
from mielin_cells.log.triggers.values import (
    PRESETS,
    Battery,
    Cost,
    Load,
    MigrationPolicy,
    Thermal,
    Window,
    performance,
)
from mielin_cells.policy.facts import Facts
from mielin_cells.policy.triggers.conditions import Condition, conditions_of
from mielin_cells.policy.triggers.machine import Ceases, Holds, Measured, Passed, Shed, Triggers
from mielin_cells.policy.triggers.needs import Fits, Need, check, score

COOL = {"temperature_c": 50.0}


def holding(triggers: Triggers) -> list[tuple[str, int]]:
    return [(condition.trigger, condition.priority) for condition, _ in triggers.holding()]


def measured(policy: MigrationPolicy, for_s: float = 0.0, **facts: Any) -> Triggers:
    triggers, _ = Triggers.of(policy).on(Measured(0.0, Facts(**facts)))
    return triggers.on(Passed(for_s))[0]


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"temperature_c": 85.0}, [("thermal", 100), ("thermal", 80)]),
        ({"temperature_c": 70.0}, [("thermal", 80)]),
        ({"temperature_c": 69.9}, []),
        ({"battery": 14.0}, [("battery", 90)]),
        ({"battery": 15.0}, []),
        ({"battery": 3.0, "mains": True}, []),
        ({"battery": 3.0, "mains": False}, [("battery", 90)]),
        ({"cpu": 86.0}, [("load", 70)]),
        ({"cpu": 85.0}, []),
        ({"memory": 91.0, "cpu": 90.0, "waiting": 101}, [("load", 75), ("load", 70), ("load", 60)]),
        ({"store_ms": 101.0}, [("latency", 65)]),
        ({"sensors": {"bytes_per_s": 10.0}}, [("latency", 55)]),
        ({"cost_per_hour": 99.0}, []),
        ({}, []),
    ],
)
def test_the_thresholds_of_the_original_trigger_and_an_absent_fact_triggers_nothing(
    facts: dict[str, Any], found: list[tuple[str, int]]
) -> None:
    assert holding(measured(MigrationPolicy(), 60.0, **facts)) == found


def test_cost_triggers_once_it_is_on() -> None:
    assert holding(measured(MigrationPolicy(cost=Cost()), 60.0, cost_per_hour=1.5)) == [("cost", 40)]


def test_a_sensor_stands_for_a_fact_that_the_node_cannot_measure_and_what_is_no_number_for_none() -> None:
    assert holding(measured(MigrationPolicy(), sensors={"temperature_c": 90.0})) == [("thermal", 100)]
    assert holding(measured(MigrationPolicy(), 60.0, sensors={"temperature_c": "hot"})) == []
    assert holding(measured(MigrationPolicy(), 60.0, temperature_c=float("nan"))) == []


def test_a_condition_holds_only_once_it_was_sustained_and_critical_heat_does_not_wait() -> None:
    policy = MigrationPolicy(load=Load(sustained_s=30))
    triggers, effects = Triggers.of(policy).on(Measured(10.0, Facts(cpu=99, temperature_c=90)))
    assert [effect.condition.priority for effect in effects if isinstance(effect, Holds)] == [100]
    assert triggers.next_wake() == 20.0, "the warning of heat is next"
    triggers, effects = triggers.on(Passed(39.9))
    assert ("load", 70) not in holding(triggers)
    triggers, effects = triggers.on(Passed(40.0))
    assert [effect.why for effect in effects] == ["cpu 99 %, the limit is 85"]
    assert triggers.next_wake() is None, "nothing follows from time alone any more"


def test_a_condition_holds_when_its_time_has_come_to_the_last_bit() -> None:
    """Else who waits for that time wakes up for ever.  Found by the simulator, where time stands still meanwhile."""
    rng = Random(1)
    for _ in range(2000):
        policy = MigrationPolicy(load=Load(sustained_s=rng.random() * 3))
        triggers, _ = Triggers.of(policy).on(Measured(1e9 * rng.random(), Facts(cpu=99)))
        wake = triggers.next_wake()
        assert wake is not None
        assert triggers.on(Passed(wake))[0].next_wake() is None


def test_a_condition_that_is_interrupted_begins_anew() -> None:
    triggers = Triggers.of(MigrationPolicy())
    for now, cpu in ((0.0, 99), (29.0, 80), (30.0, 99), (59.0, 99)):
        triggers, _ = triggers.on(Measured(now, Facts(cpu=cpu)))
    assert holding(triggers) == []


def test_a_condition_that_holds_ceases_only_a_tenth_below_its_threshold_or_when_the_fact_is_absent() -> None:
    triggers = measured(MigrationPolicy(), 30.0, cpu=90)
    triggers, effects = triggers.on(Measured(31.0, Facts(cpu=77)))
    assert holding(triggers) == [("load", 70)]
    assert effects == ()
    again, effects = triggers.on(Measured(32.0, Facts(cpu=76)))
    assert [type(effect) for effect in effects] == [Ceases]
    assert holding(again) == []
    gone, effects = triggers.on(Measured(32.0, Facts()))
    assert [effect.why for effect in effects] == ["cpu is unknown, the limit is 85"]
    assert holding(gone) == []


def test_time_that_goes_back_is_no_time() -> None:
    triggers = measured(MigrationPolicy(), 10.0, cpu=90)
    triggers, _ = triggers.on(Measured(-1e9, Facts(cpu=90)))
    assert triggers.now == 10.0
    assert holding(triggers.on(Passed(30.0))[0]) == [("load", 70)]


def test_who_sheds_load_waits_before_it_sheds_more() -> None:
    triggers = measured(MigrationPolicy(), 30.0, cpu=90)
    [(condition, _)] = triggers.holding()
    triggers, _ = triggers.on(Shed(30.0, condition))
    assert triggers.holding()[0][1].sheds_from == 60.0
    assert triggers.next_wake() == 60.0


def test_what_should_leave_of_a_loaded_node_is_what_brings_it_down_to_what_a_target_may_have() -> None:
    cpu = next(one for one in conditions_of(MigrationPolicy()) if one.fact == "cpu")
    assert cpu.share(Facts(cpu=100)) == pytest.approx(0.35)
    assert cpu.share(Facts()) == 0.0


@pytest.mark.parametrize(
    ("need", "facts", "fits"),
    [
        (Need("cpu", at_most=50), {"cpu": 50.0}, Fits.YES),
        (Need("cpu", at_most=50), {"cpu": 51.0}, Fits.NO),
        (Need("cpu", at_most=50), {}, Fits.UNKNOWN),
        (Need("battery", at_least=25, or_mains=True), {"battery": 10.0}, Fits.NO),
        (Need("battery", at_least=25, or_mains=True), {"battery": 10.0, "mains": True}, Fits.YES),
        (Need("battery", at_least=25, or_mains=True), {"mains": True}, Fits.YES),
    ],
)
def test_a_target_fits_does_not_or_does_not_say(need: Need, facts: dict[str, Any], fits: Fits) -> None:
    answer = need.of(Facts(**facts))
    assert answer.fits is fits
    assert answer.why


def test_all_reasons_against_a_target_are_named() -> None:
    answer = check((Need("cpu", at_most=50), Need("memory", at_most=60)), Facts(cpu=51, memory=61))
    assert answer == (Fits.NO, "cpu 51 %, and at most 50 is wanted; memory 61 %, and at most 60 is wanted")


def test_the_score_is_the_originals() -> None:
    facts = Facts(cpu=50, memory=40, temperature_c=45, store_ms=20, cost_per_hour=0.5, mains=True, agents=3)
    assert score(facts) == pytest.approx(100 - 25 - 12 - 9 - 2 - 5 + 5 + 7)
    assert score(Facts()) == 100
    assert score(Facts(cpu=100, memory=100, cost_per_hour=50)) == 0


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Thermal(warn_c=85, critical_c=85), "critical_c"),
        (lambda: Thermal(critical_c=201), "critical_c"),
        (lambda: Load(cpu=49), "cpu"),
        (lambda: Battery(min_percent=101), "min_percent"),
        (lambda: Cost(max_per_hour=-1), "max_per_hour"),
        (lambda: Cost(max_per_hour=float("inf")), "max_per_hour"),
        (lambda: MigrationPolicy(cooldown_s=0), "cooldown_s"),
        (lambda: MigrationPolicy(per_hour=1001), "per_hour"),
        (lambda: Window(begin="24:00", end="01:00"), "begin"),
        (lambda: Window(begin="02:00", end="02:00"), "end"),
        (lambda: Window(begin="02:00", end="03:00", days=(7,)), "days"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_with_the_field(make: object, field: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make()  # type: ignore[operator]
    assert raised.value.facts["field"] == field


def test_presets_are_those_of_the_original_and_can_be_changed() -> None:
    assert {name: make() for name, make in PRESETS.items()}.keys() == {"performance", "cost", "battery"}
    assert performance().load == Load(cpu=70, memory=80, waiting=50, sustained_s=15)
    assert performance(cooldown_s=5.0).cooldown_s == 5


def test_a_policy_costs_what_differs_and_reads_back() -> None:
    encode = msgspec.msgpack.encode
    assert len(encode(MigrationPolicy())) == 1
    policy = MigrationPolicy(thermal=None, cost=Cost(), windows=(Window(begin="22:00", end="04:00", days=(5,)),))
    assert msgspec.msgpack.decode(encode(policy), type=MigrationPolicy) == policy


def test_whole_numbers_and_lists_are_the_same_bytes_before_and_after_a_load() -> None:
    """Else a target, which has loaded the policy, computes another digest than the source has sealed."""
    policy = MigrationPolicy(
        thermal=Thermal(warn_c=60, critical_c=80), load=Load(cpu=70, waiting=5, sustained_s=3), cooldown_s=5,
        windows=[Window(begin="22:00", end="04:00", days=[5])],  # type: ignore[arg-type]
    )  # fmt: skip
    data = msgspec.msgpack.encode(policy)
    assert msgspec.msgpack.encode(msgspec.msgpack.decode(data, type=MigrationPolicy)) == data
    assert hash(policy) == hash(msgspec.msgpack.decode(data, type=MigrationPolicy))


@pytest.mark.parametrize(
    ("day", "at", "is_open"),
    [(5, "21:59", False), (5, "22:00", True), (6, "03:59", True), (6, "04:00", False), (6, "22:30", False)],
)
def test_a_window_may_last_over_midnight(day: int, at: str, is_open: bool) -> None:
    monday = 4 * 86_400  # 5 January 1970
    wall = monday + day * 86_400 + int(at[:2]) * 3600 + int(at[3:]) * 60
    assert MigrationPolicy(windows=(Window(begin="22:00", end="04:00", days=(5,)),)).is_open(wall) is is_open
    assert MigrationPolicy().is_open(wall)


def test_conditions_are_in_the_order_of_their_priorities() -> None:
    conditions: tuple[Condition, ...] = conditions_of(MigrationPolicy(cost=Cost()))
    assert [one.priority for one in conditions] == [100, 90, 80, 75, 70, 65, 60, 55, 40]
