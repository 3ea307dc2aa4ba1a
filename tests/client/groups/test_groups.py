"""Groups: members and roles, groups in groups, what is told to all, asked of all and ordered for all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.nodes import Deployment, deployment

import mielin_cells as cells
from mielin_cells.agents.groups import members as limits
from mielin_cells.agents.groups.members import Member
from mielin_cells.cli.groups import commands
from mielin_cells.cli.show import Printer
from mielin_cells.client.client import Client
from mielin_cells.client.operator import Operator
from mielin_cells.errors import GroupRefused, WireTimeout
from mielin_cells.groups import Group, Team
from mielin_cells.log.ids import log_subject

QUICK = cells.Settings(reconcile_s=0.5, probation_s=1.0, ask_timeout_s=10.0)


class Hand(cells.Agent, name="GroupHand"):
    tasks: list[int] = []
    sticks: bool = False

    async def on_depart(self) -> None:
        if self.sticks:
            raise ValueError("it sticks")

    async def on_stop(self) -> None:
        if self.sticks:
            raise ValueError("it sticks")

    @cells.handler
    async def do(self, n: int) -> int:
        self.tasks.append(n)
        if n < 0 and cells.this().id == "h2":
            raise ValueError(f"not {n}")
        return n * 2

    @cells.handler
    async def slowly(self, n: int) -> str:
        await asyncio.sleep(0.1)
        self.tasks.append(n)
        return cells.this().id

    @cells.handler
    async def stick(self) -> None:
        self.sticks = True

    @cells.handler
    async def show(self) -> list[int]:
        return self.tasks


class Chief(cells.Agent, name="GroupChief"):
    said: dict[str, str] = {}
    runs: int = 0

    def _crew(self) -> Team[Hand]:
        return Team(cells.this().cluster.get(Group, "crew"), Hand)

    @cells.handler
    async def order(self, n: int, fails: bool = False) -> int:
        count = await self._crew().tell_all(lambda hand: hand.do.tell(n))
        if fails:
            raise ValueError("no")
        return count

    @cells.handler(tries=5)
    async def ask(self, n: int) -> dict[str, str]:
        gathered = await self._crew().gather(lambda hand: hand.slowly(n))
        self.said = {**gathered.results, **{agent: type(error).__name__ for agent, error in gathered.failed.items()}}
        return self.said


@pytest.fixture
async def opened() -> AsyncIterator[Deployment]:
    async with deployment("node-1", "node-2", settings=QUICK) as made:
        yield made


async def crew_of(client: Client, count: int, name: str = "crew", first: int = 0) -> Team[Hand]:
    team = Team(await client.spawn(Group, name), Hand)
    for n in range(first, first + count):
        await team.add(await client.on(f"node-{n % 2 + 1}").spawn(Hand, f"h{n}"))
    return team


async def ids(team: Team[Hand], role: str = "") -> list[str]:
    return [str(one.__dict__["__mielin_id__"]) for one in await team.members(role)]


async def until_all(client: Client, count: int, wanted: list[int]) -> None:
    async with asyncio.timeout(60):
        for n in range(count):
            while await client.get(Hand, f"h{n}").show() != wanted:
                await asyncio.sleep(0.01)


async def test_members_have_roles_and_are_each_there_once(opened: Deployment) -> None:
    client = opened.client
    crew = await crew_of(client, 4)
    await crew.add("h1", role="leader")
    await crew.add("h2", role="observer")
    inner = await crew_of(client, 3, "inner", first=3)
    await inner.add("h0", "h2")
    await crew.add_group(inner.group)
    assert await ids(crew) == ["h0", "h1", "h2", "h3", "h4", "h5"], "h2 is a member of the inner group"
    assert await ids(crew, "leader") == ["h1"]
    await inner.remove("h2", "h9")
    assert await ids(crew) == ["h0", "h1", "h3", "h4", "h5"]
    assert await ids(crew, "observer") == ["h2"]
    await crew.group.set_role("h2", "member")
    assert await crew.group.own() == {
        "h0": Member("GroupHand"), "h1": Member("GroupHand", "leader"), "h2": Member("GroupHand"), "h3": Member("GroupHand"),
        "inner": Member("mielin.Group", "group"),
    }  # fmt: skip


async def test_no_group_is_in_itself_also_if_two_are_put_into_each_other_at_once(opened: Deployment) -> None:
    client = opened.client
    a, b, c = [await crew_of(client, 0, name) for name in "abc"]
    with pytest.raises(GroupRefused, match="member of itself"):
        await a.add_group(a.group)
    await a.add_group(b.group)
    await b.add_group(c.group)
    with pytest.raises(GroupRefused, match="a -> b -> c"):
        await c.add_group(a.group)
    x, y = [await crew_of(client, 0, name) for name in "xy"]
    outcomes = await asyncio.gather(x.add_group(y.group), y.add_group(x.group), return_exceptions=True)
    assert sum(one is None for one in outcomes) <= 1
    assert all(isinstance(one, (GroupRefused, cells.AskTimeout)) for one in outcomes if one is not None)
    both = [len(await one.group.own()) for one in (x, y)]
    assert both != [1, 1]
    assert await ids(x) == []


async def test_groups_have_limits(opened: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    client = opened.client
    monkeypatch.setattr(limits, "MEMBERS_MAX", 3)
    monkeypatch.setattr(limits, "DEPTH_MAX", 3)
    monkeypatch.setattr(limits, "ALL_MAX", 5)
    crew = await crew_of(client, 3)
    with pytest.raises(GroupRefused, match="which is the limit"):
        await crew.add("h9")
    await crew.add("h2", role="leader")
    with pytest.raises(GroupRefused, match="already; remove it first"):
        await crew.group.add("h2", "Other")
    with pytest.raises(GroupRefused, match="it is no member"):
        await crew.group.set_role("h9", "leader")
    deep = [await crew_of(client, 0, f"d{n}") for n in range(4)]
    await deep[1].add_group(deep[0].group)
    await deep[2].add_group(deep[1].group)
    with pytest.raises(GroupRefused, match="3 are allowed in all"):
        await deep[3].add_group(deep[2].group)
    await deep[0].add("x1", "x2", "x3")
    await deep[1].add("y1", "y2")
    with pytest.raises(GroupRefused, match="more than 5 members"):
        await ids(deep[1])


async def test_all_members_are_told_once_with_the_turn_or_not_at_all(opened: Deployment) -> None:
    client = opened.client
    crew, chief = await crew_of(client, 12), await client.spawn(Chief, "chief")
    assert await chief.order(1) == 12
    with pytest.raises(cells.HandlerFailed):
        await chief.order(2, fails=True)
    await client.migrate("chief")
    assert await chief.order(3) == 12
    await until_all(client, 12, [1, 3])
    assert await crew.tell_all(lambda hand: hand.do.options(key="four").tell(4)) == 12
    assert await crew.tell_all(lambda hand: hand.do.options(key="four").tell(4)) == 12
    await until_all(client, 12, [1, 3, 4])


async def test_what_is_gathered_says_who_failed(opened: Deployment) -> None:
    client = opened.client
    crew = await crew_of(client, 4)
    assert (await crew.gather(lambda hand: hand.do(5))).check() == {f"h{n}": 10 for n in range(4)}
    await crew.add("h9")
    gathered = await crew.gather(lambda hand: hand.do(-1))
    assert gathered.results == {"h0": -2, "h1": -2, "h3": -2}
    assert {agent: type(error).__name__ for agent, error in gathered.failed.items()} == {
        "h2": "HandlerFailed",
        "h9": "NoSuchAgent",
    }
    assert not gathered.ok
    with pytest.raises(ExceptionGroup, match="2 of 5 members failed"):
        gathered.check()


async def test_what_is_gathered_in_a_turn_is_asked_once_while_the_agent_moves_and_its_node_dies(
    opened: Deployment,
) -> None:
    client = opened.client
    await crew_of(client, 40)
    chief = await client.on("node-2").spawn(Chief, "chief")
    asking = asyncio.create_task(chief.ask.options(timeout=40.0)(7))
    await asyncio.sleep(0.15)
    await client.claim("chief", "node-1")
    said = await asking
    assert said == {f"h{n}": f"h{n}" for n in range(40)}
    await until_all(client, 40, [7])


async def test_an_order_is_carried_out_for_all_or_taken_back(opened: Deployment) -> None:
    client = opened.client
    crew = await crew_of(client, 4)
    agents = await ids(crew)

    async def states() -> list[str]:
        return [(await client.show(agent)).state for agent in agents]

    async def nodes() -> list[str]:
        return [(await client.show(agent)).node for agent in agents]

    report = await client.order_all(agents, "suspend")
    assert (report.done, report.ok, await states()) == (agents, True, ["Suspended"] * 4)
    report = await client.order_all(agents, "suspend")
    assert (report.done, report.unchanged) == ([], agents)
    await client.order_all(agents, "resume")
    assert await states() == ["Running"] * 4
    report = await client.order_all([*agents, "nobody"], "suspend")
    assert list(report.failed) == ["nobody"]
    assert (report.done, report.stuck, await states()) == ([], {}, ["Running"] * 4)
    before = await nodes()
    await client.get(Hand, "h3").stick()
    report = await client.order_all(agents, "migrate", to="node-1")
    assert list(report.failed) == ["h3"]
    assert await nodes() == before
    report = await client.order_all(agents[:3], "drain", node="node-2")
    assert (report.done, report.unchanged) == (["h1"], ["h0", "h2"])
    assert (await nodes())[:3] == ["node-1"] * 3
    with pytest.raises(cells.UsageError, match="no order"):
        await client.order_all(agents, "dance")  # type: ignore[arg-type]
    with pytest.raises(cells.UsageError, match="migrate needs a node"):
        await client.order_all(agents, "migrate")
    report = await client.order_all(["h0", "h1", "nobody"], "stop")
    assert list(report.failed) == ["nobody"]
    assert (await states())[:2] == ["Running"] * 2
    report = await client.order_all(agents[:3], "stop")
    assert report.done == agents[:3]
    with pytest.raises(cells.AgentTerminated):
        await client.get(Hand, "h0").show()


@pytest.mark.parametrize("lost", ["the answer", "the order"])
async def test_an_order_of_which_nobody_knows_whether_it_was_carried_out_is_taken_back_too(
    opened: Deployment, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """The member stayed suspended, and the report said that all was put back."""
    client, suspend, migrate = opened.client, Client.suspend, Client.migrate
    await crew_of(client, 3)
    agents = ["h0", "h1", "h2"]

    def fails_at(agent: str, what: str) -> bool:
        return agent == "h1" and lost == what

    async def suspended(self: Client, agent: Any, /, reason: str = "") -> None:
        if not fails_at(agent, "the order"):
            await suspend(self, agent, reason)
        if agent == "h1":
            raise WireTimeout("Node node-2 did not answer.")

    async def migrated(self: Client, agent: Any, to: str | None = None) -> Any:
        report = None if fails_at(agent, "the order") and to != "node-2" else await migrate(self, agent, to=to)
        if agent == "h1" and to != "node-2":
            raise WireTimeout("Node node-2 did not answer.")
        return report

    monkeypatch.setattr(Client, "suspend", suspended)
    monkeypatch.setattr(Client, "migrate", migrated)
    before = [(await client.show(agent)).node for agent in agents]
    for order, to in (("suspend", None), ("migrate", "node-1")):
        report = await client.order_all(agents, order, to=to)  # type: ignore[arg-type]
        assert list(report.failed) == ["h1"]
        assert "h1" in report.undone
        assert (report.done, report.stuck) == ([], {})
        infos = [await client.show(agent) for agent in agents]
        assert ([info.state for info in infos], [info.node for info in infos]) == (["Running"] * 3, before)


async def test_a_member_that_came_to_another_node_than_ordered_is_put_back_with_the_others(
    opened: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recovery may complete a move on another node than the one that was named (found by the simulator, I40)."""
    client = opened.client
    _ = await opened.start("node-3")
    await crew_of(client, 3)
    agents, migrate = ["h0", "h1", "h2"], Client.migrate

    async def recovered(self: Client, agent: Any, to: str | None = None) -> Any:
        return await migrate(self, agent, to="node-1" if (agent, to) == ("h1", "node-3") else to)

    monkeypatch.setattr(Client, "migrate", recovered)
    report = await client.order_all(agents, "migrate", to="node-3")
    assert list(report.failed) == ["h1"]
    assert "it went to node-1, and is back on node-2" in report.failed["h1"]
    assert (report.done, report.stuck) == ([], {})
    assert [(await client.show(agent)).node for agent in agents] == ["node-1", "node-2", "node-1"]


async def test_a_member_that_could_not_be_moved_back_to_its_node_counts_as_stuck(
    opened: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recovery may complete the move back on another node, too; it counted as put back (found by the simulator, I40)."""
    client = opened.client
    _ = await opened.start("node-3")
    await crew_of(client, 2)
    migrate = Client.migrate

    async def recovered(self: Client, agent: Any, to: str | None = None) -> Any:
        if (agent, to) == ("h1", "node-3"):
            raise cells.errors.MigrationFailed("It failed.")
        return await migrate(self, agent, to="node-2" if (agent, to) == ("h0", "node-1") else to)

    monkeypatch.setattr(Client, "migrate", recovered)
    report = await client.order_all(["h0", "h1"], "migrate", to="node-3")
    assert (report.done, report.undone, list(report.failed)) == ([], ["h1"], ["h1"])  # h1 has not left its node
    assert "could not be moved back to node-1; it runs on node-2" in report.stuck["h0"]
    assert (await client.show("h0")).node == "node-2"


async def test_a_member_is_moved_back_though_a_replica_still_shows_it_on_its_old_node(
    opened: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client then found it there already, and it counted as put back (found by the simulator, I40)."""
    client = opened.client
    _ = await opened.start("node-3")
    await crew_of(client, 2)
    subject = log_subject("h0")
    old, last, migrate = await client.log.settled(subject), client.log.last, Client.migrate

    async def stale(asked: str) -> Any:
        return old if asked == subject else await last(asked)

    async def behind(self: Client, agent: Any, to: str | None = None) -> Any:
        if (agent, to) == ("h1", "node-3"):
            raise cells.errors.MigrationFailed("It failed.")
        if (agent, to) == ("h0", "node-1"):
            monkeypatch.setattr(client.log, "settled", last)
            monkeypatch.setattr(client.log, "last", stale)
        return await migrate(self, agent, to=to)

    monkeypatch.setattr(Client, "migrate", behind)
    report = await client.order_all(["h0", "h1"], "migrate", to="node-3")
    monkeypatch.setattr(client.log, "last", last)
    assert (report.done, report.undone, list(report.failed)) == ([], ["h0", "h1"], ["h1"])  # h1 has not left its node
    assert (await client.show("h0")).node == "node-1"


async def test_the_command_line_shows_changes_and_orders_groups(
    opened: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    client = opened.client
    await crew_of(client, 2)
    await client.spawn(Hand, "h7")
    operator, text, as_json = Operator(client), Printer(as_json=False), Printer(as_json=True)

    async def run(command: Any, printer: Printer, *args: str, **options: Any) -> tuple[int, str]:
        code = await command.work(operator, printer, "crew", *args, **options)
        return code, capsys.readouterr().out

    assert await run(commands.group_add, text, "h7", role="leader") == (0, "h7 is now a leader of crew\n")
    assert await run(commands.group_remove, text, "h0", "h9") == (0, "h0 left crew\nh9 was not in crew\n")
    code, shown = await run(commands.group_show, as_json)
    assert shown.count('"class"') == 2
    assert await run(commands.group_suspend, text) == (0, "suspend: 2 agents, 0 had it already\n")
    assert await run(commands.group_resume, text, role="leader") == (0, "resume: 1 agents, 0 had it already\n")
    assert (await client.show("h1")).state == "Suspended"
    code, shown = await run(commands.group_migrate, as_json, to="node-9")
    assert code == 1
    assert '"failed"' in shown
    assert (await run(commands.group_drain, text, node="node-9"))[1] == "drain: 0 agents, 2 had it already\n"
    assert (await run(commands.group_stop, text, yes=True))[1] == "stop: 2 agents, 0 had it already\n"
    code, shown = await run(commands.group_show, text, all=True)
    assert "h7" in shown
