"""Whether this node takes an agent that is offered to it: facts are gathered here, `migration.admission` decides."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mielin_cells.agents.spec import Spec
from mielin_cells.errors import FieldRefused, UnknownClass, never
from mielin_cells.migration.admission import Facts, Offer, refusals
from mielin_cells.migration.refusal import told
from mielin_cells.migration.target import TargetPhase
from mielin_cells.node.moves.target import Copy
from mielin_cells.rpc import answers, requests

if TYPE_CHECKING:
    from mielin_cells.node.node import Node

logger = logging.getLogger("mielin_cells.node")

DECIDED_BY_THE_LOG = (TargetPhase.PROBATION, TargetPhase.ACCEPTING, TargetPhase.RETURNING)
"""A copy in these phases may own the agent: no later migration takes its place."""


class Room(NamedTuple):
    """What is free for agents now; None where it is not known or not limited."""

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
                logger.warning("free storage at %s is not known, and not checked: %s", file, error)
        return Room(psutil.virtual_memory().available, storage)

    return room


def prepare(node: Node, request: requests.Prepare) -> answers.Preparation:
    """Every reason against taking the agent; none: room for it is reserved until its copy ends or expires.

    A request that is repeated meets its own reservation and changes nothing.  The next attempt of a migration takes over what the
    one before has copied here.
    """
    copy = node.copies.get(request.agent)
    if copy is not None and copy.migration == request.migration:
        return answers.Preparation([])
    spec, error = _spec(node, request.cls)
    room = node.room()
    facts = Facts(
        name=node.name,
        version=spec.version if spec is not None else None,
        upgrades_from=frozenset(spec.upgrades if spec is not None else ()),
        class_error=error,
        architecture=node.about.architecture,
        memory_bytes=room.memory_bytes,
        storage_bytes=room.storage_bytes,
        reserved_bytes=sum(other.reserved_bytes for other in node.copies.values() if other is not copy),
        state_bytes_max=node.settings.state_bytes_max,
        is_stopping=node.is_stopping,
        is_cordoned=node.is_cordoned,
        is_hosting=request.agent in node.hosts,
        verifies=copy.migration if copy is not None and copy.machine.phase in DECIDED_BY_THE_LOG else "",
    )
    offer = Offer(
        cls=request.cls,
        version=request.version,
        state_bytes=request.state_bytes,
        architectures=tuple(request.architectures),
    )
    found = [told(one) for one in refusals(offer, facts)]
    if not found and not request.is_dry:
        if spec is None:
            raise never("spec is not None does not hold")
        if copy is None or not copy.adopt(request.migration, request.epoch, request.state_bytes):
            if copy is not None:
                copy.expire()
            node.copies[request.agent] = Copy(
                node, request.agent, request.migration, spec, request.state_bytes, request.epoch
            )
    return answers.Preparation(found)


def _spec(node: Node, name: str) -> tuple[Spec | None, str]:
    """The class, if it is known and can be used; else why it cannot be, "" if it is not known."""
    try:
        return node.spec(name), ""
    except UnknownClass:
        return None, ""
    except FieldRefused as error:
        return None, error.message
