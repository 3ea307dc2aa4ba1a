"""Guards of attributes, taken away one at a time."""

from __future__ import annotations

from mielin_cells.log.attributes.entries import Listing, Place
from mielin_cells.log.attributes.values import FIELD
from mielin_cells.log.commit import Commit
from mielin_cells.log.ids import ATTRIBUTES
from mielin_cells.log.state import StoredState
from mielin_cells.node.activation import activation
from mielin_cells.node.activation.core import Core
from mielin_cells.node.attributes.announcer import announce
from mielin_cells.substrate.ports import Outcome
from mielin_cells.testing.simulator.view import View
from support.guards import Patch, guard


@guard(within=100)
def attributes_expect_the_last(patch: Patch) -> None:
    """Attributes are appended without a condition."""
    append = View.append

    async def anyhow(
        self: View, subject: str, data: bytes, expect: int | None = None, owner: str | None = None
    ) -> Outcome:
        return await append(self, subject, data, None if subject.startswith(ATTRIBUTES) else expect, owner)

    patch.setattr(View, "append", anyhow)


@guard(within=100)
def numbers_of_attributes_decide(patch: Patch) -> None:
    """Attributes are written if they differ from those that stand there, whatever their numbers."""

    def differs(self: Place, wanted: Listing) -> bool:
        return self.listing is None or self.listing.values != wanted.values

    patch.setattr(Place, "lacks", differs)


@guard(within=600)
def an_undo_gives_attributes_a_new_number(patch: Patch) -> None:
    """After an undo attributes have the number that they had before."""

    def back(now: StoredState, before: StoredState) -> StoredState:
        return before

    patch.setattr("mielin_cells.log.undo.after_undo_of_attributes", back)


@guard(within=600)
def a_new_owner_looks_what_is_written(patch: Patch) -> None:
    """An owner writes attributes only when they change."""
    patch.setattr(activation, "announce_held", lambda _: None)


@guard(within=40)
def attributes_are_written_after_the_commit(patch: Patch) -> None:
    """Attributes are written while their commit is on its way."""
    sealed = Core.sealed

    def early(self: Core) -> Commit:
        commit = sealed(self)
        if commit.state is not None and FIELD in commit.state.plain:
            announce(self, commit.state.plain[FIELD])
        return commit

    patch.setattr(Core, "sealed", early)
