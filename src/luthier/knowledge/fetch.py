"""Pages and files from URLs that users give: public addresses only, checked where the connection is made, and bounded.

A name is resolved once and the connection goes to the address that was checked, so that a name which changes its address in between (DNS
rebinding) gains nothing. Redirects are followed by hand and each is checked again. Proxies of the environment are not used: they would
connect to addresses that nobody checked.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urljoin, urlsplit

import httpcore
import httpx

from luthier.core.errors import InputError, OfflineError

MOST_BYTES = 50 * 2**20
MOST_REDIRECTS = 5
TIMEOUT_S = 20.0
"""Of silence."""
WHOLE_S = 120.0
PORTS = (80, 443, 8000, 8080, 8443)

Resolve: TypeAlias = Callable[[str, int], list[str]]
"""The addresses of a name, best first."""


@dataclass(frozen=True)
class Fetched:
    """What a URL gave: the bytes, what the server called them, and the address after redirects."""

    data: bytes
    media_type: str
    url: str


def addresses(host: str, port: int) -> list[str]:
    """The addresses of a name, as the system resolves it. Raises OSError or UnicodeError for what is no known name."""
    return list(dict.fromkeys(str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


def fetch(
    url: str,
    *,
    whole_s: float = WHOLE_S,
    resolve: Resolve = addresses,
    network: httpcore.NetworkBackend | None = None,
) -> Fetched:
    """Get a URL within ``whole_s`` seconds. ``resolve`` and ``network`` are what names and connections are made with.

    Raises InputError for an address that is not allowed, an error of the server, and a body that is too large, too slow or packed in an
    unknown way; OfflineError when the server cannot be reached.
    """
    deadline = time.monotonic() + whole_s
    backend = _Backend(deadline, resolve, network or httpcore.SyncBackend())
    here = url
    with httpx.Client(
        transport=_Transport(backend), timeout=min(TIMEOUT_S, whole_s), trust_env=False, follow_redirects=False,
        headers={"user-agent": "luthier", "accept-encoding": "gzip, deflate"},
    ) as client:  # fmt: skip
        for _ in range(MOST_REDIRECTS + 1):
            check_url(here)
            try:
                with client.stream("GET", here) as response:
                    if response.has_redirect_location:
                        here = urljoin(here, response.headers["location"])
                        continue
                    if response.status_code != 200:
                        raise InputError(f"{here} answered {response.status_code}")
                    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
                    return Fetched(_body(response, here), kind, here)
            except httpx.TimeoutException as error:
                late = time.monotonic() >= deadline
                raise InputError(
                    f"{here} did not end within {whole_s:g} s" if late else f"{here} said nothing for {TIMEOUT_S:g} s"
                ) from error
            except (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError) as error:
                raise InputError(f"{here!r} is not a URL: {error}") from error
            except httpx.TransportError as error:
                raise OfflineError(f"{here} cannot be reached: {error}") from error
    raise InputError(f"{url} leads to more than {MOST_REDIRECTS} other addresses")


def check_url(url: str) -> None:
    """Raise InputError unless ``url`` is http or https, without a password, and on a usual port. Its address is checked on connecting."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"{url!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"url must begin with http:// or https://; got {url!r}")
    if "@" in parts.netloc:
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
        if any(found in network for network in _HOLD_IPV4):
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
        if found.is_site_local or found in _LOCAL_NAT64:
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


_HOLD_IPV4 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96"))
"""IPv4 through NAT64, and the old way to write IPv4 as IPv6."""
_LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")


class _Backend(httpcore.NetworkBackend):
    """Connects to addresses that were checked, and ends everything at ``deadline``."""

    def __init__(self, deadline: float, resolve: Resolve, network: httpcore.NetworkBackend) -> None:
        self._deadline = deadline
        self._resolve = resolve
        self._network = network

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """The first address of ``host`` that answers, if all of them are public."""
        try:
            found = self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"the name {host} is not known") from error
        private = next((address for address in found if not is_public(address)), None)
        if private is not None:
            raise InputError(f"{host} is {private}, an address of a private network; only public ones are fetched")
        failure: Exception = httpcore.ConnectError(f"the name {host} has no address")
        for address in found:
            try:
                left = _left(self._deadline, timeout)
                stream = self._network.connect_tcp(address, port, left, local_address, socket_options)
                return _Stream(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


class _Stream(httpcore.NetworkStream):
    """A connection whose silence and whole time are bounded, from its first byte on."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline, timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(self._deadline, timeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float, timeout: float | None) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the time is up")
    return left if timeout is None else min(left, timeout)


class _Transport(httpx.HTTPTransport):
    def __init__(self, backend: httpcore.NetworkBackend) -> None:
        super().__init__(trust_env=False)
        context = httpx.create_ssl_context(trust_env=False)
        self._pool = httpcore.ConnectionPool(ssl_context=context, network_backend=backend)


def _body(response: httpx.Response, url: str) -> bytes:
    stated = response.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > MOST_BYTES:
        raise InputError(f"{url} has {int(stated):,} bytes; at most {MOST_BYTES:,} are fetched")
    parts, size = [], 0
    for part in _unpacked(response, url):
        size += len(part)
        if size > MOST_BYTES:
            raise InputError(f"{url} has more than {MOST_BYTES:,} bytes, which is as many as are fetched")
        parts.append(part)
    return b"".join(parts)


def _unpacked(response: httpx.Response, url: str) -> Iterator[bytes]:
    """The body's pieces. What is packed is unpacked here, a bounded piece at a time: a packed piece can hold a thousand times its size."""
    packed = response.headers.get("content-encoding", "identity").strip().lower()
    if packed == "identity":
        yield from response.iter_raw()
        return
    if packed not in ("gzip", "x-gzip", "deflate"):
        raise InputError(f"{url} is packed as {packed!r}; gzip and deflate are read")
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)  # the head says which of both it is
    try:
        for piece in response.iter_raw():
            rest = piece
            while rest:
                yield unpack.decompress(rest, 2**20)
                rest = unpack.unconsumed_tail
    except zlib.error as error:
        raise InputError(f"{url} is packed as {packed} and damaged: {error}") from error
