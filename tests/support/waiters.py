"""An agent that waits for people outside, and what they say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import mielin_cells as cells

tokens: list[str] = []
"""Those that were given out, the newest last."""
runs: list[str] = []
may_end = asyncio.Event()


async def give_out(token: str) -> None:
    tokens.append(token)


async def hold(what: str) -> str:
    """The call of a step that takes until the test says so."""
    runs.append(what)
    await may_end.wait()
    return what


class Applicant(cells.Agent, name="TestApplicant"):
    done: list[str] = []

    @cells.handler
    async def order(self, what: str, deadline: float = 0) -> str:
        wait = cells.external("approval", bool, deadline=deadline or None)
        await cells.step("mail", give_out, await wait.open())
        try:
            answer = f"{what}: {'yes' if await wait else 'no'}"
        except cells.errors.WaitRejected as error:
            answer = f"{what}: {error.reason}"
        except cells.errors.WaitTimeout:
            answer = f"{what}: late"
        self.done.append(answer)
        return answer

    @cells.handler
    async def leaves(self) -> str:
        """Opens a wait, and never looks at it."""
        return await cells.external("forgotten", bool).open()

    @cells.handler
    async def both(self) -> list[int]:
        first, second = cells.external("n", int), cells.external("n", int)
        for wait in (first, second):
            await cells.step("mail", give_out, await wait.open())
        return list(await asyncio.gather(first, second))

    @cells.handler
    async def patient(self, seconds: float) -> str:
        """Gives up waiting, and waits again."""
        wait = cells.external("word", str)
        try:
            return await asyncio.wait_for(wait, seconds)
        except TimeoutError:
            await cells.step("mail", give_out, wait.token)
        return f"{await wait} later"

    @cells.handler
    async def twice(self) -> list[str]:
        wait = cells.external("word", str)
        opened = await asyncio.gather(wait.open(), wait.open())
        await cells.step("mail", give_out, opened[0])
        said = await asyncio.gather(wait, wait)
        return [*said, await wait, str(opened[0] == opened[1])]

    @cells.handler
    async def begin(self, order: str, deadline: float = 0, is_told: bool = True) -> str:
        """Waits without being busy."""
        otherwise = self.declined if is_told else None
        opens = cells.external("approval", then=self.approved, otherwise=otherwise, deadline=deadline or None)
        return await opens(order)

    @cells.handler
    async def begin_slowly(self, order: str) -> None:
        token = await cells.external("approval", then=self.approved)(order)
        await cells.step("mail", give_out, token)
        await cells.step("hold", hold, order)

    @cells.handler
    async def approved(self, amount: int, order: str) -> None:
        self.done.append(f"{order} {amount}")

    @cells.handler
    async def declined(self, why: str, order: str) -> None:
        self.done.append(f"{order} declined: {why}")

    @cells.handler
    async def note(self, text: str) -> int:
        self.done.append(text)
        return len(self.done)

    @cells.handler(shared=True)
    async def look(self) -> list[str]:
        return self.done


async def next_token(seen: int) -> str:
    """The first that is given out behind so many."""
    async with asyncio.timeout(60):
        while len(tokens) <= seen:
            await asyncio.sleep(0.005)
    return tokens[seen]


async def settles(read: Callable[[], Any], wanted: Any) -> None:
    """Reads again until it is what is wanted."""
    async with asyncio.timeout(60):
        while await read() != wanted:
            await asyncio.sleep(0.005)
