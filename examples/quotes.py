"""A broker asks five shops at the same time: moved, its process killed in mid-work, and each price audited once."""

import asyncio
import os
import sys
from subprocess import call
from tempfile import TemporaryDirectory

import mielin_cells as cells

DIES, begun = "dies" in sys.argv, asyncio.Event()


async def audit(shop: str, price: int) -> int:
    if DIES and shop == "shop-4":
        os._exit(9)  # the process is gone, in mid-work
    begun.set()
    print("audited", shop, flush=True)
    return await asyncio.sleep(0.2, price)


class Shop(cells.Agent):
    @cells.handler
    async def price(self, item: str) -> int:
        return 10 * len(item) + int(cells.this().id[-1])


class Broker(cells.Agent):
    best: int = 0

    async def _quote(self, name: str, item: str) -> int:
        price = await cells.this().cluster.get(Shop, name).price(item)
        await asyncio.sleep(0.6 * (name == "shop-4"))  # a timer is known again, like a call
        return await cells.step("audit", audit, name, price)

    @cells.handler
    async def find(self, item: str) -> None:
        self.best = min(await asyncio.gather(*(self._quote(f"shop-{n}", item) for n in range(5))))


async def main(path: str) -> None:
    async with cells.local(nodes=2, path=path) as cluster:
        await asyncio.gather(*(cluster.spawn(Shop, f"shop-{n}") for n in range(5)))
        broker = await cluster.spawn(Broker, "broker")
        if DIES:
            await broker.find.tell("lamp")
            await begun.wait()
            await cluster.migrate(broker)
        print("best:", await anext(seen.state.best async for seen in broker.watch() if seen.state.best))


if DIES:
    asyncio.run(main(sys.argv[2]))
elif __name__ == "__main__":
    with TemporaryDirectory() as folder:
        print("process ended with", call([sys.executable, __file__, "dies", f"{folder}/db"]), flush=True)
        asyncio.run(main(f"{folder}/db"))
