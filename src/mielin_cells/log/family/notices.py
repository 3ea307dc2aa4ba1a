"""The notices that an agent owes its parent and those that watch it (rule F2).  Pure."""

from __future__ import annotations

from collections.abc import Iterator

from mielin_cells.log.family.tree import Down, Family, Told, Watcher
from mielin_cells.log.lifecycle import AgentError

DOWN = "cells.down"
"""The handler of a parent.  No handler of a class has a dot in its name."""
LINKED = "cells.linked"
PARENT_ENDED = "cells.parent_ended"
WATCH = "cells.watch"
UNWATCH = "cells.unwatch"


def due(agent: str, family: Family, error: AgentError | None) -> tuple[Told, Down] | None:
    """The next notice to send; None if there is none.  `error`: with which the agent is in ERROR."""
    if not family.is_watched:
        return None
    n = family.told + 1
    if family.failed > family.told_failed:
        cause, code = (error.message, error.code) if error is not None else ("it was resumed since", "")
        down = Down(
            agent=agent, kind="failed", cause=cause, code=code, n=n, failure=family.failed,
            fatal=error is not None and error.fatal, root=family.root or (agent, family.failed),
        )  # fmt: skip
        return Told(n, family.failed, 0), down
    limit = family.parent.letters if family.parent is not None else 0
    if limit and family.letters >= limit:
        cause = f"{family.letters} messages became dead letters"
        return Told(n, family.told_failed, family.letters), Down(agent=agent, kind="dead_letters", cause=cause, n=n)
    return None


def end(agent: str, family: Family) -> tuple[Told, Down]:
    """The notice of an agent that ends.  Nothing is told after it."""
    n = family.told + 1
    return Told(n, family.failed, family.letters, True), Down(agent=agent, kind="terminated", n=n)


def listeners(family: Family, down: Down) -> Iterator[Watcher]:
    """Who gets the notice: the parent all, a watcher failures and ends, a linked agent failures that do not follow from its own."""
    if family.parent is not None:
        yield Watcher(family.parent.agent, DOWN, "down")
    for watcher in family.watchers:
        if down.kind == "dead_letters" or (
            watcher.handler == LINKED and (down.kind != "failed" or down.root[0] == watcher.agent)
        ):
            continue
        yield watcher
