from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
from pydantic_core import PydanticCustomError

from luthier.core.message import Image, Message
from luthier.gateway.api.chat import ChatRequest
from luthier.gateway.api.messages import MAGIC, kept, read_messages
from luthier.gateway.api.wire import RequestError, read

PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"x" * 40).decode()
USER = {"role": "user", "content": "hello"}


def refusal(messages: Any) -> RequestError:
    with pytest.raises(RequestError) as raised:
        read(json.dumps({"model": "m", "messages": messages}).encode(), ChatRequest)
    return raised.value


def shown(url: Any, **more: Any) -> dict[str, Any]:
    """A user turn with text, an image and text."""
    image = {"type": "image_url", "image_url": {"url": url, **more}}
    return {"role": "user", "content": [{"type": "text", "text": "see"}, image, {"type": "text", "text": "it"}]}


def test_text_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    first, _ = read_messages([{"role": "developer", "content": parts}, USER])
    assert first == Message("system", "a\nb")


def test_an_answer_can_be_sent_back_as_the_client_dumps_it() -> None:
    answer = {
        "role": "assistant", "content": "hi", "refusal": None, "annotations": None, "audio": None,
        "function_call": None, "tool_calls": None,
    }  # fmt: skip
    assert read_messages([USER, answer])[1] == Message("assistant", "hi")
    refused = {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
    assert read_messages([USER, refused])[1].content == "no"


def test_calls_and_what_the_tools_said() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    history = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "5"}]},
    ]
    messages = read_messages(history)
    assert messages[1].tool_calls[0].arguments == '{"a": 1}'
    assert (messages[2].tool_call_id, messages[2].content) == ("c1", "5")
    assert [message.as_dict() for message in messages[1:2]] == [history[1] | {"content": ""}]
    without_content = {"role": "assistant", "tool_calls": [call]}
    assert read_messages([USER, without_content])[1] == messages[1]


def test_images_stand_where_they_stood() -> None:
    (message,) = read_messages([shown(PNG, detail="low")])
    assert message.content == "see\nit"
    assert message.images == (Image(PNG, at=3, detail="low"),)
    parts = message.as_dict()["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "text"]
    (plain,) = read_messages([{"role": "user", "content": [{"type": "image_url", "image_url": PNG}]}])
    assert plain == Message("user", "", images=(Image(PNG),))


def test_a_trace_keeps_an_image_s_digest() -> None:
    (said,) = kept(read_messages([shown(PNG)]))
    url = said["content"][1]["image_url"]["url"]
    assert re.fullmatch(r"data:image/png;base64;sha256=[0-9a-f]{64},", url)
    (linked,) = kept(read_messages([shown("https://example.com/a.png")]))
    assert linked["content"][1]["image_url"]["url"] == "https://example.com/a.png"


@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        ("hello", "messages", "list"),
        ([], "messages", "1 to 4096"),
        ([USER] * 5000, "messages", "5000"),
        ([{"role": "system", "content": "x"}], "messages", "at least one user turn"),
        (["x"], "messages[0]", "object"),
        ([{"role": "robot", "content": "x"}], "messages[0].role", '"robot"'),
        ([{"content": "x"}], "messages[0].role", "null"),
        ([{"role": "user"}], "messages[0].content", "required"),
        ([{"role": "user", "content": None}], "messages[0].content", "null"),
        ([{"role": "user", "content": 5}], "messages[0].content", "got 5"),
        ([{"role": "user", "content": [5]}], "messages[0].content[0]", "got 5"),
        ([{"role": "user", "content": "x", "name": "Ann"}], "messages[0].name", "not supported"),
        ([{"role": "user", "content": "x", "contents": "y"}], "messages[0].contents", "'content'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "null"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0].type", "text, image_url"),
        ([USER, {"role": "tool", "content": "x", "tool_call_id": "c"}], "messages[1].tool_call_id", "there was none"),
        ([USER, {"role": "tool", "content": "x"}], "messages[1].tool_call_id", "null"),
        ([USER | {"tool_call_id": "c"}], "messages[0].tool_call_id", "belongs to role tool"),
        ([USER | {"tool_calls": [{}]}], "messages[0].tool_calls", "belongs to role assistant"),
        ([USER, {"role": "assistant", "tool_calls": "x"}], "messages[1].tool_calls", "list"),
        ([USER, {"role": "assistant", "content": "x", "tool_calls": ""}], "messages[1].tool_calls", "list"),
        ([USER | {"tool_call_id": 0}], "messages[0].tool_call_id", "belongs to role tool"),
        ([USER, {"role": "assistant", "tool_calls": [1]}], "messages[1].tool_calls[0]", "object"),
        (
            [USER, {"role": "assistant", "tool_calls": [{"id": "c", "type": "custom"}]}],
            "messages[1].tool_calls[0].type",
            "custom",
        ),
        (
            [USER, {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {}}}]}],
            "messages[1].tool_calls[0].function.arguments",
            "JSON as text",
        ),
        (
            [USER, {"role": "assistant", "content": [{"type": "image_url", "image_url": PNG}]}],
            "messages[1].content[0]",
            "user turns only",
        ),
        ([shown("http://example.com/a.png")], "messages[0].content[1].image_url.url", "https"),
        ([shown("file:///etc/passwd")], "messages[0].content[1].image_url.url", "https"),
        ([shown("https://example.com/" + "x" * 5000)], "messages[0].content[1].image_url.url", "4096"),
        ([shown("https://user:secret@example.com/a.png")], "messages[0].content[1].image_url.url", "https"),
        ([shown("https://[::1/a.png")], "messages[0].content[1].image_url.url", "https"),
        ([shown("https://example.com:99999/")], "messages[0].content[1].image_url.url", "https"),
        ([shown("data:image/png;base64,@@@")], "messages[0].content[1].image_url.url", "base64 after"),
        ([shown("data:image/svg+xml;base64,eA==")], "messages[0].content[1].image_url.url", "image/png"),
        ([shown("data:image/png,abc")], "messages[0].content[1].image_url.url", "base64"),
        ([shown(PNG.replace("png", "jpeg"))], "messages[0].content[1].image_url.url", "begin otherwise"),
        ([shown("data:image/png;base64,")], "messages[0].content[1].image_url.url", "begin otherwise"),
        ([shown(PNG, detail="huge")], "messages[0].content[1].image_url.detail", "huge"),
        ([shown(PNG, size=3)], "messages[0].content[1].image_url.size", "not a known field"),
        ([shown(PNG)] * 33, "messages", "at most 32 images"),
    ],
)
def test_what_is_refused_is_named(messages: Any, param: str, words: str) -> None:
    error = refusal(messages)
    assert (error.http_status, error.param) == (400, param)
    assert words in error.message
    assert "secret" not in error.message or "user:secret" in str(messages)


def test_an_error_repeats_little_of_what_came() -> None:
    call = {"id": "c" * 100_000, "function": {"name": "f", "arguments": "{}"}}
    said = {"role": "tool", "content": "x", "tool_call_id": "d" * 100_000}
    assert len(refusal([USER, {"role": "assistant", "tool_calls": [call] * 20}, said]).message) < 1000


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "[::1]", "[fd00::1]", "2130706433", "0x7f.1",
     "metadata.internal", "printer.local", "intranet", "127.1", "[::ffff:10.0.0.1]"],
)  # fmt: skip
def test_images_in_private_networks_are_refused(host: str) -> None:
    assert "private network" in refusal([shown(f"https://{host}/a.png")]).message


@pytest.mark.parametrize("kind", MAGIC)
def test_each_type_of_image_is_known_by_its_first_bytes(kind: str) -> None:
    for start in MAGIC[kind]:
        data = start + (b"....WEBP" if kind == "image/webp" else b"") + b"rest"
        url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        assert read_messages([shown(url)])[0].images[0].url == url
    other = f"data:{kind};base64,{base64.b64encode(b'MZ' + b'x' * 30).decode()}"
    with pytest.raises(PydanticCustomError):
        read_messages([shown(other)])
