"""Values as msgpack, and back, with what msgspec does not know: ids, references and models."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import msgspec

from mielin_cells.agents.reference import Reference, agent_id, classes, known_as, make_ref
from mielin_cells.agents.values import models
from mielin_cells.log.ids import AgentId

giver: ContextVar[object] = ContextVar("mielin_cells_giver", default=None)
"""While an answer is read: the cluster that gave it, which references in it use."""

STACK_MARGIN = 100
"""Calls that a load may be deeper in the stack than the turn that checked the value.  Decoding nests with the value, so
without a margin one that is just within the interpreter's limit would be saved and never load again."""


def _enc_hook(value: Any) -> Any:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Reference):
        return [type(value).__mielin_name__, agent_id(value)]
    if hasattr(value, "model_dump"):
        return models.stored(value)
    return models.unknown(value)


def load_hook(wanted: type, value: Any) -> Any:
    """Makes what msgspec cannot: ids, references, and models that validate themselves."""
    if issubclass(wanted, AgentId):
        return wanted(value)
    if issubclass(wanted, Reference):
        if isinstance(value, wanted):  # from an upgrade, which gives values and no bytes
            return value
        name, agent = value
        cls = classes.get(name)
        fits = known_as(cls, wanted) if cls is not None else None
        if fits is None:
            raise ValueError(f"a reference to a {name}, where a {wanted.__mielin_name__} is expected")
        return make_ref(fits, agent, giver.get())
    if models.is_model(wanted):
        return models.loaded(wanted, value)
    raise NotImplementedError(f"{wanted!r} cannot be loaded")


encode = msgspec.msgpack.Encoder(enc_hook=_enc_hook).encode
plain = msgspec.msgpack.Decoder().decode


def deeper(calls: int, decode: Callable[[bytes], Any], data: bytes) -> Any:
    """Decodes with so many more calls on the stack."""
    return decode(data) if calls == 0 else deeper(calls - 1, decode, data)
