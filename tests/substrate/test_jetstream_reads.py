"""Reading one subject of a stream that many share: near entries are read forward, far ones from the last one back."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import pytest
from support.nats_servers import followed, opened, stored

from mielin_cells.errors import StoreUnreachable
from mielin_cells.substrate.jetstream import JetStream
from mielin_cells.substrate.jetstream import log as jetstream_log
from mielin_cells.substrate.jetstream.asking import MARKS_MAX
from mielin_cells.substrate.jetstream.heard import Heard
from mielin_cells.substrate.jetstream.log import BACK_MIN, BATCH, FEW, MARK, NEAR
from mielin_cells.substrate.jetstream.server import Server
from mielin_cells.substrate.ports import Entry

COUNT = 6

_numbers = itertools.count()


async def chain(substrate: JetStream, subject: str, *, between: int, conditional: bool = True) -> list[Entry]:
    """Entries of `subject`, each with so many of others behind it."""
    log, made = substrate.log, list[Entry]()
    for n in range(COUNT):
        data = b"%s %d" % (subject.encode(), n)
        expect = (made[-1].seq if made else 0) if conditional else None
        made.append(Entry(await stored(log, subject, data, expect), data))
        await asyncio.gather(*(log.append(f"a.other-{k % 50}", b"") for k in range(between)))
    return made


class Reads:
    """Of a connection, what it asks for."""

    def __init__(self, substrate: JetStream, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches = self.singles = 0
        log = substrate.log
        collect, one = log._collect, log._one

        async def counted_batch(*args: object) -> object:
            self.batches += 1
            return await collect(*args)  # type: ignore[arg-type]

        async def counted_one(*args: object) -> object:
            self.singles += 1
            return await one(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(log, "_collect", counted_batch)
        monkeypatch.setattr(log, "_one", counted_one)


@pytest.mark.parametrize("between", [0, NEAR // 2, NEAR + 10])
@pytest.mark.parametrize("conditional", [True, False])
async def test_a_log_is_read_alike_however_many_others_lie_between(
    server: Server, between: int, conditional: bool
) -> None:
    deployment = f"reads{next(_numbers)}"
    async with opened(server.url, deployment=deployment) as writer:
        made = await chain(writer, "a.x", between=between, conditional=conditional)
        newcomer = await JetStream.open(server.url, deployment=deployment)
        for substrate in (writer, newcomer):  # one that knows where the stream ends, one that does not
            log = substrate.log
            for first in range(COUNT + 1):
                after = made[first - 1].seq if first else 0
                for limit in (1, 2, 3, COUNT, 1000):
                    assert await log.read("a.x", after, limit) == made[first : first + limit]
            assert await log.read("a.x", made[2].seq - 1) == made[2:]
            assert await log.read("a.x", made[-1].seq + 10_000) == []
            await substrate.close()


async def test_trimmed_entries_are_not_taken_for_missing(server: Server) -> None:
    async with opened(server.url, deployment=f"reads{next(_numbers)}") as substrate:
        log = substrate.log
        made = await chain(substrate, "a.x", between=NEAR)
        await log.trim("a.x", made[2].seq)
        assert await log.read("a.x") == made[2:]
        assert await log.read("a.x", made[2].seq) == made[3:]


async def test_a_far_log_costs_no_search_and_a_near_one_no_chain(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(server.url, deployment=f"reads{next(_numbers)}") as substrate:
        far = await chain(substrate, "a.x", between=NEAR)
        reads = Reads(substrate, monkeypatch)
        assert await substrate.log.read("a.x") == far
        assert (reads.batches, reads.singles) == (0, COUNT)
        assert await substrate.log.read("a.x", far[3].seq) == far[4:]
        assert (reads.batches, reads.singles) == (0, COUNT + 2)
        near = await chain(substrate, "a.y", between=0)
        assert await substrate.log.read("a.y", near[0].seq) == near[1:]
        assert (reads.batches, reads.singles) == (1, COUNT + 2)


async def test_far_mail_is_read_one_by_one_while_it_is_little(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no conditions, so nothing says what was before it; of a batch, a server counts first what follows."""
    async with opened(server.url, deployment=f"reads{next(_numbers)}") as substrate:
        far = await chain(substrate, "a.x", between=NEAR, conditional=False)
        reads = Reads(substrate, monkeypatch)
        assert await substrate.log.read("a.x", far[-1].seq) == []
        assert (reads.batches, reads.singles) == (0, 1)
        assert await substrate.log.read("a.x", far[-2].seq) == far[-1:]
        assert (reads.batches, reads.singles) == (0, 3)
        assert await substrate.log.read("a.x", far[1].seq) == far[2:]
        assert (reads.batches, reads.singles) == (0, 3 + 1 + FEW)
        assert await substrate.log.read("a.x") == far
        assert (reads.batches, reads.singles) == (1, 3 + 2 * (1 + FEW))


async def test_in_a_cluster_a_settled_read_waits_for_a_replica_that_has_all_that_was_acknowledged(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that is behind answers first, as if nothing had been stored."""
    async with opened(server.url, deployment=f"reads{next(_numbers)}") as substrate:
        log = substrate.log
        monkeypatch.setattr(type(substrate._connection), "in_cluster", True)
        seq = await stored(log, "log.x", b"created", 0)
        lasts, behind = log._lasts, 3

        async def from_any(stream: str, names: Sequence[str]) -> list[Heard]:
            nonlocal behind
            behind -= 1
            return [] if behind >= 0 else await lasts(stream, names)

        monkeypatch.setattr(log, "_lasts", from_any)
        assert await log.settled("log.x") == Entry(seq, b"created")
        assert behind < 0
        assert await log.settled("log.y") is None
        behind = 1_000_000
        monkeypatch.setattr(jetstream_log, "READ_S", 0.05)
        with pytest.raises(StoreUnreachable, match="behind"):
            await log.settled("log.x")


async def test_marks_of_settled_reads_do_not_pile_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(server.url, deployment=f"reads{next(_numbers)}") as substrate:
        monkeypatch.setattr(type(substrate._connection), "in_cluster", True)
        for _ in range(MARKS_MAX + 20):
            assert await substrate.log.settled("log.nobody") is None
        assert len(await substrate.log.read(MARK)) <= 21


async def test_a_page_of_a_longer_log_is_not_sought_from_its_end(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long a log is shows only when its beginning is reached: until then reading back may cost no more than reading on."""
    async with opened(server.url, deployment=f"reads{next(_numbers)}") as substrate:
        log, seqs = substrate.log, [0]
        for n in range(120):
            seqs.append(await stored(log, "a.x", b"%d" % n, seqs[-1]))
        await asyncio.gather(*(log.append(f"a.other-{k % 50}", b"") for k in range(NEAR)))
        reads = Reads(substrate, monkeypatch)
        assert [entry.seq for entry in await log.read("a.x", 0, 100)] == seqs[1:101]
        assert reads.singles <= 2 * BACK_MIN
        assert reads.batches == -(-100 // BATCH)


async def test_a_read_of_a_server_that_has_become_slow_ends_with_what_has_come(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(server.url, deployment=f"reads{next(_numbers)}") as substrate:
        log, seqs = substrate.log, [0]
        for n in range(3 * BATCH):
            seqs.append(await stored(log, "a.x", b"%d" % n, seqs[-1]))
        await asyncio.gather(*(log.append(f"a.other-{k % 50}", b"") for k in range(NEAR)))
        reads, one, patience_s = Reads(substrate, monkeypatch), log._one, 0.3

        async def late(*args: object) -> object:
            found = await one(*args)  # type: ignore[arg-type]
            await asyncio.sleep(patience_s + 0.02)
            return found

        monkeypatch.setattr(jetstream_log, "READ_S", patience_s)
        monkeypatch.setattr(log, "_one", late)
        assert [entry.seq for entry in await log.read("a.x")] == seqs[1 : BATCH + 1]
        assert (reads.batches, reads.singles) == (1, 1)  # the last entry, and a part of what is wanted
        assert [entry.seq for entry in await followed(log, "a.x", 3 * BATCH)] == seqs[
            1:
        ]  # a part is not taken for the end


async def test_single_last_entries_that_are_asked_for_at_once_cost_one_request(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(server.url, deployment=f"reads{next(_numbers)}") as substrate:
        log = substrate.log
        made = {f"a.{n}": Entry(await stored(log, f"a.{n}", b"%d" % n), b"%d" % n) for n in range(20)}
        reads = Reads(substrate, monkeypatch)
        names = [*made, "a.nothing", "a.3"]
        found = await asyncio.gather(*(log.lasts([name]) for name in names))
        assert found == [{name: made[name]} if name in made else {} for name in names]
        assert (reads.batches, reads.singles) == (1, 0)
        assert await log.lasts(["a.3"]) == {"a.3": made["a.3"]}
        assert (reads.batches, reads.singles) == (1, 1)


async def test_a_request_that_fails_fails_all_that_it_was_made_for_and_no_later_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(server.url, deployment=f"reads{next(_numbers)}") as substrate:
        log = substrate.log
        seq = await stored(log, "a.x", b"x")

        async def unreachable(*_: object) -> object:
            raise StoreUnreachable("away")

        with monkeypatch.context() as broken:
            broken.setattr(log, "_collect", unreachable)
            given_up = asyncio.ensure_future(log.lasts(["a.y"]))
            asked = [asyncio.ensure_future(log.lasts([name])) for name in ("a.x", "a.z")]
            await asyncio.sleep(0)
            given_up.cancel()
            failures = await asyncio.gather(*asked, given_up, return_exceptions=True)
        assert [type(failure) for failure in failures] == [StoreUnreachable, StoreUnreachable, asyncio.CancelledError]
        assert await log.lasts(["a.x"]) == {"a.x": Entry(seq, b"x")}
