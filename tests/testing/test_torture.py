"""What `make torture` stands on: its checks find what is wrong, and its proxy cuts a link in one direction."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from support.nats_servers import nats_server, opened, proxied, stored
from torture.agents import TOKENS, Purse
from torture.check import Check, Read, Recording, Report, Timed, entries_of, has_arrived, outages
from torture.stores import store
from torture.tape import Tape

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.log.commit import StepCall
from mielin_cells.log.family.made import MEANT
from mielin_cells.log.ids import inbox_subject, log_subject
from mielin_cells.log.message import decode_mail
from mielin_cells.log.records import Stepped, decode_record
from mielin_cells.log.waits.tokens import wait_of
from mielin_cells.substrate.jetstream.places import place_of
from mielin_cells.substrate.ports import Appended, Entry
from mielin_cells.testing.checkers.scene import Call, Observed, Told


class Played(NamedTuple):
    """A quiet run with calls, transfers and moves."""

    recording: Recording
    entries: list[tuple[str, Entry]]
    shown: dict[str, Observed]


async def judged(change: Callable[[Played], None]) -> list[str]:
    """What the checks say of a quiet run after `change` has falsified it; each by its invariant's number."""
    recording = Recording(["a", "b"])
    async with cells.local(nodes=2) as cluster:
        assert isinstance(cluster, Client)
        for agent in recording.agents:
            await cluster.on("node-1").spawn(Purse, agent)
        for n in range(1, 7):
            agent, to = ("a", "b") if n % 2 else ("b", "a")
            call, made, asked = Call(agent, "me", (n + 1) // 2, True), time.monotonic(), time.monotonic()
            call.answer, call.acked = await cluster.get(Purse, agent).give("me", call.n, to, n), True
            recording.calls.append(Timed(call, made, time.monotonic()))
            if n in (2, 4):
                report = await cluster.migrate("a")
                recording.reports.append(Report(report, asked, time.monotonic()))
            asked, last = time.monotonic(), await cluster.log.last(log_subject("a"))
            assert last is not None
            recording.reads.append(Read("a", asked, time.monotonic(), last.seq))
        await talked(cluster, recording)
        shown: dict[str, Observed] = {}
        while not shown or not has_arrived(shown):
            shown = {agent: Observed(*await cluster.get(Purse, agent).show()) for agent in recording.agents}
        for agent, state in shown.items():
            state.urged, state.urgent, state.wronged, state.words = await cluster.get(Purse, agent).talk()
        played = Played(recording, await entries_of(cluster.log, [*recording.agents, *recording.kids]), shown)
        change(played)
        check = Check(recording, TOKENS)
        await check.look(cluster.log, played.shown, played.entries)
        assert check.verdict.landed["HandedOff"] == 2
        return [found.split(":")[0] for found in check.verdict.violations]


async def talked(cluster: Client, recording: Recording) -> None:
    """A message with a priority, a wait that is resolved, and a child."""
    a, b = cluster.get(Purse, "a"), cluster.get(Purse, "b")
    recording.kids = ["kid"]
    for agent, n in (("a", 1), ("a", 2), ("b", 1)):
        recording.calls.append(Timed(Call(agent, "they", n, False, acked=True), time.monotonic(), time.monotonic()))
    token = await a.petition("they", 1, 60.0)
    told = await cluster.resolve(token, 5)
    recording.tokens[token] = None
    recording.told.append(Told("a", wait_of(token).key, told.accepted, "value 5", f"value {told.value}", 0.0))
    await a.urge("they", 2, "b", "high", True)
    await b.hire("they", 1, "kid")
    async with asyncio.timeout(30):
        while not (await a.talk())[3]:
            await asyncio.sleep(0.005)


async def test_a_quiet_run_violates_nothing() -> None:
    assert await judged(lambda played: None) == []


def lose_a_call(played: Played) -> None:
    played.shown["a"].heard.pop()


def take_a_call_twice(played: Played) -> None:
    played.shown["a"].heard.append(played.shown["a"].heard[0])


def make_a_token(played: Played) -> None:
    played.shown["b"].tokens += 1


def double_a_transfer(played: Played) -> None:
    played.shown["b"].got["a"].append(3)


def show_an_old_owner(played: Played) -> None:
    reads = played.recording.reads
    reads[-1] = reads[-1]._replace(seq=reads[0].seq)


def answer_out_of_place(played: Played) -> None:
    played.recording.calls[0].call.answer = 3


def lose_a_record(played: Played) -> None:
    where = [number for number, (subject, _) in enumerate(played.entries) if subject == log_subject("a")]
    del played.entries[where[len(where) // 2]]


def report_what_did_not_happen(played: Played) -> None:
    report = played.recording.reports[0]
    changed = {name: getattr(report.report, name) for name in ("migration", "agent", "source", "target")}
    played.recording.reports[0] = report._replace(report=cells.MigrationReport(**changed, outcome="rolled_back"))


def send_before_it_is_logged(played: Played) -> None:
    """An agent's mail stands in an inbox before its log knows of it."""
    inbox = inbox_subject("b")
    mails = [(n, e) for n, (subject, e) in enumerate(played.entries) if subject == inbox]
    number, entry = next((n, e) for n, e in mails if decode_mail(e.data, inbox).sender == "a")
    del played.entries[number]
    played.entries.insert(0, (inbox, entry))


def lose_what_was_urgent(played: Played) -> None:
    played.shown["b"].urgent.clear()


def say_another_word(played: Played) -> None:
    played.shown["a"].words[0] = "they 1", "value 6"


def tell_somebody_another_outcome(played: Played) -> None:
    played.recording.told[0].stands = "value 6"


def make_a_child_of_nobody(played: Played) -> None:
    """Its parent's log does not say that it is to be made."""
    meant = [
        number for number, (subject, entry) in enumerate(played.entries)
        if subject == log_subject("b") and isinstance(record := decode_record(entry.data, subject), Stepped)
        and any(isinstance(call, StepCall) and call.name.startswith(MEANT) for call in record.calls)
    ]  # fmt: skip
    born = next(n for n, (subject, _) in enumerate(played.entries) if subject == log_subject("kid"))
    played.entries.insert(meant[0], played.entries.pop(born))


@pytest.mark.parametrize(
    ("change", "invariant"),
    [
        (lose_a_call, "I6"), (take_a_call_twice, "I4"), (make_a_token, "I22"), (double_a_transfer, "I5"),
        (show_an_old_owner, "I14"), (answer_out_of_place, "I7"), (lose_a_record, "I3"),
        (report_what_did_not_happen, "I9"), (send_before_it_is_logged, "I5"), (lose_what_was_urgent, "I32"),
        (say_another_word, "I38"), (tell_somebody_another_outcome, "I38"), (make_a_child_of_nobody, "I33"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_found(change: Callable[[Played], None], invariant: str) -> None:
    assert invariant in await judged(change)


def test_an_outage_is_the_time_in_which_calls_wait_long() -> None:
    times = [(0.0, 0.1), (1.0, 3.0), (2.0, 5.0), (9.0, 10.0)]
    calls = [Timed(Call("a", "me", n, True), *some) for n, some in enumerate(times)]
    assert outages(calls, 0.5) == [1.0, 4.0]


async def test_a_tape_of_several_shards_has_what_landed_in_its_order(tmp_path: Path) -> None:
    """Also what has been trimmed by the time it is looked at."""
    agents = [f"a{number}" for number in range(6)]
    async with nats_server(tmp_path / "s") as server, opened(server.url, shards=4) as substrate:
        tape, landed, ends = Tape(substrate), list[tuple[str, bytes]](), dict[str, int]()
        for number in range(120):
            agent = agents[number * 7 % 6]
            subject = (log_subject if number % 5 else inbox_subject)(agent)
            landed.append((subject, b"%d" % number))
            ends[subject] = await stored(substrate.log, subject, landed[-1][1])
        assert len({place_of("mielin", 4, subject).stream for subject in ends}) == 4
        taping = asyncio.create_task(tape.run())
        async with asyncio.timeout(30):
            await tape.reaches(ends.items())
        taping.cancel()
        for subject, end in ends.items():
            await substrate.log.trim(subject, end)
        assert [(subject, entry.data) for subject, entry in tape.taken(agents)] == landed
        assert tape.taken(agents) == []


async def test_an_index_of_owners_that_is_deleted_in_a_store_is_made_under_the_next_generation(tmp_path: Path) -> None:
    async with store(tmp_path, 1, 2) as under, opened(under.servers[0].url) as substrate:
        assert await under.generation() == 1
        assert await under.delete_index()
        assert not await under.delete_index()
        await substrate.log.owned("node-1")
        assert await under.generation() == 2


async def test_a_link_cut_in_one_direction_delivers_late_what_was_sent(tmp_path: Path) -> None:
    async with (
        nats_server(tmp_path / "s") as server,
        proxied(server) as proxy,
        opened(proxy.url) as far,
        opened(server.url) as near,
    ):
        proxy.hold(to_client=True)
        appending = asyncio.create_task(far.log.append("a.x", b"1", 0))
        async with asyncio.timeout(30):
            while await near.log.last("a.x") is None:  # it lands
                await asyncio.sleep(0.01)
        assert not appending.done()  # and nobody hears of it
        proxy.release()
        first = await appending
        assert isinstance(first, Appended)

        proxy.hold(to_server=True)
        appending = asyncio.create_task(far.log.append("a.x", b"2", first.seq))
        await asyncio.sleep(0.1)
        assert await near.log.read("a.x", first.seq) == []
        proxy.release()
        assert await appending == Appended(first.seq + 1)
