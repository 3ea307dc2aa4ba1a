"""Timers are part of an agent: they move with it, and fire once."""

import asyncio

import mielin_cells as cells


class Kettle(cells.Agent):
    said: list[str] = []

    @cells.handler
    async def boil(self, minutes: float) -> str:
        return cells.after(minutes * 60, self.ready)("tea")

    @cells.handler
    async def ready(self, what: str) -> None:
        self.said.append(f"{what} is ready, on {cells.this().node}")

    @cells.handler
    async def heard(self) -> list[str]:
        return self.said


async def main() -> None:
    async with cells.local(nodes=2) as cluster:
        kettle = await cluster.spawn(Kettle, "kettle")
        await kettle.boil(0.005)
        await cluster.migrate(kettle, to="node-2")
        while not (heard := await kettle.heard()):
            await asyncio.sleep(0.05)
        print(*heard, sep="\n")


asyncio.run(main())
