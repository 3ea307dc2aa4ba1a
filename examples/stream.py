"""A chat that streams its answer: it is moved in mid-answer, one of two readers breaks off, and comes back where it was.

The model is a script, so no network is needed.  `python examples/stream.py` plays all of it.
"""

import asyncio
from collections.abc import AsyncIterator

import mielin_cells as cells

ANSWER = "The sky is blue because short waves scatter most."


async def model(question: str) -> str:
    """The tokens of a real one would come over the network."""
    for token in ANSWER.split():
        await cells.emit(token)
        await asyncio.sleep(0.02)
    return ANSWER


class Chat(cells.Agent):
    said: list[str] = []

    @cells.handler
    async def say(self, question: str) -> AsyncIterator[str]:
        self.said += [question, await cells.step("model", model, question)]
        yield f"({len(self.said) // 2} answered on {cells.this().node})"


async def main() -> None:
    async with cells.local(nodes=2) as cluster:
        chat = await cluster.on("node-1").spawn(Chat, "chat")
        stream = chat.say("Why is the sky blue?")
        first = [await anext(stream), await anext(stream)]
        moving = asyncio.ensure_future(cluster.migrate(chat, to="node-2"))  # it waits for the step, not for the turn

        other = chat.say.read(stream.id)
        words = [await anext(other)]
        back = chat.say.read(stream.id, after=other.position)  # as another process would, after it was restarted
        words += [word async for word in back]

        print(*first, *[word async for word in stream])
        print(*words)
        print("paused for a moment:", (await moving).check().pause_ms < 1000)


if __name__ == "__main__":
    asyncio.run(main())
