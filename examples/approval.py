"""An expense that waits for a person: the agent moves, its process is killed, everything starts again, and the approval comes.

`python examples/approval.py` plays all of it.  With `mielin up` the person's word is `mielin resolve TOKEN true`.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import mielin_cells as cells

MAILBOX = Path("mailbox")
mailed = asyncio.Event()


def mail(to: str, what: str, token: str) -> None:
    """In earnest, a mail with a link that has the token in it."""
    print(f"mail to {to}: may we buy {what}?", flush=True)
    MAILBOX.write_text(token)
    mailed.set()


class Expense(cells.Agent):
    decisions: list[str] = []

    @cells.handler
    async def buy(self, what: str) -> None:
        approval = cells.external("approval", bool, deadline=7 * 86400)
        await cells.step("mail", mail, "boss", what, await approval.open())  # once, whatever happens
        self.decisions.append(f"{what}: {'bought' if await approval else 'not bought'}")

    @cells.handler
    async def read(self) -> list[str]:
        return self.decisions


async def main(token: str = "") -> None:
    async with cells.local(nodes=2, path="store.db") as cluster:
        expense = await cluster.spawn(Expense, "expense")
        if not token:
            await expense.buy.tell("a ladder")
            await mailed.wait()
            report = await cluster.migrate(expense, to="node-2")
            print("the move has", report.outcome, flush=True)
            os._exit(9)  # the process is gone, and the agent still waits
        approved = await cluster.resolve(token, True)
        print("approved:", approved.value)
        print(*await expense.read(), sep="\n")


if __name__ == "__main__":
    if "dies" in sys.argv:
        asyncio.run(main())
    os.chdir(tempfile.mkdtemp())
    print("process ended with", subprocess.call([sys.executable, __file__, "dies"]), flush=True)
    asyncio.run(main(MAILBOX.read_text()))
