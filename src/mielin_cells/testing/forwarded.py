"""A log that passes every call on: the base of logs that do some calls in another way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from mielin_cells.substrate.ports import Entry, Found, Log, Outcome, Outside, Source, Subscription, Tail


class ForwardedLog:
    """Passes every call on to `log`, after `called`: the base of logs that do some calls in another way."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def called(self, what: str, subject: str) -> None:
        """For a subclass that counts calls or raises."""

    @property
    def outside(self) -> Outside | None:
        return self.log.outside

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        self.called("append", subject)
        return await self.log.append(subject, data, expect, owner)

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        self.called("read", subject)
        return await self.log.read(subject, after, limit)

    async def last(self, subject: str) -> Entry | None:
        self.called("last", subject)
        return await self.log.last(subject)

    async def settled(self, subject: str) -> Entry | None:
        self.called("settled", subject)
        return await self.log.settled(subject)

    async def lasts(self, subjects: Sequence[str]) -> dict[str, Entry]:
        self.called("lasts", "")
        return await self.log.lasts(subjects)

    def tail(self, subject: str, after: int = 0) -> Tail:
        self.called("tail", subject)
        return self.log.tail(subject, after)

    async def trim(self, subject: str, before: int) -> None:
        self.called("trim", subject)
        await self.log.trim(subject, before)

    async def subjects(self, prefix: str) -> list[tuple[str, int]]:
        self.called("subjects", prefix)
        return await self.log.subjects(prefix)

    async def position(self) -> tuple[int, ...]:
        self.called("position", "")
        return await self.log.position()

    async def now(self) -> float:
        self.called("now", "")
        return await self.log.now()

    async def owned(self, owner: str, source: Source = "index") -> list[str]:
        self.called("owned", owner)
        return await self.log.owned(owner, source)

    async def owned_by_others(self, nodes: Collection[str]) -> list[str]:
        self.called("owned_by_others", "")
        return await self.log.owned_by_others(nodes)

    def hear_owned(self, owner: str, receive: Callable[[str | None], None]) -> Subscription:
        self.called("hear_owned", owner)
        return self.log.hear_owned(owner, receive)

    async def forget_owned(self, owner: str, subject: str, seq: int) -> None:
        self.called("forget_owned", subject)
        await self.log.forget_owned(owner, subject, seq)

    async def mend_owned(self) -> int:
        self.called("mend_owned", "")
        return await self.log.mend_owned()

    async def topic_ends(self) -> tuple[int, ...]:
        self.called("topic_ends", "")
        return await self.log.topic_ends()

    async def scan(self, pattern: str, shard: int, after: int = 0, limit: int = 1000) -> list[Found]:
        self.called("scan", pattern)
        return await self.log.scan(pattern, shard, after, limit)

    def watch(self, pattern: str, wake: Callable[[], None]) -> Subscription:
        self.called("watch", pattern)
        return self.log.watch(pattern, wake)
