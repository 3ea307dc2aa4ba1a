"""Errors of the store that no retry mends, on the n-th call of a small story: once, for a while, or until somebody mends the store.

Whatever the call was for, what the log did not take is dropped and read again: nothing is answered that the log does not hold, no
number is given away, nobody spins or hangs meanwhile, and every agent goes on once the store does.  All of it in virtual time.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import Any

import pytest
from support.depth import depth

import mielin_cells as cells
from mielin_cells.agents.context import current
from mielin_cells.agents.reference import classes
from mielin_cells.client.client import Client
from mielin_cells.errors import (
    CellError,
    JetStreamDisabled,
    PermissionDenied,
    QuotaExceeded,
    StoreCorrupt,
    StoreFull,
    StoreReadOnly,
    StoreUnreachable,
    StreamMissing,
)
from mielin_cells.migration.recovery import RecoveryConfig
from mielin_cells.node.node import Node
from mielin_cells.settings import Settings
from mielin_cells.store.reader import load
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Entry, Log, Outcome, Tail
from mielin_cells.testing.forwarded import ForwardedLog
from mielin_cells.testing.simulator.loop import run

ERRORS: list[Exception] = [
    StoreReadOnly("The store cannot be written."),
    StoreFull("The disk is full."),
    PermissionDenied("The server forbids it.", subject="s"),
    StreamMissing("The stream is gone.", stream="s"),
    JetStreamDisabled("There is no JetStream.", url="u"),
    QuotaExceeded("The account has no more room.", limit=1),
    StoreCorrupt("The store is damaged."),
    StoreUnreachable("The store does not answer."),
    sqlite3.OperationalError("disk I/O error"),
    MemoryError("out of memory"),
    RuntimeError("nobody has foreseen this"),
]

STRIDE = depth(10, 3, 1)
SETTINGS = Settings(
    ask_timeout_s=8.0, ask_repeat_s=0.5, turn_deadline_s=4.0, tries=20, pause_s=2.0, prepare_s=2.0, handover_s=0.5,
    probation_s=3.0, migration_s=10.0, reconcile_s=2.0, snapshot_records=10, regression_s=2.0,
)  # fmt: skip
RECOVERY = RecoveryConfig(
    max_retries=2, initial_retry_delay_secs=0.2, max_retry_delay_secs=1.0, recovery_timeout_secs=15.0
)
SELLS = 6
HEALS_S = 15.0
QUIET_S = 20.0
CALLS_MAX = 40
"""Calls of the store in a second, with two nodes and three agents that all wait for it."""


class Failing(ForwardedLog):
    """A log of which calls fail from the n-th on.  `error` None: they only are counted."""

    def __init__(self, log: Log, error: Exception | None = None, n: int = 0, most: float = 1) -> None:
        super().__init__(log)
        self._error, self._n, self._most, self._left = error, n, most, 0.0
        self.count = 0
        self.struck = Counter[str]()

    def begin(self) -> None:
        self.count, self._left = 0, self._most

    def mend(self) -> None:
        self._left = 0

    def called(self, what: str, subject: str) -> None:
        self.count += 1
        if self._error is not None and self.count >= self._n and self._left > 0:
            self._left -= 1
            name = subject.split(".", maxsplit=1)[0]
            self.struck[f"{what} {name}" if what in ("append", "read") else what] += 1
            raise type(self._error)(*self._error.args, **getattr(self._error, "facts", {}))

    def tail(self, subject: str, after: int = 0) -> Tail:
        return FailingTail(self, super().tail(subject, after))


class FailingTail:
    def __init__(self, log: Failing, tail: Tail) -> None:
        self._failing, self._tail = log, tail

    def __aiter__(self) -> AsyncIterator[list[Entry]]:
        return self

    async def __anext__(self) -> list[Entry]:
        batch = await self._tail.__anext__()
        self._failing.called("tail", "")
        return batch

    def watch(self, come: Callable[[], None]) -> bool:
        return self._tail.watch(come)

    def close(self) -> None:
        self._tail.close()


class Cashbox(cells.Agent):
    sold: int = 0
    seen: int = 0
    notes: cells.Table[int, bytes] = cells.Table()

    @cells.handler
    async def sell(self, other: Cashbox, key: int) -> int:
        """A number that no other call gets, an ask, a step, a tell."""
        self.sold += 1
        asked = await other.see()
        stepped = await cells.step("double", _double, asked)
        self.notes[key] = bytes(stepped % 100)
        await other.see.tell()
        return self.sold

    @cells.handler
    async def add(self) -> int:
        self.sold += 1
        return self.sold

    @cells.handler
    async def see(self) -> int:
        self.seen += 1
        return self.seen

    @cells.handler
    async def totals(self) -> list[int]:
        return [self.sold, self.seen, len(self.notes)]


async def _double(n: int) -> int:
    return 2 * n


class Story:
    """Two nodes, a client, and calls of all kinds.  What fails is noted; nothing may take longer than it says."""

    def __init__(self, error: Exception | None = None, n: int = 0, most: float = 1) -> None:
        self.error, self.n, self.most = error, n, most
        self.answers: list[int] = []
        self.sales = 0
        """Calls of `sell` and `add` at t1 that may have taken effect."""
        self.was_told = False
        self.failures = Counter[str]()

    async def call(self, work: Any, limit_s: float = 40.0) -> Any:
        """Its result, or None if it raised an error of ours; never longer than `limit_s`."""
        async with asyncio.timeout(limit_s):
            try:
                return await work
            except CellError as error:
                self.failures[error.code] += 1
                return None
            except Exception as error:
                if type(error) is not type(self.error):
                    raise
                self.failures[type(error).__name__] += 1
                return None

    async def play(self) -> None:
        store = await Embedded.open(None)
        self.log = log = Failing(store.log, self.error, self.n, self.most)
        loop = asyncio.get_running_loop()

        def wall() -> float:
            return 1e9 + loop.time()

        nodes: dict[str, Node] = {}
        client = Client(log, store.wire, settings=SETTINGS, rng=Random(2))
        await client.open()
        for name in ("node-1", "node-2"):
            node = nodes[name] = Node(
                name,
                log,
                store.wire,
                classes.get,
                settings=SETTINGS,
                rng=Random(3),
                wall=wall,
                recovery=RECOVERY,
                cluster=client,
            )
            await node.start()
        log.begin()  # a node that cannot start is another story
        token = current.set(client)
        try:
            await self._act(client)
            self.calls = log.count
            if self.most > 1:
                await self._is_quiet(log)
            log.mend()
            await asyncio.sleep(QUIET_S)
            await self._is_whole(client, store)
        finally:
            current.reset(token)
            for node in nodes.values():
                async with asyncio.timeout(10.0):
                    await node.stop()
            await client.close()
            await store.close()

    async def _act(self, client: Client) -> None:
        one = await self.call(client.on("node-1").spawn(Cashbox, "t1"))
        two = await self.call(client.on("node-2").spawn(Cashbox, "t2"))
        one, two = one or client.get(Cashbox, "t1"), two or client.get(Cashbox, "t2")
        for key in range(SELLS - 1):
            for done in await asyncio.gather(self._sold(one.sell(two, key)), self._sold(one.add())):
                self.answers += [done] if done is not None else []
        before = self.failures.total()
        await self.call(one.see.tell())
        self.was_told = self.failures.total() == before
        await self.call(client.suspend(one))
        await self.call(client.resume(one))
        await self.call(client.migrate(one, to="node-2"))
        done = await self._sold(one.sell(two, 9))
        self.answers += [done] if done is not None else []
        await self.call(client.terminate(await self.call(client.spawn(Cashbox, "t3")) or "t3"))

    async def _sold(self, work: Any) -> Any:
        self.sales += 1
        return await self.call(work)

    async def _is_quiet(self, log: Failing) -> None:
        before = log.count
        await asyncio.sleep(HEALS_S)
        assert log.count - before <= CALLS_MAX * HEALS_S, f"the store was called {log.count - before} times"

    async def _is_whole(self, client: Client, store: Embedded) -> None:
        assert len(set(self.answers)) == len(self.answers), f"two calls had one answer: {self.answers}"
        totals: dict[str, list[int]] = {}
        for agent in ("t1", "t2"):
            till = await client.spawn(Cashbox, agent)
            await client.resume(till)
            totals[agent] = await till.totals()
        assert max(self.answers, default=0) <= totals["t1"][0] <= self.sales
        told = 1 if self.was_told else 0
        kept, failed = totals["t1"][2], SELLS - totals["t1"][2]
        assert 2 * kept <= totals["t2"][1] <= 2 * kept + failed, (
            "a turn that is kept has asked and told t2, a failed one may have asked"
        )
        assert told <= totals["t1"][1] <= 1, "what a client was told to be stored is handled, and handled once"
        for agent in ("t1", "t2"):
            fold = await load(store.log, agent)
            fold.verify()
            assert not fold.ledger.held, f"{agent} waits for a number that was given away"
            dead = [letter.cause for letter in fold.ledger.dead if not letter.cause.startswith("NoSuchAgent")]
            assert not dead, f"{agent}: {dead}"


def played(error: Exception | None, n: int, most: float) -> Story:
    story = Story(error, n, most)
    run(story.play(), seed=n, steps_max=600_000)
    return story


def failed_at(most: int, stride: int) -> None:
    untouched = played(None, 0, 0)
    assert untouched.failures == {}
    assert untouched.calls > 100, "the story is over before it has begun"
    for n in range(1 + most % stride, untouched.calls, stride):
        error = ERRORS[(n // stride + most) % len(ERRORS)]
        try:
            story = played(error, n, most)
        except BaseException as failed:
            failed.add_note(f"call {n}, {most} times {error!r}")
            raise
        assert story.log.struck


@pytest.mark.parametrize("most", [1, 40, 1_000_000_000], ids=["once", "for a while", "until it is mended"])
def test_whichever_call_the_store_fails_nothing_is_lost_and_all_goes_on(most: int) -> None:
    logging.disable(logging.CRITICAL)
    try:
        failed_at(most, STRIDE)
    finally:
        logging.disable(logging.NOTSET)


class Full(Failing):
    """Reads work, and nothing more can be stored in agents' logs (`inboxes`: nor in inboxes)."""

    inboxes = is_full = False

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        if self.is_full and (self.inboxes or not subject.startswith("inbox.")):
            raise StoreFull("The disk is full.")
        return await self.log.append(subject, data, expect, owner)


@pytest.mark.parametrize("inboxes", [False, True])
def test_a_full_store_is_what_callers_hear_and_the_node_stops_in_its_time(inboxes: bool) -> None:
    async def story() -> None:
        store = await Embedded.open(None)
        log, now = Full(store.log), asyncio.get_running_loop().time
        client = Client(log, store.wire, settings=SETTINGS, rng=Random(2))
        await client.open()
        node = Node("node-1", log, store.wire, classes.get, settings=SETTINGS, rng=Random(3), wall=now)
        await node.start()
        till = await client.spawn(Cashbox, "t")
        assert await till.add() == 1
        log.inboxes, log.is_full = inboxes, True
        calls: list[Callable[[], Awaitable[object]]] = [
            till.add, lambda: client.suspend(till), lambda: client.spawn(Cashbox, "u"), lambda: client.terminate(till),
        ]  # fmt: skip
        for call in [*calls, calls[0], calls[0], calls[0]]:
            began = now()
            with pytest.raises(StoreFull):
                await call()
            assert now() - began <= 2.0, "long before its deadline, and also when it is asked again"
        began = now()
        await node.stop()
        assert now() - began <= 3 * SETTINGS.pause_s
        log.is_full = False
        again = Node("node-1", log, store.wire, classes.get, settings=SETTINGS, rng=Random(4), wall=now)
        await again.start()
        assert await till.add() == (2 if inboxes else 6), "what waited in the inbox has taken effect"
        await again.stop()
        await client.close()
        await store.close()

    logging.disable(logging.CRITICAL)
    try:
        run(story())
    finally:
        logging.disable(logging.NOTSET)
