"""Yours, about nodes and moves: the order is wrong, or the state of the agent or node does not allow it."""

from __future__ import annotations

from typing import Self

from mielin_cells.errors.base import MigrationError, UsageError


class MigrationRefused(MigrationError, UsageError):
    """The target cannot take the agent; it runs on where it was.  Facts: agent, migration, reasons.

    Next: read `reasons`, and choose another node or mend this one. `mielin migrate AGENT --dry-run` shows them before a
    move.
    """


class MigrationInProgress(MigrationError, UsageError):
    """One migration per agent is open at a time.  Facts: agent, migration.

    Next: wait for the move that is open, or cancel it with `mielin abort AGENT`.
    """


class AlreadyThere(MigrationError, UsageError):
    """The agent already lives on that node.  Facts: agent, node.

    Next: nothing: the agent is where it should be.
    """


class ClaimRefused(UsageError):
    """The agent's owner answers; a claim would break into its work.  Facts: agent, node.

    Next: use `mielin migrate`, which loses no time; `--force` takes the agent all the same.
    """


class UnknownNode(UsageError):
    """No node of this name is up.  Facts: node, nodes.

    Next: correct the name, or start the node: `mielin nodes` lists those that there are.
    """

    @classmethod
    def of(cls, node: str, known: list[str]) -> Self:
        return cls(f"There is no node {node!r}; there are {', '.join(known) or 'none'}.", node=node, nodes=known)


class NoSuchMigration(MigrationError, UsageError):
    """No migration of this agent or id is open here.

    Next: look for it with `mielin migrations --agent AGENT`; it may have ended.
    """


class TooLateToCancel(MigrationError, UsageError):
    """The handover is decided; the move goes forward.  Facts: agent, migration.

    Next: let the move end, and undo it with `mielin rollback m-...`.
    """


class NodeCordoned(UsageError):
    """The node takes no agents until it is uncordoned.  Facts: node.

    Next: choose another node, or run `mielin uncordon NODE`.
    """


class RollbackExpired(UsageError):
    """What a rollback would restore is older than the limit.  Facts: migration.

    Next: move the agent forward to repaired code instead. `retention_s` says how long a move can be undone.
    """
