"""The index of owners: what it names is found by it alone, and what it has missed by a comparison of all logs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from support.failing import QUICK, Gauge, die, leader_of, nodes
from support.logs import SLOW, HeldLog, Score
from support.moving import nodes as slow_nodes
from support.waiting import until

from mielin_cells.log.ids import LOGS, log_subject
from mielin_cells.membership import table
from mielin_cells.membership.takeover import Taken, Takeover
from mielin_cells.node.failover import Failover
from mielin_cells.substrate.ports import Entry, Log, Source


class IndexedLog(HeldLog):
    """A log that notes which agents' logs are read, and whose index may have lost its entries."""

    def __init__(self, inner: Log, *, has_index: bool = True) -> None:
        super().__init__(inner)
        self.go.set()
        self.has_index = has_index
        self.read_subjects = set[str]()
        self.stale = dict[str, Entry]()
        self.former = list[str]()
        """Entries of agents that have moved away, as a server's index keeps them."""
        self.removed = dict[str, int]()
        """What was asked to be removed, if it was older than that sequence."""

    def called(self, what: str, subject: str) -> None:
        if subject.startswith(LOGS) and what != "append":
            self.read_subjects.add(subject)

    async def lasts(self, subjects: Sequence[str]) -> dict[str, Entry]:
        self.read_subjects.update(subject for subject in subjects if subject.startswith(LOGS))
        return await super().lasts(subjects) | {name: self.stale[name] for name in subjects if name in self.stale}

    async def last(self, subject: str) -> Entry | None:
        return self.stale.get(subject) or await super().last(subject)

    async def owned(self, owner: str, source: Source = "index") -> list[str]:
        if source == "logs":
            return await super().owned(owner, source)
        return sorted([*await super().owned(owner, source), *self.former]) if self.has_index else []

    async def forget_owned(self, owner: str, subject: str, seq: int) -> None:
        self.removed[subject] = seq


async def test_a_takeover_by_the_index_reads_no_log_of_other_nodes() -> None:
    async with slow_nodes("node-1", "node-2", "node-3", settings=SLOW) as (client, running):
        for number in range(12):
            await client.on(f"node-{number % 3 + 1}").spawn(Score, f"s{number}")
        running["node-2"].kill()
        log = IndexedLog(client.log)
        takeover = Takeover(log, client.wire, asyncio.get_running_loop().time)
        members = await table.read_members(client.log)
        nodes = [info for info in members.infos() if info.name != "node-2"]
        taken = await takeover.take({"node-2"}, members.members, nodes, source="index", on_order=True)
        assert (taken.claimed, taken.failed) == (4, {})
        assert log.read_subjects == {log_subject(f"s{number}") for number in range(1, 12, 3)}


@pytest.mark.parametrize("source", ["logs", None])
async def test_what_the_index_has_missed_is_found_by_the_names_of_the_logs(source: Source | None) -> None:
    """And no log is read of which no name says that it may be an agent of the node."""
    async with slow_nodes("node-1", "node-2", "node-3", settings=SLOW) as (client, running):
        for number in range(12):
            await client.on(f"node-{number % 3 + 1}").spawn(Score, f"s{number}")
        running["node-2"].kill()
        log = IndexedLog(client.log, has_index=False)
        takeover = Takeover(log, client.wire, asyncio.get_running_loop().time)
        members = await table.read_members(client.log)
        nodes = [info for info in members.infos() if info.name != "node-2"]
        for late in ("index", "settled index"):
            assert (await takeover.take({"node-2"}, members.members, nodes, source=late, on_order=True)) == Taken(
                frozenset(), 0, {}, frozenset()
            )
        taken = await takeover.take({"node-2"}, members.members, nodes, source=source, on_order=True)
        assert taken == Taken(frozenset({"node-2"}), 4, {}, frozenset())
        assert log.read_subjects == {log_subject(f"s{number}") for number in range(1, 12, 3)}


def is_vacant(keeper: Failover, name: str) -> bool:
    member = keeper._members.table.get(name)
    return member is not None and member in keeper.vacant


def noted_sources(monkeypatch: pytest.MonkeyPatch) -> list[tuple[frozenset[str], Source | None]]:
    """Of each takeover, from whom and by which list."""
    take, sources = Takeover.take, list[tuple[frozenset[str], Source | None]]()

    async def noted(self: Takeover, gone: frozenset[str], *args: Any, **how: Any) -> Taken:
        sources.append((gone, how["source"]))
        return await take(self, gone, *args, **how)

    monkeypatch.setattr(Takeover, "take", noted)
    return sources


async def test_failover_finds_an_agent_that_the_index_has_missed() -> None:
    async with nodes("node-1", "node-2") as (client, running, keepers, air):
        gauge = await client.on("node-2").spawn(Gauge, "g")
        assert await gauge.add() == 1
        for name, keeper in keepers.items():
            keeper._takeover._log = IndexedLog(running[name].home.log, has_index=False)
        die(running["node-2"], air)
        assert await gauge.add() == 2
        assert await gauge.where() == "node-1"


async def test_a_node_counts_as_empty_after_a_list_behind_a_marker_that_does_not_name_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not after one that came to nothing before the marker, nor after one whose agents were only just claimed."""
    sources = noted_sources(monkeypatch)
    async with nodes("node-1", "node-2") as (client, running, keepers, air):
        await until(lambda: (frozenset(), None) in sources)  # the leader compares all logs once it leads
        await (await client.on("node-2").spawn(Gauge, "g")).add()
        sources.clear()
        die(running["node-2"], air)
        keeper = keepers["node-1"]
        await until(lambda: is_vacant(keeper, "node-2"))
        gone = frozenset({"node-2"})
        # If node-2 led, node-1 does now, and compares all logs once.
        assert [one for one in sources if one[0]][:3] == [(gone, "index"), (gone, "logs"), (gone, "settled index")]
        count = len(sources)
        await until(lambda: len(sources) > count)
        assert sources[count:] == [(gone, "index")]  # what it had sent may land late
        assert (gone, None) not in sources  # the next comparison is due after `compare_s`


async def test_a_node_that_the_marker_finds_an_agent_of_is_not_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes("node-1", "node-2") as (client, running, keepers, air):
        gauge = await client.on("node-2").spawn(Gauge, "g")
        keeper = keepers["node-1"]
        take, found = Takeover.take, list[frozenset[str]]()

        async def late(self: Takeover, *args: Any, **how: Any) -> Taken:
            """Of what the dead node wrote, no list has anything but the one behind the marker."""
            if how["source"] != "settled index":
                return Taken(frozenset(), 0, {}, frozenset())
            found.append((taken := await take(self, *args, **how)).found)
            assert not is_vacant(keeper, "node-2")
            return taken

        monkeypatch.setattr(Takeover, "take", late)
        die(running["node-2"], air)
        assert await gauge.add() == 1
        await until(lambda: is_vacant(keeper, "node-2"))
        assert found[:2] == [frozenset({"node-2"}), frozenset()]


class MendedLog(IndexedLog):
    """Its index loses its entries again and again."""

    def __init__(self, inner: Log) -> None:
        super().__init__(inner, has_index=False)
        self.mended = list[float]()

    async def mend_owned(self) -> int:
        self.mended.append(asyncio.get_running_loop().time())
        return 3


async def test_the_leader_has_an_index_made_anew_that_has_lost_agents_but_not_again_and_again() -> None:
    often = replace(QUICK, compare_s=0.2)
    async with nodes("node-1", "node-2", settings=often) as (client, running, _keepers, _air):
        leader = await leader_of(client)
        log = running[leader].home.log = MendedLog(running[leader].home.log)
        (name,) = running.keys() - {leader}
        other = running[name].home.log = MendedLog(running[name].home.log)
        await until(lambda: len(log.mended) >= 4)
        waits = [after - before for before, after in pairwise(log.mended)]
        assert waits[1] > 1.5 * often.compare_s  # it is compared five times a second
        assert waits[2] > 3.5 * often.compare_s
        assert other.mended == []


async def test_a_node_that_starts_reads_its_own_agents_logs_alone() -> None:
    async with slow_nodes("node-1", "node-2", settings=SLOW) as (client, running):
        for number in range(12):
            await client.on(f"node-{number % 2 + 1}").spawn(Score, f"s{number}")
        moved = client.get(Score, "s1")
        assert (await client.migrate(moved, to="node-1")).ok
        second = running["node-2"]
        for name in ("s3", "s5"):
            second.activations.drop(second.activations.live[name])
        log = second.home.log = IndexedLog(second.home.log)
        log.former = [log_subject("s1")]
        await second.rounds.begin()
        assert {"s3", "s5"} <= second.activations.live.keys()
        assert log.read_subjects <= {log_subject(f"s{number}") for number in range(1, 12, 2)}
        await until(lambda: list(log.removed) == [log_subject("s1")])


async def test_an_entry_of_the_index_is_not_removed_for_a_late_answer() -> None:
    """A leader that was cut off answers with the record before the one that the index has."""
    async with slow_nodes("node-1", "node-2", settings=SLOW) as (client, running):
        late = await client.on("node-1").spawn(Score, "late")
        await client.on("node-1").spawn(Score, "moved")
        before = await client.log.last(log_subject("late"))
        assert before is not None
        assert (await client.migrate(late, to="node-2")).ok
        second = running["node-2"]
        second.activations.drop(second.activations.live["late"])
        log = second.home.log = IndexedLog(second.home.log)
        log.stale[log_subject("late")] = before
        log.former = [log_subject("moved")]
        await second.rounds.begin()
        assert second.adoption.quiet["late"] == before.seq
        await until(lambda: log_subject("moved") in log.removed)
        assert log.removed.get(log_subject("late"), 0) <= before.seq  # the index has it by a later record
