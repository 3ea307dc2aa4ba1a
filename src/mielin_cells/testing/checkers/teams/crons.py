"""The checker of timers by cron: one firing for each time of the expression, and none for another (I41)."""

from __future__ import annotations

from collections import Counter

from mielin_cells.agents.times.cron import next_time
from mielin_cells.agents.values.wire import plain
from mielin_cells.log.commit import Commit, Timer
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.records import Undone
from mielin_cells.testing.checkers.checker import Checker, Step
from mielin_cells.testing.checkers.messages import commit_of
from mielin_cells.testing.checkers.scene import Scene
from mielin_cells.testing.checkers.teams.hands import fields_of

TICK = "tick"
"""The handler that timers by cron call."""
TIMES_MAX = 5000


class CronOnce(Checker):
    """I41: a timer by cron fires once for each time of its expression at most, not early, and goes back to no earlier time.

    One that makes up for all missed times fires for each.  At rest its handler has had each firing once.  An agent's ticks are
    those of its log.
    """

    invariant = "I41"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._set: dict[str, dict[str, Timer]] = {}
        self._gone_on: dict[tuple[str, str, int, int], float] = {}
        """By agent and who set it: when it is due next, once it has fired."""
        self._sent: dict[str, dict[int, str]] = {}
        """By agent and number of the message: the timer that sent it."""
        self._wrong = 0
        """By how much clocks have been ahead of each other in this run."""

    def record(self, step: Step) -> None:
        most, least = max([0, *step.clocks.values()]), min([0, *step.clocks.values()])
        self._wrong = max(self._wrong, most - least)
        timers = self._set.setdefault(step.agent, {})
        if isinstance(step.record, Undone):
            timers.clear()
            for timer in step.record.timers:
                self._set_again(step, timers, timer)
            return
        commit = commit_of(step)
        if commit is None:
            return
        for name, count in self._count(step.agent, commit).items():
            after = next((one for one in commit.timers if one.id == name), None)
            if after is None and name not in commit.gone:
                self.fails(f"{step.what} fires timer {name!r}, and does not say when it is due next")
            self._fired(step, timers.get(name), after, count)
        for timer in commit.timers:
            self._set_again(step, timers, timer)
        for name in commit.gone:
            timers.pop(name, None)

    def _count(self, agent: str, commit: Commit) -> Counter[str]:
        """The messages of timers that the commit sends, by timer."""
        count, sent = Counter[str](), self._sent.setdefault(agent, {})
        for out in commit.outs:
            if out.handler == TICK and out.to == agent and not out.sender:
                arguments = plain(out.args)
                if "timer" in arguments:
                    count[arguments["timer"]] += 1
                    sent[out.n] = arguments["timer"]
        return count

    def _set_again(self, step: Step, timers: dict[str, Timer], timer: Timer) -> None:
        if not timer.cron:
            return
        if next_time(timer.cron, timer.zone, timer.due - 0.5) != timer.due:
            self.fails(f"{step.what} has timer {timer.id!r} due at {timer.due}, which is no time of {timer.cron!r}")
        place = step.agent, timer.sender, timer.input, timer.k
        if (
            timer.due < self._gone_on.get(place, 0.0) - self._wrong
        ):  # set again where the clock is right, it is due no later than now
            self.fails(
                f"{step.what} takes timer {timer.id!r} back to {timer.due}; it has fired for all times before {self._gone_on[place]}"
            )
        timers[timer.id] = timer

    def _fired(self, step: Step, before: Timer | None, after: Timer | None, count: int) -> None:
        if before is None or not before.cron:
            return  # it was set in the same commit
        now = self.scene.wall() + self._wrong
        if before.due > now + 1e-6:
            self.fails(f"{step.what} fires timer {before.id!r} {before.due - now:.3f} s early")
        place = step.agent, before.sender, before.input, before.k
        goes_on = after is not None and (step.agent, after.sender, after.input, after.k) == place
        if after is not None and goes_on:
            self._gone_on[place] = max(self._gone_on.get(place, 0.0), after.due)
        elif after is not None:
            return  # it was set anew
        until = after.due if after is not None else now
        times = _count_times(before, until)
        if count > times:
            self.fails(f"{step.what} fires timer {before.id!r} {count} times, and {times} times have passed")
        if goes_on and before.catch_up == "all" and count < times:
            self.fails(f"{step.what} fires timer {before.id!r} {count} times, and {times} times have passed")

    def behind(self) -> str:
        """What has not come yet; "" if everything has."""
        for agent, sent in self._sent.items():
            fold = self.scene.folds.get(agent)
            found = fields_of(fold, "firings") if fold is not None and fold.phase is not Phase.TERMINATED else None
            if found is not None and sum(found[0].values()) < len(sent):
                return f"{agent} has had {found[0]} of {len(sent)} messages of timers"
        return ""

    def at_rest(self) -> None:
        for agent, sent in self._sent.items():
            fold = self.scene.folds.get(agent)
            found = fields_of(fold, "firings") if fold is not None and fold.phase is not Phase.TERMINATED else None
            if found is not None and Counter(found[0]) != Counter(sent.values()):
                self.fails(f"{agent} has had {found[0]} messages of timers; its log has {dict(Counter(sent.values()))}")
            self.scene.counts["fired by cron"] += len(sent)


def _count_times(timer: Timer, until: float) -> int:
    """Times of the expression from the one that is due up to `until`, without that."""
    count, moment = 0, timer.due
    while moment < until and count < TIMES_MAX:
        count, moment = count + 1, next_time(timer.cron, timer.zone, moment)
    return count
