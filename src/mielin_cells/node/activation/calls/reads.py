"""Reads of other agents inside a turn: each is a durable step."""

from __future__ import annotations

from typing import Any

from blake3 import blake3

from mielin_cells.agents.reference import Reference
from mielin_cells.agents.spec import route
from mielin_cells.agents.step import ONCE_MORE
from mielin_cells.errors import CellError, SelfAsk, UsageError
from mielin_cells.log.message import Answer, decode_answer, encode_answer
from mielin_cells.membership.reads import read_shared
from mielin_cells.node.activation.steps import Steps
from mielin_cells.rpc import requests

READ_SLACK_S = 1.0
"""A read ends by itself before the step that it is."""


class Reads(Steps):
    """The part of a turn that reads."""

    async def read(
        self, ref: Reference, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None,
        is_linearizable: bool,
    ) -> Any:  # fmt: skip
        """Reads another agent by a shared handler, as a durable step: a turn that runs again gets the same.

        A turn has no session that says what it has seen before, so each read is linearizable.
        """
        agent, spec, handler = route(ref, name)
        data = handler.encode_args(args, kwargs)
        self._fits(agent, data)
        if agent == self.id:
            raise SelfAsk(f"Agent {agent!r} reads itself inside a turn; call self.{handler.name}(...) plainly.")
        home = self._core.home
        seconds = home.settings.ask_timeout_s if timeout is None else timeout
        request = requests.Read(agent, spec.name, handler.name, data, 0, True, 0.0)

        async def reading() -> bytes:
            try:
                return (await read_shared(home.log, home.wire, request, seconds, {})).answer
            except CellError as error:
                return encode_answer(Answer(None, error.to_wire()))

        label = f"read {handler.name} {blake3(agent.encode() + data).hexdigest(8)}"
        outcome: bytes = await self.run_step(label, reading, (), ONCE_MORE, seconds + READ_SLACK_S)
        answer = decode_answer(outcome)
        if answer.error is not None:
            raise handler.error_of(answer)
        return handler.decode_result(answer.result or b"")

    def watch(self, ref: Reference, after: int) -> Any:
        raise UsageError(
            f"Agent {self.id!r} cannot watch {ref!r} inside a turn: what a turn sees is recorded, and a watch has no end. Ask or read."
        )
