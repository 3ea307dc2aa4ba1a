"""What a smooth move does between the pause and `Accepted`: two appends, and nothing else is waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random

import mielin_cells as cells
from mielin_cells.agents.context import current
from mielin_cells.agents.reference import classes
from mielin_cells.client.client import Client
from mielin_cells.log.ids import log_subject
from mielin_cells.log.records import Accepted, HandedOff, decode_record
from mielin_cells.node.node import Node
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Entry, Log, Outcome, Tail, Wire


class Counted(cells.Agent):
    count: int = 0

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.count += n
        return self.count


class Story:
    """What two nodes do on their log and wire, in order: (node, call, about what)."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, str, str]] = []


class WatchedLog:
    """Passes everything on, and notes what a caller would wait for.  A tail is pushed to: only its beginning is noted."""

    def __init__(self, inner: Log, node: str, story: Story) -> None:
        self._inner = inner
        self._node = node
        self._story = story

    def _note(self, call: str, about: str) -> None:
        self._story.steps.append((self._node, call, about))

    async def append(self, subject: str, data: bytes, expect: int | None = None) -> Outcome:
        kind = (
            type(decode_record(data, subject)).__name__
            if subject == log_subject("c")
            else subject.split(".", maxsplit=1)[0]
        )
        self._note("append", kind)
        outcome = await self._inner.append(subject, data, expect)
        self._note("appended", kind)
        return outcome

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        self._note("read", subject)
        return await self._inner.read(subject, after, limit)

    async def last(self, subject: str) -> Entry | None:
        self._note("last", subject)
        return await self._inner.last(subject)

    async def settled(self, subject: str) -> Entry | None:
        self._note("settled", subject)
        return await self._inner.settled(subject)

    async def lasts(self, subjects: Sequence[str]) -> dict[str, Entry]:
        self._note("lasts", "")
        return await self._inner.lasts(subjects)

    def tail(self, subject: str, after: int = 0) -> Tail:
        return self._inner.tail(subject, after)

    async def trim(self, subject: str, before: int) -> None:
        self._note("trim", subject)
        await self._inner.trim(subject, before)

    async def subjects(self, prefix: str) -> list[tuple[str, int]]:
        self._note("subjects", prefix)
        return await self._inner.subjects(prefix)


class WatchedWire:
    def __init__(self, inner: Wire, node: str, story: Story) -> None:
        self._inner = inner
        self._node = node
        self._story = story

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    async def request(self, subject: str, data: bytes, timeout: float) -> bytes:
        self._story.steps.append((self._node, "request", subject))
        return await self._inner.request(subject, data, timeout)


@asynccontextmanager
async def watched(story: Story) -> AsyncIterator[Client]:
    substrate = await Embedded.open()
    client = Client(substrate.log, substrate.wire, rng=Random(0))
    await client.open()
    settings = cells.Settings(reconcile_s=3600)  # no looking around meanwhile
    running = []
    for name in ("node-1", "node-2"):
        log, wire = WatchedLog(substrate.log, name, story), WatchedWire(substrate.wire, name, story)
        node = Node(name, log, wire, classes.get, settings=settings, rng=Random(name), wall=time.time)  # type: ignore[arg-type]
        node.home.cluster = client
        await node.start()
        running.append(node)
    token = current.set(client)
    yield client
    current.reset(token)
    for node in running:
        await node.stop()
    await client.close()
    await substrate.close()


def between(story: Story) -> list[tuple[str, str, str]]:
    """The steps from the handover's append to the end of the one that accepts, both included."""
    first = next(n for n, step in enumerate(story.steps) if step[1:] == ("append", HandedOff.__name__))
    last = next(n for n, step in enumerate(story.steps) if step[1:] == ("appended", Accepted.__name__))
    return story.steps[first : last + 1]


async def test_a_smooth_move_waits_for_two_appends_between_pause_and_accept() -> None:
    story = Story()
    async with watched(story) as cluster:
        counter = await cluster.on("node-1").spawn(Counted, "c")
        await counter.add(1)
        report = await cluster.migrate(counter, to="node-2")
        assert report.ok
    source = [step[1:] for step in story.steps if step[0] == "node-1"]
    copied = max(n for n, (call, _) in enumerate(source) if call == "request")
    assert source[copied + 1] == ("append", "HandedOff"), "nothing is waited for between the copy and the handover"
    assert between(story) == [
        ("node-1", "append", "HandedOff"),
        ("node-1", "appended", "HandedOff"),
        ("node-2", "append", "Accepted"),
        ("node-2", "appended", "Accepted"),
    ]


async def test_under_load_the_log_gets_two_records_between_pause_and_accept() -> None:
    story, going = Story(), True
    async with watched(story) as cluster:
        counter = await cluster.on("node-1").spawn(Counted, "c")

        async def traffic() -> int:
            sent = 0
            while going:
                sent = await counter.add(1)
            return sent

        loads = [asyncio.create_task(traffic()) for _ in range(4)]
        for _ in range(20):
            story.steps.clear()
            report = await cluster.migrate(counter)
            assert report.ok
            of_log = [step for step in between(story) if step[1] == "append" and step[2] not in ("inbox", "part")]
            assert [kind for _, _, kind in of_log] == ["HandedOff", "Accepted"]
        going = False
        assert await counter.add(0) == max(await asyncio.gather(*loads))
