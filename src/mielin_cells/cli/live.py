"""A table that stays at the bottom of a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mielin_cells.cli.show import Printer

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table


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
