"""How a node finds the agents that the log gives to it: by hints, by lists behind a marker, and by the logs themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from support.logs import SLOW, HeldLog, Score
from support.moving import nodes
from support.waiting import until

import mielin_cells as cells
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import LOGS, log_subject
from mielin_cells.node.activation.activation import Activation
from mielin_cells.node.node import Node
from mielin_cells.node.ownership import rounds
from mielin_cells.rpc import requests
from mielin_cells.settings import TAKES_MAX
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Entry, Log, Source


class LateIndex(HeldLog):
    """A log whose index lacks everything until it is asked for what was there at the call; it notes what is asked for."""

    def __init__(self, inner: Log) -> None:
        super().__init__(inner)
        self.go.set()
        self.asked_for = list[Source]()
        self.lasts_of = set[str]()
        self.lacks = set[Source]({"index"})

    async def owned(self, owner: str, source: Source = "index") -> list[str]:
        self.asked_for.append(source)
        return [] if source in self.lacks else await super().owned(owner, source)

    async def lasts(self, subjects: Sequence[str]) -> dict[str, Entry]:
        self.lasts_of |= {subject for subject in subjects if subject.startswith(LOGS)}
        return await super().lasts(subjects)


def forget(node: Node, agent: str) -> None:
    """As if the log had given the agent to the node, and the node had not seen it."""
    node.activations.drop(node.activations.live[agent])


async def test_an_agent_that_the_log_gives_to_a_node_is_taken_at_once_after_a_hint() -> None:
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        second, score = running["node-2"], await client.on("node-2").spawn(Score, "s")
        forget(second, "s")
        second.rounds.hear(log_subject("s"))
        await until(lambda: "s" in second.activations.live)
        assert await score.add() == 1


async def test_the_store_tells_a_node_of_records_that_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = list[str | None]()
    monkeypatch.setattr(rounds.Rounds, "hear", lambda self, subject: heard.append(subject))
    async with nodes("node-1", "node-2", settings=SLOW) as (client, _):
        score = await client.on("node-1").spawn(Score, "s")
        assert (await client.migrate(score, to="node-2")).ok
        await until(lambda: heard == [log_subject("s")] * 2)  # each node hears of what names it


async def test_a_hint_of_anothers_agent_changes_nothing() -> None:
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        score = await client.on("node-1").spawn(Score, "s")
        assert await score.add() == 1
        before = await load(client.log, "s")
        for subject in (log_subject("s"), log_subject("never"), "log.=FF", log_subject("s")):
            running["node-2"].rounds.hear(subject)
        await until(lambda: running["node-2"].adoption.quiet.get("s") == before.seq)
        assert await score.add() == 2
        assert (await load(client.log, "s")).epoch == before.epoch


class StubbornLog(cells.Agent):
    @cells.handler
    async def ask(self) -> None: ...


async def test_a_nodes_own_claim_is_no_reason_to_claim_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each claim is a hint to its own node.  An agent whose adoption fails behind the claim would be claimed without end."""
    async with nodes("node-1", settings=SLOW) as (client, running):
        await client.spawn(StubbornLog, "s")
        node, claims = running["node-1"], list[str]()
        hears, take = list[str | None](), node.claims.take

        async def taken(fold: Fold, cause: str) -> Activation:
            claims.append(cause)
            await take(fold, cause)
            forget(node, "s")
            raise OSError("a bug behind the claim")

        monkeypatch.setattr(node.claims, "take", taken)
        hearing = client.log.hear_owned("node-1", hears.append)
        forget(node, "s")
        node.look("s")
        await until(lambda: hears == [log_subject("s")] and "s" in node.activations.unloadable)
        await until(lambda: "s" not in node.adoption._taking)
        node.rounds.hear(hears[0])  # late
        for _ in range(1000):
            await asyncio.sleep(0)
        assert claims == ["restarted"]
        hearing.close()


async def test_what_came_while_hints_were_lost_is_found_behind_a_marker() -> None:
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        second, score = running["node-2"], await client.on("node-2").spawn(Score, "s")
        log = second.home.log = LateIndex(second.home.log)
        forget(second, "s")
        second.rounds.hear(None)
        await until(lambda: "s" in second.activations.live)
        assert log.asked_for == ["settled index"]
        assert await score.add() == 1


async def test_what_index_and_hints_have_lost_is_found_by_the_logs() -> None:
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        second, score = running["node-2"], await client.on("node-2").spawn(Score, "s")
        log = second.home.log = LateIndex(second.home.log)
        log.lacks.add("settled index")
        forget(second, "s")
        second.rounds.hear(None)
        await second.rounds.round()
        await until(lambda: "settled index" in log.asked_for)
        now, second.activations.clock = second.activations.clock(), lambda: now + SLOW.compare_s
        await second.rounds.round()
        assert log.asked_for[-1] == "logs"
        assert "s" in second.activations.live
        assert await score.add() == 1


async def test_a_round_of_a_busy_deployment_looks_at_the_nodes_own_agents_alone() -> None:
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        for number in range(20):
            await client.on(f"node-{number % 2 + 1}").spawn(Score, f"s{number}")
        second = running["node-2"]
        second.rounds._compares_all = lambda: False
        await second.rounds.round(every=True)
        log = second.home.log = LateIndex(second.home.log)
        log.lacks.clear()
        mine = {log_subject(f"s{number}") for number in range(1, 20, 2)}
        for _ in range(3):
            await client.get(Score, "s0").add()
            await second.rounds.round()
            assert log.lasts_of == mine  # few enough for one round
        assert log.asked_for == ["index"] * 3


async def test_each_agent_of_a_node_is_looked_at_within_some_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "LOOKS_MIN", 1)
    async with nodes("node-1", settings=SLOW) as (client, running):
        for number in range(30):
            await client.spawn(Score, f"s{number}")
        node = running["node-1"]
        await node.rounds.round(every=True)
        log = node.home.log = LateIndex(node.home.log)
        sizes = list[int]()
        for _ in range(rounds.ROUNDS_FOR_ALL):
            before = len(log.lasts_of)
            await client.get(Score, "s0").add()
            await node.rounds.round()
            sizes.append(len(log.lasts_of) - before)
        assert len(log.lasts_of) == 30
        assert max(sizes) <= 3


async def test_a_node_that_starts_takes_the_agents_with_the_newest_messages_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with nodes("node-1", settings=SLOW) as (client, running):
        for number in range(10):
            await client.spawn(Score, f"s{number}")
        for name in ("s7", "s2", "s5"):
            await client.get(Score, name).add()
        node, taken = running["node-1"], list[str]()
        for number in range(10):
            forget(node, f"s{number}")
        take = node.claims.take

        async def noted(fold: Fold, cause: str) -> Activation:
            taken.append(fold.agent)
            return await take(fold, cause)

        monkeypatch.setattr(node.claims, "take", noted)
        await node.rounds.begin()
        assert taken[:3] == ["s5", "s2", "s7"]
        assert len(taken) == 10


async def test_a_node_takes_so_many_agents_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that it is asked to claim, and those that it finds itself, together."""
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        for number in range(60):
            await client.on("node-1").spawn(Score, f"a{number}")
            await client.on("node-2").spawn(Score, f"b{number}")
        first, second = running["node-1"], running["node-2"]
        first.kill()
        for number in range(60):
            forget(second, f"b{number}")
        under_way, most, take = 0, 0, second.claims.take

        async def noted(fold: Fold, cause: str) -> Activation:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            for _ in range(20):
                await asyncio.sleep(0)
            under_way -= 1
            return await take(fold, cause)

        monkeypatch.setattr(second.claims, "take", noted)
        wishes = [requests.Claim(f"a{number}", "by order") for number in range(60)]
        refusals, _ = await asyncio.gather(second.claims.claim_all(wishes), second.rounds.begin())
        assert refusals == [None] * 60
        assert len(second.activations.live) == 120
        assert most == TAKES_MAX
