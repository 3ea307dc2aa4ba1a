"""Fault injection for users' tests and for `mielin demo --faults`: named steps that fail as they do in the world.

A `Fault` says what goes wrong at which step, how likely, and how often at most; `Faults` draws from a seed and counts what it did.
`faulty(substrate, faults, node)` gives a node's view of a substrate; the node's own steps (`prepare`, `probe`, ...) ask `faults.at`.

    faults = Faults(7, Fault("handed_off", Kind.LOSE_ANSWER, 0.1), Fault("read", Kind.CORRUPT, 0.1, most=50))

Steps on the log: the kinds of an agent's records in snake case (`committed`, `handed_off`, `accepted`, `claimed`, ...), and
`inbox`, `journal`, `members`, `part`, `stream`, `read`.  On the wire: `reply`, `beat`, and requests as `ask_prepare`,
`ask_copy`, `ask_ping`, ...
In a node (`NodeContext.step`): `prepare`, `copy` and `probe` on a target, `pause` on a source.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Any

from mielin_cells.errors import ConfigError, MigrationRefused, NoResponder, RecordInvalid, StoreUnreachable, WireTimeout
from mielin_cells.log.codec import UNREADABLE
from mielin_cells.log.ids import LOGS
from mielin_cells.log.records import Record, decode_record
from mielin_cells.rpc import requests
from mielin_cells.substrate.ports import Entry, Log, Outcome, Subscription, Substrate, Unknown, Wire
from mielin_cells.testing.forwarded import ForwardedLog

DEFAULT = (
    "prepare:refuse:0.2,read:corrupt:0.1,handed_off:lose_answer:0.1,node-2:unreachable:10s,probe:refuse:1:25@node-3"
)
"""The faults that `mielin demo --faults default` injects."""


class Kind(Enum):
    DROP = "drop"
    """It does not happen; the caller gets no answer, or `Unknown`."""
    DELAY = "delay"
    """It happens `delay_s` later."""
    CORRUPT = "corrupt"
    """One bit of the bytes is changed on their way to the reader; what is stored stays right."""
    DUPLICATE = "duplicate"
    LOSE_ANSWER = "lose_answer"
    """It happens, and the caller does not learn it."""
    TIMEOUT = "timeout"
    """The caller waits, and it does not happen."""
    REFUSE = "refuse"
    """The step is refused with a reason."""
    CRASH = "crash"
    """The process is killed (SIGKILL), or `Faults.crash` is called."""
    STOP = "stop"
    """The process stops before it (SIGSTOP), all its threads, until somebody continues it (SIGCONT), or `Faults.stop` is called."""
    STOP_AFTER = "stop_after"
    """As `stop`, when an append has happened and before the process hears of it."""
    UNREACHABLE = "unreachable"
    """For `delay_s` after the first request to it, a node hears nothing from the wire.  `step` names the node."""


def _snake(cls: type) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


STEPS = frozenset(
    {
        *(_snake(record) for record in Record.__subclasses__()),
        *(f"ask_{request.__name__.lower()}" for request in requests.Request.__subclasses__()),
        *("log", "inbox", "journal", "members", "part", "stream", "topic", "read", "reply", "beat", "ask_other"),
        *("prepare", "copy", "probe", "pause"),
    }
)
"""Every step that is passed.  `log` and `ask_other`: what is no record, and no request, that this version knows."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Raises `ConfigError` for one that could never be injected."""

    step: str
    kind: Kind
    probability: float = 1.0
    most: int | None = None
    """How often at most; None: without end."""
    delay_s: float = 0.05
    node: str = ""
    """Only on this node."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise ConfigError(
                f"The probability of {self.step}:{self.kind.value} is {self.probability:g}; it is 0 to 1.",
                field="probability", range="0 to 1",
            )  # fmt: skip
        if self.most is not None and self.most < 1:
            raise ConfigError(
                f"{self.step}:{self.kind.value} is to be injected at most {self.most} times; it is 1 or more.",
                field="most", range="from 1",
            )  # fmt: skip
        if self.kind is not Kind.UNREACHABLE and self.step not in STEPS:
            steps = ", ".join(sorted(STEPS))
            raise ConfigError(
                f"There is no step {self.step!r} that could fail; there are {steps}.", field="step", range=steps
            )


class Faults:
    """Draws faults from a seed.  `counts` is what was injected, by (step, kind)."""

    def __init__(self, seed: int, *faults: Fault) -> None:
        self.faults = faults
        self.counts: Counter[tuple[str, str]] = Counter()
        self.crash: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGKILL)
        self.stop: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGSTOP)
        self._rng = Random(seed)
        self._since: dict[Fault, float] = {}
        self._used: Counter[Fault] = Counter()

    def at(self, step: str, node: str = "") -> Fault | None:
        """The fault that this passing of a step suffers, if any.  A crash does not return."""
        for fault in self.faults:
            if fault.step != step or fault.kind is Kind.UNREACHABLE or (fault.node and fault.node != node):
                continue
            if fault.most is not None and self._used[fault] >= fault.most:
                continue
            if self._rng.random() < fault.probability:
                self._used[fault] += 1
                self.counts[step, fault.kind.value] += 1
                if fault.kind is Kind.CRASH:
                    self.crash()
                return fault
        return None

    def silence(self, node: str, now: float) -> float:
        """For how long the node still hears nothing, seconds; the time begins with the first question."""
        for fault in self.faults:
            if fault.kind is Kind.UNREACHABLE and fault.step == node:
                seconds_left = self._since.setdefault(fault, now) + fault.delay_s - now
                if seconds_left > 0:
                    self.counts[node, fault.kind.value] += 1
                    return seconds_left
        return 0.0

    def flipped(self, data: bytes) -> bytes:
        """The bytes with one bit changed."""
        if not data:
            return data
        changed = bytearray(data)
        changed[self._rng.randrange(len(changed))] ^= 1 << self._rng.randrange(8)
        return bytes(changed)

    async def step(self, name: str, node: str) -> None:
        """A named step of a node: raises or waits, if a fault says so (`NodeContext.step`)."""
        fault = self.at(name, node)
        if fault is None:
            return
        if fault.kind is Kind.DELAY:
            await asyncio.sleep(fault.delay_s)
        elif fault.kind in (Kind.STOP, Kind.STOP_AFTER):
            self.stop()
        elif fault.kind is Kind.TIMEOUT:
            raise TimeoutError(f"injected at {name}")
        else:
            raise MigrationRefused(f"injected at {name}: {fault.kind.value}")


_SECONDS = re.compile(r"[0-9.]+s")


def parsed(spec: str, seed: int = 0) -> Faults:
    """Faults as a command line says them: `step:kind[:probability|SECONDS s][:most][@node]`, with commas between; or "default".

    Raises `ConfigError` naming the part that cannot be read.
    """
    return Faults(seed, *(_fault(text.strip()) for text in (DEFAULT if spec == "default" else spec).split(",")))


def _fault(text: str) -> Fault:
    body, _, node = text.partition("@")
    words = body.split(":")
    try:
        step, kind, rest = words[0], Kind(words[1]), words[2:]
        given: dict[str, Any] = {"node": node}
        if rest and _SECONDS.fullmatch(rest[0]):
            given["delay_s"] = float(rest.pop(0)[:-1])
        elif rest:
            given["probability"] = float(rest.pop(0))
        if rest:
            given["most"] = int(rest.pop(0))
        if rest or not step:
            raise ValueError
    except (ValueError, IndexError) as error:
        kinds = ", ".join(kind.value for kind in Kind)
        raise ConfigError(
            f"--faults {text!r} cannot be read; wanted: step:kind[:probability or 10s][:most][@node], with a kind of {kinds}.",
            field="faults", range="step:kind[:probability][:most][@node]",
        ) from error  # fmt: skip
    return Fault(step, kind, **given)


# ---- a substrate that fails ----------------------------------------------------------------------------------


class FaultySubstrate:
    """`Substrate` as one node sees it."""

    def __init__(self, inner: Substrate, faults: Faults, node: str) -> None:
        self._inner = inner
        self.log: Log = FaultyLog(inner.log, faults, node)
        self.wire: Wire = FaultyWire(inner.wire, faults, node)

    @property
    def sync(self) -> str:
        return self._inner.sync

    async def close(self) -> None:
        await self._inner.close()


class FaultyLog(ForwardedLog):
    def __init__(self, log: Log, faults: Faults, node: str) -> None:
        super().__init__(log)
        self._faults = faults
        self._node = node

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        fault = self._faults.at(_appended(subject, data), self._node)
        if fault is None:
            return await self.log.append(subject, data, expect, owner)
        match fault.kind:
            case Kind.DELAY:
                await asyncio.sleep(fault.delay_s)
            case Kind.REFUSE:
                raise StoreUnreachable(f"Injected: nothing was written to {subject}.", subject=subject)
            case Kind.DROP | Kind.TIMEOUT | Kind.CORRUPT:
                await asyncio.sleep(fault.delay_s)
                return Unknown("injected: it was not written")
            case Kind.LOSE_ANSWER:
                await self.log.append(subject, data, expect, owner)
                return Unknown("injected: the answer was lost")
            case Kind.STOP:
                self._faults.stop()
            case Kind.STOP_AFTER:
                outcome = await self.log.append(subject, data, expect, owner)
                self._faults.stop()
                return outcome
            case Kind.DUPLICATE:
                await self.log.append(subject, data, expect, owner)
            case _:
                pass
        return await self.log.append(subject, data, expect, owner)

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        entries = await self.log.read(subject, after, limit)
        fault = self._faults.at("read", self._node)
        if fault is None:
            return entries
        if fault.kind is Kind.DELAY:
            await asyncio.sleep(fault.delay_s)
        elif fault.kind is Kind.CORRUPT:
            return [Entry(entry.seq, self._faults.flipped(entry.data)) for entry in entries]
        else:
            raise StoreUnreachable(f"Injected: {subject} was not read.", subject=subject)
        return entries


class FaultyWire:
    def __init__(self, inner: Wire, faults: Faults, node: str) -> None:
        self._inner = inner
        self._faults = faults
        self._node = node

    async def publish(self, subject: str, data: bytes) -> None:
        fault = self._faults.at(subject.partition(".")[0], self._node)
        if fault is not None:
            if fault.kind is Kind.DELAY:
                await asyncio.sleep(fault.delay_s)
            elif fault.kind is Kind.DUPLICATE:
                await self._inner.publish(subject, data)
            elif fault.kind is Kind.CORRUPT:
                data = self._faults.flipped(data)
            else:
                return
        await self._inner.publish(subject, data)

    async def subscribe(self, subject: str, receive: Callable[[bytes], None]) -> Subscription:
        return await self._inner.subscribe(subject, receive)

    async def request(self, subject: str, data: bytes, timeout: float) -> bytes:
        fault = self._faults.at(f"ask_{_requested(data)}", self._node)
        if fault is None:
            return await self._inner.request(subject, data, timeout)
        match fault.kind:
            case Kind.DELAY:
                await asyncio.sleep(fault.delay_s)
            case Kind.REFUSE:
                raise NoResponder(f"Injected: nobody serves {subject}.")
            case Kind.LOSE_ANSWER:
                await self._inner.request(subject, data, timeout)
                raise WireTimeout(f"Injected: the answer of {subject} was lost.")
            case Kind.DUPLICATE:
                await self._inner.request(subject, data, timeout)
            case Kind.CORRUPT:
                data = self._faults.flipped(data)
            case _:
                await asyncio.sleep(timeout)
                raise WireTimeout(f"Injected: {subject} did not answer.")
        return await self._inner.request(subject, data, timeout)

    async def serve(self, subject: str, answer: Callable[[bytes], Awaitable[bytes]]) -> Subscription:
        async def served(data: bytes) -> bytes:
            silent_s = self._faults.silence(self._node, asyncio.get_running_loop().time())
            if silent_s:
                await asyncio.sleep(silent_s)  # the asker runs out of time, and what it asked for comes late
            return await answer(data)

        return await self._inner.serve(subject, served)


def faulty(substrate: Substrate, faults: Faults, node: str) -> FaultySubstrate:
    """The substrate as this node sees it."""
    return FaultySubstrate(substrate, faults, node)


def _appended(subject: str, data: bytes) -> str:
    if not subject.startswith(LOGS):
        return subject.partition(".")[0]
    try:
        return _snake(type(decode_record(data, subject)))
    except RecordInvalid:
        return "log"


def _requested(data: bytes) -> str:
    try:
        return type(requests.decode_request(data)).__name__.lower()
    except (RecordInvalid, *UNREADABLE):
        return "other"
