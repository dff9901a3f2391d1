"""Files over real HTTP: the official client, and what no client should send."""

from __future__ import annotations

import socket
from typing import Any

import httpx
import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, PermissionDeniedError

from luthier.gateway.api import files
from luthier.store.database import open_store
from luthier.store.files import list_files
from luthier.store.keys import create_key

LINES = b'{"custom_id": "a"}\n'


@pytest.fixture
def shop(tmp_path, start, make_fake):
    """``shop(**config)``: a server with keys, and a client for acme, another of acme, and one for other."""
    store = open_store(tmp_path / "home")
    scopes = ("inference", "batch")
    secrets = [create_key(store, tenant, scopes=scopes)[1] for tenant in ("acme", "acme", "other")]

    def started(**config):
        server = start({"m": make_fake("m")}, store=store, keys=True, config={"batch": config})
        return server, [server.client(api_key=secret) for secret in secrets]

    return started


def upload(client, name: Any = "in.jsonl", content=LINES, **more):
    return client.files.create(file=(name, content), purpose=more.pop("purpose", "batch"), **more)


def test_the_official_client(shop):
    server, (mine, colleague, _) = shop()
    made = upload(mine, content=LINES * 1000)
    assert (made.filename, made.bytes, made.purpose, made.status) == (
        "in.jsonl",
        len(LINES) * 1000,
        "batch",
        "processed",
    )
    assert colleague.files.retrieve(made.id) == made
    got = colleague.files.content(made.id)
    assert got.read() == LINES * 1000
    assert got.response.headers["content-disposition"] == 'attachment; filename="in.jsonl"'
    assert got.response.headers["x-content-type-options"] == "nosniff"
    others = [upload(mine).id for _ in range(3)]
    assert [each.id for each in mine.files.list(limit=2)] == [*others[::-1], made.id]  # the client walks the pages
    assert [each.id for each in mine.files.list(order="asc", limit=2)] == [made.id, *others]
    assert mine.files.delete(made.id).deleted
    with pytest.raises(NotFoundError):
        mine.files.retrieve(made.id)
    assert not list(server.store.home.staging.iterdir())


def test_another_tenants_files_are_not_there(shop):
    _, (mine, _, stranger) = shop()
    made = upload(mine)
    for attempt in (
        lambda: stranger.files.retrieve(made.id),
        lambda: stranger.files.content(made.id),
        lambda: stranger.files.delete(made.id),
        lambda: stranger.batches.create(
            input_file_id=made.id, endpoint="/v1/chat/completions", completion_window="24h"
        ),
    ):
        with pytest.raises(NotFoundError) as raised:
            attempt()
        with pytest.raises(NotFoundError) as unknown:
            stranger.files.retrieve("file_none")
        assert raised.value.body["message"].replace(made.id, "file_none") == unknown.value.body["message"]
    assert list(stranger.files.list()) == []
    assert mine.files.content(made.id).read() == LINES


def test_equal_content_tells_nobody_anything(shop):
    _, (mine, _, stranger) = shop()
    first, second = upload(mine), upload(stranger)
    assert first.id != second.id
    mine.files.delete(first.id)
    assert stranger.files.content(second.id).read() == LINES


@pytest.mark.parametrize(
    "name",
    [
        "../in.jsonl",
        "/etc/x.jsonl",
        "a/b.jsonl",
        "a\\b.jsonl",
        "..",
        "in.csv",
        "in",
        "x" * 260 + ".jsonl",
    ],
)
def test_names_that_are_paths_or_of_another_kind(shop, name):
    server, (mine, _, _) = shop()
    with pytest.raises(BadRequestError) as raised:
        upload(mine, name)
    assert raised.value.param == "file"
    assert list_files(server.store, "acme") == []


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "empty"), (b"\xff\xfe{}\n", "UTF-8"), (b'{"a": "' + "é".encode()[:1], "UTF-8"), (b"\x89PNG\r\n", "UTF-8")],
)
def test_content_that_is_no_text(shop, content, said):
    server, (mine, _, _) = shop()
    with pytest.raises(BadRequestError, match=said):
        upload(mine, content=content)
    assert not list(server.store.home.staging.iterdir())
    assert not list(server.store.home.artifacts.iterdir())


def test_purposes_and_scopes(shop):
    server, (mine, _, _) = shop()
    with pytest.raises(BadRequestError, match="purpose"):
        upload(mine, purpose="fine-tune")
    lesser = server.client(api_key=create_key(server.store, "acme")[1])
    _until_known(server, lesser.api_key)
    for attempt in (lambda: upload(lesser), lesser.files.list, lesser.batches.list):
        with pytest.raises(PermissionDeniedError, match="batch"):
            attempt()


def _until_known(server, secret):
    for _ in range(1000):
        if httpx.get(f"{server.base_url}/models", headers={"Authorization": f"Bearer {secret}"}).status_code != 401:
            return
    raise AssertionError


def raw(server, secret, head, *chunks):
    """The status line and all that a server says to bytes of ours."""
    host, port = server.root.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as wire:
        wire.sendall(
            head.replace("\n", "\r\n").encode() + f"Authorization: Bearer {secret}\r\nHost: x\r\n\r\n".encode()
        )
        for chunk in chunks:
            wire.sendall(chunk)
        said = b""
        while data := wire.recv(65536):
            said += data
        return said.decode()


def test_a_gigabyte_is_refused_before_its_first_byte(shop):
    server, (mine, _, _) = shop()
    head = "POST /v1/files HTTP/1.1\nContent-Type: multipart/form-data; boundary=x\nContent-Length: 1073741824\n"
    said = raw(server, mine.api_key, head)  # and nothing is sent
    assert said.startswith("HTTP/1.1 413") and "file_too_large" in said and "1,073,741,824" in said


def test_an_upload_that_does_not_say_how_long_it_is_is_cut(shop):
    server, (mine, _, _) = shop(max_file_mb=0.1)

    def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
        for _ in range(40):
            yield b"x" * 10_000

    headers = {"Content-Type": "multipart/form-data; boundary=x", "Authorization": f"Bearer {mine.api_key}"}
    got = httpx.post(f"{server.base_url}/files", content=endless(), headers=headers)
    assert got.status_code == 413 and got.json()["error"]["code"] == "file_too_large"
    assert not list(server.store.home.staging.iterdir())


def test_what_a_tenant_may_keep(shop):
    _, (mine, _, stranger) = shop(max_stored_mb=0.1)
    with pytest.raises(APIStatusError) as raised:
        upload(mine, content=b"x" * 200_000)
    assert raised.value.status_code == 413
    for _ in range(2):
        upload(mine, content=b"x" * 50_000)
    with pytest.raises(APIStatusError, match="delete some"):
        upload(mine)
    upload(stranger)
    mine.files.delete(next(iter(mine.files.list())).id)
    upload(mine)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "application/json"}, b"{}", 415),
        ({"Content-Type": "multipart/form-data"}, b"--x--", 400),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"nonsense", 400),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"", 400),
        (
            {"Content-Type": "multipart/form-data; boundary=x"},
            b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--x--',
            400,
        ),
        (
            {"Content-Type": "multipart/form-data; boundary=x"},
            b"--x\r\nContent-Disposition: form-data\r\n\r\nx\r\n--x--",
            400,
        ),
        ({"Content-Type": "multipart/form-data; boundary=x", "Origin": "http://evil.example"}, b"--x--", 403),
        ({"Content-Type": "multipart/form-data; boundary=\xff".encode("latin-1")}, b"--x--", 400),
    ],
)
def test_forms_that_are_none(shop, headers, body, status):
    server, (mine, _, _) = shop()
    got = httpx.post(
        f"{server.base_url}/files", content=body, headers={"Authorization": f"Bearer {mine.api_key}", **headers}
    )
    assert got.status_code == status, got.text
    assert got.json()["error"]["message"]


def test_two_files_and_huge_fields(shop):
    server, (mine, _, _) = shop()
    url, headers = f"{server.base_url}/files", {"Authorization": f"Bearer {mine.api_key}"}
    two = [("file", ("a.jsonl", LINES)), ("other", ("b.jsonl", LINES))]
    assert httpx.post(url, files=two, data={"purpose": "batch"}, headers=headers).status_code == 400
    huge = {"purpose": "batch", "note": "x" * 500_000}
    assert httpx.post(url, files=two[:1], data=huge, headers=headers).status_code == 400
    assert list_files(server.store, "acme") == []


def test_a_page_in_a_browser_cannot_upload_to_a_local_server(server):
    files_ = {"file": ("in.jsonl", LINES)}
    got = httpx.post(
        f"{server.base_url}/files", files=files_, data={"purpose": "batch"}, headers={"Origin": "http://evil.example"}
    )
    assert got.status_code == 403


def test_only_so_many_uploads_at_once(shop, monkeypatch):
    monkeypatch.setattr(files, "_AT_ONCE", 0)
    _, (mine, _, _) = shop()
    with pytest.raises(APIStatusError) as raised:
        upload(mine)
    assert raised.value.status_code == 429
