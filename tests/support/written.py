"""Journals, record by record, as a process writes them."""

from __future__ import annotations

from typing import Any

from mielin_cells.migration.case import Case
from mielin_cells.migration.journal import AnyRecord, Attempted, Decided, Failed, Journal, Planned, attempt_id
from mielin_cells.migration.recovery import RecoveryStrategy

AGENT, MIGRATION = "a", "m-1"


class Written:
    """A journal as a process writes it, whose clock shows `at`."""

    def __init__(self, target: str = "n2", config: dict[str, float] | None = None) -> None:
        self.journal = Journal(MIGRATION)
        self.at = 100.0
        self.add(Planned, source="n1", target=target, epoch=1, config=config or {"max_retries": 3.0})

    def add(self, cls: type[Any], node: str = "n1", /, **fields: Any) -> Written:
        journal = self.journal
        record: AnyRecord = cls(
            migration=MIGRATION,
            agent=AGENT,
            node=node,
            incarnation=1,
            nonce=b"n",
            prev=journal.seq,
            at=self.at,
            **fields,
        )
        journal.apply(journal.seq + 1, record)
        return self

    def tried(self, target: str = "n2", epoch: int = 1, node: str = "n1", strategy: str = "") -> Written:
        number = len(self.journal.attempts) + 1
        return self.add(
            Attempted,
            node,
            number=number,
            id=attempt_id(MIGRATION, number),
            target=target,
            strategy=strategy,
            epoch=epoch,
        )

    def failed(self, kind: str = "Timeout", code: str = "Timeout", target: str = "n2", node: str = "n1") -> Written:
        number = len(self.journal.attempts)
        return self.add(Failed, node, number=number, target=target, kind=kind, code=code, message="slow")

    def decided(
        self,
        strategy: RecoveryStrategy = RecoveryStrategy.RETRY_ON_SAME_TARGET,
        delay_s: float = 10.0,
        node: str = "n1",
        rule: str = "so",
    ) -> Written:
        number = len(self.journal.attempts)
        return self.add(Decided, node, number=number, strategy=strategy.value, rule=rule, delay_s=delay_s)

    def folded(self, now: float | None = None, wall: float | None = None) -> Case:
        """As a process has it whose clocks show these times; None: the time of the last record."""
        at = self.at
        return Case.of(self.journal, source="n3", now=at if now is None else now, wall=at if wall is None else wall)
