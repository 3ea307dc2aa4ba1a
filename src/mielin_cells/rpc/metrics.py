"""The request for a node's metrics."""

from __future__ import annotations

from typing import TypeAlias

from mielin_cells.metrics.families import Sample
from mielin_cells.rpc.request import Request


class ReadMetrics(Request[list[Sample]], frozen=True):
    """What does the node's monitoring say now?"""


MetricsRequest: TypeAlias = ReadMetrics
