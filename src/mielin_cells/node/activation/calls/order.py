"""Calls that the branches of a turn make at the same time (rule T6).

One event at a time: an outcome reaches the handler when all before it have been given, and the turn stands still, which means that
none of its branches can go on.  The log holds the outcomes in the order in which they were given, so a run that goes on from the log
comes to the same calls.  A step's outcome is recorded before it is given.  An ask's may be given earlier; then no step begins until
it is recorded.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from mielin_cells.agents.context import turn as current_turn
from mielin_cells.errors import CellError, Fenced, NotInTurn
from mielin_cells.log.commit import TIMER, AskCall, Out, StepCall, TurnCall
from mielin_cells.log.records import Asked, Stepped
from mielin_cells.node.activation.calls.making import Making
from mielin_cells.node.activation.calls.pending import (
    CallingTurn,
    Key,
    Pending,
    PendingAsk,
    PendingStep,
    PendingTimer,
    PendingWait,
    key_of,
)
from mielin_cells.node.activation.calls.tasks import BranchTask, Timer

ROUNDS = 12
"""Passes of the loop without a step of a branch after which a turn stands still: a future that waits for futures that wait for futures
takes one for each."""

OUTS_MAX = 64
OUT_BYTES_MAX = 256 * 1024
"""Asks in one record."""


class Branches(Making):
    """The calls of one turn that has more than one branch, or a timer that runs while it calls."""

    def __init__(self, turn: CallingTurn, recorded: Sequence[TurnCall], timers: Iterable[Timer]) -> None:
        """`recorded`: what an earlier run has recorded from here on."""
        super().__init__(turn)
        self._recorded = recorded
        self._known: dict[Key, TurnCall] = {}
        self._came: set[Key] = set()
        self._is_behind = False
        """An outcome was given that is not recorded."""
        self._has_stepped = False
        self.tasks: list[BranchTask] = []
        self.has_calls = False
        for call in recorded:
            if call.branch is not None:
                self._known[key_of(call, call.branch)] = call
        turn.calls.extend(recorded)
        turn.skip_known()
        self._driver = self._core.home.start(self._run())
        for timer in timers:
            self.timer(timer)

    # ---- what branches do ------------------------------------------------------------------------------------

    async def outcome(self, pending: Pending) -> bytes:
        """The outcome of a call, once it is its turn."""
        self.has_calls = True
        self._came_to(pending)
        try:
            return await pending.future
        except asyncio.CancelledError:
            self._leave(pending)
            raise

    def timer(self, timer: Timer) -> None:
        if timer.cancelled():
            return
        pending = PendingTimer(timer)
        self._open[pending.key] = pending
        self._came.add(pending.key)
        timer.fired = lambda _: self._arrive(pending)
        timer.left = lambda: self._open.pop(pending.key, None)

    def started(self, task: BranchTask) -> None:
        self.tasks.append(task)

    def _came_to(self, pending: Pending) -> None:
        error: BaseException | None = self._error
        if error is not None:
            raise error
        known = self._known.get(pending.key)
        if known is not None and not _same(known, pending):
            raise self._fail(self._turn.otherwise(known, pending.label))
        self._open[pending.key] = pending
        self._came.add(pending.key)
        self.wake()

    def _leave(self, pending: Pending) -> None:
        """Its branch waits no longer.  A call that no record holds was not made; a recorded ask is sent all the same."""
        self._open.pop(pending.key, None)
        if pending.task is not None:
            _ = pending.task.cancel()
        if isinstance(pending, PendingStep) and pending.is_ready:
            self._step_ended(pending)
        elif isinstance(pending, PendingWait):
            self._waited()

    def close(self) -> None:
        """The handler has returned or failed: nothing more is given, and what still runs is cancelled."""
        self._is_over = True
        _ = self._driver.cancel()
        for pending in self._open.values():
            if isinstance(pending, PendingTimer):
                pending.timer.fired = None
            elif pending.task is not None:
                _ = pending.task.cancel()
        for task in self.tasks:
            task.add_done_callback(_retrieve)
            if self.has_calls:
                _ = task.cancel()
        if not self.has_calls:
            self._turn.calls.clear()  # timers alone need not be known again
            for pending in self._arrived:
                if isinstance(pending, PendingTimer):
                    pending.timer.fire()
        self._running, self._turn.in_step = 0, False
        if self._core.desk is not None:
            self._core.desk.turn_ended()

    # ---- the order of events ---------------------------------------------------------------------------------

    async def _run(self) -> None:
        current_turn.set(None)  # what runs here is none of the turn's branches
        try:
            await self._replay()
            while self._goes_on():
                await self._stand_still()
                if await self._advance():
                    continue
                self._waker = asyncio.get_running_loop().create_future()
                await self._waker
        except CellError as error:  # the store, the loss of the agent, or what does not fit a record
            if not isinstance(error, Fenced) and self._core.lost is None:
                self._turn.broken = error
            self._fail(error)

    def _goes_on(self) -> bool:
        return not self._is_over and self._error is None

    async def _stand_still(self) -> None:
        """Returns once none of the branches can go on."""
        quiet, turn = 0, self._turn
        while quiet < ROUNDS and not self._is_over:
            if turn.busy:  # with the store, perhaps: it says when it is not any more
                self._waker = asyncio.get_running_loop().create_future()
                await self._waker
            before = turn.steps
            await asyncio.sleep(0)
            quiet = quiet + 1 if turn.steps == before and not turn.busy else 0

    async def _replay(self) -> None:
        """Goes through what is recorded, in recorded order.  Until then no new call is recorded, sent or run."""
        made: defaultdict[int, list[TurnCall]] = defaultdict(list)
        outcomes: dict[int, TurnCall] = {}
        for call in self._recorded:
            place = call.branch
            if place is None:
                self._fail(self._turn.otherwise(call, "calls at the same time"))
                return
            if isinstance(call, AskCall):
                made[place.after].append(call)
            if place.given >= 0:
                outcomes[place.given] = call
        while self._goes_on():
            await self._stand_still()
            here = made.pop(self._given, [])
            following = outcomes.get(self._given)
            missing = [
                one for one in (*here, *((following,) if following else ()))
                if one.branch is not None and key_of(one, one.branch) not in self._came
            ]  # fmt: skip
            if missing and not self._is_over:
                self._fail(self._turn.otherwise(missing[0], "a state in which nothing goes on"))
                return
            if following is None or self._is_over:
                break
            self._given += 1
            key = key_of(following, following.branch) if following.branch is not None else None
            pending = self._open.pop(key, None) if key is not None else None
            if pending is not None:
                self._give(pending, following.answer or b"")
        self._has_stepped = any(isinstance(call, StepCall) and call.name != TIMER for call in self._recorded)
        for pending in self._open.values():
            known = self._known.get(pending.key)
            if isinstance(pending, PendingAsk) and isinstance(known, AskCall):
                pending.call = known
                self._await_answer(pending, known, is_sent=False)

    async def _advance(self) -> bool:
        """Does what can be done now.  False if nothing can be."""
        if not self._goes_on():
            return True
        if self._stops():
            self._turn.stopped = True
            _ = self._fail(self._turn.stop_error())
            return True
        is_blocked = False
        for pending in list(self._open.values()):
            if pending.is_begun or isinstance(pending, PendingTimer) or self._turn.cancels is not None:
                continue
            if isinstance(pending, PendingStep) and self._is_behind:
                is_blocked = True
                continue
            pending.is_begun = True
            self._begin(pending)
        ready = [pending for pending in self._open.values() if pending.is_ready]
        if ready or is_blocked:
            await self._record(ready)
            return True
        while self._arrived:
            pending = self._arrived.popleft()
            if self._open.pop(pending.key, None) is pending:
                self._note(pending)
                self._give(pending, pending.answer)
                if isinstance(pending, PendingWait):
                    self._waited()
                return True
        return False

    def _stops(self) -> bool:
        """True if the intake is being stopped, and the turn is between two steps."""
        waits = any(isinstance(one, (PendingStep, PendingWait)) for one in self._open.values())
        return self._core.is_stopping and not self._running and (waits or self._has_stepped)

    def _note(self, pending: Pending) -> None:
        """Notes an outcome that is given before it is recorded."""
        calls, given = self._turn.calls, self._given
        self._given, self._is_behind = given + 1, True
        if isinstance(pending, PendingAsk):
            call = pending.call
            if call is None or call.branch is None:  # refused before it was sent
                place = pending.place(given, is_given=True)
                calls.append(
                    AskCall(pending.out.to, 0, pending.out.handler, pending.body, pending.label, pending.answer, place)
                )
            else:
                place = msgspec.structs.replace(call.branch, given=given)
                calls[calls.index(call)] = msgspec.structs.replace(call, answer=pending.answer, branch=place)
        else:
            name = pending.key[2]
            calls.append(StepCall(name, pending.answer, branch=pending.place(given, is_given=True)))

    def _give(self, pending: Pending, answer: bytes) -> None:
        if isinstance(pending, PendingTimer):
            pending.timer.stop()
            asyncio.get_running_loop().call_soon(pending.timer.fire)
        elif not pending.future.done():
            pending.future.set_result(answer)

    # ---- records ---------------------------------------------------------------------------------------------

    async def _record(self, ready: list[Pending]) -> None:
        """Records asks and the outcomes of steps; then sends the asks, and gives the outcomes one after the other."""
        steps = [one for one in ready if isinstance(one, PendingStep)]
        asks, size = list[PendingAsk](), 0
        for one in ready:
            if isinstance(one, PendingAsk) and len(asks) < OUTS_MAX and (not asks or size < OUT_BYTES_MAX):
                asks.append(one)
                size += len(one.out.args)
        turn = self._turn
        for step in steps:
            turn.check_size(StepCall(step.key[2], step.answer))
        turn._recording = recording = self._core.home.start(self._append(asks, steps))
        await asyncio.shield(recording)
        for ask in asks:
            ask.is_ready = False
            if ask.call is not None and self._open.get(ask.key) is ask:
                self._await_answer(ask, ask.call, is_sent=True)
        for step in steps:
            self._has_stepped = True
            self._step_ended(step)
            if self._open.pop(step.key, None) is step:
                self._give(step, step.answer)
            await self._stand_still()

    async def _append(self, asks: list[PendingAsk], steps: list[PendingStep]) -> None:
        core, turn = self._core, self._turn
        await core.flush()
        outs = list[Out]()

        def compose(head: dict[str, Any]) -> Asked | Stepped:
            if self._is_over:
                raise NotInTurn(f"The turn of agent {core.fold.agent!r} has ended.")
            if not core.is_open:
                raise Fenced(f"Agent {core.fold.agent!r} is not run by this process any more.", agent=core.fold.agent)
            here = self._given
            for step in steps:
                turn.calls.append(StepCall(step.key[2], step.answer, branch=step.place(self._given, is_given=True)))
                self._given += 1
            for ask in asks:
                k = turn.free_place(ask.out.to)
                out = msgspec.structs.replace(ask.out, n=core.fold.ledger.next_number(ask.out.to), k=k)
                ask.call = AskCall(out.to, out.n, out.handler, ask.body, ask.label, None, ask.place(here, k))
                turn.calls.append(ask.call)
                turn.met(out)
                core.fold.ledger.send(out)
                outs.append(out)
            at, made = turn.news()
            self._is_behind = False
            record = {**head, "sender": turn.sender, "input": turn.n, "at": at, "calls": made}
            return Asked(**record, out=outs[0], more=outs[1:]) if outs else Stepped(**record)

        await core.append(compose)
        for out in outs:  # here, so that a number that is in the log is not a hole, whatever becomes of the turn
            _ = core.expect(out.to, out.n)
            core.outbox.push(out)
            if self._is_over:
                core.forget(out.to, out.n)


def _same(known: TurnCall, pending: Pending) -> bool:
    if isinstance(known, AskCall):
        return known.body == pending.body
    body = known.branch.body if known.branch is not None else b""
    return not body or not pending.body or body == pending.body


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Its turn has ended: nobody is to hear of the error."""
    if not task.cancelled():
        _ = task.exception()
