"""External waits: a turn stands still until somebody outside says a word, and what was recorded first stands (rule T5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from support.virtual import virtually
from support.waiters import Applicant, may_end, next_token, settles, tokens

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.errors import BadArguments, NoSuchWait, NotInTurn, UsageError, WaitOver
from mielin_cells.log.ids import SECRET, log_subject
from mielin_cells.log.records import Stepped, decode_record
from mielin_cells.log.waits.tokens import token_of, wait_of

SHORT = cells.Settings(turn_deadline_s=0.4, ask_repeat_s=0.1)
PATIENT = cells.Settings(ask_repeat_s=0.1)


@asynccontextmanager
async def two_nodes(settings: cells.Settings = PATIENT) -> AsyncIterator[cells.Cluster]:
    tokens.clear()
    async with cells.local(nodes=2, settings=settings) as made:
        yield made


@pytest_asyncio.fixture
async def cluster() -> AsyncIterator[cells.Cluster]:
    async with two_nodes() as made:
        yield made


@virtually
async def test_a_turn_waits_beyond_its_deadline_and_the_agent_says_what_for() -> None:
    async with two_nodes(SHORT) as cluster:
        desk = await cluster.on("node-1").spawn(Applicant, "desk")
        order = asyncio.create_task(desk.order.options(timeout=30)("tulips"))
        token = await next_token(0)
        behind = asyncio.create_task(desk.note("behind"))
        await asyncio.sleep(SHORT.turn_deadline_s * 2)
        info = await cluster.show(desk)
        assert (info.running, [(wait.name, wait.token) for wait in info.waits]) == ("order", [("approval", token)])
        assert info.waiting == 2, "the turn's own message, and the one behind it"
        assert await desk.look() == [], "shared reads go on beside it"
        said = await cluster.resolve(token, True)
        assert (said.accepted, said.outcome, said.value, said.wait, said.agent) == (
            True,
            "value",
            True,
            "approval",
            "desk",
        )
        assert (await order, await behind) == ("tulips: yes", 2)
        assert (await cluster.show(desk)).waits == []


async def test_the_first_outcome_stands_and_later_ones_are_answered_with_it(cluster: cells.Cluster) -> None:
    desk = await cluster.on("node-1").spawn(Applicant, "desk")
    order = asyncio.create_task(desk.order("roses"))
    token = await next_token(0)
    said = await asyncio.gather(
        cluster.resolve(token, False), cluster.reject(token, "no money"), cluster.resolve(token, True)
    )
    assert [one.accepted for one in said] == [True, False, False]
    assert {(one.outcome, one.value) for one in said} == {("value", False)}
    assert await order == "roses: no"
    late = await cluster.reject(token, ValueError("too late"))
    assert (late.accepted, late.outcome, late.value) == (False, "value", False), "also once the turn has ended"


async def test_a_rejection_and_a_deadline_are_outcomes_like_a_value(cluster: cells.Cluster) -> None:
    desk = await cluster.on("node-1").spawn(Applicant, "desk")
    order = asyncio.create_task(desk.order("lilies"))
    told = await cluster.reject(await next_token(0), "no lilies here")
    assert (told.accepted, told.outcome, told.reason) == (True, "rejected", "no lilies here")
    assert await order == "lilies: no lilies here"
    assert await desk.order("asters", 0.1) == "asters: late"
    told = await cluster.resolve(tokens[-1], True)
    assert (told.accepted, told.outcome) == (False, "timeout")


async def test_a_value_of_another_type_is_refused_and_the_wait_goes_on(cluster: cells.Cluster) -> None:
    desk = await cluster.on("node-1").spawn(Applicant, "desk")
    order = asyncio.create_task(desk.order("mint"))
    token = await next_token(0)
    with pytest.raises(BadArguments, match=r"wait 'approval' of agent 'desk', and the wait goes on: Expected `bool`"):
        await cluster.resolve(token, "perhaps")
    assert isinstance(cluster, Client)
    with pytest.raises(BadArguments, match="does not fit"):
        await cluster.resolve_word(token, "perhaps")
    with pytest.raises(BadArguments, match="cannot be sent"):
        await cluster.resolve(token, object())
    assert (await cluster.resolve_word(token, "true")).value is True
    assert await order == "mint: yes"


async def test_a_text_that_is_no_token_of_the_deployment_does_nothing(cluster: cells.Cluster) -> None:
    desk = await cluster.on("node-1").spawn(Applicant, "desk")
    order = asyncio.create_task(desk.order("sage"))
    token = await next_token(0)
    forged = token_of(b"?" * 32, wait_of(token))
    assert forged != token
    for text in (
        "",
        "w1.",
        "token",
        token[:-4],
        token[:-2] + "BB",
        forged,
        token + "AAAA",
        "w2" + token[2:],
        "w1." + "A" * 9000,
    ):
        with pytest.raises(NoSuchWait):
            await cluster.resolve(text, True)
    assert not order.done()
    assert (await cluster.resolve(token, True)).accepted
    assert await order == "sage: yes"
    assert isinstance(cluster, Client)
    secret = await cluster.log.read(SECRET)
    assert len(secret) == 1, "one for the deployment"
    other = asyncio.create_task((await cluster.on("node-2").spawn(Applicant, "other")).order("dill"))
    assert (await cluster.resolve(await next_token(1), True)).accepted, "which all its nodes use"
    await other


async def test_a_wait_that_its_turn_has_left_is_over(cluster: cells.Cluster) -> None:
    desk = await cluster.on("node-1").spawn(Applicant, "desk")
    with pytest.raises(WaitOver, match="its turn has ended without it"):
        await cluster.resolve(await desk.leaves(), True)


async def test_waits_of_one_name_are_told_apart_and_resolved_in_any_order(cluster: cells.Cluster) -> None:
    desk = await cluster.on("node-1").spawn(Applicant, "desk")
    both = asyncio.create_task(desk.both())
    second, first = await next_token(1), tokens[0]
    assert (await cluster.resolve(second, 2)).accepted
    assert [wait.token for wait in (await cluster.show(desk)).waits] == [first]
    await cluster.migrate(desk, to="node-2")
    assert (await cluster.resolve(first, 1)).accepted
    assert await both == [1, 2]


@virtually
async def test_a_handler_may_stop_waiting_and_wait_again() -> None:
    async with two_nodes() as cluster:
        desk = await cluster.on("node-1").spawn(Applicant, "desk")
        patient = asyncio.create_task(desk.patient(0.05))
        token = await next_token(0)
        await cluster.migrate(desk, to="node-2")
        assert (await cluster.resolve(token, "yes")).accepted
        assert await patient == "yes later"


async def test_several_branches_may_open_one_wait_and_have_its_outcome(cluster: cells.Cluster) -> None:
    desk = await cluster.on("node-1").spawn(Applicant, "desk")
    twice = asyncio.create_task(desk.twice())
    assert (await cluster.resolve(await next_token(0), "word")).accepted
    assert await twice == ["word", "word", "word", "True"]


async def test_a_waiting_turn_moves_and_keeps_its_token_and_its_steps(cluster: cells.Cluster) -> None:
    desk = await cluster.on("node-1").spawn(Applicant, "desk")
    order = asyncio.create_task(desk.order.options(timeout=30)("figs"))
    token = await next_token(0)
    for target in ("node-2", "node-1", "node-2"):
        report = await cluster.migrate(desk, to=target)
        assert report.outcome == "completed"
        assert [wait.name for wait in (await cluster.show(desk)).waits] == ["approval"], "also before it runs again"
    await cluster.claim(desk, to="node-1")
    assert (await cluster.resolve(token, True)).accepted
    assert await order == "figs: yes"
    assert tokens == [token], "the step that mailed it was made once"
    assert isinstance(cluster, Client)
    records = [decode_record(entry.data, "log") for entry in await cluster.log.read(log_subject("desk"))]
    opened = [
        record for record in records if isinstance(record, Stepped) and record.calls[-1].label == "wait 'approval'"
    ]
    assert len(opened) == 1


async def test_a_suspended_agent_takes_the_word_once_it_is_resumed(cluster: cells.Cluster) -> None:
    desk = await cluster.on("node-1").spawn(Applicant, "desk")
    order = asyncio.create_task(desk.order.options(timeout=30)("kale"))
    token = await next_token(0)
    await cluster.suspend(desk, "a break")
    said = asyncio.create_task(cluster.resolve(token, True))
    await asyncio.sleep(0.1)
    assert not said.done()
    await cluster.resume(desk)
    assert (await said).accepted
    assert await order == "kale: yes"


# ---- waits that keep no turn open --------------------------------------------------------------------------------


async def test_a_wait_with_then_is_a_message_to_that_handler(cluster: cells.Cluster) -> None:
    desk = await cluster.on("node-1").spawn(Applicant, "desk")
    token = await desk.begin("tea")
    assert await desk.note("meanwhile") == 1
    assert [(wait.name, wait.handler) for wait in (await cluster.show(desk)).waits] == [("approval", "approved")]
    with pytest.raises(BadArguments, match="does not fit wait 'approval', and the wait goes on"):
        await cluster.resolve(token, "much")
    await cluster.migrate(desk, to="node-2")
    said = [await cluster.resolve(token, 5), await cluster.resolve(token, 6)]
    assert [(one.accepted, one.value) for one in said] == [(True, 5), (False, 5)]
    await settles(desk.look, ["meanwhile", "tea 5"])
    assert (await cluster.show(desk)).waits == []


async def test_what_a_wait_with_then_has_instead_of_a_value_is_told_or_a_dead_letter(cluster: cells.Cluster) -> None:
    desk = await cluster.on("node-1").spawn(Applicant, "desk")
    assert (await cluster.reject(await desk.begin("tea"), "none left")).accepted
    await settles(desk.look, ["tea declined: none left"])
    _ = await desk.begin("milk", 0.05)
    await settles(
        desk.look,
        ["tea declined: none left", "milk declined: Nobody has resolved wait 'approval' before its deadline."],
    )
    assert (await cluster.reject(await desk.begin("rum", is_told=False), "too early")).outcome == "rejected"
    info = await cluster.show(desk)
    assert (info.dead, info.waits) == (1, [])


async def test_a_word_that_comes_before_the_wait_is_held(cluster: cells.Cluster) -> None:
    may_end.clear()
    desk = await cluster.on("node-1").spawn(Applicant, "desk")
    opening = asyncio.create_task(desk.begin_slowly.options(timeout=30)("tea"))
    token = await next_token(0)
    said = asyncio.create_task(cluster.resolve(token, 7))
    await asyncio.sleep(0.1)
    assert not said.done(), "the turn that opens it is not committed"
    may_end.set()
    await opening
    assert (await said).accepted
    await settles(desk.look, ["tea 7"])


# ---- over a restart ----------------------------------------------------------------------------------------------


async def test_waits_outlast_a_restart_of_everything(tmp_path: Path) -> None:
    tokens.clear()
    path = tmp_path / "store.db"
    async with cells.local(path=path) as cluster:
        desk = await cluster.spawn(Applicant, "desk")
        await desk.order.tell("plums")
        token, later = await next_token(0), ""
        other = await cluster.spawn(Applicant, "other")
        later = await other.begin("pears")
    async with cells.local(path=path) as cluster:
        assert (await cluster.resolve(token, True)).accepted
        assert (await cluster.resolve(later, 3)).accepted
        await settles(cluster.get(Applicant, "desk").look, ["plums: yes"])
        await settles(cluster.get(Applicant, "other").look, ["pears 3"])
    assert tokens == [token]


async def test_a_deadline_that_passes_while_nothing_runs_has_passed(tmp_path: Path) -> None:
    tokens.clear()
    path = tmp_path / "store.db"
    async with cells.local(path=path) as cluster:
        desk = await cluster.spawn(Applicant, "desk")
        await desk.order.tell("plums", 0.2)
        token = await next_token(0)
        later = await (await cluster.spawn(Applicant, "other")).begin("pears", 0.2)
    await asyncio.sleep(0.3)
    async with cells.local(path=path) as cluster:
        await settles(cluster.get(Applicant, "desk").look, ["plums: late"])
        for late in (token, later):
            told = await cluster.resolve(late, 1)
            assert (told.accepted, told.outcome) == (False, "timeout")


# ---- wrong use ---------------------------------------------------------------------------------------------------


class WrongWaits(cells.Agent):
    async def on_start(self) -> None:
        with pytest.raises(UsageError, match="A hook of agent 'w' cannot make wait"):
            await cells.external("x")

    @cells.handler
    async def parts(self) -> AsyncIterator[str]:
        try:
            await cells.external("x")
        except UsageError as error:
            yield error.message

    @cells.handler
    async def other(self) -> list[str]:
        said = list[str]()
        peer = cells.this().cluster.get(Applicant, "desk")
        makes = (
            lambda: cells.external(""),
            lambda: cells.external("x", deadline=-1),
            lambda: cells.external("x", then=peer.approved)("y"),
            lambda: cells.external("x", then=self.take)("y", 3, 4),  # type: ignore[call-arg]
            lambda: cells.external("x", then=self.take)(3),  # type: ignore[arg-type]
            lambda: cells.external("x", then=self.take)(order="z", more=1),  # type: ignore[call-arg]
        )
        for make in makes:
            try:
                await make()
            except cells.UsageError as error:
                said.append(error.message)
        with pytest.raises(UsageError, match="is not open yet"):
            _ = cells.external("x").token
        return said

    @cells.handler
    async def take(self, value: bool, order: str) -> None: ...


async def test_wrong_use_is_refused_where_it_is_made(cluster: cells.Cluster) -> None:
    wrong = await cluster.spawn(WrongWaits, "w")
    said = await wrong.other()
    wanted = (
        "no name of 1 to 128",
        "deadline=-1",
        "give a handler of the agent itself",
        "2 more arguments",
        "does not fit",
        "more",
    )
    assert len(said) == len(wanted)
    assert (await anext(wrong.parts())).startswith("parts of agent 'w' yields")
    with pytest.raises(NotInTurn):
        _ = cells.external("x")
