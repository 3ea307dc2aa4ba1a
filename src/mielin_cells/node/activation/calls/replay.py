"""The replay of an input after an undo: which of its messages, steps and timers stand (rule 17)."""

from __future__ import annotations

from collections import Counter

import msgspec

from mielin_cells.log.commit import (
    AskCall,
    Out,
    Place,
    ReplayCounts,
    ReplayInput,
    Sent,
    StepCall,
    Timer,
    body_of,
    path_of,
    place_of,
)


class Replay:
    """The replay of an input after an undo: decides which of its messages stand as they were sent (rule 17).

    If it corrects, messages that differ now are sent.
    """

    def __init__(self, again: ReplayInput, corrects: bool) -> None:
        self.again = again
        self._corrects = corrects
        self._sent: dict[Place, Sent] = {place_of(sent): sent for sent in again.sent}
        self._met: dict[Place, str] = {}
        """What became of each earlier message, by its place."""
        self.steps: dict[tuple[tuple[int, ...], str, int], StepCall] = {}
        """Finished steps, by branch and name, and how many of these went before them."""
        counts = Counter[tuple[tuple[int, ...], str]]()
        for step in again.steps:
            key = path_of(step), step.name
            self.steps[*key, counts[key]] = step
            counts[key] += 1

    def timer(self, timer: Timer) -> Timer | None:
        """The timer as it is set: due when it was, and no later than if it were set now; None if its message is in the inbox."""
        if timer.k not in self.again.timers:
            return timer
        earlier = self.again.timers[timer.k]
        return None if earlier is None else msgspec.structs.replace(timer, due=min(earlier.due, timer.due))

    def standing(self, out: Out, body: bytes) -> Sent | None:
        """The ask of a branch that stands for this one: the first to the receiver with this body that the run has not come to."""
        for place, sent in self._sent.items():
            if sent.ask and sent.to == out.to and sent.body == body and place not in self._met:
                self._met[place] = "same"
                return sent
        return None

    def gave_up(self, call: AskCall) -> bool:
        """True if the earlier run took effect without an outcome of this ask: the receiver may have forgotten or cancelled it."""
        sent = next((one for one in self.again.sent if one.ask and (one.to, one.n) == (call.to, call.n)), None)
        return self.again.taken and sent is not None and sent.answer is None

    def has_place(self, to: str, k: int) -> bool:
        return (to, True, k) in self._sent

    def known(self, out: Out) -> Sent | None:
        """The message that an earlier run sent in this place."""
        return self._sent.get(place_of(out))

    def is_same(self, out: Out) -> bool:
        """False if another message was sent in its place."""
        earlier = self.known(out)
        return earlier is None or earlier.body == body_of(out)

    def stands(self, out: Out) -> bool:
        """True if the message is not sent: the one that was sent in its place stands."""
        earlier = self.known(out)
        return earlier is not None and (not self._corrects or earlier.body == body_of(out))

    def corrected(self, out: Out) -> Out:
        """The message to send, with the number of the message that it replaces, if there is one."""
        earlier = self.known(out)
        return out if earlier is None else msgspec.structs.replace(out, corrects=earlier.n)

    def met(self, out: Out, n: int | None = None) -> None:
        """Notes that the run has come to a message; `n` is its number if it has one already."""
        earlier = self.known(out)
        if earlier is None:
            return
        if earlier.body == body_of(out):
            fate = "same"
        elif self._corrects if n is None else n != earlier.n:
            fate = "corrected"
        else:
            fate = "differing"
        self._met[place_of(out)] = fate

    def to_send(self, tells: list[Out]) -> list[Out]:
        """The tells of an ended run that are sent."""
        for out in tells:
            self.met(out)
        return [self.corrected(out) for out in tells if not self.stands(out)]

    def counts(self) -> ReplayCounts:
        """Counts what became of the messages, at the end of the run."""
        fates = list(self._met.values())
        return ReplayCounts(
            1, fates.count("same"), fates.count("differing"), fates.count("corrected"), len(self._sent) - len(self._met)
        )
