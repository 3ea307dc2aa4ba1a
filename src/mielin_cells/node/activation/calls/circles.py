"""Agents that wait for each other although no ask went around: each was asked in the middle of a turn that asks the next.

The chain that an ask carries does not show that, since each of these turns began by itself.  Who waits without an answer looks
where the others stand, once and shortly before its deadline, and its timeout names the circle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from itertools import islice
from typing import Any, Protocol

from mielin_cells.errors import AskTimeout, CellError
from mielin_cells.log.commit import AskCall, Out, TurnCall
from mielin_cells.log.inboxes.lines import end_of
from mielin_cells.log.message import Answer, encode_answer
from mielin_cells.rpc import requests
from mielin_cells.rpc.reminder import remind
from mielin_cells.substrate.ports import Log, Wire

LOOKED_AT = 16
"""Agents that are asked for an ask whom they wait for, and those that one of them names."""
LOOK_S = 1.0
"""Before the deadline; a quarter of the time of a shorter ask.  Whose deadline is the first finds all others still waiting."""


class Home(Protocol):
    """What is needed of the node."""

    @property
    def log(self) -> Log: ...
    @property
    def wire(self) -> Wire: ...
    @property
    def reply_to(self) -> str: ...
    def start(self, work: Coroutine[Any, Any, Any], /) -> asyncio.Task[Any]: ...


def awaited(calls: Iterable[TurnCall], asker: str) -> list[str]:
    """The agents that a turn with these calls waits for: `asker` first, if it is one, and no more than are looked at."""
    found = dict.fromkeys(
        end_of(call.to) for call in calls if isinstance(call, AskCall) and call.answer is None and call.n
    )
    first = [asker] if asker in found else []
    return [*first, *(agent for agent in islice(found, LOOKED_AT) if agent != asker)][:LOOKED_AT]


class Circle:
    """The search for the circle that an ask of `agent` to `to` is on.

    It runs beside the wait for the answer, which must not come late for it, and has all the time until the deadline but no more.
    """

    def __init__(self, home: Home, agent: str, to: str, deadline: float, timeout: float) -> None:
        self.way: list[str] = []
        """From the agent back to it; empty while none is known."""
        self._home = home
        self._agent = agent
        self._to = to
        self._deadline = deadline
        self._looked_at = {to}
        self._task: asyncio.Task[Any] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_at(deadline - min(LOOK_S, timeout / 4), self._begin)

    def _begin(self) -> None:
        self._task = self._home.start(self._look())

    def stop(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    async def _look(self) -> None:
        async with asyncio.TaskGroup() as group:  # one node that does not answer must not use up the time of the others
            await self._follow(group, [self._agent, self._to])

    async def _follow(self, group: asyncio.TaskGroup, way: list[str]) -> None:
        asked = requests.Remind(way[-1], self._agent, 0, self._home.reply_to, [])
        left_s = self._deadline - self._loop.time()
        try:
            waits_for = (await remind(self._home.log, self._home.wire, asked, left_s)).waits_for
        except CellError:
            return  # that agent says nothing: this is for people, and the ask has its deadline
        if self._agent in waits_for:
            self.way = self.way or [*way, self._agent]
        for other in waits_for:
            if self.way or len(self._looked_at) >= LOOKED_AT:
                return
            if other not in self._looked_at:
                self._looked_at.add(other)
                _ = group.create_task(self._follow(group, [*way, other]))


def timed_out(agent: str, out: Out, timeout: float, why: str, circle: Circle | None) -> bytes:
    """The outcome of an ask at its deadline; `why` is the end of a sentence."""
    if circle is not None and circle.way:
        why = f": they wait for each other ({' -> '.join(circle.way)})"
    to = end_of(out.to)
    error = AskTimeout(
        f"Agent {agent!r} had no answer from {to}.{out.handler} in {timeout:g} s{why}; the ask may still take effect.", agent=to
    )  # fmt: skip
    return encode_answer(Answer(None, error.to_wire()))
