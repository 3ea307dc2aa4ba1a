"""Masses at full size, each for itself, for docs/scale.md: `python -m benchmarks.masses expired|asleep [--count N]`.

expired: messages whose deadline has passed wait for an agent that was suspended, by default a million, and are taken; another agent
of the node is asked meanwhile.
asleep: agents that leave memory, by default 100,000; some are woken.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass
from statistics import median, quantiles

from benchmarks.agents import Counter, Late, Sleepy
from benchmarks.harness import pipelined, say
from benchmarks.parts.asleep import PAD, all_asleep
from benchmarks.stage import Stage, staged
from mielin_cells.errors import RetryError
from mielin_cells.settings import DEAD_LETTERS_MAX

EXPIRED, ASLEEP = 1_000_000, 100_000
DEADLINE_S = 2.0
WINDOW = 4096
LOOK_S = 0.25
AT_ONCE = 64
LOTS = 4
WOKEN = 1_000
MIB = 1 << 20


@dataclass(slots=True)
class Memory:
    """Of the node, in MiB: at the beginning, and the most since."""

    stage: Stage
    first: float = 0.0
    most: float = 0.0

    def look(self) -> float:
        now = self.stage.process("node-1").memory_info().rss / MIB
        self.first, self.most = self.first or now, max(self.most, now)
        return now

    async def watch(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)


async def expired(count: int) -> None:
    async with staged(1, "lazy") as stage:
        late, other = await stage.cluster.spawn(Late, "late"), await stage.cluster.spawn(Counter, "other")
        memory = Memory(stage)
        memory.look()
        watching = asyncio.ensure_future(memory.watch())
        await stage.cluster.suspend(late)
        tell = late.take.options(deadline=DEADLINE_S).tell
        at = time.perf_counter()
        await pipelined(lambda _: tell(1), count, WINDOW)
        told_s, told_mib = time.perf_counter() - at, memory.most
        await asyncio.sleep(DEADLINE_S)
        before, during = list[float](), list[float]()
        await asks(other, before, 200)
        asking = asyncio.ensure_future(asks(other, during, count))
        at = time.perf_counter()
        await stage.cluster.resume(late)
        ran = await late.ran.options(timeout=600)()
        taken_s = time.perf_counter() - at
        asking.cancel()
        info = await stage.cluster.show(late)
        watching.cancel()
    assert ran == 0, f"{ran} messages ran after their deadline"
    assert info.waiting == 0, f"{info.waiting} are left"
    assert info.dead <= DEAD_LETTERS_MAX, f"{info.dead} dead letters are kept"
    rate, p99 = count / taken_s, quantiles(during, n=100)[98]
    say(
        f"{count:,} tells that expire: sent in {told_s:.1f} s, taken in {taken_s:.1f} s ({rate:,.0f}/s); {info.dead} dead letters"
    )
    say(
        f"MiB of the node: {memory.first:.0f} at first, at most {told_mib:.0f} while they came, {memory.most:.0f} to the end"
    )
    say(f"asks of another agent: median {median(before):.2f} ms before, {median(during):.2f} meanwhile, p99 {p99:.2f}")


async def asks(agent: Counter | Sleepy, times: list[float], count: int) -> None:
    """Adds the milliseconds of each, one after another."""
    for _ in range(count):
        at = time.perf_counter()
        await agent.add()
        times.append((time.perf_counter() - at) * 1000)


async def spawn(stage: Stage, first: int, count: int) -> None:
    on_node, numbers = stage.cluster.on("node-1"), iter(range(first, first + count))

    async def some() -> None:
        for number in numbers:
            while True:
                try:
                    await on_node.spawn(Sleepy, f"sleepy-{number}", pad=PAD)
                    break
                except RetryError:  # on a machine that does other things too the server may be late
                    await asyncio.sleep(LOOK_S)

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))


async def asleep(count: int) -> None:
    async with staged(1, "lazy") as stage:
        memory = Memory(stage)
        sizes = [memory.look()]
        at = time.perf_counter()
        for number in range(LOTS):
            await spawn(stage, number * (count // LOTS), count // LOTS)
            await all_asleep(stage, (number + 1) * (count // LOTS))
            sizes.append(memory.look())
            say(f"{(number + 1) * (count // LOTS):,} asleep after {time.perf_counter() - at:.0f} s")
        made_s = time.perf_counter() - at
        woken, awake = list[float](), list[float]()
        for number in range(min(WOKEN, count)):
            agent = stage.cluster.get(Sleepy, f"sleepy-{number}")
            await asks(agent, woken, 1)
            await asks(agent, awake, 1)
        assert await stage.cluster.get(Sleepy, f"sleepy-{count // LOTS * LOTS - 1}").add() == 1, (
            "the last that was made"
        )
    each, shown = (sizes[-1] - sizes[1]) * MIB / (count - count // LOTS), ", ".join(f"{size:.0f}" for size in sizes)
    say(
        f"{count:,} agents made and asleep after {made_s:.0f} s; the node has {shown} MiB as they come, {each:,.0f} bytes each"
    )
    say(f"an ask that wakes one: median {median(woken):.2f} ms; of one in memory {median(awake):.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("expired", "asleep"))
    parser.add_argument("--count", type=int)
    options = parser.parse_args()
    if options.what == "expired":
        asyncio.run(expired(options.count or EXPIRED))
    else:
        asyncio.run(asleep(options.count or ASLEEP))


if __name__ == "__main__":
    main()
