"""Messages of the OpenAI wire format: text and image parts, calls of tools and what the tools said."""

from __future__ import annotations

import binascii
import hashlib
import ipaddress
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import PlainValidator, WithJsonSchema

from luthier.core.message import Image, Message, ToolCall
from luthier.gateway.api.wire import LONGEST_SAID, bad, expect, refuse_type, require_known

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
MOST_MESSAGES = 4096
MOST_IMAGES = 32
LONGEST_URL = 4096
MAGIC = {
    "image/png": (b"\x89PNG\r\n\x1a\n",), "image/jpeg": (b"\xff\xd8\xff",), "image/gif": (b"GIF87a", b"GIF89a"),
    "image/webp": (b"RIFF",),
}  # fmt: skip
"""Media types of images that may come as ``data:`` URLs, and how their bytes begin."""

_FIELDS = ("role", "content", "tool_calls", "tool_call_id")
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "refusal": (), "audio": (), "function_call": (), "annotations": ([],), "name": (), "reasoning_content": (),
}  # fmt: skip
_CALL_FIELDS = ("id", "type", "function", "index")


def read_messages(value: Any) -> tuple[Message, ...]:
    """The messages of a conversation. Raises for what is not allowed, with its place."""
    if not isinstance(value, list):
        refuse_type(value, "a list of messages", "")
    if not 1 <= len(value) <= MOST_MESSAGES:
        raise bad(f"must hold 1 to {MOST_MESSAGES} messages; got {len(value)}")
    messages: list[Message] = []
    called: set[str] = set()
    images = 0
    for number, each in enumerate(value):
        message = _message(each, f"[{number}]", called)
        called.update(call.id for call in message.tool_calls)
        images += len(message.images)
        messages.append(message)
    if images > MOST_IMAGES:
        raise bad(f"may hold at most {MOST_IMAGES} images; got {images}")
    if not any(message.role == "user" for message in messages):
        raise bad("need at least one user turn; got none")
    return tuple(messages)


def _message(value: Any, at: str, called: set[str]) -> Message:
    if not isinstance(value, dict):
        refuse_type(value, "an object", at)
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or role not in ROLES:
        refuse_type(role, f"one of {', '.join(ROLES)}", f"{at}.role")
    if len(value) > 2:
        _require_plain(value, role, at)
    said = value.get("tool_calls")
    calls = _calls(said, f"{at}.tool_calls") if said is not None else ()
    if "content" not in value and not calls:
        raise bad("is required", f"{at}.content", code="missing_field")
    images: tuple[Image, ...] = ()
    if isinstance(content, str):
        text = content
    elif content is None and calls:
        text = ""
    else:
        text, images = read_content(content, f"{at}.content", images=role == "user", refusals=role == "assistant")
    answers: str | None = None
    if role == "tool":
        answers = value.get("tool_call_id")
        if not isinstance(answers, str) or answers not in called:
            known = ", ".join(repr(each[:LONGEST_SAID]) for each in sorted(called)[:8]) or "there was none"
            refuse_type(
                answers, f"the id of a call that an earlier assistant turn made ({known})", f"{at}.tool_call_id"
            )
    return Message(ROLES[role], text, calls, answers, images)


def _require_plain(value: Mapping[str, Any], role: str, at: str) -> None:
    """Refuse the fields of a message that nothing here can honour."""
    require_known(value, (*_FIELDS, *_NEUTRAL), at)
    for name, neutral in _NEUTRAL.items():
        if value.get(name) is not None and value[name] not in neutral:
            raise bad("is not supported by this server; leave it out", f"{at}.{name}", code="unsupported_value")
    for name, owner in (("tool_calls", "assistant"), ("tool_call_id", "tool")):
        if value.get(name) not in (None, []) and role != owner:
            raise bad(f"belongs to role {owner}; got it in one of role {role}", f"{at}.{name}")


def _calls(value: Any, at: str) -> tuple[ToolCall, ...]:
    if not isinstance(value, list):
        refuse_type(value, "a list of tool calls", at)
    calls = []
    for number, call in enumerate(value):
        here = f"{at}[{number}]"
        if not isinstance(call, dict):
            refuse_type(call, "an object", here)
        require_known(call, _CALL_FIELDS, here)
        if call.get("type", "function") != "function":
            refuse_type(call["type"], "function", f"{here}.type")
        function = call.get("function")
        if not isinstance(function, dict):
            refuse_type(function, "an object with name and arguments", f"{here}.function")
        require_known(function, ("name", "arguments"), f"{here}.function")
        name = expect(function.get("name"), str, "text", f"{here}.function.name")
        arguments = expect(function.get("arguments"), str, "JSON as text", f"{here}.function.arguments")
        calls.append(ToolCall(name, arguments, expect(call.get("id"), str, "text", f"{here}.id")))
    return tuple(calls)


def read_content(
    value: Any, at: str, *, images: bool, refusals: bool = False, text_types: Sequence[str] = ("text",)
) -> tuple[str, tuple[Image, ...]]:
    """Text and images of a list of content parts. Texts are joined with line breaks; each image stands where it stood among them."""
    if not isinstance(value, list):
        refuse_type(value, "text or a list of content parts", at)
    texts: list[str] = []
    found: list[Image] = []
    length = 0
    for number, part in enumerate(value):
        here = f"{at}[{number}]"
        if not isinstance(part, dict):
            refuse_type(part, 'an object like {"type": "text", "text": "..."}', here)
        kind: Any = part.get("type")
        if kind in text_types or (refusals and kind == "refusal"):
            field = "refusal" if kind == "refusal" else "text"
            if len(part) > 2:
                require_known(part, ("type", field, *(_SENT_BACK if kind == "output_text" else ())), here)
            text = expect(part.get(field), str, "text", f"{here}.{field}")
            length += len(text) + bool(texts)
            texts.append(text)
        elif kind in ("image_url", "input_image") and images:
            found.append(_image(part, kind, here, length))
        else:
            _refuse_part(kind, here, (*text_types, *(("image_url",) if images else ())))
    return "\n".join(texts), tuple(found)


_SENT_BACK = ("annotations", "logprobs")  # when a client sends an answer back as it came


def _refuse_part(kind: Any, at: str, allowed: Sequence[str]) -> None:
    if kind in ("image_url", "input_image"):
        raise bad("images are allowed in user turns only", at, code="unsupported_value")
    refuse_type(kind, f"one of {', '.join(allowed)}", f"{at}.type")


def _image(part: Mapping[str, Any], kind: str, at: str, place: int) -> Image:
    require_known(part, ("type", "image_url", "detail"), at)
    shown, detail = part.get("image_url"), part.get("detail")
    at = f"{at}.image_url"
    if kind == "image_url" and isinstance(shown, dict):
        require_known(shown, ("url", "detail"), at)
        detail, shown, at = shown.get("detail"), shown.get("url"), f"{at}.url"
    if not isinstance(shown, str):
        refuse_type(shown, "an https: or data: URL", at)
    if detail not in (None, "auto", "low", "high"):
        refuse_type(detail, "one of auto, low, high", f"{at.removesuffix('.url')}.detail")
    check_image_url(shown, at)
    return Image(shown, place, detail if detail != "auto" and detail else "")


def check_image_url(url: str, at: str) -> None:
    """Raise for what is neither an ``https:`` URL of a public host nor a ``data:`` URL that holds an image.

    The gateway itself fetches nothing; an engine that does must not be sent into the operator's network.
    """
    if url[:5].lower() == "data:":
        _check_data(url, at)
        return
    parts = _split(url)
    if parts is None or parts[0] != "https" or not parts[1] or len(url) > LONGEST_URL:
        refuse_type(url, f"an https: URL of at most {LONGEST_URL} characters, or a data: URL", at)
    if not _public(parts[1]):
        raise bad("must not point into a private network", at)


def _split(url: str) -> tuple[str, str] | None:
    """(scheme, host); None for what is no URL, or holds credentials."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return None
    return None if "@" in parts.netloc else (parts.scheme, host)


def _public(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        last = host.rstrip(".").rpartition(".")[2]
        return "." in host and not last.isdigit() and last not in ("local", "localhost", "internal", "lan", "home")


def _check_data(url: str, at: str) -> None:
    head, comma, content = url.partition(",")
    kind = head[5:].removesuffix(";base64").lower()
    if not comma or not head.lower().endswith(";base64") or kind not in MAGIC:
        allowed = ", ".join(MAGIC)
        raise bad(f"must begin with data:TYPE;base64, where TYPE is one of {allowed}; got {head[:60]!r}", at)
    try:
        held = binascii.a2b_base64(content, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise bad(f"must hold base64 after the comma; {error}", at) from error
    if not held.startswith(MAGIC[kind]) or (kind == "image/webp" and held[8:12] != b"WEBP"):
        raise bad(f"must hold an image of the type that it says, {kind}; its bytes begin otherwise", at)


def kept(messages: Sequence[Message]) -> tuple[dict[str, Any], ...]:
    """Messages as a trace keeps them: an image that came inside is named by its digest."""
    return tuple(_kept(message) if message.images else message.as_dict() for message in messages)


def _kept(message: Message) -> dict[str, Any]:
    out = message.as_dict()
    for part in out["content"]:
        shown = part.get("image_url")
        if shown is not None and shown["url"][:5].lower() == "data:":
            head, _, content = shown["url"].partition(",")
            digest = hashlib.sha256(content.encode()).hexdigest()
            part["image_url"] = shown | {"url": f"{head};sha256={digest},"}
    return out


def _object(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object", "required": list(required), "properties": {**required, **(optional or {})},
        "additionalProperties": False,
    }  # fmt: skip


_TEXT = _object({"type": {"const": "text"}, "text": {"type": "string"}})
_URL = {"type": "string", "description": "an https: URL, or data:image/png;base64,..."}
_IMAGE = _object(
    {
        "type": {"const": "image_url"},
        "image_url": {"anyOf": [_URL, _object({"url": _URL}, {"detail": {"enum": ["auto", "low", "high"]}})]},
    }
)
_CALL = _object(
    {
        "id": {"type": "string"},
        "type": {"const": "function"},
        "function": _object(
            {"name": {"type": "string"}, "arguments": {"type": "string", "description": "JSON as text"}}
        ),
    }
)


def _content(*parts: Any) -> dict[str, Any]:
    return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": list(parts)}}]}


_REFUSAL = _object({"type": {"const": "refusal"}, "refusal": {"type": "string"}})
_USER = _object({"role": {"const": "user"}, "content": _content(_TEXT, _IMAGE)})
MESSAGES_SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "maxItems": MOST_MESSAGES,
    "contains": _USER,
    "items": {
        "anyOf": [
            _object({"role": {"enum": ["system", "developer"]}, "content": _content(_TEXT)}),
            _USER,
            _object({"role": {"const": "assistant"}, "content": _content(_TEXT, _REFUSAL)}),
            _object(
                {"role": {"const": "assistant"}, "tool_calls": {"type": "array", "items": _CALL, "minItems": 1}},
                {"content": {"anyOf": [{"type": "null"}, *_content(_TEXT, _REFUSAL)["anyOf"]]}},
            ),
            _object({
                "role": {"const": "tool"}, "content": _content(_TEXT),
                "tool_call_id": {"type": "string", "description": "the id of a call of an earlier turn"},
            }),
        ]
    },
}  # fmt: skip

Messages = Annotated[tuple[Message, ...], PlainValidator(read_messages), WithJsonSchema(MESSAGES_SCHEMA)]
