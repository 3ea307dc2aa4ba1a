"""A message that came before an earlier one of its sender, when its receiver changes owner at the worst moment."""

from __future__ import annotations

from pathlib import Path

import msgspec

import mielin_cells as cells
from mielin_cells.core.ids import inbox_subject, log_subject
from mielin_cells.core.message import Mail, Message, encode_mail
from mielin_cells.core.records import Commit, Committed, Taken, encode_record
from mielin_cells.node.reader import load
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Appended


class Diary(cells.Agent):
    lines: list[int] = []

    @cells.handler
    async def write(self, n: int) -> None:
        self.lines.append(n)

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
        cursor=seqs[2], held=seqs[:2], taken=[Taken("bob", 1, 0, 0, None)], outs=[], released={}, dead=[], forgot=[],
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
