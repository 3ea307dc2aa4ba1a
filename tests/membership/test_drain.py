"""Nodes taken out of service: cordoned, drained, and drained when they are dead already."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.nodes import Deployment, deployment
from support.processes import deployment as processes
from support.processes import wait_for
from support.waiting import until

import mielin_cells as cells
from mielin_cells.cli.drain import drain as drain_command
from mielin_cells.cli.drain import seconds_of
from mielin_cells.cli.show import Printer
from mielin_cells.client import drain as client_drain
from mielin_cells.client.operator import Operator
from mielin_cells.errors import WireTimeout
from mielin_cells.log.ids import control_subject
from mielin_cells.membership import table
from mielin_cells.node import drain
from mielin_cells.rpc import answers, requests

QUICK = cells.Settings(reconcile_s=0.3, ask_repeat_s=0.1, pause_s=0.2)


class Meter(cells.Agent):
    count: int = 0

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.count += n
        return self.count

    @cells.handler
    async def where(self) -> str:
        return cells.this().node

    @cells.handler
    async def slow(self) -> int:
        doors[-1].begun.set()
        await doors[-1].leave.wait()
        self.count += 1
        return self.count


class Door:
    """What a slow turn waits at; new for each deployment."""

    def __init__(self) -> None:
        self.begun, self.leave = asyncio.Event(), asyncio.Event()


doors: list[Door] = []


@asynccontextmanager
async def gated(*names: str) -> AsyncIterator[Deployment]:
    """A deployment with a door of its own, which is open at the end."""
    doors.append(Door())
    async with deployment(*names, settings=QUICK) as made:
        try:
            yield made
        finally:
            doors.pop().leave.set()


# ---- drain ---------------------------------------------------------------------------------------------------


async def test_every_agent_leaves_a_drained_node_and_is_spread_and_no_call_fails() -> None:
    async with gated("node-1", "node-2", "node-3") as made:
        client = made.client
        meters = [await client.on("node-1").spawn(Meter, f"g{n}") for n in range(40)]
        going, calls = True, 0

        async def call(meter: Meter) -> int:
            sent = 0
            while going:
                await meter.add()
                sent += 1
            return sent

        callers = [asyncio.create_task(call(meter)) for meter in meters]
        report = await client.drain("node-1")
        going = False
        sent = await asyncio.gather(*callers)
        calls = sum(sent)
        assert (report.ok, report.state, report.agents, report.moved, report.left) == (True, "done", 40, 40, 0)
        assert calls >= 40
        assert [await meter.add(0) for meter in meters] == sent
        where = [await meter.where() for meter in meters]
        assert {where.count("node-2"), where.count("node-3")} == {20}


async def test_a_drained_node_takes_nothing_until_it_is_uncordoned_also_after_a_restart() -> None:
    async with gated("node-1", "node-2") as made:
        client = made.client
        meter = await client.on("node-2").spawn(Meter, "g")
        await client.drain("node-1")
        with pytest.raises(cells.MigrationRefused, match="node-1 is cordoned and takes no agents"):
            await client.migrate(meter, to="node-1")
        with pytest.raises(cells.errors.NodeCordoned, match="uncordon node-1"):
            await client.on("node-1").spawn(Meter, "h")
        assert await (await client.spawn(Meter, "i")).where() == "node-2"
        made.kill("node-1")
        await made.start("node-1")
        with pytest.raises(cells.MigrationRefused, match="cordoned"):
            await client.migrate(meter, to="node-1")
        [info] = [info for info in await client.nodes() if info.name == "node-1"]
        assert info.is_cordoned
        await client.uncordon("node-1")
        await until(lambda: not made.nodes["node-1"].is_cordoned)
        assert (await client.migrate(meter, to="node-1")).ok


async def test_a_cordoned_node_keeps_its_agents_and_is_not_chosen() -> None:
    async with gated("node-1", "node-2", "node-3") as made:
        client = made.client
        kept = await client.on("node-2").spawn(Meter, "kept")
        await client.cordon("node-2")
        await client.cordon("node-2")  # once more is the same
        await until(lambda: made.nodes["node-2"].is_cordoned)
        assert await kept.add() == 1
        assert await kept.where() == "node-2"
        meters = [await client.spawn(Meter, f"g{n}") for n in range(6)]
        assert "node-2" not in [await meter.where() for meter in meters]
        report = await client.migrate("g0")
        assert report.ok
        assert report.target != "node-2"


async def test_a_node_alone_is_not_drained_and_stays_as_it_was() -> None:
    async with gated("node-1", "node-2") as made:
        client = made.client
        meter = await client.on("node-1").spawn(Meter, "g")
        await client.cordon("node-2")
        await until(lambda: made.nodes["node-2"].is_cordoned)
        with pytest.raises(cells.MigrationRefused, match="node-2 is cordoned"):
            await client.drain("node-1")
        assert not made.nodes["node-1"].is_cordoned
        assert await meter.where() == "node-1"
        with pytest.raises(cells.errors.UnknownNode, match="node-9"):
            await client.drain("node-9")
        with pytest.raises(cells.errors.UnknownNode, match="node-9"):
            await client.cordon("node-9")


async def test_agents_that_cannot_leave_by_the_deadline_stay_keep_running_and_are_reported() -> None:
    async with gated("node-1", "node-2") as made:
        client = made.client
        quiet = await client.on("node-1").spawn(Meter, "quiet")
        busy = await client.on("node-1").spawn(Meter, "busy")
        working = asyncio.create_task(busy.slow())
        await doors[-1].begun.wait()
        report = await client.drain("node-1", deadline_s=0.6)
        assert (report.ok, report.state, report.moved, report.left) == (False, "over", 1, 1)
        assert [agent for agent, _ in report.blocked] == ["busy"]
        assert await quiet.where() == "node-2"
        doors[-1].leave.set()
        assert await working == 1
        assert await busy.where() == "node-1"


@pytest.mark.parametrize("as_json", [False, True])
async def test_the_command_fails_when_agents_stay_and_says_which_and_why(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    async with gated("node-1", "node-2") as made:
        busy = await made.client.on("node-1").spawn(Meter, "busy")
        working = asyncio.create_task(busy.slow())
        await doors[-1].begun.wait()
        operator, printer = Operator(made.client), Printer(as_json)
        assert await drain_command.work(operator, printer, "node-1", deadline="0.4") == 1
        last = capsys.readouterr().out.splitlines()[-1]
        assert "busy" in last
        assert last != "  busy: "
        doors[-1].leave.set()
        assert await working == 1
        assert await drain_command.work(operator, printer, "node-1", deadline="10") == 0


async def test_a_turn_that_ends_in_time_is_waited_for() -> None:
    async with gated("node-1", "node-2") as made:
        client = made.client
        busy = await client.on("node-1").spawn(Meter, "busy")
        working = asyncio.create_task(busy.slow())
        await doors[-1].begun.wait()
        draining = asyncio.create_task(client.drain("node-1"))
        async with asyncio.timeout(30):
            while not any(case.reports for case in [made.nodes["node-1"].migrations]):  # the first try was in vain
                await asyncio.sleep(0.005)
        doors[-1].leave.set()
        report = await draining
        assert (report.ok, report.moved) == (True, 1)
        assert await working == 1
        assert await busy.where() == "node-2"


async def test_a_move_that_an_operator_aborts_is_not_begun_again() -> None:
    async with gated("node-1", "node-2") as made:
        client, node = made.client, made.nodes["node-1"]
        busy = await client.on("node-1").spawn(Meter, "busy")
        working = asyncio.create_task(busy.slow())
        await doors[-1].begun.wait()
        draining = asyncio.create_task(client.drain("node-1"))
        await until(lambda: "busy" in node.migrations.attempts.moves)
        await client.abort(busy)
        report = await draining
        assert (report.state, report.moved, report.left) == ("done", 0, 1)
        assert report.blocked == (("busy", drain.ABORTED),)
        doors[-1].leave.set()
        assert await working == 1
        assert await busy.where() == "node-1"


async def test_uncordoning_ends_a_drain() -> None:
    async with gated("node-1", "node-2") as made:
        client, node = made.client, made.nodes["node-1"]
        busy = await client.on("node-1").spawn(Meter, "busy")
        working = asyncio.create_task(busy.slow())
        await doors[-1].begun.wait()
        draining = asyncio.create_task(client.drain("node-1"))
        await until(lambda: "busy" in node.migrations.attempts.moves)
        await client.uncordon("node-1")
        await until(lambda: node.drains.running is None)
        doors[-1].leave.set()
        report = await draining
        assert report.state == "stopped"
        assert await working == 1
        assert await client.on("node-1").spawn(Meter, "new") is not None


async def test_a_dry_run_says_where_each_agent_would_go_and_changes_nothing() -> None:
    async with gated("node-1", "node-2", "node-3") as made:
        client = made.client
        for n in range(4):
            await client.on("node-1").spawn(Meter, f"g{n}")
        plan = await client_drain.plan_drain(client, "node-1")
        assert (plan.agents, plan.left) == (4, 0)
        assert sorted(row.target for row in plan.rows) == ["node-2", "node-2", "node-3", "node-3"]
        assert not made.nodes["node-1"].is_cordoned
        assert len(made.nodes["node-1"].activations.live) == 4
        made.nodes["node-2"].leave()
        made.nodes["node-3"].leave()
        members = made.nodes["node-1"].members.table.members
        await until(lambda: members["node-2"].is_leaving and members["node-3"].is_leaving)
        plan = await client_drain.plan_drain(client, "node-1")
        assert (plan.left, {row.blocker for row in plan.rows}) == (4, {drain.NOWHERE})


async def test_a_dead_node_is_drained_by_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_drain, "PATIENCE_S", 0.3)
    async with gated("node-1", "node-2", "node-3") as made:
        client = made.client
        meters = [await client.on("node-1").spawn(Meter, f"g{n}") for n in range(6)]
        await asyncio.gather(*(meter.add() for meter in meters))
        made.kill("node-1")
        plan = await client_drain.plan_drain(client, "node-1")
        assert [row.agent for row in plan.rows] == [f"g{n}" for n in range(6)]
        report = await client.drain("node-1")
        assert (report.ok, report.claimed, report.moved, report.agents) == (True, 6, 0, 6)
        assert [await meter.add() for meter in meters] == [2] * 6
        where = [await meter.where() for meter in meters]
        assert {where.count("node-2"), where.count("node-3")} == {3}
        entered = (await table.read_members(client.log)).members["node-1"]
        assert entered.is_cordoned
        node = await made.start("node-1")  # a node that comes back takes nothing, and has nothing
        assert node.activations.live == {}
        assert node.is_cordoned


async def test_a_drain_reads_who_is_there_and_pings_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is too busy to answer at once is not taken for a dead one, and one that has left is not asked."""
    async with gated("node-1", "node-2", "node-3") as made:
        client, asked = made.client, list[tuple[str, str]]()
        request_of = client.wire.request

        async def request(subject: str, data: bytes, timeout: float) -> bytes:
            kind = type(requests.decode_request(data))
            asked.append((subject, kind.__name__))
            if kind is requests.Drain and len(asked) == 1:
                raise WireTimeout("It is busy.")
            return await request_of(subject, data, timeout)

        await client.on("node-1").spawn(Meter, "m")
        monkeypatch.setattr(client.wire, "request", request)
        report = await client.drain("node-1")
        assert (report.ok, report.moved, report.claimed) == (True, 1, 0)
        control = control_subject("node-1")
        assert asked[0] == (control, "Drain")
        assert {kind for subject, kind in asked if subject == control} <= {"Drain", "ReadDrain"}

        await client.on("node-2").spawn(Meter, "n")
        await made.nodes["node-2"].stop()
        asked.clear()
        report = await client.drain("node-2")
        assert (report.ok, report.moved) == (True, 0)
        assert report.claimed == report.agents >= 1
        assert control_subject("node-2") not in {subject for subject, _ in asked}


async def test_a_node_that_dies_in_its_drain_is_drained_by_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_drain, "PATIENCE_S", 0.3)
    monkeypatch.setattr(client_drain, "ASK_S", 0.1)
    async with gated("node-1", "node-2") as made:
        client, node = made.client, made.nodes["node-1"]
        busy = await client.on("node-1").spawn(Meter, "busy")
        await client.on("node-1").spawn(Meter, "quiet")
        working = asyncio.create_task(busy.slow())
        await doors[-1].begun.wait()
        draining = asyncio.create_task(client.drain("node-1"))
        await until(lambda: "quiet" not in node.activations.live and "busy" in node.migrations.attempts.moves)
        made.kill("node-1")
        doors[-1].leave.set()
        report = await draining
        assert (report.ok, report.claimed) == (True, 1)
        assert await working == 1
        assert await busy.where() == "node-2"


async def test_two_operators_drain_as_one() -> None:
    async with gated("node-1", "node-2") as made:
        client = made.client
        for n in range(10):
            await client.on("node-1").spawn(Meter, f"g{n}")
        one, two = await asyncio.gather(client.drain("node-1"), client.drain("node-1"))
        assert (one.ok, two.ok) == (True, True)
        assert max(one.moved, two.moved) == 10
        assert len(made.nodes["node-2"].activations.live) == 10


@pytest.mark.parametrize("where", ["copy", "probe"])
async def test_a_drain_ends_at_its_deadline_whatever_its_moves_do(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the moves end as the deadline comes, the others hang at the target: before the handover, or behind it."""
    monkeypatch.setattr(drain, "END_S", 0.2)
    async with gated("node-1", "node-2") as made:
        client, node, steps = made.client, made.nodes["node-1"], 0
        for n in range(drain.MOVES):
            await client.on("node-1").spawn(Meter, f"g{n:02}")

        async def step(name: str) -> None:
            nonlocal steps
            if name == where:
                steps += 1
                await asyncio.sleep(0.4 + 0.01 * steps if steps % 2 else 3600)

        made.nodes["node-2"].home.step = step
        emptying = node.drains.new(0.5, is_patient=True)
        began = asyncio.get_running_loop().time()
        await emptying.run()
        assert asyncio.get_running_loop().time() - began < QUICK.prepare_s, (
            "before the moves reach deadlines of their own"
        )
        told = emptying.progress()
        assert told.state == answers.OVER
        assert told.left == len(told.rows) > 0
        assert all(row.state == "blocked" and "the deadline came" in row.blocker for row in told.rows)
        made.nodes["node-2"].kill()


# ---- processes and commands ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("30s", 30), ("1.5m", 90), ("500ms", 0.5), ("2h", 7200)])
def test_a_deadline_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert seconds_of("deadline", text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "s", "5 days", "nan", "1e99", "9999999999"])
def test_a_deadline_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(cells.ConfigError, match="--deadline"):
        seconds_of("deadline", text)


def test_a_node_process_is_drained_by_command_and_drains_itself_when_it_is_told_to_stop(tmp_path: Path) -> None:
    with processes(tmp_path, 2) as up:
        third = up.node("third")
        for n in range(6):
            up.value("spawn", "Counter", f"c{n}", "--on", "third")
        assert up.value("ask", "c0", "add", "5") == 5
        plan = up.value("drain", "third", "--dry-run")
        assert (plan["agents"], plan["left"]) == (6, 0)
        report = up.value("drain", "third", "--deadline", "20s")
        assert (report["state"], report["moved"], report["left"]) == ("done", 6, 0)
        wait_for(  # its next heartbeat says so
            lambda: (
                [(node["is_cordoned"], node["agents"]) for node in up.value("nodes") if node["name"] == "third"]
                == [(True, 0)]
            ),
            "the empty node",
        )
        refused = up.run("migrate", "c0", "--to", "third", "--json")
        assert refused.returncode == 3
        assert "third is cordoned" in refused.stdout
        assert up.run("drain", "nobody").returncode == 2
        assert up.run("drain", "third", "--deadline", "soon").returncode == 2

        assert up.value("uncordon", "third") == {"node": "third", "is_cordoned": False}
        for n in range(6):
            up.value("migrate", f"c{n}", "--to", "third")
        third.signal(signal.SIGTERM)
        assert third.end() == 0
        assert any("third drains: 6 agents to move" in line for line in third.out.all())
        # Not claimed by others once it was gone, but moved before it went.
        records = [json.loads(line) for line in up.run("log", "c0", "--json").stdout.splitlines()]
        assert records[-1]["kind"] != "Claimed", records
        assert {info["node"] for info in up.value("agents")} == {"node-1", "node-2"}
        assert up.value("ask", "c0", "add") == 6
