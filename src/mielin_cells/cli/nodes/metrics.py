"""`mielin metrics`: the metrics of all nodes, once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mielin_cells.cli.command import command
from mielin_cells.cli.show import Printer
from mielin_cells.client.operator import Operator
from mielin_cells.client.status import read_metrics
from mielin_cells.deployment.codes import DONE
from mielin_cells.metrics.families import FAMILIES, NODE, Sample, bounds
from mielin_cells.metrics.text import prometheus_text


@command
async def metrics(operator: Operator, printer: Printer, /) -> int:
    found = await read_metrics(operator.client)
    printer.show(list(plain(found)), lambda: prometheus_text(found).rstrip("\n"))
    return DONE


def plain(by_node: Mapping[str, Sequence[Sample]]) -> Iterator[dict[str, Any]]:
    """As JSON has them.  The buckets of a histogram are by their upper bounds."""
    for node, samples in by_node.items():
        for sample in samples:
            family = FAMILIES.get(sample.family)
            if family is None:  # of a newer node
                continue
            labels = {NODE: node, **dict(zip(family.labels, sample.labels, strict=True))}
            if family.kind == "histogram":
                uppers = [*map(str, bounds()), "+Inf"]
                yield {
                    "metric": family.shown,
                    "labels": labels,
                    "buckets": dict(zip(uppers, sample.buckets, strict=True)),
                }
            else:
                yield {"metric": family.shown, "labels": labels, "value": sample.value}
