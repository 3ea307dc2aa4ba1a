"""Agents that wait for each other: each ask carries who waits for its answer, so that a cycle is refused before it begins."""

from __future__ import annotations

from mielin_cells.errors import AskCycle

CHAIN_MAX = 64
"""Of the agents that wait for each other: a cycle of more is not noticed, and ends by the deadline of one."""


def cycle(chain: tuple[str, ...], asks: str, agent: str, handler: str) -> AskCycle:
    round_ = [*chain[chain.index(agent) :], asks, agent]
    return AskCycle(
        f"Agent {asks!r} asks {agent}.{handler}, and {agent!r} waits for it: {' -> '.join(round_)}. The ask was not sent; "
        "tell instead, or give what is needed with the first ask.",
        agents=round_,
    )  # fmt: skip


def longer(chain: tuple[str, ...], asks: str) -> tuple[str, ...]:
    """The chain of an ask that `asks` makes in a turn of the chain `chain`."""
    return (*chain[1 - CHAIN_MAX :], asks)
