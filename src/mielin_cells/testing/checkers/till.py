"""A till outside of all agents, at which the simulator's accounts pay in durable steps, and the checker of those steps (I18).

The till counts calls by idempotency key and compares them with the logs: an agent's owner calls for nothing that its log holds, and
for nothing whose outcome it has.  A call may be repeated if its process died in it, or if its node does not know yet that it has
lost the agent; the key tells.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import TypeAlias

import msgspec

import mielin_cells as cells
from mielin_cells.log.commit import StepCall
from mielin_cells.log.message import decode_answer
from mielin_cells.log.records import Asked, HandedOff, Returned, Stepped
from mielin_cells.testing.checkers.checker import Checker, Step
from mielin_cells.testing.checkers.scene import Scene

PAY = "pay"
"""The step whose call pays."""

Receipt: TypeAlias = tuple[str, int]
"""Idempotency key, and the till's own number."""

_tills: dict[asyncio.AbstractEventLoop, Till] = {}
"""One for each simulated world."""


async def pay(is_alone: bool = True) -> Receipt:
    """Pays at the till of this world, inside the call of a step."""
    return await _tills[asyncio.get_running_loop()].pay(is_alone)


class Till(Checker):
    """I18: a step's call keeps its idempotency key when it is made again, and is not made again once its outcome is kept.

    A log holds one outcome for a key, and at rest each agent has, once, the very receipts that its log gave its turns.
    """

    invariant = "I18"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        _tills[asyncio.get_running_loop()] = self
        self._calls: Counter[str] = Counter()
        self._numbers = 0
        self._epochs: dict[str, int] = {}
        self._logged: dict[str, int] = {}
        """The receipt that a log holds for a key."""
        self._given: set[tuple[str, int]] = set()
        """Keys for which an owner has had a receipt, and the epoch that it was in."""

    @staticmethod
    def close() -> None:
        """Forgets the till of this world."""
        _tills.pop(asyncio.get_running_loop(), None)

    async def pay(self, is_alone: bool) -> Receipt:
        """Takes a while, and sometimes fails: both depend on the key and on how often it has come.

        `is_alone`: the turn waits for this payment.  One of several branches may be cancelled when it has just been made; then it
        counts as not made, and is made again.
        """
        this = cells.this()
        key, agent, node = this.idempotency_key, this.id, this.node
        self._calls[key] += 1
        self.scene.counts["steps called" if self._calls[key] == 1 else "steps called again"] += 1
        if key in self._logged and self._epoch(node, agent) == self._epochs[agent]:
            self.scene.violate(f"I18: {node} owns {agent} and calls {key} again, which its log holds")
        rng = Random(f"till {self.scene.history.seed} {key} {self._calls[key]}")
        await asyncio.sleep(rng.random() * rng.choice((0.01, 0.3, 3.0)))
        if rng.random() < 0.2:
            raise ConnectionError("the till is closed")
        self._numbers += 1
        epoch = self._epoch(node, agent)
        if (key, epoch) in self._given and epoch >= 0 and is_alone:
            self.scene.violate(f"I18: {node} was given a receipt for {key} of {agent} already, in the same epoch")
        self._given.add((key, epoch))
        return key, self._numbers

    def _epoch(self, node: str, agent: str) -> int:
        """The epoch that the caller believes to be in; -1 if its node has dropped the agent."""
        owner = self.scene.nodes.get(node)
        activation = owner.activations.live.get(agent) if owner is not None else None
        return activation.fold.epoch if activation is not None else -1

    def record(self, step: Step) -> None:
        record, agent = step.record, step.agent
        self._epochs[agent] = record.epoch + isinstance(record, (HandedOff, Returned))
        if not isinstance(record, (Asked, Stepped)):
            return
        for made in record.calls:
            is_paid = isinstance(made, StepCall) and made.name == PAY
            answer = decode_answer(made.answer).result if is_paid and made.answer is not None else None
            if answer is not None:
                key, number = msgspec.msgpack.decode(answer, type=Receipt)
                if self._logged.setdefault(key, number) != number:
                    self.fails(f"{step.what} records receipt {number} for {key}, which has another")

    def at_rest(self) -> None:
        for agent, state in self.scene.observed.items():
            had = Counter(key for key, _ in state.receipts)
            for key, number in state.receipts:
                if had[key] > 1 or self._logged.get(key) != number:
                    self.fails(
                        f"{agent} has receipt {number} for {key} {had[key]} times; the log has {self._logged.get(key)}"
                    )
