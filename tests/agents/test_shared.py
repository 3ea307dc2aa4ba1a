"""Shared handlers: they read committed state beside the running turn, and write nothing."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from support.waiting import until

import mielin_cells as cells
from mielin_cells import errors
from mielin_cells.agents.spec import spec_of
from mielin_cells.errors import ReadOnly
from mielin_cells.node.activation.core import Core


class Ledger(cells.Agent, name="SharedLedger", standby=1):
    total: int = 0
    lines: list[int] = []
    by: cells.Table[str, list[int]] = cells.Table()
    raw: cells.Buffer = cells.Buffer()

    @cells.handler
    async def add(self, n: int, who: str = "x") -> int:
        self.total += n
        self.lines.append(n)
        self.by.setdefault(who, []).append(n)
        self.raw.append(bytes([n]))
        return self.total

    @cells.handler
    async def think(self, n: int) -> int:
        self.total += n
        self.by["thinking"] = [n]
        Gate.began.set()
        await Gate.may_end.wait()
        return self.total

    @cells.handler(shared=True)
    async def sum(self) -> tuple[int, list[int], dict[str, list[int]], bytes]:
        """All of the state."""
        return self.total, self.lines, dict(self.by.items()), bytes(self.raw)

    @cells.handler(shared=True)
    async def slow_sum(self) -> tuple[int, int, list[str]]:
        """Waits in the middle of its reading."""
        first = self.total
        found = iter(self.by)
        names = [next(found)]
        Gate.reads.set()
        await Gate.may_read.wait()
        return first, len(self.raw), [*names, *found]

    @cells.handler(shared=True)
    async def write(self, how: str) -> None:
        me: Any = self
        ways: dict[str, Callable[[], Any]] = {
            "set": lambda: setattr(self, "total", 3),
            "list": lambda: self.lines.append(3),
            "table": lambda: self.by.update(x=[1]),
            "table value": lambda: self.by["x"].append(2),
            "clear": self.by.clear,
            "buffer": lambda: self.raw.append(b"x"),
            "attribute": lambda: setattr(self, "other", 3),
            "timer": lambda: cells.after(1).add(3),
            "migrate": lambda: cells.this().migrate(),
            "terminate": lambda: cells.this().terminate(),
        }
        waits: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "another handler": lambda: me.add(3),
            "ask": lambda: cells.this().cluster.get(Ledger, "other").add(3),
            "tell": lambda: cells.this().cluster.get(Ledger, "other").add.tell(3),
            "step": lambda: cells.step("s", len, "x"),
        }
        if how in ways:
            ways[how]()
        else:
            await waits[how]()

    @cells.handler(shared=True)
    async def fails(self) -> None:
        raise ValueError("no")

    @cells.handler(shared=True)
    async def peer(self, other: str) -> int:
        read = await cells.this().cluster.get(Ledger, other).sum()
        return self.total + read[0]

    @cells.handler
    async def copy_of(self, other: str) -> int:
        self.total = (await cells.this().cluster.get(Ledger, other).sum())[0]
        return self.total


class Gate:
    began: asyncio.Event
    may_end: asyncio.Event
    reads: asyncio.Event
    may_read: asyncio.Event

    @classmethod
    def close(cls) -> None:
        cls.began, cls.may_end, cls.reads, cls.may_read = (asyncio.Event() for _ in range(4))


WAYS = (
    "set", "list", "table", "table value", "clear", "buffer", "attribute", "timer", "migrate", "terminate", "another handler",
    "ask", "tell", "step",
)  # fmt: skip


async def test_a_read_during_a_turn_gives_the_state_before_it_at_once() -> None:
    Gate.close()
    async with cells.local() as c:
        ledger = await c.spawn(Ledger, "a")
        await ledger.add(1)
        turn = asyncio.create_task(ledger.think(10))
        await Gate.began.wait()
        assert await ledger.sum() == (1, [1], {"x": [1]}, b"\x01")
        assert not turn.done()
        Gate.may_end.set()
        assert await turn == 11
        assert (await ledger.sum())[0] == 11


async def test_a_read_that_waits_in_the_middle_sees_one_state() -> None:
    Gate.close()
    async with cells.local() as c:
        ledger = await c.spawn(Ledger, "a")
        for who in "abcdefgh":
            await ledger.add(1, who)
        read = asyncio.create_task(ledger.slow_sum())
        await Gate.reads.wait()
        for who in "ijklmnop":
            await ledger.add(1, who)
        Gate.may_read.set()
        total, size, names = await read
        assert (total, size, sorted(names)) == (8, 8, list("abcdefgh"))


@pytest.mark.parametrize("how", WAYS)
async def test_a_shared_handler_cannot_write_or_send(how: str) -> None:
    async with cells.local() as c:
        ledger = await c.spawn(Ledger, "a")
        await c.spawn(Ledger, "other")
        await ledger.add(1)
        with pytest.raises(ReadOnly, match="'a'"):
            await ledger.write(how)
        assert await ledger.sum() == (1, [1], {"x": [1]}, b"\x01")
        assert (await c.get(Ledger, "other").sum())[0] == 0


@pytest.mark.parametrize("how", WAYS)
async def test_as_a_message_it_cannot_either(how: str) -> None:
    """A command line that does not know the class sends a message."""
    async with cells.local() as c:
        ledger = await c.spawn(Ledger, "a")
        await ledger.add(1)
        session: Any = c.session("a")  # type: ignore[attr-defined]
        spec = spec_of(Ledger)
        with pytest.raises(ReadOnly, match="'a'"):
            await session.ask(spec.name, spec.handler("write"), (how,), {}, None)
        assert await session.ask(spec.name, spec.handler("sum"), (), {}, None) == (1, [1], {"x": [1]}, b"\x01")


async def test_errors_of_a_shared_handler_reach_the_reader() -> None:
    async with cells.local() as c:
        ledger = await c.spawn(Ledger, "a")
        with pytest.raises(cells.HandlerFailed, match="ValueError: no"):
            await ledger.fails()
        with pytest.raises(cells.NoSuchAgent):
            await c.get(Ledger, "nobody").sum()
        await c.terminate(ledger)
        with pytest.raises(cells.AgentTerminated):
            await ledger.sum()


async def test_a_suspended_agent_is_read() -> None:
    async with cells.local() as c:
        ledger = await c.spawn(Ledger, "a")
        await ledger.add(1)
        await c.suspend(ledger)
        assert (await ledger.sum())[0] == 1


async def test_reads_go_on_where_the_agent_has_gone_and_see_what_was_answered() -> None:
    async with cells.local(nodes=3) as c:
        ledger = await c.on("node-1").spawn(Ledger, "a")
        for n, to in enumerate(("node-2", "node-3", "node-1", "node-2"), 1):
            assert await ledger.add(1) == n
            assert (await ledger.sum())[0] == n
            await c.migrate(ledger, to)
            assert (await ledger.sum())[0] == n


async def test_many_readers_beside_many_writers_never_see_less_than_before() -> None:
    async with cells.local(nodes=2) as c:
        ledger = await c.on("node-1").spawn(Ledger, "a")
        done = asyncio.Event()

        async def writes() -> int:
            last = 0
            for _ in range(150):
                last = await ledger.add(1)
            return last

        async def reads() -> int:
            count, last = 0, 0
            while not done.is_set():
                total, lines, by, raw = await ledger.sum()
                assert total == len(lines) == len(by.get("x", [])) == len(raw)
                assert total >= last
                last, count = total, count + 1
                await asyncio.sleep(0)
            return count

        readers = [asyncio.create_task(reads()) for _ in range(3)]
        writers = [asyncio.create_task(writes()) for _ in range(8)]
        await c.migrate(ledger, "node-2")
        await asyncio.gather(*writers)
        done.set()
        assert min(await asyncio.gather(*readers)) > 0
        assert (await ledger.sum())[0] == 1200


async def test_a_read_is_not_answered_from_a_commit_that_is_not_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit is held back on its way to the store; the read that comes then waits for it."""
    async with cells.local() as c:
        ledger = await c.spawn(Ledger, "a")
        await ledger.add(1)
        held, acknowledged = asyncio.Event(), Core._acknowledged

        async def later(self: Core) -> None:
            await held.wait()
            await acknowledged(self)

        monkeypatch.setattr(Core, "_acknowledged", later)
        add = asyncio.create_task(ledger.add(1))
        await asyncio.sleep(0.05)
        read = asyncio.create_task(ledger.sum())
        done, _ = await asyncio.wait((read, add), timeout=0.1)
        assert not done
        held.set()
        assert (await read)[0] == await add == 2


async def test_a_linearizable_read_sees_what_another_client_has_done() -> None:
    async with cells.local(nodes=2) as c:
        ledger = await c.spawn(Ledger, "a")
        other = ledger.sum.options(consistency="linearizable", timeout=5)
        for n in range(1, 20):
            await ledger.add(1)
            assert (await other())[0] == n
        with pytest.raises(cells.UsageError, match="consistency"):
            ledger.sum.options(consistency="eventual")  # type: ignore[arg-type]


async def test_reads_of_others_inside_a_read_and_inside_a_turn() -> None:
    async with cells.local(nodes=2) as c:
        a = await c.on("node-1").spawn(Ledger, "a")
        b = await c.on("node-2").spawn(Ledger, "b")
        await a.add(1)
        await b.add(10)
        assert await a.peer("b") == 11
        assert await a.copy_of("b") == 10
        assert (await a.sum())[0] == 10


async def test_two_agents_that_read_each_other_in_their_turns_do_not_wait_for_each_other() -> None:
    async with cells.local() as c:
        a, b = await c.spawn(Ledger, "a"), await c.spawn(Ledger, "b")
        await a.add(1)
        await b.add(2)
        both = await asyncio.wait_for(asyncio.gather(a.copy_of("b"), b.copy_of("a")), 30)
        assert set(both) <= {1, 2}


def test_a_shared_handler_runs_no_turn() -> None:
    with pytest.raises(cells.UsageError, match="tries"):
        cells.handler(shared=True, tries=2)  # type: ignore[call-overload]
    with pytest.raises(cells.UsageError, match="cancellable"):
        cells.handler(shared=True, cancellable=True)  # type: ignore[call-overload]


async def test_a_shared_handler_of_a_reference_is_a_value_and_cannot_be_told() -> None:
    async with cells.local() as c:
        ledger = await c.spawn(Ledger, "a")
        one: Any = ledger.sum
        assert one == ledger.sum != ledger.sum.options(timeout=2)
        assert len({one, ledger.sum}) == 1
        assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301
        with pytest.raises(AttributeError, match="not told"):
            one.tell()


# ---- watching ------------------------------------------------------------------------------------------------


async def test_a_watch_gives_committed_states_newest_first_and_only_newer_ones() -> None:
    async with cells.local(nodes=2) as c:
        ledger = await c.on("node-1").spawn(Ledger, "a")
        await ledger.add(1)
        seen: list[tuple[int, int]] = []

        async def watches() -> None:
            async for one in ledger.watch():
                assert one.state.total == len(one.state.lines) == len(one.state.raw)
                seen.append((one.revision, one.state.total))

        task = asyncio.create_task(watches())
        await until(lambda: seen)
        assert seen[0][1] == 1
        for _ in range(30):
            await ledger.add(1)
        await c.migrate(ledger, "node-2")
        await ledger.add(1)
        await until(lambda: seen[-1][1] == 32)
        assert seen == sorted(set(seen))
        assert [total for _, total in seen] == sorted({total for _, total in seen})
        after = seen[-1][0]
        await ledger.add(1)
        async with contextlib.aclosing(ledger.watch(after=after)) as again:  # type: ignore[type-var]
            async for one in again:
                assert (one.revision > after, one.state.total) == (True, 33)
                break
        await c.terminate(ledger)
        await asyncio.wait_for(task, 30)
        with pytest.raises(cells.AgentTerminated):
            await anext(ledger.watch())


async def test_what_a_watch_gives_cannot_be_written_and_does_not_change() -> None:
    async with cells.local() as c:
        ledger = await c.spawn(Ledger, "a")
        await ledger.add(1)
        one = await anext(ledger.watch())
        with pytest.raises(errors.ReadOnly):
            one.state.total = 5
        with pytest.raises(errors.ReadOnly):
            one.state.by["y"] = [1]
        await ledger.add(1)
        assert (one.state.total, dict(one.state.by)) == (1, {"x": [1]})
        with pytest.raises(cells.NoSuchAgent):
            await anext(c.get(Ledger, "nobody").watch())
