"""What kinds of errors have in common for those who handle them."""

from __future__ import annotations

from mielin_cells.errors.base import InternalError, RetryError
from mielin_cells.errors.lost import Fenced, StoreCorrupt, StoreInUse, StoreReadOnly, StreamMissing
from mielin_cells.errors.retry import NodeStopping, StoreBusy, StoreFull, StoreUnreachable
from mielin_cells.errors.usage import AuthFailed, JetStreamDisabled, PermissionDenied, ServerTooOld, StoreIncompatible

_STORE = (
    AuthFailed, JetStreamDisabled, PermissionDenied, ServerTooOld, StoreBusy, StoreCorrupt, StoreFull, StoreInUse,
    StoreIncompatible, StoreReadOnly, StoreUnreachable, StreamMissing,
)  # fmt: skip

OF_STORE = (*_STORE, InternalError, RetryError)
"""The store's errors, and not one agent's: when the store has recovered, so has the agent."""

PASSING = (*_STORE, Fenced, NodeStopping)
"""The store or the loss of the agent raises these inside a turn.  They say nothing about the message and are never its answer."""

QUARANTINED = frozenset({"EpochRegression", "JournalGap"})
"""Codes: an agent with one of these is quarantined until an operator decides."""

UNUSABLE = QUARANTINED | {"PartMissing", "DigestMismatch"}
"""Codes that no node can mend: asks fail at once instead of waiting for their deadline."""

UNLOADABLE = frozenset({"StateUnloadable", "StateUpgradeFailed", "UnknownClass", "StoreReadOnly"})
"""Codes of what keeps an agent from running until somebody mends its code, what its node imports, or its store."""
