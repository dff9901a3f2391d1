"""The API's description at /openapi.json: bodies from the request models, responses written here, errors of every route."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}


def record(properties: Mapping[str, Schema], *, optional: Mapping[str, Schema] | None = None) -> Schema:
    """An object whose ``properties`` are all there; ``optional`` ones may be."""
    return {"type": "object", "required": list(properties), "properties": {**properties, **(optional or {})}}


def listing(item: Schema) -> Schema:
    """An array."""
    return {"type": "array", "items": item}


def maybe(schema: Schema) -> Schema:
    """``schema`` or null."""
    return {"anyOf": [schema, {"type": "null"}]}


ERROR = record({
    "error": record({"message": TEXT, "type": TEXT, "param": MAYBE_TEXT, "code": MAYBE_TEXT}),
})  # fmt: skip
_TOKEN = record({"token": TEXT, "logprob": NUMBER, "bytes": listing(COUNT)})
LOGPROBS = listing(
    record({**_TOKEN["properties"], "top_logprobs": listing(_TOKEN)}),
)
USAGE = record({
    "prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT,
    "prompt_tokens_details": record({"cached_tokens": COUNT}),
})  # fmt: skip
_CALL = record({"id": TEXT, "type": {"const": "function"}, "function": record({"name": TEXT, "arguments": TEXT})})
_HEAD: Mapping[str, Schema] = {"id": TEXT, "created": COUNT, "model": TEXT, "system_fingerprint": MAYBE_TEXT}
FINISH = {"enum": ["stop", "length", "tool_calls", "content_filter"]}
_MESSAGE = record(
    {"role": {"const": "assistant"}, "content": MAYBE_TEXT, "refusal": {"type": "null"}},
    optional={"tool_calls": listing(_CALL)},
)
CHAT = record({
    **_HEAD,
    "object": {"const": "chat.completion"},
    "choices": listing(record(
        {
            "index": COUNT, "message": _MESSAGE, "finish_reason": FINISH,
            "logprobs": maybe(record({"content": LOGPROBS, "refusal": {"type": "null"}})),
        },
        optional={"trace_id": TEXT},
    )),
    "usage": USAGE,
})  # fmt: skip
COMPLETION = record({
    **_HEAD,
    "object": {"const": "text_completion"},
    "choices": listing(record(
        {
            "index": COUNT, "text": TEXT, "finish_reason": FINISH,
            "logprobs": maybe(record({
                "tokens": listing(TEXT), "token_logprobs": listing(NUMBER), "text_offset": listing(COUNT),
                "top_logprobs": maybe(listing({"type": "object", "additionalProperties": NUMBER})),
            })),
        },
        optional={"trace_id": TEXT},
    )),
    "usage": USAGE,
})  # fmt: skip
_OUTPUT = {
    "anyOf": [
        record({
            "type": {"const": "message"}, "id": TEXT, "role": {"const": "assistant"}, "status": TEXT,
            "content": listing(record({
                "type": {"const": "output_text"}, "text": TEXT, "annotations": {"type": "array", "maxItems": 0},
                "logprobs": LOGPROBS,
            })),
        }),
        record({
            "type": {"const": "function_call"}, "id": TEXT, "call_id": TEXT, "name": TEXT, "arguments": TEXT, "status": TEXT,
        }),
    ]
}  # fmt: skip
RESPONSE = record({
    "id": TEXT, "object": {"const": "response"}, "created_at": COUNT, "model": TEXT,
    "status": {"enum": ["completed", "incomplete", "failed"]},
    "error": maybe(record({"code": TEXT, "message": TEXT})),
    "incomplete_details": maybe(record({"reason": {"enum": ["max_output_tokens", "content_filter"]}})),
    "instructions": MAYBE_TEXT, "output": listing(_OUTPUT), "previous_response_id": MAYBE_TEXT,
    "store": {"type": "boolean"}, "metadata": {"type": "object"},
    "usage": record({
        "input_tokens": COUNT, "output_tokens": COUNT, "total_tokens": COUNT,
        "input_tokens_details": record({"cached_tokens": COUNT}),
        "output_tokens_details": record({"reasoning_tokens": COUNT}),
    }),
})  # fmt: skip
EMBEDDINGS = record({
    "object": {"const": "list"}, "model": TEXT,
    "data": listing(record({
        "object": {"const": "embedding"}, "index": COUNT,
        "embedding": {"anyOf": [listing(NUMBER), {"type": "string", "description": "base64 of float32, little-endian"}]},
    })),
    "usage": record({"prompt_tokens": COUNT, "total_tokens": COUNT}),
})  # fmt: skip
RERANKED = record({
    "id": TEXT, "object": {"const": "list"}, "model": TEXT,
    "results": listing(record(
        {"index": COUNT, "relevance_score": NUMBER}, optional={"document": record({"text": TEXT})},
    )),
    "usage": record({"prompt_tokens": COUNT, "total_tokens": COUNT}),
})  # fmt: skip
MODEL = record({
    "id": TEXT, "object": {"const": "model"}, "created": COUNT, "owned_by": TEXT, "kind": TEXT, "engine": TEXT,
    "capabilities": listing(TEXT), "parameters": listing(TEXT), "context_length": COUNT, "labels": listing(TEXT),
    "model_digest": TEXT, "base_digest": TEXT, "template_digest": TEXT, "prompt_digest": TEXT,
    "default_temperature": NUMBER,
})  # fmt: skip
MODELS = record({"object": {"const": "list"}, "data": listing(MODEL)})
TRACE = record(
    {"object": {"const": "trace"}, "id": TEXT, "model": TEXT, "operation": TEXT, "answer": TEXT, "error": TEXT}
)
TRACES = record({
    "object": {"const": "list"}, "data": listing(TRACE), "first_id": MAYBE_TEXT, "last_id": MAYBE_TEXT,
    "has_more": {"type": "boolean"},
})  # fmt: skip
FEEDBACK = record({"object": {"const": "feedback"}, "id": TEXT, "trace_id": TEXT, "created_at": TEXT})
HEALTH = record({"status": {"enum": ["ok", "degraded"]}}, optional={"models": listing(TEXT), "version": TEXT})

KEY = record({
    "object": {"const": "key"}, "id": TEXT, "tenant": TEXT, "name": TEXT, "hint": TEXT,
    "state": {"enum": ["active", "expired", "revoked"]}, "scopes": listing(TEXT), "models": listing(TEXT), "labels": listing(TEXT),
    "limits": {"type": "object", "additionalProperties": NUMBER}, "created_at": TEXT, "created_by": TEXT,
    "expires_at": MAYBE_TEXT, "revoked_at": MAYBE_TEXT, "last_used_at": MAYBE_TEXT, "old_until": MAYBE_TEXT,
}, optional={"key": TEXT})  # fmt: skip
KEYS = record({"object": {"const": "list"}, "data": listing(KEY)})
TENANT = record({
    "object": {"const": "tenant"}, "tenant": TEXT, "limits": {"type": "object", "additionalProperties": NUMBER},
})  # fmt: skip
TENANTS = record({"object": {"const": "list"}, "data": listing(TENANT)})
DELETED = record({"id": TEXT, "object": TEXT, "deleted": {"const": True}})
READY = record({"status": {"enum": ["ready", "not_ready"]}})
ROUTE = record({"id": TEXT, "object": {"const": "route"}, "strategy": TEXT, "targets": listing(TEXT)})
ROWS = record({"object": {"const": "list"}, "data": listing({"type": "object"})})


_EVENT = record(
    {"data": {"type": "string", "description": "JSON of a chunk or an event; in the end [DONE]"}},
    optional={"event": TEXT},
)


def takes(body: type[BaseModel]) -> dict[str, Any]:
    """``openapi_extra`` of a route that reads ``body``."""
    schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
    inner = schema.pop("$defs", {})
    schema = _nullable(_inlined(schema, inner))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _nullable(schema: Schema) -> Schema:
    """An object's fields that may be left out may also be null (``wire.Body``)."""
    required = schema.get("required", ())
    fields = {
        name: field if name in required or _takes_null(field) else maybe(field)
        for name, field in schema.get("properties", {}).items()
    }
    return schema | {"properties": fields}


def _takes_null(schema: Schema) -> bool:
    return schema.get("type") == "null" or any(_takes_null(each) for each in schema.get("anyOf", ()))


def gives(schema: Schema, *, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """``responses`` of a route that answers JSON like ``schema``, or with ``stream: true`` server-sent events."""
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if streams:
        content["text/event-stream"] = {"schema": _EVENT}
    return {200: {"description": "The answer", "content": content}}


def says() -> dict[int | str, dict[str, Any]]:
    """``responses`` of a route that answers plain text."""
    return {200: {"description": "The answer", "content": {"text/plain": {"schema": {"type": "string"}}}}}


def describe(app: FastAPI) -> None:
    """Have ``app`` describe itself: FastAPI's description, with the errors and the key that every route has in common."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(get_openapi(title=app.title, version=app.version, routes=app.routes))
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(described: dict[str, Any]) -> dict[str, Any]:
    components = described.setdefault("components", {})
    schemas = {
        k: v for k, v in components.get("schemas", {}).items() if k not in ("HTTPValidationError", "ValidationError")
    }
    components["schemas"] = {**schemas, "Error": ERROR}
    components["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "A key, where the server has any; a local server may have none.",
        }
    }
    error = {
        "description": "What is wrong",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    for path, operations in described["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"].setdefault("default", error)
            if path != "/health":
                operation.setdefault("security", [{"key": []}, {}])
    return described


def _inlined(schema: Any, inner: Mapping[str, Any]) -> Any:
    """``schema`` with what it refers to written in its place (no body refers to itself)."""
    if isinstance(schema, list):
        return [_inlined(each, inner) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if str(schema.get("$ref", "")).startswith("#/components/schemas/"):
        return _inlined(inner[schema["$ref"].rpartition("/")[2]], inner)
    return {name: _inlined(each, inner) for name, each in schema.items()}
