"""`mielin agents --where`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import mielin_cells as cells
from mielin_cells.cli.live import View
from mielin_cells.cli.look import found_view
from mielin_cells.client.operator import Operator
from mielin_cells.errors import WhereInvalid


class Stall(cells.Agent, name="FindStall"):
    async def on_start(self) -> None:
        cells.attributes(number=int(cells.this().id[1:]), region="eu" if cells.this().id < "s5" else "us", open=True)


@pytest.fixture
async def operator() -> AsyncIterator[Operator]:
    async with cells.local(nodes=2) as cluster:
        for n in range(8):
            await cluster.spawn(Stall, f"s{n}")
        async with asyncio.timeout(60):
            while await cluster.find(Stall, where="open").count() < 8:
                await asyncio.sleep(0.01)
        yield Operator(cluster)  # type: ignore[arg-type] # it is one


async def test_agents_are_listed_by_a_condition_in_pages(operator: Operator) -> None:
    where = 'region == "eu" and number > 0'

    async def shown(where: str, after: str = "", limit: int | None = None, **filters: str) -> View:
        search = operator.client.find_named(filters.get("cls"), where, filters.get("node"), filters.get("state"))
        return await found_view(search, after, limit, count="count" in filters)

    view = await shown(where)
    assert [(one["id"], one["cls"], one["attributes"]) for one in view.value] == [
        (f"s{n}", "FindStall", {"number": n, "open": True, "region": "eu"}) for n in range(1, 5)
    ]
    text = (await shown(where, limit=2)).text()
    assert 'number=1 open=true region="eu"' in text
    assert text.splitlines()[-1] == "more: --after s2"
    text = (await shown(where, "s2", 2)).text()
    assert "more" not in text
    assert "s4" in text
    assert (await shown("not open")).text() == "no agents"
    assert (await shown("open", count="yes", cls="FindStall", state="running")).text() == "8"


async def test_a_condition_that_cannot_be_read_is_refused_before_anything_is_asked(operator: Operator) -> None:
    with pytest.raises(WhereInvalid, match=r"column 11(.|\n)*\^"):
        operator.client.find_named(None, "region == eu and number < 3", None, None)
