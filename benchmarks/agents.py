"""The agents that are measured: an app that node processes load, too."""

from __future__ import annotations

import mielin_cells as cells


class Counter(cells.Agent, name="BenchCounter"):
    count: int = 0
    pad: bytes = b""

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.count += n
        return self.count


class Store(cells.Agent, name="BenchStore"):
    rows: cells.Table[int, bytes] = cells.Table()
    count: int = 0

    @cells.handler
    async def fill(self, first: int, count: int, size: int) -> None:
        for key in range(first, first + count):
            self.rows[key] = b"x" * size

    @cells.handler
    async def put(self, key: int, data: bytes) -> int:
        self.rows[key] = data
        self.count += 1
        return self.count
