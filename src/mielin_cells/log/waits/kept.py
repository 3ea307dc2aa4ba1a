"""Waits as an agent's ledger holds them: outcomes that stand, and waits that keep no turn open (rule T5)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import msgspec

from mielin_cells.settings import OUTCOMES_BYTES_MAX, OUTCOMES_MAX


class Later(msgspec.Struct, array_like=True, frozen=True):
    """A wait that keeps no turn open: its value becomes a message of the agent to itself."""

    key: bytes
    name: str
    handler: str
    """Gets the value, and `args`."""
    args: bytes
    """The arguments behind the first, by name."""
    other: str
    """Gets the reason why there is no value, and `args`; "": that is a dead letter."""
    until: float
    """By the store's time; 0: for ever."""


class Opened(msgspec.Struct, array_like=True, frozen=True, tag="opened"):
    """A wait that keeps no turn open begins."""

    later: Later


class Stood(msgspec.Struct, array_like=True, frozen=True, tag="stood"):
    """A wait has its outcome (msgpack of `message.Answer`), which stands from here on."""

    key: bytes
    outcome: bytes


class Forgot(msgspec.Struct, array_like=True, frozen=True, tag="forgot"):
    """Of the oldest outcomes: whoever resolves such a wait once more is told `WaitOver`."""

    keys: list[bytes]


WaitChange: TypeAlias = Opened | Stood | Forgot
WAIT_CHANGES = (Opened, Stood, Forgot)


class Waits(msgspec.Struct, array_like=True):
    """The waits of one agent.  An undo keeps the outcomes: who resolved was told what stands."""

    stood: dict[bytes, bytes] = {}
    """Outcomes by the waits' keys, the oldest first."""
    later: dict[bytes, Later] = {}

    def apply(self, change: WaitChange) -> None:
        """Owner and readers make the same changes, in the same order."""
        if isinstance(change, Opened):
            self.later[change.later.key] = change.later
        elif isinstance(change, Stood):
            self.stood[change.key] = change.outcome
            self.later.pop(change.key, None)
        else:
            for key in change.keys:
                self.stood.pop(key, None)

    def excess(self) -> list[bytes]:
        """The oldest outcomes above the limits."""
        count, size, gone = len(self.stood), self.outcome_bytes, list[bytes]()
        for key, outcome in self.stood.items():
            if count <= OUTCOMES_MAX and size <= OUTCOMES_BYTES_MAX:
                break
            gone.append(key)
            count, size = count - 1, size - len(outcome)
        return gone

    @property
    def outcome_bytes(self) -> int:
        return sum(map(len, self.stood.values()))

    @property
    def size_bytes(self) -> int:
        return self.outcome_bytes + sum(len(one.args) for one in self.later.values())

    def copy(self) -> Waits:
        return Waits(dict(self.stood), dict(self.later))

    def content(self) -> tuple[object, ...]:
        """For a digest."""
        return [*self.stood.items()], sorted(self.later.items())


def wrong_waits(waits: Waits | None, changes: Iterable[WaitChange]) -> str:
    """What is wrong with the changes of one commit; "" if nothing is.  The first outcome of a wait stands."""
    stood = set(waits.stood) if waits is not None else set[bytes]()
    for change in changes:
        if isinstance(change, Stood):
            if change.key in stood:
                return "it gives a wait a second outcome (rule T5)"
            stood.add(change.key)
        elif isinstance(change, Opened) and change.later.key in stood:
            return "it opens a wait that has its outcome (rule T5)"
    return ""


def after_undo(back: Waits | None, stood: dict[bytes, bytes]) -> Waits | None:
    """The waits after an undo to a record where they were `back`; `stood`: all outcomes that were recorded, there and since."""
    later = {} if back is None else {key: one for key, one in back.later.items() if key not in stood}
    return Waits(dict(stood), later) if stood or later else None
