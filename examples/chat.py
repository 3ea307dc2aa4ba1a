"""A chat agent whose answer takes three model calls: moved in mid-answer, its process killed, and each call paid once.

The model is a script, so no network is needed.  `python examples/chat.py` plays all of it.
"""

import asyncio
import os
import subprocess
import sys
import tempfile

import mielin_cells as cells

SCRIPT = {"plan": "look at the sky", "draft": "blue, it seems", "polish": "The sky is blue."}
thinking = asyncio.Event()


async def model(prompt: str) -> str:
    """Send `cells.this().idempotency_key` along to a real one: it is the same if a call that was cut is made again."""
    if prompt == "polish" and "dies" in sys.argv:
        os._exit(9)  # the process is gone, in mid-answer
    print("paid for", prompt, "on", cells.this().node, flush=True)
    thinking.set()
    await asyncio.sleep(0.5)  # a move waits for the call, and takes the agent along behind it
    return SCRIPT[prompt]


class Chat(cells.Agent):
    said: list[str] = []

    @cells.handler
    async def say(self, question: str) -> None:
        thoughts = [await cells.step(prompt, model, prompt) for prompt in SCRIPT]  # kept, one by one
        self.said += [question, thoughts[-1]]

    @cells.handler
    async def all(self) -> list[str]:
        return self.said


async def main(path: str) -> None:
    async with cells.local(nodes=2, path=path) as cluster:
        chat = await cluster.spawn(Chat, "chat")
        if "dies" in sys.argv:
            await chat.say.tell("What colour is the sky?")
            await thinking.wait()
            await cluster.migrate(chat, to="node-2")
        print(*await chat.all(), sep="\n")  # waits for the answer before it


if __name__ == "__main__":
    if "dies" in sys.argv:
        asyncio.run(main(sys.argv[2]))
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store.db")
        print("process ended with", subprocess.call([sys.executable, __file__, "dies", store]), flush=True)
        asyncio.run(main(store))
