"""Pipelined asks with autogen-core's in-process runtime, to measure ours beside."""
# No postponed annotations here: autogen-core reads them where the class is made.

import asyncio
import statistics
import time
from dataclasses import dataclass


@dataclass
class Add:
    n: int


@dataclass
class Total:
    n: int


async def autogen_asks(count: int, runs: int) -> float | None:
    """Asks per second to 16 agents; None if autogen-core is not installed."""
    try:
        from autogen_core import AgentId, MessageContext, RoutedAgent, SingleThreadedAgentRuntime, rpc
    except ImportError:
        return None

    class Plus(RoutedAgent):
        count = 0

        @rpc
        async def add(self, message: Add, ctx: MessageContext) -> Total:
            self.count += message.n
            return Total(self.count)

    runtime = SingleThreadedAgentRuntime()
    await Plus.register(runtime, "plus", lambda: Plus("counter"))
    runtime.start()
    found = []
    for _ in range(runs):
        at = time.perf_counter()
        await asyncio.gather(*(runtime.send_message(Add(1), AgentId("plus", str(n % 16))) for n in range(count)))
        found.append(count / (time.perf_counter() - at))
    await runtime.stop()
    return statistics.median(found)
