"""Samples as Prometheus and OpenMetrics write them.  The only module that knows the library for that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from mielin_cells.metrics.families import FAMILIES, NODE, Family, Sample, bounds

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector


class Samples:
    """A collector of that library, for samples that have been taken."""

    def __init__(self, by_node: Mapping[str, Sequence[Sample]], beside: Iterable[Collector] = ()) -> None:
        """`beside`: further collectors, as that of the process."""
        self._by_node = by_node
        self._beside = beside

    def collect(self) -> Iterable[Metric]:
        yield from metrics_of(self._by_node)
        for one in self._beside:
            yield from one.collect()


def metrics_of(by_node: Mapping[str, Sequence[Sample]]) -> list[Metric]:
    """By family, the samples of all nodes.  A family that only a newer node knows is left out: nothing here says what it is."""
    found: dict[str, list[tuple[str, Sample]]] = {}
    for node, samples in by_node.items():
        for sample in samples:
            found.setdefault(sample.family, []).append((node, sample))
    return [_metric(family, found[name]) for name, family in FAMILIES.items() if name in found]


def _metric(family: Family, samples: Iterable[tuple[str, Sample]]) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    labels = (NODE, *family.labels)
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=labels)
        uppers = [*map(str, bounds()), "+Inf"]
        for node, sample in samples:
            histogram.add_metric((node, *sample.labels), list(zip(uppers, sample.buckets, strict=True)), None)
        return histogram
    plain = (CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily)(
        family.name, family.help, labels=labels
    )
    for node, sample in samples:
        plain.add_metric((node, *sample.labels), sample.value)
    return plain


def prometheus_text(by_node: Mapping[str, Sequence[Sample]]) -> str:
    """In Prometheus' text format 0.0.4, which every collector reads."""
    from prometheus_client import generate_latest

    data: bytes = generate_latest(Samples(by_node))
    return data.decode()


def exposition(
    by_node: Mapping[str, Sequence[Sample]], accept: str, beside: Iterable[Collector] = ()
) -> tuple[str, bytes]:
    """The content type and the text that a scraper with this `Accept` header is given."""
    from prometheus_client.exposition import choose_encoder

    encode: Callable[[Samples], bytes]
    content_type: str
    encode, content_type = choose_encoder(accept)
    return content_type, encode(Samples(by_node, beside))
