"""Shared handlers: run on committed state, beside the agent's turns, where the agent runs or where a copy of it is kept."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from mielin_cells.agents.context import turn
from mielin_cells.agents.reference import Reference
from mielin_cells.agents.shared.frozen import Frozen
from mielin_cells.agents.signature import HandlerSpec
from mielin_cells.agents.spec import Spec, route
from mielin_cells.errors import (
    Fenced,
    MessageTooLarge,
    NoSuchAgent,
    NotInTurn,
    ReadOnly,
    UsageError,
    WireTimeout,
    WrongClass,
)
from mielin_cells.log.ids import log_subject
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.message import Answer, decode_answer, encode_answer
from mielin_cells.membership.reads import read_shared
from mielin_cells.node.activation.effects import answer_of
from mielin_cells.node.activation.presence.resting import NO_REST
from mielin_cells.node.activation.readers import Committed
from mielin_cells.node.activation.run import is_failure
from mielin_cells.rpc import requests
from mielin_cells.rpc.answers import Reading
from mielin_cells.rpc.serve import Handlers
from mielin_cells.settings import MESSAGE_BYTES_MAX
from mielin_cells.tasks.supervision import Backoff

if TYPE_CHECKING:
    from mielin_cells.agents.cluster import Cluster
    from mielin_cells.node.activation.activation import Activation, Activations
    from mielin_cells.node.activation.context import NodeContext
    from mielin_cells.node.ownership.standby import StandbyCopy, Standbys


class Found(NamedTuple):
    spec: Spec
    committed: Committed


class Reads:
    """Of one node."""

    def __init__(self, activations: Activations, standbys: Standbys) -> None:
        self._activations = activations
        self._standbys = standbys

    @property
    def handlers(self) -> Handlers:
        return {requests.Read: self.read}

    async def read(self, request: requests.Read) -> Reading:
        """Raises `NoSuchAgent` if neither the agent nor a copy is here, and `WireTimeout` if it cannot answer in time."""
        try:
            async with asyncio.timeout(request.wait_s):
                spec, committed = await self._find(request)
                handler = _shared(spec, request)
                frozen = Frozen(spec, committed.state, request.agent, f"{spec.name}.{handler.name}")
                reading = ReadTurn(self._activations.home, request.agent, handler.name)
                return Reading(await run_shared(reading, frozen, spec, handler, request.args), committed.revision)
        except TimeoutError:
            raise WireTimeout(
                f"Node {self._activations.name} could not answer {request.agent}.{request.handler} in {request.wait_s:.3g} s.",
                subject=request.agent,
            ) from None

    async def _find(self, request: requests.Read) -> Found:
        """The committed state, at least as new as the request wants it.  A target in probation has none."""
        agent, activations = request.agent, self._activations
        least = request.seen
        if agent in activations.asleep:
            await activations.awake(agent)
        activation, copy = activations.live.get(agent), self._standbys.copies.get(agent)
        if activation is None and copy is None:
            raise NoSuchAgent(f"Node {activations.name} neither runs agent {agent!r} nor keeps a copy.", agent=agent)
        if request.is_linearizable:
            # After the request came, and for it alone: an end that was read before may lack what this caller must see.
            last = await activations.home.log.settled(log_subject(agent))
            least = max(least, last.seq if last is not None else 0)
        if activation is not None:
            with activation.kept():
                activation.rested = NO_REST  # a read is work, too
                return Found(activation.spec, await _committed_here(activation, least))
        return await self._committed_copy(copy, agent, least)

    async def _committed_copy(self, copy: StandbyCopy | None, agent: str, least: int) -> Found:
        backoff = Backoff()
        while copy is not None and self._standbys.copies.get(agent) is copy:
            fold = copy.fold
            if fold is not None and fold.seq >= least:
                spec = self._activations.spec(fold.cls)
                if fold.phase is Phase.TERMINATED or fold.lifecycle.error is not None or spec.version != fold.version:
                    break  # its owner says what is the matter
                return Found(spec, Committed(fold.seq, fold.state.frozen()))
            await backoff.wait()
        raise NoSuchAgent(f"Node {self._activations.name} keeps no copy of agent {agent!r} to read.", agent=agent)


async def _committed_here(activation: Activation, least: int) -> Committed:
    """The committed state of an agent that runs here, from record `least` on.

    An owner that is behind has an append on its way, or is deposed and does not know it.
    """
    backoff = Backoff()
    while True:
        if activation.error is not None:
            raise activation.error
        committed = await activation.committed()
        if committed.revision >= least:
            return committed
        try:
            await activation.writer.check_owner()
        except Fenced as error:
            activation.lose(error)
            raise
        await backoff.wait()


def _shared(spec: Spec, request: requests.Read) -> HandlerSpec:
    agent, name = request.agent, request.handler
    if request.cls not in (spec.name, ""):
        raise WrongClass(
            f"Agent {agent!r} is a {spec.name}, not a {request.cls}.", agent=agent, have=spec.name, need=request.cls
        )
    handler = spec.handler(name)
    if not handler.shared:
        raise UsageError(
            f"{spec.name}.{name} of agent {agent!r} is not shared where the agent runs; the caller has another version of the class."
        )
    return handler


async def run_shared(reading: ReadTurn, frozen: Frozen, spec: Spec, handler: HandlerSpec, args: bytes) -> bytes:
    """The answer of a shared handler on a frozen agent."""
    agent, token = reading.id, turn.set(reading)  # type: ignore[arg-type] # it refuses what it lacks
    try:
        result = await handler.fn(frozen.agent, **handler.decode_args(args))
        frozen.check()
        answer = encode_answer(Answer(handler.encode_result(result)))
        if len(answer) > MESSAGE_BYTES_MAX:
            raise MessageTooLarge(
                f"{handler.path} of agent {agent!r} returned {len(answer)} bytes; the limit is {MESSAGE_BYTES_MAX}.",
                limit=MESSAGE_BYTES_MAX, size=len(answer),
            )  # fmt: skip
        return answer
    except BaseException as error:
        if not is_failure(error):
            raise
        return answer_of(agent, f"{spec.name}.{handler.name}", handler.name, handler, error, 1)
    finally:
        reading.closed = True
        turn.reset(token)


class ReadTurn:
    """What `cells.this()` gives inside a shared handler, and the caller of the references used in it: it reads, and nothing else."""

    number = 0
    corrects = 0

    def __init__(self, home: NodeContext, agent: str, message: str) -> None:
        self._home = home
        self._loop = asyncio.get_running_loop()
        self.id = agent
        self.message = message
        self.closed = False

    @property
    def node(self) -> str:
        return self._home.name

    @property
    def cluster(self) -> Cluster | None:
        return self._home.cluster

    @property
    def caller(self) -> ReadTurn:
        return self

    def shares(self, caller: Any) -> bool:
        return caller is self._home.cluster or getattr(caller, "log", None) is self._home.log

    def is_here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:  # a thread without a loop
            return False

    async def read(
        self, ref: Reference, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None,
        is_linearizable: bool,
    ) -> Any:  # fmt: skip
        """Reads another agent.  There is no session here, so each read is linearizable."""
        agent, spec, handler = route(ref, name)
        if self.closed:
            raise NotInTurn(f"The read of agent {self.id!r} that made this call has ended.")
        home = self._home
        request = requests.Read(agent, spec.name, handler.name, handler.encode_args(args, kwargs), 0, True, 0.0)
        seconds = home.settings.ask_timeout_s if timeout is None else timeout
        reading = await read_shared(home.log, home.wire, request, seconds, {})
        answer = decode_answer(reading.answer)
        if answer.error is not None:
            raise handler.error_of(answer)
        return handler.decode_result(answer.result or b"")

    def __getattr__(self, name: str) -> Any:
        """Everything else that a turn can do would write or send something."""
        raise ReadOnly(
            f"Handler {self.message} of agent {self.id!r} is shared: it reads committed state, and cannot {name.replace('_', ' ')}; "
            "nothing was done. Do it in a handler without shared=True.",
            agent=self.id,
        )  # fmt: skip
