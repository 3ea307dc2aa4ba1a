"""A message that came before an earlier one of its sender, when its receiver changes owner at the worst moment."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from support.logs import HeldLog
from support.moving import nodes

import mielin_cells as cells
from mielin_cells.errors import StoreUnreachable
from mielin_cells.log.commit import Commit, Input, StepCall
from mielin_cells.log.ids import inbox_subject, log_subject
from mielin_cells.log.inboxes.lines import line
from mielin_cells.log.inboxes.places import InboxPlace
from mielin_cells.log.message import Answer, Mail, Message, client_sender, encode_answer, encode_mail
from mielin_cells.log.records import Committed, Stepped, encode_record
from mielin_cells.rpc import requests
from mielin_cells.store.reader import load
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Appended, Entry, Log


class Diary(cells.Agent):
    lines: list[int] = []

    @cells.handler
    async def write(self, n: int) -> None:
        self.lines.append(n)

    @cells.handler
    async def think(self, n: int) -> None:
        self.lines.append(await cells.step("thought", lambda: n))

    @cells.handler
    async def all(self) -> list[int]:
        return self.lines


def mail(cls: str, n: int) -> bytes:
    return encode_mail(Mail("d", cls, "bob", 0, 0, "reply.x", [Message(n, "write", msgspec.msgpack.encode({"n": n}))]))


async def test_a_held_message_whose_predecessor_is_committed_runs_at_the_next_owner(tmp_path: Path) -> None:
    """The owner committed number 1 with 2 and 3 still held, and was lost before it ran them."""
    path = tmp_path / "store.db"
    async with cells.local(path=path) as cluster:
        await cluster.spawn(Diary, "d")
    store = await Embedded.open(path)
    fold = await load(store.log, "d")
    seqs = []
    for n in (3, 2, 1):
        stored = await store.log.append(inbox_subject("d"), mail(fold.cls, n))
        assert isinstance(stored, Appended)
        seqs.append(stored.seq)
    commit = Commit(
        cursor=seqs[2], held=seqs[:2], inputs=[Input("bob", 1, 0, 0, None)], outs=[], released={}, dead=[], forgot=[],
        state=None, version=fold.version, digest=fold.state.digest(),
    )  # fmt: skip
    record = Committed(
        agent="d", epoch=fold.epoch, node=fold.owner, incarnation=fold.incarnation, nonce=bytes(12), prev=fold.seq,
        snap=fold.snap, commit=commit,
    )  # fmt: skip
    assert isinstance(await store.log.append(log_subject("d"), encode_record(record), fold.seq), Appended)
    await store.close()
    async with cells.local(path=path) as cluster:
        assert await cluster.get(Diary, "d").all() == [2, 3]
    store = await Embedded.open(path)
    ledger = (await load(store.log, "d")).ledger
    assert (ledger.peers["bob"].mark, ledger.held, ledger.dead) == (3, [], [])
    await store.close()


async def test_repeats_beside_a_recorded_turn_stay_behind_earlier_messages(tmp_path: Path) -> None:
    """Calls 1, 2 and 3 of a client are put off, and so is an entry that repeats 1 and 3.  The owner is lost after a step of 1."""
    path, sender = tmp_path / "store.db", client_sender("session")
    async with cells.local(path=path) as cluster:
        await cluster.spawn(Diary, "d")
    store = await Embedded.open(path)
    fold = await load(store.log, "d")
    seqs = []
    for numbers in ((1,), (2,), (3,), (1, 3)):
        messages = [Message(n, "think" if n == 1 else "write", msgspec.msgpack.encode({"n": n})) for n in numbers]
        entry = encode_mail(Mail("d", fold.cls, sender, fold.seq, 0, "reply.x", messages))
        stored = await store.log.append(inbox_subject("d"), entry)
        assert isinstance(stored, Appended)
        seqs.append(stored.seq)
    commit = Commit(
        cursor=seqs[-1], held=seqs, inputs=[], outs=[], released={}, dead=[], forgot=[], state=None, version=fold.version,
        digest=fold.state.digest(),
    )  # fmt: skip
    head: dict[str, Any] = {
        "agent": "d",
        "epoch": fold.epoch,
        "node": fold.owner,
        "incarnation": fold.incarnation,
        "snap": fold.snap,
    }
    put_off = Committed(**head, nonce=bytes(12), prev=fold.seq, commit=commit)
    place = await store.log.append(log_subject("d"), encode_record(put_off), fold.seq)
    assert isinstance(place, Appended)
    answer = encode_answer(Answer(msgspec.msgpack.encode(1)))
    step = Stepped(
        **head, nonce=b"1" * 12, prev=place.seq, sender=sender, input=1, at=0, calls=[StepCall("thought", answer)]
    )
    assert isinstance(await store.log.append(log_subject("d"), encode_record(step), place.seq), Appended)
    await store.close()
    async with cells.local(path=path) as cluster:
        assert await cluster.get(Diary, "d").all() == [1, 2, 3]


async def test_a_recorded_turn_changes_nothing_in_the_order_of_another_inbox(tmp_path: Path) -> None:
    """Seed 193185: calls 2 and 3 at a high priority are put off, and 3 is stored once more behind them.  The owner is lost in a
    turn of the normal inbox.  The next one took the repetition of 3 first."""
    path, sender = tmp_path / "store.db", client_sender("session")
    async with cells.local(path=path) as cluster:
        await cluster.spawn(Diary, "d")
    store = await Embedded.open(path)
    fold = await load(store.log, "d")
    seqs = []
    urgent = line(client_sender("urgent"), "high")
    high = inbox_subject("d", "high")
    for subject, who, n in ((inbox_subject("d"), sender, 1), (high, urgent, 2), (high, urgent, 3), (high, urgent, 3)):
        messages = [Message(n, "think" if n == 1 else "write", msgspec.msgpack.encode({"n": n}))]
        entry = encode_mail(Mail("d", fold.cls, who, fold.seq, 0, "reply.x", messages))
        stored = await store.log.append(subject, entry)
        assert isinstance(stored, Appended)
        seqs.append(stored.seq)
    commit = Commit(
        cursor=0, held=None, inputs=[], outs=[], released={}, dead=[], forgot=[], state=None, version=fold.version,
        digest=fold.state.digest(), inboxes={"high": InboxPlace(seqs[2], seqs[1:3])},
    )  # fmt: skip
    head: dict[str, Any] = {
        "agent": "d",
        "epoch": fold.epoch,
        "node": fold.owner,
        "incarnation": fold.incarnation,
        "snap": fold.snap,
    }
    put_off = Committed(**head, nonce=bytes(12), prev=fold.seq, commit=commit)
    place = await store.log.append(log_subject("d"), encode_record(put_off), fold.seq)
    assert isinstance(place, Appended)
    step = Stepped(
        **head, nonce=b"1" * 12, prev=place.seq, sender=sender, input=1, at=0,
        calls=[StepCall("thought", encode_answer(Answer(msgspec.msgpack.encode(1))))],
    )  # fmt: skip
    assert isinstance(await store.log.append(log_subject("d"), encode_record(step), place.seq), Appended)
    await store.close()
    async with cells.local(path=path) as cluster:
        async with asyncio.timeout(60):
            while len(lines := await cluster.get(Diary, "d").all()) < 3:
                await asyncio.sleep(0.01)
        assert lines == [1, 2, 3]


class AwayLog(HeldLog):
    """A log whose inboxes cannot be read so many times."""

    def __init__(self, inner: Log, times: int) -> None:
        super().__init__(inner)
        self.go.set()
        self.times = times

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        if subject == inbox_subject("d") and self.times:
            self.times -= 1
            raise StoreUnreachable("The store is away.", subject=subject)
        return await super().read(subject, after, limit)


async def test_a_held_message_is_read_once_the_store_answers() -> None:
    """Before, the next owner's reader ended with the store's error, and the agent heard nothing any more."""
    async with nodes("node-1", "node-2") as (client, running):
        second = running["node-2"]
        diary = await client.on("node-1").spawn(Diary, "d")
        cls = running["node-1"].activations.live["d"].fold.cls
        log = running["node-1"].home.log
        assert isinstance(await log.append(inbox_subject("d"), mail(cls, 2)), Appended)
        assert await diary.all() == []
        assert len((await load(log, "d")).ledger.held) == 1
        away = second.home.log = AwayLog(log, 2)
        await second.claims.claim(requests.Claim("d", "a test"))
        assert isinstance(await log.append(inbox_subject("d"), mail(cls, 1)), Appended)
        async with asyncio.timeout(60):
            while await diary.all() != [1, 2]:
                await asyncio.sleep(0.01)
        assert away.times == 0
