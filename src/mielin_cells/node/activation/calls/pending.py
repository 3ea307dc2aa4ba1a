"""A call that a branch has made, and the turn that it belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias

from mielin_cells.agents.retry import Retry
from mielin_cells.agents.step import Results, Within
from mielin_cells.errors import AskCycle
from mielin_cells.log.commit import TIMER, AskCall, InBranch, Out, Sent, StepCall, TurnCall
from mielin_cells.log.message import Answer, encode_answer
from mielin_cells.log.waits.tokens import GIVEN
from mielin_cells.node.activation.calls.replay import Replay
from mielin_cells.node.activation.calls.tasks import Branch, Timer
from mielin_cells.node.activation.core import Core
from mielin_cells.node.waits.opened import OpenWait

FIRED = encode_answer(Answer(None))
"""The outcome of a timer."""

Kind: TypeAlias = Literal["ask", "step", "timer", "wait"]
Key: TypeAlias = tuple[tuple[int, ...], Kind, str, int]
"""Branch, kind, name, and how many of these the branch has made before."""


class CallingTurn(Protocol):
    """A turn, as its branches' calls need it."""

    _core: Core
    sender: str
    n: int
    calls: list[TurnCall]
    steps: int
    busy: int
    stopped: bool
    cancels: Callable[[], None] | None
    in_step: bool
    broken: Any
    replay: Replay | None
    _recording: asyncio.Task[Any] | None

    def otherwise(self, made: TurnCall, label: str) -> Exception: ...
    def news(self) -> tuple[int, list[TurnCall]]: ...
    def skip_known(self) -> None: ...
    def stop_error(self) -> BaseException: ...
    def rest_deadline(self, rests: bool) -> None: ...
    def rest_while_waiting(self, rests: bool) -> None: ...
    def finished_step(self, path: tuple[int, ...], name: str, n: int) -> StepCall | None: ...
    def standing_ask(self, out: Out, body: bytes) -> Sent | None: ...
    def free_place(self, to: str) -> int: ...
    def met(self, out: Out) -> None: ...
    async def refusal_of(self, agent: str) -> bytes | None: ...
    async def await_answer(self, out: Out, seconds: float | None, is_sent: bool) -> bytes: ...
    def step_key(self, name: str, n: int, path: tuple[int, ...]) -> str: ...
    async def step_result(self, step: Within, pending: PendingStep) -> Any: ...
    def check_size(self, made: StepCall) -> None: ...


class Pending:
    """A call that a branch has made, until its outcome is given."""

    answer = b""
    error: BaseException | None = None
    is_begun = False
    is_ready = False
    """It can be recorded: an ask that may be sent, or a step that has ended."""
    task: asyncio.Task[Any] | None = None

    def __init__(self, branch: Branch, kind: Kind, name: str, body: bytes, label: str) -> None:
        n = branch.calls[kind, name]
        branch.calls[kind, name] = n + 1
        self.key: Key = (branch.path, kind, name, n)
        self.body = body
        self.label = label
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def place(self, given: int, k: int = 0, *, is_given: bool = False) -> InBranch:
        path, _, _, n = self.key
        return InBranch(
            path, n, given, given if is_given else -1, k, self.body if self.key[1] in ("step", "wait") else b""
        )


class PendingAsk(Pending):
    call: AskCall | None = None
    """Once it is recorded."""

    def __init__(self, branch: Branch, out: Out, body: bytes, label: str, timeout: float | None) -> None:
        super().__init__(branch, "ask", f"{out.to}\0{out.handler}", body, label)
        self.out = out
        self.timeout = timeout


class PendingStep(Pending):
    is_running = False
    """Its call runs, or its outcome is not recorded yet."""

    def __init__(
        self, branch: Branch, name: str, body: bytes, results: Results, call: Any, args: tuple[Any, ...], retry: Retry,
        seconds: float,
    ) -> None:  # fmt: skip
        super().__init__(branch, "step", name, body, f"step {name!r}")
        self.results = results
        self.call = call
        self.args = args
        self.retry = retry
        self.seconds = seconds


class PendingWait(Pending):
    """A branch wants the outcome of a wait that is open."""

    def __init__(self, branch: Branch, wait: OpenWait) -> None:
        name = wait.name.name
        super().__init__(branch, "wait", GIVEN + name, wait.name.key[:8], f"the outcome of wait {name!r}")
        self.wait = wait


class PendingTimer(Pending):
    def __init__(self, timer: Timer) -> None:
        super().__init__(timer.branch, "timer", TIMER, b"", "a timer")
        path, kind, name, _ = self.key
        self.key = (path, kind, name, timer.n)
        self.answer = FIRED
        self.timer = timer


def key_of(call: TurnCall, place: InBranch) -> Key:
    if isinstance(call, AskCall):
        return place.path, "ask", f"{call.to}\0{call.handler}", place.n
    kind: Kind = "timer" if call.name == TIMER else "wait" if call.name.startswith(GIVEN) else "step"
    return place.path, kind, call.name, place.n


def label_of(agent: str, handler: str, id: str | None) -> str:
    """An ask, for people."""
    return f"{agent}.{handler}" + (f" ({id})" if id else "")


def ask_cycle(chain: tuple[str, ...], asker: str, agent: str, handler: str) -> AskCycle:
    """Each ask carries who waits for its answer, so that agents that would wait for each other are refused before they do."""
    cycle = [*chain[chain.index(agent) :], asker, agent]
    return AskCycle(
        f"Agent {asker!r} asks {agent}.{handler}, and {agent!r} waits for it: {' -> '.join(cycle)}. The ask was not sent; "
        "tell instead, or give what is needed with the first ask.",
        agents=cycle,
    )
