"""Attributes, as authors set them: `cells.attributes(region="eu", load=3)`."""

from __future__ import annotations

from mielin_cells.agents.context import turn
from mielin_cells.errors import NotInTurn
from mielin_cells.log.attributes.values import Value


def attributes(**changes: Value | None) -> dict[str, Value]:
    """Sets attributes of this agent, by which `cluster.find` finds it, and returns all that it has then.

    A value is text of up to 256 characters, an int of 64 bits, a finite float or a bool; None removes the attribute.  Those that
    are not named stay as they are.  An agent has at most 32.

    Guarantees: they are part of the agent's state.  A turn that fails changes nothing, they move with the agent, survive the loss
    of its node, and go back with an undo.  What is found is what some commit has set, and never an older value once a newer one
    was found. Not guaranteed: that a change is found at once.  It is written after the commit, and an agent that changes its
    attributes many times a second is found by some of the values, the last one among them.

    Raises `NotInTurn` outside a handler or a hook, and `AttributeInvalid`.

        >>> class Parcel(cells.Agent):
        ...     @cells.handler
        ...     async def ship(self, region: str) -> None:
        ...         cells.attributes(region=region, urgent=True)
        ...
        >>> parcel = await cluster.spawn(Parcel, "parcel-1")
        >>> await parcel.ship("eu")
        >>> while not await cluster.find(Parcel, where='region == "eu"').count():
        ...     await asyncio.sleep(0.01)
        ...
    """
    running = turn.get()
    if running is None:
        raise NotInTurn("An agent sets its attributes inside a handler or a hook; outside there is cluster.find.")
    return running.set_attributes(changes)
