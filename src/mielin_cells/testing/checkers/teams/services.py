"""The checker of services: a call of a service is answered once, by one agent (I39)."""

from __future__ import annotations

from mielin_cells.testing.checkers.checker import Checker
from mielin_cells.testing.checkers.teams.hands import fields_of


class ServedOnce(Checker):
    """I39: a call of a service takes effect in at most one agent, once; one that was answered has, in the agent that answered."""

    invariant = "I39"

    def at_rest(self) -> None:
        served, ran = dict[str, set[tuple[str, int]]](), dict[tuple[str, int], str]()
        for agent, fold in self.scene.folds.items():
            found = fields_of(fold, "served")
            for sender, n in found[0] if found is not None else ():
                if (sender, n) in ran:
                    self.fails(f"call {n} of {sender} to a service ran in {ran[sender, n]}, and in {agent}")
                ran[sender, n] = agent
                served.setdefault(agent, set()).add((sender, n))
        for call in self.scene.served:
            if (call.sender, call.n) not in served.get(call.by, set()):
                where = ran.get((call.sender, call.n), "nobody")
                self.fails(f"{call.by} answered call {call.n} of {call.sender} to a service; {where} has it")
        self.scene.counts["service calls that took effect"] += len(ran)
