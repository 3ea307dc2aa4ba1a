"""Which nodes a new deploy replaces, by which others, and who starts and stops them."""

from __future__ import annotations

import time
from typing import Any

from mielin_cells.client.client import Client
from mielin_cells.errors import ConfigError, DeployRefused
from mielin_cells.membership.members import Member, Status
from mielin_cells.policy.deploys.events import Began


async def begin_at(
    client: Client, app: str, *, label: tuple[str, str] | None = None, nodes: int | None = None, **options: Any
) -> Began:
    """The event that begins a deploy.  `options`: its other fields.

    `label`: that of new nodes that somebody else has started; otherwise the fleet that has started the old nodes starts new ones.
    Raises `DeployRefused` if no node serves, `ConfigError` if nobody would start new nodes.
    """
    there = [one for one in await client.members.read_to_end() if one.status in (Status.SERVING, Status.JOINED)]
    new = sorted(one.name for one in there if label is not None and one.about.labels.get(label[0]) == label[1])
    old = [one for one in there if one.name not in new and not one.is_reserved]
    if not old:
        raise DeployRefused(
            "No node serves; start the new code with `mielin up` or `mielin node`. Nothing was done.", deploy=""
        )
    fleet = _fleet_of(old) if label is None else ""
    if label is not None and not new:
        named = "=".join(label)
        raise ConfigError(
            f"No node with the label {named} serves; start new nodes with `mielin node --reserved --label {named}`.",
            field="label", range="the label of new nodes",
        )  # fmt: skip
    name = f"d-{client.rng.randbytes(3).hex()}"
    new = new or [f"{name}-{number}" for number in range(1, (nodes or len(old)) + 1)]
    return Began(
        deploy=name, at=time.time(), app=app, old=sorted(one.name for one in old), new=new, fleet=fleet, **options
    )


def _fleet_of(old: list[Member]) -> str:
    fleets = {one.about.fleet for one in old}
    if len(fleets) != 1 or "" in fleets:
        raise ConfigError(
            "These nodes were not all started by one `mielin up`, so nobody would start new ones. Start them with `mielin node "
            "--reserved --label KEY=VALUE --app NEW`, and give `--label KEY=VALUE`. Nothing was done.",
            field="label", range="the label of new nodes",
        )  # fmt: skip
    return fleets.pop()
