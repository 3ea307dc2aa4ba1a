import asyncio

import mielin_cells as cells


class Counter(cells.Agent):
    count: int = 0

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.count += n
        return self.count


async def main() -> None:
    async with cells.local(nodes=2) as cluster:
        counter = await cluster.spawn(Counter, "c1")
        await counter.add(2)
        print(await cluster.migrate(counter, to="node-2"))
        print(await counter.add())


asyncio.run(main())
