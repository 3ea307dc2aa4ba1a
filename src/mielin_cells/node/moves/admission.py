"""Whether this node takes an agent that is offered to it: facts are gathered here, `migration.admission` decides."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mielin_cells.agents.spec import Spec
from mielin_cells.errors import FieldRefused, NoSuchMigration, UnknownClass, never
from mielin_cells.log.fold import Fold
from mielin_cells.log.records import HandedOff
from mielin_cells.migration.admission import CompatibilityStatus, Facts, Offer, refusals
from mielin_cells.migration.target import TargetPhase
from mielin_cells.migration.validation import MigrationValidator
from mielin_cells.node.moves.bounds.crowd import Crowd
from mielin_cells.node.moves.bounds.places import Flow
from mielin_cells.node.moves.settling import SETTLE_S, Settling
from mielin_cells.node.moves.target import Copy
from mielin_cells.rpc import answers, requests
from mielin_cells.rpc.call import call
from mielin_cells.rpc.planned import Planned, prepare
from mielin_cells.settings import LOADS_BYTES_MAX, TAKES_MAX
from mielin_cells.tasks.limit import Limit

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations

logger = logging.getLogger("mielin_cells.node")

SLOW_S = 10.0
"""A load that lasts longer goes on, and no longer delays others."""

DECIDED_BY_THE_LOG = (TargetPhase.PROBATION, TargetPhase.ACCEPTING, TargetPhase.RETURNING)
"""A copy in these phases may own the agent: no later migration takes its place."""


class Room(NamedTuple):
    """What is free for agents now; None if it is unknown or unlimited."""

    memory_bytes: int | None = None
    storage_bytes: int | None = None


def room_of(file: str | None) -> Callable[[], Room]:
    """Looks at this machine: free memory, and free storage where `file` is.  Takes well under a millisecond."""

    def room() -> Room:
        import psutil  # 10 ms that `import mielin_cells` need not take

        storage: int | None = None
        if file is not None:
            try:
                storage = shutil.disk_usage(Path(file).parent).free
            except OSError as error:
                logger.warning("the free storage at %s is unknown and therefore not checked: %s", file, error)
        return Room(psutil.virtual_memory().available, storage)

    return room


async def ask_offer(activations: Activations, target: str, agent: Planned, timeout_s: float) -> list[str]:
    """Every reason of a node against taking the agent as it is now; nothing is reserved there.  Raises as `call`."""
    return (await call(activations.home.wire, target, prepare(agent, activations.name), timeout_s)).reasons


class Copies:
    """The copies of agents that are about to move to this node, and the check of offers."""

    def __init__(
        self, activations: Activations, settling: Settling, *,
        architecture: str, room: Callable[[], Room], is_cordoned: Callable[[], bool], validator: MigrationValidator,
    ) -> None:  # fmt: skip
        self._activations = activations
        self._settling = settling
        self._architecture = architecture
        self._room = room
        self._validator = validator
        self.is_cordoned = is_cordoned
        """The node keeps the agents that it has, and takes no others."""
        self.by_agent: dict[str, Copy] = {}
        self.crowd = Crowd(activations, self.by_agent)
        self._flow = Flow(activations.settings.move_bytes_s, activations.clock)
        self.places = Limit(TAKES_MAX, LOADS_BYTES_MAX, SLOW_S)
        """For copies that are being loaded."""

    def prepare(self, request: requests.Prepare) -> answers.Preparation:
        """Every reason against taking the agent; if there is none, room is reserved until its copy ends or expires.

        A request that is repeated meets its own reservation and changes nothing.  The next attempt of a migration takes over what
        the one before has copied here.
        """
        copy = self.by_agent.get(request.agent)
        if copy is not None and copy.migration == request.migration:
            return answers.Preparation([])
        if (sleeper := self._activations.asleep.get(request.agent)) is not None:
            sleeper.stir()  # another node seems to own it: its log says so
        spec, error = self._spec(request.cls)
        room, activations = self._room(), self._activations
        facts = Facts(
            name=activations.name,
            version=spec.version if spec is not None else None,
            upgrades_from=frozenset(spec.upgrades if spec is not None else ()),
            class_error=error,
            architecture=self._architecture,
            memory_bytes=room.memory_bytes,
            storage_bytes=room.storage_bytes,
            reserved_bytes=sum(other.reserved_bytes for other in self.by_agent.values() if other is not copy),
            state_bytes_max=activations.settings.state_bytes_max,
            is_stopping=activations.is_stopping,
            is_cordoned=self.is_cordoned(),
            is_hosting=activations.owns(request.agent),
            verifies=copy.migration if copy is not None and copy.machine.phase in DECIDED_BY_THE_LOG else "",
            moves=0 if request.is_dry else sum(other is not copy for other in self.by_agent.values()),
            moves_max=activations.settings.moves_in,
            agents=activations.count + self.crowd.unowned,
            agents_max=activations.settings.agents_max,
            bytes_s=self._flow.bytes_s,
            is_ahead=not request.is_dry and self._flow.is_ahead,
        )
        offer = Offer(
            cls=request.cls,
            version=request.version,
            state_bytes=request.state_bytes,
            architectures=tuple(request.architectures),
        )
        status = CompatibilityStatus(refusals=refusals(offer, facts))
        if not request.is_dry:
            self._validator.record_pre(
                request.migration, request.agent, status, now=activations.clock(), target=activations.name
            )
        reasons = list(status.refusals)
        if not reasons and not request.is_dry:
            if spec is None:
                raise never("spec is not None does not hold")
            if copy is None or not copy.adopt(request.migration, request.epoch, request.state_bytes):
                if copy is not None:
                    copy.expire()
                self._flow.let_in(max(0, request.state_bytes))
                self._new(request.agent, request.migration, spec, request.state_bytes, request.epoch)
        return answers.Preparation(reasons)

    def _spec(self, name: str) -> tuple[Spec | None, str]:
        """The class, if it is known and can be used; else why it cannot be, "" if it is not known."""
        try:
            return self._activations.spec(name), ""
        except UnknownClass:
            return None, ""
        except FieldRefused as error:
            return None, error.message

    def _new(self, agent: str, migration: str, spec: Spec, reserved_bytes: int = 0, epoch: int = 0) -> Copy:
        copy = Copy(self._activations, self, self._validator, agent, migration, spec, reserved_bytes, epoch)
        self.by_agent[agent] = copy
        return copy

    async def reach(self, request: requests.Copy) -> answers.CopyReport:
        """Returns when the copy has folded the record at `request.seq`.  Raises what made the copy fail."""
        copy = self.by_agent.get(request.agent)
        if copy is None or copy.migration != request.migration:
            name = self._activations.name
            raise NoSuchMigration(f"{name} holds no copy for migration {request.migration}.", agent=request.agent)
        return await copy.reach(request.seq)

    def release(self, agent: str, migration: str) -> None:
        """Drops a copy that the source no longer needs."""
        copy = self.by_agent.get(agent)
        if copy is not None and copy.migration == migration:
            copy.expire()

    def claimed(self, agent: str) -> None:
        """Drops the copy of an agent that this node claims: no move brings the agent here."""
        copy = self.by_agent.pop(agent, None)
        if copy is not None:
            copy.expire()

    async def verify(self, fold: Fold, handed: HandedOff | None) -> None:
        """Verifies an agent that the log gives this node in probation and of which it has no copy."""
        copy = self._new(fold.agent, fold.migration, self._activations.spec(fold.cls))
        try:
            await copy.resume_probation(fold, handed)
        except Exception:
            copy.close()  # else this node would take the agent for on its way for ever
            raise

    @property
    def is_deciding(self) -> bool:
        """True while a copy here may own its agent."""
        return any(copy.machine.phase in DECIDED_BY_THE_LOG for copy in self.by_agent.values())

    def close(self) -> None:
        for copy in list(self.by_agent.values()):
            copy.close()

    # ---- called by copies ------------------------------------------------------------------------------------

    def closed(self, copy: Copy) -> None:
        if self.by_agent.get(copy.agent) is copy:
            del self.by_agent[copy.agent]

    def served(self, agent: str) -> None:
        self._settling.soon(agent, SETTLE_S)
