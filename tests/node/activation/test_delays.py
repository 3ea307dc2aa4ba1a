"""A message that failed waits to be run again; who else sends does not wait, and order is kept per sender."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

import mielin_cells as cells
from mielin_cells.agents.reference import classes, make_ref
from mielin_cells.client.client import Client
from mielin_cells.log.ids import inbox_subject
from mielin_cells.log.message import Mail, Message, client_sender, encode_mail
from mielin_cells.node.node import Node
from mielin_cells.store.reader import load
from mielin_cells.substrate.embedded import Embedded

WAIT_S = 60.0
SLOW = cells.Settings(retry_first_s=0.1, reconcile_s=600.0)
LATE = cells.Settings(retry_first_s=600.0, reconcile_s=600.0)
"""What failed waits longer than any test: unless something wakes it, it is not run again."""

broken: set[str] = set()
ran: list[str] = []
paid: list[str] = []


@pytest.fixture(autouse=True)
def mended() -> None:
    broken.clear()
    ran.clear()
    paid.clear()


class Notary(cells.Agent):
    said: list[str] = []
    count: int = 0

    @cells.handler
    async def say(self, what: str) -> None:
        ran.append(what)
        self.said.append(what)
        if what in broken:
            raise OSError(f"{what} cannot be said")

    @cells.handler
    async def all(self) -> list[str]:
        return self.said

    @cells.handler
    async def pay(self, other: Notary, what: str) -> None:
        ran.append(what)
        paid.append(await cells.step("pay", str.upper, what))
        await other.add()
        if what in broken:
            raise OSError("paid, and lost")
        self.said.append(what)

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count

    @cells.handler
    async def pass_on(self, other: Notary, words: list[str]) -> None:
        for word in words:
            await other.say.tell(word)

    @cells.handler
    async def later(self, what: str) -> None:
        cells.after(0, self.say)(what)


@asynccontextmanager
async def nodes(*names: str, settings: cells.Settings) -> AsyncIterator[tuple[Client, Client, dict[str, Node]]]:
    substrate = await Embedded.open(None)
    made: list[Client] = []
    for seed in (1, 2):
        made.append(Client(substrate.log, substrate.wire, settings=settings, rng=Random(seed)))
        await made[-1].open()
    running = {
        name: Node(
            name, substrate.log, substrate.wire, classes.get, settings=settings, wall=lambda: 0.0, cluster=made[0]
        )
        for name in names
    }
    for node in running.values():
        await node.start()
    try:
        yield made[0], made[1], running
    finally:
        for node in running.values():
            node.kill()
        for client in made:
            await client.close()


async def until_ran(what: str, times: int = 1) -> None:
    async with asyncio.timeout(WAIT_S):
        while ran.count(what) < times:
            await asyncio.sleep(0)


async def until(ref: Notary, words: list[str]) -> None:
    async with asyncio.timeout(WAIT_S):
        while (found := await ref.all()) != words:
            assert found == words[: len(found)], "a sender's messages are out of order"
            await asyncio.sleep(0.01)


async def test_others_go_on_while_a_tell_waits_and_its_sender_waits_behind_it() -> None:
    async with nodes("node-1", settings=LATE) as (one, two, running):
        notary = await one.spawn(Notary, "n")
        broken.add("a1")
        for what in ("a1", "a2", "a3"):
            await notary.say.tell(what)
        await until_ran("a1")
        other = two.get(Notary, "n")
        async with asyncio.timeout(WAIT_S):
            for what in ("b1", "b2"):
                await two.session("n").tell("Notary", "say", _args(what))
            assert await _ask(two, "n") == ["b1", "b2"]
        assert ran == ["a1", "b1", "b2"]
        assert other is not None
        assert running["node-1"].activations.live["n"].fold.ledger.held, "what waits is part of what is committed"


async def test_an_agents_messages_and_a_timers_wait_behind_theirs_too() -> None:
    async with nodes("node-1", settings=SLOW) as (one, _, _):
        notary, sender = await one.spawn(Notary, "n"), await one.spawn(Notary, "s")
        broken.update(("s1", "t1"))
        await sender.pass_on(notary, ["s1", "s2"])
        await sender.pass_on(notary, ["s3"])
        await notary.later("t1")
        await notary.later("t2")
        await until_ran("s1", 2)
        await until_ran("t1", 2)
        assert await notary.all() == []
        broken.clear()
        async with asyncio.timeout(WAIT_S):
            while len(said := await notary.all()) < 5:
                await asyncio.sleep(0.01)
        assert [word for word in said if word[0] == "s"] == ["s1", "s2", "s3"]
        assert [word for word in said if word[0] == "t"] == ["t1", "t2"]


@pytest.mark.parametrize("how", ["move", "crash", "restart of the activation", "stop and resume"])
async def test_waiting_messages_survive_everything_that_happens_to_their_agent_and_keep_their_order(how: str) -> None:
    async with nodes("node-1", "node-2", settings=LATE) as (one, two, running):
        notary = await one.on("node-1").spawn(Notary, "n")
        broken.add("a1")
        for what in ("a1", "a2", "a3"):
            await notary.say.tell(what)
        await until_ran("a1")
        await two.session("n").tell("Notary", "say", _args("b1"))
        assert await _ask(two, "n") == ["b1"]
        broken.clear()
        async with asyncio.timeout(WAIT_S):
            if how == "move":
                assert (await one.migrate(notary, to="node-2")).ok, "a move does not wait for what waits"
            elif how == "crash":
                running["node-1"].kill()
                await one.claim(notary, to="node-2")
            elif how == "restart of the activation":
                running["node-1"].activations.drop(running["node-1"].activations.live["n"])
                running["node-1"].activations.look("n")
            else:
                await one.suspend(notary)
                assert (await one.show(notary)).state == "Suspended", "an order does not wait for what waits"
                await one.migrate(notary, to="node-2")
                await one.resume(notary)
        async with asyncio.timeout(WAIT_S):
            while (said := await _ask(two, "n")) != ["b1", "a1", "a2", "a3"]:
                assert said == ["b1", "a1", "a2", "a3"][: len(said)]
                await asyncio.sleep(0.01)
        assert (await load(one.log, "n")).ledger.held == []


@pytest.mark.parametrize("settings", [SLOW, LATE], ids=["soon", "after a move"])
async def test_nobody_passes_a_turn_with_recorded_asks_and_steps_which_must_find_its_state_again(
    settings: cells.Settings,
) -> None:
    async with nodes("node-1", "node-2", settings=settings) as (one, two, _):
        notary, other = await one.spawn(Notary, "n"), await one.spawn(Notary, "o")
        broken.add("a")
        await notary.pay.tell(other, "a")
        await until_ran("a")
        behind = asyncio.create_task(_pay(two, other, "b"))
        if settings is SLOW:
            await until_ran("a", 3)
            assert ran == ["a"] * 3
            broken.clear()
        else:
            async with asyncio.timeout(WAIT_S):
                while not (await load(one.log, "n")).turn:
                    await asyncio.sleep(0)
                broken.clear()
                assert (await one.migrate(notary, to="node-2")).ok, "a move does not wait for what waits"
        async with asyncio.timeout(WAIT_S):
            await behind
        assert await notary.all() == ["a", "b"]
        assert await other.add() == 3, "each ask was made once"


async def test_waiting_messages_survive_their_process_and_become_dead_letters_in_order(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    broken.update(("a1", "a2"))
    async with cells.local(path=path, settings=LATE) as cluster:
        notary = await cluster.spawn(Notary, "n")
        for what in ("a1", "a2", "a3"):
            await notary.say.tell(what)
        await until_ran("a1")
    async with cells.local(path=path, settings=cells.Settings(retry_first_s=0)) as cluster:
        assert isinstance(cluster, Client)
        await until(cluster.get(Notary, "n"), ["a3"])
        dead = (await load(cluster.log, "n")).ledger.dead
        assert [(letter.handler, letter.tries, letter.cause) for letter in dead] == [
            ("say", 5, "OSError: a1 cannot be said"), ("say", 5, "OSError: a2 cannot be said"),
        ]  # fmt: skip


def _args(what: str) -> bytes:
    from mielin_cells.agents.spec import spec_of

    return spec_of(Notary).handlers["say"].encode_args((what,), {})


async def _ask(client: Client, agent: str) -> list[str]:
    found: list[str] = await client.ask(make_ref(Notary, agent), "all", (), {}, WAIT_S, None)
    return found


async def _pay(client: Client, other: Notary, what: str) -> None:
    await client.ask(make_ref(Notary, "n"), "pay", (other, what), {}, WAIT_S, None)


async def test_an_undo_takes_messages_again_in_the_order_in_which_they_were_taken_and_not_in_the_inboxs() -> None:
    """Seed 125856: what had been answered had been answered in that order, and the answers stand."""
    async with nodes("node-1", "node-2", settings=SLOW) as (one, two, running):
        notary = await one.on("node-1").spawn(Notary, "n")
        move = await one.migrate(notary, to="node-2")
        broken.add("a1")
        await notary.say.tell("a1")
        await until_ran("a1")
        await two.session("n").tell("Notary", "say", _args("b1"))
        assert await _ask(two, "n") == ["b1"]
        broken.clear()
        async with asyncio.timeout(WAIT_S):
            while (said := await _ask(two, "n")) != ["b1", "a1"]:
                assert said == ["b1"]
        ran.clear()
        await one.rollback(move.migration)
        assert await _ask(two, "n") == ["b1", "a1"]
        assert ran == ["b1", "a1"]
        assert running["node-1"].activations.live["n"].fold.ledger.held == []


async def test_after_an_undo_later_entries_stay_behind_one_of_which_a_part_was_taken_before() -> None:
    """Seed 1081616: a client's third call ran before its second, which was in one entry with the first."""
    async with nodes("node-1", "node-2", settings=SLOW) as (one, two, _):
        notary = await one.on("node-1").spawn(Notary, "n")
        assert await notary.all.options(priority="high")() == []  # with a second inbox each message is chosen anew
        move = await one.migrate(notary, to="node-2")
        broken.add("a1")
        for words in ({1: "a1", 2: "a2"}, {3: "a3"}):
            messages = [Message(n, "say", _args(word)) for n, word in words.items()]
            mail = Mail("n", "Notary", client_sender("sender"), 1, 1, "", messages)
            await one.log.append(inbox_subject("n"), encode_mail(mail))
        await until_ran("a1")
        await two.session("n").tell("Notary", "say", _args("b1"))
        await until_ran("b1")
        broken.symmetric_difference_update(("a1", "a2"))
        await until_ran("a2")
        ran.clear()
        assert (await one.rollback(move.migration)).ok
        await until_ran("a2")
        assert ran[:3] == ["b1", "a1", "a2"]
        broken.clear()
        await until(notary, ["b1", "a1", "a2", "a3"])
