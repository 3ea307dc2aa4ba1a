"""What may go wrong in a simulated world: faults with their chances, and the errors of a store that no retry mends."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from random import Random
from typing import NamedTuple

from mielin_cells.errors import (
    CellError,
    JetStreamDisabled,
    PermissionDenied,
    QuotaExceeded,
    StoreCorrupt,
    StoreFull,
    StoreReadOnly,
    StreamMissing,
)
from mielin_cells.migration.recovery import RecoveryConfig
from mielin_cells.policy.facts import UNKNOWN, Facts, Value
from mielin_cells.settings import Settings
from mielin_cells.substrate.ports import STALE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How likely each fault is, per call or message; times are virtual seconds."""

    append_lost: float = 0.0
    """It landed, the caller hears Unknown."""
    append_late: float = 0.0
    """The caller hears Unknown; it lands up to `late_s` later."""
    append_never: float = 0.0
    """The caller hears Unknown; it does not land."""
    append_busy: float = 0.0
    """`StoreBusy`: it does not land, for certain."""
    false_conflict: float = 0.0
    """A conditional append is refused though nothing is in its way."""
    read_stale: float = 0.0
    """What landed in the last `stale_s` is missing."""
    last_stale: float = 0.0
    """The same, of `last`: a leader that was cut off answers, and what landed in the last `cut_off_s` is missing."""
    tail_late: float = 0.0
    """An entry is shown up to `stale_s` later."""
    read_fails: float = 0.0
    """`StoreUnreachable` from a call that only reads."""
    read_torn: float = 0.0
    """The last entry that a read brings is cut short, or has a bit changed.  What is stored is right."""
    look_torn: float = 0.0
    """The same, of `last`, `settled`, `lasts` and tails, whichever of their entries it is."""
    refused: float = 0.0
    """A call of the store raises what no retry mends (`REFUSALS`), and the next one does not."""
    trim_lost: float = 0.0
    trim_late: float = 0.0
    """The trim takes effect up to `late_s` later, and then again."""
    wire_drop: float = 0.0
    wire_repeat: float = 0.0
    wire_late: float = 0.0
    slow: float = 0.0
    """A step takes up to `slow_s` instead of `delay_s`."""
    index_lost: float = 0.0
    """The index of owners (`Log.owned`) never gets the entry."""
    index_anew: float = 0.0
    """When an ownership record lands, the index is deleted and made anew: it is partial for `INDEX_FILLS_S`."""
    marker_late: float = 0.0
    """The index of owners does not come to where the logs are in time: `StoreUnreachable`."""
    hint_lost: float = 0.0
    """Who listens for records that name it (`Log.hear_owned`) does not hear of one."""
    hint_repeated: float = 0.0
    """It hears of one twice, the second time up to `late_s` later."""
    hint_made_up: float = 0.0
    """With the hint that it was to hear it hears of another agent's log, which may not name it."""
    delay_s: float = 0.003
    slow_s: float = 0.3
    late_s: float = 5.0
    stale_s: float = 0.5
    cut_off_s: float = 3.0
    index_s: float = 0.5
    """How late the index of owners is, at most."""
    timeout_s: float = 1.0
    """How long a store takes to say Unknown, at most."""

    @classmethod
    def drawn(cls, rng: Random, most: float = 0.12) -> Faults:
        """An environment: each fault is off in half of them, so that no fault always hides another."""
        chances = {
            f.name: rng.random() * most for f in fields(cls)
            if f.default == 0.0 and f.name not in WIDER + LATER and rng.random() < 0.5
        }  # fmt: skip
        return cls(**chances, delay_s=rng.choice((0.001, 0.003, 0.02)), late_s=rng.choice((0.5, 5.0, 15.0)))

    def wider(self, rng: Random, most: float = 0.12) -> Faults:
        """With the faults in `WIDER`, drawn apart, so that a seed without them tells the same story as before they were added."""
        chances = {name: rng.random() * most for name in WIDER if rng.random() < 0.5}
        later = Random(f"later {sorted(chances.items())}")
        chances |= {name: later.random() * most for name in LATER if later.random() < 0.5}
        return replace(self, **chances, cut_off_s=rng.choice((0.5, 3.0, STALE_S)))

    def without(self, *names: str) -> Faults:
        """The same environment with some of its faults off."""
        return replace(self, **dict.fromkeys(names, 0.0))

    def healed(self) -> Faults:
        """The same speed, without faults."""
        return self.without(*CHANCES)

    def chances(self) -> dict[str, float]:
        return {name: chance for name in CHANCES if (chance := getattr(self, name)) > 0}


WIDER = (
    "last_stale",
    "tail_late",
    "look_torn",
    "refused",
    "index_lost",
    "marker_late",
    "hint_lost",
    "hint_repeated",
    "hint_made_up",
)
"""Faults that were added later than the others."""
LATER = ("index_anew",)
"""And later than those."""
INDEX_FILLS_S = 2.0
"""How long an index of owners that is made anew takes until it is whole."""
CHANCES = tuple(f.name for f in fields(Faults) if f.default == 0.0)
"""Names of the faults that are drawn per call or message."""


WRITES = frozenset({"append", "trim"})
STORE_CALLS = WRITES | {
    "read",
    "last",
    "settled",
    "lasts",
    "subjects",
    "position",
    "now",
    "owned",
    "owned_by_others",
    "forget_owned",
    "mend_owned",
    "topic_ends",
    "outside extent",
    "outside read",
    "outside find",
    "scan",
}


class Refusal(NamedTuple):
    """A way in which a store refuses some of its calls for good."""

    error: type[CellError]
    calls: frozenset[str]


REFUSALS = {
    "full": Refusal(StoreFull, frozenset({"append"})),
    "quota": Refusal(QuotaExceeded, frozenset({"append"})),
    "read only": Refusal(StoreReadOnly, WRITES),
    "denied": Refusal(PermissionDenied, STORE_CALLS),
    "writes denied": Refusal(PermissionDenied, WRITES),
    "stream gone": Refusal(StreamMissing, STORE_CALLS),
    "no JetStream": Refusal(JetStreamDisabled, STORE_CALLS),
    "damaged": Refusal(StoreCorrupt, STORE_CALLS),
}

FOR_GOOD = ("denied", "writes denied", "read only")
"""How a store refuses one process and no other."""

REFUSAL_CODES = frozenset(refusal.error.__name__ for refusal in REFUSALS.values())
"""Codes of the errors that callers may get while a store refuses."""


def make_refusal(how: str, what: str, subject: str) -> CellError:
    """A new error for this call."""
    return REFUSALS[how].error(f"The store refuses {what} of {subject or 'some'} ({how}); nothing was stored.")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it was raised from, during or for."""
    seen = set[int]()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions


def settings_of(rng: Random) -> Settings:
    return Settings(
        ask_timeout_s=rng.choice((3.0, 10.0)), ask_repeat_s=0.5, turn_deadline_s=20.0, tries=20, prepare_s=3.0,
        pause_s=rng.choice((0.5, 5.0)), handover_s=rng.choice((0.05, 1.0)), probation_s=rng.choice((1.0, 5.0)),
        migration_s=20.0, reconcile_s=rng.choice((1.0, 3.0)), snapshot_records=rng.choice((4, 12, 512)),
        retention_s=rng.choice((0.0, 3.0, 3600.0, 3600.0)), copy_lag_records=rng.choice((1, 64)), heartbeat_s=0.5,
        heartbeat_misses=rng.choice((3, 5)), compare_s=20.0,
    )  # fmt: skip


def limited(settings: Settings, seed: int, *, is_cut: bool) -> Settings:
    """In some worlds few moves may go on at a time.  Drawn apart from all else."""
    rng = Random(f"limits {seed}")
    if is_cut:
        return settings
    if rng.random() < 0.15:
        settings = replace(
            settings,
            moves_out=rng.choice((1, 2, 64)),
            moves_in=rng.choice((1, 2, 128)),
            move_bytes_s=rng.choice((0, 0, 2000)),
        )
    rng = Random(f"limit of all {seed}")
    if rng.random() < 0.15:
        settings = replace(settings, moves_all=rng.choice((1, 2, 8)))
    rng = Random(f"limits of plans {seed}")
    most = rng.choice((1, 2, 32))
    return replace(settings, plan_moves=most, plan_moves_node=rng.choice((1, most)))


FACTS_S, FACTS_STEPS = 3.0, 8
"""How often the facts of a machine change, and how many times: a world that has healed for a while is at rest."""


SENSORS: tuple[dict[str, Value], ...] = ({}, {"fan": 3}, {"fan": math.inf, "rack": "b"})


@cache
def _facts_at(seed: int, name: str, step: int) -> Facts:
    rng = Random(f"facts {seed} {name} {step}")
    return Facts(
        cpu=rng.choice((None, 5.0, 40.0, 45.0, 86.0, 500.0, math.nan)), temperature_c=rng.choice((None, 40.0, 41.0, 72.0, 90.0)),
        battery=rng.choice((None, 80.0, 20.0, 14.0)), mains=rng.choice((None, True, False)),
        sensors=rng.choice(SENSORS),
    )  # fmt: skip


def drifting(seed: int, name: str, now: float) -> Facts:
    """What the machine of a node is measured to be, in half of all worlds: it changes, is absent, and lies."""
    is_on = Random(f"facts {seed}").random() < 0.5
    return _facts_at(seed, name, min(int(now / FACTS_S), FACTS_STEPS)) if is_on else UNKNOWN


def recovery_of(rng: Random) -> RecoveryConfig:
    return RecoveryConfig(
        max_retries=rng.choice((0, 1, 3)), initial_retry_delay_secs=rng.choice((0.1, 1.0)), max_retry_delay_secs=2.0,
        recovery_timeout_secs=30.0, auto_rollback=rng.random() < 0.9,
    )  # fmt: skip
