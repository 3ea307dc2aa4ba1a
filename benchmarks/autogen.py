"""Pipelined asks with autogen-core's in-process runtime, to measure ours beside."""
# No postponed annotations here: autogen-core reads them where the class is made.

import statistics
from dataclasses import dataclass

from benchmarks.callers import rate


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
    found = [
        await rate(lambda caller: runtime.send_message(Add(1), AgentId("plus", str(caller % 16))), count)
        for _ in range(runs)
    ]
    await runtime.stop()
    return statistics.median(found)
