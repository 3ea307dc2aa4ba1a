"""`mielin check`: each stored agent is loaded by new code in a process of its own, and whatever that code does is named."""

from __future__ import annotations

import asyncio
import os
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.deployment.check.check import CheckReport, check_app
from mielin_cells.deployment.check.sandbox import HUNG_MAX
from mielin_cells.errors import ConfigError


class CheckedShelf(cells.Agent):
    books: int = 0
    prices: cells.Table[str, int] = cells.Table()

    @cells.handler
    async def stack(self, n: int) -> int:
        self.books += n
        self.prices[f"book {self.books}"] = n
        return self.books

    @cells.handler
    async def later(self) -> None:
        cells.after(3600, self.stack)(1)


@pytest.fixture
async def cluster() -> AsyncIterator[Client]:
    async with cells.local() as cluster:
        yield cast("Client", cluster)


APP = """
import mielin_cells as cells
{before}
class CheckedShelf(cells.Agent{options}):
    books: int = 0
    prices: cells.Table[str, {price}]

    @cells.handler
    async def {handler}(self, n: int) -> int:
        return n
    @cells.handler
    async def later(self) -> None:
        pass
{more}
"""


def app(
    folder: Path, *, options: str = "", price: str = "int", handler: str = "stack", more: str = "", before: str = ""
) -> str:
    more = textwrap.indent(textwrap.dedent(more), "    ")
    file = folder / "new.py"
    file.write_text(APP.format(options=options, price=price, handler=handler, more=more, before=before))
    return str(file)


UPGRADE = """
@cells.upgrade(from_version=1)
def newer(cls, old):
    {body}
    return old
"""


async def checked(cluster: Client, file: str, **options: Any) -> CheckReport:
    return await check_app(cluster.log, file, **options)


def whys(report: CheckReport) -> list[tuple[str, str, str]]:
    return [(one.agent, one.code, one.why) for one in report.troubles]


async def shelves(cluster: Client, count: int = 2) -> None:
    for number in range(count):
        shelf = await cluster.spawn(CheckedShelf, f"shelf-{number}")
        await shelf.stack(number + 1)


async def test_code_in_which_every_agent_loads_passes_and_agents_that_have_ended_do_not_count(
    cluster: Client, tmp_path: Path
) -> None:
    await shelves(cluster, 3)
    await cluster.terminate("shelf-2")
    report = await checked(cluster, app(tmp_path))
    assert (report.ok, report.agents, report.troubles, report.unreadable) == (True, 2, [], [])
    [one] = report.classes
    assert (one.cls, one.stored, one.version, one.rises) == ("CheckedShelf", [1], 1, False)


async def test_an_upgrade_is_run_on_the_state_of_each_agent_and_the_class_is_said_to_rise(
    cluster: Client, tmp_path: Path
) -> None:
    await shelves(cluster)
    fails_for_one = UPGRADE.format(body="assert old['books'] == 1, 'too many books'")
    report = await checked(cluster, app(tmp_path, options=", version=2", more=fails_for_one))
    [(agent, code, why)] = whys(report)
    assert (agent, code) == ("shelf-1", "StateUpgradeFailed")
    assert "too many books" in why
    [one] = report.classes
    assert (one.agents, one.fails, one.rises) == (2, 1, True)
    assert (await cluster.show("shelf-1")).version == 1  # nothing was changed


async def test_a_value_deep_in_a_table_that_no_longer_fits_is_named_though_a_node_would_load_the_agent(
    cluster: Client, tmp_path: Path
) -> None:
    await shelves(cluster, 1)
    [(agent, code, why)] = whys(await checked(cluster, app(tmp_path, price="str")))
    assert (agent, code) == ("shelf-0", "StateUnloadable")
    assert "CheckedShelf.prices['book 1']" in why


async def test_a_class_that_the_app_lacks_and_a_version_that_it_has_not_reached_are_named(
    cluster: Client, tmp_path: Path
) -> None:
    await shelves(cluster, 1)
    (tmp_path / "other.py").write_text(
        "import mielin_cells as cells\nclass CheckedOther(cells.Agent):\n    n: int = 0\n"
    )
    report = await checked(cluster, str(tmp_path / "other.py"))
    assert [(agent, code) for agent, code, _ in whys(report)] == [("shelf-0", "UnknownClass")]
    assert report.classes[0].version is None
    assert (await checked(cluster, str(tmp_path / "other.py"), only=["CheckedOther"])).ok


async def test_calls_that_wait_for_a_handler_that_is_gone_are_named(cluster: Client, tmp_path: Path) -> None:
    await shelves(cluster, 2)
    await cluster.get(CheckedShelf, "shelf-0").later()
    await cluster.suspend("shelf-1")
    await cluster.get(CheckedShelf, "shelf-1").stack.tell(7)
    report = await checked(cluster, app(tmp_path, handler="pile"))
    assert [(agent, code) for agent, code, _ in whys(report)] == [("shelf-0", "Calls"), ("shelf-1", "Calls")]
    assert "a timer calls CheckedShelf.stack" in report.troubles[0].why
    assert "a message calls CheckedShelf.stack" in report.troubles[1].why
    assert (report.classes[0].fails, report.classes[0].calls) == (0, 2)


# ---- bad apps ------------------------------------------------------------------------------------------------


async def test_an_app_that_does_not_import_is_named_with_its_line(cluster: Client, tmp_path: Path) -> None:
    file = app(tmp_path, before="import no_such_module_here")
    with pytest.raises(ConfigError, match=r"new\.py, line 3: import no_such_module_here: ModuleNotFoundError"):
        await checked(cluster, file)


async def test_an_app_that_imports_for_ever_is_ended_and_its_line_is_named(cluster: Client, tmp_path: Path) -> None:
    file = app(tmp_path, before="import time\nwhile True: time.sleep(0.01)")
    with pytest.raises(ConfigError, match=r"still being imported after 2 s: .*new\.py, line 4: while True"):
        await checked(cluster, file, import_s=2)


async def test_an_app_that_ends_the_process_is_named(cluster: Client, tmp_path: Path) -> None:
    file = app(tmp_path, before="import os, sys\nprint('going', file=sys.stderr, flush=True)\nos._exit(0)")
    with pytest.raises(ConfigError, match=r"ended the process that imported it: going"):
        await checked(cluster, file)


async def test_what_an_app_prints_does_not_matter(cluster: Client, tmp_path: Path) -> None:
    await shelves(cluster, 1)
    prints = UPGRADE.format(body="print('x' * 100_000, flush=True)")
    assert (await checked(cluster, app(tmp_path, options=", version=2", more=prints, before="print('hello')"))).ok


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ("while old['books'] == 1: pass", "Timeout", "new.py, line "),
        ("import os; old['books'] == 1 and os._exit(3)", "Died", "ended the process"),
        ("old['books'] == 1 and exit(4)", "SystemExit", "its upgrade raised SystemExit: 4"),
    ],
)
async def test_an_upgrade_that_hangs_or_ends_the_process_concerns_its_agent_alone(
    cluster: Client, tmp_path: Path, body: str, code: str, says: str
) -> None:
    await shelves(cluster, 3)
    file = app(tmp_path, options=", version=2", more=UPGRADE.format(body=body))
    [(agent, named, why)] = whys(await checked(cluster, file, agent_s=1.0))
    assert (agent, named) == ("shelf-0", code)
    assert says in why


async def test_after_a_few_agents_of_a_class_that_hang_the_others_are_not_tried(
    cluster: Client, tmp_path: Path
) -> None:
    await shelves(cluster, HUNG_MAX + 2)
    file = app(tmp_path, options=", version=2", more=UPGRADE.format(body="import os; os._exit(1)"))
    codes = sorted(code for _, code, _ in whys(await checked(cluster, file)))
    assert codes == ["Died"] * HUNG_MAX + ["NotTried"] * 2


# ---- the sandbox ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9), 1)",
        "import subprocess; subprocess.run(['true'])",
        "open({marker!r}, 'w').close()",
        "import os; os.open({marker!r}, os.O_CREAT | os.O_WRONLY)",
        "import os; os.mkdir({marker!r})",
    ],
)
async def test_an_upgrade_cannot_act_on_the_world_while_it_is_checked(
    cluster: Client, tmp_path: Path, body: str
) -> None:
    await shelves(cluster, 1)
    marker = tmp_path / "marker"
    file = app(tmp_path, options=", version=2", more=UPGRADE.format(body=body.format(marker=str(marker))))
    [(_, code, why)] = whys(await checked(cluster, file))
    assert code == "StateUpgradeFailed"
    assert "an upgrade may not do this" in why
    assert not marker.exists()


async def test_the_sandbox_does_not_know_the_deployment(
    cluster: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIELIN_URL", "nats://secret@127.0.0.1:1")
    file = app(tmp_path, before="import os\nassert not any(name.startswith('MIELIN_') for name in os.environ)")
    assert (await checked(cluster, file)).ok


async def test_nothing_of_the_sandbox_is_left_when_a_check_is_cancelled(cluster: Client, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    file = app(tmp_path, before=f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(1000)")
    checking = asyncio.create_task(checked(cluster, file))
    while not pid.exists() or not pid.read_text():
        await asyncio.sleep(0.02)
    checking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await checking
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
