"""Xoscar: an actor in a pool of another process; a move is done by hand, as with Ray: xoscar keeps nothing of an actor."""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import version
from typing import Any

import uvloop
import xoscar as xo

from benchmarks.peers.serve import serve_async


class Counter(xo.Actor):
    def __init__(self, pad: bytes = b"", count: int = 0) -> None:
        super().__init__()
        self.pad = pad
        self.count = count

    async def add(self, n: int) -> int:
        self.count += n
        return self.count

    async def state(self) -> tuple[bytes, int]:
        return self.pad, self.count


async def main() -> None:
    # The pool itself is this process; the actors are in its two children.
    pool = await xo.create_actor_pool("127.0.0.1", n_process=2)
    places = list(pool.sub_processes.keys())
    kept = [await xo.create_actor(Counter, address=places[0], uid=f"c{n}") for n in range(16)]

    async def total() -> int:
        return sum([await one.add(0) for one in kept])

    async def pipelined(count: int, actors_used: int, window: int) -> float:
        before = await total()

        async def caller(number: int) -> None:
            for _ in range(count // window):
                await kept[number % actors_used].add(1)

        at = time.perf_counter()
        await asyncio.gather(*(caller(number) for number in range(window)))
        taken = time.perf_counter() - at
        assert await total() == before + count // window * window
        return count // window * window / taken

    async def sequential(count: int) -> list[float]:
        found = []
        for _ in range(count):
            at = time.perf_counter()
            await kept[0].add(1)
            found.append((time.perf_counter() - at) * 1000)
        return found

    async def moves(size: int, count: int) -> dict[str, list[float]]:
        """Milliseconds without an actor: read the state, destroy it, create it in the other process, call it."""
        one: Any = await xo.create_actor(Counter, b"x" * size, address=places[0])
        found = []
        for number in range(count):
            added = await one.add(1)
            at = time.perf_counter()
            pad, counted = await one.state()
            await xo.destroy_actor(one)
            one = await xo.create_actor(Counter, pad, counted, address=places[(number + 1) % 2])
            assert await one.add(1) == added + 1
            found.append((time.perf_counter() - at) * 1000)
        await xo.destroy_actor(one)
        return {"ms": found}

    does: dict[str, Any] = {"pipelined": pipelined, "sequential": sequential, "moves": moves}
    await serve_async(does, {"xoscar": version("xoscar"), "uvloop": version("uvloop")})
    await pool.stop()


if __name__ == "__main__":  # the pool's processes import it for its classes
    uvloop.run(main())
