"""The crate's policy as a value."""

from __future__ import annotations

import msgspec
import pytest

import mielin_cells as cells
from mielin_cells import Policy


def test_the_defaults_are_the_crates() -> None:
    policy = Policy()

    assert (policy.min_battery, policy.max_latency_ms, policy.preferred_architectures) == (20, 100, ())


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"min_battery": 101}, "min_battery"),
        ({"min_battery": -1}, "min_battery"),
        ({"max_latency_ms": 0}, "max_latency_ms"),
        ({"max_latency_ms": float("nan")}, "max_latency_ms"),
        ({"preferred_architectures": ("",)}, "preferred_architectures"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(given: dict[str, object], field: str) -> None:
    with pytest.raises(cells.ConfigError) as caught:
        Policy(**given)  # type: ignore[arg-type]  # wrong on purpose

    assert caught.value.field == field


def test_it_travels_in_both_formats() -> None:
    policy = Policy(min_battery=5, max_latency_ms=0.5, preferred_architectures=("aarch64", "x86_64"))

    assert msgspec.json.decode(msgspec.json.encode(policy), type=Policy) == policy
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(policy), type=Policy) == policy


def test_no_architecture_means_any() -> None:
    assert Policy().allows_architecture("riscv64")
    assert Policy(preferred_architectures=("x86_64",)).allows_architecture("x86_64")
    assert not Policy(preferred_architectures=("x86_64",)).allows_architecture("riscv64")


def test_the_whole_rule_asks_for_all_three() -> None:
    policy = Policy(preferred_architectures=("x86_64",))

    assert policy.allows(battery=20, latency_ms=100, architecture="x86_64")
    assert not policy.allows(battery=19, latency_ms=100, architecture="x86_64")
    assert not policy.allows(battery=20, latency_ms=101, architecture="x86_64")
    assert not policy.allows(battery=20, latency_ms=100, architecture="aarch64")
