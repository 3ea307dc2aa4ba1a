"""What stays on a terminal and changes there: a list that is watched, and a table of what is going on."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mielin_cells.cli.show import Printer, as_json
from mielin_cells.deployment.codes import DONE
from mielin_cells.errors import RetryError
from mielin_cells.redaction import scrubbed

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

EVERY_S = 1.0
CLEAR = "\x1b[H\x1b[2J\x1b[3J"


class View(NamedTuple):
    value: Any
    text: Callable[[], str]
    key: Any
    """The view is printed again when this changes."""


async def show_view(printer: Printer, look: Callable[[], Awaitable[View]], watch: bool) -> int:
    """Prints what `look` gives: once, or again and again.  On a terminal the list stays in its place."""
    if not watch:
        view = await look()
        printer.show(view.value, view.text)
        return DONE
    in_place = sys.stdout.isatty() and not printer.as_json and os.environ.get("TERM", "dumb") != "dumb"
    last, trouble = "", ""
    while True:
        try:
            view = await look()
        except RetryError as error:
            if error.message != trouble:
                trouble = error.message
                print(f"mielin: {scrubbed(trouble)} Trying again.", file=sys.stderr)
        else:
            key, trouble = as_json(view.key), ""
            if in_place:
                print(CLEAR, end="")
            if in_place or key != last:
                printer.show(view.value, view.text)
                last = key
        await asyncio.sleep(EVERY_S)


def open_live(printer: Printer, *, transient: bool) -> Live | None:
    """None without a terminal, and with `--json`.  A transient table disappears at the end."""
    if not sys.stdout.isatty() or printer.as_json:
        return None
    from rich.live import Live

    live = Live(auto_refresh=False, transient=transient)
    live.start()
    return live


def live_table(title: str, columns: Sequence[str], numbers: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    """The columns named in `numbers` are aligned to the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))
    return table
