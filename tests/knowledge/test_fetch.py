"""The guarded client: a server of the test's own stands behind public names; where connections go is watched."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpcore
import pytest

from luthier.core.errors import InputError, OfflineError
from luthier.knowledge import fetch as module
from luthier.knowledge.fetch import addresses, check_url, fetch, is_public

PUBLIC = "93.184.216.34"
Answer = Callable[[BaseHTTPRequestHandler], None]


class Web:
    """Names with their addresses, one server behind all of them, and where was connected to."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.names: dict[str, list[list[str]]] = {"docs.example": [[PUBLIC]]}
        self.connected: list[str] = []
        self.ended = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                try:
                    web.answers[self.path](self)
                except (BrokenPipeError, ConnectionResetError):
                    web.ended.set()

            def log_message(self, *_: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """A client that hangs up is what is tested."""

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def resolve(self, host: str, port: int) -> list[str]:
        """The name's addresses: the next of its list, the last one for ever."""
        if host not in self.names:
            return addresses(host, port)
        listed = self.names[host]
        return listed.pop(0) if len(listed) > 1 else listed[0]

    def get(self, url: str, **options: Any) -> module.Fetched:
        return fetch(url, resolve=self.resolve, network=self._network(), **options)

    def _network(self) -> httpcore.NetworkBackend:
        web = self

        class ToServer(httpcore.SyncBackend):
            def connect_tcp(self, host: str, port: int, *rest: Any, **options: Any) -> httpcore.NetworkStream:
                web.connected.append(host)
                if host.startswith("203.0.113."):
                    raise httpcore.ConnectError("no route")
                return super().connect_tcp("127.0.0.1", web.server.server_address[1], *rest, **options)

        return ToServer()


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()
    yield made
    made.ended.set()
    made.server.shutdown()
    made.server.server_close()


def says(body: bytes, status: int = 200, **headers: str) -> Answer:
    """An answer with these headers (``content_type`` for ``content-type``)."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"content_length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def test_a_page_with_its_type_and_address(web: Web) -> None:
    web.answers = {
        "/a": says(b"", 302, location="/b"),
        "/b": says("琴弓".encode(), content_type="Text/HTML; charset=utf-8"),
    }
    found = web.get("http://docs.example/a")
    assert (found.data.decode(), found.media_type, found.url) == ("琴弓", "text/html", "http://docs.example/b")
    assert set(web.connected) == {PUBLIC}


def test_packed_pages(web: Web) -> None:
    web.answers = {
        "/": says(gzip.compress(b"text" * 1000), content_encoding="gzip"),
        "/x": says(b"text", content_encoding="br"),
    }
    assert web.get("http://docs.example/").data == b"text" * 1000
    with pytest.raises(InputError, match="packed as 'br'"):
        web.get("http://docs.example/x")
    web.answers["/"] = says(b"no gzip at all", content_encoding="gzip")
    with pytest.raises(InputError, match="damaged"):
        web.get("http://docs.example/")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "0",
        "2130706433", "0x7f000001", "0177.0.0.1", "0xa9.254.0xa9.254", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:a9fe:a9fe]",
        "[fe80::1]", "[fc00::1]", "[fec0::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::127.0.0.1]", "localhost",
    ],
)  # fmt: skip
def test_private_addresses_in_any_spelling(web: Web, host: str) -> None:
    with pytest.raises(InputError, match=r"an address of a private network|is not a URL"):
        web.get(f"http://{host}/latest/meta-data/")
    assert web.connected == []


@pytest.mark.parametrize(
    "address", [PUBLIC, "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::808:808", "::ffff:8.8.8.8"]
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "224.0.0.1",
        "255.255.255.255",
        "240.0.0.1",
        "198.18.0.1",
        "192.0.2.1",
        "ff02::1",
        "2001:db8::1",
        "2001:0:4136:e378:8000:63bf:80ff:fffe",
    ],
)
def test_addresses_of_nobody(address: str) -> None:
    assert not is_public(address)


def test_names_that_lead_to_private_addresses(web: Web) -> None:
    web.names["inside.example"] = [["10.1.2.3"]]
    web.names["both.example"] = [[PUBLIC, "127.0.0.1"]]
    for name in ("inside.example", "both.example"):
        with pytest.raises(InputError, match=name):
            web.get(f"http://{name}/")
    assert web.connected == []


def test_a_name_that_changes_its_address_gains_nothing(web: Web) -> None:
    web.names["turning.example"] = [[PUBLIC], ["127.0.0.1"]]
    web.answers = {"/": says(b"fine"), "/again": says(b"", 302, location="http://turning.example/")}
    assert web.get("http://turning.example/").data == b"fine"
    assert web.connected == [PUBLIC]  # it was resolved once; the connection went to the address that was checked
    with pytest.raises(InputError, match=r"turning\.example is 127\.0\.0\.1"):
        web.get("http://turning.example/again")


@pytest.mark.parametrize(
    "place",
    ["http://127.0.0.1/", "http://[::1]/", "http://169.254.169.254/latest", "file:///etc/passwd", "ftp://docs.example/a",
     "gopher://docs.example/", "http://docs.example:22/", "http://user:word@docs.example/", "//10.0.0.1/x", "http://[oops/"],
)  # fmt: skip
def test_redirects_are_checked_again(web: Web, place: str) -> None:
    web.answers = {"/": says(b"", 301, location=place)}
    with pytest.raises(InputError):
        web.get("http://docs.example/")
    assert web.connected == [PUBLIC]


def test_redirects_end(web: Web) -> None:
    web.answers = {"/": says(b"", 307, location="/"), "/none": says(b"", 302)}
    with pytest.raises(InputError, match="leads to more than 5 other addresses"):
        web.get("http://docs.example/")
    with pytest.raises(InputError, match="answered 302"):
        web.get("http://docs.example/none")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "must begin with http"), ("ftp://docs.example/", "must begin with http"), ("docs.example", "must begin with http"),
        ("javascript:alert(1)", "must begin with http"), ("http://", "must begin with http"), ("http://ana:word@docs.example/", "user name or password"),
        ("http://@127.0.0.1/", "user name or password"), ("http://docs.example:22/", "port must be one of 80"), ("http://docs.example:99999/", "not a URL"),
        ("http://[::1/", "not a URL"),
    ],
)  # fmt: skip
def test_urls_that_are_never_fetched(url: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as raised:
        check_url(url)
    assert "word" not in str(raised.value) or "password" in str(raised.value)


def test_bodies_are_bounded(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 100_000)

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not web.ended.is_set():
            handler.wfile.write(b"x" * 10_000)

    bomb = gzip.compress(bytes(50 * 2**20))
    web.answers = {
        "/stated": says(b"", content_length="999999999"), "/endless": endless,
        "/bomb": says(bomb, content_encoding="gzip"),
        "/layers": says(gzip.compress(bomb), content_encoding="gzip, gzip"),
    }  # fmt: skip
    with pytest.raises(InputError, match="has 999,999,999 bytes; at most 100,000"):
        web.get("http://docs.example/stated")
    for path in ("/endless", "/bomb"):
        with pytest.raises(InputError, match="more than 100,000 bytes"):
            web.get(f"http://docs.example{path}")
    with pytest.raises(InputError, match="packed as 'gzip, gzip'"):
        web.get("http://docs.example/layers")


@pytest.mark.parametrize("part", ["head", "body"])
def test_the_whole_time_is_bounded(web: Web, part: str) -> None:
    def drips(handler: BaseHTTPRequestHandler) -> None:
        if part == "body":
            handler.send_response(200)
            handler.end_headers()
        else:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
        while not web.ended.wait(0.02):  # never silent for long, never done
            handler.wfile.write(b"x")

    web.answers = {"/": drips}
    with pytest.raises(InputError, match=r"did not end within 0\.3 s"):
        web.get("http://docs.example/", whole_s=0.3)


def test_errors_of_servers_and_of_the_way_to_them(web: Web) -> None:
    web.answers = {"/": says(b"no such page", 404)}
    with pytest.raises(InputError, match=r"docs\.example/ answered 404"):
        web.get("http://docs.example/")
    web.names["away.example"] = [["203.0.113.7"]]
    with pytest.raises(InputError, match="private"):  # a range for examples in texts
        web.get("http://away.example/")
    web.names["nobody.example"] = [[]]
    with pytest.raises(OfflineError, match=r"nobody\.example has no address"):
        web.get("http://nobody.example/")


def test_the_next_address_is_tried(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_public", lambda address: True)
    web.names["two.example"] = [["203.0.113.7", PUBLIC]]
    web.answers = {"/": says(b"fine")}
    assert web.get("http://two.example/").data == b"fine"
    assert web.connected == ["203.0.113.7", PUBLIC]


def test_what_the_server_calls_it_does_not_decide(web: Web) -> None:
    from luthier.knowledge.parse import parse_bytes

    web.answers = {"/a": says(b"<html><body><h1>Bow</h1></body></html>", content_type="application/pdf")}
    found = web.get("http://docs.example/a")
    assert parse_bytes(found.data, found.url, media_type=found.media_type).meta["parser"] == "html"
