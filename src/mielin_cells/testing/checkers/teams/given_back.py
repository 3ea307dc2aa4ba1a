"""What an undo gave back to agents that ended before they had taken it again: their callers keep the answers that they had."""

from __future__ import annotations

from typing import Any

from mielin_cells.agents.values.wire import plain
from mielin_cells.log.fold import Fold
from mielin_cells.log.lifecycle import Phase
from mielin_cells.testing.checkers.checker import Letter


class GivenBack:
    """Messages to one handler."""

    def __init__(self, handler: str) -> None:
        self._handler = handler
        self._args: dict[tuple[str, str, int], bytes] = {}
        """By agent, sender and number."""

    def mail(self, letter: Letter) -> None:
        mail = letter.mail
        for message in mail.messages:
            if message.handler == self._handler:
                self._args[mail.to, mail.sender, message.n] = message.args

    def to(self, fold: Fold) -> list[dict[str, Any]]:
        """The arguments of those that an agent which has ended was still to take again: they are its dead letters."""
        if fold.phase is not Phase.TERMINATED:
            return []
        brought = (self._args.get((fold.agent, *place)) for place in fold.ledger.replays)
        return [plain(args) for args in brought if args is not None]
