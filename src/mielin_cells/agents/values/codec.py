"""How values of a declared type are stored as bytes.  A value that a load would change is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import inspect as kinds

from mielin_cells.agents.values import proofs
from mielin_cells.agents.values.changes import ValueChangedError, check_kept
from mielin_cells.agents.values.exact import is_exact
from mielin_cells.agents.values.shape import Shape, unsupported
from mielin_cells.agents.values.wire import STACK_MARGIN, deeper, encode, load_hook
from mielin_cells.errors import FieldRefused


class Codec:
    """Encodes, checks and decodes values of one declared type; `path` names where it is declared."""

    __slots__ = (
        "check",
        "decode",
        "evolves",
        "flat",
        "has_refs",
        "has_sets",
        "is_immutable",
        "path",
        "proofs",
        "scalars",
    )

    def __init__(
        self,
        kind: Any,
        path: str,
        *,
        may_be_any: bool = False,
        ext_hook: Callable[[int, memoryview], Any] | None = None,
    ) -> None:
        """`may_be_any` allows parts without a declared type; `ext_hook` loads extensions of msgpack.

        Raises `FieldRefused` for a type that cannot be stored.
        """
        self.path = path
        try:
            info = kinds.type_info(kind)
            shape = Shape(info, path, may_be_any=may_be_any)
            self.decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(
                kind, dec_hook=load_hook, ext_hook=ext_hook
            ).decode
        except (TypeError, NotImplementedError, NameError, RecursionError) as error:
            raise FieldRefused.at(path, f": {unsupported(error)}.") from error
        self.check = (
            functools.partial(deeper, STACK_MARGIN, self.decode) if shape.nests or shape.has_any else self.decode
        )
        """As `decode`, for a value that is to be stored: it must load again, also where less stack is left."""
        self.proofs = proofs.proofs(info)
        """Proofs by the exact type of a value that a load gives it as it was."""
        self.scalars = frozenset(kind for kind, proof in self.proofs.items() if proof is None)
        """Values of exactly these types load as they were."""
        self.flat = proofs.flat(info)
        """The proofs of values that only a holder of the value itself can change."""
        self.evolves = shape.has_classes and not shape.has_any
        self.has_refs = shape.has_refs
        self.has_sets = shape.has_sets
        self.is_immutable = shape.is_immutable

    def is_unchanged(self, value: Any, data: bytes, stored: bytes | None) -> bool:
        """True if the value, encoded as `data`, equals the stored one, also if only the order within a set differs."""
        if data == stored:
            return True
        if not self.has_sets or stored is None or len(data) != len(stored):
            return False
        try:
            return is_exact(value, self.decode(stored))
        except ValueChangedError:
            return False

    def whole(self, data: bytes) -> Any:
        """The value of bytes that other code may have written.  Raises `ValueChangedError` if a part of them would be lost."""
        value = self.decode(data)
        if self.evolves:
            check_kept(data, value)
        return value

    def is_proved(self, value: Any) -> bool:
        """True if the value's types alone say that a load gives the same."""
        proof = self.proofs.get(type(value), proofs.no)
        return proof is None or proof(value)

    def keep(self, value: Any) -> tuple[bytes, Any]:
        """The bytes of a value, and what a load gives: the value itself where that is known to be the same.

        Raises `ValueChangedError` with the place in the value, or what a user's type raises.
        """
        data = encode(value)
        return (data, value) if type(value) in self.scalars else self.settle(value, data)

    def settle(self, value: Any, data: bytes) -> tuple[bytes, Any]:
        """As `keep`, for bytes that are already encoded."""
        proof = self.proofs.get(type(value), proofs.no)
        if proof is None or proof(value):
            return data, value
        loaded = self.check(data)
        return data if is_exact(value, loaded) else encode(loaded), loaded
