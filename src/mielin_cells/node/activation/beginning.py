"""Where clients' sessions began, as an owner sees it: a sequence of the agent's log, which the client has read (rule 15)."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from mielin_cells.errors import Fenced, RetryError
from mielin_cells.log.message import Mail
from mielin_cells.tasks.supervision import Backoff

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Host


class Beginning(Enum):
    KNOWN = "known"
    """The log goes there, or the session has been served before."""
    NEVER = "never"
    """The log ends before it.  Once such a session was forgotten, everybody would be refused who comes before the log gets there."""
    UNKNOWN = "unknown"
    """This owner is no owner any more, or is to stop."""


async def beginning(host: Host, mail: Mail) -> Beginning:
    """Of mail whose session began behind the last record that the owner knows of.

    Either the owner is about to hear of a record of its own, or another node owns the agent, or the log has never come there.
    """
    backoff = Backoff()
    while host.is_open and not host.intake.is_stopping:
        if mail.sender in host.fold.ledger.peers:
            return Beginning.KNOWN
        try:
            return Beginning.KNOWN if await host.writer.reaches(mail.start) else Beginning.NEVER
        except Fenced as error:
            host.lose(error)
        except RetryError:
            await backoff.wait()
    return Beginning.UNKNOWN
