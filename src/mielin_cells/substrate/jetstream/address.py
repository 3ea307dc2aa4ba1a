"""A NATS server's address and credentials, checked before anything connects."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
from typing import Any, Final
from urllib.parse import urlsplit

from mielin_cells.errors import ConfigError
from mielin_cells.redaction import redacted, split_addresses

CREDENTIALS_BYTES: Final = 64 * 1024
_DOMAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NO_SUCH_HOST: Final = frozenset((socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)))


def is_unknown_host(error: BaseException) -> bool:
    """True if there is no such host: waiting does not mend it, unlike a name server that is away."""
    return isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_HOST


def options_of(creds: str | os.PathLike[str] | None, tls_ca: str | os.PathLike[str] | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if creds is not None:
        options["user_credentials"] = _credentials(os.fspath(creds))
    if tls_ca is not None:
        try:
            options["tls"] = ssl.create_default_context(cafile=os.fspath(tls_ca))
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"tls_ca: {tls_ca} cannot be used: {error}.", field="tls_ca", range="a file") from error
    return options


def check_url(url: str, where: str = "") -> str:
    """The address of a server, or of several with commas between, with schemes in lower case.  `where` says what names the address.

    Raises `ConfigError`.  A name alone needs a scheme or a port to be an address; one behind a comma needs its scheme, since a comma
    may be in a password.
    """
    checked = ",".join(_check_one(one, where) for one in split_addresses(url))
    servers_of(checked)
    return checked


def _check_one(url: str, where: str) -> str:
    parts, is_address = urlsplit(""), False
    with contextlib.suppress(ValueError):
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        is_address = bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
        is_address = is_address and ("://" in url or parts.port is not None)
    shown = f"{where}: {redacted(url)!r}" if where else f"{redacted(url)!r}"
    if is_address and parts.scheme in ("ws", "wss"):
        what = f"{shown} is a websocket, over which this system does not speak; give the server's nats:// or tls:// address"
    elif not is_address or parts.scheme not in ("nats", "tls"):
        what = f"{shown} is no server's address; wanted: nats://HOST:PORT, or tls://HOST:PORT"
    elif parts.path not in ("", "/") or "?" in url or "#" in url:
        what = (
            f"{shown} has more than HOST:PORT; a user or password with / ? or # in it cannot stand there: use --creds"
        )
    else:
        scheme, sign, rest = url.partition("://")
        return f"{scheme.lower()}://{rest}" if sign else url
    raise ConfigError(f"{what}.", field="connect", range="nats://HOST:PORT")


def check_domain(domain: str | None) -> str | None:
    """Raises `ConfigError` for what no JetStream domain can be called."""
    if domain is not None and (type(domain) is not str or _DOMAIN.fullmatch(domain) is None):
        raise ConfigError(
            f"domain is {domain!r}; wanted: the name of a JetStream domain, letters, digits, - and _.",
            field="domain",
            range="a name",
        )
    return domain


def servers_of(url: str) -> tuple[list[str], dict[str, str]]:
    """The servers of a checked address, and the credential in it as options of the library.

    The library shows a credential that is in one server's address to that server alone, and not to others of its cluster, which it
    learns of without one.  Raises `ConfigError` if there are two of them.
    """
    servers, found = list[str](), list[dict[str, str]]()
    for one in split_addresses(url):
        parts = urlsplit(one if "://" in one else f"nats://{one}")
        servers.append(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())
        option: dict[str, str] = {}
        if parts.username is not None:
            option = {"token": parts.username}
            if parts.password is not None:
                option = {"user": parts.username, "password": parts.password}
        if option and option not in found:
            found.append(option)
    if len(found) > 1:
        raise ConfigError(
            f"{redacted(url)!r} has two credentials; servers of one cluster take the same one.",
            field="connect",
            range="one credential",
        )
    return servers, found[0] if found else {}


def _credentials(path: str) -> str:
    """The path.  Raises `ConfigError` for a file without credentials, which the library would read for ever."""
    try:
        with open(path, "rb") as file:
            text = file.read(CREDENTIALS_BYTES)
    except OSError as error:
        raise ConfigError(
            f"The credentials file {path} cannot be read: {error.strerror}.", field="creds", range="a file"
        ) from error
    if b"BEGIN NATS USER JWT" not in text or b"BEGIN USER NKEY SEED" not in text:
        raise ConfigError(
            f"{path} is not a credentials file: it has no user JWT with a seed; `nsc generate creds` makes one.",
            field="creds", range="a file",
        )  # fmt: skip
    return path
