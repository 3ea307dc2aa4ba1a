"""`--watch`: a list that is looked at again and again, until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from mielin_cells.cli.show import Printer, as_json
from mielin_cells.errors import RetryError
from mielin_cells.redaction import scrubbed

EVERY_S = 1.0
CLEAR = "\x1b[H\x1b[2J\x1b[3J"


class Seen(NamedTuple):
    """A value as it is printed, and what of it must change for it to be printed again where nothing can be overwritten."""

    value: Any
    text: Callable[[], str]
    key: Any


async def watched(printer: Printer, look: Callable[[], Awaitable[Seen]]) -> int:
    """On a terminal the list stays in its place; else it is printed whenever it has changed.  Never returns."""
    in_place = sys.stdout.isatty() and not printer.as_json and os.environ.get("TERM", "dumb") != "dumb"
    last, trouble = "", ""
    while True:
        try:
            seen = await look()
            now, trouble = as_json(seen.key), ""
        except RetryError as error:
            if error.message != trouble:
                trouble = error.message
                print(f"mielin: {scrubbed(trouble)} It is looked at again.", file=sys.stderr)
        else:
            if in_place:
                print(CLEAR, end="")
            if in_place or now != last:
                printer.show(seen.value, seen.text)
                last = now
        await asyncio.sleep(EVERY_S)
