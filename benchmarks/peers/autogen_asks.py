"""autogen-core's runtime in one process: an agent is an object, and an ask is a message to its id."""
# No postponed annotations: autogen-core reads them where the class is made.

import asyncio
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import uvloop
from autogen_core import AgentId, MessageContext, RoutedAgent, SingleThreadedAgentRuntime, rpc

from benchmarks.peers.serve import serve_async


@dataclass
class Add:
    n: int


@dataclass
class Total:
    n: int


class Counter(RoutedAgent):
    count = 0

    @rpc
    async def add(self, message: Add, ctx: MessageContext) -> Total:
        self.count += message.n
        return Total(self.count)


async def main() -> None:
    runtime = SingleThreadedAgentRuntime()
    await Counter.register(runtime, "counter", lambda: Counter("counter"))
    runtime.start()
    agents = [AgentId("counter", str(number)) for number in range(16)]
    total = 0

    async def check() -> None:
        """Nothing lost, nothing doubled."""
        found = [await runtime.send_message(Add(0), agent) for agent in agents]
        assert sum(one.n for one in found) == total

    async def pipelined(count: int, actors_used: int, window: int) -> float:
        nonlocal total

        async def caller(number: int) -> None:
            agent = agents[number % actors_used]
            for _ in range(count // window):
                await runtime.send_message(Add(1), agent)

        at = time.perf_counter()
        await asyncio.gather(*(caller(number) for number in range(window)))
        taken = time.perf_counter() - at
        total += count // window * window
        await check()
        return count // window * window / taken

    async def sequential(count: int) -> float:
        nonlocal total
        at = time.perf_counter()
        for _ in range(count):
            await runtime.send_message(Add(1), agents[0])
        taken = time.perf_counter() - at
        total += count
        await check()
        return taken / count

    about: dict[str, Any] = {"autogen-core": version("autogen-core"), "uvloop": version("uvloop")}
    await serve_async({"pipelined": pipelined, "sequential": sequential}, about)
    await runtime.stop()


uvloop.run(main())
