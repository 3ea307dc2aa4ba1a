"""What the command line shows: values as they are, when it was, and lists that are filtered, paged, counted and watched."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import pytest_asyncio

import mielin_cells as cells
from mielin_cells.cli import command, live, look, messages, moves, records
from mielin_cells.cli.show import Printer, as_json, as_text, clock, duration, size, when
from mielin_cells.client.client import Client
from mielin_cells.client.operator import Operator
from mielin_cells.client.recoveries import list_moves
from mielin_cells.client.status import describe_unhosted
from mielin_cells.log.ids import log_subject
from mielin_cells.log.records import decode_record
from mielin_cells.rpc import answers, requests


class Booth(cells.Agent):
    @cells.handler
    async def unreachable(self, url: str) -> None:
        raise OSError(f"cannot reach {url}")

    @cells.handler
    async def grumble(self, n: int) -> int:
        raise ValueError(f"not {n}")


@pytest_asyncio.fixture
async def operator() -> AsyncIterator[Operator]:
    async with cells.local(nodes=2, settings=cells.Settings(retry_first_s=0.001)) as cluster:
        assert isinstance(cluster, Client)
        await cluster.on("node-1").spawn(Booth, "stand")
        yield Operator(cluster)


def test_values_are_printed_as_they_are() -> None:
    assert (
        as_text({"price": 0.05, "lat": 52.520008, "big": 1234567.891})
        == "price  0.05\nlat    52.520008\nbig    1234567.891"
    )
    assert as_text([{"a": 1}, {"b": 3, "a": 20}]) == " A  B\n 1\n20  3"  # every column, whichever row has it
    assert as_text({"text": "one\ntwo", "none": None, "flag": True}) == 'text  "one\\ntwo"\nnone  null\nflag  true'
    assert as_text({"labels": {"zone": "two words"}}) == 'labels  {"zone":"two words"}'
    assert (as_text({}), as_text([{}]), as_text(0.1 + 0.2)) == ("{}", "[{}]", "0.30000000000000004")
    assert as_text("\x1b[2J") == "\x1b[2J"  # a text that a handler returns is its own affair; among others it is a word
    assert as_text([{"id": "\x1b[2J"}]) == 'ID\n"\\u001b[2J"'
    assert as_text({"text": " x ", "empty": ""}) == 'text   " x "\nempty'
    assert as_text([{"id": "日本", "n": 1}, {"id": "abc", "n": 2}]) == "ID    N\n日本  1\nabc   2"
    long = "x" * 500
    assert as_text([{"id": long}]).splitlines()[1] == long
    assert json.loads(as_json({"x": float("nan"), 1: float("-inf"), "n": 2**70})) == {
        "x": "nan",
        "1": "-inf",
        "n": 2**70,
    }


def test_values_are_printed_as_people_read_them() -> None:
    assert as_text([{"a": 1, "b": "x"}, {"a": 20, "b": "long"}]) == " A  B\n 1  x\n20  long"
    assert as_text({"name": "x", "labels": {"zone": "eu"}}) == "name    x\nlabels  zone=eu"
    assert (as_text(None), as_text("text"), as_text([1, 2]), as_text(True)) == ("", "text", "[1,2]", "true")
    assert json.loads(as_json({(1, 2): b"hi"})) == {"(1, 2)": "aGk="}
    assert (size(5), size(2048), size(3 * 1024**3)) == ("5 B", "2.0 KiB", "3.0 GiB")
    assert [duration(s) for s in (0.0005, 2, 75, 7300, 200000)] == [
        "0.5 ms",
        "2.0 s",
        "1 min 15 s",
        "2 h 1 min",
        "2 d 7 h",
    ]


def test_a_call_that_returns_nothing_prints_nothing_and_an_empty_text_is_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printer = Printer(as_json=False)
    printer.show(None)
    assert capsys.readouterr().out == ""
    printer.show("")
    assert capsys.readouterr().out == "\n"


async def test_no_cause_shows_an_address_with_what_lets_one_in(
    operator: Operator, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is the text of a user's exception, which a client of some other server may have written."""
    booth = await operator.client.spawn(Booth, "stand")
    await booth.unreachable.tell("https://user:secret@example.com/x")
    async with asyncio.timeout(30):
        while not await operator.letters("stand"):
            await asyncio.sleep(0.005)
    for printer in (Printer(as_json=True), Printer(as_json=False)):
        await messages.show_letters(operator, printer, "stand", None)
        shown = capsys.readouterr().out
        cause = json.loads(shown)[0]["cause"] if printer.as_json else shown.splitlines()[1]
        assert "cannot reach https://example.com/x" in cause
        assert "secret" not in cause


def test_no_error_shows_what_lets_one_in(capsys: pytest.CaptureFixture[str]) -> None:
    error = cells.errors.NotConnected("nats://user:secret@host:1 is away.", url="nats://secret@host:1")
    Printer(as_json=False).fail(error)
    Printer(as_json=True).fail(error)
    shown = capsys.readouterr()
    assert "secret" not in shown.out + shown.err
    assert "nats://host:1" in shown.out
    assert "nats://host:1" in shown.err


# ---- times ---------------------------------------------------------------------------------------------------


def test_a_moment_is_shown_here_and_by_its_age() -> None:
    noon = time.mktime((2024, 5, 1, 12, 0, 0, 0, 0, -1))
    assert when(noon, noon + 75) == "2024-05-01 12:00:00, 1 min 15 s ago"
    assert when(noon, noon - 2) == "2024-05-01 12:00:00, in 2.0 s"  # another machine's clock
    assert when(0.0) == ""
    assert clock(noon + 0.0625) == "2024-05-01 12:00:00.062"


async def test_looks_show_when_it_was(operator: Operator, capsys: pytest.CaptureFixture[str]) -> None:
    before = time.time() - 1.0  # the node entered before
    await operator.tell("stand", "grumble", ["1"])
    async with asyncio.timeout(30):
        while not await operator.letters("stand"):
            await asyncio.sleep(0.005)
    await operator.client.migrate("stand", "node-2")
    after = time.time()
    [agent], [letter], nodes = await operator.agents(), await operator.letters("stand"), await operator.nodes()
    [case] = await list_moves(operator.client)
    moments = [agent.at, letter.at, case.at, *(node.at for node in nodes)]
    assert all(before <= at <= after for at in moments), moments
    assert letter.at <= agent.at

    await records.log.work(operator, Printer(as_json=True), "stand")
    times = [json.loads(line)["at"] for line in capsys.readouterr().out.splitlines()]
    assert sorted(times) == times
    assert before <= times[0] <= times[-1] == agent.at

    printer = Printer(as_json=False)
    for work in (look.agents.work(operator, printer), look.nodes.work(operator, printer),
                 messages.show_letters(operator, printer, "stand", None), moves.migrations.work(operator, printer),
                 look.show.work(operator, printer, "stand"), look.show.work(operator, printer, case.migration)):  # fmt: skip
        await work
        shown = capsys.readouterr().out
        assert time.strftime("%Y-%m-%d ", time.localtime(agent.at)) in shown
        assert " ago" in shown


async def test_an_agent_whose_node_is_gone_still_says_when_it_last_did_something() -> None:
    async with cells.local(nodes=1) as cluster:
        assert isinstance(cluster, Client)
        await cluster.spawn(Booth, "stand")
        [info] = await Operator(cluster).agents()
        last = await cluster.log.last(log_subject("stand"))
        assert last is not None
        assert info.at == decode_record(last.data, "").written > 0.0
        unhosted = await describe_unhosted(cluster, "stand")
        assert unhosted is not None
        assert unhosted.at == info.at


# ---- lists ---------------------------------------------------------------------------------------------------


async def test_agents_are_filtered_counted_and_paged(operator: Operator, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c"):
        await operator.client.on("node-2").spawn(Booth, name)
    await operator.client.suspend("b", "tea")

    async def listed(**which: Any) -> list[str]:
        capsys.readouterr()
        assert await look.agents.work(operator, Printer(as_json=True), **which) == 0
        return [info["id"] for info in json.loads(capsys.readouterr().out)]

    assert await listed() == ["a", "b", "c", "stand"]
    assert await listed(node="node-1") == ["stand"]
    assert await listed(cls="Booth", state="suspended") == ["b"]
    assert await listed(node="node-1", state="Suspended") == []
    assert await listed(limit=2) == ["a", "b"]
    assert await listed(limit=2, after="b") == ["c", "stand"]
    assert await look.agents.work(operator, Printer(as_json=False), limit=3) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "more: --after c"
    for form, says in ((True, {"count": 3}), (False, 3)):
        await look.agents.work(operator, Printer(form), node="node-2", count=True)
        assert json.loads(capsys.readouterr().out) == says


@pytest.mark.parametrize(
    ("which", "kind", "says"),
    [
        ({"node": "node-9"}, cells.errors.UnknownNode, "there are node-1, node-2"),
        ({"cls": "Stool"}, cells.errors.UnknownClass, "There is no class 'Stool'"),
        ({"state": "Runing"}, cells.ConfigError, "wanted: Created, Running"),
    ],
)
async def test_a_filter_that_nothing_can_fit_is_refused(
    operator: Operator, which: dict[str, Any], kind: type[cells.CellError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        await look.agents.work(operator, Printer(as_json=True), **which)


async def test_similar_names_are_suggested_for_an_unknown_name(operator: Operator) -> None:
    assert await operator.nearest("stan") == ["stand"]
    assert await operator.nearest("satnd") == ["stand"]
    assert await operator.nearest("node2") == ["node-2", "node-1"]
    assert await operator.nearest("something else") == []
    report = await operator.client.migrate("stand", "node-2")
    assert await operator.nearest(report.migration[:5]) == [report.migration]


def test_a_migration_that_waits_says_once_for_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    told = moves.PhasePrinter(Printer(as_json=False), {})
    for left_s in (10.0, 9.5):
        told.seen(answers.Progress("PLANNED", failures=["TargetUnreachable: gone"], next_s=left_s))
    told.seen(answers.Progress("PREPARING", failures=["TargetUnreachable: gone"], attempts=2))
    told.seen(
        answers.Progress("PLANNED", failures=["TargetUnreachable: gone", "Timeout: late"], next_s=20.0, attempts=2)
    )
    assert capsys.readouterr().out.splitlines() == [
        " failed    TargetUnreachable: gone", " waits     10 s to the next attempt",
        " failed    Timeout: late", " waits     20 s to the next attempt",
    ]  # fmt: skip


async def test_a_node_that_does_not_answer_is_named_and_not_its_subject(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def late(subject: str, data: bytes, timeout: float) -> bytes:
        raise cells.errors.WireTimeout(f"{subject!r} did not answer.", subject=subject)

    monkeypatch.setattr(operator.client, "wire", SimpleNamespace(request=late))
    with pytest.raises(cells.errors.WireTimeout, match=r"^Node node-2 did not answer within 1 s; ") as caught:
        await operator.client.request("node-2", requests.Ping(), 1.0)
    assert caught.value.facts == {"subject": "control.node-2"}


async def test_a_spawn_of_an_agent_that_is_there_says_that_its_values_were_not_used(
    operator: Operator, capsys: pytest.CaptureFixture[str]
) -> None:
    await messages.spawn.work(operator, Printer(as_json=False), "Booth", "stand", "left=5")
    await messages.spawn.work(operator, Printer(as_json=False), "Booth", "stand")
    there = "stand exists already, on node-1"
    assert capsys.readouterr().out.splitlines() == [
        f"{there}; its state is unchanged, and left=5 was not used", there,
    ]  # fmt: skip


def test_the_agents_of_a_node_that_does_not_tell_them_are_not_none() -> None:
    told = cells.NodeInfo(name="node-1", incarnation=1, agents=0)
    assert look.node_row(told)["agents"] == 0
    assert look.node_row(msgspec.structs.replace(told, state="stuck"))["agents"] == ""


async def test_an_agent_that_is_there_is_not_proposed_instead_of_itself(operator: Operator) -> None:
    with pytest.raises(cells.errors.NoSuchMigration) as caught:
        await operator.client.abort("stand")
    assert "Did you mean" not in str(await command.add_nearest(operator, caught.value))


async def test_a_watched_list_is_printed_again_when_it_changes(
    operator: Operator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "EVERY_S", 0.01)
    lines: list[list[str]] = []

    async def until(count: int) -> None:
        async with asyncio.timeout(30):
            while len(lines) < count:
                await asyncio.sleep(0.01)
                lines.extend([info["id"] for info in json.loads(line)] for line in capsys.readouterr().out.splitlines())

    watching = asyncio.create_task(look.agents.work(operator, Printer(as_json=True), watch=True))
    await until(1)
    await operator.client.spawn(Booth, "another")
    await until(2)
    assert lines[:2] == [["stand"], ["another", "stand"]]
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


async def test_a_watch_outlasts_a_store_that_is_away(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "EVERY_S", 0.001)
    looks = 0

    async def look() -> live.View:
        nonlocal looks
        looks += 1
        if looks in (2, 3):
            raise cells.errors.StoreUnreachable("The server does not answer.")
        if looks == 6:
            raise cells.errors.AuthFailed("No.")
        return live.View(looks >= 4, lambda: "", looks >= 4)

    with pytest.raises(cells.errors.AuthFailed):
        await live.show_view(Printer(as_json=True), look, watch=True)
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["false", "true"]
    assert shown.err.splitlines() == ["mielin: The server does not answer. Trying again."]
