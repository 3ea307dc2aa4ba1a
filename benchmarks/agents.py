"""The agents that are measured: an app that node processes load, too."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

import mielin_cells as cells


class Counter(cells.Agent, name="BenchCounter"):
    """Its count is the sum of what it was told: more or less than was sent is a message doubled or lost."""

    count: int = 0
    pad: bytes = b""

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.count += n
        return self.count


class Sleepy(cells.Agent, name="BenchSleepy", idle_s=2):
    """As `Counter`, and soon out of memory."""

    count: int = 0
    pad: bytes = b""

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.count += n
        return self.count


class Late(cells.Agent, name="BenchLate", inbox_max=1_000_000):
    """Its messages have a deadline; what comes after it must not run."""

    count: int = 0

    @cells.handler
    async def take(self, n: int) -> None:
        self.count += n

    @cells.handler
    async def ran(self) -> int:
        return self.count


class Tally(cells.Agent, name="BenchTally"):
    """Told 1, 2, 3, ... by one sender; it counts what came out of turn, too."""

    last: int = 0
    gaps: int = 0
    pad: bytes = b""

    @cells.handler
    async def take(self, n: int) -> int:
        self.gaps += n != self.last + 1
        self.last = n
        return n

    @cells.handler
    async def found(self) -> tuple[int, int]:
        return self.last, self.gaps


class Store(cells.Agent, name="BenchStore"):
    """A large state of 1 KiB rows, or of bytes, of which a turn changes a little."""

    rows: cells.Table[int, bytes] = cells.Table()
    film: cells.Buffer = cells.Buffer()
    count: int = 0
    last: int = 0
    gaps: int = 0

    @cells.handler
    async def fill(self, first: int, count: int, size: int) -> None:
        noise = os.urandom(size)
        for key in range(first, first + count):
            self.rows[key] = key.to_bytes(8, "big") + noise[8:]

    @cells.handler
    async def extend(self, size: int) -> int:
        self.film.append(os.urandom(size))
        return len(self.film)

    @cells.handler
    async def put(self, key: int, data: bytes) -> int:
        self.rows[key] = data
        self.count += 1
        return self.count

    @cells.handler
    async def change(self, n: int, keys: list[int]) -> int:
        """One message of a sequence, which changes some rows, or bytes where there are no rows."""
        self.gaps += n != self.last + 1
        self.last = n
        for key in keys:
            if len(self.rows):
                self.rows[key] = n.to_bytes(8, "big") * (len(self.rows[key]) // 8)
            else:
                self.film[key] = n % 256
        return n

    @cells.handler
    async def found(self) -> tuple[int, int]:
        return self.last, self.gaps


class Speaker(cells.Agent, name="BenchSpeaker"):
    """Publishes, and answers."""

    said: int = 0

    @cells.handler
    async def say(self, topic: str, count: int) -> int:
        self.said += count
        for _ in range(count if topic else 0):
            cells.publish(topic, 1)
        return self.said


class Listener(cells.Agent, name="BenchListener"):
    """Counts what comes."""

    count: int = 0
    _at = 0.0
    """When the last one came; no state, so it costs nothing."""

    @cells.handler
    async def listen(self, pattern: str) -> None:
        await cells.subscribe(pattern, self.on_message)

    @cells.handler
    async def on_message(self, one: int) -> None:
        self.count += one
        self._at = time.time()

    @cells.handler
    async def heard(self) -> int:
        return self.count

    @cells.handler
    async def came(self) -> tuple[int, float]:
        return self.count, self._at


class Settler(cells.Agent, name="BenchSettler"):
    """Says where it is."""

    @cells.handler
    async def settle(self, region: str) -> None:
        cells.attributes(region=region, settled=True)


class Patient(cells.Agent, name="BenchPatient"):
    """Waits for a word from outside."""

    heard: int = 0

    @cells.handler
    async def begin(self) -> str:
        return await cells.external("word", then=self.on_word)()

    @cells.handler
    async def on_word(self, word: int) -> None:
        self.heard += word

    @cells.handler
    async def count(self) -> int:
        return self.heard


class Talker(cells.Agent, name="BenchTalker"):
    """Answers with streams, tells another agent, is read while a turn runs."""

    turns: int = 0

    @cells.handler
    async def count(self, parts: int, size: int) -> AsyncIterator[bytes]:
        for number in range(parts):
            yield number.to_bytes(4, "big") * (size // 4)

    @cells.handler
    async def pass_on(self, to: str, messages: int) -> None:
        counter = cells.this().cluster.get(Counter, to)
        for _ in range(messages):
            await counter.add.tell()

    @cells.handler
    async def ponder(self, seconds: float) -> int:
        await asyncio.sleep(seconds)
        self.turns += 1
        return self.turns

    @cells.handler(shared=True)
    async def seen(self) -> int:
        return self.turns
