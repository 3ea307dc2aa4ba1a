"""The contract of the ports, as checks: an adapter is right when every one of `CHECKS` passes against it.

    for check in CHECKS:
        await check(substrate)        # a fresh, empty substrate each time

Each check raises `AssertionError` with a sentence, also under `python -O`.  Not checked: what survives the end of a process,
which depends on the adapter.
"""

from mielin_cells.testing.conformance import log, owners, tails, topics, wire
from mielin_cells.testing.conformance.kit import REGISTERED, Check

CHECKS = tuple(REGISTERED)

__all__ = ["CHECKS", "Check", "log", "owners", "tails", "topics", "wire"]
