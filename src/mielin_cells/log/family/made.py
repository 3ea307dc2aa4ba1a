"""What the steps of a turn say about children (rule F1).

`cells.spawn` makes two steps.  The outcome of the first is in the parent's log before the child is made: from then on it is a child,
whatever becomes of the turn.  The outcome of the second says whether the child was made, or its name was taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

import msgspec

from mielin_cells.log.codec import pack
from mielin_cells.log.commit import StepCall, TurnCall
from mielin_cells.log.family.tree import Child, Family
from mielin_cells.log.message import decode_answer

MEANT: Final = "\tchild "
MADE: Final = "\tspawn "
"""With the child's id, the names of the two steps.  No step of an author has such a name."""


class Outcome(msgspec.Struct, array_like=True, frozen=True):
    """Of both steps.  `code` and `message`: the error that `cells.spawn` raises; "" if there is none."""

    child: Child
    code: str = ""
    message: str = ""


_decode = msgspec.msgpack.Decoder(Outcome).decode
_bytes = msgspec.msgpack.Decoder(bytes).decode

encode_outcome = pack
decode_outcome = _decode


Calls: TypeAlias = Iterable[TurnCall]


def learn(family: Family | None, calls: Calls) -> Family | None:
    """The family, after these calls are known.  What is known already changes nothing."""
    for call in calls:
        if not isinstance(call, StepCall) or not call.name.startswith((MEANT, MADE)):
            continue
        result = decode_answer(call.answer).result
        if result is None:  # the step itself failed
            continue
        outcome = _decode(_bytes(result))
        family = family or Family()
        if call.name.startswith(MADE):
            family.born(outcome.child.agent, outcome.child.key, not outcome.code)
        elif not outcome.code:
            family.adopt(outcome.child)
    return family
