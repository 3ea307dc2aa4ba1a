"""What a turn orders for its own agent: it takes effect once the turn is committed."""

from __future__ import annotations

from typing import Any

from mielin_cells.errors import UsageError, storable
from mielin_cells.log.records import Wish


class OwnOrders:
    """The part of a turn that takes such orders."""

    # On the class, because most turns never give any, and a turn is made for every message.
    moves = False
    move_to: str | None = None
    wish: Wish | None = None
    sender: str
    message: str

    @property
    def id(self) -> str:
        raise NotImplementedError

    def _open(self) -> None:
        """Raises what keeps the turn from being used."""
        raise NotImplementedError

    def migrate(self, to: str | None = None) -> None:
        """Moves this agent once the turn is committed; to a node of the system's choice unless `to` names one."""
        self._orders("migrate")
        name: Any = to  # of an author who checks no types
        if name is not None and not (isinstance(name, str) and name.isprintable()):
            raise UsageError(f"Agent {self.id!r} asked to be moved to {to!r}, which can be the name of no node.")
        self.moves, self.move_to = True, "".join(to) if to else None

    def terminate(self) -> None:
        self._orders("terminate")
        self.wish = Wish("terminate")

    def suspend(self, reason: str = "") -> None:
        self._orders("suspend")
        self.wish = Wish("suspend", storable(str(reason)))

    def pause(self, reason: str = "") -> None:
        self._orders("pause")
        self.wish = Wish("pause", storable(str(reason)))

    def _orders(self, order: str) -> None:
        self._open()
        if not self.sender:
            raise UsageError(
                f"A hook of agent {self.id!r} ({self.message}) cannot {order} it; do it in a handler, or raise: that keeps it from "
                "arriving, or from leaving.", agent=self.id,
            )  # fmt: skip
