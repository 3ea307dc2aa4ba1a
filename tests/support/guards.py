"""Guards of the protocol, and how a test takes them away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from mielin_cells.log.ledger import Ledger, Verdict

Patch = pytest.MonkeyPatch


@dataclass(frozen=True, slots=True)
class Guard:
    """How it is taken away, and the seeds, from 1 on, within which that is found.

    `within` has room: a change of the code changes what each seed tells, so the harm may come some seeds later.
    """

    remove: Callable[[Patch], None]
    within: int

    @property
    def name(self) -> str:
        return self.remove.__name__


GUARDS: list[Guard] = []


def guard(*, within: int) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    def noted(remove: Callable[[Patch], None]) -> Callable[[Patch], None]:
        GUARDS.append(Guard(remove, within))
        return remove

    return noted


@guard(within=10)
def dedupe(patch: Patch) -> None:
    """A message that has taken effect takes effect again."""
    judge = Ledger.judge

    def judged(self: Ledger, sender: str, n: int, start: int) -> Verdict:
        verdict = judge(self, sender, n, start)
        return Verdict.APPLY if verdict in (Verdict.REPEAT, Verdict.CLOSED) else verdict

    patch.setattr(Ledger, "judge", judged)
