"""Reads of committed state (shared handlers): where they are sent, and again until somebody answers.

A read changes nothing, so it is sent as often as need be: to the owner, and while that is silent to nodes that may keep a copy of the
agent.  An answer counts only for the request that it answers: the wire pairs the two, and drops an answer that comes too late.
"""

from __future__ import annotations

import asyncio
from itertools import islice

import msgspec

from mielin_cells.errors import (
    AgentTerminated,
    AskTimeout,
    CellError,
    Fenced,
    NodeStopping,
    NoResponder,
    NoSuchAgent,
    RetryError,
    WireTimeout,
)
from mielin_cells.log.ids import log_subject
from mielin_cells.log.records import decode_record, named_owner
from mielin_cells.membership.table import list_names
from mielin_cells.rpc.answers import Reading
from mielin_cells.rpc.call import call
from mielin_cells.rpc.requests import Read
from mielin_cells.substrate.ports import Log, Wire
from mielin_cells.substrate.retry import whole
from mielin_cells.tasks.supervision import Backoff

COPIES_MAX = 8
"""Other nodes that are asked in one round while the owner is silent."""

COPY_S = 1.0
"""For one of them."""

SHARES = (4, 2, 1)
"""The first try may take this part of the time that is left; a request may be lost on the wire, and a handler may take long."""

AWAY = (NoResponder, WireTimeout, NodeStopping)


async def read_shared(log: Log, wire: Wire, request: Read, timeout: float, owners: dict[str, str]) -> Reading:
    """The answer to a read.  `owners` remembers where agents were found; what it says is only tried first.

    Raises the node's refusal, `NoSuchAgent`, `AgentTerminated`, and `AskTimeout` after `timeout` seconds.
    """
    loop, agent, why = asyncio.get_running_loop(), request.agent, ""
    until, backoff, turn = loop.time() + timeout, Backoff(), 0
    try:
        async with asyncio.timeout_at(until):
            while True:
                owner = ""
                try:
                    owner = owners.get(agent) or await owner_of(log, agent)
                    seconds = (until - loop.time()) / SHARES[min(turn, len(SHARES) - 1)]
                    reading = await call(wire, owner, msgspec.structs.replace(request, wait_s=seconds), seconds)
                    owners[agent] = owner
                    return reading
                except (Fenced, NoSuchAgent, RetryError) as error:
                    if isinstance(error, NoSuchAgent) and not owner:
                        raise  # the log says so, and no node that has lost it
                    why, known = str(error), owners.pop(agent, None)
                    if isinstance(error, AWAY) and known is None:
                        found = await _read_copy(log, wire, request, owner, turn)
                        if found is not None:
                            return found
                    turn += 1
                    if known is not None:
                        continue  # it was only remembered: the log may name another
                await backoff.wait()
    except TimeoutError:
        raise AskTimeout(
            f"No answer from {agent!r}.{request.handler} in {timeout:g} s{f': {why}' if why else '.'} A read changes nothing; "
            "read again.",
            agent=agent,
        ) from None  # fmt: skip


async def owner_of(log: Log, agent: str) -> str:
    """The node that the log names.  Raises `NoSuchAgent`, `AgentTerminated`."""
    subject = log_subject(agent)
    last = await log.last(subject) or await log.settled(subject)
    if last is None:
        raise NoSuchAgent.of(agent)
    record = await whole(log, subject, last, lambda data: decode_record(data, f"The log of agent {agent!r}"))
    owner = named_owner(record)
    if not owner:
        raise AgentTerminated.of(agent)
    return owner


async def _read_copy(log: Log, wire: Wire, request: Read, owner: str, turn: int) -> Reading | None:
    """The answer of a node that keeps a copy of the agent; None if none of those asked answers."""
    names = [name for name in await list_names(log) if name != owner]
    start = turn * COPIES_MAX % max(len(names), 1)
    for name in islice((*names[start:], *names[:start]), COPIES_MAX):
        try:
            return await call(wire, name, msgspec.structs.replace(request, wait_s=COPY_S), COPY_S)
        except (Fenced, NoSuchAgent, RetryError):
            continue
        except CellError as error:
            if error.code != "UnknownClass":
                raise
    return None
