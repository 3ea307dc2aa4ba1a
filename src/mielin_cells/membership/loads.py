"""What the leader records of the nodes' agents and facts: changes that are noticeable, at a bounded rate.

Every node reads these records.  Regular ones come every `reconcile_s` at most, and more rarely while they are large; between them a
change that policies act on at once is recorded within a second, alone.  At rest there are none.
"""

from __future__ import annotations

from collections.abc import Mapping

from mielin_cells.membership.members import Loads, Member, encode_record
from mielin_cells.membership.table import Members
from mielin_cells.membership.watch import LONG_AGO
from mielin_cells.policy.facts import Facts, unpacked
from mielin_cells.policy.noticeable import Change, change_of
from mielin_cells.rpc.answers import Beat

LOAD_CHANGE, LOAD_AGENTS = 0.25, 4
"""The number of a node's agents is recorded again once it has changed by this share, and by as many agents."""

PROMPT_S = 1.0
"""Between two records of changes that cannot wait, at least."""

RECORD_BYTES = 256 * 1024
"""Facts in one record; those of further nodes come with the next one."""

BYTES_EACH_S = 4096
"""Of regular records: with more, the next one comes later."""


class NotedLoads:
    """Of one node while it leads."""

    def __init__(self, members: Members, every_s: float) -> None:
        self._members = members
        self._every_s = every_s
        self._due = LONG_AGO
        """When the next regular record may come."""
        self._looked_at = LONG_AGO
        self._prompt_at = LONG_AGO

    async def note(self, now: float, beats: Mapping[str, Beat]) -> None:
        """Appends what has changed, if it is time for it.  Raises a `RetryError` while the store does not answer."""
        is_due = now >= self._due
        if not is_due and now - self._looked_at < PROMPT_S / 4:
            return
        self._looked_at = now
        table = self._members.table
        facts = self._changed_facts(beats, Change.SLOW if is_due else Change.PROMPT)
        agents = self._changed_agents(beats) if is_due else {}
        if is_due:
            self._due = now + self._every_s
        elif facts and now - self._prompt_at < PROMPT_S:
            return
        if not facts and not agents:
            return
        self._prompt_at = now
        record = Loads(*table.leader, table.term, agents, facts)
        if is_due and facts:
            self._due = now + max(self._every_s, len(encode_record(record)) / BYTES_EACH_S)
        await self._members.try_append(record)

    def _changed_agents(self, beats: Mapping[str, Beat]) -> dict[str, int]:
        changed = dict[str, int]()
        for name, beat in beats.items():
            member = self._members.table.get(name)
            change = abs(beat.agents - member.agents) if member is not None else 0
            if member is not None and change >= max(LOAD_AGENTS, LOAD_CHANGE * member.agents):
                changed[name] = beat.agents
        return changed

    def _changed_facts(self, beats: Mapping[str, Beat], least: Change) -> dict[str, Facts]:
        """Of nodes that say something else than the table, noticeably; what cannot be is left out of what they say."""
        changed, size = dict[str, Facts](), 0
        for name, beat in beats.items():
            if not beat.facts:
                continue
            member, facts = self._members.table.get(name), unpacked(beat.facts)
            if member is None or facts is None or not _is_of(member, beat):
                continue
            if change_of(member.facts, facts) >= least:
                changed[name], size = facts, size + len(beat.facts)
                if size >= RECORD_BYTES:
                    break
        return changed


def _is_of(member: Member, beat: Beat) -> bool:
    return member.is_present and beat.incarnation == member.incarnation
