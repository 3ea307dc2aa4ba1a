"""What a node looks at in every round: the logs that may give it an agent, and no more of them than it must."""

from __future__ import annotations

from collections.abc import Sequence

from test_found_by_seeds import SLOW, HeldLog, Score
from test_moves import nodes

from mielin_cells.core.ids import LOGS, log_subject
from mielin_cells.substrate.ports import Entry, Log


class FarLog(HeldLog):
    """A log of which every agent's last entry is asked for one by one, or all at once from a replica that may be late."""

    def __init__(self, inner: Log) -> None:
        super().__init__(inner)
        self.go.set()
        self.asked_for: list[str] = []
        self.late: dict[str, Entry] = {}

    async def last(self, subject: str) -> Entry | None:
        self.asked_for.append(subject)
        return await super().last(subject)

    async def lasts(self, subjects: Sequence[str]) -> dict[str, Entry]:
        return {**await super().lasts(subjects), **{name: self.late[name] for name in subjects if name in self.late}}


async def test_a_node_does_not_ask_after_each_agent_of_the_others() -> None:
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        second = running["node-2"]
        far = second.home.log = FarLog(second.home.log)
        scores = [await client.on("node-1").spawn(Score, f"g{n}") for n in range(20)]
        await second.reconcile(every=True)
        assert [name for name in far.asked_for if name.startswith(LOGS)] == []
        assert await scores[3].add() == 1
        subject = log_subject("g3")
        last = await far.inner.last(subject)
        assert last is not None
        far.late[subject] = last
        report = await client.migrate(scores[3], to="node-2")
        assert report.ok
        second.drop(second.hosts["g3"])  # as after a restart: only the log says that it is here
        await second.reconcile(every=True)
        assert [name for name in far.asked_for if name.startswith(LOGS)][-1] == subject  # a late answer is no answer
        assert second.hosts["g3"].fold.owner == "node-2"
        assert await scores[3].add() == 2
