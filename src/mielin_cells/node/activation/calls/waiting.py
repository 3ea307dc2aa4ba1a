"""The part of a turn that waits for somebody outside (rule T5)."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from mielin_cells.agents.signature import HandlerSpec
from mielin_cells.agents.step import ONCE_MORE, results_of
from mielin_cells.agents.values.changes import LOAD_ERRORS, reason
from mielin_cells.agents.values.codec import Codec
from mielin_cells.agents.values.wire import encode
from mielin_cells.agents.waits.external import External
from mielin_cells.errors import BadArguments, UsageError
from mielin_cells.log.message import decode_answer
from mielin_cells.log.waits.kept import Later
from mielin_cells.log.waits.tokens import OPENED, WaitName, token_of
from mielin_cells.node.activation.calls.order import Branches
from mielin_cells.node.activation.calls.pending import PendingStep, PendingWait
from mielin_cells.node.activation.calls.resolves import desk_of
from mielin_cells.node.activation.calls.tasks import Branch, branch_of
from mielin_cells.node.activation.steps import Steps
from mielin_cells.node.waits.opened import OpenWait
from mielin_cells.settings import WAITS_MAX

Until = float
"""A deadline by the store's time; 0: none."""


def _until() -> Until:
    raise NotImplementedError  # its annotation says how a deadline is stored


UNTIL = results_of(_until)


class Waiting(Steps):
    """The part of a turn that waits.  Once it has opened a wait, its calls are in the order of rule T6."""

    start = 0
    """Of the sender's session (`Mail.start`), once the turn waits for something."""
    later: list[Later] | None = None
    """Waits that keep no turn open, opened by this turn."""
    _opening: dict[External[Any], asyncio.Future[None]] | None = None

    async def open_wait(self, wait: External[Any]) -> str:
        """Records that the wait is open.  What two branches open at the same time is opened once."""
        while wait.opened is None:
            if self._opening is None:
                self._opening = {}
            opening = self._opening.get(wait)
            if opening is not None:
                await asyncio.wait((opening,))
                continue
            opening = self._opening[wait] = self._core.loop.create_future()
            try:
                wait.opened = await self._open_wait(wait)
            finally:
                del self._opening[wait]
                opening.set_result(None)
        token: str = wait.opened.token
        return token

    async def _open_wait(self, wait: External[Any]) -> OpenWait:
        branches, core, name = self._waits(wait.name), self._core, OPENED + wait.name
        with self.is_making():
            secret, until = await core.home.secret.get(), await self._until(wait.deadline)
        branch = branch_of(self)
        step = PendingStep(branch, name, b"", UNTIL, lambda: until, (), ONCE_MORE, core.home.settings.step_timeout_s)
        until = UNTIL.load(decode_answer(await branches.outcome(step)).result or b"")
        named = self._name(branch, wait.name, step.key[3])
        opened = OpenWait(named, token_of(secret, named), until, wait.kind, wait.results)
        desk_of(core).opened(opened)
        return opened

    async def wait_outcome(self, wait: External[Any]) -> bytes:
        """The outcome of a wait, which is opened if need be."""
        _ = await self.open_wait(wait)
        branches = self._waits(wait.name)
        return await branches.outcome(PendingWait(branch_of(self), wait.opened))

    async def open_later(
        self, name: str, handler: str, other: str, args: tuple[Any, ...], kwargs: dict[str, Any], deadline: float | None
    ) -> str:
        """Notes a wait that begins once the turn is committed, and returns its token."""
        self._may_wait(name)
        core = self._core
        given = _rest_args(core.spec.handler(handler), args, kwargs)
        if other:
            _ = _rest_args(core.spec.handler(other), args, kwargs)
        self._fits(self.id, given)
        waits = core.fold.ledger.waits
        if len(self.later or ()) + (len(waits.later) if waits is not None else 0) >= WAITS_MAX:
            raise UsageError(f"Agent {self.id!r} has {WAITS_MAX} waits, which is the limit; let some of them end.")
        branch = branch_of(self)
        k = branch.calls["step", OPENED + name]
        branch.calls["step", OPENED + name] = k + 1
        with self.is_making():
            secret, until = await core.home.secret.get(), await self._until(deadline)
            await asyncio.sleep(0)  # from here on the turn has been taken over by its runner
        named = self._name(branch, name, k)
        self.later = [*(self.later or ()), Later(named.key, name, handler, given, other, until)]
        return token_of(secret, named)

    def _name(self, branch: Branch, name: str, k: int) -> WaitName:
        return WaitName(self.id, self.sender, self.n, self.start, branch.path, name, k)

    async def _until(self, deadline: float | None) -> float:
        if deadline is None:
            return 0.0
        clock = self._core.home.clock
        await clock.refresh()
        return clock.now() + deadline

    def _waits(self, name: str) -> Branches:
        self._may_wait(name)
        if self.parts is not None:
            raise UsageError(
                f"{self.message} of agent {self.id!r} yields, and cannot stand still in wait {name!r}; wait in a handler that "
                "returns, or use external(then=)."
            )
        return self._branch_out()

    def _may_wait(self, name: str) -> None:
        self._open()
        if not self.sender:
            raise UsageError(f"A hook of agent {self.id!r} cannot make wait {name!r}; make it in a handler.")
        self._may_go_on()


@functools.lru_cache(maxsize=1024)
def _codec(kind: Any, path: str) -> Codec:
    return Codec(kind, path)


def _rest_args(handler: HandlerSpec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The arguments behind the first, which the value will be.  Raises `BadArguments`, as a call would."""
    parameters = handler.parameters
    names = [*parameters][1:]
    if not parameters or len(args) > len(names):
        raise BadArguments(
            f"{handler.path} gets the value of a wait and {len(names)} more arguments, not {len(args)}.",
            handler=handler.name,
        )
    given = dict(zip(names, args, strict=False))
    twice = [name for name in kwargs if name in given or name not in names]
    missing = [name for name in names if name not in given and name not in kwargs and name in handler.required]
    for wrong, what in ((twice, "it cannot have"), (missing, "it lacks")):
        if wrong:
            raise BadArguments(f"{handler.path}, for a wait: {what} {', '.join(wrong)}.", handler=handler.name)
    given.update(kwargs)
    try:
        for name, value in given.items():
            _ = _codec(parameters[name], f"{handler.path}({name})").keep(value)
        return encode(given)
    except LOAD_ERRORS as error:
        raise BadArguments(f"{handler.path}, for a wait: {reason(given, error)}.", handler=handler.name) from error
