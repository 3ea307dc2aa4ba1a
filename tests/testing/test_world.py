"""The simulated world: what its faults do, what a crash leaves, and that a seed tells one story."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest

from mielin_cells.errors import MessageTooLarge, NoResponder, StoreBusy, StoreUnreachable, WireTimeout
from mielin_cells.substrate.ports import ENTRY_BYTES_MAX, Appended, Conflict, Entry, Unknown
from mielin_cells.testing.simulator.environment import Faults
from mielin_cells.testing.simulator.loop import run
from mielin_cells.testing.simulator.scenario import Bugs, Scenario
from mielin_cells.testing.simulator.view import View
from mielin_cells.testing.simulator.world import World


async def seqs(view: View, subject: str) -> list[int]:
    return [entry.seq for entry in await view.log.read(subject)]


def test_of_contenders_for_one_place_one_wins() -> None:
    async def main() -> None:
        world = World(1)
        views = [world.connect(f"n{n}") for n in range(12)]
        for subject in (f"s{n}" for n in range(20)):
            outcomes = await asyncio.gather(*(v.log.append(subject, v.name.encode(), 0) for v in views))
            winners = [o for o in outcomes if isinstance(o, Appended)]
            assert len(winners) == 1
            assert outcomes.count(Conflict(winners[0].seq)) == 11

    run(main())


def test_appends_made_one_after_another_are_stored_in_that_order() -> None:
    async def main() -> None:
        world = World(2, Faults(slow=0.5))
        view = world.connect("n")
        await asyncio.gather(*(view.log.append("s", b"%d" % n) for n in range(50)))
        assert [e.data for e in await view.log.read("s")] == [b"%d" % n for n in range(50)]

    run(main())


def test_a_lost_answer_means_it_landed() -> None:
    async def main() -> None:
        world = World(3, Faults(append_lost=1.0))
        view = world.connect("n")
        assert isinstance(await view.log.append("s", b"x", 0), Unknown)
        assert [e.data for e in await view.log.read("s")] == [b"x"]

    run(main())


def test_an_append_may_land_seconds_after_its_unknown() -> None:
    async def main() -> None:
        world = World(4, Faults(append_late=1.0, late_s=20.0, timeout_s=0.1))
        view = world.connect("n")
        assert isinstance(await view.log.append("s", b"x", 0), Unknown)
        assert await view.log.last("s") is None
        await asyncio.sleep(21)
        assert (await view.log.last("s")) is not None

    run(main())


def test_an_append_may_never_land_and_a_false_conflict_leaves_nothing() -> None:
    async def main() -> None:
        never = World(5, Faults(append_never=1.0)).connect("n")
        assert isinstance(await never.log.append("s", b"x"), Unknown)
        refused = World(5, Faults(false_conflict=1.0)).connect("n")
        assert await refused.log.append("s", b"x", 0) == Conflict(0)
        busy = World(5, Faults(append_busy=1.0)).connect("n")
        with pytest.raises(StoreBusy):
            await busy.log.append("s", b"x", 0)
        await asyncio.sleep(100)
        assert [await v.log.last("s") for v in (never, refused, busy)] == [None, None, None]

    run(main())


def test_a_read_may_be_stale_but_skips_nothing_and_last_is_never_stale() -> None:
    async def main() -> None:
        world = World(6, Faults(read_stale=1.0))
        view = world.connect("n")
        stale = 0
        for n in range(1, 60):
            await view.log.append("s", b"x")
            found = await seqs(view, "s")
            assert found == list(range(1, len(found) + 1))
            stale += len(found) < n
            assert await view.log.last("s") == Entry(n, b"x")
        assert stale > 10

    run(main())


def test_reads_that_fail_say_so() -> None:
    async def main() -> None:
        view = World(7, Faults(read_fails=1.0)).connect("n")
        for call in (view.log.read("s"), view.log.last("s"), view.log.subjects("")):
            with pytest.raises(StoreUnreachable):
                await call

    run(main())


def test_a_tail_has_no_gap_and_no_repeat_and_lags() -> None:
    async def main() -> None:
        world = World(8, Faults(slow=0.5))
        writer, reader = world.connect("w"), world.connect("r")
        for n in range(10):
            await writer.log.append("s", b"%d" % n)
        tail, seen = reader.log.tail("s", 3), list[int]()

        async def follow() -> None:
            async for batch in tail:
                seen.extend(entry.seq for entry in batch)

        task = asyncio.ensure_future(follow())
        for n in range(30):
            await writer.log.append("s", b"%d" % n)
        await asyncio.sleep(2)
        assert seen == list(range(4, 41))
        tail.close()
        await task

    run(main())


def test_trims_are_lost_or_late_and_leave_the_rest() -> None:
    async def main() -> None:
        for faults, at_once, at_last in (
            (Faults(), 3, 3),
            (Faults(trim_late=1.0), 1, 3),
            (Faults(trim_lost=1.0), 1, 1),
        ):
            view = World(9, faults).connect("n")
            for _ in range(4):
                await view.log.append("s", b"x")
            await view.log.trim("s", 3)
            assert (await seqs(view, "s"))[0] == at_once
            await asyncio.sleep(10)
            assert (await seqs(view, "s"))[0] == at_last

    run(main())


def test_wire_messages_are_dropped_and_repeated() -> None:
    async def main() -> None:
        world = World(10, Faults(wire_drop=0.3, wire_repeat=0.3))
        sender, receiver = world.connect("s"), world.connect("r")
        got: list[bytes] = []
        await receiver.wire.subscribe("a", got.append)
        for n in range(100):
            await sender.wire.publish("a", b"%d" % n)
            await sender.wire.publish("b", b"nobody hears")
        await asyncio.sleep(1)
        assert 50 < len(set(got)) < 90 < len(got) + 30
        assert len(got) > len(set(got))
        assert got != sorted(got, key=int)

    run(main())


def test_requests_are_answered_or_time_out() -> None:
    async def main() -> None:
        world = World(11)
        client, server = world.connect("c"), world.connect("s")
        with pytest.raises(NoResponder):
            await client.wire.request("a", b"x", 1)

        async def answer(data: bytes) -> bytes:
            await asyncio.sleep(3)
            return data.upper()

        served = await server.wire.serve("a", answer)
        assert await client.wire.request("a", b"x", 5) == b"X"
        with pytest.raises(WireTimeout):
            await client.wire.request("a", b"x", 1)
        world.cut("s", 1)
        with pytest.raises(WireTimeout):
            await client.wire.request("a", b"x", 5)
        assert await client.wire.request("a", b"y", 5) == b"Y"
        served.close()
        with pytest.raises(NoResponder):
            await client.wire.request("a", b"x", 1)

    run(main())


def test_after_a_crash_nothing_is_answered_and_what_was_sent_may_land() -> None:
    landed = 0
    for seed in range(30):

        async def main(seed: int = seed) -> bool:
            world = World(seed)
            view = world.connect("n")
            steps: list[str] = []

            async def work() -> None:
                try:
                    await view.log.append("s", b"x", 0)
                    steps.append("answered")
                finally:
                    await view.log.append("s", b"finally")
                    steps.append("finally")

            task = view.process.start(work())
            await asyncio.sleep(0)
            world.crash("n")
            task.cancel()
            again = world.connect("n")
            await asyncio.sleep(100)
            assert not steps
            found = [e.data for e in await again.log.read("s")]
            assert found in ([], [b"x"])
            return bool(found)

        landed += run(main())
    assert 5 < landed < 29


def test_a_call_on_a_dead_view_hangs_for_ever_whoever_makes_it() -> None:
    async def main() -> None:
        world = World(12)
        view = world.connect("n")
        got: list[bytes] = []
        await view.wire.subscribe("a", got.append)
        tail = view.log.tail("s")
        world.crash("n")
        for call in (view.log.append("s", b"x"), view.log.last("s"), view.wire.publish("a", b"x"), tail.__anext__()):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1000):
                    await call
        await world.connect("m").wire.publish("a", b"y")
        await asyncio.sleep(1)
        assert not got
        assert world.store.last("s") is None

    run(main())


def test_a_paused_process_hears_and_does_nothing_until_it_goes_on() -> None:
    async def main() -> None:
        world = World(13)
        view, other = world.connect("n"), world.connect("m")
        heard: list[float] = []
        await view.wire.subscribe("a", lambda _: heard.append(world.loop.time()))

        async def work() -> None:
            await view.log.append("s", b"one")
            await view.log.append("s", b"two")

        task = view.process.start(work())
        await asyncio.sleep(0)
        world.pause("n", 10)
        await other.wire.publish("a", b"x")
        await asyncio.sleep(9)
        assert [e.data for e in await other.log.read("s")] == [b"one"]
        assert not heard
        await task
        assert [e.data for e in await other.log.read("s")] == [b"one", b"two"]
        assert [round(at) for at in heard] == [10]

    run(main())


def test_a_view_without_a_store_has_it_again_afterwards() -> None:
    async def main() -> None:
        world = World(14)
        view = world.connect("n")
        world.cut("n", 5, store=True)
        assert isinstance(await view.log.append("s", b"x"), Unknown)
        with pytest.raises(StoreUnreachable):
            await view.log.read("s")
        world.heal()
        assert isinstance(await view.log.append("s", b"x"), Appended)

    run(main())


def test_a_closed_view_says_so_and_large_entries_are_refused() -> None:
    async def main() -> None:
        world = World(15)
        view = world.connect("n")
        with pytest.raises(MessageTooLarge):
            await view.log.append("s", bytes(ENTRY_BYTES_MAX + 1))
        sent = asyncio.ensure_future(view.log.append("s", bytes(ENTRY_BYTES_MAX)))
        await asyncio.sleep(0)
        await view.close()
        assert isinstance(await sent, Appended)
        with pytest.raises(StoreUnreachable):
            await view.log.read("s")

    run(main())


def test_a_budget_limits_the_faults() -> None:
    async def main() -> None:
        world = World(16, Faults(append_never=1.0), budget=3)
        view = world.connect("n")
        outcomes = [await view.log.append("s", b"x") for _ in range(10)]
        assert sum(isinstance(o, Unknown) for o in outcomes) == 3 == world.counts["append_never"]

    run(main())


def test_observers_see_each_landing_with_its_author() -> None:
    async def main() -> None:
        world = World(17)
        seen: list[tuple[str, int, str]] = []
        world.on_append(lambda subject, entry, author: seen.append((subject, entry.seq, author.name)))
        await world.connect("a").log.append("s", b"x")
        await world.connect("b").log.append("s", b"x", 0)
        await world.connect("b").log.append("s", b"x", 1)
        assert seen == [("s", 1, "a"), ("s", 2, "b")]

    run(main())


def story(seed: int) -> Coroutine[Any, Any, str]:
    async def main() -> str:
        world = World(seed, Faults.drawn(World(seed).rng, 0.5))

        async def work(view: View, n: int) -> None:
            for k in range(10):
                try:
                    await view.log.append(f"s{k % 3}", b"%d %d" % (n, k), None if k % 2 else 0)
                    await view.log.read("s1")
                except (StoreBusy, StoreUnreachable):
                    await asyncio.sleep(0.1)

        for n in range(4):
            view = world.connect(f"n{n}")
            for m in range(3):
                _ = view.process.start(work(view, m))
        await asyncio.sleep(0.02)
        world.pause("n1", 1.0)
        world.crash("n2")
        await asyncio.sleep(60)
        return world.digest()

    return main()


def test_a_seed_tells_one_story_whatever_the_hash_seed() -> None:
    digests = [run(story(seed)) for seed in range(10)]
    assert len(set(digests)) == 10
    assert [run(story(seed)) for seed in range(10)] == digests
    code = "from test_world import run, story; print(*[run(story(seed)) for seed in range(10)])"
    for hash_seed in ("1", "2"):
        out = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parent, env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert out.stdout.split() == digests


def test_a_story_leaves_the_logs_of_its_process_as_they_were() -> None:
    """What a logger has found to be disabled it remembers until a level is set: warnings were gone for good after a story."""
    below = logging.getLogger("mielin_cells.failover")
    before = below.isEnabledFor(logging.WARNING)
    with Bugs(cast(Scenario, None)):
        assert not below.isEnabledFor(logging.WARNING)
    assert below.isEnabledFor(logging.WARNING) is before


def test_the_index_of_owners_is_late_and_names_former_owners() -> None:
    async def main() -> None:
        world = World(31, Faults(index_s=2.0))
        view = world.connect("n")
        seqs_of = dict[str, int]()
        for owner in ("one", "two"):
            outcome = await view.log.append("log.a", b"", None, owner)
            assert isinstance(outcome, Appended)
            seqs_of[owner] = outcome.seq
        at_once = [await view.log.owned("two") for _ in range(20)]
        assert [] in at_once
        await asyncio.sleep(3.0)
        assert [await view.log.owned(owner) for owner in seqs_of] == [["log.a"], ["log.a"]]
        await view.log.forget_owned("one", "log.a", seqs_of["one"])
        assert await view.log.owned("one") == ["log.a"]
        await view.log.forget_owned("one", "log.a", seqs_of["two"])
        assert await view.log.owned("one") == []

    run(main())


def test_the_index_of_owners_loses_entries_only_if_a_test_asks_for_it() -> None:
    async def main() -> None:
        world = World(32, Faults(index_lost=1.0, index_s=0.0))
        view = world.connect("n")
        assert isinstance(await view.log.append("log.a", b"", 0, "one"), Appended)
        await asyncio.sleep(1.0)
        assert await view.log.owned("one") == []
        assert len(await view.log.read("log.a")) == 1

    run(main())
    assert all(Faults.drawn(Random(seed)).index_lost == 0.0 for seed in range(50))


def test_a_power_cut_takes_the_index_back_with_the_logs() -> None:
    async def main() -> None:
        world = World(33, Faults(index_s=0.0))
        view = world.connect("n")
        kept = await view.log.append("log.a", b"", 0, "one")
        assert isinstance(kept, Appended)
        await asyncio.sleep(5.0)
        await view.log.append("log.b", b"", 0, "one")
        world.cut_power(2.0)
        again = world.connect("n")
        assert await again.log.owned("one") == ["log.a"]

    run(main())
