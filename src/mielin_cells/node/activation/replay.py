"""A turn that is run again after an undo: which of its messages stand as they were sent (rule 17)."""

from __future__ import annotations

import msgspec

from mielin_cells.log.records import Again, Out, Place, Replayed, Sent, StepMade, Timer, body_of, place_of


class Rerun:
    """What the input did before, and what this run does with it.  `corrects`: what now differs is sent."""

    def __init__(self, again: Again, corrects: bool) -> None:
        self.again = again
        self._corrects = corrects
        self._sent: dict[Place, Sent] = {place_of(sent): sent for sent in again.sent}
        self._met: dict[Place, str] = {}
        """What became of each message that was there before."""
        self.steps: dict[tuple[str, int], StepMade] = {}
        """Finished steps, by name and how many of the name went before them."""
        for step in again.steps:
            index = sum(name == step.name for name, _ in self.steps)
            self.steps[step.name, index] = step

    def timer(self, timer: Timer) -> Timer | None:
        """The timer as it is set: due when it was, and no later than if it were set now; None if its message is in the inbox."""
        if timer.k not in self.again.timers:
            return timer
        known = self.again.timers[timer.k]
        return None if known is None else msgspec.structs.replace(timer, due=min(known.due, timer.due))

    def known(self, out: Out) -> Sent | None:
        """What was sent in this place before."""
        return self._sent.get(place_of(out))

    def stands(self, out: Out) -> bool:
        """True if the message is not sent: the one that was sent in its place stands."""
        known = self.known(out)
        return known is not None and (not self._corrects or known.body == body_of(out))

    def corrected(self, out: Out) -> Out:
        """The message as it is sent: it names the one that it stands in for, if there is one."""
        known = self.known(out)
        return out if known is None else msgspec.structs.replace(out, corrects=known.n)

    def met(self, out: Out, n: int | None = None) -> None:
        """The run has come to a message; `n` is its number if it has one by now."""
        known = self.known(out)
        if known is None:
            return
        if known.body == body_of(out):
            fate = "same"
        elif self._corrects if n is None else n != known.n:
            fate = "corrected"
        else:
            fate = "differing"
        self._met[place_of(out)] = fate

    def to_send(self, tells: list[Out]) -> list[Out]:
        """Of the tells of a run that has ended, those that are sent."""
        for out in tells:
            self.met(out)
        return [self.corrected(out) for out in tells if not self.stands(out)]

    def counts(self) -> Replayed:
        """Of the run, at its end."""
        fates = list(self._met.values())
        return Replayed(
            1, fates.count("same"), fates.count("differing"), fates.count("corrected"), len(self._sent) - len(self._met)
        )
