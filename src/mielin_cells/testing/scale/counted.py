"""A simulated world that counts what goes to its store and over its wire, by kind, and keeps nothing else of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import ClassVar, TypeAlias, cast

from mielin_cells.log.ids import JOURNALS, LOGS, control_subject, inbox_subject, reply_subject
from mielin_cells.rpc.requests import decode_request
from mielin_cells.substrate.ports import Entry, Source
from mielin_cells.testing.simulator.link import Tail, Wired
from mielin_cells.testing.simulator.view import View
from mielin_cells.testing.simulator.world import World

Key: TypeAlias = tuple[str, str]
"""What was done, and the kind of subject that it was done to."""

BEATS, MEMBERS, AGENTS = "beats", "members", "agents"

KINDS = (
    (LOGS, AGENTS), (inbox_subject(""), "inboxes"), (JOURNALS, "journals"), ("beat.", BEATS), (reply_subject(""), "replies"),
    (control_subject(""), "requests"), ("members", MEMBERS),
)  # fmt: skip
"""Beginnings of subjects, and what they are."""


def kind_of(subject: str) -> str:
    return next((kind for beginning, kind in KINDS if subject.startswith(beginning)), "others")


class Tally:
    """What has been counted since the world began."""

    def __init__(self) -> None:
        self.calls = Counter[Key]()
        """Calls of log and wire."""
        self.entries = Counter[Key]()
        """Entries and names that came back, or that a tail has shown."""
        self.bytes = Counter[Key]()
        """Of the entries that came back."""
        self.requests = Counter[str]()
        """Requests to nodes, by their type."""
        self.heard = Counter[str]()
        """Heartbeats that came to each process, by its name."""

    def since(self, before: Tally) -> Tally:
        """What was counted after `before` was copied."""
        tally = Tally()
        for name, mine in vars(self).items():
            getattr(tally, name).update({key: count - getattr(before, name)[key] for key, count in mine.items()})
        return tally

    def copy(self) -> Tally:
        return self.since(Tally())

    def add_entries(self, what: str, kind: str, entries: Sequence[Entry]) -> None:
        self.entries[what, kind] += len(entries)
        self.bytes[what, kind] += sum(len(entry.data) for entry in entries)


class CountedTail(Tail):
    """Brings everything that has landed by then, so that a log that all nodes follow is not brought entry by entry to each."""

    limits: ClassVar[tuple[int, ...]] = (1000,)
    _is_coming = False

    def reveal_soon(self, seq: int) -> None:
        if not self._is_coming:
            self._is_coming = True
            self._view.world.later(self._view.delay(), self._reveal_all)

    def _reveal_all(self) -> None:
        self._is_coming = False
        last = self._view.world.store.last(self.subject)
        if last is not None:
            self.reveal(last.seq)

    async def __anext__(self) -> list[Entry]:
        batch = await super().__anext__()
        _tally(self._view.world).add_entries("tail", kind_of(self.subject), batch)
        return batch


class CountedView(View):
    tail_type: ClassVar[type[Tail]] = CountedTail

    async def _enter(self, what: str, subject: str) -> str:
        if what != "lasts":
            kind = AGENTS if what in {"owned", "position"} else kind_of(subject)
            _tally(self.world).calls[what, kind] += 1
        return await super()._enter(what, subject)

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        entries = await super().read(subject, after, limit)
        _tally(self.world).add_entries("read", kind_of(subject), entries)
        return entries

    async def last(self, subject: str) -> Entry | None:
        entry = await super().last(subject)
        _tally(self.world).add_entries("last", kind_of(subject), [entry] if entry is not None else [])
        return entry

    async def lasts(self, subjects: Sequence[str]) -> dict[str, Entry]:
        kind = kind_of(subjects[0]) if subjects else "others"
        _tally(self.world).calls["lasts", kind] += 1
        entries = await super().lasts(subjects)
        _tally(self.world).add_entries("lasts", kind, [*entries.values()])
        return entries

    async def subjects(self, prefix: str) -> list[tuple[str, int]]:
        listed = await super().subjects(prefix)
        _tally(self.world).entries["subjects", kind_of(prefix)] += len(listed)
        return listed

    async def owned(self, owner: str, source: Source = "index") -> list[str]:
        owned = await super().owned(owner, source)
        _tally(self.world).entries["owned", AGENTS] += len(owned)
        return owned

    async def owned_by_others(self, nodes: Collection[str]) -> list[str]:
        owned = await super().owned_by_others(nodes)
        _tally(self.world).entries["owned", AGENTS] += len(owned)
        return owned

    async def request(self, subject: str, data: bytes, timeout: float) -> bytes:
        _tally(self.world).requests[type(decode_request(data)).__name__] += 1
        return await super().request(subject, data, timeout)

    def _deliver(self, wired: Wired, data: bytes) -> None:
        kind = kind_of(wired.subject)
        _tally(self.world).calls["deliver", kind] += 1
        if kind == BEATS:
            _tally(self.world).heard[wired.view.name] += 1
        super()._deliver(wired, data)


class CountedWorld(World):
    """Without faults, and without a record for checkers of histories."""

    view_type: ClassVar[type[View]] = CountedView

    def __init__(self, seed: int) -> None:
        super().__init__(seed, records=False)
        self.tally = Tally()


def _tally(world: object) -> Tally:
    return cast("CountedWorld", world).tally
