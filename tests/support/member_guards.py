"""Guards of the log of the members (N11 to N13), which the simulator misses when they are taken away.

Others, and those of N14, have stories of their own: tests/membership/test_watch.py and test_standing.py.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from mielin_cells.membership.members import Leads, Status, Table
from mielin_cells.membership.watch import Ears, Watch
from mielin_cells.node.facts import OwnFacts
from mielin_cells.node.presence import Presence
from mielin_cells.rpc.answers import Beat
from support.guards import Patch, guard


@guard(within=40)
def a_lost_leader_is_followed(patch: Patch) -> None:
    """A node leads once nobody does, and follows no leader that it does not hear any more (N11)."""
    elect = Watch.elect

    def only_nobody(self: Watch, now: float, table: Table, fresh: dict[str, Beat], ears: Ears) -> Leads | None:
        return elect(self, now, table, fresh, ears) if table.leader[0] == "" else None

    patch.setattr(Watch, "elect", only_nobody)


@guard(within=40)
def the_suspected_say_that_they_live(patch: Patch) -> None:
    """A node reads that it is suspected, and does not say that it lives (N13)."""
    say = Presence.say_serving

    async def unless_suspected(self: Presence) -> None:
        me = self._members.table.get(self._home.name)
        if me is None or me.status not in (Status.SUSPECTED, Status.DOUBTED):
            await say(self)

    patch.setattr(Presence, "say_serving", unless_suspected)


@guard(within=60)
def facts_are_told_until_they_are_known(patch: Patch) -> None:
    """A node sends its facts once and not again, although the table of members does not say them (N15)."""
    news, sent = OwnFacts.news, WeakKeyDictionary[OwnFacts, bytes]()

    def once(self: OwnFacts) -> bytes:
        data = news(self)
        if sent.get(self) == data:
            return b""
        sent[self] = data
        return data

    patch.setattr(OwnFacts, "news", once)
