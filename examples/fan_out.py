"""A group of workers: one agent asks all of them, is moved, and loses its process, and each has worked once.  Run it as it stands."""

import asyncio
import os
import subprocess
import sys
import tempfile

import mielin_cells as cells
from mielin_cells.groups import Group, Team

WORKERS = 20


class Worker(cells.Agent):
    n: int
    worked: int = 0

    @cells.handler
    async def square(self) -> int:
        self.worked += 1
        if "dies" in sys.argv and self.n == WORKERS // 2:
            await asyncio.sleep(0.5)  # meanwhile the boss is moved
            os._exit(9)  # in mid-work
        return self.n * self.n


class Boss(cells.Agent):
    total: int = 0

    @cells.handler
    async def run(self) -> None:
        crew = Team(cells.this().cluster.get(Group, "crew"), Worker)
        gathered = await crew.gather(lambda worker: worker.square())
        self.total = sum(gathered.check().values())


async def main(path: str) -> None:
    async with cells.local(nodes=2, path=path) as cluster:
        boss = await cluster.spawn(Boss, "boss")
        crew = Team(await cluster.spawn(Group, "crew"), Worker)
        if "dies" in sys.argv:
            await crew.add(*[await cluster.spawn(Worker, f"w{n}", n=n) for n in range(WORKERS)])
            await boss.run.tell()
            await cluster.migrate(boss)
        total = 0
        async for now in boss.watch():
            if total := now.state.total:
                break
        worked = [(await cluster.get(Worker, f"w{n}").watch().__anext__()).state.worked for n in range(WORKERS)]
        print("total:", total, "worked:", set(worked))


if __name__ == "__main__":
    if "dies" in sys.argv:
        asyncio.run(main(sys.argv[2]))
    with tempfile.TemporaryDirectory() as folder:
        print("process ended with", subprocess.call([sys.executable, __file__, "dies", f"{folder}/db"]), flush=True)
        asyncio.run(main(f"{folder}/db"))
