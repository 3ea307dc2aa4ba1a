"""What an operator does by names and words, on a deployment in this process: conversions, dead letters, claims, looks."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import enum
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

import mielin_cells as cells
from mielin_cells.agents.spec import spec_of
from mielin_cells.cli import look, messages, moves, records, steer
from mielin_cells.cli.show import Printer
from mielin_cells.client.client import Client
from mielin_cells.client.operator import Operator
from mielin_cells.client.recoveries import case_of, timeline
from mielin_cells.client.status import class_of
from mielin_cells.log.ids import MEMBERS, control_subject, log_subject
from mielin_cells.log.records import Cleared
from mielin_cells.rpc import words
from mielin_cells.store.journal import find


class Colour(enum.Enum):
    RED = "red"


class Till(cells.Agent, version=3):
    total: int = 0
    label: str = ""
    rate: float = 0.5
    seen: cells.Table[int, str] = cells.Table()
    blob: cells.Buffer = cells.Buffer()
    is_open: bool = False

    @cells.handler
    async def add(self, n: int = 1, note: str = "") -> int:
        self.total += n
        self.label = note
        return self.total

    @cells.handler
    async def total_now(self) -> int:
        return self.total

    @cells.handler
    async def take(self, when: datetime.datetime, colour: Colour, amount: decimal.Decimal, data: bytes) -> str:
        return f"{when.year} {colour.name} {amount} {data!r}"

    @cells.handler
    async def ask_other(self, other: Till, n: int) -> int:
        return await other.add(n)

    @cells.handler
    async def everything(self) -> tuple[str, float, dict[int, str], bytes, bool]:
        return self.label, self.rate, {key: self.seen[key] for key in self.seen}, bytes(self.blob), self.is_open

    @cells.handler
    async def grumble(self, n: int) -> int:
        if self.label != "mended":
            raise ValueError(f"not {n}")
        self.total += n
        return self.total


@pytest_asyncio.fixture
async def operator() -> AsyncIterator[Operator]:
    async with cells.local(nodes=2, settings=cells.Settings(retry_first_s=0.001)) as cluster:
        assert isinstance(cluster, Client)
        await cluster.on("node-1").spawn(Till, "till")
        yield Operator(cluster)


# ---- words ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "n", "note"),
    [
        ([], 1, ""),
        (["5"], 5, ""),
        (["-5", "1"], -5, "1"),
        (["note=1"], 1, "1"),
        (["n=7", "true"], 7, "true"),
        (["7", "plain text"], 7, "plain text"),
        (["7", '"quoted"'], 7, "quoted"),
        (["7", '"a=b"'], 7, "a=b"),
        (["note=a=b", "7"], 7, "a=b"),
        (["7", "null"], 7, "null"),
        (["7", "[1, 2"], 7, "[1, 2"),
        (["7", ""], 7, ""),
        (["7", "1+1=2"], 7, "1+1=2"),
    ],
)
def test_a_word_is_json_if_that_fits_and_else_text(given: list[str], n: int, note: str) -> None:
    spec = spec_of(Till)
    assert spec.handlers["add"].decode_args(words.arguments(spec, "add", given)) == {"n": n, "note": note}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["x"], "Till.add(n): 'x' does not fit"),
        (["1.5"], "Till.add(n): '1.5' does not fit"),
        (["1", "a", "b"], "3 values for 2 parameters"),
        (["m=1"], "no parameter 'm'"),
        (["n=1", "n=2"], "'n' is given twice"),
        (["n=1", "1", "2"], "add(n: int = 1, note: str = '') -> int"),
    ],
)
def test_words_that_do_not_fit_name_the_parameter(given: list[str], says: str) -> None:
    with pytest.raises(cells.BadArguments) as refused:
        words.arguments(spec_of(Till), "add", given)
    assert says in refused.value.message


def test_an_unknown_handler_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(cells.errors.NoSuchHandler, match="add, ask_other, everything, grumble"):
        words.arguments(spec_of(Till), "ad", [])


def test_rich_types_are_read_exactly() -> None:
    spec = spec_of(Till)
    given = ["2024-05-01T00:00:00Z", "red", "1.10", "aGk="]
    args = spec.handlers["take"].decode_args(words.arguments(spec, "take", given))
    assert str(args["amount"]) == "1.10"
    assert (args["when"].year, args["colour"], args["data"]) == (2024, Colour.RED, b"hi")


def test_a_reference_is_typed_as_its_id() -> None:
    spec = spec_of(Till)
    args = spec.handlers["ask_other"].decode_args(words.arguments(spec, "ask_other", ["other-till", "3"]))
    assert repr(args["other"]) == "<Till 'other-till'>"


# ---- calls ---------------------------------------------------------------------------------------------------


async def test_asks_and_tells_by_words_take_effect_once_and_in_order(operator: Operator) -> None:
    await operator.tell("till", "add", ["2"])
    assert await operator.ask("till", "add", ["n=3", "note=x"]) == 5
    assert await operator.ask("till", "take", ["2024-05-01T00:00:00Z", "red", "1.10", "aGk="]) == "2024 RED 1.10 b'hi'"


async def test_an_agent_is_spawned_by_words_where_its_class_is_known(operator: Operator) -> None:
    fields = ["label=7", "rate=1", 'seen={"1": "a", "20": "b"}', "blob=aGk=", "is_open=true"]
    assert await operator.spawn("Till", "second", fields, on="node-2") == ("node-2", True)
    assert await operator.ask("second", "everything", []) == ["7", 1.0, {1: "a", 20: "b"}, b"hi", True]
    assert await operator.spawn("Till", "second", ["label=other"], on="node-1") == ("node-2", False)
    assert (await operator.ask("second", "everything", []))[0] == "7"


async def test_spawning_names_the_unknown_class_node_or_field(operator: Operator) -> None:
    with pytest.raises(cells.errors.UnknownClass, match="'Safe'"):
        await operator.spawn("Safe", "s", [])
    with pytest.raises(cells.errors.UnknownNode, match="node-9"):
        await operator.spawn("Till", "s", [], on="node-9")
    with pytest.raises(cells.BadArguments, match="colour"):
        await operator.spawn("Till", "s", ["colour=red"])
    with pytest.raises(cells.BadArguments, match="not field=value"):
        await operator.spawn("Till", "s", ["red"])
    with pytest.raises(cells.errors.WrongClass):
        await operator.spawn("Safe", "till", [])
    with pytest.raises(cells.errors.InvalidAgentId):
        await operator.spawn("Till", "", [])
    assert [info.id for info in await operator.agents()] == ["till"]


async def test_the_class_of_an_agent_is_found_without_its_owner(operator: Operator) -> None:
    for n in range(3):
        await operator.ask("till", "add", [str(n)])
    assert await class_of(operator.client, "till") == "Till"
    with pytest.raises(cells.NoSuchAgent):
        await operator.ask("nobody", "add", [])


# ---- dead letters --------------------------------------------------------------------------------------------


async def test_a_dead_letter_is_listed_shown_replayed_once_and_gone(operator: Operator) -> None:
    await operator.tell("till", "grumble", ["7"])
    async with asyncio.timeout(30):
        while not await operator.letters("till"):
            await asyncio.sleep(0.01)
    (letter,) = await operator.letters("till")
    assert (letter.number, letter.handler, letter.args, letter.tries) == (1, "grumble", {"n": 7}, 5)
    assert "not 7" in letter.cause
    assert letter.sender.startswith("client ")

    await operator.ask("till", "add", ["0", "mended"])
    assert (await operator.replay("till", "1")).id == letter.id

    assert await operator.ask("till", "total_now", []) == 7
    assert await operator.letters("till") == []
    kinds = [type(entry).__name__ async for _, _, entry in operator.records("till")]
    assert kinds.count(Cleared.__name__) == 1


async def test_a_replay_that_is_repeated_takes_effect_once(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    await operator.tell("till", "grumble", ["7"])
    async with asyncio.timeout(30):
        while not await operator.letters("till"):
            await asyncio.sleep(0.01)
    await operator.ask("till", "add", ["0", "mended"])

    async def lost(*_: object) -> int:
        raise cells.errors.WireTimeout("the answer was lost")

    with monkeypatch.context() as patched, pytest.raises(cells.errors.WireTimeout):
        patched.setattr(operator.client, "send_to_owner", lost)  # the operator's process ends between its two steps
        await operator.replay("till", "1")
    assert len(await operator.letters("till")) == 1
    await operator.replay("till", "1")

    assert await operator.ask("till", "total_now", []) == 7
    assert await operator.letters("till") == []


async def test_a_replay_that_fails_again_is_a_new_letter(operator: Operator) -> None:
    await operator.tell("till", "grumble", ["7"])
    await operator.ask("till", "total_now", [])
    (first,) = await operator.letters("till")
    await operator.replay("till", first.id)
    async with asyncio.timeout(30):
        while not (left := await operator.letters("till")):  # it is run again meanwhile, and holds up nobody else
            await asyncio.sleep(0.002)
    (second,) = left
    assert second.id != first.id
    await operator.ask("till", "add", ["0", "mended"])
    await operator.replay("till", second.id)
    assert await operator.ask("till", "total_now", []) == 7
    assert await operator.letters("till") == []


async def test_letters_are_purged_one_or_all_and_stay_purged_after_a_move(operator: Operator) -> None:
    for n in range(3):
        await operator.tell("till", "grumble", [str(n)])
    await operator.ask("till", "total_now", [])
    first, second, third = await operator.letters("till")
    assert await operator.purge("till", "2") == 1
    assert [letter.id for letter in await operator.letters("till")] == [first.id, third.id]
    assert second.id not in (first.id, third.id)

    assert (await operator.client.migrate("till")).ok
    info = await operator.show("till")
    assert isinstance(info, cells.AgentInfo)
    assert (info.node, info.dead) == ("node-2", 2)
    assert await operator.purge("till", None) == 2
    assert await operator.purge("till", None) == 0
    with pytest.raises(cells.UsageError, match="no dead letter '1'"):
        await operator.purge("till", "1")
    with pytest.raises(cells.UsageError, match="no dead letter '1'"):
        await operator.replay("till", "1")


async def test_messages_in_a_terminated_agents_inbox_are_shown_as_dead_letters(operator: Operator) -> None:
    client = operator.client
    await client.suspend("till")
    for n in range(2):
        await operator.tell("till", "add", [str(n)])
    # Written by hand: the owner appends Terminated between turns, and what comes later stays in the inbox.
    await client.terminate("till")

    letters = await operator.letters("till")
    assert [(letter.handler, letter.args) for letter in letters] == [
        ("add", {"n": 0, "note": ""}),
        ("add", {"n": 1, "note": ""}),
    ]
    assert all("AgentTerminated" in letter.cause for letter in letters)
    with pytest.raises(cells.AgentTerminated):
        await operator.replay("till", "1")
    with pytest.raises(cells.AgentTerminated):
        await operator.purge("till", None)


# ---- looking and steering ------------------------------------------------------------------------------------


async def test_a_claim_is_refused_with_the_reason_while_the_owner_answers(operator: Operator) -> None:
    with pytest.raises(cells.errors.ClaimRefused, match="node-1 answers and runs agent 'till'"):
        await operator.claim("till", "node-2", force=False)
    assert await operator.claim("till", "node-2", force=True) == "node-1"
    info = await operator.show("till")
    assert isinstance(info, cells.AgentInfo)
    assert (info.node, info.epoch) == ("node-2", 2)
    with pytest.raises(cells.errors.UnknownNode, match="node-7"):
        await operator.claim("till", "node-7", force=True)


async def test_a_thing_is_an_agent_a_node_or_a_migration(operator: Operator) -> None:
    report = await operator.client.migrate("till", to="node-2")
    found = await find(operator.client.log, report.migration)
    assert (case_of(found).outcome, case_of(found).target) == ("completed", "node-2")
    assert [moment.what for moment in timeline(found)] == ["Planned", "Attempted", "Reached", "Ended"]
    node = await operator.show("node-2")
    assert isinstance(node, cells.NodeInfo)
    assert (node.state, node.agents) == ("alive", 1)
    with pytest.raises(cells.NoSuchAgent):
        await operator.show("nothing")
    with pytest.raises(cells.errors.NoSuchMigration):
        await operator.show("m-0000")
    await operator.spawn("Till", "m-agent", [])
    agent = await operator.show("m-agent")
    assert isinstance(agent, cells.AgentInfo)


async def test_an_agent_that_nobody_runs_is_listed_with_its_owner(operator: Operator) -> None:
    client = operator.client
    last = await client.log.last(log_subject("till"))
    assert last is not None
    await client.log.append(log_subject("broken"), b"rubbish")

    infos = {info.id: info for info in await operator.agents()}

    assert infos["till"].state == "Running"
    assert infos["broken"].state == "unreadable"


async def test_rubbish_in_the_members_log_and_on_its_subjects_leaves_it_alive(operator: Operator) -> None:
    client = operator.client
    for rubbish in (b"", b"\xc1", b"rubbish", b"\x81" * 5000, bytes(64)):
        await client.log.append(MEMBERS, rubbish)
        await client.wire.publish(control_subject("node-1"), rubbish)
        answer = await client.wire.request(control_subject("node-1"), rubbish, 1.0)
        assert b"RecordInvalid" in answer
    await client.log.append("log.=FF", b"rubbish")

    assert await operator.ask("till", "add", ["2"]) == 2
    assert [(node.name, node.state) for node in await operator.nodes()] == [("node-1", "alive"), ("node-2", "alive")]


# ---- printing ------------------------------------------------------------------------------------------------


async def test_each_command_shows_values_that_are_json(operator: Operator, capsys: pytest.CaptureFixture[str]) -> None:
    out = Printer(as_json=True)
    await operator.tell("till", "grumble", ["1"])
    await operator.ask("till", "total_now", [])
    for work in (
        messages.spawn.work(operator, out, "Till", "b"),
        messages.ask.work(operator, out, "b", "add", "2"),
        messages.tell.work(operator, out, "b", "add", "2"),
        look.agents.work(operator, out),
        look.nodes.work(operator, out),
        look.show.work(operator, out, "till"),
        look.show.work(operator, out, "node-1"),
        records.log.work(operator, out, "till"),
        moves.migrate.work(operator, out, "till"),
        steer.suspend.work(operator, out, "till", reason="why not"),
        steer.pause.work(operator, out, "till"),
        steer.resume.work(operator, out, "till"),
        steer.claim.work(operator, out, "till", to="node-1", force=True),
        messages.show_letters(operator, out, "till", None),
        messages.show_letters(operator, out, "till", "1"),
        messages.replay_letter(operator, out, "till", "1"),
        messages.purge_letters(operator, out, "till", None),
        steer.end(operator, out, "b"),
    ):
        assert await work == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines
        for line in lines:
            json.loads(line)


async def test_a_move_is_shown_phase_by_phase_in_real_units(
    operator: Operator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await moves.migrate.work(operator, Printer(as_json=False), "till", to="node-2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "till  node-1 -> node-2"
    assert [line.split()[0] for line in lines[1:-2]] == ["plan", "prepare", "copy", "pause", "hand", "verify"]
    assert all(line.rstrip().endswith(("ms", "read")) for line in lines[1:-2])
    assert lines[-2].startswith("predicted ")
    assert lines[-1].startswith("done in ")
    assert await moves.migrate.work(operator, Printer(as_json=True), "till", detach=True) == 0
    begun = json.loads(capsys.readouterr().out)
    async with asyncio.timeout(30):
        while (case := case_of(await find(operator.client.log, begun["migration"]))).outcome == "open":
            await asyncio.sleep(0.01)
    assert (case.outcome, case.target) == ("completed", "node-1")
