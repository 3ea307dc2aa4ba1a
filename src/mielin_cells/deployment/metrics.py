"""The endpoint from which Prometheus reads a node's metrics, on threads of its own.

A scrape asks the node's loop once.  If the loop does not answer, the scraper gets status 503, and Prometheus counts the node as down.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from mielin_cells.errors import ConfigError
from mielin_cells.metrics.families import Sample
from mielin_cells.metrics.place import Place

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

logger = logging.getLogger("mielin_cells.metrics")

SCRAPE_S = 5.0
"""How long the node's loop may take to answer: scrapers wait for 10 s."""

SILENT_S = 10.0
"""A client that connects and asks nothing is dropped after this."""

PATH = "/metrics"

Read: TypeAlias = Callable[[], Coroutine[Any, Any, list[Sample]]]


class Endpoint:
    """Listens once it is made.  `serve` gives it what it answers with, and `stop` ends it."""

    def __init__(self, place: Place) -> None:
        """Raises `ConfigError` if nothing can listen there, as when another process does."""
        family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
        try:
            self._server = type("Server", (_Server,), {"address_family": family})((place.host, place.port), _Quiet)
        except OSError as error:
            raise ConfigError(
                f"Metrics cannot be served at {place}: {error.strerror}. The node was not started. Name another place with "
                "--metrics, or with `metrics` in [node] of mielin.toml, or end what listens there.",
                field="metrics", range="a place that is free",
            ) from error  # fmt: skip
        place.port = self._server.server_port
        self.url = f"http://{place}{PATH}"
        self._server.set_app(_unready)
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def serve(self, node: str, read: Read) -> None:
        """Answers from now on.  `read` is run on the loop that this is called on."""
        self._server.set_app(_App(node, read, asyncio.get_running_loop()).answer)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Without the base's look for the host's full name, which may wait for a name server."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):  # a scraper that has gone scrapes again
            logger.error("a scrape of the metrics failed: %r", error, exc_info=error)


class _Quiet(WSGIRequestHandler):
    timeout = SILENT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not logged."""


class _App:
    def __init__(self, node: str, read: Read, loop: asyncio.AbstractEventLoop) -> None:
        from prometheus_client import CollectorRegistry, ProcessCollector

        self._node = node
        self._read = read
        self._loop = loop
        self._process = ProcessCollector(registry=CollectorRegistry())
        self._lock = threading.Lock()
        """Held by the scrape that asks the loop."""

    def answer(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != PATH:
            return _say(start, "404 Not Found", f"The metrics are at {PATH}.\n")
        if environ["REQUEST_METHOD"] != "GET":
            return _say(start, "405 Method Not Allowed", "Only GET is answered.\n")
        samples = self._ask()
        if samples is None:
            return _say(start, "503 Service Unavailable", f"Node {self._node} did not answer within {SCRAPE_S:g} s.\n")
        from mielin_cells.metrics.text import exposition

        content_type, text = exposition({self._node: samples}, environ.get("HTTP_ACCEPT", ""), [self._process])
        start("200 OK", [("Content-Type", content_type), ("Content-Length", str(len(text)))])
        return [text]

    def _ask(self) -> list[Sample] | None:
        """None if the loop does not answer, or has ended."""
        if not self._lock.acquire(timeout=SCRAPE_S):
            return None
        try:
            reading = self._read()
            try:
                asked = asyncio.run_coroutine_threadsafe(reading, self._loop)
            except RuntimeError:  # it is closed
                reading.close()
                return None
            try:
                return asked.result(SCRAPE_S)
            except (TimeoutError, concurrent.futures.CancelledError):
                asked.cancel()
                return None
        finally:
            self._lock.release()


def _unready(_: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    return _say(start, "503 Service Unavailable", "The node waits for its server.\n")


def _say(start: StartResponse, status: str, text: str) -> Iterable[bytes]:
    start(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(text)))])
    return [text.encode()]
