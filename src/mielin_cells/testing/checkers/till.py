"""A till outside of all agents, which the simulator's accounts pay at in durable steps, and what it notices (I18).

It counts calls by idempotency key and compares them with the logs: what a log holds is not called again by the agent's owner,
and an owner that has an outcome does not call for it again.  A call that was cut by its process's death may be repeated, and
so may one of a node that does not know yet that it has lost the agent; the key tells.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import TypeAlias

import msgspec

import mielin_cells as cells
from mielin_cells.log.message import decode_answer
from mielin_cells.log.records import HandedOff, Returned, StepMade, Stepped
from mielin_cells.testing.checkers.checkers import Checker, Scene, Step

Receipt: TypeAlias = tuple[str, int]
"""Idempotency key, and the till's own number."""

_tills: dict[asyncio.AbstractEventLoop, Till] = {}
"""One for each simulated world."""


async def pay() -> Receipt:
    """Pays at the till of this world, inside the call of a step."""
    return await _tills[asyncio.get_running_loop()].pay()


class Till(Checker):
    """I18: a step's call has the same idempotency key whenever it is made again, and none is made once its outcome is kept.

    A log holds one outcome for a key, and at rest each agent has, once, the very receipts that its log gave its turns.
    Not checked: calls of nodes that have lost the agent and do not know it yet; their outcomes cannot land (I1).  Effects outside of
    steps, which are at least once.
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
        """Lets the world go: the till holds it, and is held by its loop's name."""
        _tills.pop(asyncio.get_running_loop(), None)

    async def pay(self) -> Receipt:
        """Takes a while, and sometimes fails: both depend on the key and on how often it has come."""
        this = cells.this()
        key, agent, node = this.idempotency_key, this.id, this.node
        self._calls[key] += 1
        self.scene.counts["steps called" if self._calls[key] == 1 else "steps called again"] += 1
        if key in self._logged and self._epoch(node, agent) == self._epochs[agent]:
            self.scene.found(f"I18: {node} owns {agent} and calls {key} again, which its log holds")
        rng = Random(f"till {self.scene.world.seed} {key} {self._calls[key]}")
        await asyncio.sleep(rng.random() * rng.choice((0.01, 0.3, 3.0)))
        if rng.random() < 0.2:
            raise ConnectionError("the till is closed")
        self._numbers += 1
        epoch = self._epoch(node, agent)
        if (key, epoch) in self._given and epoch >= 0:
            self.scene.found(f"I18: {node} was given a receipt for {key} of {agent} already, in the same epoch")
        self._given.add((key, epoch))
        return key, self._numbers

    def _epoch(self, node: str, agent: str) -> int:
        """The epoch that the caller believes to be in; -1 if its node has dropped the agent."""
        found = self.scene.nodes.get(node)
        host = found.hosts.get(agent) if found is not None else None
        return host.fold.epoch if host is not None else -1

    def record(self, step: Step) -> None:
        record, agent = step.record, step.agent
        self._epochs[agent] = record.epoch + isinstance(record, (HandedOff, Returned))
        if not isinstance(record, Stepped):
            return
        for made in record.made:
            answer = decode_answer(made.answer).result if isinstance(made, StepMade) else None
            if answer is not None:
                key, number = msgspec.msgpack.decode(answer, type=Receipt)
                if self._logged.setdefault(key, number) != number:
                    self.fails(f"{step.what} records receipt {number} for {key}, which has another")

    def at_rest(self) -> None:
        for agent, shown in self.scene.shown.items():
            had = Counter(key for key, _ in shown.receipts)
            for key, number in shown.receipts:
                if had[key] > 1 or self._logged.get(key) != number:
                    self.fails(
                        f"{agent} has receipt {number} for {key} {had[key]} times; the log has {self._logged.get(key)}"
                    )
