"""How facts come to the table of members: by heartbeats to the leader, at a bounded rate, and not at all while nothing changes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest
import pytest_asyncio
from support.failing import LIMIT_S, die, enter, leader_of, watching
from support.nodes import deployment
from support.waiting import until

from mielin_cells.log.codec import framed
from mielin_cells.membership import members as m
from mielin_cells.membership.heartbeat import decode_beat, encode_beat
from mielin_cells.membership.loads import PROMPT_S, NotedLoads
from mielin_cells.membership.table import Members, read_members
from mielin_cells.policy.facts import UNKNOWN, Facts, packed
from mielin_cells.rpc.answers import Beat
from mielin_cells.substrate.embedded import Embedded

# ---- what the leader records -----------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def members() -> AsyncIterator[Members]:
    """Of a deployment in which `a` leads and `b` serves."""
    substrate = await Embedded.open()
    members = Members(substrate.log)
    for record in (
        m.Joined("a", 1, b"a"), m.Serving("a", 1), m.Joined("b", 1, b"b"), m.Serving("b", 1), m.Leads("a", 1),
    ):  # fmt: skip
        assert await members.try_append(record)
    yield members
    await substrate.close()


def heard(name: str, facts: Facts = UNKNOWN, incarnation: int = 1) -> dict[str, Beat]:
    return {name: Beat(name, incarnation, 0.0, facts=packed(facts) if facts != UNKNOWN else b"")}


async def test_regular_changes_come_in_one_record_at_most_every_few_seconds(members: Members) -> None:
    noted, seq = NotedLoads(members, 5.0), members.table.seq
    for tick in range(100):
        beats = heard("a", Facts(cpu=20.0 + tick % 3 * 15)) | heard("b", Facts(memory=10.0 + tick % 3 * 30))
        await noted.note(tick / 2, beats)
    assert members.table.seq - seq == 10
    assert members.table.members["a"].facts.cpu is not None
    assert members.table.members["b"].facts.memory is not None


async def test_what_cannot_wait_comes_within_a_moment_and_alone(members: Members) -> None:
    noted = NotedLoads(members, 5.0)
    await noted.note(0.0, heard("a", Facts(cpu=20.0)) | heard("b", Facts(temperature_c=50.0)))
    before = members.table.seq
    await noted.note(1.5, heard("a", Facts(cpu=40.0)) | heard("b", Facts(temperature_c=86.0)))
    table = members.table
    assert table.seq == before + 1
    assert (table.members["a"].facts.cpu, table.members["b"].facts.temperature_c) == (20.0, 86.0)
    await noted.note(5.0, heard("a", Facts(cpu=40.0)))
    assert members.table.members["a"].facts.cpu == 40.0


async def test_what_cannot_wait_is_bounded_too(members: Members) -> None:
    noted, seq = NotedLoads(members, 1000.0), members.table.seq
    await noted.note(0.0, {})
    for tick in range(1, 201):
        await noted.note(tick / 10, heard("b", Facts(mains=tick % 2 == 0)))
    assert 0 < members.table.seq - seq <= 20 / PROMPT_S


async def test_a_large_record_puts_the_next_one_off(members: Members) -> None:
    names = [f"n{number:03}" for number in range(100)]
    for name in names:
        assert await members.try_append(m.Joined(name, 1, b""))
    noted, seq, text = NotedLoads(members, 5.0), members.table.seq, "x" * 100
    for second in range(60):
        facts = Facts(cpu=20.0 + second % 3 * 15, sensors=dict.fromkeys("abcde", text))
        beats = {name: beat for name in names for name, beat in heard(name, facts).items()}
        await noted.note(float(second), beats)
    assert 3 <= members.table.seq - seq <= 6  # of 57 kB each
    assert all(members.table.members[name].facts.sensors for name in names)


@pytest.mark.parametrize(
    "beat",
    [
        Beat("b", 2, 0.0, facts=packed(Facts(cpu=50.0))),  # of an incarnation that the table does not have yet
        Beat("nobody", 1, 0.0, facts=packed(Facts(cpu=50.0))),
        Beat("b", 1, 0.0, facts=b"\xc1garbage"),
        Beat("b", 1, 0.0, facts=packed(Facts(cpu=math.nan))),
        Beat("b", 1, 0.0),
    ],
)
async def test_what_says_nothing_is_not_recorded(members: Members, beat: Beat) -> None:
    before = members.table.seq
    await NotedLoads(members, 5.0).note(0.0, {beat.node: beat})
    assert members.table.seq == before


# ---- what the table makes of it --------------------------------------------------------------------------------


def folded(*records: m.AnyRecord) -> m.Table:
    table = m.Table()
    for record in records:
        table.apply(table.seq + 1, record)
    return table


def test_facts_are_those_of_the_incarnation_and_end_with_it() -> None:
    hot = m.Loads("a", 1, 3, {}, {"b": Facts(temperature_c=90.0, agents=7), "nobody": Facts(cpu=1.0)})
    first = (m.Joined("a", 1, b""), m.Joined("b", 2, b""), m.Leads("a", 1), hot)
    member = folded(*first).members["b"]
    assert (member.facts.temperature_c, member.agents) == (90.0, 7)
    assert member.info().facts == member.facts
    assert folded(*first, m.Suspected("b", 2, 3)).members["b"].facts.temperature_c == 90.0
    assert folded(*first, m.Left("b", 2)).members["b"].facts == UNKNOWN
    assert folded(*first, m.Left("b", 2), hot).members["b"].facts == UNKNOWN
    assert folded(*first, m.Joined("b", 3, b"")).members["b"].facts == UNKNOWN
    again = m.Table()
    again.apply(9, folded(*first).image())
    assert again.members["b"].facts == member.facts


# ---- versions before facts -------------------------------------------------------------------------------------


class OldLoads(msgspec.Struct, array_like=True, frozen=True, tag="Loads"):
    name: str
    incarnation: int
    term: int
    agents: dict[str, int]


class OldBeat(msgspec.Struct, array_like=True, frozen=True):
    node: str
    incarnation: int
    stuck_s: float
    ago_s: float = 0.0
    is_starting: bool = False
    silent: list[str] | None = None
    agents: int = 0
    has_copies: bool = False


class OldMember(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    incarnation: int
    agents: int = 0


def test_nodes_of_an_earlier_version_read_the_records_and_the_heartbeats() -> None:
    facts = Facts(cpu=50.0, sensors={"fan": 3})
    new = msgspec.msgpack.encode(m.Loads("a", 1, 3, {"b": 4}, {"b": facts}))
    assert msgspec.msgpack.decode(new, type=OldLoads) == OldLoads("a", 1, 3, {"b": 4})
    beat = encode_beat(Beat("a", 1, 0.5, agents=3, has_copies=True, facts=packed(facts)))
    assert msgspec.msgpack.decode(beat, type=OldBeat) == OldBeat("a", 1, 0.5, agents=3, has_copies=True)
    member = msgspec.msgpack.encode(m.Member(name="a", incarnation=1, agents=2, facts=facts))
    assert msgspec.msgpack.decode(member, type=OldMember) == OldMember(name="a", incarnation=1, agents=2)


def test_what_nodes_of_an_earlier_version_write_is_read() -> None:
    old = framed(msgspec.msgpack.encode(OldLoads("a", 1, 3, {"b": 4})))
    assert m.decode_record(old, "here") == m.Loads("a", 1, 3, {"b": 4})
    assert decode_beat(msgspec.msgpack.encode(OldBeat("a", 1, 0.5, agents=3))) == Beat("a", 1, 0.5, agents=3)


# ---- nodes -----------------------------------------------------------------------------------------------------


class Script:
    """What machines are measured to be."""

    def __init__(self) -> None:
        self.facts: dict[str, Facts] = {}

    def of(self, name: str) -> Callable[[], Facts]:
        return lambda: self.facts.get(name, UNKNOWN)


async def test_every_node_learns_the_facts_of_all_and_a_deployment_at_rest_records_nothing() -> None:
    async with watching() as (opened, _, air):
        script, names = Script(), [f"node-{n}" for n in range(1, 5)]
        for number, name in enumerate(names):
            script.facts[name] = Facts(cpu=10.0 * number, mains=True)
            await enter(opened, air, name, measure=script.of(name))
        nodes = opened.nodes

        def known(name: str, fact: str) -> set[object]:
            return {node.members.table.members[name].facts.get(fact) for node in nodes.values()}

        await until(lambda: all(known(name, "cpu") == {10.0 * n} for n, name in enumerate(names)))
        await until(lambda: known("node-1", "waiting") == {0})  # the first look at the agents
        await asyncio.sleep(6 * LIMIT_S)
        before = (await read_members(opened.client.log)).seq
        for node in nodes.values():
            assert node.beat().facts == b""  # nor does it send any
        script.facts["node-2"] = Facts(cpu=13.0, mains=True)  # a tremble
        await asyncio.sleep(6 * LIMIT_S)
        assert (await read_members(opened.client.log)).seq == before
        script.facts["node-3"] = Facts(cpu=20.0, mains=False)
        await until(lambda: known("node-3", "mains") == {False})
        info = {info.name: info for info in await opened.client.nodes()}["node-3"]
        assert (info.facts.mains, info.facts.battery) == (False, None)


async def test_facts_survive_the_leader_that_recorded_them_and_go_on_under_the_next() -> None:
    async with watching() as (opened, _, air):
        script, names = Script(), ["node-1", "node-2", "node-3"]
        for name in names:
            script.facts[name] = Facts(battery=80.0)
            await enter(opened, air, name, measure=script.of(name))
        leader = await leader_of(opened.client)
        others = [name for name in names if name != leader]
        table = opened.nodes[others[0]].members.table
        await until(lambda: all(table.members[name].facts.battery == 80.0 for name in names))
        die(opened.nodes[leader], air)
        script.facts[others[1]] = Facts(battery=14.0)
        await until(lambda: table.members[others[1]].facts.battery == 14.0)
        assert await leader_of(opened.client, leader) in others


async def test_where_nobody_leads_each_node_tells_of_itself() -> None:
    async with deployment() as opened:
        script = Script()
        script.facts["node-1"] = Facts(cpu=33.0)
        node = await opened.start("node-1", measure=script.of("node-1"))
        await node.facts.tell()
        seq = (await read_members(opened.client.log)).seq
        await node.facts.tell()
        table = await read_members(opened.client.log)
        assert (table.seq, table.members["node-1"].facts.cpu) == (seq, 33.0)
