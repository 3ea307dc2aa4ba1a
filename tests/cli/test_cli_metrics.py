"""Metrics of real processes: `--metrics` of `mielin up` and `mielin node`, `mielin metrics`, and a port that is taken."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain
from support.nats_servers import free_neighbours
from support.processes import Deployment, deployment, wait_for

READ: Callable[[str], Iterable[Any]] = openmetrics


@pytest.fixture(scope="module")
def first() -> int:
    return free_neighbours()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, first: int) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("metrics"), 2, "--metrics", f"127.0.0.1:{first}") as running:
        yield running


def scrape(url: str, accept: str = "") -> tuple[int, str, str]:
    request = urllib.request.Request(url, headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def test_each_node_serves_its_metrics_and_says_where(up: Deployment, first: int) -> None:
    urls = {event["node"]: event["metrics"] for event in up.events() if event.get("state") == "serving"}
    assert urls == {f"node-{n}": f"http://127.0.0.1:{first + n - 1}/metrics" for n in (1, 2)}
    for node, url in urls.items():
        status, content_type, text = scrape(url, "application/openmetrics-text; version=1.0.0")
        assert status == 200
        assert content_type.startswith("application/openmetrics-text")
        found = {family.name: family for family in READ(text)}
        assert found["mielin_node_up"].samples[0].labels == {"node": node}
        assert found["process_resident_memory_bytes"].samples[0].value > 1e6
    assert scrape(urls["node-1"].removesuffix("metrics"))[0] == 404


def test_the_command_prints_those_of_all_nodes_once(up: Deployment) -> None:
    up.value("spawn", "Counter", "measured", "--on", "node-1")
    up.value("ask", "measured", "add")
    lines = [line for family in plain(up.run("metrics").stdout) for line in family.samples]
    agents = {line.labels["node"]: line.value for line in lines if line.name == "mielin_agents"}
    assert agents == {"node-1": 1.0}
    assert {line.labels["node"] for line in lines if line.name == "mielin_node_up"} == {"node-1", "node-2"}
    as_json = up.value("metrics")
    assert {"metric": "mielin_node_up", "labels": {"node": "node-2"}, "value": 1.0} in as_json
    [turns] = [one for one in as_json if one["metric"] == "mielin_turn_duration_seconds_bucket"]
    assert turns["buckets"]["+Inf"] >= 1


def test_a_node_whose_loop_stands_still_is_told_from_one_that_is_well(up: Deployment, first: int) -> None:
    up.value("spawn", "Counter", "holding", "--on", "node-2")
    marker = up.folder / "held"
    up.value("tell", "holding", "hold", str(marker), "8")
    wait_for(marker.exists, "the handler that holds the loop")
    status, _, said = scrape(f"http://127.0.0.1:{first + 1}/metrics")
    assert (status, said) == (503, "Node node-2 did not answer within 5 s.\n")
    assert scrape(f"http://127.0.0.1:{first}/metrics")[0] == 200
    assert {"metric": "mielin_node_up", "labels": {"node": "node-1"}, "value": 1.0} in up.value("metrics")


def test_a_node_that_does_not_answer_is_not_up(up: Deployment) -> None:
    wait_for(lambda: len({one["labels"]["node"] for one in up.value("metrics")}) == 2, "both nodes")
    stopped = up.process_of("node-2")
    stopped.send_signal(signal.SIGSTOP)
    try:
        said = [one for one in up.value("metrics") if one["labels"]["node"] == "node-2"]
        assert said == [{"metric": "mielin_node_up", "labels": {"node": "node-2"}, "value": 0.0}]
    finally:
        stopped.send_signal(signal.SIGCONT)


def test_a_port_that_is_taken_is_named_and_the_node_does_not_start(up: Deployment, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        place = f"127.0.0.1:{other.getsockname()[1]}"
        node = up.start("node", "--name", "late", "--app", "app.py", "--metrics", place)
        node.must_end(2)
        said = "\n".join(node.err.all())
    assert f"Metrics cannot be served at {place}: Address already in use. The node was not started." in said
    assert said.rstrip().endswith("[ConfigError]")
    assert "late" not in {node["name"] for node in up.value("nodes")}


def test_a_node_without_metrics_does_not_load_what_serves_them() -> None:
    program = (
        "import sys, mielin_cells, mielin_cells.cli.app, mielin_cells.deployment.process, mielin_cells.deployment.fleet\n"
        "print(*{name.partition('.')[0] for name in sys.modules} & {'prometheus_client', 'wsgiref'})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
