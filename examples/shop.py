"""A shop's carts and its stock: agents that ask each other, and are moved while customers come.

`python examples/shop.py` plays it in this process; `mielin up --app examples/shop.py` serves it from three.
"""

import asyncio

import mielin_cells as cells


class SoldOut(Exception):
    pass


class Shelf(cells.Agent):
    left: int = 0

    @cells.handler(tries=1)  # a second run would find no more
    async def take(self, n: int) -> int:
        if n > self.left:
            raise SoldOut(f"{n} wanted, {self.left} left")
        self.left -= n
        return self.left


class Cart(cells.Agent):
    shelf: Shelf
    items: list[str] = []

    @cells.handler
    async def add(self, n: int, note: str = "") -> list[str]:
        left = await self.shelf.take(n)  # done once, also if this cart moves or its node dies meanwhile
        self.items.append(f"{n} {note}, {left} left")
        return self.items


async def main() -> None:
    async with cells.local(nodes=3) as cluster:
        shelf = await cluster.on("node-2").spawn(Shelf, "tulips", left=100)
        carts = [await cluster.spawn(Cart, f"cart-{n}", shelf=shelf) for n in range(10)]
        shopping = asyncio.gather(*(cart.add(3, "tulips") for cart in carts for _ in range(3)))
        print("moved:", (await cluster.migrate(shelf)).ok)
        await shopping
        try:
            await carts[0].add(11)
        except cells.HandlerFailed as error:
            print(error.message)
        print("left:", await shelf.take(0))


if __name__ == "__main__":
    asyncio.run(main())
