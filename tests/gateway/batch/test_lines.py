from __future__ import annotations

import json

import pytest

from luthier.core.errors import LuthierError, StoreError
from luthier.gateway.access.limits import BODY_LIMIT
from luthier.gateway.api.wire import RequestError
from luthier.gateway.batch.lines import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    Line,
    check_lines,
    failed_row,
    read_lines,
    ready,
    succeeded,
    unasked_row,
)

HELLO = [{"role": "user", "content": "hello"}]


def row(custom_id="a", body=None, **more):
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": body or {"model": "m", "messages": HELLO},
    } | more


@pytest.fixture
def write(tmp_path):
    def written(*lines):
        path = tmp_path / "in.jsonl"
        path.write_bytes(
            b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
        )
        return path

    return written


def test_good_lines(write):
    path = write(row("a"), b"", row("b", {"model": "m", "messages": []}), {"custom_id": "c", "body": {}})
    assert check_lines(path, CHAT, 10) == (3, [])
    lines = list(read_lines(path, CHAT))
    assert [(line.number, line.custom_id, line.url) for line in lines] == [
        (1, "a", CHAT),
        (3, "b", CHAT),
        (4, "c", CHAT),
    ]
    assert lines[0].body == {"model": "m", "messages": HELLO}


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        (b"\xff\xfe", "invalid_json_line", None),
        (row(custom_id=""), "invalid_custom_id", "custom_id"),
        (row(custom_id=7), "invalid_custom_id", "custom_id"),
        (row(custom_id="x" * 513), "invalid_custom_id", "custom_id"),
        ({"body": {}}, "invalid_custom_id", "custom_id"),
        (row(method="GET"), "invalid_method", "method"),
        (row(url=EMBEDDINGS), "mismatched_url", "url"),
        (row(url="http://169.254.169.254/"), "mismatched_url", "url"),
        (row(body="text"), "invalid_body", "body"),
        (row(extra=1), "unknown_field", "extra"),
    ],
    ids=str,
)
def test_broken_lines_are_named(write, line, code, param):
    total, problems = check_lines(write(row("good"), line), CHAT, 10)
    assert total == 2
    assert [(each["code"], each["line"], each["param"]) for each in problems] == [(code, 2, param)]


def test_twice_too_many_too_long_and_nothing(write):
    assert check_lines(write(row(), row()), CHAT, 10)[1][0]["code"] == "duplicate_custom_id"
    total, problems = check_lines(write(*(row(str(n)) for n in range(5))), CHAT, 3)
    assert [each["code"] for each in problems] == ["too_many_lines"] and total == 4
    total, problems = check_lines(write(row(), b'"' + b"x" * (2 * BODY_LIMIT + 5) + b'"', row("b")), CHAT, 10)
    assert (total, [(each["code"], each["line"]) for each in problems]) == (3, [("line_too_long", 2)])
    assert check_lines(write(b"", b"  "), CHAT, 10)[1][0]["code"] == "empty_file"
    assert len(check_lines(write(*[b"{"] * 500), CHAT, 1000)[1]) == 100


def asked(body, url=CHAT):
    return ready(Line(1, "a", {"model": "m", **body}, url))


def test_lines_that_agree_have_one_key():
    base = {"messages": HELLO, "max_tokens": 5, "temperature": 0.5}
    same = asked(base | {"messages": [{"role": "user", "content": "other"}]})
    assert asked(base).key == same.key is not None
    for other in (
        {"max_tokens": 6},
        {"temperature": 0.6},
        {"model": "n"},
        {"user": "u"},
        {"metadata": {"a": "b"}},
        {"stop": ["x"]},
    ):
        assert asked(base | other).key != same.key
    for alone in ({"n": 2}, {"seed": 1}):
        assert asked(base | alone).key is None
    assert asked(base | {"seed": 1, "temperature": 0}).key is not None
    assert asked({"prompt": ["a", "b"]}, COMPLETIONS).key is None
    assert asked({"prompt": "a"}, COMPLETIONS).key is not None
    assert asked({"input": ["a", "b"]}, EMBEDDINGS).key == asked({"input": "c"}, EMBEDDINGS).key


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": HELLO, "stream": True}, "stream"),
        ({"messages": HELLO, "foo": 1}, "foo"),
        ({}, "messages"),
        ({"messages": HELLO, "n": 10**6}, "n"),
    ],
)
def test_a_wrong_body_is_named(body, param):
    with pytest.raises(LuthierError) as raised:
        asked(body)
    assert raised.value.param == param
    failed = failed_row(Line(1, "a", {}), raised.value, "trace_1")
    assert (failed["custom_id"], failed["response"]["status_code"], failed["response"]["request_id"]) == (
        "a",
        400,
        "trace_1",
    )
    assert failed["response"]["body"]["error"]["param"] == param
    assert not succeeded(failed)


def test_rows_do_not_tell_of_this_machine():
    error = failed_row(Line(1, "a", {}), StoreError("cannot write /secret/place"))
    assert "/secret" not in json.dumps(error)
    assert (
        failed_row(Line(1, "a", {}), RequestError("slow down", status=429, code="queue_full"))["response"][
            "status_code"
        ]
        == 429
    )
    gone = unasked_row(Line(1, "a", {}), "batch_expired", "too late")
    assert gone["error"] == {"code": "batch_expired", "message": "too late"} and not succeeded(gone)
