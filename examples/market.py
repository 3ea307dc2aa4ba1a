"""A market with topics, whose clerks count each order once while one is moved and the process is killed.  Run it as it stands."""

import asyncio
import os
import subprocess
import sys
import tempfile

import mielin_cells as cells

ORDERS = 200


class Stall(cells.Agent):
    @cells.handler
    async def open(self) -> None:
        for n in range(ORDERS):
            cells.publish(f"orders.{'eu' if n % 2 else 'us'}.new", n)


class Clerk(cells.Agent):
    pattern: str
    orders: int = 0
    pieces: int = 0

    async def on_start(self) -> None:
        await cells.subscribe(self.pattern, self.on_order)

    @cells.handler
    async def on_order(self, pieces: int, about: cells.Published) -> None:
        self.orders, self.pieces = self.orders + 1, self.pieces + pieces
        if "dies" in sys.argv and about.topic == "orders.us.new" and about.n == ORDERS // 4:
            await asyncio.sleep(0.5)  # meanwhile the other clerk is moved; then the process is gone, in mid-work
            os._exit(9)

    @cells.handler
    async def count(self) -> tuple[int, int]:
        return self.orders, self.pieces


async def main(path: str) -> None:
    async with cells.local(nodes=2, path=path) as cluster:
        clerk, in_eu = [await cluster.spawn(Clerk, p[:9], pattern=p) for p in ("orders.>", "orders.eu.*")]
        if "dies" in sys.argv:
            await (await cluster.spawn(Stall, "stall")).open()
            await cluster.migrate(in_eu)
        in_all, of_eu = [one.count.options(priority="high") for one in (clerk, in_eu)]  # before the orders that wait
        while (await in_all())[0] < ORDERS or (await of_eu())[0] < ORDERS // 2:
            await asyncio.sleep(0.01)
        print("orders and pieces:", *await in_all(), "in the EU:", *await of_eu())


if __name__ == "__main__":
    if "dies" in sys.argv:
        asyncio.run(main(sys.argv[2]))
    with tempfile.TemporaryDirectory() as folder:
        print("process ended with", subprocess.call([sys.executable, __file__, "dies", f"{folder}/db"]), flush=True)
        asyncio.run(main(f"{folder}/db"))
