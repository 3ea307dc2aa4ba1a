"""A claim that another record has preceded takes nothing from its activation, which goes on if the log gives it the agent back.

Found by seed 1461.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from support.agent_log import AGENT, NODE, TARGET, created

from mielin_cells.errors import Fenced
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import log_subject
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.records import Claimed, HandedOff, Returned, Suspended, encode_record
from mielin_cells.node.activation.writer import Writer
from mielin_cells.store.reader import read_record
from mielin_cells.substrate.embedded import Embedded


def handover(head: dict[str, Any]) -> HandedOff:
    return HandedOff(**head, to=TARGET, migration="m-1", seal=None, digest=b"")


async def test_a_source_whose_claim_comes_too_late_goes_on_with_what_is_returned_to_it() -> None:
    store = await Embedded.open()
    first = created(Fold(AGENT))
    await store.log.append(log_subject(AGENT), encode_record(first), 0)
    (entry,) = await store.log.read(log_subject(AGENT))
    folds = {name: Fold(AGENT) for name in (NODE, TARGET)}
    for fold in folds.values():
        fold.apply(entry.seq, first)
    source = Writer(store.log, folds[NODE], NODE, first.incarnation, Random(1))
    handed = await source.append(handover)
    folds[TARGET].apply(folds[NODE].seq, handed)
    target = Writer(store.log, folds[TARGET], TARGET, 20, Random(2))
    back = await target.append(lambda head: Returned(**head, to=NODE, migration="m-1", cause="no"))

    with pytest.raises(Fenced):
        await source.append(lambda head: Claimed(**head, cause="silence", waits=False), claim=True)

    (*_, entry) = await store.log.read(log_subject(AGENT))
    assert await read_record(store.log, AGENT, entry) == back
    folds[NODE].apply(entry.seq, back)
    assert folds[NODE].phase is Phase.RUN
    await source.append(lambda head: Suspended(**head, reason="it is ours again"))
    await store.close()
