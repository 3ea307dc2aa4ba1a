"""A node that is started with an older app than the last deploy has brought: its agents would not load."""

from __future__ import annotations

from collections.abc import Mapping

from mielin_cells.errors import ConfigError
from mielin_cells.policy.deploys.events import Began
from mielin_cells.store.deploys import Deploys
from mielin_cells.substrate.ports import Log


async def check_not_older(log: Log, app: str, versions: Mapping[str, int]) -> None:
    """Raises `ConfigError` if the app has an earlier version of a class than the code of the last deploy that was done.

    `versions`: those of the app.  Raises a `RetryError` while the store does not answer.
    """
    deploys = Deploys(log)
    await deploys.read()
    if deploys.done is not None and (why := why_older(deploys.done, app, versions)):
        raise ConfigError(why, field="app", range=f"the app of deploy {deploys.done.deploy}, or a newer one")


def why_older(done: Began, app: str, versions: Mapping[str, int]) -> str:
    """ "" if it is not.  A class that the app does not have says nothing: other nodes may have it."""
    older = [
        f"{cls} in version {versions[cls]}, and the deployment runs version {version}"
        for cls, version in sorted(done.versions.items())
        if versions.get(cls, version) < version
    ]
    if not older:
        return ""
    return (
        f"--app {app} is older than the code of deploy {done.deploy} ({done.app}): it has {'; '.join(older)}. "
        "Agents that the newer code has taken would not load. Nothing was started. "
        f"Start it with --app {done.app} or a newer app; to go back on purpose, use `mielin deploy --app {app}`, "
        "which checks first whether the agents load."
    )
