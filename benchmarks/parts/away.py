"""How long nobody answers while an agent of 1 MiB moves: a client's longest wait for an answer, ours beside the peers'.

Paglets moves by itself.  With Ray and xoscar the move is done by hand, as their users would: read the state, end the actor,
create another one elsewhere with that state, call it; nobody answers from the state's reading to that answer.
"""

from __future__ import annotations

import asyncio
import time
from statistics import median

from benchmarks.agents import Store
from benchmarks.figures import SYNCS, Found, Size, Sync, kept, ratio, spread
from benchmarks.harness import run, say
from benchmarks.peer import of_others
from benchmarks.stage import staged

STATE_BYTES = 1 << 20
FILL_BYTES = 256 * 1024
REST_S = 0.02
MOVES: dict[Size, int] = {"smoke": 2, "quick": 20, "full": 100}
PEER_MOVES: dict[Size, int] = {"smoke": 1, "quick": 4, "full": 15}
WARM = 3
PEERS = (("paglets", "paglets_moves"), ("xoscar", "xoscar_calls"), ("ray", "ray_calls"))


class Client:
    """Asks without pause; each wait is kept with its beginning and end."""

    def __init__(self, agent: Store) -> None:
        self._agent = agent
        self._going = True
        self.asked = 0
        self.waits: list[tuple[float, float]] = []

    async def run(self) -> None:
        while self._going:
            begun = time.perf_counter()
            self.asked += 1
            assert await self._agent.change(self.asked, []) == self.asked
            self.waits.append((begun, time.perf_counter()))

    def end(self) -> None:
        self._going = False

    def longest(self, begun: float, ended: float) -> float:
        """Milliseconds, of the waits that overlap a time."""
        return max((b - a) * 1000 for a, b in self.waits if a < ended and b > begun)


async def ours(found: Found, sync: Sync, size: Size) -> float:
    """The median of the longest waits, in milliseconds."""
    async with staged(2, sync) as stage:
        agent = await stage.cluster.on("node-1").spawn(Store, "asked")
        for done in range(0, STATE_BYTES, FILL_BYTES):
            assert await agent.extend(FILL_BYTES) == done + FILL_BYTES
        client, waits, pauses = Client(agent), list[float](), list[float]()
        task = asyncio.create_task(client.run())
        spans = list[tuple[float, float]]()
        for _ in range(MOVES[size] + WARM):
            await asyncio.sleep(REST_S)
            at = time.perf_counter()
            report = await stage.cluster.migrate(agent)
            assert report.ok, report
            spans.append((at, time.perf_counter()))
            pauses.append(report.pause_ms)
        await asyncio.sleep(REST_S)
        client.end()
        await task
        last, gaps = await agent.found()
        assert (last, gaps) == (client.asked, 0), f"{last} of {client.asked} asks, {gaps} out of order"
        waits = [client.longest(*span) for span in spans][WARM:]
        usual = spread([(b - a) * 1000 for a, b in client.waits])
    found.figures[sync] = {
        "longest_wait_ms": spread(waits), "waits": kept(waits), "pause_ms": spread(pauses[WARM:]), "ask_ms": usual,
    }  # fmt: skip
    say(f"away {sync}: {median(waits):.2f} ms; an ask usually {usual['p50']:.2f} ms")
    return median(waits)


async def measure(size: Size, found: Found) -> None:
    theirs = dict[str, float]()
    waits = {sync: await ours(found, sync, size) for sync in SYNCS}
    for name, program in PEERS:
        async with of_others(program) as peer:
            if peer is None:
                continue
            await peer.do("moves", size=STATE_BYTES, count=2)
            moves = (await peer.do("moves", size=STATE_BYTES, count=PEER_MOVES[size]))["ms"]
        found.figures[name] = {"longest_wait_ms": spread(moves), "waits": kept(moves)}
        theirs[name] = median(moves)
        say(f"away {name}: {theirs[name]:.1f} ms")
    for key, name in (("away-ray", "ray"), ("away-paglets", "paglets")):
        for sync in SYNCS:
            usual = found.figures[sync]["ask_ms"]["p50"]
            note = f"an ask that meets no move takes {usual:.2f} ms; pause p50 {found.figures[sync]['pause_ms']['p50']:.2f} ms"
            if name not in theirs:
                found.row(key, sync, f"{waits[sync]:.2f} ms; {name} is not there", None, note)
                continue
            times = ratio(theirs[name], waits[sync])
            text = f"{times} times shorter ({waits[sync]:.2f} ms, {name} {theirs[name]:.0f} ms)"
            found.row(key, sync, text, times >= 200, note)


if __name__ == "__main__":
    run(measure)
