"""Agents in one process: turns, asks, failures, lifecycle, durability."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import mielin_cells as cells
from mielin_cells.agents.reference import classes, make_ref
from mielin_cells.client.client import Client
from mielin_cells.client.sessions import session
from mielin_cells.log.codec import FORMAT
from mielin_cells.rpc.answers import InboxRoom
from mielin_cells.rpc.reminder import count_waiting
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Log, Wire


class Account(cells.Agent):
    total: int = 0
    entries: list[int] = []
    seen: cells.Table[str, int] = cells.Table()
    blob: cells.Buffer = cells.Buffer()

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.total += n
        self.entries.append(n)
        return self.total

    @cells.handler
    async def fail(self, n: int) -> None:
        self.total += n
        self.entries.append(n)
        self.seen["x"] = n
        raise ValueError("no")

    @cells.handler
    async def spoil(self) -> None:
        self.entries.append("text")  # type: ignore[arg-type]

    @cells.handler
    async def all(self) -> list[int]:
        return self.entries

    @cells.handler
    async def pay(self, to: Account, n: int) -> int:
        self.total -= n
        got = await to.add(n)
        await to.add.tell(0)
        return got

    @cells.handler
    async def ask_self(self) -> int:
        return await cells.this().cluster.get(Account, cells.this().id).add(1)

    @cells.handler
    async def ask_nobody(self) -> str:
        try:
            await cells.this().cluster.get(Account, "nobody").add(1)
        except cells.NoSuchAgent as error:
            return error.code
        return "found"

    @cells.handler
    async def grow(self, first: int, count: int, size: int) -> None:
        for key in range(first, first + count):
            self.seen[str(key) + "." * size] = key

    @cells.handler
    async def write(self, size: int) -> int:
        self.blob.append(b"x" * size)
        return len(self.blob)

    @cells.handler
    async def sizes(self) -> tuple[int, int]:
        return len(self.seen), len(self.blob)


class Other(cells.Agent):
    pass


class Started(cells.Agent):
    starts: int = 0
    arrivals: int = 0

    async def on_start(self) -> None:
        self.starts += 1

    async def on_arrive(self) -> None:
        self.arrivals += 1

    @cells.handler
    async def counts(self) -> tuple[int, int]:
        return self.starts, self.arrivals


async def test_a_failed_turn_leaves_the_state_as_before_and_the_agent_goes_on() -> None:
    async with cells.local() as cluster:
        account = await cluster.spawn(Account, "a", total=5)

        with pytest.raises(cells.HandlerFailed, match="ValueError: no") as raised:
            await account.fail(100)

        assert (raised.value.tries, raised.value.kind, raised.value.cause) == (1, "ValueError", "ValueError: no")
        assert await account.add(1) == 6
        assert await account.all() == [1]
        assert await account.sizes() == (0, 0)


async def test_a_poison_message_is_a_dead_letter_with_its_cause() -> None:
    async with cells.local(settings=cells.Settings(retry_first_s=0, tries=2)) as cluster:
        account = await cluster.spawn(Account, "a")
        await account.fail.tell(3)
        assert await account.add() == 1

        assert isinstance(cluster, Client)
        fold = await load(cluster.log, "a")
        assert [(letter.handler, letter.cause, letter.tries) for letter in fold.ledger.dead] == [
            ("fail", "ValueError: no", 2)
        ]


async def test_a_value_that_would_not_load_again_undoes_the_turn() -> None:
    async with cells.local() as cluster:
        account = await cluster.spawn(Account, "a")

        with pytest.raises(cells.errors.StateInvalid, match="Account.entries"):
            await account.spoil()

        assert await account.all() == []


async def test_an_ask_in_a_turn_takes_effect_once_and_its_tell_follows() -> None:
    async with cells.local(nodes=2) as cluster:
        payer = await cluster.spawn(Account, "payer", total=10)
        payee = await cluster.on("node-2").spawn(Account, "payee")

        assert await payer.pay(payee, 4) == 4
        assert await payer.add(0) == 6
        async with asyncio.timeout(30):
            while await payee.all() != [4, 0]:
                pass


async def test_an_ask_to_oneself_or_to_nobody_fails_clearly() -> None:
    async with cells.local() as cluster:
        account = await cluster.spawn(Account, "a")

        with pytest.raises(cells.errors.SelfAsk):
            await account.ask_self()
        assert await account.ask_nobody() == "NoSuchAgent"
        with pytest.raises(cells.NoSuchAgent):
            await cluster.get(Account, "nobody").add()
        with pytest.raises(cells.NoSuchAgent):
            await cluster.get(Account, "nobody").add.tell()


async def test_calls_made_together_keep_their_order() -> None:
    async with cells.local() as cluster:
        account = await cluster.spawn(Account, "a")

        await asyncio.gather(*(account.add.tell(n) for n in range(200)))

        assert await account.all() == list(range(200))


async def test_an_id_belongs_to_one_class_and_is_not_used_again() -> None:
    async with cells.local(nodes=2) as cluster:
        first = await cluster.spawn(Account, "a", total=1)
        with pytest.warns(cells.errors.AlreadySpawned):
            again = await cluster.spawn(Account, "a", total=50)
        assert first == again
        assert await again.add(1) == 2
        with pytest.raises(cells.errors.WrongClass):
            await cluster.spawn(Other, "a")
        with pytest.raises(cells.BadArguments, match="no field 'wrong'"):
            await cluster.spawn(Account, "b", wrong=1)  # type: ignore[call-arg]

        await cluster.terminate(first)

        with pytest.raises(cells.AgentTerminated):
            await first.add(1)
        with pytest.raises(cells.AgentTerminated):
            await cluster.spawn(Account, "a")


async def test_two_spawns_at_once_make_one_agent() -> None:
    async with cells.local(nodes=2) as cluster:
        with pytest.warns(cells.errors.AlreadySpawned):  # the one that came second
            one, two = await asyncio.gather(
                cluster.on("node-1").spawn(Account, "a", total=1), cluster.on("node-2").spawn(Account, "a", total=2)
            )
        assert one == two
        assert len(await cluster.agents()) == 1


async def test_a_suspended_agent_runs_no_turn_until_it_is_resumed_also_after_a_move() -> None:
    async with cells.local(nodes=2) as cluster:
        account = await cluster.spawn(Account, "a")
        await cluster.suspend(account)
        waiting = asyncio.create_task(account.add(1))

        report = await cluster.migrate(account, to="node-2")

        assert report.ok
        assert (await cluster.show(account)).state == "Suspended"
        assert not waiting.done()
        await cluster.resume(account)
        assert await waiting == 1


async def test_a_raising_on_start_is_an_error_that_resume_retries() -> None:
    broken = [True]

    class Fragile(cells.Agent):
        async def on_arrive(self) -> None:
            if broken[0]:
                raise OSError("no database")

        @cells.handler
        async def ping(self) -> str:
            return "pong"

    async with cells.local() as cluster:
        agent = await cluster.spawn(Fragile, "f")
        assert (await cluster.show(agent)).state == "Error"
        await cluster.resume(agent)
        assert (await cluster.show(agent)).state == "Error"
        broken[0] = False
        await cluster.resume(agent)
        assert await agent.ping() == "pong"


async def test_references_and_state_outside_turns_are_refused() -> None:
    async with cells.local() as cluster:
        account = await cluster.spawn(Account, "a")
        with pytest.raises(cells.errors.IsReference, match="ask the agent"):
            _ = account.total
        with pytest.raises(cells.BadArguments):
            await account.add("two")  # type: ignore[arg-type]
        with pytest.raises(cells.errors.MessageTooLarge):
            await _large(cluster)
    with pytest.raises(cells.errors.NotConnected):
        await make_ref(Account, "a").add(1)


class Order(cells.Agent):
    numbers: list[int] = []

    @cells.handler
    async def take(self, n: int) -> None:
        self.numbers.append(n)

    @cells.handler
    async def taken(self) -> list[int]:
        return self.numbers


class Sink(cells.Agent):
    @cells.handler
    async def take(self, data: bytes) -> int:
        return len(data)

    @cells.handler(cancellable=True)
    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def _large(cluster: cells.Cluster) -> None:
    sink = await cluster.spawn(Sink, "sink")
    assert await sink.take(b"x" * 300_000) == 300_000
    await sink.take(b"x" * 600_000)


async def test_a_full_inbox_refuses_and_nothing_is_lost() -> None:
    async with cells.local(settings=cells.Settings(inbox_max=50)) as cluster:
        sink = await cluster.spawn(Sink, "sink")
        await cluster.suspend(sink)
        stored = 0
        with pytest.raises(cells.InboxFull, match="limit 50"):
            for _ in range(200):
                await sink.take.tell(b"")
                stored += 1
        assert 50 <= stored <= 60
        await cluster.resume(sink)
        assert await sink.take(b"abc") == 3


async def test_tells_that_wait_for_room_are_not_overtaken_by_later_ones() -> None:
    async with cells.local(settings=cells.Settings(inbox_max=100)) as cluster:
        order = await cluster.spawn(Order, "o")
        tasks = []
        for n in range(2000):
            tasks.append(asyncio.create_task(order.take.tell(n)))
            if n % 3 == 0:
                await asyncio.sleep(0)  # some are on their way, some wait for a count, and more come
        await asyncio.gather(*tasks)
        assert await order.taken() == list(range(2000))


async def test_asks_that_are_answered_are_never_held_up_to_count_the_inbox(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = 0

    async def counting(log: Log, wire: Wire, agent: str, *rest: str) -> InboxRoom | None:
        nonlocal counted
        counted += 1
        return await count_waiting(log, wire, agent)

    monkeypatch.setattr(session, "count_waiting", counting)
    async with cells.local(settings=cells.Settings(inbox_max=100)) as cluster:
        await cluster.spawn(Order, "o")
        assert isinstance(cluster, Client)
        client = Client(cluster.log, cluster.wire, settings=cluster.settings)
        await client.open()
        order = client.get(Order, "o")

        async def caller() -> None:
            for n in range(100):
                await order.take(n)

        await asyncio.gather(*(caller() for _ in range(8)))
        assert counted == 0
        await asyncio.gather(*(order.take(n) for n in range(20)))  # more than a tenth of the inbox at once
        assert counted > 0
        await client.close()


async def test_a_file_keeps_agents_and_their_last_effect(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with cells.local(nodes=2, path=path) as cluster:
        account = await cluster.on("node-2").spawn(Account, "a")
        await account.add(7)
        started = await cluster.spawn(Started, "s")
        assert await started.counts() == (1, 1)
    async with cells.local(nodes=2, path=path) as cluster:
        assert await cluster.get(Account, "a").add(1) == 8
        assert await cluster.get(Started, "s").counts() == (1, 2)
        assert (await cluster.show("a")).node == "node-2"


async def test_large_state_is_kept_in_parts_and_the_log_is_trimmed(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    settings = cells.Settings(snapshot_records=8, retention_s=0)
    async with cells.local(nodes=2, path=path, settings=settings) as cluster:
        account = await cluster.spawn(Account, "a")
        assert await account.write(2_000_000) == 2_000_000  # larger than one record
        for first in range(0, 6000, 100):
            await account.grow(first, 100, 200)
        report = await cluster.migrate(account, to="node-2")
        assert report.ok
        assert report.bytes > 2_000_000
        assert await account.sizes() == (6000, 2_000_000)
        assert isinstance(cluster, Client)
        birth, oldest = await cluster.log.read("log.a", 0, 2)  # the last ownership record stays
        assert birth.seq <= 10 < oldest.seq
    async with cells.local(nodes=2, path=path, settings=settings) as cluster:
        assert await cluster.get(Account, "a").sizes() == (6000, 2_000_000)


async def test_a_newer_state_is_refused_with_both_versions_and_an_older_one_is_upgraded(tmp_path: Path) -> None:
    path = tmp_path / "store.db"

    def old() -> type[cells.Agent]:
        class Relic(cells.Agent, version=1):
            count: int = 3

            @cells.handler
            async def get(self) -> int:
                return self.count

        return Relic

    class Relic(cells.Agent, version=2):
        counts: list[int]

        @cells.handler
        async def get(self) -> int:
            return sum(self.counts)

        @cells.upgrade(from_version=1)
        def _v1(cls, old: dict[str, object]) -> dict[str, object]:
            return {"counts": [old["count"], 1]}

    new = Relic
    del classes["Relic"]
    async with cells.local(path=path) as cluster:
        await cluster.spawn(old(), "t")
    classes["Relic"] = new
    async with cells.local(path=path) as cluster:
        assert await cluster.get(new, "t").get() == 4
    del classes["Relic"]
    before = old()
    async with cells.local(path=path, settings=cells.Settings(ask_timeout_s=0.2)) as cluster:
        with pytest.raises(cells.AskTimeout):
            await cluster.get(before, "t").get()  # type: ignore[attr-defined]
        [info] = await cluster.agents()
        assert info.state == "Error"
        assert "version 2" in info.error
        assert "version 1" in info.error
    classes["Relic"] = new
    async with cells.local(path=path) as cluster:
        assert await cluster.get(new, "t").get() == 4


async def test_garbage_in_an_inbox_is_a_dead_letter_and_the_agent_goes_on() -> None:
    async with cells.local() as cluster:
        account = await cluster.spawn(Account, "a")
        assert isinstance(cluster, Client)
        for garbage in (b"", b"junk", b"mc" + bytes([FORMAT]) + b"\0" * 50):
            await cluster.log.append("inbox.a", garbage)
        assert await account.add(2) == 2
        fold = await load(cluster.log, "a")
        assert len(fold.ledger.dead) == 3


async def test_a_second_process_or_user_of_the_file_is_refused(tmp_path: Path) -> None:
    async with cells.local(path=tmp_path / "store.db"):
        with pytest.raises(cells.errors.StoreInUse, match="store.db"):
            async with cells.local(path=tmp_path / "store.db"):
                pass
