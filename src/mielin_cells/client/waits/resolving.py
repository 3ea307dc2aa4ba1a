"""External waits end from outside: `cluster.resolve(token, value)` and `cluster.reject(token, reason)`."""

from __future__ import annotations

from typing import Any

from mielin_cells.agents.context import CallOptions
from mielin_cells.agents.reports import WaitOutcome
from mielin_cells.agents.values.changes import LOAD_ERRORS, reason
from mielin_cells.agents.values.wire import encode, plain
from mielin_cells.client.requester import Requester
from mielin_cells.client.sessions.session import Session
from mielin_cells.errors import BadArguments, UsageError, from_wire, storable
from mielin_cells.log.codec import pack
from mielin_cells.log.inboxes.lines import CRITICAL
from mielin_cells.log.message import Answer, decode_answer
from mielin_cells.log.waits.resolving import REASON_CHARS_MAX, RESOLVE, Resolve, decode_standing
from mielin_cells.log.waits.tokens import WaitName, wait_of

FIRST = CallOptions(priority=CRITICAL)
"""The critical inbox is read while a turn waits, too."""


class Resolving(Requester):
    """The part of a client that ends waits."""

    def session(
        self, agent: str, name: str = "", inbox_max: int | None = None, options: CallOptions | None = None
    ) -> Session:
        raise NotImplementedError

    async def resolve(self, token: str, value: Any = None, /, *, timeout: float | None = None) -> WaitOutcome:
        self.check_loop()
        name = wait_of(token)
        try:
            data = encode(value)
        except LOAD_ERRORS as error:
            why = reason(value, error)
            raise BadArguments(
                f"Wait {name.name!r} was given a value that cannot be sent: {why}.", handler=name.name
            ) from error
        return await self._end(name, Resolve(token, data), timeout)

    async def resolve_word(self, token: str, word: str, timeout: float | None = None) -> WaitOutcome:
        """As `resolve`, with a value as a person types it: JSON if that fits the type of the wait, else text."""
        return await self._end(wait_of(token), Resolve(token, word=word), timeout)

    async def reject(
        self, token: str, reason: str | BaseException = "", /, *, timeout: float | None = None
    ) -> WaitOutcome:
        self.check_loop()
        said = str(reason)
        if len(said) > REASON_CHARS_MAX:
            raise UsageError(f"The reason of a rejection has {len(said)} characters; the limit is {REASON_CHARS_MAX}.")
        return await self._end(wait_of(token), Resolve(token, error=storable(said)), timeout)

    async def _end(self, name: WaitName, resolve: Resolve, timeout: float | None) -> WaitOutcome:
        """Repeating it with the same value is harmless: the first outcome stands."""
        ended: WaitOutcome = await self.session(name.agent, options=FIRST).ask(
            "", _Ending(name), (pack(resolve),), {}, timeout
        )
        return ended


class _Ending:
    """How a session encodes the call, and decodes what stands."""

    name = RESOLVE

    def __init__(self, wait: WaitName) -> None:
        self._wait = wait

    def encode_args(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        data: bytes = args[0]
        return data

    def decode_result(self, data: bytes, caller: Any = None) -> WaitOutcome:
        stands, wait = decode_standing(data), self._wait
        outcome = decode_answer(stands.outcome)
        if outcome.error is None:
            return WaitOutcome(
                agent=wait.agent,
                wait=wait.name,
                accepted=stands.accepted,
                outcome="value",
                value=plain(outcome.result or b"\xc0"),
            )
        code, message, facts = outcome.error
        return WaitOutcome(
            agent=wait.agent, wait=wait.name, accepted=stands.accepted,
            outcome="timeout" if code == "WaitTimeout" else "rejected", reason=str(facts.get("reason", message)),
        )  # fmt: skip

    def error_of(self, answer: Answer) -> Exception:
        code, message, facts = answer.error or ("CellError", "", {})
        return from_wire(code, message, facts)
