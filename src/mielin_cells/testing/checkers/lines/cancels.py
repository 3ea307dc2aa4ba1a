"""Cancels in the simulator's mix: turns that last and are given up, and the checker of what becomes of them (I37)."""

from __future__ import annotations

import asyncio
import contextlib

import mielin_cells as cells
from mielin_cells.log.commit import AskCall, Commit, Input
from mielin_cells.log.inboxes.cancels import CANCEL, CANCELLED, decode_cancel
from mielin_cells.log.inboxes.lines import Priority, line
from mielin_cells.log.message import decode_answer, is_client
from mielin_cells.log.records import Asked, Stepped, Undone
from mielin_cells.testing.checkers.checker import Checker, Letter, Step
from mielin_cells.testing.checkers.messages import commit_of
from mielin_cells.testing.checkers.scene import Scene
from mielin_cells.testing.checkers.waits.outcomes import Applicant

LINGER_S = 4.0
"""An account's patience with a turn that lasts: two may wait for each other."""


class Lingering(Applicant, name="SimLingering"):
    """What an account does that may be cancelled."""

    lingered: int = 0
    wronged: list[str] = []  # noqa: RUF012 - a mutable default is copied for each agent

    def _heard(self, sender: str, n: int) -> int:
        raise NotImplementedError

    @cells.handler
    async def dawdle(self, sender: str, n: int, to: str, priority: Priority, seconds: float, hurry: bool) -> int:
        """Asks `to` to do nothing for a while.  With `hurry` it gives that up soon, and goes on."""
        place = self._heard(sender, n)
        linger = cells.this().cluster.get(type(self), to).linger.options(priority=priority, timeout=LINGER_S)
        try:
            with contextlib.suppress(cells.AskTimeout, TimeoutError):
                if hurry:
                    async with asyncio.timeout(seconds / 4):
                        await linger(seconds)
                else:
                    await linger(seconds)
        except cells.errors.Cancelled as error:  # by whom? this turn goes on
            self.wronged.append(f"({sender}, {n}): {error}")
        return place

    @cells.handler
    async def linger(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.lingered += 1


class CancelsHold(Checker):
    """I37: a message is cancelled only if somebody asked for that, and then it has no effect and its asker gets `Cancelled`.

    A cancel that was taken before its message is kept until that comes, and then the message does not run.  The commit that takes a
    cancelled message sends cancels for all asks of it that the log shows without an outcome.  No turn that goes on is told that its
    ask is cancelled.  At rest no cancel of an agent's message is left over.
    """

    invariant = "I37"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._asked_for: set[tuple[str, str, int]] = set()
        self._kept: dict[str, set[tuple[str, int]]] = {}
        self._asks: dict[tuple[str, str, int], dict[tuple[str, int], bool]] = {}
        """By agent and input: receiver and number of each ask, and whether the log has its outcome."""
        self._undone: set[str] = set()

    def mail(self, letter: Letter) -> None:
        for message in letter.mail.messages:
            if message.handler == CANCEL:
                cancel = decode_cancel(message.args)
                self._asked_for.add((letter.mail.to, cancel.sender, cancel.n))

    def record(self, step: Step) -> None:
        record = step.record
        if isinstance(record, Undone):  # from here on the answers decide how messages are taken again
            self._undone.add(step.agent)
            self._kept.pop(step.agent, None)
        elif isinstance(record, (Asked, Stepped)):
            asks = self._asks.setdefault((step.agent, record.sender, record.input), {})
            for call in record.calls:
                if isinstance(call, AskCall) and call.n:
                    asks[call.to, call.n] = call.answer is not None
        elif (commit := commit_of(step)) is not None:
            for one in commit.inputs:
                self._took(step, commit, one)
            self._kept.setdefault(step.agent, set()).update(commit.cancels)

    def _took(self, step: Step, commit: Commit, one: Input) -> None:
        kept, key, what = self._kept.get(step.agent, set()), (one.sender, one.n), f"number {one.n} of {one.sender!r}"
        asks = self._asks.pop((step.agent, *key), {})
        if one.unrun != CANCELLED:
            if key in kept:
                self.fails(f"{step.what} runs {what}, of which it had taken a cancel before")
            return
        kept.discard(key)
        if (step.agent, *key) not in self._asked_for:
            self.fails(f"{step.what} cancels {what}, and nobody asked for that")
        if one.answer is not None and (decode_answer(one.answer).error or ("",))[0] != "Cancelled":
            self.fails(f"{step.what} cancels {what}, and answers something else than Cancelled")
        if step.agent in self._undone:
            return
        sent = {(c.sender, c.n) for c in (decode_cancel(out.args) for out in commit.outs if out.handler == CANCEL)}
        answered = {
            (call.to, call.n) for end in commit.ended for call in end.calls if isinstance(call, AskCall) and call.answer
        }
        for (to, n), has_outcome in asks.items():
            _, mark, priority = to.partition("\x03")
            if not has_outcome and (to, n) not in answered and (line(step.agent, priority or "normal"), n) not in sent:
                self.fails(f"{step.what} cancels {what}, and its ask {n} of {to + mark!r} goes on")

    def at_rest(self) -> None:
        for agent, state in self.scene.observed.items():
            if agent in self._undone:
                continue  # a turn ran again, and finds cancelled what it had given up
            if state.wronged:
                self.fails(f"asks of {agent} were cancelled while their turns went on: {state.wronged}")
        for agent, fold in self.scene.folds.items():
            left = [
                sender for sender in (fold.ledger.cancels.kept if fold.ledger.cancels else ()) if not is_client(sender)
            ]
            if left and agent in self.scene.observed:
                self.fails(f"{agent} keeps cancels of messages from {left}, which have all been taken")
