"""Checkers of who owns an agent, and of the state that it is owned with: I1, I2, I3, I8, I10, I11, I14, I20, I24."""

from __future__ import annotations

from mielin_cells.errors import CellError
from mielin_cells.log.fold import Fold
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.records import Accepted, Asked, Committed, Created, HandedOff, Returned, Stepped, Undone
from mielin_cells.log.rules import RULES
from mielin_cells.migration.journal import Ended
from mielin_cells.migration.progress import MigrationPhase
from mielin_cells.testing.checkers.checker import Checker, Line, Step, migration_name
from mielin_cells.testing.checkers.history import explain_nonlinear
from mielin_cells.testing.checkers.scene import Scene

UNDECIDED = frozenset({MigrationPhase.HANDING_OVER, MigrationPhase.IN_DOUBT, MigrationPhase.VERIFYING})


class OneServes(Checker):
    """I1: at most one instance of an agent is active in an epoch, and only the owner's writes are accepted.

    Each record is by the incarnation that the ownership records name, and no two nodes serve the agent in one epoch.
    """

    invariant = "I1"

    def record(self, step: Step) -> None:
        record, before = step.record, step.before
        if not RULES[type(record)].takes_over:
            is_other_process = not before.migration and record.incarnation != before.incarnation
            if record.node != before.owner or is_other_process:
                self.fails(
                    f"{step.what} is by {record.node}.{record.incarnation}; {before.owner}.{before.incarnation} owns it"
                )
        serving: dict[int, str] = {}
        for name, node in self.scene.nodes.items():
            activation = node.activations.live.get(step.agent)
            if activation is not None and activation.is_open and activation.fold.may_run:
                other = serving.setdefault(activation.fold.epoch, name)
                if other != name:
                    self.fails(f"{other} and {name} both serve {step.agent} in epoch {activation.fold.epoch}")


class EpochsGrow(Checker):
    """I2: the epoch of an agent grows by one with each transfer, and no process writes in less than it has written in."""

    invariant = "I2"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._highest: dict[tuple[str, str], int] = {}

    def record(self, step: Step) -> None:
        record = step.record
        expected = step.before.epoch + RULES[type(record)].takes_over
        if record.epoch != expected:
            self.fails(f"{step.what} is of epoch {record.epoch}; it is the turn of {expected}")
        key = step.agent, step.author.label
        if record.epoch < self._highest.get(key, 0):
            self.fails(f"{step.what} is of epoch {record.epoch}; it has written in {self._highest[key]}")
        self._highest[key] = record.epoch


class CurrentWrites(Checker):
    """I3: each accepted record follows the one it expects, is by the process it names, and comes before the end."""

    invariant = "I3"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._processes: dict[tuple[str, int], str] = {}
        self._nonces: dict[str, set[bytes]] = {}

    def record(self, step: Step) -> None:
        record, before = step.record, step.before
        if record.node != step.author.name:
            self.fails(f"{step.what} claims to be by {record.node}")
        process = self._processes.setdefault((record.node, record.incarnation), step.author.label)
        if process != step.author.label:
            self.fails(f"{step.what} is of incarnation {record.incarnation}, which is {process}")
        if before.ended:
            self.fails(f"{step.what} follows Terminated")
        if record.prev != before.seq:
            self.fails(f"{step.what} expects {record.prev}, but the log was at {before.seq}")
        if isinstance(record, Created) != (before.seq == 0):
            self.fails(f"{step.what} is where it cannot be")
        nonces = self._nonces.setdefault(step.agent, set())
        if record.nonce in nonces:
            self.fails(f"{step.what} has a nonce that the log has already")
        nonces.add(record.nonce)


class SameState(Checker):
    """I8: the state that an owner claims is the one that its log gives, at each commit, each handover and each undo.

    The log is folded as it lands, with production's fold; the next commit of a target that serves another state shows it.
    """

    invariant = "I8"

    def record(self, step: Step) -> None:
        fold = self.scene.folds.get(step.agent)
        if fold is None:
            fold = self.scene.folds[step.agent] = Fold(step.agent)
        record = step.record
        try:
            fold.apply(step.seq, record)
        except CellError as error:
            self.fails(f"the fold refuses {step.what}: {error}")
        if isinstance(record, Committed) and record.commit.digest != fold.state.digest():
            self.fails(f"{step.what} has the digest of another state")
        if isinstance(record, HandedOff) and record.digest != fold.seal_digest():
            self.fails(f"{step.what} seals another state or ledger than the log's")
        if isinstance(record, Undone) and record.digest != fold.state.digest():
            self.fails(f"{step.what} goes back to another state than the log's")


class GoesBackByRecord(Checker):
    """I10: a source goes on after a handover only by a record that ends its epoch, and no ended migration hands over.

    `Returned` gives the agent back to the source of the handover.  The handover of a migration that was reported or journaled as
    ended never lands.
    """

    invariant = "I10"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._over: dict[str, str] = {}

    def record(self, step: Step) -> None:
        record, before = step.record, step.before
        if isinstance(record, Returned) and record.to != before.source:
            self.fails(f"{step.what} returns {record.migration} to {record.to}; {before.source} handed it over")
        if isinstance(record, HandedOff):
            name = migration_name(record.migration)
            reported = [r.report.outcome for r in self.scene.reports if r.report.migration == name and r.at < step.at]
            over = self._over.get(name) or "".join(reported)
            if over:
                self.fails(f"{step.what} hands over {record.migration}, which has ended: {over}")

    def journal(self, line: Line) -> None:
        if isinstance(line.record, Ended):
            self._over[line.migration] = line.record.outcome


class NobodyRuns(Checker):
    """I11: while the owner of an agent is undecided, neither side runs a turn of it.

    In probation only a verdict or a claim lands; a source that has sent its handover runs no turn until the log names the owner.
    """

    invariant = "I11"

    def record(self, step: Step) -> None:
        record, before = step.record, step.before
        phases = RULES[type(record)].phases
        if Phase.NONE not in phases and (Phase.PROBATION if before.migration else Phase.RUN) not in phases:
            self.fails(f"{step.what} lands {'in' if before.migration else 'outside of'} probation")
        if isinstance(record, (Committed, Asked, Stepped)):
            return
        for name, node in self.scene.nodes.items():
            move = node.migrations.attempts.moves.get(step.agent)
            if move is None or move.machine.phase not in UNDECIDED or not move.activation.is_open:
                continue
            if node.activations.live.get(step.agent) is move.activation and not move.activation.is_stopping:
                self.fails(
                    f"{name} takes messages of {step.agent} while {move.migration} is {move.machine.phase.value}"
                )


class OwnerRegister(Checker):
    """I14: the owner of an agent is a linearizable register with compare-and-set (`checkers.history`).

    Every append to an agent's log and every read of its end is an operation with a beginning and an end.
    """

    invariant = "I14"

    def at_rest(self) -> None:
        history = self.scene.history
        for subject, operations in history.operations.items():
            trouble = explain_nonlinear(operations, history.places.get(subject, []))
            if trouble:
                self.fails(f"{subject}: {trouble}")


class NothingUnverified(Checker):
    """I20: everything that lands can be read (`Checkers` sees to it), and a target accepts only a log that it has read to its end.

    At the instant of `Accepted`, the copy on the accepting node has folded the handover that it accepts.
    """

    invariant = "I20"

    def record(self, step: Step) -> None:
        record = step.record
        if not isinstance(record, Accepted):
            return
        node = self.scene.nodes.get(step.author.name)
        copy = node.copies.by_agent.get(step.agent) if node is not None else None
        fold = copy._fold if copy is not None else None
        if fold is not None and (fold.seq, fold.migration) != (step.before.seq, record.migration):
            self.fails(f"{step.what} accepts {record.migration}; its copy is at {fold.seq} with {fold.migration!r}")


class StoreTells(Checker):
    """I24: an agent that is loaded from the store at the end, by a snapshot or from the first record, is what has landed.

    State, ledger, policy, owner, phase and lifecycle are compared with the fold of what landed.
    """

    invariant = "I24"

    def at_rest(self) -> None:
        for agent, landed in self.scene.folds.items():
            loaded = self.scene.loaded.get(agent)
            if loaded is None:
                self.fails(f"{agent} cannot be loaded at rest")
            if loaded.seal_digest() != landed.seal_digest():
                self.fails(f"{agent} as loaded up to {loaded.seq} is not what landed up to {landed.seq}")
            mine, theirs = _ownership(loaded), _ownership(landed)
            if mine != theirs:
                self.fails(f"{agent} as loaded is {mine}; what landed says {theirs}")


def _ownership(fold: Fold) -> tuple[int, int, str, Phase, str]:
    return fold.seq, fold.epoch, fold.owner, fold.phase, fold.lifecycle.state.value
