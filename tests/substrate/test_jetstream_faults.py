"""A real server that dies, stops, fills up, loses a stream or carries what others send: named errors, and nothing lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support.nats_servers import (
    WAIT_S,
    followed,
    insisted,
    list_streams,
    listening,
    nats_server,
    opened,
    proxied,
    raw_client,
    raw_lines,
    refused,
    stored,
)

from mielin_cells.errors import (
    MessageTooLarge,
    NoResponder,
    QuotaExceeded,
    StoreFull,
    StoreUnreachable,
    StreamMissing,
    WireTimeout,
)
from mielin_cells.substrate.jetstream import JetStream, api, asking, connection
from mielin_cells.substrate.jetstream import log as jetstream_log
from mielin_cells.substrate.jetstream.server import Server
from mielin_cells.substrate.ports import Appended, Conflict, Entry, Unknown

# ---- the server dies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["a.", "log.a"])
async def test_a_killed_server_loses_nothing_and_tails_have_no_gap(prefix: str, tmp_path: Path) -> None:
    """Killed three times amid appends and tails; every unknown outcome is settled by the same bytes."""
    subjects, until = [f"{prefix}{n}" for n in range(4)], 4
    kills = 0
    async with (
        nats_server(tmp_path / "s") as server,
        opened(server.url, shards=2) as writing,
        opened(server.url) as reading,
    ):
        tails = [asyncio.create_task(until_end(reading, subject)) for subject in subjects]
        late = asyncio.create_task(until_end(writing, subjects[0]))

        async def write(subject: str) -> list[bytes]:
            """Appends until the server has been killed often enough, and then an end."""
            written: list[bytes] = []
            seq, n = 0, 0
            while kills < until or n < 50:
                n += 1
                seq = await settled(writing, subject, b"%s %d" % (subject.encode(), n), seq)
                written.append(b"%s %d" % (subject.encode(), n))
            await settled(writing, subject, b"end", seq)
            return [*written, b"end"]

        writers = [asyncio.create_task(write(subject)) for subject in subjects]
        for _ in range(until):
            seen = await stored_in(reading, subjects)
            while await stored_in(reading, subjects) < seen + 100:
                await asyncio.sleep(0)
            server.kill()
            kills += 1
            await server.start()
            async with asyncio.timeout(WAIT_S):
                while not reading._connection._nc.is_connected:
                    await asyncio.sleep(0.01)
        written = await asyncio.gather(*writers)
        for subject, data, tail in zip(subjects, written, tails, strict=True):
            entries = await reading.log.read(subject, 0, 10_000)
            assert [entry.data for entry in entries] == data
            assert await tail == entries
        assert await late == await reading.log.read(subjects[0], 0, 10_000)


async def stored_in(substrate: JetStream, subjects: list[str]) -> int:
    """Entries of these subjects.  The connection may not have noticed yet that its server was killed."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(StoreUnreachable):
                return sum([len(await substrate.log.read(subject, 0, 10_000)) for subject in subjects])
            await asyncio.sleep(0.01)


async def until_end(substrate: JetStream, subject: str) -> list[Entry]:
    found: list[Entry] = []
    tail = substrate.log.tail(subject)
    async with asyncio.timeout(WAIT_S):
        while not found or found[-1].data != b"end":
            found += await anext(tail)
    tail.close()
    return found


async def settled(substrate: JetStream, subject: str, data: bytes, expect: int) -> int:
    """The sequence at which this data is stored, by an append that may be repeated."""
    outcome = await insisted(substrate.log, subject, data, expect)
    if isinstance(outcome, Appended):
        return outcome.seq
    (entry,) = await substrate.log.read(subject, expect, 10)  # a former try of the same
    assert entry.data == data
    return entry.seq


async def test_listeners_of_the_wire_are_there_again_after_a_restart(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "s") as server, opened(server.url) as one, opened(server.url) as other:

        async def echo(data: bytes) -> bytes:
            return data + b"!"

        await one.wire.serve("w.old", echo)
        server.kill()
        await one.wire.serve("w.new", echo)  # made while there is no server
        await refused(other.wire.request("w.old", b"", 1.0), StoreUnreachable, WireTimeout)
        await other.wire.publish("w.old", b"lost")  # best effort
        await server.start()
        for subject in ("w.old", "w.new"):
            assert await answered(other, subject) == b"hello!"


async def answered(substrate: JetStream, subject: str) -> bytes:
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(StoreUnreachable, NoResponder, WireTimeout):
                return await substrate.wire.request(subject, b"hello", 1.0)
            await asyncio.sleep(0.02)


async def test_a_server_without_its_data_is_noticed(tmp_path: Path) -> None:
    """Started again on another folder: the deployment is not there, and nothing goes on as if it were empty."""
    async with nats_server(tmp_path / "s") as server, opened(server.url) as substrate:
        seq = await stored(substrate.log, "a.x", b"1", 0)
        server.kill()
        (tmp_path / "s" / "data").rename(tmp_path / "kept")
        await server.start()
        with pytest.raises(StreamMissing, match="mielin-log-0"):
            await insisted(substrate.log, "a.x", b"2", seq)
        server.kill()
        (tmp_path / "s" / "data").rename(tmp_path / "wrong")
        (tmp_path / "kept").rename(tmp_path / "s" / "data")
        await server.start()
        assert isinstance(await insisted(substrate.log, "a.x", b"2", seq), Appended)


# ---- the server stops ----------------------------------------------------------------------------------------


async def test_a_stopped_server_is_named_in_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP in mid-call: the connection stands, and nothing answers."""
    async with nats_server(tmp_path / "s") as server, opened(server.url) as substrate:
        log = substrate.log
        seq = await stored(log, "a.x", b"1", 0)
        tail = log.tail("a.x")
        assert len(await asyncio.wait_for(anext(tail), WAIT_S)) == 1
        server.signal(signal.SIGSTOP)
        try:
            with monkeypatch.context() as short:
                short.setattr(jetstream_log, "APPEND_S", 0.2)
                short.setattr(asking, "READ_S", 0.2)
                outcome = await asyncio.wait_for(log.append("a.x", b"2", seq), WAIT_S)
                assert isinstance(outcome, Unknown)
                for call in (log.last("a.x"), log.read("a.x"), log.subjects("a."), log.trim("a.none", 1000)):
                    assert "0.2 s" in str(await refused(call, StoreUnreachable))
                await refused(substrate.wire.request("w.x", b"", 0.1), WireTimeout)
        finally:
            server.signal(signal.SIGCONT)
        again = await insisted(log, "a.x", b"2", seq)
        newest = await log.last("a.x")
        assert newest is not None
        assert (newest.data, again) in ((b"2", Conflict(newest.seq)), (b"2", Appended(newest.seq)))
        last = await stored(log, "a.x", b"3")
        found: list[Entry] = []
        while not found or found[-1].seq != last:
            found += await asyncio.wait_for(anext(tail), WAIT_S)
        assert [entry.data for entry in found] == [b"2", b"3"]
        tail.close()


async def test_a_silent_server_is_left_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection._OPTIONS, "ping_interval", 0.3)
    async with nats_server(tmp_path / "s") as server, opened(server.url) as substrate:
        seq = await stored(substrate.log, "a.x", b"1", 0)
        server.signal(signal.SIGSTOP)
        try:
            outcome = await asyncio.wait_for(substrate.log.append("a.x", b"2", seq), WAIT_S)
            assert outcome == Unknown("the connection was lost")  # and not that time was up
            await refused(substrate.log.last("a.x"), StoreUnreachable)
        finally:
            server.signal(signal.SIGCONT)
        await insisted(substrate.log, "a.x", b"2", seq)
        assert [entry.data for entry in await substrate.log.read("a.x")] == [b"1", b"2"]


@pytest.mark.parametrize(
    "greeting", [b"INFO\r\n", b"INFO []\r\n", b"INFO {}\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b""]
)
async def test_another_service_on_the_port_does_not_end_the_reconnecting(
    greeting: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says is no NATS; once the server is there again, all goes on."""
    monkeypatch.setitem(connection._OPTIONS, "connect_timeout", 0.2)
    monkeypatch.setitem(connection._OPTIONS, "reconnect_time_wait", 0.02)
    visits = asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visits.release()
        writer.write(greeting)
        await reader.read()

    async with nats_server(tmp_path / "s") as server, opened(server.url) as substrate:
        seq = await stored(substrate.log, "a.x", b"1", 0)
        server.kill()
        async with listening(serve, server.port), asyncio.timeout(WAIT_S):
            for _ in range(3):
                await visits.acquire()
        await server.start()
        assert isinstance(await insisted(substrate.log, "a.x", b"2", seq), Appended)


async def test_closing_does_not_wait_for_a_server_that_is_gone(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "s") as server:
        substrate = await JetStream.open(server.url)
        tail = substrate.log.tail("a.x")
        waiting = asyncio.ensure_future(anext(tail))
        server.kill()
        await asyncio.wait_for(substrate.close(), WAIT_S)
        with pytest.raises(StopAsyncIteration):
            await waiting
        for call in (substrate.log.append("a.x", b""), substrate.log.last("a.x"), substrate.wire.request("w", b"", 1)):
            assert "closed" in str(await refused(call, StoreUnreachable))
        await substrate.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


# ---- a stream is deleted -------------------------------------------------------------------------------------


async def test_a_deleted_stream_is_named_and_never_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with nats_server(tmp_path / "s") as server, opened(server.url, deployment="a", shards=2) as substrate:
        log = substrate.log
        names = [f"a.{n}" for n in range(8)]
        for name in names:
            await stored(log, name, b"1", 0)
            await stored(log, f"part.{name}", b"1")
        gone = [name for name in names if log.place(name)[0] == "a-log-1"]
        kept = [name for name in names if name not in gone]
        assert gone
        assert kept
        async with raw_client(server.url) as other:
            await other.jetstream().delete_stream("a-log-1")
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: log.append(gone[0], b"2"), lambda: log.read(gone[0]), lambda: log.last(gone[0]),
                lambda: log.trim(gone[0], 2), lambda: log.subjects("a."), lambda: log.subjects(""),
                lambda: JetStream.open(server.url, deployment="a"),
            ]  # fmt: skip
            for call in calls:
                assert (await refused(call(), StreamMissing)).stream == "a-log-1"
            tail = log.tail(gone[0])
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(tail), 0.1)
            assert "a-log-1 is gone" in caplog.text
            for name in kept:
                await stored(log, name, b"2")
            await other.jetstream().delete_stream("a-part-0")
            await refused(JetStream.open(server.url, deployment="a"), StreamMissing)
            found = [info.config.name for info in await list_streams(other)]
            assert sorted(map(str, found)) == ["a-log-0", "a-own-1", "a-part-1", "a-topic-0", "a-topic-1"]


async def test_a_deployment_that_lost_its_first_stream_is_not_made_anew(tmp_path: Path) -> None:
    """The first stream tells whether the deployment is there; without it, what the others hold tells."""
    async with nats_server(tmp_path / "s") as server, raw_client(server.url) as other:
        async with opened(server.url) as substrate:
            await stored(substrate.log, "part.x", b"1")
            await stored(substrate.log, "a.x", b"1")
        await other.jetstream().delete_stream("mielin-log-0")
        for _ in range(2):
            assert (await refused(JetStream.open(server.url), StreamMissing)).stream == "mielin-log-0"


# ---- limits --------------------------------------------------------------------------------------------------


def account(**limits: Any) -> dict[str, Any]:
    return {"accounts": {"A": {"jetstream": limits, "users": [{"user": "user", "password": "secret"}]}}}


async def fill(substrate: JetStream, size: int) -> tuple[StoreFull, int]:
    """Appends until the server refuses: the error, and how many it took."""
    last = 0
    for n in range(100):
        try:
            last = await stored(substrate.log, "a.x", bytes(size), last)
        except StoreFull as error:
            assert await substrate.log.append("a.x", b"", last + 1) == Conflict(last)
            return error, n
    raise AssertionError("The limit was not reached.")


async def test_an_accounts_storage_limit_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    async with (
        nats_server(tmp_path / "s", **account(max_file=300_000)) as server,
        opened(server.url_of("user")) as substrate,
    ):
        error, count = await fill(substrate, 50_000)
        assert isinstance(error, QuotaExceeded)
        assert 0 < count < 6
        assert len(await substrate.log.read("a.x")) == count
        last = await substrate.log.last("a.x")
        assert last is not None
        await substrate.log.trim("a.x", last.seq)  # frees room
        await stored(substrate.log, "a.x", bytes(50_000), last.seq)


async def test_an_accounts_limit_of_streams_is_named(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "s", **account(max_streams=1)) as server:
        await refused(JetStream.open(server.url_of("user")), QuotaExceeded)


@pytest.mark.parametrize("limit", ["max_msgs", "max_bytes"])
async def test_a_streams_limit_is_named_and_nothing_is_dropped(limit: str, tmp_path: Path) -> None:
    async with nats_server(tmp_path / "s") as server, opened(server.url) as substrate, raw_client(server.url) as other:
        await limited(other, **{limit: 3 if limit == "max_msgs" else 3200})
        error, count = await fill(substrate, 1000)
        assert "limit" in str(error)
        assert len(await substrate.log.read("a.x")) == count
        await limited(other, **{limit: -1})
        await stored(substrate.log, "a.x", b"more")


async def test_a_streams_message_limit_is_named(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "s") as server, opened(server.url) as substrate, raw_client(server.url) as other:
        await limited(other, max_msg_size=1000)
        seq = await stored(substrate.log, "a.x", bytes(900), 0)
        await refused(substrate.log.append("a.x", bytes(1001), seq), MessageTooLarge)
        assert len(await substrate.log.read("a.x")) == 1


async def limited(client: Any, **limits: int) -> None:
    info = json.loads((await client.request("$JS.API.STREAM.INFO.mielin-log-0", b"")).data)
    wanted = json.dumps({**info["config"], **limits}).encode()
    answer = json.loads((await client.request("$JS.API.STREAM.UPDATE.mielin-log-0", wanted)).data)
    assert "error" not in answer, answer


# ---- what others send ----------------------------------------------------------------------------------------

GARBAGE = [b"", b"\x00", b"\xff" * 300, b"\r\n", b"+OK\r\n-ERR 'x'\r\n", b"{}", b"[" * 5000, b'{"seq": 9}', b"null"]
HEADERS = [
    b"NATS/1.0\r\n\r\n", b"NATS/1.0", b"NATS/1.0 503\r\n\r\n", b"NATS/1.0 \xff\xff\xff\r\n\r\n", b"NATS/1.0\r\nx\r\n\r\n",
    b"NATS/1.0\r\n\xff: \xff\r\n\r\n", b"NATS/1.0\r\nNats-Sequence: 5\r\nNats-Sequence: 6\r\n\r\n", b"GARBAGE\r\n\r\n",
    b"NATS/1.0 100 \xff\r\n\r\n", b"NATS/1.0\r\nStatus: 503\r\n\r\n", b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8\xf7\xf6\xf5\xf4", b"N",
]  # fmt: skip


def hostile(subject: bytes, replies: tuple[bytes, ...] = (b"", b"r", b"\xff\xfe", b"$JS.API.INFO")) -> bytes:
    """Every garbage with every header, and with replies that are no text."""
    lines = b""
    for data in GARBAGE:
        for reply in replies:
            lines += b"PUB %s %s %d\r\n%s\r\n" % (subject, reply, len(data), data)
        for head in HEADERS:
            lines += b"HPUB %s %d %d\r\n%s%s\r\n" % (subject, len(head), len(head) + len(data), head, data)
    return lines


async def test_hostile_bytes_on_a_live_subject_are_no_entries(server: Server) -> None:
    async with opened(server.url, deployment="live") as substrate:
        tail, found, last = substrate.log.tail("a.x"), list[Entry](), 0
        for n in range(4):
            await raw_lines(server.url, hostile(b"live.live.0.a.x"))
            last = await stored(substrate.log, "a.x", b"%d" % n, last)
        while not found or found[-1].seq != last:
            found += await asyncio.wait_for(anext(tail), WAIT_S)
        assert found == await substrate.log.read("a.x")
        assert substrate._connection._nc.stats["reconnects"] == 0
        tail.close()


async def test_hostile_bytes_on_a_wire_subject_reach_their_callback_and_nothing_else(server: Server) -> None:
    async with opened(server.url, deployment="wire") as substrate:
        heard: list[bytes] = []

        async def echo(data: bytes) -> bytes:
            return data

        def receive(data: bytes) -> None:
            heard.append(data)
            raise ValueError("a receiver that is wrong")

        serving = await substrate.wire.serve("w.serve", echo)
        listening = await substrate.wire.subscribe("w.hear", receive)
        seq = await stored(substrate.log, "a.x", b"1", 0)
        await raw_lines(server.url, hostile(b"wire.wire.w.serve") + hostile(b"wire.wire.w.hear"))
        assert await substrate.wire.request("w.serve", b"still there", WAIT_S) == b"still there"
        assert set(GARBAGE) <= set(heard)
        assert await substrate.log.last("a.x") == Entry(seq, b"1")
        assert substrate._connection._nc.stats["reconnects"] == 0
        serving.close()
        listening.close()


async def test_no_answer_is_sent_to_where_it_would_be_an_append(tmp_path: Path) -> None:
    """Whoever may ask must not use the server's right to write: the reply subject is theirs to choose."""
    async with nats_server(tmp_path / "s") as server, opened(server.url) as substrate:
        asked = 0

        async def echo(data: bytes) -> bytes:
            nonlocal asked
            asked += 1
            return data

        await substrate.wire.serve("w.serve", echo)
        seq = await stored(substrate.log, "a.x", b"1", 0)
        for target in ("mielin.log.0.a.x", "mielin.log.0.a.new", "mielin.live.0.a.x", "mielin.wire.w.serve"):
            await raw_lines(server.url, f"PUB mielin.wire.w.serve {target} 6\r\nforged\r\n".encode())
        assert await substrate.wire.request("w.serve", b"end", WAIT_S) == b"end"
        assert asked == 5
        assert dict(await substrate.log.subjects("a.")) == {"a.x": seq}


async def test_hostile_bytes_on_the_inbox_of_answers_do_no_harm(tmp_path: Path) -> None:
    """An inbox has a name that cannot be guessed; an operator who listens to everything knows it all the same."""
    async with nats_server(tmp_path / "s") as server, opened(server.url) as substrate, raw_client(server.url) as other:
        spying = await other.subscribe("mielin.wire.>")
        await other.publish("mielin.wire.heard", b"")  # behind the subscription, which `flush` need not be
        await spying.next_msg(timeout=10)
        await refused(substrate.wire.request("w.none", b"", 0.1), WireTimeout)
        inbox, _, token = (await spying.next_msg(WAIT_S)).reply.rpartition(".")
        seq = await stored(substrate.log, "a.x", b"1", 0)
        names = [f"{inbox}.{n}".encode() for n in (int(token), int(token) + 5, "x", "9" * 100)]
        await raw_lines(server.url, b"".join(map(hostile, [*names, inbox.encode() + b".\xff\xfe"])))
        assert await substrate.log.last("a.x") == Entry(seq, b"1")
        assert await stored(substrate.log, "a.x", b"2", seq) > seq
        assert len(await substrate.log.read("a.x")) == 2
        assert substrate._connection._nc.stats["reconnects"] == 0


@pytest.mark.parametrize("data", [*GARBAGE, b'{"seq": 0}', b'{"seq": -1}', b'{"seq": "1"}', b'{"seq": 1.5}'])
def test_an_answer_that_cannot_be_read_leaves_an_append_unknown(data: bytes) -> None:
    """It may be stored; only the server's own refusal says that it is not."""
    outcome = api.outcome_of(data, "a.x")
    assert isinstance(outcome, Appended if data == b'{"seq": 9}' else Unknown)
    assert outcome != Appended(0)


async def test_a_garbled_answer_leaves_an_append_unknown_and_it_is_settled(tmp_path: Path) -> None:
    """The entry is stored; what comes back cannot be read."""
    async with nats_server(tmp_path / "s") as server, proxied(server) as proxy, opened(proxy.url) as substrate:
        proxy.alter = lambda data: data.replace(b'{"stream"', b'!"stream"')
        outcome = await substrate.log.append("a.x", b"nonce", 0)
        assert isinstance(outcome, Unknown)
        assert "cannot be read" in outcome.why
        proxy.alter = bytes
        last = await substrate.log.last("a.x")
        assert last is not None
        assert last.data == b"nonce"
        assert await substrate.log.append("a.x", b"nonce", 0) == Conflict(last.seq)


async def test_a_server_shut_down_amid_reads_of_a_tail_is_waited_for(tmp_path: Path) -> None:
    """A tail that is opened while there is no server gives everything once it is back."""
    async with nats_server(tmp_path / "s") as server, opened(server.url) as substrate:
        for n in range(600):
            await stored(substrate.log, "a.x", b"%d" % n)
        server.kill()
        reading = asyncio.create_task(followed(substrate.log, "a.x", 600))
        await refused(substrate.log.last("a.x"), StoreUnreachable)
        await server.start()
        assert [entry.data for entry in await reading] == [b"%d" % n for n in range(600)]
