"""What is wrong: both type checkers refuse every line marked so, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import mielin_cells as cells


class Counter(cells.Agent):
    count: int = 0
    name: str

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.count += n
        return self.count

    @cells.handler
    async def meet(self, other: Counter) -> str:
        return await other.add(1)  # ERROR: an int where a str is promised

    @cells.handler  # ERROR: not async
    def plain(self, n: int) -> int:
        return n

    @cells.handler(shared=True)
    async def look(self, name: str) -> int:
        return self.count

    @cells.handler(shared=True, tries=2)  # ERROR: a shared handler runs no turn
    async def peek(self) -> int:
        return self.count


class SoldOut(Exception): ...


class Other(cells.Agent):
    @cells.handler(raises=(SoldOut, ValueError))
    async def buy(self, n: int) -> str:
        raise SoldOut

    @cells.handler(raises=SoldOut)  # ERROR: no tuple
    async def one(self) -> None: ...

    @cells.handler(raises=(SoldOut, int))  # ERROR: no class of exceptions
    async def two(self) -> None: ...

    @cells.handler(raises=("SoldOut",))  # ERROR: no class
    async def three(self) -> None: ...

    @cells.handler(raises=(KeyboardInterrupt,))  # ERROR: ends a process
    async def four(self) -> None: ...

    @cells.handler
    async def ping(self) -> None: ...

    @cells.handler
    async def spell(self, text: str) -> AsyncIterator[str]:
        yield text


async def main() -> None:
    async with cells.local() as cluster:
        counter = await cluster.spawn(Counter, "c1", name="x")
        other = await cluster.spawn(Other, "o1")
        await counter.add("two")  # ERROR: wrong argument
        await counter.add(m=2)  # ERROR: no such argument
        await counter.add(1, 2)  # ERROR: too many
        await counter.meet()  # ERROR: missing argument
        await counter.meet(other)  # ERROR: another class
        await counter.add.tell("two")  # ERROR: wrong argument to tell
        await counter.add.options(deadline=1)("two")  # ERROR: wrong argument behind options
        await counter.add.options(deadline=1).tell(m=2)  # ERROR: no such argument of a tell behind options
        await counter.add.options(deadline="soon")(1)  # ERROR: a deadline is a number
        await counter.add.options(key=17)(1)  # ERROR: a key is text
        await counter.add.options(priorities="high")(1)  # ERROR: no such option
        given: str = await counter.add.options(deadline=1)(1)  # ERROR: wrong result behind options
        await counter.subtract(1)  # ERROR: unknown handler
        await counter.look(1)  # ERROR: wrong argument of a shared handler
        await counter.look.tell("x")  # ERROR: a shared handler is not told
        await counter.look.options(consistency="some")("x")  # ERROR: no such consistency
        async for seen in counter.watch():
            print(seen.state.cuont)  # ERROR: no such field
        await other.buy("two")  # ERROR: wrong argument of a handler with declared errors
        letters: list[int] = [letter async for letter in other.spell("a")]  # ERROR: its parts are text
        await other.spell("a")  # ERROR: a stream is no answer
        _ = [letter async for letter in other.spell(1)]  # ERROR: wrong argument of a handler that yields
        bought: int = await other.buy(1)  # ERROR: its result is a str
        text: str = await counter.add(1)  # ERROR: wrong result
        later: int = counter.add(1)  # ERROR: forgotten await
        counter.add(1)  # ERROR: forgotten await, result unused
        await cluster.spawn(Counter, "c2")  # ERROR: missing field
        await cluster.spawn(Counter, "c2", name="x", size=1)  # ERROR: extra field
        await cluster.spawn(Counter, "c2", name=1)  # ERROR: wrong type of a field
        await cluster.spawn(Counter, 2, name="x")  # ERROR: an id is text
        wrong: Other = cluster.get(Counter, "c1")  # ERROR: another class
        await cluster.migrate(3)  # ERROR: neither a reference nor an id
        half: int = await cells.step("half", text.upper)  # ERROR: wrong result of a step
        await cells.step("wait", asyncio.sleep, "long")  # ERROR: wrong argument of a step's call
        await cells.step("wait", asyncio.sleep(1))  # ERROR: not a function but what it returned
        print(given, text, later, wrong, half, bought, letters)
