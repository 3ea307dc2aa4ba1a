"""The one way by which a command's values reach the terminal: as JSON, a line each, or as text."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from mielin_cells.errors import CellError


class Printer:
    """`show` is called with each value of a command, in order; text is made only where text is wanted."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def show(self, value: Any, text: Callable[[], str] | None = None) -> None:
        out = as_json(value) if self.as_json else text() if text is not None else as_text(value)
        if out:
            print(out, flush=True)

    def fail(self, error: CellError) -> None:
        """With `--json` the error is the last line of the output."""
        if self.as_json:
            _, message, facts = error.to_wire()
            self.show({"error": {"code": error.code, "message": message, "facts": facts}})
        else:
            print(f"mielin: {error.message}", file=sys.stderr)


def as_json(value: Any) -> str:
    try:
        return msgspec.json.encode(value, enc_hook=repr).decode()
    except TypeError:  # a key that JSON does not have
        return msgspec.json.encode(_with_text_keys(value), enc_hook=repr).decode()


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {k if isinstance(k, str) else repr(k): _with_text_keys(v) for k, v in value.items()}
    return [_with_text_keys(item) for item in value] if isinstance(value, (list, tuple)) else value


def as_text(value: Any) -> str:
    """Lists as tables, records as lines of name and value, text as it is, anything else as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and value and all(_is_record(item) for item in value):
        return table([_plain(item) for item in value])
    if _is_record(value):
        return record(_plain(value))
    return as_json(value)


def table(rows: Sequence[dict[str, Any]], columns: Iterable[str] | None = None) -> str:
    """Aligned columns under their names; numbers to the right."""
    names = list(columns or rows[0])
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    right = [all(isinstance(row.get(name), (int, float)) for row in rows) for name in names]
    lines = [[name.upper() for name in names], *cells]
    return "\n".join(
        "  ".join(cell.rjust(width) if to_right else cell.ljust(width)
                  for cell, width, to_right in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    )  # fmt: skip


def record(plain: dict[str, Any]) -> str:
    width = max((len(name) for name in plain), default=0)
    return "\n".join(f"{name:<{width}}  {_cell(value)}".rstrip() for name, value in plain.items())


def size(count: float) -> str:
    """Bytes in the unit that people would say."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


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
    if value is None:
        return ""
    if isinstance(value, str):
        return value.replace("\n", " ")
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, dict) and all(isinstance(item, (str, int)) for item in value.values()):
        return " ".join(f"{name}={item}" for name, item in value.items())
    return as_json(value)
