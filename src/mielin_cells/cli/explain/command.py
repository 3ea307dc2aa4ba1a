"""`mielin explain`: what an error means, and what to do next."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from mielin_cells.cli.command import finish
from mielin_cells.cli.explain.entries import EXITS, Entry, entry, nearest, public
from mielin_cells.cli.show import Printer, record, table
from mielin_cells.deployment.codes import DONE
from mielin_cells.errors import UsageError


def explain(
    code: Annotated[str | None, Parameter(help="An error's code, as it stands at the end of the error.")] = None,
    *,
    json: Annotated[bool, Parameter(help="Print JSON, one value a line.")] = False,
) -> int:
    """Reads nothing but this package: it needs no server."""

    def work(printer: Printer) -> int:
        known = public()
        if code is None:
            entries = [entry(cls) for cls in known.values()]
            rows = [{"code": one.code, "meaning": one.meaning.partition(". ")[0].rstrip(".")} for one in entries]
            for one in entries if printer.as_json else ():
                printer.show(one)
            if not printer.as_json:
                printer.show(rows, lambda: table(rows))
            return DONE
        wanted = code.strip("[]").lower()
        found = next((cls for name, cls in known.items() if name.lower() == wanted), None)
        if found is None:
            near = nearest(wanted)
            hint = f"did you mean {' or '.join(near)}?" if near else "`mielin explain` lists all codes."
            raise UsageError(f"No error of this package has the code {code!r}; {hint}", code=code)
        one = entry(found)
        printer.show(one, lambda: _text(one))
        return DONE

    return finish(json, work)


def _text(one: Entry) -> str:
    name, _ = EXITS[one.exit]
    lines = {
        "error": one.code,
        "kind": one.family,
        "meaning": one.meaning,
        "facts": one.facts,
        "next": one.next,
        "exit code": f"{one.exit} ({name})",
        "retry after": "" if one.retry_after is None else f"{one.retry_after:g} s",
    }
    return record({name: text for name, text in lines.items() if text})
