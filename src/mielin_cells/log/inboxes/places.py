"""How far an agent has come in each of its inboxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias

import msgspec

from mielin_cells.log.inboxes.lines import NORMAL, PRIORITIES


class InboxPlace(msgspec.Struct, array_like=True):
    """Of an inbox of another priority than normal; that of the normal one is in the ledger itself."""

    cursor: int = 0
    """Entries up to this sequence are done."""
    held: list[int] = []
    """Entries at or before the cursor that wait for an earlier number."""

    def copy(self) -> InboxPlace:
        return InboxPlace(self.cursor, sorted(self.held))


Places: TypeAlias = dict[str, InboxPlace]
"""By priority: the inboxes that are in use."""


def copied(places: Mapping[str, InboxPlace]) -> Places:
    return {priority: place.copy() for priority, place in places.items()}


class HasPlace(Protocol):
    """A `InboxPlace`, or a ledger, which is the place of the normal inbox."""

    cursor: int
    held: list[int]


def first_needed(place: HasPlace) -> int:
    """The first position in the inbox that is still needed."""
    return min([place.cursor + 1, *place.held])


def gone_back(now: Places | None, back: Places | None) -> Places | None:
    """The places after an undo.  An inbox that came into use since is read from its beginning."""
    if now is None:
        return None
    before = back or {}
    return {priority: before[priority].copy() if priority in before else InboxPlace() for priority in now}


def wrong_places(before: Places | None, after: Mapping[str, InboxPlace]) -> str:
    """What is wrong with the places that a commit gives, after those `before`; "" if nothing is (rules 10 and T1)."""
    for priority, place in after.items():
        if priority == NORMAL or priority not in PRIORITIES:
            return f"it names an inbox of priority {priority!r} (rule T1)"
        was = (before or {}).get(priority, InboxPlace())
        reads_anew = not place.cursor and not place.held
        if place.cursor < was.cursor and not reads_anew:
            return f"its cursor {place.cursor} in the {priority} inbox is behind {was.cursor} (rule T1)"
        wrong = wrong_held(was.cursor, was.held, place.cursor, place.held)
        if wrong:
            return f"{wrong} in the {priority} inbox (rule T1)"
    return ""


def wrong_held(old_cursor: int, old: list[int], cursor: int, held: list[int]) -> str:
    before = set(old)
    if len(set(held)) < len(held) or any(one > cursor or (one <= old_cursor and one not in before) for one in held):
        return f"it holds {sorted(held)} with its cursor at {cursor}, after {sorted(before)} at {old_cursor}"
    return ""


def wrong_way_back(now: Places | None, back: Mapping[str, InboxPlace]) -> str:
    """What is wrong with the places of an undo; "" if nothing is."""
    places = now or {}
    if places.keys() != back.keys():
        return f"it goes back in the inboxes {sorted(back)}, and {sorted(places)} are in use (rule T1)"
    for priority, place in back.items():
        if place.cursor > places[priority].cursor or any(one > place.cursor for one in place.held):
            return f"it goes back to position {place.cursor} of the {priority} inbox from {places[priority].cursor}"
    return ""
