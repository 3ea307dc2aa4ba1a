"""The contract's checks refuse adapters that break it: each of these is wrong in one way, and is refused."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Any, TypeAlias

import pytest

from mielin_cells.errors import CellError
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Appended, Conflict, Entry, Log, Outcome, Source
from mielin_cells.testing import conformance
from mielin_cells.testing.conformance import kit
from mielin_cells.testing.forwarded import ForwardedLog


class Broken(ForwardedLog):
    """A log that is right.  Subclasses are wrong in one way."""

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self.seen: dict[Any, Any] = {}


class ChangedTail:
    """Of another tail, each batch as `change` makes it."""

    def __init__(self, tail: Any, change: Callable[[list[Entry]], list[Entry]], *, closes: bool = True) -> None:
        self.tail, self.change, self.closes = tail, change, closes

    def __aiter__(self) -> AsyncIterator[list[Entry]]:
        return self

    async def __anext__(self) -> list[Entry]:
        while True:
            batch = self.change(await anext(self.tail))
            if batch:
                return batch

    def watch(self, come: Callable[[], None]) -> bool:
        watched: bool = self.tail.watch(come)
        return watched

    def close(self) -> None:
        if self.closes:
            self.tail.close()


class TailIgnoresAfter(Broken):
    def tail(self, subject: str, after: int = 0) -> Any:
        return self.log.tail(subject, 0)


class TailBeginsOneLate(Broken):
    def tail(self, subject: str, after: int = 0) -> Any:
        return self.log.tail(subject, after + 1)


class TailRepeats(Broken):
    def tail(self, subject: str, after: int = 0) -> Any:
        return ChangedTail(self.log.tail(subject, after), lambda batch: [*batch, batch[-1]])


class TailHasAGap(Broken):
    def tail(self, subject: str, after: int = 0) -> Any:
        return ChangedTail(self.log.tail(subject, after), lambda batch: [e for e in batch if e.seq % 7])


class TailIsOutOfOrder(Broken):
    def tail(self, subject: str, after: int = 0) -> Any:
        return ChangedTail(self.log.tail(subject, after), lambda batch: batch[::-1])


class TailLosesWhatComesAsItGoesLive(Broken):
    """What is stored when it begins, and what comes after that is read: between the two, nothing."""

    def tail(self, subject: str, after: int = 0) -> Any:
        missing = [True]

        def change(batch: list[Entry]) -> list[Entry]:
            live = [entry for entry in batch if entry.data.startswith(b"live")]
            if live and missing:
                missing.clear()
                return [entry for entry in batch if entry is not live[0]]
            return batch

        return ChangedTail(self.log.tail(subject, after), change)


class TailIsNeverLive(Broken):
    def tail(self, subject: str, after: int = 0) -> Any:
        done = list[int]()

        def change(batch: list[Entry]) -> list[Entry]:
            done.append(1)
            return batch if len(done) == 1 else []

        return ChangedTail(self.log.tail(subject, after), change)


class TailDoesNotEnd(Broken):
    def tail(self, subject: str, after: int = 0) -> Any:
        return ChangedTail(self.log.tail(subject, after), lambda batch: batch, closes=False)


class TailIsWatchedForNothing(Broken):
    """What comes while it is watched wakes nobody."""

    def tail(self, subject: str, after: int = 0) -> Any:
        tail = ChangedTail(self.log.tail(subject, after), lambda batch: batch)
        tail.watch = lambda come: ChangedTail.watch(tail, lambda: None)  # type: ignore[method-assign]
        return tail


class TailIsWatchedAnyhow(Broken):
    def tail(self, subject: str, after: int = 0) -> Any:
        tail = ChangedTail(self.log.tail(subject, after), lambda batch: batch)
        tail.watch = lambda come: ChangedTail.watch(tail, come) or True  # type: ignore[method-assign]
        return tail


class EmptyFirst(ChangedTail):
    async def __anext__(self) -> list[Entry]:
        if self.closes:
            self.closes = False
            return []
        return await super().__anext__()

    def close(self) -> None:
        self.tail.close()


class TailGivesEmptyBatches(Broken):
    def tail(self, subject: str, after: int = 0) -> Any:
        return EmptyFirst(self.log.tail(subject, after), lambda batch: batch)


class TrimSparesTheLast(Broken):
    async def trim(self, subject: str, before: int) -> None:
        last = await self.log.last(subject)
        if last is not None:
            await self.log.trim(subject, min(before, last.seq))


class TrimDoesNothing(Broken):
    async def trim(self, subject: str, before: int) -> None:
        pass


class TrimTakesOneTooMany(Broken):
    async def trim(self, subject: str, before: int) -> None:
        await self.log.trim(subject, before + 1)


class TrimTakesOthersToo(Broken):
    async def trim(self, subject: str, before: int) -> None:
        for name, _ in await self.log.subjects(subject):
            await self.log.trim(name, before)


class ReadIsEmpty(Broken):
    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        return []


class ReadSkips(Broken):
    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        found = await super().read(subject, after, limit)
        return [entry for n, entry in enumerate(found) if n != 2]


class ReadIgnoresAfter(Broken):
    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        found: list[Entry] = await self.log.read(subject, 0 if after > 100 else after, limit)
        return found


class ReadIncludesAfter(Broken):
    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        found: list[Entry] = await self.log.read(subject, max(0, after - 1), limit)
        return found


class ReadIgnoresTheLimit(Broken):
    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        found: list[Entry] = await self.log.read(subject, after, 1000)
        return found


class ReadGivesTheNewest(Broken):
    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        return (await super().read(subject, after, 1000))[-limit:]


class ReadGoesByPrefix(Broken):
    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        names = await self.log.subjects(subject)
        found = [entry for name, _ in names for entry in await self.log.read(name, after, limit)]
        return sorted(found)[:limit]


class LastIsStale(Broken):
    async def last(self, subject: str) -> Entry | None:
        before: Entry | None = self.seen.get(subject)
        found = self.seen[subject] = await super().last(subject)
        return before or found


class LastMisses(Broken):
    async def last(self, subject: str) -> Entry | None:
        return None


class LastInvents(Broken):
    async def last(self, subject: str) -> Entry | None:
        return await super().last(subject) or Entry(1, b"")


class SettledIsStale(Broken):
    async def settled(self, subject: str) -> Entry | None:
        before: Entry | None = self.seen.get(subject)
        found = self.seen[subject] = await super().settled(subject)
        return before or found


class LastsMisses(Broken):
    async def lasts(self, subjects: Sequence[str]) -> dict[str, Entry]:
        found: dict[str, Entry] = await self.log.lasts(subjects[:100])
        return found


class LastsLies(Broken):
    async def lasts(self, subjects: Sequence[str]) -> dict[str, Entry]:
        found = await self.log.lasts(subjects)
        return {name: Entry(1, entry.data) for name, entry in found.items()}


class LastsInvents(Broken):
    async def lasts(self, subjects: Sequence[str]) -> dict[str, Entry]:
        return {name: Entry(0, b"") for name in subjects} | await super().lasts(subjects)


class SubjectsMisses(Broken):
    async def subjects(self, prefix: str) -> list[tuple[str, int]]:
        return (await super().subjects(prefix))[:100]


class SubjectsIgnoresThePrefix(Broken):
    async def subjects(self, prefix: str) -> list[tuple[str, int]]:
        return await super().subjects("")


class SubjectsLies(Broken):
    async def subjects(self, prefix: str) -> list[tuple[str, int]]:
        return [(name, 1) for name, _ in await self.log.subjects(prefix)]


class SubjectsIsOutOfOrder(Broken):
    async def subjects(self, prefix: str) -> list[tuple[str, int]]:
        return (await super().subjects(prefix))[::-1]


class SubjectsRemembersTheTrimmed(Broken):
    async def subjects(self, prefix: str) -> list[tuple[str, int]]:
        self.seen |= dict(await self.log.subjects(""))
        return sorted((name, seq) for name, seq in self.seen.items() if name.startswith(prefix))

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        outcome = await super().append(subject, data, expect, owner)
        if isinstance(outcome, Appended):
            self.seen[subject] = outcome.seq
        return outcome


class AppendIgnoresExpect(Broken):
    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        return await super().append(subject, data, None, owner)


class AppendChecksOnlyThatThereIsSomething(Broken):
    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        if expect:
            last = await self.log.last(subject)
            expect = last.seq if last is not None else expect
        return await super().append(subject, data, expect, owner)


class AppendTakesWhatIsAhead(Broken):
    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        last = await self.log.last(subject)
        if expect is not None and last is not None and expect > last.seq:
            expect = last.seq
        return await super().append(subject, data, expect, owner)


class AppendStoresTheLosers(Broken):
    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        outcome = await super().append(subject, data, expect, owner)
        if isinstance(outcome, Conflict):
            await super().append(subject, data, None, owner)
        return outcome


class AppendForgets(Broken):
    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        if data == b"7":
            return Appended(8)
        return await super().append(subject, data, expect, owner)


class AppendSwallowsRepeats(Broken):
    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        if expect is None and (subject, data) in self.seen:
            return Appended(self.seen[subject, data].seq)
        outcome = self.seen[subject, data] = await super().append(subject, data, expect, owner)
        return outcome


class AppendSaysAnotherPlace(Broken):
    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        outcome = await super().append(subject, data, expect, owner)
        return Appended(outcome.seq + 1) if isinstance(outcome, Appended) else outcome


class AppendChangesBytes(Broken):
    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        return await super().append(subject, data[:-1] if len(data) > 100_000 else data, expect, owner)


class AppendTakesAnySize(Broken):
    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        try:
            return await super().append(subject, data, expect, owner)
        except CellError:
            return await super().append(subject, data[:100], expect, owner)


class TailOfAllThatBeginsSo(Broken):
    def tail(self, subject: str, after: int = 0) -> Any:
        return ChangedTail(
            self.log.tail(subject, after), lambda batch: [*batch, Entry(batch[-1].seq + 1, b"another's")]
        )


class AppendExpectsOfItsOwnKind(Broken):
    """As with a condition by the exact name of the entry, of which a log has several."""

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        last = self.seen.get((subject, owner), 0)
        if expect is not None and expect != last:
            return Conflict(last)
        outcome = await super().append(subject, data, None, owner)
        if isinstance(outcome, Appended):
            self.seen[subject, owner] = outcome.seq
        return outcome


class AppendForgetsTheOwner(Broken):
    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        return await super().append(subject, data, expect)


class TrimRemovesTheLastOwner(Broken):
    async def trim(self, subject: str, before: int) -> None:
        self.seen[subject] = max(before, self.seen.get(subject, 0))
        await super().trim(subject, before)

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        last = await self.log.last(subject)
        low = min(self.seen.get(subject, 0), last.seq if last is not None else 0)
        return [entry for entry in await super().read(subject, after, limit) if entry.seq >= low]


class TrimLeavesNothing(Broken):
    async def trim(self, subject: str, before: int) -> None:
        await super().trim(subject, before)
        self.seen[subject] = before

    async def last(self, subject: str) -> Entry | None:
        last = await super().last(subject)
        return last if last is not None and last.seq >= self.seen.get(subject, 0) else None

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        return await super().read(subject, max(after, self.seen.get(subject, 0) - 1), limit)


class OwnedIsEmpty(Broken):
    async def owned(self, owner: str, source: Source = "index") -> list[str]:
        return []


class OwnedIsForgottenWhatever(Broken):
    async def forget_owned(self, owner: str, subject: str, seq: int) -> None:
        self.seen[f"{owner} {subject}"] = 1

    async def owned(self, owner: str, source: Source = "index") -> list[str]:
        return [subject for subject in await super().owned(owner, source) if f"{owner} {subject}" not in self.seen]


class OwnedIsOfEverybody(Broken):
    async def owned(self, owner: str, source: Source = "index") -> list[str]:
        return [subject for subject, _ in await self.log.subjects("log.")]


class OwnedHasOnePage(Broken):
    async def owned(self, owner: str, source: Source = "index") -> list[str]:
        return (await super().owned(owner, source))[:1000]


class OthersAreEverybody(Broken):
    async def owned_by_others(self, nodes: Collection[str]) -> list[str]:
        return await super().owned_by_others([])


class OthersAreNobody(Broken):
    async def owned_by_others(self, nodes: Collection[str]) -> list[str]:
        return []


class OthersAreForgotten(Broken):
    """As if read from an index, and not from the logs."""

    async def forget_owned(self, owner: str, subject: str, seq: int) -> None:
        self.seen[subject] = 1

    async def owned_by_others(self, nodes: Collection[str]) -> list[str]:
        return [subject for subject in await super().owned_by_others(nodes) if subject not in self.seen]


class TimeStandsStill(Broken):
    async def now(self) -> float:
        return 1e9


class TimeRuns(Broken):
    async def now(self) -> float:
        return 3 * await super().now()


SLOW = (
    "many_logs_of_one_owner_are_all_found",
    "one_contender_wins_each_place_whatever_it_appends",
    "one_contender_wins_each_place",
    "the_last_entries_of_many_subjects_are_read_at_once",
    "a_tail_has_no_gap_and_no_repeat",
)

Kind: TypeAlias = type[Broken]
BROKEN: tuple[Kind, ...] = tuple(Broken.__subclasses__())


class Adapter:
    def __init__(self, inner: Embedded, kind: Kind) -> None:
        self.log, self.wire, self.sync = kind(inner.log), inner.wire, "memory"

    async def close(self) -> None:
        pass


CHEAP_FIRST = sorted(conformance.CHECKS, key=lambda check: check.__name__ in SLOW)


async def found_wrong(kind: Kind) -> list[str]:
    """The checks that refuse it."""
    refused = list[str]()
    for check in CHEAP_FIRST:
        substrate = await Embedded.open()
        try:
            await asyncio.wait_for(check(Adapter(substrate, kind)), 5)
        except AssertionError:
            refused.append(check.__name__)
            break
        except TimeoutError:
            continue
        finally:
            await substrate.close()
    return refused


async def test_the_log_that_they_are_made_of_is_right() -> None:
    for check in conformance.CHECKS:
        substrate = await Embedded.open()
        await check(Adapter(substrate, Broken))
        await substrate.close()


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
async def test_a_broken_log_is_refused(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit, "WAIT_S", 0.15)
    assert await found_wrong(kind)


def test_nothing_that_is_checked_goes_away_with_optimization() -> None:
    program = """
import asyncio
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.testing import conformance
from mielin_cells.testing.conformance import kit

async def main():
    substrate = await Embedded.open()
    class Empty:
        def __getattr__(self, name): return getattr(substrate.log, name)
        async def read(self, subject, after=0, limit=1000): return []
    substrate_ = type("S", (), {"log": Empty(), "wire": substrate.wire})()
    try:
        await conformance.CHECKS[0](substrate_)
    except AssertionError:
        print("refused", __debug__)
    await substrate.close()
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-O", "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "refused False\n"
