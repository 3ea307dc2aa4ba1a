"""Asks within one process, nothing on a disk: ours on the embedded substrate in memory, pykka's threads, autogen-core's runtime."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from statistics import median

import mielin_cells as cells
from benchmarks.agents import Counter
from benchmarks.figures import Found, Size, ratio
from benchmarks.harness import alternating, pipelined, run
from benchmarks.peer import Peer, of_others
from mielin_cells.agents.live import Cell
from mielin_cells.agents.spec import spec_of
from mielin_cells.log.message import Answer, decode_answer, encode_answer
from mielin_cells.log.state import StoredState

AGENTS = 16
WINDOW = 1024
COUNT: dict[Size, int] = {"smoke": 4_096, "quick": 20_480, "full": 81_920}
SLOW_COUNT: dict[Size, int] = {"smoke": 1_024, "quick": 4_096, "full": 16_384}
"""For autogen-core, which takes ten times as long."""

ONE_BY_ONE: dict[Size, int] = {"smoke": 200, "quick": 2_000, "full": 10_000}
ROUNDS: dict[Size, int] = {"smoke": 1, "quick": 3, "full": 7}


class Ours:
    def __init__(self, agents: list[Counter]) -> None:
        self._agents = agents
        self._asked = 0

    async def pipelined(self, count: int) -> float:
        found = await pipelined(lambda caller: self._agents[caller % AGENTS].add(), count, WINDOW)
        await self._check(count // WINDOW * WINDOW)
        return found

    async def sequential(self, count: int) -> float:
        """Seconds of each."""
        at = time.perf_counter()
        for _ in range(count):
            await self._agents[0].add()
        taken = time.perf_counter() - at
        await self._check(count)
        return taken / count

    async def _check(self, asked: int) -> None:
        """Nothing lost, nothing doubled."""
        self._asked += asked
        total = sum([await agent.add(0) for agent in self._agents])
        assert total == self._asked, f"{total} of {self._asked}"


class Bare:
    """The same asks with only what none can leave out: arguments, result and changed state are encoded, checked and decoded, and
    a caller waits for another task.  Nothing is numbered, kept, or answered twice."""

    def __init__(self) -> None:
        spec = spec_of(Counter)
        self._handler = spec.handlers["add"]
        self._loop = asyncio.get_running_loop()
        self._waiting: list[list[tuple[bytes, asyncio.Future[bytes]]]] = [[] for _ in range(AGENTS)]
        self._cells = [Cell(spec, StoredState(), f"c{n}") for n in range(AGENTS)]

    async def pipelined(self, count: int) -> float:
        return await pipelined(lambda caller: self._ask(caller % AGENTS), count, WINDOW)

    async def _ask(self, agent: int) -> int:
        data, answer = self._handler.encode_args((), {}), self._loop.create_future()
        waiting = self._waiting[agent]
        if not waiting:
            self._loop.call_soon(self._work, agent)
        waiting.append((data, answer))
        count: int = self._handler.decode_result(decode_answer(await answer).result or b"")
        return count

    def _work(self, agent: int) -> None:
        waiting, self._waiting[agent] = self._waiting[agent], []
        cell, handler = self._cells[agent], self._handler
        for data, answer in waiting:
            cell.begin()
            try:
                handler.fn(cell.agent, **handler.decode_args(data)).send(None)
            except StopIteration as stop:
                answer.set_result(encode_answer(Answer(handler.encode_result(stop.value))))
            cell.end()


async def of_peer(peer: Peer, count: int, one_by_one: int) -> tuple[float, float]:
    rate = await peer.do("pipelined", count=count, actors_used=AGENTS, window=WINDOW)
    return rate, await peer.do("sequential", count=one_by_one)


async def measure(size: Size, found: Found) -> None:
    rates, singles = dict[str, list[float]](), dict[str, list[float]]()
    one_by_one = ONE_BY_ONE[size]
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(cells.local())
        ours, bare = Ours([await cluster.spawn(Counter, f"c{n}") for n in range(AGENTS)]), Bare()
        peers = {
            "pykka": (await stack.enter_async_context(of_others("pykka_asks")), COUNT[size]),
            "autogen-core": (await stack.enter_async_context(of_others("autogen_asks")), SLOW_COUNT[size]),
        }
        names = ["ours", "bare", *(name for name, (peer, _) in peers.items() if peer is not None)]
        for number, name in enumerate(alternating(ROUNDS[size] + 1, *names)):
            single: float | None
            if name == "ours":
                rate, single = await ours.pipelined(COUNT[size]), await ours.sequential(one_by_one)
            elif name == "bare":
                rate, single = await bare.pipelined(COUNT[size]), None
            else:
                peer, count = peers[name]
                assert peer is not None
                rate, single = await of_peer(peer, count, one_by_one)
            if number >= len(names):  # the first round is to get warm
                rates.setdefault(name, []).append(rate)
                if single is not None:
                    singles.setdefault(name, []).append(single * 1e6)
    middle = {name: median(values) for name, values in rates.items()}
    one = {name: median(values) for name, values in singles.items()}
    found.figures = {
        name: {
            "asks_per_s": [round(rate) for rate in rates[name]],
            "one_us": [round(us, 1) for us in singles.get(name, ())],
        }
        for name in rates
    }
    note = (
        f"{WINDOW:,} asks on their way to {AGENTS} agents, {ROUNDS[size]} rounds in turn; with the encodings alone, and nothing kept: "
        f"{middle['bare']:,.0f}/s"
    )
    for key, name, limit in (("local-pykka", "pykka", 1.0), ("local-autogen", "autogen-core", 10.0)):
        if name not in middle:
            found.row(key, "", f"{middle['ours']:,.0f}/s; {name} is not there", None, note)
            continue
        times = ratio(middle["ours"], middle[name])
        text = f"{times} times ({middle['ours']:,.0f}/s, {name} {middle[name]:,.0f}/s)"
        found.row(key, "", text, times > limit or times == limit > 1, note)
    if "pykka" in one:
        times = ratio(one["ours"], one["pykka"])
        text = f"{times} times ({one['ours']:.0f} µs, pykka {one['pykka']:.0f} µs)"
        found.row("local-one", "", text, times <= 3)
    else:
        found.row("local-one", "", f"{one['ours']:.0f} µs; pykka is not there", None)


if __name__ == "__main__":
    run(measure)
