"""The checker of what turns that fail leave behind: I25."""

from __future__ import annotations

from collections import Counter

import msgspec

from mielin_cells.log.lifecycle import Phase
from mielin_cells.testing.checkers.checker import Checker

DOOMED = frozenset({"refuse", "hang"})
"""Handlers of the workload whose turns always fail."""


class NothingOfIt(Checker):
    """I25: a turn that fails leaves only its answer or its dead letter behind, and an agent's fields agree with each other.

    The asker gets the cause, in an answer that the log holds; a tell becomes a dead letter, which is there at rest unless an
    operator has removed it.  An agent's list, table and buffer hold the same, in the same order.  A task that has outlived its
    turn cannot change the agent.
    """

    invariant = "I25"

    def at_rest(self) -> None:
        for agent, state in self.scene.observed.items():
            heard = set(state.heard)
            for call in self.scene.calls:
                if call.agent == agent and call.doomed and (call.sender, call.n) in heard:
                    self.fails(f"{agent} has heard ({call.sender}, {call.n}), whose turn failed")
            if state.book is None:
                continue
            wanted = {
                "marks": dict(state.heard), "book": b"".join(f"{sender} {n}\n".encode() for sender, n in state.heard),
                "stray": 0,
            }  # fmt: skip
            for name, value in wanted.items():
                if state.book[name] != value:
                    self.fails(f"{agent} has {name} {state.book[name]!r}; what it heard gives {value!r}")
            if agent not in self.scene.purged and self.scene.folds[agent].phase is not Phase.TERMINATED:
                self._letters(agent)

    def _letters(self, agent: str) -> None:
        letters = [letter for letter in self.scene.folds[agent].ledger.dead if letter.handler in DOOMED]
        said = [(msgspec.msgpack.decode(letter.args), "replay." in letter.sender) for letter in letters]
        dead = Counter((args["sender"], args["n"], is_replayed) for args, is_replayed in said)
        for call in self.scene.calls:
            if call.agent != agent or call.doomed != "stored":
                continue
            first, replayed = (dead[call.sender, call.n, is_replayed] for is_replayed in (False, True))
            if (
                first > 1 or not first + replayed
            ):  # both, if a replay could not remove the letter that it had sent again
                self.fails(f"{agent} has {first} dead letters of ({call.sender}, {call.n}), and {replayed} of a replay")
