"""The checker of services: a call of a service is answered once, by one agent (I39)."""

from __future__ import annotations

from mielin_cells.testing.checkers.checker import Checker, Letter
from mielin_cells.testing.checkers.scene import Scene, Served
from mielin_cells.testing.checkers.teams.given_back import GivenBack
from mielin_cells.testing.checkers.teams.hands import fields_of


class ServedOnce(Checker):
    """I39: a call of a service takes effect in at most one agent, once; one that was answered has, in the agent that answered.

    Unless an undo gave the call back to an agent that ended before it had taken it again.
    """

    invariant = "I39"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._given_back = GivenBack("serve")

    def mail(self, letter: Letter) -> None:
        self._given_back.mail(letter)

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
                if where == "nobody" and self._is_given_back(call):
                    self.scene.counts["service calls given back for good"] += 1
                    continue
                self.fails(f"{call.by} answered call {call.n} of {call.sender} to a service; {where} has it")
        self.scene.counts["service calls that took effect"] += len(ran)

    def _is_given_back(self, call: Served) -> bool:
        args = self._given_back.to(self.scene.folds[call.by])
        return any((one["sender"], one["n"]) == (call.sender, call.n) for one in args)
