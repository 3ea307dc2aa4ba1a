"""A till outside of all agents, which the simulator's accounts pay at in durable steps, and what it notices.

It counts calls by idempotency key and compares them with the logs: what a log holds is not called again by the agent's owner,
and an owner that has an outcome does not call for it again.  A call that was cut by its process's death may be repeated, and
so may one of a node that does not know yet that it has lost the agent; the key tells.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from random import Random
from typing import TypeAlias

import msgspec

import mielin_cells as cells
from mielin_cells.core.message import decode_answer
from mielin_cells.core.records import AnyRecord, HandedOff, Returned, StepMade, Stepped
from mielin_cells.node.node import Node
from mielin_cells.testing.checkers import Landing, violated
from mielin_cells.testing.view import View

Receipt: TypeAlias = tuple[str, int]
"""Idempotency key, and the till's own number."""

_tills: dict[asyncio.AbstractEventLoop, Till] = {}
"""One for each simulated world."""


async def pay() -> Receipt:
    """Pays at the till of this world, inside the call of a step."""
    return await _tills[asyncio.get_running_loop()].pay()


class Till(Landing):
    """Not checked: calls of nodes that have lost the agent and do not know it yet; their outcomes cannot land (`Ownership`)."""

    def __init__(self, seed: int, nodes: dict[str, Node], found: Callable[[str], None], counts: Counter[str]) -> None:
        _tills[asyncio.get_running_loop()] = self
        self._seed = seed
        self._nodes = nodes
        self._found = found
        self._counts = counts
        self._calls: Counter[str] = Counter()
        self._numbers = 0
        self._epochs: dict[str, int] = {}
        self._logged: dict[str, int] = {}
        """The receipt that a log holds for a key."""
        self._given: set[tuple[str, int]] = set()
        """Keys for which an owner has had a receipt, and the epoch that it was in."""

    def close(self) -> None:
        """Lets the world go: this holds it, and is held by its loop's name."""
        _tills.pop(asyncio.get_running_loop(), None)

    async def pay(self) -> Receipt:
        """Takes a while, and sometimes fails: both depend on the key and on how often it has come."""
        this = cells.this()
        key, agent, node = this.idempotency_key, this.id, this.node
        self._calls[key] += 1
        self._counts["steps called" if self._calls[key] == 1 else "steps called again"] += 1
        if key in self._logged and self._epoch(node, agent) == self._epochs[agent]:
            self._found(f"I4: {node} owns {agent} and calls {key} again, which its log holds")
        rng = Random(f"till {self._seed} {key} {self._calls[key]}")
        await asyncio.sleep(rng.random() * rng.choice((0.01, 0.3, 3.0)))
        if rng.random() < 0.2:
            raise ConnectionError("the till is closed")
        self._numbers += 1
        epoch = self._epoch(node, agent)
        if (key, epoch) in self._given and epoch >= 0:
            self._found(f"I4: {node} was given a receipt for {key} of {agent} already, in the same epoch")
        self._given.add((key, epoch))
        return key, self._numbers

    def _epoch(self, node: str, agent: str) -> int:
        """The epoch that the caller believes to be in; -1 if its node has dropped the agent."""
        host = self._nodes[node].hosts.get(agent)
        return host.fold.epoch if host is not None else -1

    def record(self, agent: str, seq: int, record: AnyRecord, author: View) -> None:
        self._epochs[agent] = record.epoch + isinstance(record, (HandedOff, Returned))
        if not isinstance(record, Stepped):
            return
        for made in record.made:
            answer = decode_answer(made.answer).result if isinstance(made, StepMade) else None
            if answer is not None:
                key, number = msgspec.msgpack.decode(answer, type=Receipt)
                if self._logged.setdefault(key, number) != number:
                    violated("I4", f"{author.label} recorded receipt {number} for {key} of {agent}, which has another")

    def at_rest(self, receipts: dict[str, Iterable[Receipt]]) -> None:
        """Each agent has, once, the very receipts that its log gave its turns."""
        for agent, some in receipts.items():
            had = Counter(key for key, _ in some)
            for key, number in some:
                if had[key] > 1 or self._logged.get(key) != number:
                    violated(
                        "I4",
                        f"{agent} has receipt {number} for {key} {had[key]} times; the log has {self._logged.get(key)}",
                    )
