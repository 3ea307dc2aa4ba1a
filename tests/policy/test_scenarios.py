"""Scripts of facts, and the moves that follow from them as transcripts (`tests/policy/transcripts`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.scripted_policies import Scripted

from mielin_cells.log.triggers.values import Cost, Load, MigrationPolicy, Window
from mielin_cells.policy.facts import Facts
from mielin_cells.policy.planning.plan import Limits

TRANSCRIPTS = Path(__file__).parent / "transcripts"
SCENARIOS: dict[str, Callable[[], Scripted]] = {}


def scenario(make: Callable[[], Scripted]) -> Callable[[], Scripted]:
    SCENARIOS[make.__name__] = make
    return make


def on(node: str, count: int, policy: MigrationPolicy, prefix: str = "a") -> dict[str, tuple[str, MigrationPolicy]]:
    return {f"{prefix}{n}": (node, policy) for n in range(count)}


@scenario
def battery() -> Scripted:
    """A laptop is unplugged and runs down; its agents go to the machine on mains, and not to the other laptop, which is low too."""
    laptop: dict[str, Any] = {"cpu": 20.0, "mains": False}
    world = Scripted(
        {
            "laptop": Facts(battery=40, **laptop), "other": Facts(battery=20, **laptop),
            "desk": Facts(cpu=60, mains=True),
        },
        on("laptop", 3, MigrationPolicy()),
    )  # fmt: skip
    world.play(60, {10: {"laptop": {"battery": 16.0, **laptop}}, 20: {"laptop": {"battery": 14.0, **laptop}},
                    22: {"laptop": {"battery": 14.5, **laptop}}, 40: {"laptop": {"battery": 90.0, "mains": True}}})  # fmt: skip
    return world


@scenario
def heat() -> Scripted:
    """A node gets warm, and then so hot that cooldowns do not count.  The node that does not say how hot it is comes last."""
    world = Scripted(
        {"n1": Facts(temperature_c=60), "n2": Facts(temperature_c=55), "n3": Facts()}, on("n1", 4, MigrationPolicy())
    )
    world.play(50, {5: {"n1": {"temperature_c": 75.0}}, 12: {"n1": {"temperature_c": 69.0}}, 13: {"n1": {"temperature_c": 76.0}},
                    25: {"n2": {"temperature_c": 88.0}, "n1": {"temperature_c": 65.0}}})  # fmt: skip
    return world


@scenario
def overload() -> Scripted:
    """A node has too much to do for longer than a moment: some agents leave, and more only if that was not enough."""
    world = Scripted(
        {"n1": Facts(cpu=30), "n2": Facts(cpu=20, agents=0), "n3": Facts(cpu=70, agents=0)},
        on("n1", 10, MigrationPolicy(load=Load(sustained_s=10))),
    )
    world.play(60, {1: {"n1": {"cpu": 95.0}}, 5: {"n1": {"cpu": 60.0}}, 6: {"n1": {"cpu": 96.0}}, 20: {"n1": {"cpu": 88.0}},
                    32: {"n1": {"cpu": 60.0}, "n2": {"cpu": 64.0}}})  # fmt: skip
    return world


@scenario
def cost() -> Scripted:
    """A spot node gets expensive on a weekday; agents with a window of the weekend wait for it, the others go to the cheap node."""
    thrifty = MigrationPolicy(cost=Cost(max_per_hour=1.0, reduction=20, sustained_s=5))
    later = MigrationPolicy(cost=Cost(sustained_s=5), windows=(Window(begin="00:00", end="06:00", days=(5, 6)),))
    world = Scripted(
        {"spot": Facts(cost_per_hour=0.4), "dear": Facts(cost_per_hour=0.9), "cheap": Facts(cost_per_hour=0.3)},
        {**on("spot", 2, thrifty), **on("spot", 1, later, "w")},
        wall=9 * 86_400 - 30,  # half a minute before a Saturday
    )
    world.play(60, {3: {"spot": {"cost_per_hour": 1.2}}})
    return world


@scenario
def zone_loss() -> Scripted:
    """The store is far from a whole zone: its agents go to the other zone, some at a time, and those of a node that dies do not."""
    world = Scripted(
        {"a1": Facts(store_ms=5), "a2": Facts(store_ms=5), "b1": Facts(store_ms=6), "b2": Facts(store_ms=6)},
        {**on("a1", 6, MigrationPolicy()), **on("a2", 3, MigrationPolicy(), "b")},
        limits=Limits(moves=4, moves_out=3, moves_in=2),
    )
    world.play(4, {2: {"a1": {"store_ms": 400.0}, "a2": {"store_ms": 400.0}}})
    world.play(20)
    world.dead = {"a2"}
    world.play(60)
    return world


@pytest.mark.parametrize("name", ["battery", "heat", "overload", "cost", "zone_loss"])
def test_a_script_of_facts_gives_the_moves_of_its_transcript(name: str) -> None:
    world = SCENARIOS[name]()
    said = "\n".join([str(SCENARIOS[name].__doc__), *world.lines, ""])
    path = TRANSCRIPTS / f"{name}.txt"
    if os.environ.get("WRITE_TRANSCRIPTS"):
        path.write_text(said)
    assert said == path.read_text(), "look at the difference, and write it anew with WRITE_TRANSCRIPTS=1"
    assert not list(world.plans), "every plan has ended"


def test_a_new_leader_goes_on_with_the_plan_and_moves_nothing_twice() -> None:
    world = Scripted({"n1": Facts(temperature_c=90), "n2": Facts(temperature_c=40)}, on("n1", 4, MigrationPolicy()))
    world.play(0.5)
    assert len(world.running) == 4
    world.new_leader()
    world.play(20)
    assert set(world.where.values()) == {"n2"}
    assert len(world.moves) == 4
    assert not list(world.plans)
