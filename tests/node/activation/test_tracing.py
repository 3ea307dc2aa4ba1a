"""The trace context of W3C: what it goes with, and the hook that is told of spans."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from support.nodes import deployment
from support.waiting import until

import mielin_cells as cells
from mielin_cells import tracing
from mielin_cells.errors import TraceInvalid
from mielin_cells.log.ids import inbox_subject, log_subject
from mielin_cells.log.message import Mail, Message, Terms, client_sender, decode_mail, encode_mail
from mielin_cells.log.records import Committed, decode_record
from mielin_cells.settings import Settings
from mielin_cells.tracing import Span, Trace

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
STATE = "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"
SETTINGS = Settings(reconcile_s=0.2)


def seen() -> str:
    trace = cells.trace()
    return trace.text if trace is not None else ""


async def seen_in_step() -> str:
    now = tracing.outgoing()
    return f"{seen()}|{now.text if now is not None else ''}"


class Traced(cells.Agent, name="TracedAgent"):
    seen: dict[str, str] = {}

    @cells.handler
    async def fan_out(self, other: Traced) -> dict[str, str]:
        told = {"own": seen(), "asked": await other.look(), "step": await cells.step("look", seen_in_step)}
        await other.note.tell("told")
        cells.after(0.1, self.note)("timer")
        cells.publish("traced.topic", "topic")
        return told

    @cells.handler
    async def listen(self) -> None:
        await cells.subscribe("traced.*", self.note)

    @cells.handler
    async def look(self) -> str:
        return seen()

    @cells.handler
    async def note(self, what: str) -> None:
        self.seen[what] = seen()

    @cells.handler
    async def notes(self) -> dict[str, str]:
        return self.seen

    @cells.handler(tries=1)
    async def fail(self) -> None:
        raise ValueError("no")

    @cells.handler
    async def go(self, to: str) -> None:
        cells.this().migrate(to)


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Asks until it holds; the test's own time limit ends it."""
    while not await holds():
        pass


@pytest.mark.parametrize(("state", "text"), [("", PARENT), (STATE, f"{PARENT} {STATE}")])
async def test_a_trace_goes_with_all_that_follows_from_a_call(state: str, text: str) -> None:
    async with deployment("a", "b", settings=SETTINGS) as opened:
        one, two = [await opened.client.on(name[0]).spawn(Traced, name) for name in ("a1", "b1")]
        await two.listen()
        with tracing.use(PARENT, state):
            told = await one.fan_out(two)
        assert told == {"own": text, "asked": text, "step": f"{text}|{text}"}
        await eventually(lambda: _has(two, "told", "topic"))
        assert await two.notes() == {"told": text, "topic": text}
        await eventually(lambda: _has(one, "timer"))
        assert await one.notes() == {"timer": text}
        assert await one.look() == ""


async def _has(ref: Traced, *names: str) -> bool:
    return set(names) <= set(await ref.notes())


async def test_a_trace_outlives_the_node_whose_agent_waits_with_it() -> None:
    async with deployment("a", "b", settings=SETTINGS) as opened:
        one = await opened.client.on("a").spawn(Traced, "one")
        other = await opened.client.on("b").spawn(Traced, "other")
        await opened.client.suspend(other)
        with tracing.use(PARENT):
            await other.note.tell("told")
            await one.note("now")
        opened.kill("a")
        opened.kill("b")
        for name in ("a", "b"):
            await opened.start(name)
        await opened.client.resume(other)
        await eventually(lambda: _has(other, "told"))
        assert await other.notes() == {"told": PARENT}


async def test_what_has_no_trace_carries_none() -> None:
    async with deployment("a", settings=SETTINGS) as opened:
        one, two = [await opened.client.spawn(Traced, name) for name in ("one", "two")]
        await two.listen()
        await one.fan_out(two)
        for agent in ("one", "two"):
            mails = [
                decode_mail(entry.data, agent)
                for entry in await opened.substrate.log.read(inbox_subject(agent), 0, 100)
            ]
            assert [message.terms for mail in mails for message in mail.messages if message.terms is not None] == []
        records = [decode_record(e.data, "one") for e in await opened.substrate.log.read(log_subject("one"), 0, 100)]
        commits = [record.commit for record in records if isinstance(record, Committed)]
        assert {timer.trace for commit in commits for timer in commit.timers} == {""}
        assert {out.terms for commit in commits for out in commit.outs} == {None}


@pytest.mark.parametrize(
    ("parent", "state"),
    [
        ("", ""), ("00", ""), (PARENT + "0", ""), (PARENT.upper(), ""), ("ff" + PARENT[2:], ""),
        ("00-" + "0" * 32 + PARENT[35:], ""), (PARENT[:36] + "0" * 16 + "-01", ""), (PARENT + "\n", ""), (5, ""),
        (PARENT, "x"), (PARENT, "a=" + "b" * 600), (PARENT, ",".join(f"k{n}=v" for n in range(33))), (PARENT, "a=\n"), (PARENT, 5),
    ],
)  # fmt: skip
def test_what_is_no_trace_context_is_refused_by_name(parent: Any, state: Any) -> None:
    with pytest.raises(TraceInvalid), tracing.use(parent, state):
        pass


def test_the_parts_of_a_trace() -> None:
    trace = tracing.trace_of(PARENT, STATE)
    assert (trace.trace_id, trace.span_id, trace.is_sampled) == (PARENT[3:35], PARENT[36:52], True)
    assert tracing.read(trace.text) == trace
    assert tracing.read("") is None


async def test_a_malformed_trace_of_a_message_is_counted_and_the_message_handled() -> None:
    async with deployment("a", settings=SETTINGS) as opened:
        one, before = await opened.client.spawn(Traced, "one"), tracing.counts["malformed"]
        args = b'\x81\xa4what\xa4told'  # fmt: skip
        message = Message(1, "note", args, terms=Terms(trace="x" * 100_000))
        mail = Mail("one", "TracedAgent", client_sender("bad"), 1, 1, "", [message])
        await opened.substrate.log.append(inbox_subject("one"), encode_mail(mail))
        await eventually(lambda: _has(one, "told"))
        assert await one.notes() == {"told": ""}
        assert tracing.counts["malformed"] == before + 1


class Recorder:
    def __init__(self) -> None:
        self.begun: list[Span] = []
        self.ended: list[Span] = []
        self.threads: set[str] = set()
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.raises = False

    def start(self, span: Span) -> None:
        self.threads.add(threading.current_thread().name)
        self.goes_on.wait()
        if self.raises:
            raise RuntimeError("the collector is down")
        self.begun.append(span)

    def end(self, span: Span) -> None:
        self.ended.append(span)

    def find(self, kind: str, name: str) -> Span:
        (span,) = [span for span in self.ended if (span.kind, span.name) == (kind, name)]
        return span


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    tracing.install(made)
    yield made
    made.goes_on.set()
    tracing.uninstall()


async def test_spans_are_told_with_their_parents(recorder: Recorder) -> None:
    async with deployment("a", "b", settings=SETTINGS) as opened:
        one, two = [await opened.client.spawn(Traced, name) for name in ("one", "two")]
        with tracing.use(PARENT):
            told = await one.fan_out(two)
        with pytest.raises(cells.HandlerFailed):
            await one.fail()
        await until(lambda: any(span.name == "one.fail" and span.kind == "turn" for span in recorder.ended))
        await until(lambda: any(span.name == "two.note" for span in recorder.ended))
    outer, turn = recorder.find("ask", "one.fan_out"), recorder.find("turn", "one.fan_out")
    asked, inner, step = (
        recorder.find("ask", "two.look"),
        recorder.find("turn", "two.look"),
        recorder.find("step", "look"),
    )
    assert outer.parent == PARENT[36:52]
    assert [turn.parent, asked.parent, inner.parent, step.parent] == [
        outer.trace.span_id, turn.trace.span_id, asked.trace.span_id, turn.trace.span_id,
    ]  # fmt: skip
    assert {span.trace.trace_id for span in (outer, turn, asked, inner, step)} == {PARENT[3:35]}
    assert (turn.agent, turn.node in ("a", "b"), turn.error, outer.node) == ("one", True, "", "")
    assert told["own"] == turn.trace.text
    assert told["asked"] == inner.trace.text
    assert turn.began <= turn.ended
    failed = recorder.find("turn", "one.fail")
    assert failed.error == "ValueError: no"
    assert recorder.find("ask", "one.fail").error.startswith("HandlerFailed")
    assert failed.trace.trace_id != PARENT[3:35]
    assert recorder.threads == {"mielin-tracing"}


async def test_a_move_is_a_span_of_the_trace_that_ordered_it(recorder: Recorder) -> None:
    async with deployment("a", "b", settings=SETTINGS) as opened:
        one = await opened.client.on("a").spawn(Traced, "one")
        with tracing.use(PARENT):
            await opened.client.migrate(one, to="b")
        await one.go("a")
        await until(lambda: len([span for span in recorder.ended if span.kind == "move"]) == 2)
    first, second = [span for span in recorder.ended if span.kind == "move"]
    assert (first.parent, first.trace.trace_id, first.node, first.error) == (PARENT[36:52], PARENT[3:35], "a", "")
    assert second.parent == recorder.find("turn", "one.go").trace.span_id


async def test_a_tracer_that_raises_or_stands_still_disturbs_nothing_and_is_counted(recorder: Recorder) -> None:
    recorder.raises = True
    before = tracing.counts.copy()
    async with deployment("a", settings=SETTINGS) as opened:
        one = await opened.client.spawn(Traced, "one")
        assert await one.look() != ""
        await until(lambda: tracing.counts["failed"] >= before["failed"] + 2)
        recorder.raises = False
        tracing.install(recorder, waiting_max=4)
        recorder.goes_on.clear()
        for _ in range(10):
            assert await one.look() != ""
        assert tracing.counts["dropped"] > before["dropped"]
        recorder.goes_on.set()


async def test_the_trace_of_a_call_may_come_from_outside() -> None:
    silent, calls = Recorder(), list[int]()

    def now() -> Trace | None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyError("no context")
        return Trace(PARENT)

    tracing.install(silent, current=now)
    try:
        async with deployment("a", settings=SETTINGS) as opened:
            one = await opened.client.spawn(Traced, "one")
            assert PARENT[3:35] not in await one.look()
            assert PARENT[3:35] in await one.look()
    finally:
        tracing.uninstall()
