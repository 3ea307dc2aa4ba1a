"""The sessions of a client: in memory are those that are in use, or were within the last hour."""

from __future__ import annotations

from weakref import WeakValueDictionary

from mielin_cells.client.sessions.session import Session

REST_S = 3600.0
"""A session that was not used for so long may be dropped.  Shorter, and agents would remember several sessions of one client."""

FEW = 1_000
"""So many sessions are kept however long they rest: they take 3 MB."""


class Sessions:
    """Session by agent and priority.  A session that is dropped is found as long as anything else refers to it, such as a call.

    So the calls of a client to one agent stay in one session, and in order, also if one of them was made long before it is awaited.
    """

    def __init__(self) -> None:
        self.in_use: dict[str, Session] = {}
        """By agent and priority (`line`), in the order in which they were last looked at."""
        self._looked: dict[str, tuple[int, float]] = {}
        """For each of `in_use`, the number of its next call when it was looked at, and when that was."""
        self._alive: WeakValueDictionary[str, Session] = WeakValueDictionary()
        self.by_sender: WeakValueDictionary[str, Session] = WeakValueDictionary()
        """Every session that may still get answers."""

    def find(self, key: str, now: float) -> Session | None:
        session = self.in_use.get(key)
        if session is None and (session := self._alive.get(key)) is not None:
            self._keep(key, session, now)
        return session

    def add(self, key: str, session: Session, now: float) -> None:
        self.by_sender[session.sender] = self._alive[key] = session
        self._keep(key, session, now)

    def forget(self, key: str, session: Session) -> None:
        self.by_sender.pop(session.sender, None)
        if self._alive.get(key) is session:
            del self._alive[key]
            self._drop(key)

    def close(self) -> None:
        for session in list(self.by_sender.values()):
            session.close()
        for found in (self.in_use, self._looked, self._alive, self.by_sender):
            found.clear()

    def _keep(self, key: str, session: Session, now: float) -> None:
        self.in_use[key], self._looked[key] = session, (session.next_n, now)
        for _ in range(2):  # more than are added, so that all are looked at again and again
            self._look(now)

    def _look(self, now: float) -> None:
        """Drops the session that was not looked at for longest, if it has rested since then."""
        key = next(iter(self.in_use))
        session, (number, at) = self.in_use[key], self._looked[key]
        if len(self.in_use) <= FEW or now < at + REST_S:
            return
        self._drop(key)
        if session.next_n != number or session.given_up:
            self.in_use[key], self._looked[key] = session, (session.next_n, now)

    def _drop(self, key: str) -> None:
        self.in_use.pop(key, None)
        self._looked.pop(key, None)
