"""Checks of the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mielin_cells.errors import NoResponder, WireTimeout
from mielin_cells.substrate.ports import Substrate
from mielin_cells.testing.conformance.kit import WAIT_S, check, fails, in_time, must


@check
async def the_wire_carries_to_those_who_listen(substrate: Substrate) -> None:
    wire, heard, done = substrate.wire, (list[bytes](), list[bytes]()), asyncio.Event()

    def listener(mine: list[bytes]) -> Callable[[bytes], None]:
        def receive(data: bytes) -> None:
            mine.append(data)
            if all(len(one) == 2 for one in heard):
                done.set()

        return receive

    subscription, another = [await wire.subscribe("w.x", listener(mine)) for mine in heard]
    for data in (b"1", b"2"):
        await wire.publish("w.x", data)
    await wire.publish("w.y", b"not for us")
    await in_time(done.wait(), f"Of two messages to two listeners these were heard: {heard}.")
    for one in (subscription, subscription, another):
        one.close()
    await wire.publish("w.x", b"3")

    async def answer(data: bytes) -> bytes:
        if data == b"silence":
            await asyncio.sleep(3600)
        return data + b"!"

    serving = await wire.serve("w.ask", answer)
    must(await wire.request("w.ask", b"hello", WAIT_S) == b"hello!", "A wrong answer.")
    said = await asyncio.gather(*(wire.request("w.ask", b"%d" % n, WAIT_S) for n in range(40)))
    must(said == [b"%d!" % n for n in range(40)], "Of requests made at once one has another's answer.")
    for subject, data, wanted in (("w.ask", b"silence", WireTimeout), ("w.nobody", b"", NoResponder)):
        await fails(wire.request(subject, data, 0.05), (wanted,), f"A request on {subject} was answered.")
    serving.close()
    gone = (NoResponder, WireTimeout)
    await fails(wire.request("w.ask", b"late", 0.2), gone, "A request was answered that nobody serves any more.")
    for mine in heard:
        must(sorted(mine) == [b"1", b"2"], f"Heard {mine}.")
