"""How a command prints its values: as JSON, one value a line, or as text."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from rich.cells import cell_len

from mielin_cells.errors import CellError
from mielin_cells.redaction import scrubbed

WORD = re.compile(r"[\w.:/+-]+")


class Printer:
    """Prints each value of a command, in order.  The text of a value is made only if it is printed."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def show(self, value: Any, text: Callable[[], str] | None = None) -> None:
        """Prints nothing for None, unless there is a text for it."""
        if self.as_json or text is not None or value is not None:
            print(as_json(value) if self.as_json else text() if text is not None else as_text(value), flush=True)

    def fail(self, error: CellError) -> None:
        """Prints an error: on standard error, with its code at the end, or with `--json` as the last line of the output."""
        if self.as_json:
            _, message, facts = error.to_wire()
            shown = {name: scrubbed(fact) if isinstance(fact, str) else fact for name, fact in facts.items()}
            self.show({"error": {"code": error.code, "message": scrubbed(message), "facts": shown}})
        else:
            print(f"mielin: {scrubbed(error.message)} [{error.code}]", file=sys.stderr)


def drop_output() -> None:
    """Drops what is written to standard output from now on, since its reader has ended."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def as_json(value: Any) -> str:
    """One line.  What JSON lacks becomes text: keys that are not text, numbers that are not finite, complex numbers."""
    plain = _json_of(msgspec.to_builtins(value, str_keys=False, enc_hook=repr))
    return msgspec.json.encode(plain).decode()


def _json_of(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return repr(value)
        case dict():
            return {k if isinstance(k, str) else repr(k): _json_of(v) for k, v in value.items()}
        case list() | tuple():
            return [_json_of(item) for item in value]
        case _:
            return value


def as_text(value: Any) -> str:
    """A list of records as a table, a record as lines of name and value, text as it is, and anything else as JSON."""
    if value is None or isinstance(value, (str, float)):
        return "" if value is None else str(value)
    if isinstance(value, (list, tuple)) and value and all(_is_record(item) and _plain(item) for item in value):
        rows = [_plain(item) for item in value]
        return table(rows, dict.fromkeys(name for row in rows for name in row))
    if _is_record(value) and (plain := _plain(value)):
        return record(plain)
    return as_json(value)


def table(rows: Sequence[dict[str, Any]], columns: Iterable[str] | None = None) -> str:
    """Aligned columns under their names, numbers to the right; nothing is cut, however narrow the terminal.

    Not by rich: it takes a minute to lay out 20,000 agents.
    """
    names = list(columns or rows[0])
    lines = [[_line(name.upper()) for name in names], *([_cell(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    right = [all(isinstance(row.get(name), (int, float)) for row in rows) for name in names]
    return "\n".join("  ".join(map(_padded, line, widths, right)).rstrip() for line in lines)


def _padded(cell: str, width: int, to_right: bool = False) -> str:
    room = " " * (width - cell_len(cell))
    return room + cell if to_right else cell + room


def record(plain: dict[str, Any]) -> str:
    """A line of name and value for each entry."""
    named = {_line(name): value for name, value in plain.items()}
    width = max(map(cell_len, named), default=0)
    return "\n".join(f"{_padded(name, width)}  {_cell(value)}".rstrip() for name, value in named.items())


def counted(count: int, noun: str) -> str:
    """ "1 agent", "2 agents"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size(count: float) -> str:
    """Bytes, in the unit that gives the shortest number."""
    if count < 1024:
        return f"{count:.0f} B"
    unit = min(3, (int(count).bit_length() - 1) // 10)
    return f"{count / 1024**unit:.1f} {'KMG'[unit - 1]}iB"


def when(at: float, now: float | None = None) -> str:
    """A moment by this machine's clock and zone, and how long ago it was; "" if it is not known."""
    if at <= 0:
        return ""
    now = time.time() if now is None else now
    ago = f"{duration(now - at)} ago" if at <= now else f"in {duration(at - now)}"
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))}, {ago}"


def clock(at: float) -> str:
    """As `when`, to the millisecond, and without how long ago."""
    if at <= 0:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) + f".{int(at * 1000) % 1000:03}"


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _is_record(value: Any) -> bool:
    return isinstance(value, (dict, msgspec.Struct)) or (
        dataclasses.is_dataclass(value) and not isinstance(value, type)
    )


def _plain(value: Any) -> dict[str, Any]:
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.asdict(value)
    if isinstance(value, dict):
        return {str(name): item for name, item in value.items()}
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return _line(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict) and value and all(_is_word(name) and _is_word(item) for name, item in value.items()):
        return " ".join(f"{name}={item}" for name, item in value.items())
    return as_json(value)


def _is_word(value: Any) -> bool:
    """It needs no quotes among other words."""
    return type(value) is int or (isinstance(value, str) and WORD.fullmatch(value) is not None)


def _line(text: str) -> str:
    """The text as it is if all of it is visible, else as a JSON string."""
    return text if text.isprintable() and text == text.strip() else json.dumps(text)
