"""Names of a test's parameters, the same in each process of a parallel run."""

from __future__ import annotations

import re


def shown(value: object) -> str:
    """The value as text, without addresses, and without the order of a set, which hangs on addresses too."""
    text = f"{{{', '.join(sorted(map(str, value)))}}}" if isinstance(value, set | frozenset) else str(value)
    return re.sub(r" at 0x[0-9a-f]+", "", text)[:40]
