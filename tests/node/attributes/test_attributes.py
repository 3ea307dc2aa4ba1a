"""Attributes of agents: with the turn, through moves, deaths and undos; on the embedded store and on a server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support.nodes import Deployment, deployment

import mielin_cells as cells
from mielin_cells.errors import AttributeInvalid, NotInTurn, ReadOnly
from mielin_cells.log.attributes.entries import PATTERN, Listing, decode_listing, encode_listing
from mielin_cells.log.attributes.values import FIELD
from mielin_cells.log.ids import ATTRIBUTES, attributes_subject
from mielin_cells.node.attributes.announcer import TRIM_EVERY
from mielin_cells.store.directory import Directory
from mielin_cells.store.reader import load
from mielin_cells.substrate.jetstream import JetStream
from mielin_cells.substrate.jetstream.server import Server
from mielin_cells.substrate.ports import Appended, Log, Outcome, Unknown
from mielin_cells.testing.forwarded import ForwardedLog

QUICK = cells.Settings(reconcile_s=0.5, probation_s=1.0, ask_timeout_s=10.0)
_numbers = itertools.count()


class Parcel(cells.Agent, name="AttrParcel"):
    count: int = 0

    @cells.handler
    async def put(
        self, changes: dict[str, str | int | float | bool | None], fails: bool = False
    ) -> dict[str, bool | int | float | str]:
        self.count += 1
        now = cells.attributes(**changes)
        if fails:
            raise ValueError("no")
        return now

    @cells.handler
    async def twice(self) -> dict[str, bool | int | float | str]:
        cells.attributes(load=1, region="eu")
        return cells.attributes(load=2)

    @cells.handler
    async def many(self, count: int) -> None:
        for n in range(count):
            cells.attributes(load=n)

    @cells.handler
    async def odd(self) -> None:
        cells.attributes(**{"a b": 1})

    @cells.handler(shared=True)
    async def look(self) -> int:
        cells.attributes(load=1)
        return self.count


class Greeter(cells.Agent, name="AttrGreeter"):
    visits: int = 0

    async def on_arrive(self) -> None:
        cells.attributes(home=cells.this().node)

    async def on_start(self) -> None:
        cells.attributes(born=True)

    @cells.handler
    async def visit(self) -> int:
        self.visits += 1
        return self.visits


@pytest.fixture(params=["embedded", "server"])
async def opened(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Deployment]:
    on = None
    if request.param == "server":
        on = await JetStream.open(server.url, deployment=f"attr{next(_numbers)}", shards=2)
    async with deployment("node-1", "node-2", "node-3", settings=QUICK, on=on) as made:
        yield made


async def found(one: Any, where: str) -> list[str]:
    return [each.id async for each in one.find(Parcel, where=where)]


async def until_found(one: Any, where: str, wanted: list[str]) -> None:
    async with asyncio.timeout(60):
        while await found(one, where) != wanted:
            await asyncio.sleep(0.01)


async def all_numbers(log: Log) -> dict[str, list[int]]:
    """By agent, the numbers of all entries that are stored."""
    numbers: dict[str, list[int]] = {}
    for shard in range(len(await log.topic_ends())):
        for one in await log.scan(PATTERN, shard):
            listing = decode_listing(one.data, one.subject)
            numbers.setdefault(listing.agent, []).append(listing.n)
    return numbers


async def test_agents_are_found_by_attributes_while_they_move_and_when_their_node_dies(opened: Deployment) -> None:
    cluster = opened.client
    parcels = [await cluster.on(f"node-{n % 3 + 1}").spawn(Parcel, f"p{n}") for n in range(6)]
    for n, parcel in enumerate(parcels):
        assert await parcel.put({"region": "eu" if n % 2 else "us", "load": n}) == {
            "load": n,
            "region": "eu" if n % 2 else "us",
        }
    await until_found(cluster, 'region == "eu" and load < 5', ["p1", "p3"])
    await cluster.migrate("p1", to="node-3")
    await until_found(cluster, 'region == "eu" and load < 5', ["p1", "p3"])
    (one,) = [each async for each in cluster.find(Parcel, where="load == 1")]
    assert (one.id, one.node, one.cls, one.attributes) == ("p1", "node-3", "AttrParcel", {"load": 1, "region": "eu"})
    assert await one.ref.put({"load": None, "done": True}) == {"done": True, "region": "eu"}
    opened.kill("node-3")  # the change may not have been written yet
    await cluster.claim("p1", "node-2")
    await until_found(cluster, "done and not exists(load)", ["p1"])
    async with asyncio.timeout(30):
        assert await one.ref.put({"load": 0.5}) == {"done": True, "load": 0.5, "region": "eu"}
    await until_found(cluster, "load > 0 and load < 1", ["p1"])
    page = await cluster.find(Parcel, where=cells.attr("load") >= 0).page(limit=4)
    assert ([each.id for each in page.items], page.next) == (["p0", "p1", "p2", "p3"], "p3")
    page = await cluster.find(Parcel, where=cells.attr("load") >= 0).page(page.next, limit=4)
    assert ([each.id for each in page.items], page.next, page.unheard) == (["p4", "p5"], "", [])
    await cluster.terminate("p4")
    await until_found(cluster, "load >= 0", ["p0", "p1", "p2", "p3", "p5"])
    assert all(numbers == sorted(set(numbers)) for numbers in (await all_numbers(cluster.log)).values())


async def test_a_search_by_class_node_and_state_asks_the_nodes(opened: Deployment) -> None:
    cluster = opened.client
    for n in range(6):
        await cluster.on(f"node-{n % 3 + 1}").spawn(Parcel, f"p{n}")
    await cluster.on("node-1").spawn(Greeter, "g")
    await cluster.get(Parcel, "p4").put({"vip": True})
    await cluster.suspend("p2")

    async def ids(**filters: Any) -> list[str]:
        return [each.id async for each in cluster.find(Parcel, **filters)]

    assert await ids() == ["p0", "p1", "p2", "p3", "p4", "p5"]
    assert await ids(node="node-2") == ["p1", "p4"]
    assert await ids(state="suspended") == ["p2"]
    await until_found(cluster, "vip", ["p4"])
    assert await ids(where="not vip") == ["p0", "p1", "p2", "p3", "p5"]
    assert await ids(where="vip", state="Running") == ["p4"]
    assert await ids(where="vip", node="node-1") == []
    assert await ids(where="vip", node="node-2") == ["p4"]
    assert await cluster.find(Parcel).count() == 6
    page = await cluster.find(Parcel).page(limit=4)
    assert [each.state for each in page.items] == ["Running", "Running", "Suspended", "Running"]
    assert (page.items[0].attributes, page.items[0].revision) == ({}, 0)
    assert [each.id for each in (await cluster.find(Parcel).page(page.next)).items] == ["p4", "p5"]
    opened.kill("node-2")
    page = await cluster.find(Parcel).page()
    assert page.unheard == ["node-2"]
    assert [each.id for each in page.items] == ["p0", "p2", "p3", "p5"]
    assert await found(cluster, "vip") == ["p4"]
    with pytest.raises(cells.ConfigError, match="not a state of an agent"):
        cluster.find(Parcel, state="asleep")


async def test_an_undo_takes_attributes_back_and_a_failed_turn_changes_none(opened: Deployment) -> None:
    cluster = opened.client
    parcel = await cluster.on("node-1").spawn(Parcel, "p")
    await parcel.put({"load": 1})
    await until_found(cluster, "load == 1", ["p"])
    move = await cluster.migrate("p", to="node-2")
    await parcel.put({"load": 2, "extra": True})
    await until_found(cluster, "load == 2", ["p"])
    with pytest.raises(cells.HandlerFailed):
        await parcel.put({"load": 7}, fails=True)
    assert await parcel.put({}) == {"extra": True, "load": 2}
    before = (await load(cluster.log, "p")).state.plain[FIELD]
    await cluster.rollback(move.migration)  # what came since is taken again, and sets the same
    await until_found(cluster, "load == 2 and extra", ["p"])
    assert (await load(cluster.log, "p")).state.plain[FIELD] != before, "it has a higher number"
    numbers = (await all_numbers(cluster.log))["p"]
    assert numbers == sorted(set(numbers))


async def test_what_a_hook_sets_is_found_and_goes_with_the_agent(opened: Deployment) -> None:
    cluster = opened.client
    greeter = await cluster.on("node-1").spawn(Greeter, "g")
    assert await greeter.visit() == 1

    async def homes() -> list[Any]:
        return [one.attributes async for one in cluster.find(Greeter, where="born")]

    async with asyncio.timeout(60):
        while await homes() != [{"born": True, "home": "node-1"}]:
            await asyncio.sleep(0.01)
        await cluster.migrate("g", to="node-2")
        while await homes() != [{"born": True, "home": "node-2"}]:
            await asyncio.sleep(0.01)


class Flaky(ForwardedLog):
    """Appends of attributes are stored, and their answers are lost; one of them is stored late."""

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self.held: list[Callable[[], Any]] = []
        self.holds = False

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        if not subject.startswith(ATTRIBUTES):
            return await super().append(subject, data, expect, owner)
        if self.holds:
            self.held.append(lambda: ForwardedLog.append(self, subject, data, expect, owner))
            return Unknown("no answer")
        outcome = await super().append(subject, data, expect, owner)
        return Unknown("no answer") if isinstance(outcome, Appended) else outcome


async def test_what_a_former_owner_writes_late_does_not_stand() -> None:
    async with deployment(settings=QUICK) as opened:
        cluster = opened.client
        flaky = Flaky(opened.substrate.log)
        await opened.start("node-1", log=flaky)
        parcel = await cluster.spawn(Parcel, "p")
        await parcel.put({"load": 1})
        await until_found(cluster, "load == 1", ["p"])
        flaky.holds = True
        await parcel.put({"load": 2})
        await parcel.put({"load": 1})
        async with asyncio.timeout(30):
            while not flaky.held:
                await asyncio.sleep(0.01)
        await opened.start("node-2")
        await cluster.claim("p", "node-2")
        await until_found(cluster, "load == 1", ["p"])
        log = opened.substrate.log
        async with asyncio.timeout(30):  # the state is as it was, and its number is not: it is written all the same
            while (await all_numbers(log))["p"][-1] != 3:
                await asyncio.sleep(0.01)
        for late in flaky.held:
            assert not isinstance(await late(), Appended)
        assert (await all_numbers(log))["p"][-1] == 3
        await until_found(cluster, "load == 1", ["p"])


async def test_many_changes_are_few_entries_and_old_ones_are_removed(opened: Deployment) -> None:
    cluster = opened.client
    parcel = await cluster.spawn(Parcel, "p")
    for n in range(300):
        await parcel.put({"load": n})
    await until_found(cluster, "load == 299", ["p"])
    assert len((await all_numbers(cluster.log))["p"]) < 60
    for n in range(3 * TRIM_EVERY):
        await parcel.put({"load": -n - 1})
        await until_found(cluster, f"load == {-n - 1}", ["p"])
    assert len((await all_numbers(cluster.log))["p"]) <= 2 * TRIM_EVERY


async def test_the_directory_can_be_made_anew_and_passes_over_what_is_damaged(opened: Deployment) -> None:
    cluster, log = opened.client, opened.substrate.log
    for n in range(20):
        parcel = await cluster.spawn(Parcel, f"p{n:02}")
        await parcel.put({"load": n})
    await until_found(cluster, "load >= 10", [f"p{n}" for n in range(10, 20)])
    anew = Directory(log)
    await anew.refresh()
    assert len(anew) == 20
    mine = cluster.directory
    assert all(anew.get(f"p{n:02}") == mine.get(f"p{n:02}") for n in range(20))
    last = await log.last(attributes_subject("p03"))
    assert last is not None
    assert isinstance(await log.append(attributes_subject("p03"), b"nonsense", last.seq), Appended)
    stray = encode_listing(Listing("p05", "AttrParcel", 99, 1, 0.0, {"load": 99}))
    last = await log.last(attributes_subject("p04"))
    assert last is not None
    assert isinstance(await log.append(attributes_subject("p04"), stray, last.seq), Appended)
    assert await found(cluster, "load == 3 or load == 5") == ["p03", "p05"]
    await cluster.get(Parcel, "p03").put({"load": 33})
    await until_found(cluster, "load == 33", ["p03"])
    assert (await all_numbers_of(log, "p03"))[-1] == 2


async def all_numbers_of(log: Log, agent: str) -> list[int]:
    subject = attributes_subject(agent)
    last = await log.last(subject)
    assert last is not None
    return [decode_listing(last.data, subject).n]


async def test_an_agent_without_attributes_writes_nothing(opened: Deployment) -> None:
    cluster = opened.client
    parcel = await cluster.spawn(Parcel, "p")
    assert await parcel.put({}) == {}
    assert await parcel.put({"a": None}) == {}
    fold = await load(cluster.log, "p")
    assert FIELD not in fold.state.plain
    assert await cluster.log.subjects(ATTRIBUTES) == []
    assert await found(cluster, "exists(a)") == []


async def test_misuse_is_refused_with_the_agent_going_on(opened: Deployment) -> None:
    parcel = await opened.client.spawn(Parcel, "p")
    with pytest.raises(NotInTurn):
        cells.attributes(a=1)
    with pytest.raises(AttributeInvalid, match="'a b' is no name"):
        await parcel.odd()
    with pytest.raises(AttributeInvalid):
        await parcel.put({"a": "x" * 300})
    with pytest.raises(ReadOnly):
        await parcel.look()
    with pytest.raises(cells.UsageError, match="is no condition"):
        opened.client.find(Parcel, where=3)  # type: ignore[arg-type]
    assert await parcel.twice() == {"load": 2, "region": "eu"}
