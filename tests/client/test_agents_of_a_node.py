"""What operators see of one node's agents, at the cost of these."""

from __future__ import annotations

from support.logs import SLOW, HeldLog, Score
from support.moving import nodes

from mielin_cells.client.operator import Operator
from mielin_cells.log.ids import LOGS, log_subject
from mielin_cells.substrate.ports import Log


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
