"""The Qdrant index: what goes to the server, and what happens without one."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.knowledge.indexes.conftest import WIDTH, row

from luthier.core import catalog
from luthier.core.errors import InputError, MissingExtraError, StoreError
from luthier.knowledge.indexes._words import words
from luthier.knowledge.indexes.qdrant import Config
from luthier.knowledge.indexes.qdrant import open as open_qdrant

Request = tuple[str, str, dict[str, str], Any]


@pytest.fixture
def server() -> Iterator[tuple[str, list[Request], dict[str, int]]]:
    """Its address, what it was asked, and the status that it answers paths with (200 where nothing is said)."""
    asked: list[Request] = []
    status: dict[str, int] = {}

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.split("?")[0]
            asked.append((self.command, path, dict(self.headers), json.loads(body) if body else None))
            result: Any = True
            if path.endswith("/exists"):
                result = {"exists": any(each[0] == "PUT" for each in asked)}
            elif self.command == "GET":
                result = {
                    "status": "green", "optimizer_status": "ok", "segments_count": 1, "payload_schema": {}, "indexed_vectors_count": 7,
                    "config": {
                        "params": {"vectors": {"vector": {"size": WIDTH, "distance": "Cosine"}}},
                        "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
                        "optimizer_config": {"deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "default_segment_number": 0, "flush_interval_sec": 5},
                    },
                }  # fmt: skip
            elif "/points" in path or "/index" in path:
                result = {"operation_id": 1, "status": "completed"}
            code = next((code for end, code in status.items() if path.endswith(end)), 200)
            sent = json.dumps({"result": result, "status": "ok", "time": 0.1}).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    running = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}", asked, status
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_the_server_is_told_the_metric_the_graph_and_the_key(
    server: tuple[str, list[Request], dict[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked, _ = server
    monkeypatch.setenv("MY_KEY", "s3cret")
    config = Config(url=url, api_key_env="MY_KEY", metric="hamming", m=24, ef_construction=200)
    index = open_qdrant(tmp_path / "base" / "index", WIDTH, config)
    index.add([row(1, "中文 words", labels=("hr",), meta={"year": 2026})])
    assert index.approximate() == 7
    index.close()
    assert {headers["api-key"] for _, _, headers, _ in asked} == {"s3cret"}
    made = next(body for verb, path, _, body in asked if verb == "PUT" and path.count("/") == 2)
    assert made["vectors"]["vector"] == {"size": WIDTH, "distance": "Manhattan", "datatype": "uint8", "on_disk": False}
    assert made["hnsw_config"] == {"m": 24, "ef_construct": 200}
    assert made["sparse_vectors"] == {"words": {"modifier": "idf"}}
    fields = {body["field_name"] for _, path, _, body in asked if path.endswith("/index")}
    assert fields == {"document", "source", "labels", "tags", "date", "number"}
    point = next(body for _, path, _, body in asked if path.endswith("/points"))["points"][0]
    assert set(point["vector"]["vector"]) <= {0.0, 1.0} and len(point["vector"]["words"]["indices"]) == 4
    assert point["payload"]["labels"] == ["=hr"] and point["payload"]["tags"] == ["year=2026"]
    open_qdrant(tmp_path / "base" / "index", WIDTH, config).drop()
    created, dropped = (next(p for v, p, _, _ in asked if v == verb) for verb in ("PUT", "DELETE"))
    assert created == dropped and created.startswith("/collections/luthier-base-")


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_a_server_that_refuses(
    server: tuple[str, list[Request], dict[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _, status = server
    monkeypatch.setenv("QDRANT_API_KEY", "s3cret")
    index = open_qdrant(tmp_path / "index", WIDTH, Config(url=url))
    status["/points"] = 500
    with pytest.raises(StoreError, match="cannot be written") as error:
        index.add([row(1)])
    assert "s3cret" not in str(error.value)
    status["/exists"] = 401
    with pytest.raises(StoreError, match="cannot be opened") as error:
        open_qdrant(tmp_path / "other", WIDTH, Config(url=url))
    assert "s3cret" not in str(error.value)
    with pytest.raises(StoreError, match="not of 99"):
        status.clear()
        open_qdrant(tmp_path / "index", 99, Config(url=url))


def test_a_server_that_is_not_there(server: tuple[str, list[Request], dict[str, int]], tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(StoreError, match="cannot be opened"):
        open_qdrant(tmp_path / "index", WIDTH, Config(url=url))


def test_without_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(MissingExtraError) as error:
        open_qdrant(tmp_path / "index", WIDTH, Config(local=True))
    assert error.value.hint == "pip install 'luthier[qdrant]'"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "url"),
        ({"url": "localhost:6333"}, "http://host:6333"),
        ({"url": "http://a", "local": True}, "url"),
        ({"local": True, "rescore": True}, "rescore"),
        ({"local": True, "probes": 3}, "probes"),
    ],
)
def test_wrong_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        catalog.load("indexes", "qdrant").configure(options)


def test_words() -> None:
    assert words("The Foxes' café, XR-500_b") == ["the", "fox", "cafe", "xr", "500", "b"]
    assert words("the foxes", stem=False) == ["the", "foxes"]
    assert words("我的包裹OK") == ["我", "的", "包", "裹", "我的", "的包", "包裹", "ok"]
    assert words("A!!") == ["a"] and words("字") == ["字"] and words(" \n?") == []
    assert words("e\u0301te") == words("\u00e9te") == ["ete"]
