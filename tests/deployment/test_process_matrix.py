"""From pause to accept, with real processes on JetStream: each moment of a handover, and each thing that goes wrong there.

A process stops itself (SIGSTOP) at the moment; the test sees that it has, does the deed, and lets go on whatever still lives.  What
must come of it is the fault matrix's, in the words of the protocol's phases: who may own the agent then, and what the log says of
the attempt.  That no message is lost or doubled is what the simulator's checkers say of the log.  `make test` plays five cells,
`make ci` the others, too.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import pytest
import pytest_asyncio
from support.depth import depth
from support.process_cells import HANDOVER_S, PROBATION_S, SPARE, Cell, Site, cell, site
from torture.nodes import NodeProcess

from mielin_cells.log.records import Accepted, HandedOff


class Moment(NamedTuple):
    step: str
    side: str
    """Whose process stops there."""
    holds: type[HandedOff] | type[Accepted] | None
    """The attempt's last record that is in the log then."""


MOMENTS = {
    "PAUSED": Moment("pause:stop", "source", None),
    "HANDING_OVER, not sent": Moment("handed_off:stop", "source", None),
    "HANDING_OVER, in doubt": Moment("handed_off:stop_after", "source", HandedOff),
    "VERIFYING, not tried": Moment("probe:stop", "target", HandedOff),
    "VERIFYING, not accepted": Moment("accepted:stop", "target", HandedOff),
    "VERIFYING, accepted unheard": Moment("accepted:stop_after", "target", Accepted),
}


def go_on(*nodes: NodeProcess) -> None:
    for node in nodes:
        node.signal(signal.SIGCONT)


async def source_dies(one: Cell, halted: NodeProcess) -> None:
    was_sent = await one.has(HandedOff)
    await one.source.kill()
    go_on(one.target)
    if not was_sent:
        await one.claimed_by_spare()


async def source_comes_back(one: Cell, halted: NodeProcess) -> None:
    await one.source.kill()
    go_on(one.target)
    one.source.options = one.site.options
    await one.source.start()
    await one.source.serving()


async def target_dies(one: Cell, halted: NodeProcess) -> None:
    if halted is one.source and await one.has(HandedOff):
        await one.comes(lambda: one.has(Accepted), "the target does not accept")
    has_accepted = await one.has(Accepted)
    await one.target.kill()
    go_on(one.source)
    if has_accepted:
        await one.claimed_by_spare()


async def both_are_stopped(one: Cell, halted: NodeProcess) -> None:
    for node in (one.source, one.target):
        node.signal(signal.SIGSTOP)
        await node.stopped()
    await asyncio.sleep(PROBATION_S + 0.2)  # beyond each deadline of a handover
    go_on(one.source, one.target)


async def the_client_is_gone(one: Cell, halted: NodeProcess) -> None:
    go_on(halted)
    await one.comes(lambda: _has_ended(one), "the migration has no end")


async def _has_ended(one: Cell) -> bool:
    return (await one.journal()).end is not None


async def the_store_is_away(one: Cell, halted: NodeProcess) -> None:
    one.site.server.signal(signal.SIGSTOP)
    go_on(halted)
    await asyncio.sleep(HANDOVER_S + 0.5)
    one.site.server.signal(signal.SIGCONT)


async def the_source_hears_nothing(one: Cell, halted: NodeProcess) -> None:
    one.source_link.hold(to_client=True)
    go_on(halted)
    await asyncio.sleep(PROBATION_S + 0.2)
    one.source_link.release()


async def the_target_is_not_heard(one: Cell, halted: NodeProcess) -> None:
    one.target_link.hold(to_server=True)
    go_on(halted)
    if await one.has(Accepted):
        await asyncio.sleep(HANDOVER_S)
    else:
        await one.comes(one.is_claimed, "the source does not claim the agent back")
    one.target_link.release()  # what it said comes late


async def late_and_doubled(one: Cell, halted: NodeProcess) -> None:
    await one.duplicate()
    if not await one.has(HandedOff):
        await one.claimed_by_spare()
    elif not await one.has(Accepted) and halted is one.target:
        await one.comes(one.is_claimed, "the source does not claim the agent back")
    go_on(halted)
    await one.duplicate()


Deed = Callable[[Cell, NodeProcess], Awaitable[None]]

NEVER, BACK, THERE = "", "rolled_back", "completed"
"""What the log may say of the first attempt: it was never handed over, it was and came back, it was accepted."""
ANY = {NEVER, BACK, THERE}

DEEDS: dict[str, tuple[Deed, list[set[str]]]] = {
    "source dies": (source_dies, [{NEVER}, {NEVER}, {THERE}, {THERE}, {THERE}, {THERE}]),
    "source dies and comes back": (source_comes_back, [{NEVER}, {NEVER}, {THERE}, {THERE}, {THERE}, {THERE}]),
    "target dies": (target_dies, [{BACK}, {BACK}, {THERE}, {BACK}, {BACK}, {THERE}]),
    "both are stopped": (both_are_stopped, [ANY, ANY, {BACK, THERE}, {BACK, THERE}, {BACK, THERE}, {THERE}]),
    "client dies": (the_client_is_gone, [{THERE}, {THERE}, {THERE}, {THERE}, {THERE}, {THERE}]),
    "store away": (the_store_is_away, [ANY, ANY, {THERE}, {BACK, THERE}, {BACK, THERE}, {THERE}]),
    "source hears nothing": (the_source_hears_nothing, [ANY, ANY, {THERE}, {THERE}, {THERE}, {THERE}]),
    "target is not heard": (the_target_is_not_heard, [{BACK}, {BACK}, {BACK, THERE}, {BACK}, {BACK}, {THERE}]),
    "late and doubled": (late_and_doubled, [{NEVER}, {NEVER}, {THERE}, {BACK}, {BACK}, {THERE}]),
}

QUICK = [
    ("PAUSED", "source dies"),
    ("HANDING_OVER, not sent", "late and doubled"),
    ("HANDING_OVER, in doubt", "source dies"),
    ("VERIFYING, not accepted", "both are stopped"),
    ("VERIFYING, accepted unheard", "target dies"),
]
OTHERS = [(moment, deed) for moment in MOMENTS for deed in DEEDS if (moment, deed) not in QUICK]
CELLS = depth(QUICK, OTHERS, QUICK + OTHERS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with site(tmp_path_factory.mktemp("matrix")) as made:
        yield made


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("moment", "deed"), CELLS)
async def test_a_fault_during_a_handover_leaves_one_owner_and_loses_nothing(here: Site, moment: str, deed: str) -> None:
    step, side, holds = MOMENTS[moment]
    act, wanted = DEEDS[deed]

    async def reached(one: Cell, halted: NodeProcess) -> None:
        assert [await one.has(kind) for kind in (HandedOff, Accepted)] in (
            [[False, False]] if holds is None else [[True, True]] if holds is Accepted
            else [[True, False]] if side == "target" else [[True, False], [True, True]]
        )  # fmt: skip
        await act(one, halted)

    async with cell(here, step, side) as (one, halted):
        check = await one.play(halted, reached, dies=deed == "client dies")
        # A target whose source is gone writes the end of the migration, too, but only later (`settling.SETTLE_S`).
        assert [found for found in check.verdict.violations if not found.endswith("was planned and has no end")] == []
        assert check.verdict.landed["Committed"]
        first = check.verdict.outcomes.get(one.attempt, NEVER)
        assert first in wanted[list(MOMENTS).index(moment)], one.source.logged() + one.target.logged()
        owner, _ = await here.client.owner(one.agent)
        # Rule 7: the owner follows from the outcomes.  A process that has died owns nothing that is served.
        moved = THERE in check.verdict.outcomes.values()
        alive = {SPARE, *(node.name for node in (one.source, one.target) if node.is_running)}
        assert owner in alive
        assert moved or owner != one.target.name
