"""When the simulated world is at rest, and agents are asked what they have heard."""

from __future__ import annotations

from mielin_cells.settings import Settings
from mielin_cells.testing.simulator.scenario import Scenario, play
from mielin_cells.testing.simulator.swarm import CallPlan, Life, Swarm


def test_an_agent_that_was_asked_while_messages_were_put_off_and_then_ended_is_not_taken_at_its_word() -> None:
    """Seed 830598: the story healed while a turn hung.  Then a message failed, and the agent was asked before those behind it ran."""
    hangs = [CallPlan(0, 0.1, "b0", "hang", "", 0, False)]
    follow = [CallPlan(1 + n, 0.5, "b0", kind, "", 0, True) for n, kind in enumerate(("refuse", "mark", "quit"))]
    swarm = Swarm(
        seed=1, nodes=("node-1", "node-2"), agents=("a0", "a1"), odd=("b0",),
        settings=Settings(ask_timeout_s=5.0, ask_repeat_s=0.5, turn_deadline_s=20.0, retry_first_s=0.01),
        lives=[Life("client-odd", [hangs, follow], None)],
    )  # fmt: skip
    told = play(lambda: Scenario(swarm), seed=1, steps_max=400_000)
    assert told.violations == []
    assert told.scene.observed.keys() == {"a0", "a1"}, "b0 has ended"
