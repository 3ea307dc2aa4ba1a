"""The attempts that run on a node: each moves one agent, and ends as the agent's log says."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mielin_cells.agents.reports import MigrationReport
from mielin_cells.errors import OF_STORE, Fenced, LogGap, RetryError
from mielin_cells.migration.outcome import outcome_of
from mielin_cells.migration.validation import MigrationValidator
from mielin_cells.node.moves.source import Move
from mielin_cells.store.reader import load
from mielin_cells.tasks.supervision import Backoff

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activation, Activations
    from mielin_cells.node.moves.bounds.lent import LentPlaces

logger = logging.getLogger("mielin_cells.migration")


class Attempts:
    """Of one node."""

    def __init__(self, activations: Activations, validator: MigrationValidator, places: LentPlaces) -> None:
        self._activations = activations
        self._validator = validator
        self.moves: dict[str, Move] = {}
        """Those that run or wait for their place, by agent."""
        self.places = places

    def close(self) -> None:
        for move in list(self.moves.values()):
            move.close()

    def begin(self, activation: Activation, attempt: str, target: str) -> Move:
        move = self.moves[activation.fold.agent] = Move(self._activations, activation, attempt, target, self._validator)
        return move

    async def run(self, move: Move) -> MigrationReport:
        """Runs an attempt to its end; the agent's log always decides the outcome."""
        agent, activations = move.activation.fold.agent, self._activations
        has_place = False
        try:
            has_place = await self.places.enter(move.cancelled)  # without one it is cancelled, and ends at once
            move.begins()
            await move.run()
        except Exception as error:
            # A log that cannot be read on, a node that stops, or a bug: this copy may not go on, and the log says who does.
            if isinstance(error, (RetryError, LogGap, Fenced)):
                logger.warning(
                    "migration %s of agent %s was interrupted on node %s: %s",
                    move.migration,
                    agent,
                    activations.name,
                    error,
                )
            else:
                logger.exception("migration %s of agent %s failed on %s", move.migration, agent, activations.name)
            activations.drop(move.activation)
            activations.look(agent)
            move.fail(error, await self._read_outcome(agent, move))
        finally:
            if has_place:
                self.places.leave()
            move.close()
            if self.moves.get(agent) is move:
                del self.moves[agent]
        return move.done.result()

    async def _read_outcome(self, agent: str, move: Move) -> str:
        """What became of an attempt, from the agent's log; waits until it is decided (rule 7)."""
        backoff = Backoff()
        while True:
            try:
                fold = await load(self._activations.home.log, agent)
                outcome = outcome_of(fold, move.migration, move.epoch)
                if outcome is not None:
                    return outcome
                self._activations.look(agent)
            except (*OF_STORE, LogGap) as error:
                logger.info("migration %s: reading its outcome failed; trying again: %s", move.migration, error)
            await backoff.wait()
