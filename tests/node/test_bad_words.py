"""Bad input between agents, where no other file has it: a named error or a dead letter, bounded memory, and nobody else is disturbed.

The other rows of docs/reference-talk.md: topics and patterns in topics/test_outside.py and topics/test_stories.py, which also has the
subscriber that always raises; parts that are too large in streams/test_streams.py; circles of asks in client/test_causes.py; expired
messages in activation/test_deadlines.py, and a million of them in benchmarks/parts/words.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.nodes import deployment

import mielin_cells as cells
from mielin_cells.client.calls import Words
from mielin_cells.errors import BadArguments, NoSuchHandler
from mielin_cells.log.message import Mail, Message
from mielin_cells.settings import MESSAGE_BYTES_MAX
from mielin_cells.store.mail import store_mail
from mielin_cells.store.reader import load
from mielin_cells.substrate.tail import WAITING_BYTES_MAX

PARTS = 40
PART_BYTES = MESSAGE_BYTES_MAX - 1024


class WordsTaker(cells.Agent, name="WordsTaker"):
    taken: list[int] = []

    @cells.handler
    async def take(self, number: int) -> int:
        self.taken.append(number)
        return len(self.taken)

    @cells.handler
    async def large(self) -> AsyncIterator[bytes]:
        for number in range(PARTS):
            yield bytes([number]) * PART_BYTES


async def test_what_no_client_would_send_is_a_dead_letter_with_the_reason_and_the_next_message_is_taken() -> None:
    """Of a newer version of the class, or of a program that makes its messages itself."""
    async with deployment("node-1") as at:
        taker, log = await at.client.spawn(WordsTaker, "t"), at.substrate.log
        odd = [
            ("nothing", b"\x80"),
            ("take", b"\x81\xa6number\xa4five"),
            ("take", b"\x81\xa5other\x01"),
            ("take", b"\x80"),
            ("take", b"no msgpack"),
            ("take", b""),
            ("__init__", b"\x80"),
            ("taken", b"\x80"),
        ]
        messages = [Message(n, handler, args) for n, (handler, args) in enumerate(odd, 1)]
        await store_mail(log, Mail("t", "WordsTaker", "another", 0, 1, "", messages))
        assert await taker.take(1) == 1
        letters = (await load(log, "t")).ledger.dead
        assert [letter.handler for letter in letters] == [handler for handler, _ in odd]
        assert ["NoSuchHandler" in letter.cause for letter in letters] == [handler != "take" for handler, _ in odd]
        assert all("WordsTaker.take" in letter.cause for letter in letters if letter.handler == "take")


async def test_wrong_types_are_refused_at_the_sender_with_the_signature() -> None:
    async with deployment("node-1") as at:
        taker = await at.client.spawn(WordsTaker, "t")
        before = await at.substrate.log.last("inbox.t")
        for wrong in ("five", None, 1 << 70):
            with pytest.raises(BadArguments, match=r"WordsTaker\.take"):
                await taker.take(wrong)  # type: ignore[arg-type]
            with pytest.raises(BadArguments, match=r"WordsTaker\.take"):
                await taker.take.tell(wrong)  # type: ignore[arg-type]
        assert await at.substrate.log.last("inbox.t") == before
        assert await taker.take(1) == 1


async def test_an_unknown_handler_is_named_to_its_asker() -> None:
    async with deployment("node-1") as at:
        await at.client.spawn(WordsTaker, "t")
        session = at.client.session("t")
        with pytest.raises(NoSuchHandler, match="nothing"):
            await session.ask("WordsTaker", Words("nothing", b"\x80"), (), {}, 10.0)


async def test_a_slow_reader_keeps_a_bounded_part_of_a_stream_and_holds_up_nobody() -> None:
    async with deployment("node-1") as at:
        taker = await at.client.spawn(WordsTaker, "t")
        stream = taker.large()
        assert (await anext(stream))[0] == 0
        tail = stream._tail  # type: ignore[attr-defined]
        kept = list[int]()

        async def watched() -> None:
            while True:
                kept.append(tail._bytes)
                await asyncio.sleep(0)

        watching = asyncio.create_task(watched())
        assert await taker.take(7) == 1, "the handler is done, though its reader has read one part"
        assert [part[0] async for part in stream] == list(range(1, PARTS))
        watching.cancel()
        assert PART_BYTES < max(kept) <= WAITING_BYTES_MAX
