"""What is right: both type checkers accept every line."""

from __future__ import annotations

from collections.abc import AsyncIterator

import mielin_cells as cells


async def answer(about: str, length: int = 10) -> str:
    return about * length


async def emitted(text: str) -> str:
    await cells.emit(text)
    return text


class Counter(cells.Agent, version=2):
    count: int = 0
    names: list[str] = []
    friend: Counter | None = None
    visits: cells.Table[str, list[int]] = cells.Table()

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.count += n
        return self.count

    @cells.handler(cancellable=True, tries=2)
    async def meet(self, other: Counter, name: str) -> str:
        self.friend = other
        self.names.append(name)
        self.visits["x"] = [1]
        total: int = await other.add(2)
        await other.add.tell(n=3)
        return f"{total} {cells.this().node}"

    @cells.handler(shared=True)
    async def look(self, name: str, deep: bool = False) -> list[int]:
        return self.visits.get(name, []) if deep else []

    @cells.handler
    async def think(self, about: str) -> int:
        text: str = await cells.step("answer", answer, about, retry=cells.Retry(tries=2, first_s=0.5), timeout=40)
        size: int = await cells.step("size", len, text)
        parts: list[str] = await cells.step("parts", lambda: [text, *text])
        return size + len(parts) + len(cells.this().idempotency_key)

    @cells.handler
    async def spell(self, text: str) -> AsyncIterator[str]:
        for letter in text:
            yield letter
        yield await cells.step("emitted", emitted, text)

    @cells.handler(tries=2)
    async def numbers(self, to: int) -> AsyncIterator[int]:
        yield to
        parts: list[str] = [letter async for letter in self.spell("own")]
        self.names += parts

    async def on_arrive(self) -> None:
        self.count = 0

    @cells.upgrade(from_version=1)
    def _v1(cls, old: dict[str, object]) -> dict[str, object]:
        return {"count": old["count"]}


class SoldOut(Exception):
    def __init__(self, left: int) -> None:
        super().__init__(left)
        self.left = left


class Shop(cells.Agent):
    @cells.handler(raises=(SoldOut, ValueError), tries=2)
    async def buy(self, n: int) -> str:
        raise SoldOut(n)


async def buys(shop: Shop) -> int:
    try:
        text: str = await shop.buy(1)
    except SoldOut as error:
        return error.left
    return len(text)


class Better(Counter):
    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.count += 2 * n
        return self.count


async def main() -> None:
    async with cells.local(nodes=2) as cluster:
        counter = await cluster.spawn(Counter, "c1", count=3, names=["a"])
        placed = await cluster.on("node-2").spawn(Better, "c2")
        total: int = await counter.add(2)
        text: str = await counter.meet(placed, name="b")
        await counter.add.options(timeout=1.0).tell(total)
        soon: int = await counter.add.options(timeout=5, deadline=1.5, key="a")(n=total)
        await placed.meet.options(deadline=soon).tell(counter, name="c")
        found: Counter = cluster.get(Counter, "c1")
        days: list[int] = await found.look("x", deep=True)
        days = await found.look.options(timeout=2, consistency="linearizable")("x")
        async for seen in found.watch(after=3):
            names: list[str] = seen.state.names
            print(seen.revision + 1, names, days)
        report: cells.MigrationReport = await cluster.migrate(found, to="node-2")
        letters: list[str] = [letter async for letter in counter.spell("abc")]
        stream: cells.Stream[int] = await counter.numbers.options(timeout=2)(3).start()
        back: cells.Stream[int] = counter.numbers.read(stream.id, after=stream.position)
        n: int = await anext(back.on_restart(print))
        print(letters, n)
        print(text, report.pause_ms, [info.node for info in await cluster.agents()])
