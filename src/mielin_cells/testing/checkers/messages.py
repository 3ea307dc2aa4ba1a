"""Checkers of what messages do: I4, I5, I6, I7, I17, I22."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from mielin_cells.log.commit import Commit, Out, Timer
from mielin_cells.log.inboxes.lines import end_of, line, priority_of
from mielin_cells.log.message import Replies, decode_answer, is_client
from mielin_cells.log.records import Asked, Committed, HandedOff, Undone
from mielin_cells.log.topics.names import receiver_of
from mielin_cells.testing.checkers.checker import Checker, Letter, Posted, Step
from mielin_cells.testing.checkers.history import Author
from mielin_cells.testing.checkers.scene import Call, Scene

UNTAKEN = frozenset({"AnswerExpired", "SessionExpired", "AgentInError", "EpochRegression"})
"""Errors on the wire that no log holds: answers that were not kept, and asks that have not taken effect and may never."""


def commit_of(step: Step) -> Commit | None:
    """The commit in a record: a `Committed`, or a handover that holds the last commit."""
    record = step.record
    if isinstance(record, Committed):
        return record.commit
    return record.seal if isinstance(record, HandedOff) else None


class TakenOnce(Checker):
    """I4: each input takes effect exactly once: of one agent in order of number without a gap, of one client never twice.

    The cursor goes back only by an undo, which gives back exactly what was taken after the record that it goes to.  At rest each
    agent of the workload has heard each call once, and none that nobody made.
    """

    invariant = "I4"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._taken: dict[str, dict[tuple[str, int], int]] = {}
        """By agent: inputs in order, and the record that they were taken by."""
        self._marks: dict[tuple[str, str], int] = {}
        self._cursors: dict[str, list[tuple[int, int]]] = {}

    def record(self, step: Step) -> None:
        if isinstance(step.record, Undone):
            self._undone(step.agent, step.record.to)
            return
        commit = commit_of(step)
        if commit is None:
            return
        cursors = self._cursors.setdefault(step.agent, [(0, 0)])
        if commit.cursor < cursors[-1][1]:
            self.fails(f"{step.what} sets the cursor back from {cursors[-1][1]} to {commit.cursor}")
        cursors.append((step.seq, commit.cursor))
        taken = self._taken.setdefault(step.agent, {})
        for one in commit.inputs:
            key = one.sender, one.n
            if key in taken:
                self.fails(f"{step.what} takes number {one.n} of {one.sender} again; it was taken at {taken[key]}")
            taken[key] = step.seq
            if is_client(one.sender):
                continue
            mark = self._marks.get((step.agent, one.sender), 0)
            if one.n != mark + 1:
                self.fails(f"{step.what} takes number {one.n} of {one.sender} after {mark}")
            self._marks[step.agent, one.sender] = one.n

    def _undone(self, agent: str, to: int) -> None:
        taken = self._taken.get(agent, {})
        for sender, n in [key for key, seq in taken.items() if seq > to]:
            del taken[sender, n]
            if (agent, sender) in self._marks:
                self._marks[agent, sender] = min(self._marks[agent, sender], n - 1)
        cursors = self._cursors.setdefault(agent, [(0, 0)])
        while cursors[-1][0] > to:
            cursors.pop()

    def at_rest(self) -> None:
        made = {(call.agent, call.sender, call.n) for call in self.scene.calls}
        for agent, state in self.scene.observed.items():
            counted = Counter(state.heard)
            twice = [call for call, count in counted.items() if count > 1]
            if twice:
                self.fails(f"{agent} took {twice} more than once")
            for sender, n in counted:
                if (agent, sender, n) not in made:
                    self.fails(f"{agent} took ({sender}, {n}), which nobody sent")


class SentOnce(Checker):
    """I5: an output is numbered once, is in the log before it is in an inbox, and none is lost.

    Numbers of one agent to another follow one another.  What an agent has in an inbox is in its log, with this number and
    these arguments; what a log calls released is in the receiver's inbox.  At rest each transfer of the workload has arrived, once
    and in order.
    """

    invariant = "I5"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._outs: dict[tuple[str, str], list[bytes]] = {}
        self._stored: dict[tuple[str, str], int] = {}

    def record(self, step: Step) -> None:
        if isinstance(step.record, Asked):
            for out in step.record.outs:
                self._out(step, out)
        commit = commit_of(step)
        if commit is None:
            return
        for out in commit.outs:
            self._out(step, out)
        for to, n in commit.released.items():
            if n > self._stored.get((step.agent, to), 0):
                self.fails(f"{step.what} calls number {n} to {to} released; it is not stored there")

    def _out(self, step: Step, out: Out) -> None:
        outs = self._outs.setdefault((step.agent, out.to), [])
        if out.n != len(outs) + 1:
            self.fails(f"{step.what} gives number {out.n} to output {len(outs) + 1} to {out.to}")
        outs.append(out.args)

    def mail(self, letter: Letter) -> None:
        mail = letter.mail
        if is_client(mail.sender):
            return
        pair = end_of(mail.sender), line(mail.to, priority_of(mail.sender))
        outs = self._outs.get(pair, [])
        for message in mail.messages:
            if message.n > len(outs) or outs[message.n - 1] != message.args:
                self.fails(f"{letter.author.label} sent number {message.n} of {pair}, which is not in the log")
            if message.n == self._stored.get(pair, 0) + 1:
                self._stored[pair] = message.n

    def post(self, posted: Posted) -> None:
        """As mail: of a topic, too, only what the log of its publisher holds is stored, in order."""
        post = posted.post
        if is_client(post.publisher):
            return
        pair = post.publisher, receiver_of(post.topic)
        outs = self._outs.get(pair, [])
        if outs[post.n - 1 : post.last] != [value.data for value in post.values]:
            self.fails(
                f"{posted.author.label} published number {post.n} to {post.last} of {pair}, which is not in the log"
            )
        if post.n == self._stored.get(pair, 0) + 1:
            self._stored[pair] = post.last

    def at_rest(self) -> None:
        for agent, state in self.scene.observed.items():
            for to, count in state.sent.items():
                got = self.scene.observed[to].got.get(agent, [])
                if got != list(range(1, count + 1)):
                    self.fails(f"{agent} sent {count} transfers to {to}, which got {got}")


def list_taken(replies: Replies) -> Iterator[tuple[int, bytes]]:
    """The answers to calls that the agent has taken, by number."""
    for n, answer in replies.answers.items():
        error = decode_answer(answer).error
        if error is None or error[0] not in UNTAKEN:
            yield n, answer


class AcknowledgedIsKept(Checker):
    """I6: what was acknowledged is in the log, and stays.

    An answer on the wire is the one that the log holds, and not before it holds it.  At rest the state of each agent of the
    workload includes each call that was acknowledged, through every crash in between.
    """

    invariant = "I6"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._answers: dict[tuple[str, str, int], bytes | None] = {}

    def record(self, step: Step) -> None:
        commit = commit_of(step)
        if commit is not None:
            for one in commit.inputs:
                self._answers.setdefault((step.agent, one.sender, one.n), one.answer)

    def answers(self, replies: Replies, author: Author) -> None:
        for n, answer in list_taken(replies):
            if self._answers.get((replies.agent, replies.sender, n)) != answer:
                self.fails(
                    f"{author.label} answers number {n} of {replies.sender} to {replies.agent}, but this answer is not in the log"
                )

    def at_rest(self) -> None:
        heard = {agent: set(state.heard) for agent, state in self.scene.observed.items()}
        for call in self.scene.calls:
            if call.acked and call.agent in heard and (call.sender, call.n) not in heard[call.agent]:
                self.fails(f"{call.agent} has lost ({call.sender}, {call.n}), which was acknowledged")


class InOrder(Checker):
    """I7: calls of one client take effect in the order they were sent, across every move, and have one answer.

    The answer that a caller had is the place that its call has at rest; of one number nobody ever gives two answers.
    """

    invariant = "I7"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._given: dict[tuple[str, str, int], bytes] = {}

    def answers(self, replies: Replies, author: Author) -> None:
        for n, answer in list_taken(replies):
            if self._given.setdefault((replies.agent, replies.sender, n), answer) != answer:
                self.fails(f"{author.label} answers number {n} of {replies.sender} to {replies.agent} in two ways")

    def at_rest(self) -> None:
        made: dict[str, list[Call]] = {}
        for call in self.scene.calls:
            made.setdefault(call.agent, []).append(call)
        for agent, state in self.scene.observed.items():
            places = {call: place for place, call in enumerate(state.heard, 1)}
            for call in made.get(agent, []):
                key = call.sender, call.n
                if call.answer is not None and call.answer != places.get(key):
                    self.fails(f"{agent} answered {key} with place {call.answer}; it is at {places.get(key)}")
            for sender in {sender for sender, _ in state.heard}:
                order = [n for who, n in state.heard if who == sender]
                if order != sorted(order):
                    self.fails(f"{agent} took the calls of {sender} in the order {order}")


class TimersOnce(Checker):
    """I17: a timer fires at most once for each time it is due, not early, wherever its agent is by then; and at rest it has.

    Early is by true time, minus what clocks were set wrong in this run: a node goes by its own.
    """

    invariant = "I17"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._set: dict[str, dict[str, tuple[Timer, float]]] = {}
        """By agent: its timers, and by how much the clock that they were set by was wrong."""
        self._fired: set[tuple[str, str, int, int]] = set()
        self._most = self._least = 0
        """By how much clocks have been wrong in this run."""

    def record(self, step: Step) -> None:
        record = step.record
        timers = self._set.setdefault(step.agent, {})
        self._most, self._least = max([self._most, *step.clocks.values()]), min([self._least, *step.clocks.values()])
        if isinstance(record, Undone):
            self._set[step.agent] = {t.id: (t, timers[t.id][1] if t.id in timers else 0.0) for t in record.timers}
            return
        commit = commit_of(step)
        if commit is None:
            return
        for timer in commit.timers:
            before = timers.get(timer.id)
            if before is not None and timer.every and _goes_on(before[0], timer):
                self._is_due(step, *before)
            timers[timer.id] = timer, float(step.clocks.get(step.author.name, 0))
        for fired in commit.fired:
            pending = timers.get(fired.id)
            if pending is not None:
                self._is_due(step, *pending)
            elif fired.sender and all((one.sender, one.n) != (fired.sender, fired.input) for one in commit.inputs):
                self.fails(f"{step.what} fires timer {fired.id!r}, which is not set")
            place = step.agent, fired.sender, fired.input, fired.k
            if fired.sender and place in self._fired:
                self.fails(f"{step.what} fires timer {fired.id!r} of ({fired.sender}, {fired.input}) again")
            self._fired.add(place)
        for name in commit.gone:
            timers.pop(name, None)

    def _is_due(self, step: Step, timer: Timer, wrong: float) -> None:
        now = self.scene.wall() + self._most - self._least
        if now < timer.due - wrong - 1e-6:
            self.fails(f"{step.what} fires timer {timer.id!r} {timer.due - wrong - now:.3f} s early")

    def at_rest(self) -> None:
        waiting = self.scene.waiting
        for agent, state in self.scene.observed.items():
            missing, extra = Counter(state.alarms) - Counter(state.rung), Counter(state.rung) - Counter(state.alarms)
            if extra or missing.total() > waiting[agent]:
                self.fails(f"{agent} has set {sorted(state.alarms)}; there came {sorted(state.rung)}")


def _goes_on(before: Timer, after: Timer) -> bool:
    """True if a repeated timer has gone on to its next time; false if it was set anew."""
    same = (before.sender, before.input, before.k) == (after.sender, after.input, after.k)
    return same and after.due > before.due


class Conserved(Checker):
    """I22: agents move tokens among themselves; when nothing is on its way there are as many as at the beginning."""

    invariant = "I22"

    def at_rest(self) -> None:
        total = sum(state.tokens for state in self.scene.observed.values())
        if self.scene.observed and total != self.scene.tokens:
            self.fails(f"there are {total} tokens; there were {self.scene.tokens}")
