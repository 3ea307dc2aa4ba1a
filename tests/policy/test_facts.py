"""Facts of nodes: what is absent stays absent."""

from __future__ import annotations

import math

import msgspec
import pytest

from mielin_cells.policy.facts import NAMES, UNKNOWN, Facts, packed, tidied, unpacked


def test_a_fact_that_was_not_measured_is_absent_and_not_zero() -> None:
    facts = Facts(cpu=0.0, sensors={"fan": 3})
    assert facts.get("cpu") == 0.0
    assert facts.get("fan") == 3
    assert facts.get("battery") is None
    assert facts.get("nothing") is None
    assert facts.known() == {"cpu": 0.0, "fan": 3}


def test_a_sensor_does_not_replace_a_measured_fact() -> None:
    assert Facts(sensors={"cpu": 1.0}).get("cpu") is None


def test_facts_come_back_from_the_wire_as_they_were() -> None:
    facts = Facts(cpu=12.5, mains=False, agents=0, sensors={"rack": "b", "fan": True})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(facts), type=Facts) == facts
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(UNKNOWN)) == {}


def test_names_are_the_fields_besides_the_sensors() -> None:
    assert "cpu" in NAMES
    assert "sensors" not in NAMES


@pytest.mark.parametrize(
    ("facts", "kept"),
    [
        (Facts(cpu=50.0, battery=10.0), Facts(cpu=50.0, battery=10.0)),
        (Facts(cpu=math.nan, memory=1.0), Facts(memory=1.0)),
        (Facts(cpu=101.0, waiting=-1, oldest_s=math.inf), UNKNOWN),
        (Facts(temperature_c=-30.0), Facts(temperature_c=-30.0)),
        (Facts(sensors={"fan": math.nan, "cpu": 1.0, "x" * 200: 1, "rack": "b" * 300}), Facts(sensors={"rack": "b" * 100})),
        (Facts(sensors={f"s{n}": n for n in range(200)}), Facts(sensors={f"s{n}": n for n in range(64)})),
    ],
)  # fmt: skip
def test_what_cannot_be_is_absent(facts: Facts, kept: Facts) -> None:
    assert tidied(facts) == kept
    assert tidied(kept) is kept
    assert unpacked(packed(facts)) == kept


def test_bytes_that_are_no_facts_are_none() -> None:
    assert unpacked(b"") is None
    assert unpacked(b"\xc1garbage") is None
    assert unpacked(msgspec.msgpack.encode({"cpu": "much"})) is None
    assert unpacked(msgspec.msgpack.encode({"cpu": 1.0, "of a later version": [1]})) == Facts(cpu=1.0)


def test_sensors_that_say_too_much_are_named_and_the_other_facts_stay() -> None:
    facts = unpacked(packed(Facts(cpu=1.0, sensors={f"s{n}": "x" * 100 for n in range(60)})))
    assert facts is not None
    assert (facts.cpu, facts.sensors, list(facts.failing)) == (1.0, {}, ["sensors"])
