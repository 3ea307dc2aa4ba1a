"""A supervised pipeline: its counter breaks, is moved, and loses its process, and counts each word once.  Run it as it stands."""

import asyncio
import logging
import os
import subprocess
import sys
import tempfile

import mielin_cells as cells

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"] * 20
BROKEN = ["the dictionary does not answer"]  # once in each process


class Counter(cells.Agent):
    words: dict[str, int] = {}

    async def on_arrive(self) -> None:
        if BROKEN:
            raise ConnectionError(BROKEN.pop())  # it is in ERROR, until its parent restarts it

    @cells.handler
    async def count(self, word: str) -> None:
        self.words[word] = self.words.get(word, 0) + 1
        if "dies" in sys.argv and sum(self.words.values()) == len(WORDS) // 2:
            await asyncio.sleep(0.5)  # meanwhile the line is moved
            os._exit(9)  # in mid-work


class Line(cells.Agent, supervision=cells.Supervision(max_restarts=5, within_s=60)):
    @cells.handler
    async def begin(self) -> None:
        counter = await cells.spawn(Counter, "counter")
        for word in WORDS:
            await counter.count.tell(word)


async def main(path: str) -> None:
    async with cells.local(nodes=2, path=path) as cluster:
        if "dies" in sys.argv:
            await (await cluster.spawn(Line, "line")).begin()
            await cluster.migrate("line")
        words = dict[str, int]()
        async for now in cluster.get(Counter, "counter").watch():
            words = now.state.words
            if sum(words.values()) == len(WORDS):
                break
        print("words:", sum(words.values()), "of them the:", words["the"])


if __name__ == "__main__":
    logging.disable(logging.ERROR)  # what breaks here is no news
    logging.disable(logging.ERROR)
    if "dies" in sys.argv:
        asyncio.run(main(sys.argv[2]))
    with tempfile.TemporaryDirectory() as folder:
        print("process ended with", subprocess.call([sys.executable, __file__, "dies", f"{folder}/db"]), flush=True)
        asyncio.run(main(f"{folder}/db"))
