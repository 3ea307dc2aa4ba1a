"""Guards of priorities (rule T1), taken away one at a time."""

from __future__ import annotations

from mielin_cells.log.message import Mail
from mielin_cells.log.turns.batch import Batch
from mielin_cells.node.activation import outbox
from mielin_cells.node.activation.priorities import inboxes
from support.guards import Patch, guard


@guard(within=40)
def an_open_turn_goes_first_in_all_inboxes(patch: Patch) -> None:
    """The next owner takes from the highest inbox, although a turn on another one's message has asked and is to go on."""
    patch.setattr(inboxes, "turn_goes_first", lambda _: False)


@guard(within=40)
def places_are_in_the_commit(patch: Patch) -> None:
    """Where an owner is in the inboxes of other priorities is kept in memory."""
    patch.setattr(Batch, "read_in", lambda _self, _priority: None)


@guard(within=20)
def inboxes_are_opened(patch: Patch) -> None:
    """An agent sends with a priority, and does not open the receiver's inbox before."""

    async def unopened(self: outbox.Outbox, mail: Mail, receiver: outbox._Receiver) -> None:
        if mail.messages:
            await store(self, mail, receiver)

    store = outbox.Outbox._store
    patch.setattr(outbox.Outbox, "_store", unopened)
