"""The endpoint for metrics by itself: what it answers before the node is there, to wrong requests, and when its loop has ended."""

from __future__ import annotations

import asyncio
import logging
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from mielin_cells.deployment.metrics import Endpoint
from mielin_cells.errors import ConfigError
from mielin_cells.metrics.families import Sample
from mielin_cells.metrics.place import Place


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint(Place("127.0.0.1:0"))
    yield made
    made.stop()


async def measured() -> list[Sample]:
    return [Sample("mielin_node_up", 1)]


def get(url: str, method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(url, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_node_that_waits_for_its_server_says_so(endpoint: Endpoint) -> None:
    assert get(endpoint.url) == (503, "The node waits for its server.\n")


async def test_only_get_of_the_metrics_is_answered(endpoint: Endpoint) -> None:
    endpoint.serve("n", measured)
    assert (await asyncio.to_thread(get, endpoint.url))[0] == 200
    assert await asyncio.to_thread(get, endpoint.url, "POST") == (405, "Only GET is answered.\n")
    assert await asyncio.to_thread(get, f"{endpoint.url}/x") == (404, "The metrics are at /metrics.\n")


def test_a_loop_that_has_ended_is_no_answer(endpoint: Endpoint) -> None:
    async def serve() -> None:
        endpoint.serve("n", measured)

    asyncio.run(serve())
    assert get(endpoint.url)[0] == 503


async def test_a_scraper_that_goes_away_is_not_logged_and_the_next_one_is_answered(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    endpoint.serve("n", measured)
    host, port = endpoint.url.removeprefix("http://").removesuffix("/metrics").split(":")
    for said in (b"", b"GET /metr", b"GET /metrics HTTP/1.0\r\n\r\n"):
        with socket.create_connection((host, int(port))) as gone:
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # a reset
            gone.sendall(said)
    with caplog.at_level(logging.INFO):
        assert (await asyncio.to_thread(get, endpoint.url))[0] == 200
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_a_port_is_free_again_behind_the_end() -> None:
    first = Endpoint(place := Place("127.0.0.1:0"))
    with pytest.raises(ConfigError, match=f"Metrics cannot be served at {place}: Address already in use"):
        Endpoint(Place(str(place)))
    first.stop()
    Endpoint(Place(str(place))).stop()


@pytest.mark.parametrize("text", ["no-such-host.invalid:9464", "192.0.2.1:9464"])
def test_a_host_that_is_not_of_this_machine_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="Metrics cannot be served at"):
        Endpoint(Place(text))
