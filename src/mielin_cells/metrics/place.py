"""Where a node's metrics can be read."""

from __future__ import annotations

from mielin_cells.errors import ConfigError

WANTED = "HOST:PORT, as 127.0.0.1:9464 or [::]:9464"


class Place:
    """HOST:PORT.  Port 0 is any port that is free.  Raises `ConfigError` for a text that names no place."""

    def __init__(self, text: str) -> None:
        host, _, port = text.rpartition(":")
        is_port = port.isascii() and port.isdigit() and int(port) <= 65535
        is_host = host.startswith("[") == host.endswith("]") == (":" in host)
        if not (host.strip("[]") and is_host and is_port):
            raise ConfigError(
                f"metrics = {text!r} is no place to listen at; wanted: {WANTED}.", field="metrics", range=WANTED
            )
        self.host, self.port = host.strip("[]"), int(port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def after(self, others: int) -> Place:
        """The place for a node that has so many others before it here: so many ports further."""
        return Place(f"{str(self).rpartition(':')[0]}:{self.port + others if self.port else 0}")
