"""Clients' sessions begin where the agent's log ends, not at a time: no clock decides who is served (rule 15)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.waiting import until

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.errors import PermissionDenied
from mielin_cells.log import ledger
from mielin_cells.log.ids import inbox_subject
from mielin_cells.log.ledger import Ledger, Verdict
from mielin_cells.log.message import Mail, Message, client_sender
from mielin_cells.settings import SESSIONS_MAX
from mielin_cells.store.mail import store_mail
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Log, Outcome, Unknown
from mielin_cells.testing.forwarded import ForwardedLog

YEAR_S = 365 * 86400.0


class Gong(cells.Agent):
    rung: int = 0

    @cells.handler
    async def ring(self) -> int:
        self.rung += 1
        return self.rung

    @cells.handler
    async def hear(self) -> None:
        self.rung += 1


@asynccontextmanager
async def client(c: cells.Cluster) -> AsyncIterator[Client]:
    one = Client(c.log, c.wire)  # type: ignore[attr-defined]
    await one.open()
    try:
        yield one
    finally:
        await one.close()


async def test_clients_with_clocks_wrong_by_a_year_are_served_like_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "SESSIONS_MAX", 1)
    async with cells.local() as c:
        await c.spawn(Gong, "b")
        wall = time.time
        for n, ahead_s in enumerate((YEAR_S, 0.0, -YEAR_S, 11.0, -11.0, 0.0)):
            monkeypatch.setattr(time, "time", lambda ahead_s=ahead_s: wall() + ahead_s)
            async with client(c) as one:
                assert await one.get(Gong, "b").ring() == n + 1


async def test_a_repeated_message_of_a_forgotten_session_is_refused_and_a_new_session_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger, "SESSIONS_MAX", 1)
    async with cells.local() as c:
        await c.spawn(Gong, "b")
        async with client(c) as quiet, client(c) as busy:
            await quiet.get(Gong, "b").hear.tell()
            assert await busy.get(Gong, "b").ring() == 2  # and `quiet` is forgotten
            session = quiet.session("b")
            copy = Mail("b", "Gong", session.sender, session.start, 1, quiet.reply_to, [Message(1, "hear", b"\x80")])
            await store_mail(quiet.log, copy)
            assert await busy.get(Gong, "b").ring() == 3
            with pytest.raises(cells.errors.SessionExpired):
                await quiet.get(Gong, "b").ring()
            assert await quiet.get(Gong, "b").ring() == 4


async def test_a_session_from_a_log_that_is_not_there_is_refused_and_harms_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger, "SESSIONS_MAX", 1)
    async with cells.local() as c:
        await c.spawn(Gong, "b")
        sender = client_sender("from-a-store-put-back")
        ahead = Mail("b", "Gong", sender, 10**12, 1, "reply.nobody", [Message(n, "hear", b"\x80") for n in (1, 2)])
        for n in range(3):
            await store_mail(c.log, ahead)  # type: ignore[attr-defined]
            async with client(c) as one:
                assert await one.get(Gong, "b").ring() == n + 1
        fold = await load(c.log, "b")  # type: ignore[attr-defined]
        assert sender not in fold.ledger.peers
        assert fold.ledger.horizon < fold.seq
        assert {letter.cause.partition(":")[0] for letter in fold.ledger.dead} == {"SessionExpired"}


async def test_sessions_that_begin_while_the_owner_appends_are_all_served() -> None:
    """A client may read a record of the log before its owner hears that it is stored."""
    async with cells.local() as c:
        await c.spawn(Gong, "b")

        async def rings(count: int) -> list[int]:
            heard = list[int]()
            for _ in range(count):
                async with client(c) as one:
                    heard.append(await one.get(Gong, "b").ring())
            return heard

        heard = await asyncio.gather(*(rings(10) for _ in range(20)))
        assert sorted(n for some in heard for n in some) == list(range(1, 201))


def test_many_short_sessions_shut_out_nobody_who_began_after_them() -> None:
    """Beginnings are sequences of the log: each session is taken by a record behind the one at which it began."""
    known, log = Ledger(), 1
    for n in range(3 * SESSIONS_MAX):
        began = log
        assert known.judge(client_sender(f"s{n}"), 1, began) is Verdict.APPLY
        known.take(client_sender(f"s{n}"), 1, 1, began, b"a")
        known.forget(known.excess())
        log += 1
        assert known.horizon < log
    patient = log - SESSIONS_MAX + 1  # began that long ago, and its first message comes only now
    assert known.judge(client_sender("patient"), 1, patient) is Verdict.APPLY


class Notes(cells.Agent, name="SessionNotes"):
    lines: list[str] = []

    @cells.handler
    async def write(self, line: str) -> list[str]:
        if line == "slow":
            await gate["open"].wait()
        self.lines.append(line)
        return self.lines


gate: dict[str, asyncio.Event] = {}
"""Lets the slow call end."""


class LateLog(ForwardedLog):
    """Keeps its second mail back, the outcome unknown, and refuses the try after it; all else is stored."""

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self.mails = 0
        self.kept = b""

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        if subject == inbox_subject("n"):
            self.mails += 1
            if self.mails == 2:
                self.kept = data
                return Unknown("the connection was lost")
            if self.mails == 3:
                raise PermissionDenied("Appends are denied.", subject=subject)
        return await super().append(subject, data, expect, owner)


@pytest.mark.parametrize("lands", ["before", "behind"])
async def test_a_call_that_failed_takes_no_effect_behind_a_later_one(lands: str) -> None:
    """It may be stored late all the same (seed 70000505).  Before a later call of the client it may still take effect."""
    gate["open"] = asyncio.Event()
    async with cells.local() as c:
        await c.spawn(Notes, "n")
        store: Log = c.log  # type: ignore[attr-defined]
        log = LateLog(store)
        one = Client(log, c.wire)  # type: ignore[attr-defined]
        await one.open()
        try:
            notes = one.get(Notes, "n")
            slow = asyncio.create_task(notes.write("slow"))
            await until(lambda: log.mails == 1)
            with pytest.raises(PermissionDenied):
                await notes.write("failed")
            if lands == "before":
                await store.append(inbox_subject("n"), log.kept)
            later = asyncio.create_task(notes.write("later"))
            await until(lambda: log.mails == 4)
            if lands == "behind":
                await store.append(inbox_subject("n"), log.kept)
            gate["open"].set()
            await asyncio.gather(slow, later)
            lines = await notes.write("last")
            assert lines == ["slow", *(["failed"] if lands == "before" else []), "later", "last"]
        finally:
            await one.close()
