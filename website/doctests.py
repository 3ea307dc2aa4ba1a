"""Examples of docstrings as blocks of code: Markdown would take their brackets for links, and leave them without colours."""

from __future__ import annotations

import textwrap
from typing import Any

from griffe import Extension, Object


def fenced(text: str) -> str:
    """The text with each example in a fence.  An example has no blank line, and one behind a docstring of one line is not indented."""
    parts = text.split("\n\n")
    return "\n\n".join(
        f"```pycon\n{textwrap.dedent(part).strip()}\n```" if _is_example(part) else part for part in parts
    )


def _is_example(part: str) -> bool:
    return part.lstrip().startswith(">>> ")


class Doctests(Extension):
    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
