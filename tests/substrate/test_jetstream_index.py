"""The index of owners on a real server: how entries are named, that nobody writes to it, and how a lost one comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from support.nats_servers import list_streams, nats_server, opened, raw_client, refused, stored

from mielin_cells.errors import InternalError, RetryError, StoreUnreachable, StreamMissing
from mielin_cells.substrate.health import WARNING, judged
from mielin_cells.substrate.jetstream import JetStream, index
from mielin_cells.substrate.jetstream import log as jetstream_log
from mielin_cells.substrate.jetstream.ask import ask, find_stream, raw_stream
from mielin_cells.substrate.jetstream.heard import Heard
from mielin_cells.substrate.jetstream.index import Index
from mielin_cells.substrate.jetstream.server import Server
from mielin_cells.substrate.ports import Appended, Entry, Log

WAIT_S = 60.0
_numbers = count()


async def owns(log: Log, subject: str, owner: str, expect: int) -> int:
    outcome = await log.append(subject, b"", expect, owner)
    assert isinstance(outcome, Appended)
    return outcome.seq


async def shown(log: Log, owner: str, wanted: list[str]) -> None:
    async with asyncio.timeout(WAIT_S):
        while await log.owned(owner) != wanted:
            await asyncio.sleep(0.01)


async def names_of(client: Any, stream: str) -> dict[str, int]:
    request = json.dumps({"subjects_filter": ">"}).encode()
    answer = json.loads((await client.request(f"$JS.API.STREAM.INFO.{stream}", request)).data)
    return dict(answer["state"].get("subjects") or {})


@pytest.mark.parametrize("shards", [1, 4])
async def test_entries_are_named_by_kind_and_the_index_by_owner(server: Server, shards: int) -> None:
    name = f"index{next(_numbers)}"
    async with opened(server.url, deployment=name, shards=shards) as substrate, raw_client(server.url) as client:
        log, wanted = substrate.log, [f"log.a{n}" for n in range(8)]
        for subject in wanted:
            await stored(log, subject, b"", await owns(log, subject, "node-1", 0))
        await owns(log, "log.a0", "", (await log.subjects("log.a0"))[0][1])
        await stored(log, "inbox.a0", b"")
        await shown(log, "node-1", wanted)
        await shown(log, "", ["log.a0"])

        there = set[str]()
        for shard in range(shards):
            head = f"{name}.log.{shard}."
            there |= {one.removeprefix(head) for one in await names_of(client, f"{name}-log-{shard}")}
        kinds = {one for n in range(8) for one in (f"log.a{n}.own.node-1", f"log.a{n}.rec")}
        assert there - {"mark", "index"} == kinds | {"log.a0.own.=", "inbox.a0"}
        index = await names_of(client, f"{name}-own-1")
        assert set(index) == {*(f"{name}.own.node-1.a{n}" for n in range(8)), f"{name}.own.=.a0"}


async def test_a_client_cannot_write_to_the_index(server: Server) -> None:
    name = f"index{next(_numbers)}"
    async with opened(server.url, deployment=name) as substrate, raw_client(server.url) as client:
        await owns(substrate.log, "log.a", "node-1", 0)
        await shown(substrate.log, "node-1", ["log.a"])
        for subject in (f"{name}.own.node-1.forged", f"{name}-own-1"):
            await client.publish(subject, b"")
        await client.flush()
        await owns(substrate.log, "log.b", "node-1", 0)
        await shown(substrate.log, "node-1", ["log.a", "log.b"])


@pytest.mark.parametrize("by", ["who opens next", "a list", "doctor --fix"])
async def test_a_deleted_index_is_made_anew_in_the_next_generation(by: str, server: Server) -> None:
    name = f"index{next(_numbers)}"
    async with opened(server.url, deployment=name, shards=2) as substrate, raw_client(server.url) as client:
        log = substrate.log
        wanted = [f"log.a{n}" for n in range(6)]
        for subject in wanted:
            await owns(log, subject, "node-1", 0)
        await shown(log, "node-1", wanted)
        await client.jetstream().delete_stream(f"{name}-own-1")
        found = judged(await JetStream.inspected(server.url, deployment=name)).findings
        assert [one.level for one in found if "index" in one.what] == [WARNING]
        if by == "who opens next":
            await asyncio.gather(*(_open(server.url, name) for _ in range(3)))
        elif by == "doctor --fix":
            await JetStream.replicated(server.url, deployment=name)
        await shown(log, "node-1", wanted)
        streams = [info.config.name or "" for info in await list_streams(client)]
        assert [one for one in streams if one.startswith(f"{name}-own-")] == [f"{name}-own-2"]
        facts = await JetStream.inspected(server.url, deployment=name)
        assert facts.missing == []
        assert not [one for one in judged(facts).findings if "own" in one.what]


async def test_what_an_index_has_lost_is_said_and_it_is_made_anew(server: Server) -> None:
    """A server may lose entries for good when others of its cluster die.  Former owners and agents that have ended are no loss."""
    name = f"index{next(_numbers)}"
    async with opened(server.url, deployment=name, shards=2) as substrate, raw_client(server.url) as client:
        log = substrate.log
        for n in range(8):
            seq = await owns(log, f"log.a{n}", "node-1", 0)
            if n % 2:
                seq = await owns(log, f"log.a{n}", "node-2", seq)
                await log.forget_owned("node-1", f"log.a{n}", seq)
            if n == 5:
                await owns(log, f"log.a{n}", "", seq)
        await log.owned("node-1", "settled index")
        assert (await JetStream.inspected(server.url, deployment=name)).lost == []
        for entry in ("node-1.a0", "node-2.a1", "node-2.a5", "node-1.a3"):
            asked = json.dumps({"filter": f"{name}.own.{entry}"}).encode()
            await client.request(f"$JS.API.STREAM.PURGE.{name}-own-1", asked)
        facts = await JetStream.inspected(server.url, deployment=name)
        assert facts.lost == ["a0", "a1"]
        assert [one.level for one in judged(facts).findings if "a0, a1" in one.what] == [WARNING]
        assert await JetStream.replicated(server.url, deployment=name) == {f"{name}-own-2": (1, 1)}
        await shown(log, "node-2", ["log.a1", "log.a3", "log.a5", "log.a7"])
        assert (await JetStream.inspected(server.url, deployment=name)).lost == []
        assert await JetStream.replicated(server.url, deployment=name) == {}


async def test_a_list_goes_on_while_a_server_says_that_the_index_is_gone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that starts does not know of a stream that it has not loaded yet.  (Found by torture.)"""
    name = f"index{next(_numbers)}"
    async with opened(server.url, deployment=name) as substrate:
        log, asked = substrate.log, count()
        await owns(log, "log.a", "node-1", 0)
        await shown(log, "node-1", ["log.a"])
        lasts, gone_for = Index._lasts, 3

        async def gone(self: Index, stream: str, names: list[str]) -> list[Heard]:
            if next(asked) < gone_for:
                raise StreamMissing(f"The stream {stream} is gone.", stream=stream)
            return await lasts(self, stream, names)

        monkeypatch.setattr(Index, "_lasts", gone)
        assert await log.owned("node-1", "settled index") == ["log.a"]
        asked, gone_for = count(), 1 << 30
        error = await refused(log.owned("node-1", "settled index"), StoreUnreachable)
        assert "is gone again and again" in error.message


async def test_of_several_that_mend_an_index_none_deletes_what_another_has_made(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream_log, "PATIENT_S", 1.0)
    name = f"index{next(_numbers)}"
    async with opened(server.url, deployment=name, shards=2) as substrate, raw_client(server.url) as client:
        log = substrate.log
        wanted = [f"log.a{n}" for n in range(6)]
        for subject in wanted:
            await owns(log, subject, "node-1", 0)
        await shown(log, "node-1", wanted)
        assert await log.mend_owned() == 0
        asked = json.dumps({"filter": f"{name}.own.node-1.a3"}).encode()
        await client.request(f"$JS.API.STREAM.PURGE.{name}-own-1", asked)
        async with opened(server.url, deployment=name) as other:
            assert max(await asyncio.gather(log.mend_owned(), other.log.mend_owned())) == 1
        await shown(log, "node-1", wanted)
        streams = [info.config.name or "" for info in await list_streams(client)]
        assert [one for one in streams if one.startswith(f"{name}-own-")] == [f"{name}-own-2"]
        assert await log.mend_owned() == 0


async def test_an_index_of_several_shards_that_is_made_anew_is_whole_after_moves_to_and_fro(server: Server) -> None:
    """While it is filled, later records of a pair replace earlier ones: then NATS 2.15.1 filled it from one of the shards alone."""
    name = f"index{next(_numbers)}"
    async with opened(server.url, deployment=name, shards=4) as substrate, raw_client(server.url) as client:
        log, agents = substrate.log, [f"log.a{n}" for n in range(24)]
        for subject in agents:
            seq = 0
            for move in range(9):
                seq = await owns(log, subject, f"node-{move % 3}", seq)
        await shown(log, "node-2", sorted(agents))
        for generation in (1, 2):
            await client.jetstream().delete_stream(f"{name}-own-{generation}")
            for node in ("node-0", "node-1", "node-2"):
                await shown(log, node, sorted(agents))


async def _open(url: str, deployment: str) -> None:
    async with opened(url, deployment=deployment):
        pass


async def test_a_hint_is_forgotten_once_a_later_record_names_another_node(server: Server) -> None:
    name = f"index{next(_numbers)}"
    async with opened(server.url, deployment=name) as substrate:
        log = substrate.log
        first = await owns(log, "log.a", "node-1", 0)
        second = await owns(log, "log.a", "node-2", first)
        await shown(log, "node-2", ["log.a"])
        assert await log.owned("node-1") == ["log.a"]  # a former owner
        await log.forget_owned("node-1", "log.a", first)
        assert await log.owned("node-1") == ["log.a"]
        await log.forget_owned("node-1", "log.a", second)
        assert await log.owned("node-1") == []
        with pytest.raises(InternalError):
            await log.forget_owned("node-1", "inbox.a", 1)


async def test_many_owners_of_one_log_do_not_hide_its_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server gives at most 1,024 last entries for one request; a log that has had many owners has as many names."""
    name = f"index{next(_numbers)}"
    async with opened(server.url, deployment=name) as substrate:
        log, seq = substrate.log, 0
        for n in range(1030):
            seq = await owns(log, "log.a", f"n{n}", seq)
        other = await owns(log, "log.b", "n0", 0)
        lasts = await log.lasts(["log.a", "log.b", "log.c"])
        assert {subject: entry.seq for subject, entry in lasts.items()} == {"log.a": seq, "log.b": other}
        assert await log.subjects("log.") == [("log.a", seq), ("log.b", other)]
        monkeypatch.setattr(type(substrate._connection), "in_cluster", True)
        assert await log.settled("log.a") == Entry(seq, b"")
        later = await stored(log, "log.a", b"a record", seq)
        assert await log.settled("log.a") == Entry(later, b"a record")
        await log.trim("log.a", seq + 1)
        assert [entry.seq for entry in await log.read("log.a")] == [seq, later]
        assert await log.settled("log.a") == Entry(later, b"a record")


async def test_a_settled_read_by_names_is_repeated_if_a_trim_comes_between(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the log would seem to end before what was acknowledged, or not to be there at all."""
    name = f"index{next(_numbers)}"
    async with opened(server.url, deployment=name) as substrate:
        log, seq = substrate.log, 0
        for n in range(1030):
            seq = await owns(log, "log.a", f"n{n}", seq)
        monkeypatch.setattr(type(substrate._connection), "in_cluster", True)
        names, lists = log._names, count()

        async def then_trimmed(*args: Any) -> list[str]:
            nonlocal seq
            there = await names(*args)
            if next(lists) == 0:
                seq = await owns(log, "log.a", "late", seq)
                await log.trim("log.a", seq)
            return there

        monkeypatch.setattr(log, "_names", then_trimmed)
        assert await log.settled("log.a") == Entry(seq, b"")
        assert next(lists) == 2


async def test_an_index_that_is_made_while_the_copies_change_takes_nothing_back(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its generation was noted in the configuration of a log stream: what another had changed there meanwhile was written over."""
    name = f"index{next(_numbers)}"
    async with opened(server.url, deployment=name) as substrate, raw_client(server.url) as client:
        connection, find = substrate._connection, find_stream
        await client.jetstream().delete_stream(f"{name}-own-1")

        async def then_changed(*args: Any) -> Any:
            found = await find(*args)
            config = (await raw_stream(connection, f"{name}-log-0"))["config"]
            changed = json.dumps({**config, "description": "changed by another"}).encode()
            assert (await ask(connection, f"STREAM.UPDATE.{name}-log-0", changed)).error is None
            return found

        monkeypatch.setattr("mielin_cells.substrate.jetstream.index.find_stream", then_changed)
        assert await index.make_index(connection, name) == f"{name}-own-2"
        assert (await raw_stream(connection, f"{name}-log-0"))["config"]["description"] == "changed by another"


async def test_of_many_that_make_an_index_with_other_copies_one_is_noted_and_no_other_is_left(server: Server) -> None:
    name = f"index{next(_numbers)}"
    async with opened(server.url, deployment=name) as substrate, raw_client(server.url) as client:
        await owns(substrate.log, "log.a", "node-1", 0)
        for _ in range(5):
            await client.jetstream().delete_stream(await index.find_index(substrate._connection, name))
            made = await asyncio.gather(*(index.make_index(substrate._connection, name) for _ in range(8)))
            assert {one for one in made if one} == {await index.find_index(substrate._connection, name)}
            there = [info.config.name or "" for info in await list_streams(client)]
            assert [one for one in there if one.startswith(f"{name}-own-")] == [one for one in made if one]
            await shown(substrate.log, "node-1", ["log.a"])


async def test_after_a_kill_of_the_server_the_index_has_all_owners_and_perhaps_former_ones(tmp_path: Path) -> None:
    """What was removed may come back, as what it was before; what was written just before the kill is taken in again."""
    async with nats_server(tmp_path / "s") as server, opened(server.url, shards=2) as substrate:
        log, seqs = substrate.log, dict[str, int]()
        former, own = [f"log.f{n}" for n in range(40)], [f"log.m{n}" for n in range(40)]
        for subject in (*former, *own):
            seqs[subject] = await owns(log, subject, "node-1", 0)
        for subject in former:
            seqs[subject] = await owns(log, subject, "node-2", seqs[subject])
        await shown(log, "node-2", sorted(former))
        for subject in former:
            await log.forget_owned("node-1", subject, seqs[subject])
        assert await log.owned("node-1") == sorted(own)
        late = [f"log.l{n}" for n in range(20)]
        for subject in late:
            seqs[subject] = await owns(log, subject, "node-1", 0)
        server.kill()
        await server.start()
        async with asyncio.timeout(WAIT_S):
            while True:
                with contextlib.suppress(RetryError):
                    owned = await log.owned("node-1", "settled index")
                    break
                await asyncio.sleep(0.01)
        assert {*own, *late} <= {*owned} <= {*own, *late, *former}
        for subject in former:  # whoever finds one reads its log, and removes it again
            last = await log.settled(subject)
            assert last is not None
            assert last.seq == seqs[subject]
            await log.forget_owned("node-1", subject, last.seq)
        assert await log.owned("node-1") == sorted([*own, *late])
