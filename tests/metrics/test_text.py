"""Samples as text: a parser of each of the two formats reads back what was measured."""

from __future__ import annotations

import re

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain
from prometheus_client.samples import Sample as Line

from mielin_cells.errors import ConfigError
from mielin_cells.metrics.families import FAMILIES, NODE, SHOWN, Family, Sample, bounds
from mielin_cells.metrics.place import Place
from mielin_cells.metrics.text import exposition, prometheus_text

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
TAKEN = {
    'node "one"': [
        Sample("mielin_agents", 3, ('A\n"b"', "Running")),
        Sample("mielin_turns", 7, ("A\\b",)),
        Sample("mielin_turn_duration_seconds", 0.0, ("A",), tuple(range(len(SHOWN) + 1))),
    ],
    "two": [Sample("mielin_agents", 0, ("C", "Error")), Sample("mielin_of_a_newer_node", 1)],
}


def lines(text: str, parse: object) -> list[Line]:
    assert callable(parse)
    return [line for family in parse(text) for line in family.samples]


@pytest.mark.parametrize(
    ("accept", "parse"), [(OPENMETRICS, openmetrics), ("", plain), ("text/plain; version=0.0.4", plain)]
)
def test_what_is_measured_is_read_back_in_each_format(accept: str, parse: object) -> None:
    content_type, data = exposition(TAKEN, accept)
    assert content_type.startswith("application/openmetrics-text" if accept == OPENMETRICS else "text/plain")
    read = lines(data.decode(), parse)
    assert [(one.labels, one.value) for one in read if one.name == "mielin_agents"] == [
        ({NODE: 'node "one"', "class": 'A\n"b"', "state": "Running"}, 3.0),
        ({NODE: "two", "class": "C", "state": "Error"}, 0.0),
    ]
    assert [(one.labels, one.value) for one in read if one.name == "mielin_turns_total"] == [
        ({NODE: 'node "one"', "class": "A\\b"}, 7.0)
    ]
    buckets = [one for one in read if one.name == "mielin_turn_duration_seconds_bucket"]
    assert [float(one.labels["le"]) for one in buckets] == [*bounds(), float("inf")]
    assert [one.value for one in buckets] == [float(n) for n in range(len(SHOWN) + 1)]


def test_what_only_a_newer_node_knows_is_left_out() -> None:
    assert "newer" not in prometheus_text(TAKEN)


def test_a_family_is_in_one_piece_whichever_nodes_have_it() -> None:
    heads = re.findall(r"^# TYPE (\S+)", prometheus_text(TAKEN), re.MULTILINE)
    assert len(heads) == len(set(heads)) == 3


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_names_follow_the_conventions_of_prometheus(family: Family) -> None:
    assert re.fullmatch(r"mielin_[a-z]+(_[a-z]+)*", family.name)
    assert not family.name.endswith(("_total", "_count", "_sum", "_bucket"))
    assert NODE not in family.labels
    assert len(set(family.labels)) == len(family.labels)
    assert family.help.endswith(".")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:9464", "127.0.0.1", 9464), ("[::1]:9464", "::1", 9464), ("metrics.example:0", "metrics.example", 0)],
)
def test_a_place_is_host_and_port(text: str, host: str, port: int) -> None:
    place = Place(text)
    assert (place.host, place.port, str(place)) == (host, port, text)
    assert str(place.after(2)) == str(place).replace("9464", "9466")


@pytest.mark.parametrize(
    "text", ["", "9464", ":9464", "host", "host:", "host:http", "host:65536", "::1:9464", "[::1]", "[]:1", "[a]:1"]
)
def test_a_text_that_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no place to listen at; wanted: HOST:PORT"):
        Place(text)


def test_a_port_behind_the_last_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="65536"):
        Place("127.0.0.1:65535").after(1)
