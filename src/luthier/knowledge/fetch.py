"""Pages and files from URLs that users give: public addresses only, checked where the connection is made, and bounded.

A name is resolved once and the connection goes to the address that was checked, so that a name which changes its address in between (DNS
rebinding) gains nothing. Redirects are followed by hand and each is checked again.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore
import httpx

from luthier.core.errors import InputError, OfflineError

MOST_BYTES = 50 * 2**20
MOST_REDIRECTS = 5
TIMEOUT_S = 20.0
WHOLE_S = 120.0
PORTS = (80, 443, 8000, 8080, 8443)


@dataclass(frozen=True)
class Fetched:
    """What a URL gave: the bytes, what the server called them, and the address after redirects."""

    data: bytes
    media_type: str
    url: str


def fetch(url: str) -> Fetched:
    """Get a URL. Raises InputError for an address that is not allowed, an error of the server, and a body that is too large or too slow;
    OfflineError when the server cannot be reached."""
    deadline = time.monotonic() + WHOLE_S
    here = url
    with httpx.Client(
        transport=_Transport(),
        timeout=TIMEOUT_S,
        trust_env=False,
        follow_redirects=False,
        headers={"user-agent": "luthier"},
    ) as client:
        for _ in range(MOST_REDIRECTS + 1):
            check_url(here)
            try:
                with client.stream("GET", here) as response:
                    if response.is_redirect:
                        here = urljoin(here, response.headers.get("location", ""))
                        continue
                    if response.status_code != 200:
                        raise InputError(f"{here} answered {response.status_code} {response.reason_phrase}")
                    data = _body(response, here, deadline)
                    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
                    return Fetched(data, kind, here)
            except httpx.TimeoutException as error:
                raise InputError(f"{here} said nothing for {TIMEOUT_S:g} s") from error
            except httpx.TransportError as error:
                raise OfflineError(f"{here} cannot be reached: {error}") from error
    raise InputError(f"{url} leads to more than {MOST_REDIRECTS} other addresses")


def check_url(url: str) -> None:
    """Raise InputError unless ``url`` is http or https, without a password, on a usual port, and not an address of a private network."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"{url!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"url must begin with http:// or https://; got {url!r}")
    if parts.username or parts.password:
        raise InputError("url must not hold a user name or password")
    if port is not None and port not in PORTS:
        raise InputError(f"url's port must be one of {', '.join(map(str, PORTS))}; got {port}")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's: not loopback, private, link-local, shared, multicast or reserved."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        if found in ipaddress.ip_network("64:ff9b::/96"):  # IPv4 through NAT64
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
    return found.is_global and not found.is_multicast


class _Backend(httpcore.SyncBackend):
    """Connects to addresses that were checked."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """The first address of ``host``, if all of them are public."""
        try:
            found = {str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        except (socket.gaierror, UnicodeError) as error:
            raise httpcore.ConnectError(f"the name {host} is not known") from error
        private = sorted(address for address in found if not is_public(address))
        if private:
            raise InputError(f"{host} is {private[0]}, an address of a private network; only public ones are fetched")
        return super().connect_tcp(sorted(found)[0], port, timeout, local_address, socket_options)


class _Transport(httpx.HTTPTransport):
    def __init__(self) -> None:
        super().__init__(trust_env=False)
        context = httpx.create_ssl_context()
        self._pool = httpcore.ConnectionPool(ssl_context=context, network_backend=_Backend())


def _body(response: httpx.Response, url: str, deadline: float) -> bytes:
    stated = response.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > MOST_BYTES:
        raise InputError(f"{url} has {int(stated):,} bytes; at most {MOST_BYTES:,} are fetched")
    parts, size = [], 0
    for part in response.iter_bytes():
        size += len(part)
        if size > MOST_BYTES:
            raise InputError(f"{url} has more than {MOST_BYTES:,} bytes, which is as many as are fetched")
        if time.monotonic() > deadline:
            raise InputError(f"{url} did not end within {WHOLE_S:g} s")
        parts.append(part)
    return b"".join(parts)
