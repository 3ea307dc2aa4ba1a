"""A report each night at six in Zurich.  Here time is short, so that it is each second; the agent moves, and its node dies."""

import asyncio
import tempfile
from pathlib import Path

import mielin_cells as cells


class Reporter(cells.Agent, idle_s=60):
    sold: int = 0
    reports: list[str] = []

    @cells.handler
    async def schedule(self, when: str) -> None:
        cells.cron(when, self.report, tz="Europe/Zurich", id="nightly", catch_up="one")()

    @cells.handler
    async def sell(self) -> None:
        self.sold += 1

    @cells.handler
    async def report(self) -> None:
        written = await cells.step("write", write, len(self.reports) + 1, self.sold)
        self.reports.append(written)

    @cells.handler
    async def read(self) -> list[str]:
        return self.reports


async def write(number: int, sold: int) -> str:
    await asyncio.sleep(0.3)  # long enough to be moved and killed in
    return f"report {number}: {sold} sold"


async def until(reporter: Reporter, count: int) -> None:
    while len(await reporter.read()) < count:
        await asyncio.sleep(0.05)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "shop.db"
        async with cells.local(2, store) as cluster:
            reporter = await cluster.spawn(Reporter, "reporter")
            await reporter.schedule("* * * * * *")  # "0 6 * * *" in earnest
            await reporter.sell()
            await until(reporter, 1)
            await cluster.migrate(reporter)
            await until(reporter, 2)
        async with cells.local(2, store) as cluster:  # everything has stopped, and starts again
            reporter = cluster.get(Reporter, "reporter")
            await until(reporter, 3)
            print(*(await reporter.read())[:3], sep="\n")


asyncio.run(main())
