"""The part of a client that cancels calls (rule T4)."""

from __future__ import annotations

import asyncio
from typing import Any

from mielin_cells.agents.context import CallOptions
from mielin_cells.agents.reference import Reference
from mielin_cells.client.arguments import id_of
from mielin_cells.client.requester import Requester
from mielin_cells.client.sessions.session import Session
from mielin_cells.client.stream import CallName
from mielin_cells.errors import NotConnected
from mielin_cells.log.inboxes.cancels import CANCEL, Cancel, encode_cancel
from mielin_cells.log.inboxes.lines import CRITICAL


class Cancelling(Requester):
    def session(
        self, agent: str, name: str = "", inbox_max: int | None = None, options: CallOptions | None = None
    ) -> Session:
        raise NotImplementedError

    def cancel_soon(self, agent: str, cancel: Cancel) -> asyncio.Task[Any] | None:
        try:
            session = self.session(agent, options=CallOptions(priority=CRITICAL))
        except NotConnected:  # the client is closed, and its calls may take effect
            return None
        return self.started(session.tell("", CANCEL, encode_cancel(cancel)))

    async def cancel(self, agent: Reference | str, /, call: str) -> None:
        name, (sender, n) = id_of(agent), CallName.read(call)
        session = self.session(name, options=CallOptions(priority=CRITICAL))
        await session.tell("", CANCEL, encode_cancel(Cancel(sender, n)))
