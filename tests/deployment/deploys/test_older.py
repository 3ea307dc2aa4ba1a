"""A node does not start with an app that is older than what the last deploy has brought."""

from __future__ import annotations

import pytest

from mielin_cells.deployment.deploys.older import check_not_older, why_older
from mielin_cells.errors import ConfigError
from mielin_cells.policy.deploys.events import AnyEvent, Began, Drives, Moved, Opened, Passed, Retired, Served
from mielin_cells.store.deploys import Deploys
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Log


async def done(log: Log, name: str, versions: dict[str, int], *, is_done: bool = True) -> None:
    began = Began(deploy=name, app="new.py", old=["n1"], new=["n2"], stages=[100], versions=versions)
    events: list[AnyEvent] = [
        began, Drives(deploy=name, driver="x"), Served(deploy=name), Moved(deploy=name, stage=0, agents=1),
        Passed(deploy=name, stage=0), Opened(deploy=name), Retired(deploy=name),
    ]  # fmt: skip
    deploys = Deploys(log)
    for event in events if is_done else events[:3]:
        await deploys.append(event)
    assert (deploys.done is not None and deploys.done.deploy == name) == is_done


async def test_an_older_app_is_refused_with_the_class_both_versions_and_what_to_do() -> None:
    substrate = await Embedded.open()
    try:
        log = substrate.log
        await check_not_older(log, "old.py", {"Till": 1})
        await done(log, "d-1", {"Till": 2, "Other": 3})
        with pytest.raises(
            ConfigError, match=r"old.py is older .*d-1 .*Till in version 1.*version 2.*--app new.py"
        ) as raised:
            await check_not_older(log, "old.py", {"Till": 1, "More": 1})
        assert raised.value.facts["field"] == "app"
        await check_not_older(log, "new.py", {"Till": 2})
        await check_not_older(log, "part.py", {"More": 1})
        await done(log, "d-2", {"Till": 1})  # somebody has gone back: its check has found that all agents load
        await check_not_older(log, "old.py", {"Till": 1})
        await done(log, "d-3", {"Till": 5}, is_done=False)
        await check_not_older(log, "old.py", {"Till": 1})
    finally:
        await substrate.close()


def test_a_deploy_that_was_not_checked_says_nothing() -> None:
    assert why_older(Began(deploy="d", app="new.py", old=[], new=[]), "old.py", {"Till": 1}) == ""
