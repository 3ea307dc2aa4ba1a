"""The stream of one turn: which parts are sent, and which are there already from an earlier run (rule T7)."""

from __future__ import annotations

from mielin_cells.errors import MessageTooLarge, NonDeterministicTurn, NotInTurn, UsageError
from mielin_cells.node.streams.writer import Owner, StreamWriter
from mielin_cells.settings import STREAM_BYTES_MAX


class TurnStream:
    """Of one run of one turn.  `is_quiet`: nobody hears the parts: the message is a tell, or has its answer already."""

    def __init__(
        self, owner: Owner, sender: str, n: int, *, is_quiet: bool, last: int = 0, is_undone: bool = False
    ) -> None:
        """`last`: where the stream ended when this activation ended the call before; 0 if it has ended none.

        `is_undone`: an undo took an earlier run of the turn back.
        """
        self._is_undone = is_undone
        self._owner = owner
        self.writer = None if is_quiet else StreamWriter(owner, sender, n)
        self._last = last
        self._is_open = False
        self._bytes = 0
        self.offset = 0
        """Parts that this run stands for so far."""
        self._step = ""
        """The step that emits, by its key: another step of the turn must not emit meanwhile."""
        self._began_at = 0
        self._attempt = 0
        self._tries: dict[str, int] = {}
        """Of each step that runs: how often its call was made."""

    async def _opened(self) -> StreamWriter | None:
        writer = self.writer
        if writer is not None and not self._is_open:
            await writer.open(self._last)
            self._is_open = True
        return writer

    def _count(self, data: bytes) -> None:
        self._bytes += len(data)
        if self._bytes > STREAM_BYTES_MAX:
            raise MessageTooLarge(
                f"The parts of a stream of agent {self._owner.agent!r} have more than {STREAM_BYTES_MAX} bytes together; the turn "
                "is undone and the agent goes on. Answer with less, or with several calls.",
                limit=STREAM_BYTES_MAX, size=self._bytes,
            )  # fmt: skip

    async def send(self, data: bytes) -> None:
        """A part that the handler yields.  It must be the one that an earlier run sent in its place."""
        self._count(data)
        writer, at = await self._opened(), self.offset
        if writer is not None:
            if at < len(writer.view.parts):
                stored = writer.view.parts[at]
                if stored is not None and stored != data:
                    raise self._otherwise(at)
            else:
                await writer.part(data)
        self.offset = at + 1

    def _otherwise(self, at: int) -> NonDeterministicTurn:
        again = f"A turn of agent {self._owner.agent!r} ran again and yielded another part {at} than before"
        next_ = "make what is random, or comes from outside, in a step, and emit from there"
        if self._is_undone:  # the parts that were sent follow from a state that is gone
            next_ = "the agent was taken back by an undo while it answered. Call again"
        return NonDeterministicTurn(
            f"{again}; {next_}. The message goes to the dead letters, and the agent goes on.",
            agent=self._owner.agent, asks=[],
        )  # fmt: skip

    # ---- parts from the calls of steps -----------------------------------------------------------------------

    async def emit(self, data: bytes, step: str, attempt: int) -> None:
        """A part that the call of a step sends, in its `attempt`-th try."""
        writer = await self._opened()
        if self._tries.get(step) != attempt:
            raise NotInTurn(
                f"The call of a step of agent {self._owner.agent!r} emitted a part after it was given up; it is not sent.",
                agent=self._owner.agent,
            )
        if self._step not in ("", step):
            raise UsageError(
                f"Two steps of a turn of agent {self._owner.agent!r} emit at the same time; let one follow the other.",
                agent=self._owner.agent,
            )  # fmt: skip
        if self._step != step:
            self._step, self._began_at, self._attempt = step, self.offset, 0
        if attempt != self._attempt:
            self._attempt, self.offset = attempt, self._began_at
            if writer is not None:
                await writer.restart(self._began_at, attempt)
        self._count(data)
        self.offset += 1
        if writer is not None:
            await writer.part(data, attempt)

    def step_tries(self, step: str, attempt: int) -> None:
        """The call of a step is made for the `attempt`-th time."""
        self._tries[step] = attempt

    async def step_ended(self, step: str) -> int:
        """All parts of the step are stored, and no others stand.  Returns how many its last call has sent."""
        count, attempt = 0, self._tries.pop(step, 0)
        if self._step == step:
            if attempt != self._attempt:  # the last call has sent none
                self.offset = self._began_at
            count, self._step = self.offset - self._began_at, ""
        await self._cut()
        return count

    async def _cut(self) -> None:
        """Parts of a try that is not the recorded one stand no more."""
        writer = await self._opened()
        if writer is None:
            return
        await writer.settled()
        if len(writer.view.parts) > self.offset:
            await writer.restart(self.offset, 0)

    def step_recorded(self, count: int) -> None:
        """An earlier run has recorded the step, which had sent so many parts."""
        self.offset += count

    # ---- the end ---------------------------------------------------------------------------------------------

    async def settle(self) -> int:
        """Returns the number of parts, once all are stored."""
        if self.writer is not None and self._is_open:
            await self.writer.settled()
        return self.offset

    @property
    def is_written(self) -> bool:
        """True if the stream has entries of this call."""
        return self.writer is not None and self._is_open and bool(self.writer.view.parts or self.offset)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    async def rest(self) -> None:
        """Returns when no append of an ended run is on its way."""
        if self.writer is not None:
            await self.writer.rest()
