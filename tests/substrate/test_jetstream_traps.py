"""What JetStream and its client library do otherwise than one would think: each has a test on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from support.nats_servers import (
    WAIT_S,
    NatsServer,
    followed,
    insisted,
    nats_cluster,
    nats_server,
    opened,
    proxied,
    raw_client,
    refused,
    stored,
)

from mielin_cells.errors import (
    ConfigError,
    InvalidAgentId,
    MessageTooLarge,
    PermissionDenied,
    RetryError,
    StoreUnreachable,
    StreamMissing,
)
from mielin_cells.substrate.jetstream import JetStream, api
from mielin_cells.substrate.jetstream import log as jetstream_log
from mielin_cells.substrate.jetstream.heard import Heard
from mielin_cells.substrate.jetstream.server import Server
from mielin_cells.substrate.jetstream.streams import HEADERS_BYTES, _create
from mielin_cells.substrate.ports import ENTRY_BYTES_MAX, Appended, Conflict, Outcome, Unknown
from mielin_cells.testing.conformance import CHECKS
from mielin_cells.testing.conformance import owners as owners_checks

_numbers = count()


@pytest.fixture
async def substrate(server: Server) -> AsyncIterator[JetStream]:
    """A deployment of its own."""
    async with opened(server.url, deployment=f"trap{next(_numbers)}") as made:
        yield made


# ---- conflicts -----------------------------------------------------------------------------------------------


def answer(code: int, words: str) -> bytes:
    return json.dumps(
        {"error": {"code": 400, "err_code": code, "description": words}, "stream": "s", "seq": 0}
    ).encode()


@pytest.mark.parametrize("code", [10071, 10164])
def test_both_codes_are_a_conflict(code: int) -> None:
    assert api.outcome_of(answer(code, "wrong last sequence: 7"), "x") == Conflict(7)
    assert api.outcome_of(answer(code, "wrong last sequence"), "x") is None  # one must ask which it is
    with pytest.raises(StoreUnreachable, match="nothing was written"):
        api.outcome_of(answer(10072, "wrong last sequence: 7"), "x")


async def test_a_conflict_names_the_last_sequence(substrate: JetStream) -> None:
    first = await stored(substrate.log, "a.x", b"1", 0)
    second = await stored(substrate.log, "a.x", b"2", first)
    for stale in (0, first, second + 1, 2**63):
        assert await substrate.log.append("a.x", b"3", stale) == Conflict(second)
    assert await substrate.log.append("a.other", b"3", second) == Conflict(0)
    assert await stored(substrate.log, "a.x", b"3", second) > second


async def test_a_conflict_without_a_number_is_looked_up(substrate: JetStream, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replicated stream's leader may answer with 10164, which names no sequence."""
    seq = await stored(substrate.log, "a.x", b"1", 0)
    monkeypatch.setattr(api, "_DIGITS", re.compile("no number is found"))
    assert await substrate.log.append("a.x", b"2", 0) == Conflict(seq)
    assert await substrate.log.append("a.none", b"2", seq) == Conflict(0)


@pytest.mark.parametrize(
    ("prefix", "owners"), [("c.", [None]), ("log.c", [None, "n1", "n2", "n3"])], ids=["plain", "log"]
)
async def test_in_a_cluster_one_contender_wins_and_nothing_is_lost(
    prefix: str, owners: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three servers, three copies: here the leader answers most of the losers with the other code."""
    codes: list[int] = []

    def noted(data: bytes, subject: str) -> Outcome | None:
        ack: api.PubAck = api.decode(data, api.PubAck, subject)
        codes.append(ack.error.err_code if ack.error is not None else 0)
        return outcome_of(data, subject)

    outcome_of = api.outcome_of
    monkeypatch.setattr(api, "outcome_of", noted)
    async with nats_cluster(tmp_path) as servers, contextlib.AsyncExitStack() as stack:
        substrates = [await clustered(stack, server) for server in servers]
        assert substrates[0]._connection.in_cluster
        tails = [asyncio.create_task(followed(one.log, f"{prefix}0", 3)) for one in substrates]
        last = dict.fromkeys(range(10), 0)
        for _ in range(3):
            for place in last:
                outcomes = await asyncio.gather(
                    *(
                        one.log.append(f"{prefix}{place}", b"%d" % n, last[place], owners[n % len(owners)])
                        for n in range(4)
                        for one in substrates
                    )
                )
                won = [outcome.seq for outcome in outcomes if isinstance(outcome, Appended)]
                lost = [outcome for outcome in outcomes if isinstance(outcome, Conflict)]
                assert (len(won), len(lost)) == (1, 11), outcomes
                last[place] = won[0]
                for one in substrates:
                    newest = await one.log.last(f"{prefix}{place}")
                    assert newest is not None
                    assert newest.seq == won[0]
        logs = [[entry.seq for entry in await tail] for tail in tails]
        assert set(codes) >= {0, 10164}
        assert set(codes) <= {0, 10071, 10164}
        assert logs[0] == logs[1] == logs[2]
        assert logs[0][-1] == last[0]


async def test_in_a_cluster_ownership_records_keep_their_contract(tmp_path: Path) -> None:
    async with nats_cluster(tmp_path) as servers, contextlib.AsyncExitStack() as stack:
        substrate = await clustered(stack, servers[0])
        assert substrate.replicas == 3
        for check in CHECKS:
            if check.__module__ == owners_checks.__name__:
                await check(substrate)


async def clustered(stack: contextlib.AsyncExitStack, server: NatsServer) -> JetStream:
    """Opened as soon as the cluster has a leader."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(RetryError):
                return await stack.enter_async_context(opened(server.url, deployment="c", replicas=3))
            await asyncio.sleep(0.05)


# ---- lost answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_cut", [True, False])
async def test_an_append_without_an_answer_is_unknown_and_settled(
    is_cut: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks before the answer, or the answer does not come in time: the entry is there all the same."""
    async with (
        nats_server(tmp_path / "s") as server,
        opened(server.url) as other,
        proxied(server) as proxy,
        opened(proxy.url) as substrate,
    ):
        seq = await stored(substrate.log, "a.x", b"first", 0)
        if not is_cut:
            monkeypatch.setattr(jetstream_log, "APPEND_S", 0.2)
        proxy.alter = lambda _: b""
        sent = asyncio.create_task(substrate.log.append("a.x", b"nonce", seq))
        assert [entry.data for entry in await followed(other.log, "a.x", 2)] == [b"first", b"nonce"]
        if is_cut:
            proxy.cut()
        outcome = await sent
        assert isinstance(outcome, Unknown)
        assert ("connection was lost" if is_cut else "0.2 s") in outcome.why
        proxy.alter = bytes
        proxy.cut()  # what was swallowed would be missed amid a line
        again = await insisted(substrate.log, "a.x", b"nonce", seq)
        last = await other.log.last("a.x")
        assert last == await substrate.log.last("a.x")
        assert last is not None
        assert (again, last.data) == (Conflict(last.seq), b"nonce")
        assert len(await substrate.log.read("a.x")) == 2


async def told(call: Awaitable[Outcome]) -> Outcome | StoreUnreachable:
    try:
        return await call
    except StoreUnreachable as error:
        return error


async def test_calls_made_while_disconnected_are_never_sent_later(tmp_path: Path) -> None:
    """The library would keep it back and send it after its caller was told that it failed."""
    async with nats_server(tmp_path / "s") as server, opened(server.url) as substrate:
        seq = await stored(substrate.log, "a.x", b"1", 0)
        server.kill()
        while isinstance(outcome := await told(substrate.log.append("a.x", b"late", seq)), Unknown):
            pass  # it has not noticed yet
        assert isinstance(outcome, StoreUnreachable)
        assert "nothing was sent" in str(outcome)
        for _ in range(20):
            assert isinstance(await told(substrate.log.append("a.x", b"late", seq)), StoreUnreachable)
        await refused(substrate.log.last("a.x"), StoreUnreachable)
        await server.start()
        assert isinstance(await insisted(substrate.log, "a.x", b"2", seq), Appended)
        assert [entry.data for entry in await substrate.log.read("a.x")] == [b"1", b"2"]


# ---- sizes ---------------------------------------------------------------------------------------------------


async def test_the_largest_entry_passes_a_server_that_only_just_takes_it(tmp_path: Path) -> None:
    """Headers count, too; above the limit a server drops the connection, so it must never get there."""
    async with (
        nats_server(tmp_path / "s", max_payload=ENTRY_BYTES_MAX + HEADERS_BYTES) as server,
        opened(server.url) as substrate,
    ):
        client = substrate._connection._nc
        seq = await stored(substrate.log, "a.x", b"x" * ENTRY_BYTES_MAX, 0)
        error = await refused(substrate.log.append("a.x", b"x" * (ENTRY_BYTES_MAX + 1), seq), MessageTooLarge)
        assert (error.limit, error.size) == (ENTRY_BYTES_MAX, ENTRY_BYTES_MAX + 1)
        await stored(substrate.log, "a.x", b"after", seq)
        assert [len(entry.data) for entry in await substrate.log.read("a.x")] == [ENTRY_BYTES_MAX, 5]
        assert [len(entry.data) for entry in await followed(substrate.log, "a.x", 2)] == [ENTRY_BYTES_MAX, 5]
        assert substrate._connection._nc is client
        assert client.stats["reconnects"] == 0


async def test_a_server_that_takes_less_is_refused_at_once(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "s", max_payload=ENTRY_BYTES_MAX + HEADERS_BYTES - 1) as server:
        error = await refused(JetStream.open(server.url), ConfigError)
        assert error.field == "max_payload"
        assert str(ENTRY_BYTES_MAX + HEADERS_BYTES) in str(error)


async def test_a_wire_message_above_the_servers_limit_is_refused_and_the_connection_stays(substrate: JetStream) -> None:
    async def echo(data: bytes) -> bytes:
        return data

    serving = await substrate.wire.serve("w.echo", echo)
    limit = substrate._connection.payload_max
    assert len(await substrate.wire.request("w.echo", b"x" * limit, WAIT_S)) == limit
    error = await refused(substrate.wire.request("w.echo", b"x" * (limit + 1), WAIT_S), MessageTooLarge)
    assert error.limit == limit
    await substrate.wire.publish("w.echo", b"x" * (limit + 1))  # best effort: lost
    assert await substrate.wire.request("w.echo", b"again", WAIT_S) == b"again"
    assert substrate._connection._nc.stats["reconnects"] == 0
    serving.close()


# ---- permissions ---------------------------------------------------------------------------------------------


def users(**permissions: Any) -> dict[str, Any]:
    """An operator who may everything, and `user` with these permissions."""
    return {
        "users": [
            {"user": "operator", "password": "secret"},
            {"user": "user", "password": "secret", "permissions": permissions},
        ]
    }


async def test_a_forbidden_subject_is_a_permanent_error_and_no_timeout(tmp_path: Path) -> None:
    """The server tells of it on the connection, with the subject in small letters, and does not answer the request."""
    denied = {"deny": ["mielin.log.0.a.Locked", "$JS.API.STREAM.PURGE.>", "$JS.API.STREAM.MSG.GET.>"]}
    async with (
        nats_server(tmp_path / "s", authorization=users(publish=denied)) as server,
        opened(server.url_of("operator")) as operator,
        opened(server.url_of("user")) as substrate,
    ):
        log = substrate.log
        await stored(operator.log, "a.Locked", b"1", 0)
        error = await refused(log.append("a.Locked", b"2"), PermissionDenied)
        assert error.subject == "mielin.log.0.a.Locked"
        assert not isinstance(error, RetryError)
        assert [entry.data for entry in await log.read("a.Locked")] == [b"1"]
        free = await stored(log, "a.Free", b"1", 0)
        await refused(log.trim("a.Free", free), PermissionDenied)
        await refused(log.last("a.Free"), PermissionDenied)
        await stored(log, "a.Free", b"2", free)


async def test_a_user_without_permission_to_make_streams_gets_that_reason(tmp_path: Path) -> None:
    denied = {"deny": ["$JS.API.STREAM.CREATE.>"]}
    async with nats_server(tmp_path / "s", authorization=users(publish=denied)) as server:
        error = await refused(JetStream.open(server.url_of("user")), PermissionDenied)
        assert error.subject.startswith("$JS.API.STREAM.CREATE.mielin-")
        async with opened(server.url_of("operator")):
            pass
        async with opened(server.url_of("user")) as substrate:  # they are there now
            await stored(substrate.log, "a.x", b"1", 0)


async def test_a_user_without_permission_to_hear_answers_gets_that_reason(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "s", authorization=users(subscribe={"deny": ["_INBOX.>"]})) as server:
        error = await refused(JetStream.open(server.url_of("user")), PermissionDenied)
        assert error.subject.startswith("_INBOX.")
        assert "listen" in str(error)


async def test_a_tail_that_may_not_listen_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It still gives what is stored; nobody else is disturbed."""
    async with (
        nats_server(tmp_path / "s", authorization=users(subscribe={"deny": ["mielin.live.0.a.>"]})) as server,
        opened(server.url_of("user")) as substrate,
    ):
        seq = await stored(substrate.log, "a.x", b"1", 0)
        assert [entry.data for entry in await followed(substrate.log, "a.x", 1)] == [b"1"]
        await stored(substrate.log, "a.x", b"2", seq)
        assert "forbids this user to listen on mielin.live.0.a.x" in caplog.text


# ---- names ---------------------------------------------------------------------------------------------------

BAD = [
    "", ".", "a.", ".a", "a..b", "a.*", "a.>", "*", ">", "a b", "a.b ", "a\tb", "a\rb", "a\nb", "a.b\r\nPUB c 0\r\n",
    "a\x00b", "a/b", "a.é", "a.\u2028", "../a", "$JS.API", "a.\ud800",
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
async def test_a_malformed_subject_never_reaches_the_server(bad: str, substrate: JetStream) -> None:
    """The server takes wildcards where it should not, and a line end would be a command."""
    log, wire = substrate.log, substrate.wire

    async def tail() -> None:
        log.tail(bad)

    calls = (
        log.append(bad, b"", 0), log.read(bad), log.last(bad), log.trim(bad, 5), tail(), wire.publish(bad, b""),
        wire.subscribe(bad, lambda _: None), wire.request(bad, b"", 1.0),
    )  # fmt: skip
    for call in calls:
        await refused(call, InvalidAgentId)
    if bad not in ("", "a."):  # a prefix may end amid a subject
        await refused(log.subjects(bad), InvalidAgentId)
    assert await log.subjects("a") == []
    assert substrate._connection._nc.stats["reconnects"] == 0


@pytest.mark.parametrize("name", ["", "a.b", "a b", "a*", ">", "a\n", "x" * 33, "é"])
async def test_a_deployment_has_a_plain_name(name: str, server: Server) -> None:
    assert (await refused(JetStream.open(server.url, deployment=name), ConfigError)).field == "deployment"


# ---- what is not there ---------------------------------------------------------------------------------------


async def test_reading_a_missing_log_is_empty_and_never_waits(substrate: JetStream) -> None:
    log = substrate.log
    async with asyncio.timeout(WAIT_S):
        assert await log.read("a.none") == []
        assert await log.last("a.none") is None
        assert await log.subjects("") == []
        assert await log.subjects("part.") == []
        await log.trim("a.none", 100)
        seqs = [await stored(log, "a.x", b"%d" % n) for n in range(9)]
        assert await log.read("a.x", seqs[-1]) == []
        assert await log.read("a.x", 2**60) == []
        assert await log.read("a.x", 0, 0) == []
        await log.trim("a.x", seqs[6])
        assert [entry.seq for entry in await log.read("a.x", seqs[1])] == seqs[6:]
        await log.trim("a.x", seqs[-1] + 1)
        assert await log.read("a.x", seqs[1]) == []
        assert await log.subjects("a.") == []


async def test_a_reader_of_a_trimmed_range_goes_on_behind_it(substrate: JetStream) -> None:
    log = substrate.log
    seqs = [await stored(log, "a.x", b"%d" % n) for n in range(5)]
    tail = log.tail("a.x", seqs[0])
    await log.trim("a.x", seqs[3])
    assert [entry.seq for entry in await asyncio.wait_for(anext(tail), WAIT_S)] == seqs[3:]
    await log.trim("a.x", seqs[4] + 1)
    newest = await stored(log, "a.x", b"new")  # republished as if nothing had been before it
    assert [entry.seq for entry in await asyncio.wait_for(anext(tail), WAIT_S)] == [newest]
    tail.close()


@pytest.mark.parametrize("lost", [0, 1, 5, 9])
async def test_a_read_of_which_a_part_is_lost_has_no_gap(
    lost: int, substrate: JetStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch comes as one message for each entry, and nobody sends again what does not arrive.

    One read gives all but the newest; without its first entry it is none, and says so.
    """
    seqs = [await stored(substrate.log, "a.x", b"%d" % n) for n in range(10)]
    collect = substrate._connection.collect
    losses = [lost]

    async def lossy(subject: str, data: bytes, timeout: float) -> list[Heard]:
        heard = await collect(subject, data, timeout)
        if losses:
            del heard[losses.pop()]
        return heard

    monkeypatch.setattr(substrate._connection, "collect", lossy)
    if lost == 0:
        await refused(substrate.log.read("a.x"), StoreUnreachable)
    found = [entry.seq for entry in await substrate.log.read("a.x")]
    assert found == (seqs[:-1] if lost == len(seqs) - 1 else seqs)
    assert not losses


# ---- who answers ---------------------------------------------------------------------------------------------


async def test_the_last_entry_is_asked_of_the_leader_and_a_read_of_anyone(tmp_path: Path) -> None:
    """A direct get may be answered by a copy that lags; `last` may not."""
    async with nats_server(tmp_path / "s") as server, opened(server.url) as substrate, raw_client(server.url) as other:
        listening = await other.subscribe("$JS.API.>")
        await other.flush()
        await stored(substrate.log, "a.x", b"1", 0)
        await substrate.log.last("a.x")
        await substrate.log.read("a.x")
        asked = [(await listening.next_msg(WAIT_S)).subject for _ in range(2)]
        assert asked == ["$JS.API.STREAM.MSG.GET.mielin-log-0", "$JS.API.DIRECT.GET.mielin-log-0"]


async def test_no_consumer_is_ever_made(substrate: JetStream, server: Server) -> None:
    log = substrate.log
    tails = [log.tail(f"a.{n}") for n in range(50)]
    for n in range(50):
        await stored(log, f"a.{n}", b"1")
        await stored(log, "part.x", b"1")
    for tail in tails:
        assert len(await asyncio.wait_for(anext(tail), WAIT_S)) == 1
    assert len(await log.subjects("a.")) == 50
    async with raw_client(server.url) as other:
        for kind in ("a", "part"):
            info = await other.jetstream().stream_info(substrate.log.place(f"{kind}.x")[0])
            assert info.state.messages == 50 + (kind == "a")  # and the note of the index's generation
            assert info.state.consumer_count == 0
    for tail in tails:
        tail.close()


# ---- streams are fixed ---------------------------------------------------------------------------------------


async def test_the_number_of_shards_never_changes(server: Server) -> None:
    """With another number the same subject would lie in another stream."""
    async with opened(server.url, deployment="three", shards=3) as first:
        seqs = {f"a.{n}": await stored(first.log, f"a.{n}", b"1", 0) for n in range(12)}
        assert {first.log.place(name)[0] for name in seqs} == {"three-log-0", "three-log-1", "three-log-2"}
    for other in (1, 2, 4):
        error = await refused(JetStream.open(server.url, deployment="three", shards=other), ConfigError)
        assert (error.field, error.range) == ("shards", "3")
    for same in (None, 3):
        async with opened(server.url, deployment="three", shards=same) as again:
            assert dict(await again.log.subjects("a.")) == seqs
            assert isinstance(await again.log.append("a.1", b"2", 0), Conflict)
    for wrong in (0, -1, 65):
        assert (await refused(JetStream.open(server.url, shards=wrong), ConfigError)).field == "shards"


async def test_two_who_make_a_deployment_at_once_make_one(server: Server) -> None:
    async with contextlib.AsyncExitStack() as stack:
        opening = [stack.enter_async_context(opened(server.url, deployment="race", shards=4)) for _ in range(6)]
        made = await asyncio.gather(*opening)
        outcomes = await asyncio.gather(*(one.log.append("a.x", b"1", 0) for one in made))
        assert sum(isinstance(outcome, Appended) for outcome in outcomes) == 1
    calls = [asyncio.ensure_future(JetStream.open(server.url, deployment="race2", shards=n)) for n in (1, 2, 3)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    won = [result for result in results if isinstance(result, JetStream)]
    lost = [result for result in results if isinstance(result, ConfigError)]
    assert (len(won), len(lost)) == (1, 2), results
    await won[0].close()


async def test_a_foreign_stream_of_that_name_is_left_alone(server: Server) -> None:
    async with raw_client(server.url) as other:
        await other.jetstream().add_stream(name="foreign-log-0", subjects=["their.>"])
        await other.jetstream().publish("their.x", b"theirs")
        error = await refused(JetStream.open(server.url, deployment="foreign"), ConfigError)
        assert error.field == "deployment"
        info = await other.jetstream().stream_info("foreign-log-0")
        assert (info.config.subjects, info.state.messages) == (["their.>"], 1)


@pytest.mark.parametrize("asked", [None, 1, 2, 3])
@pytest.mark.parametrize("there", range(9))
async def test_a_deployment_whose_making_was_interrupted_is_made_whole(
    there: int, asked: int | None, server: Server
) -> None:
    """After any step, and whoever comes next: it is made with one number, or refused; nothing was in it before."""
    name = f"half{there}{asked}"
    async with opened(server.url, deployment=name, shards=3):
        pass
    steps = [f"{kind}-{shard}" for shard in (2, 1, 0) for kind in ("part", "topic", "log")]
    async with raw_client(server.url) as other:
        for step in steps[there:]:
            await other.jetstream().delete_stream(f"{name}-{step}")
    names = [f"a.{n}" for n in range(12)]
    if asked in (1, 2) and there > 3 * (3 - asked):  # one of its streams is there, and says three
        error = await refused(JetStream.open(server.url, deployment=name, shards=asked), ConfigError)
        assert (error.field, error.range) == ("shards", "3")
        return
    async with opened(server.url, deployment=name, shards=asked) as substrate:
        places = {substrate.log.place(subject)[0] for subject in names}
        assert len(places) == (asked or (3 if there > 6 else 1))
        seqs = {subject: await stored(substrate.log, subject, b"1", 0) for subject in names}
    async with opened(server.url, deployment=name) as again:
        assert dict(await again.log.subjects("a.")) == seqs


async def test_a_deployment_of_an_earlier_version_gets_its_streams_of_topics_once(server: Server) -> None:
    """A stream of topics that is lost is not made again: old messages, sent once more, would be stored a second time."""
    name = "earlier"
    async with opened(server.url, deployment=name, shards=2):
        pass
    async with raw_client(server.url) as other:
        js = other.jetstream()
        for shard in (0, 1):
            await js.delete_stream(f"{name}-topic-{shard}")
        config = (await js.stream_info(f"{name}-log-0")).config
        config.metadata = {k: v for k, v in (config.metadata or {}).items() if k != "mielin.topics"}
        await js.update_stream(config)
        async with opened(server.url, deployment=name, makes=False):
            pass  # who only looks makes nothing
        async with opened(server.url, deployment=name) as substrate:
            seq = await stored(substrate.log, "topic.a.=.p", b"1", 0)
            shards = len(await substrate.log.topic_ends())
            assert [one.seq for n in range(shards) for one in await substrate.log.scan("topic.>", n)] == [seq]
            assert not [subject for subject, _ in await substrate.log.subjects("") if subject != "topic.a.=.p"]
        facts = await JetStream.inspected(server.url, deployment=name)
        assert {one.name for one in facts.streams} >= {f"{name}-topic-0", f"{name}-topic-1"}
        await js.delete_stream(f"{name}-topic-1")
        await refused(JetStream.open(server.url, deployment=name), StreamMissing)


async def test_making_the_streams_of_topics_takes_back_nothing_that_others_change_meanwhile(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration of a stream is that of whoever wrote it last, with all that it had when that one read it."""
    name = "meanwhile"
    async with opened(server.url, deployment=name):
        pass
    async with raw_client(server.url) as other:
        js = other.jetstream()

        async def change(description: str, *without: str) -> None:
            config = (await js.stream_info(f"{name}-log-0")).config
            config.metadata = {k: v for k, v in (config.metadata or {}).items() if k not in without}
            config.description = description
            await js.update_stream(config)

        await js.delete_stream(f"{name}-topic-0")
        await change("before", "mielin.topics")
        create, count = _create, 0

        async def slow(*args: Any) -> Any:
            nonlocal count
            count += 1
            answer = await create(*args)
            await change("an operator's")
            return answer

        monkeypatch.setattr(sys.modules[_create.__module__], "_create", slow)
        await asyncio.gather(*(_close_at_once(server.url, name) for _ in range(3)))
        assert count >= 1
        assert (await js.stream_info(f"{name}-log-0")).config.description == "an operator's"
        count = 0
        await _close_at_once(server.url, name)
        assert count == 0


async def _close_at_once(url: str, name: str) -> None:
    async with opened(url, deployment=name):
        pass


async def test_a_deployment_that_does_not_fit_the_server_is_refused(server: Server) -> None:
    assert (await refused(JetStream.open(server.url, deployment="copies", replicas=3), ConfigError)).field == "replicas"
    async with raw_client(server.url) as other:
        await other.jetstream().add_stream(name="theirs", subjects=["overlap.>"])
        error = await refused(JetStream.open(server.url, deployment="overlap"), ConfigError)
        assert error.field == "deployment"
