"""Records of a migration's journal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mielin_cells.migration.journal import (
    AnyRecord,
    Attempted,
    Cancelled,
    Ended,
    Journal,
    Planned,
)

Make = Callable[[dict[str, Any]], AnyRecord]

MIGRATION, AGENT = "m-1", "cart/anna"


def head(journal: Journal, **over: Any) -> dict[str, Any]:
    return {
        "migration": MIGRATION, "agent": AGENT, "node": "node-1", "incarnation": 1, "nonce": b"n", "prev": journal.seq,
        "at": 1.0, **over,
    }  # fmt: skip


def planned(h: dict[str, Any]) -> Planned:
    return Planned(**h, source="node-1", target="node-2", epoch=1, config={"max_retries": 3})


def attempted(number: int) -> Make:
    return lambda h: Attempted(**h, number=number, id=f"m-1.{number}", target="node-2", strategy="", epoch=1)


def ended(h: dict[str, Any]) -> Ended:
    return Ended(**h, outcome="completed", target="node-2")


def cancelled(h: dict[str, Any]) -> Cancelled:
    return Cancelled(**h)
