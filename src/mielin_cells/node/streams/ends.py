"""The ends of an agent's streams: appended once the call's answer is committed, and again by every new owner (rule T7)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import msgspec

from mielin_cells.errors import CellError, Fenced, described
from mielin_cells.log.ids import stream_subject
from mielin_cells.log.ledger import Ledger
from mielin_cells.log.message import decode_answer
from mielin_cells.log.streams.entries import Ended, decode_stream_entry
from mielin_cells.node.streams.parts import TurnStream
from mielin_cells.node.streams.writer import Owner, StreamWriter
from mielin_cells.tasks.supervision import Backoff

logger = logging.getLogger("mielin_cells.streams")


class Ends:
    """Of one activation."""

    def __init__(self, owner: Owner, keep_s: float) -> None:
        self._owner = owner
        self._keep_s = keep_s
        self._open: dict[tuple[str, int], TurnStream] = {}
        """Streams of calls that are not answered yet, or whose answers are not committed yet."""
        self._ended: dict[str, int] = {}
        """By sender: the last end that this activation knows of."""
        self._trims: dict[str, asyncio.TimerHandle] = {}

    @property
    def is_busy(self) -> bool:
        """True while a stream is written, ends, or is to be trimmed."""
        return bool(self._open or self._ended or self._trims)

    def close(self) -> None:
        for stream in self._open.values():
            stream.close()
        for timer in self._trims.values():
            timer.cancel()

    def begin(self, sender: str, n: int, *, is_quiet: bool, is_undone: bool) -> TurnStream:
        """A run of the call's turn begins.  `is_quiet`: nobody hears its parts.  `is_undone`: an undo took an earlier run back."""
        is_again = (sender, n) in self._open  # then the stream has entries behind the last end, and is read
        last = 0 if is_again else self._ended.get(sender, 0)
        stream = self._open[sender, n] = TurnStream(
            self._owner, sender, n, is_quiet=is_quiet, last=last, is_undone=is_undone
        )
        return stream

    def committed(self, answers: Mapping[tuple[str, str], Mapping[int, bytes]]) -> None:
        """These answers are in the log: the streams of their calls end."""
        for (_, sender), numbers in answers.items():
            for n, answer in numbers.items():
                stream = self._open.pop((sender, n), None)
                if stream is not None and stream.writer is not None and stream.is_written:
                    self._ended.setdefault(sender, 0)
                    self._owner.begin(self._end(sender, stream.writer, answer))

    async def resume(self, ledger: Ledger) -> None:
        """Ends the streams whose calls a former owner has answered, and whose end is not there."""
        senders = {
            stream_subject(self._owner.agent, sender): sender for sender, peer in ledger.peers.items() if peer.answers
        }
        backoff = Backoff()
        while senders and self._owner.is_open:
            try:
                for subject, last in (await self._owner.log.lasts(list(senders))).items():
                    entry = decode_stream_entry(last.data, f"The stream {subject} at {last.seq}")
                    answer = ledger.answer(senders[subject], entry.n)
                    if isinstance(entry, Ended):
                        self._trim_later(senders[subject], last.seq)
                    elif answer is not None:
                        writer = StreamWriter(self._owner, senders[subject], entry.n)
                        await writer.open()
                        await self._end(senders[subject], writer, answer)
                return
            except Fenced:
                return  # the new owner does it
            except CellError as error:
                logger.info("agent %s: the ends of its streams are not read yet: %s", self._owner.agent, error)
            await backoff.wait()

    async def _end(self, sender: str, writer: StreamWriter, answer: bytes) -> None:
        backoff = Backoff()
        while self._owner.is_open:
            try:
                await writer.rest()
                seq = await writer.end(_count(answer, len(writer.view.parts)), answer)
                self._trim_later(sender, seq)
                return
            except Fenced:
                return  # the new owner appends it
            except CellError as error:
                logger.info("agent %s: a stream has not ended yet; trying again: %s", self._owner.agent, error)
            await backoff.wait()

    def _trim_later(self, sender: str, seq: int) -> None:
        """Removes what stands before the end of a stream once nobody should need it.  The last entry stays."""
        self._ended[sender] = seq
        if sender not in self._trims:
            self._trims[sender] = asyncio.get_running_loop().call_later(self._keep_s, self._trim, sender, seq)

    def _trim(self, sender: str, seq: int) -> None:
        del self._trims[sender]
        if self._owner.is_open:
            self._owner.begin(self._trimmed(sender, seq))
            newest = self._ended.get(sender, 0)
            if newest > seq:
                self._trim_later(sender, newest)
            else:
                self._ended.pop(sender, None)

    async def _trimmed(self, sender: str, seq: int) -> None:
        try:
            await self._owner.log.trim(stream_subject(self._owner.agent, sender), seq)
        except CellError as error:  # the next end of a stream tries again
            logger.info("agent %s: an ended stream is kept for longer: %s", self._owner.agent, described(error))


def _count(answer: bytes, stored: int) -> int:
    """How many parts stand: what the handler has returned, or all that are there if it has failed."""
    decoded = decode_answer(answer)
    return stored if decoded.result is None else msgspec.msgpack.decode(decoded.result, type=int)
