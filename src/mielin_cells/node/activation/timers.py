"""An agent's timers on its owner: when one is due, its message goes into the agent's inbox in one commit with the timer's end."""

from __future__ import annotations

import asyncio
import heapq
import logging
import shlex
from collections.abc import Mapping

import msgspec

from mielin_cells.agents.times.cron import newest_times, next_time
from mielin_cells.errors import CronInvalid, UsageError
from mielin_cells.log.commit import Fired, Out, Timer
from mielin_cells.log.message import Terms
from mielin_cells.node.activation.calls.resolves import desk_of
from mielin_cells.node.activation.core import Core
from mielin_cells.settings import CATCH_UP_MAX, TIMERS_BYTES_MAX

logger = logging.getLogger("mielin_cells.timers")

BURST = 100
"""Messages sent before the loop gets its turn: `catch_up="all"` may have many."""


SMALL_BYTES = 256
"""Arguments up to this size are not counted: the largest number of timers with them fits the limit."""


def check_room(agent: str, timers: dict[str, Timer], changes: dict[str, Timer | None], args: bytes) -> None:
    """Raises `UsageError` if the timers' arguments would take too much room: they are in each snapshot and each move."""
    if len(args) <= SMALL_BYTES:
        return
    after = {**timers, **changes}
    if sum(len(timer.args) for timer in after.values() if timer is not None) + len(args) > TIMERS_BYTES_MAX:
        raise UsageError(
            f"The timers of agent {agent!r} have {TIMERS_BYTES_MAX:,} bytes of arguments, which is the limit; keep the data in "
            "the agent's state, and give the timer a key to it."
        )


EARLY_S = 0.001
"""Less than this is the rounding of two clocks."""

ZONE_S = 3600.0
"""A node that does not know a timer's time zone looks again after this."""

DAY_S = 86400.0
CATCH_UP_S = 7 * DAY_S
"""What is older is first counted back from now, since there may be more than `CATCH_UP_MAX` times."""

STALE_MAX = 64
"""Entries of timers that are gone or due at another time, beyond as many as there are timers."""

NO_HEAP: list[tuple[float, str]] = []
NO_DUE: dict[str, float] = {}
"""Shared by agents that have no timer.  Both stay empty."""


class Timers:
    """The timers of one agent.

    They run by the loop's clock, which does not jump; the wall clock counts only when the agent comes here.
    """

    __slots__ = ("_core", "_due", "_handle", "_heap", "_logged")

    def __init__(self, core: Core) -> None:
        self._core = core
        self._heap = NO_HEAP
        """Due by the loop's clock; an entry whose timer is gone or due at another time is passed over."""
        self._due = NO_DUE
        self._handle: asyncio.TimerHandle | None = None
        self._logged: set[str] | None = None
        """Timers of which it was logged why they send nothing."""

    @property
    def dues(self) -> dict[str, float]:
        """By timer, when it is due by the loop's clock."""
        return self._due

    def next_due(self) -> float | None:
        """When the first timer is due, by the loop's clock."""
        return min(self._due.values()) if self._due else None

    def open(self, dues: Mapping[str, float] = NO_DUE) -> None:
        """Waits for the agent's timers.  `dues`: of timers that this process knows already, when they are due by the loop's clock."""
        now, wall = asyncio.get_running_loop().time(), self._core.home.wall()
        ledger, batch = self._core.fold.ledger, self._core.batch
        for timer in list(ledger.timers.values()):
            if timer.id in dues:
                self._at(timer.id, dues[timer.id])
                continue
            if timer.cron:
                timer = self._cron_as_of(timer, wall)
            elif timer.due - wall > timer.wait:  # a clock was wrong: here, or where it was set
                timer = msgspec.structs.replace(timer, due=wall + timer.wait)
                ledger.timers[timer.id] = batch.timers[timer.id] = timer
                batch.touched = True
            self._at(timer.id, now + (timer.due - wall))
        self.kick()

    def close(self) -> None:
        if self._core.desk is not None:
            self._core.desk.close()
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None

    def take(self, changes: dict[str, Timer | None], seconds: dict[str, float]) -> None:
        """Takes what a turn has set and cancelled (None).  `seconds` are those until each is due, by the loop's clock."""
        now, ledger, batch = asyncio.get_running_loop().time(), self._core.fold.ledger, self._core.batch
        for name, timer in changes.items():
            batch.timers[name] = timer
            if timer is None:
                ledger.timers.pop(name, None)
                self._due.pop(name, None)
            else:
                ledger.timers[name] = timer
                self._at(name, now + seconds[name])
        batch.touched = True
        self.kick()

    def _at(self, name: str, due: float) -> None:
        if self._due is NO_DUE:
            self._heap, self._due = [], {}
        self._due[name] = due
        heapq.heappush(self._heap, (due, name))
        if len(self._heap) > 2 * len(self._due) + STALE_MAX:  # an agent may put a timer off with every message
            self._heap = [(one, other) for other, one in self._due.items()]
            heapq.heapify(self._heap)

    def kick(self) -> None:
        """Waits for the next timer that is due.

        No timer fires while the agent may not run, nor before all messages that an undo took back are taken again: one of them may
        have cancelled the timer.  The same holds of deadlines of waits.
        """
        core = self._core
        if core.desk is not None or core.fold.ledger.waits is not None:
            desk_of(core).kick()
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._heap and core.is_open and core.fold.may_run and not core.fold.ledger.replays:
            self._handle = asyncio.get_running_loop().call_at(self._heap[0][0], self._due_now)

    def _due_now(self) -> None:
        self._handle = None
        try:
            self._send()
        except Exception as error:  # of whatever kind: else no timer of this agent would fire any more
            logger.exception("agent %s: its timers failed", self._core.fold.agent)
            self._core.broke(error)

    def _send(self) -> None:
        core, now, sent = self._core, asyncio.get_running_loop().time(), 0
        if not core.is_open or not core.may_send or core.lost is not None:
            return  # `kick` comes when it may
        while self._heap and self._heap[0][0] <= now and sent < BURST:
            due, name = heapq.heappop(self._heap)
            if self._due.get(name) == due:
                self._fire(core.fold.ledger.timers[name], due, now)
                sent += 1
        core.commit_soon()
        self.kick()

    def _fire(self, timer: Timer, due: float, now: float) -> None:
        core, wall = self._core, self._core.home.wall()
        ledger, batch = core.fold.ledger, core.batch
        if timer.cron and timer.due > wall + EARLY_S:  # the wall clock was put back: it is not time yet
            self._at(timer.id, now + (timer.due - wall))
            return
        if timer.repeats:
            try:
                later, has_passed = _next(timer, now - due, wall)
            except CronInvalid as error:
                self._at(timer.id, now + ZONE_S)
                self._log_once(timer, f"has no next time that is known here: {error.message}")
                return
            self._at(timer.id, now + (later.due - wall) if timer.cron else due + (later.due - timer.due))
            if timer.handler not in core.spec.handlers:
                self._log_unknown(timer)
                return
            ledger.timers[timer.id] = batch.timers[timer.id] = later
            batch.touched = True
            if timer.catch_up == "none" and has_passed:
                return
        else:
            batch.touched = True
            del ledger.timers[timer.id], self._due[timer.id]
            batch.timers[timer.id] = None
            batch.fired.append(Fired(timer.id, timer.sender, timer.input, timer.k))
        agent = core.fold.agent
        out = Out(
            agent, core.spec.name, ledger.next_number(agent), timer.handler, timer.args, False, "", 0, 0,
            terms=Terms.of_trace(timer.trace),
        )  # fmt: skip
        ledger.send(out)
        batch.outs.append(out)

    def _cron_as_of(self, timer: Timer, wall: float) -> Timer:
        """A timer that comes here: due again within what one wait and a day may be, if a clock was years ahead where it was set."""
        if timer.due - wall <= timer.wait + DAY_S:
            return timer
        try:
            due = next_time(timer.cron, timer.zone, wall)
        except CronInvalid as error:
            self._log_once(timer, f"has no next time that is known here: {error.message}")
            return timer
        ledger, batch = self._core.fold.ledger, self._core.batch
        timer = msgspec.structs.replace(timer, due=due, wait=due - wall)
        ledger.timers[timer.id] = batch.timers[timer.id] = timer
        batch.touched = True
        return timer

    def _log_unknown(self, timer: Timer) -> None:
        """The timer stays, for a node that has the handler or until an operator cancels it."""
        agent, cls = self._core.fold.agent, self._core.spec.name
        often = f"every {timer.every:g} s" if timer.every else f"by {timer.cron!r}"
        self._log_once(
            timer, f"is due {often}, and class {cls} has no handler {timer.handler!r} here: it sends nothing until it has; "
            f"`mielin cancel {shlex.quote(agent)} {shlex.quote(timer.id)}` removes it",
        )  # fmt: skip

    def _log_once(self, timer: Timer, what: str) -> None:
        if self._logged is None:
            self._logged = set()
        if timer.id not in self._logged:
            self._logged.add(timer.id)
            logger.warning("agent %s: timer %r %s", self._core.fold.agent, timer.id, what)


def _next(timer: Timer, late_s: float, wall: float) -> tuple[Timer, bool]:
    """The timer after it has fired, and whether its next time has passed as well; it is `late_s` late, by the loop's clock."""
    if timer.cron:
        due = next_time(timer.cron, timer.zone, timer.due)
        has_passed = due <= wall
        if has_passed and timer.catch_up != "all":
            due = next_time(timer.cron, timer.zone, wall)
        elif wall - due > CATCH_UP_S:
            due = max(due, newest_times(timer.cron, timer.zone, wall, CATCH_UP_MAX))
        return msgspec.structs.replace(timer, due=due, wait=max(0.0, due - wall)), has_passed
    passed = int(late_s / timer.every)
    steps = 1 + max(0, passed - CATCH_UP_MAX) if timer.catch_up == "all" else passed + 1
    return msgspec.structs.replace(timer, due=timer.due + steps * timer.every), passed > 0
