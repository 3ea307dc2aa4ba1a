"""Agents publish and subscribe, on one node and on several."""

from __future__ import annotations

import asyncio

import mielin_cells as cells


class Shop(cells.Agent, name="TopicShop"):
    sold: int = 0

    @cells.handler
    async def sell(self, topic: str, what: str) -> int:
        self.sold += 1
        cells.publish(topic, {"n": self.sold, "what": what})
        return self.sold

    @cells.handler
    async def sell_many(self, topic: str, count: int) -> None:
        for n in range(count):
            self.sold += 1
            cells.publish(topic, {"n": self.sold, "what": str(n)})


class Order(cells.Agent, name="TopicReader"):
    seen: list[tuple[str, str, int]] = []
    gaps: list[cells.TopicGap] = []

    @cells.handler
    async def follow(self, pattern: str, since: str = "now") -> None:
        await cells.subscribe(pattern, self.on_order, since="first" if since == "first" else "now", on_gap=self.on_gap)

    @cells.handler
    async def leave(self, pattern: str) -> bool:
        return cells.unsubscribe(pattern, self.on_order)

    @cells.handler
    async def on_order(self, order: dict[str, int | str], about: cells.Published) -> None:
        assert isinstance(order["n"], int)
        self.seen.append((about.topic, about.publisher, about.n))

    @cells.handler
    async def on_gap(self, gap: cells.TopicGap) -> None:
        self.gaps.append(gap)

    @cells.handler
    async def show(self) -> list[tuple[str, str, int]]:
        return self.seen


async def until_seen(reader: Order, count: int) -> list[tuple[str, str, int]]:
    async with asyncio.timeout(30):
        while len(seen := await reader.show()) < count:
            await asyncio.sleep(0.01)
    return seen


async def test_a_message_comes_to_each_subscriber_once() -> None:
    async with cells.local(nodes=3) as cluster:
        shop = await cluster.spawn(Shop, "shop")
        readers = [await cluster.spawn(Order, f"r{n}") for n in range(5)]
        for reader in readers:
            await reader.follow("orders.*.new")
            await reader.follow("orders.*.new")
            await reader.follow("orders.>")
        for n in range(10):
            await shop.sell("orders.eu.new", f"{n}")
        await shop.sell("orders.eu.old", "x")
        await shop.sell("other.eu.new", "x")
        wanted = [("orders.eu.new", "shop", n) for n in range(1, 11)]
        for reader in readers:
            await until_seen(reader, 11)
            seen = await reader.show()
            assert [one for one in seen if one[0] == "orders.eu.new"] == wanted
            assert [one for one in seen if one[0] != "orders.eu.new"] == [("orders.eu.old", "shop", 1)]


async def test_a_subscriber_misses_nothing_while_it_moves() -> None:
    async with cells.local(nodes=3) as cluster:
        shop, reader = await cluster.spawn(Shop, "shop"), await cluster.spawn(Order, "r")
        await reader.follow("orders.>", "first")
        for n in range(30):
            await shop.sell("orders.a", str(n))
            if n % 10 == 5:
                (await cluster.migrate("r")).check()
                (await cluster.migrate("shop")).check()
        await until_seen(reader, 30)
        assert await reader.show() == [("orders.a", "shop", n) for n in range(1, 31)]
