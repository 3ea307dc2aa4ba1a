"""Guards of supervision (rules F1 to F3), taken away one at a time."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
from blake3 import blake3

from mielin_cells.errors import NameTaken
from mielin_cells.log.codec import pack
from mielin_cells.log.family import notices, supervise
from mielin_cells.log.family.made import Outcome
from mielin_cells.log.family.tree import Child, Down, Family
from mielin_cells.log.fold import Fold
from mielin_cells.log.lifecycle import AgentState
from mielin_cells.node import orders
from mielin_cells.node.activation.activation import Activation
from mielin_cells.node.family import turning
from mielin_cells.node.family.kinship import spawn_of
from mielin_cells.node.orders import Orders
from mielin_cells.node.ownership import creation
from support.guards import Patch, guard


@guard(within=40)
def a_child_is_known_by_its_key(patch: Patch) -> None:
    """An agent of the child's id counts as the child, whoever has made it."""

    def anybody(fold: Fold, parent: object) -> bool:
        return True

    async def free(turn: turning.Turn, child: Child) -> bytes:
        return pack(Outcome(child))

    patch.setattr(creation, "is_child", anybody)
    patch.setattr(turning, "_mean", free)


@guard(within=40)
def a_child_is_meant_before_it_is_made(patch: Patch) -> None:
    """A turn makes the child, and the log says so afterwards."""
    spawn = turning.FamilyCalls.spawn_child

    async def at_once(self: Any, child: Child) -> None:
        kin = self._core.home.cluster
        key = blake3(f"{self.id}\0{self.sender}\0{self.n}\0{child.agent}".encode()).digest(16)
        with contextlib.suppress(NameTaken):
            await kin.make(spawn_of(self.id, msgspec.structs.replace(child, key=key)), "")
        await spawn(self, child)

    patch.setattr(turning.FamilyCalls, "spawn_child", at_once)


@guard(within=700)
def the_store_says_nothing_about_a_child(patch: Patch) -> None:
    """An error of the store is what a spawn comes to, after its tries."""

    async def anything(turn: turning.Turn, work: Any, child: Child) -> bytes:
        outcome: bytes = await work(turn, child)
        return outcome

    patch.setattr(turning, "_unless_store_fails", anything)


@guard(within=40)
def failures_are_told(patch: Patch) -> None:
    """An agent that fails says nothing to its parent."""

    def silent(agent: str, family: Family, error: object) -> None:
        return None

    patch.setattr(notices, "due", silent)


@guard(within=100)
def a_restart_is_for_one_failure(patch: Patch) -> None:
    """An order to restart resumes the agent, whichever failure it is for."""

    async def anyhow(self: Orders, failure: int, activation: Activation) -> str:
        fold = activation.fold
        async with self._between_turns(activation, "restart"):
            if fold.lifecycle.state is AgentState.ERROR:
                await orders._resume(activation, failure)
        return fold.lifecycle.state.value

    patch.setattr(Orders, "_restart", anyhow)


@guard(within=40)
def restarts_are_counted(patch: Patch) -> None:
    """A parent restarts its children, however often they fail."""
    decide = supervise.decide

    def endless(family: Family, rules: supervise.Supervision, down: Down, now: float) -> supervise.Decision:
        return decide(family, msgspec.structs.replace(rules, max_restarts=1000), down, now)

    patch.setattr(turning, "decide", endless)
