"""What operators see of one node's agents, or of those of a class or in a state, at the cost of these."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from support.logs import SLOW, HeldLog, Score
from support.moving import nodes

import mielin_cells as cells
from mielin_cells.client import status
from mielin_cells.client.operator import Operator
from mielin_cells.log.ids import LOGS, log_subject
from mielin_cells.node import questions
from mielin_cells.rpc import pages, requests
from mielin_cells.rpc.pages import Which
from mielin_cells.substrate.ports import Log, Wire


class ReadLog(HeldLog):
    """A log that notes what is read."""

    def __init__(self, inner: Log) -> None:
        super().__init__(inner)
        self.go.set()
        self.looked_at = set[str]()

    def called(self, what: str, subject: str) -> None:
        if what == "subjects" or subject.startswith(LOGS):
            self.looked_at.add(subject)


async def test_the_agents_of_a_node_are_listed_without_those_of_others() -> None:
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        for number in range(6):
            await client.on(f"node-{number % 2 + 1}").spawn(Score, f"s{number}")
        operator = Operator(client)
        assert [(info.id, info.state) for info in await operator.agents("node-1")] == [
            ("s0", "Running"), ("s2", "Running"), ("s4", "Running"),
        ]  # fmt: skip
        running["node-2"].kill()
        log = operator.log = ReadLog(client.log)
        assert [(info.id, info.node, info.state) for info in await operator.agents("node-2")] == [
            (f"s{number}", "node-2", "unreachable") for number in (1, 3, 5)
        ]
        assert log.looked_at <= {log_subject(f"s{number}") for number in (1, 3, 5)}
        assert [info.id for info in await operator.agents()] == [f"s{number}" for number in range(6)]
        assert await operator.agents("node-9") == []


class Chorus(cells.Agent):
    note: int = 0


class Asked:
    """Counts the requests by their kind, and the agents' descriptions in their answers."""

    def __init__(self, wire: Wire) -> None:
        self.request_of = wire.request
        self.described = 0
        self.kinds = Counter[str]()

    async def request(self, subject: str, data: bytes, timeout: float) -> bytes:
        answer, request = await self.request_of(subject, data, timeout), requests.decode_request(data)
        self.kinds[type(request).__name__] += 1
        if isinstance(request, requests.ListAgents):
            self.described += len(requests.decode_response(request, answer, ""))
        return answer


async def test_nodes_send_only_the_agents_that_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        for number in range(8):
            await client.on(f"node-{number % 2 + 1}").spawn(Chorus if number in (3, 4, 6) else Score, f"s{number}")
        await client.suspend("s6", "a rest")
        asked, operator = Asked(client.wire), Operator(client)
        log = operator.log = ReadLog(client.log)
        monkeypatch.setattr(client.wire, "request", asked.request)

        async def listed(*which: Any) -> list[str]:
            asked.described, asked.kinds = 0, Counter()
            return [info.id for info in await operator.agents(*which)]

        assert await listed(None, Which("Chorus")) == ["s3", "s4", "s6"]
        assert asked.described == 3
        assert await listed(None, Which("Chorus", "Running"), "", 1) == ["s3"]
        assert (asked.described, asked.kinds["ListIds"]) == (
            2,
            0,
        )  # one of each node; and no node would say "Running" of others
        assert await listed(None, Which(state="Suspended")) == ["s6"]
        assert await listed("node-1", Which("Score"), "s0") == ["s2"]
        assert await listed(None, Which(), "s2", 3) == ["s3", "s4", "s5"]
        assert log.looked_at == set()

        running["node-2"].kill()
        assert await listed(None, Which("Chorus")) == ["s3", "s4", "s6"]
        assert await listed(None, Which("Chorus"), "", 2) == ["s3", "s4"]
        assert await listed(None, Which(state="unreachable"), "s1", 2) == ["s3", "s5"]
        assert await listed(None, Which("Score", "unreachable"), "s4") == ["s5", "s7"]
        assert asked.kinds["ListIds"] == 1
        assert await listed(None, Which(), "s0", 4) == ["s1", "s2", "s3", "s4"]


async def test_agents_of_many_pages_are_searched_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pages, questions, status):
        monkeypatch.setattr(module, "PAGE_MAX", 3)
    async with nodes("node-1", "node-2", settings=SLOW) as (client, _):
        for number in range(20):
            await client.on(f"node-{number % 2 + 1}").spawn(Chorus if number % 5 == 4 else Score, f"p{number:02}")
        operator = Operator(client)
        everyone = [f"p{number:02}" for number in range(20)]
        assert [info.id for info in await operator.agents()] == everyone
        assert [info.id for info in await operator.agents(None, Which("Chorus"))] == everyone[4::5]
        assert [info.id for info in await operator.agents(None, Which("Score"), "p10", 7)] == [
            one for one in everyone[11:] if one not in everyone[4::5]
        ]  # fmt: skip
