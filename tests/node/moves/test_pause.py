"""What a smooth move does between the pause and `Accepted`: two appends, and nothing else is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from support.nodes import deployment

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.log.ids import log_subject
from mielin_cells.log.records import Accepted, HandedOff, decode_record
from mielin_cells.substrate.ports import Log, Outcome, Wire
from mielin_cells.testing.forwarded import ForwardedLog


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


class WatchedLog(ForwardedLog):
    """Notes the calls that a caller waits for, which a tail is not."""

    def __init__(self, log: Log, node: str, story: Story) -> None:
        super().__init__(log)
        self._node = node
        self._story = story

    def called(self, what: str, subject: str) -> None:
        if what not in ("append", "tail"):
            self._note(what, subject)

    def _note(self, call: str, about: str) -> None:
        self._story.steps.append((self._node, call, about))

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        is_log = subject == log_subject("c")
        kind = type(decode_record(data, subject)).__name__ if is_log else subject.split(".", maxsplit=1)[0]
        self._note("append", kind)
        outcome = await super().append(subject, data, expect, owner)
        self._note("appended", kind)
        return outcome


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
    settings = cells.Settings(reconcile_s=3600)  # no node looks around meanwhile
    async with deployment(settings=settings, recovery=None) as made:
        log, wire = made.substrate.log, made.substrate.wire
        for name in ("node-1", "node-2"):
            await made.start(name, log=WatchedLog(log, name, story), wire=WatchedWire(wire, name, story))
        yield made.client


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
