"""The checker of streams: what a reader has when a stream ends is what the committed run said, each part once."""

from __future__ import annotations

import asyncio
from random import Random

import msgspec

import mielin_cells as cells
from mielin_cells.log.message import decode_answer
from mielin_cells.testing.checkers.checker import Checker, Step
from mielin_cells.testing.checkers.messages import commit_of
from mielin_cells.testing.checkers.scene import Recital, Scene

REHEARSE = "rehearse"
"""The step whose call emits parts."""
FAILED = "failed"
"""The last part if the step has failed for good."""


async def rehearse(length: int) -> list[str]:
    """Emits parts that are others in each call, and returns them; sometimes it fails behind some of them."""
    loop = asyncio.get_running_loop()
    said, rng = list[str](), Random(f"{cells.this().idempotency_key} {loop.time()}")
    fails_at = rng.randrange(length) if length and rng.random() < 0.2 else -1
    for k in range(length):
        if k == fails_at:
            raise ConnectionError("the rehearsal broke off")
        said.append(f"{loop.time():.9f} {k}")
        await cells.emit(said[-1])
        await asyncio.sleep(rng.random() * rng.choice((0.0, 0.01, 0.3)))
    return said


def wrong(recital: Recital) -> str:
    """What is wrong with the parts by themselves; "" if nothing is."""
    length, parts = recital.length, recital.parts
    if not length < len(parts) <= 2 * length + 1:
        return f"it has {len(parts)} parts"
    place = parts[0].partition(" ")[0] if length else ""
    if parts[:length] != [f"{place} {k}" for k in range(length)]:
        return f"the handler yielded {parts[:length]}"
    emitted = parts[length:-1]
    if parts[-1] not in ("|".join(emitted), FAILED):
        return f"the step emitted {emitted}, and the turn has {parts[-1]!r}"
    return ""


class StreamsWhole(Checker):
    """I31: a stream that has ended has the parts of the committed run, in order, once each; those of failed calls are replaced."""

    invariant = "I31"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._counts: dict[tuple[str, str, int], int] = {}
        """By agent, sender and call: how many parts the commit says there are."""

    def record(self, step: Step) -> None:
        commit = commit_of(step)
        for one in commit.inputs if commit is not None else ():
            answer = decode_answer(one.answer) if one.answer is not None else None
            if answer is not None and answer.result is not None:
                try:
                    count = msgspec.msgpack.decode(answer.result, type=int)
                except msgspec.MsgspecError:
                    continue  # the answer of another handler
                _ = self._counts.setdefault((step.agent, one.sender, one.n), count)

    def at_rest(self) -> None:
        for recital in self.scene.recitals:
            what = f"stream {recital.n} of {recital.agent} (restarted {recital.restarts} times)"
            if why := wrong(recital):
                self.fails(f"{what}: {why}")
            count = self._counts.get((recital.agent, recital.sender, recital.n))
            if count != len(recital.parts):
                self.fails(f"{what} ended with {len(recital.parts)} parts, and its commit says {count}")
