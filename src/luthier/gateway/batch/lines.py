"""Lines of batches: reading and checking them, what they ask, and the rows that answer them, in OpenAI's batch format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from luthier.core.batch import ENDPOINTS
from luthier.core.engine import Generation
from luthier.core.errors import LuthierError, StoreError
from luthier.gateway.access.caller import Caller
from luthier.gateway.access.limits import BODY_LIMIT
from luthier.gateway.answer import Asked, begin
from luthier.gateway.api.chat import ChatRequest, read_chat
from luthier.gateway.api.completions import CompletionRequest, read_completion
from luthier.gateway.api.embeddings import EmbeddingRequest
from luthier.gateway.api.wire import RequestError, error_body, read
from luthier.gateway.exchange import Exchange
from luthier.gateway.layers import Question
from luthier.store.home import new_id

CHAT, COMPLETIONS, EMBEDDINGS = ENDPOINTS
_LONGEST_ID = 512
_FIELDS = frozenset({"custom_id", "method", "url", "body"})
_MOST_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch; ``number`` counts from 1."""

    number: int
    custom_id: str
    body: Mapping[str, Any]
    url: str = CHAT
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Ready:
    """A line whose body was read. ``key`` is equal for lines that may be answered in one call of the engine; None: only by itself."""

    line: Line
    asked: Asked | EmbeddingRequest
    key: tuple[Any, ...] | None

    @property
    def model(self) -> str:
        """What it asks."""
        return self.asked.body.model if isinstance(self.asked, Asked) else self.asked.model


def read_lines(path: Path, endpoint: str) -> Iterator[Line | dict[str, Any]]:
    """The lines of an input file; for one that cannot be used, OpenAI's mapping of code, line, message and param. Blank lines are skipped."""
    with path.open("rb") as file:
        number = 0
        while data := file.readline(BODY_LIMIT + 1):
            number += 1
            if len(data) > BODY_LIMIT:
                while data and not data.endswith(b"\n"):
                    data = file.readline(BODY_LIMIT)
                yield _problem(number, "line_too_long", f"a line must be at most {BODY_LIMIT:,} bytes")
            elif data.strip():
                yield read_line(number, data, endpoint)


def check_lines(path: Path, endpoint: str, most: int) -> tuple[int, list[dict[str, Any]]]:
    """(number of lines, what is wrong with them): every line is a request to ``endpoint``, and each has an id of its own."""
    seen: set[str] = set()
    problems: list[dict[str, Any]] = []
    total = 0
    for line in read_lines(path, endpoint):
        total += 1
        if total > most:
            problems.append(_problem(total, "too_many_lines", f"a batch may have {most:,} lines; split the file"))
            break
        if not isinstance(line, Line):
            problems.append(line)
        elif line.custom_id in seen:
            said = f"custom_id {line.custom_id!r} occurs twice"
            problems.append(_problem(line.number, "duplicate_custom_id", said, "custom_id"))
        else:
            seen.add(line.custom_id)
        if len(problems) >= _MOST_PROBLEMS:
            break
    if not total:
        problems.append(_problem(None, "empty_file", "the file has no lines"))
    return total, problems


def read_line(number: int, data: bytes, endpoint: str) -> Line | dict[str, Any]:
    """A line in OpenAI's form, or what is wrong with it."""
    try:
        row = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return _problem(number, "invalid_json_line", f"the line is no JSON: {error}")
    if not isinstance(row, dict):
        return _problem(number, "invalid_json_line", "the line must be a JSON object")
    for name in row:
        if name not in _FIELDS:
            return _problem(
                number, "unknown_field", f"{name} is not known; a line has {', '.join(sorted(_FIELDS))}", name
            )
    custom_id, body = row.get("custom_id"), row.get("body")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= _LONGEST_ID:
        return _problem(
            number, "invalid_custom_id", f"custom_id must be text of 1 to {_LONGEST_ID} characters", "custom_id"
        )
    if row.get("method", "POST") != "POST":
        return _problem(number, "invalid_method", f"method must be POST; got {row['method']!r}", "method")
    if row.get("url", endpoint) != endpoint:
        return _problem(
            number, "mismatched_url", f"url must be {endpoint}, the batch's endpoint; got {row['url']!r}", "url"
        )
    if not isinstance(body, dict):
        return _problem(number, "invalid_body", "body must be a JSON object: the request", "body")
    return Line(number, custom_id, body, endpoint, len(data))


def _problem(line: int | None, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "line": line, "message": message, "param": param}


def ready(line: Line) -> Ready:
    """What a line asks. Raises LuthierError that names what is wrong with its body."""
    data = orjson.dumps(line.body)
    if line.url == EMBEDDINGS:
        embedding = read(data, EmbeddingRequest)
        return Ready(line, embedding, (embedding.model, embedding.dimensions))
    asked = read_chat(read(data, ChatRequest)) if line.url == CHAT else read_completion(read(data, CompletionRequest))
    body = asked.body
    if body.stream:
        raise RequestError("stream must be false in a batch; leave it out", param="stream", code="unsupported_value")
    question = begin(asked, Caller())
    sampling = question.sampling
    alone = question.n != 1 or len(asked.prompts) != 1 or (sampling.seed is not None and sampling.temperature > 0)
    about = json.dumps([body.user, body.session, body.metadata, dict(asked.details)], sort_keys=True, default=str)
    return Ready(line, asked, None if alone else (body.model, sampling, question.unset, about))


def question_of(group: list[Ready], caller: Caller) -> Question:
    """One question of all lines of a group, whose keys are equal (or of a single line)."""
    asked = [each.asked for each in group if isinstance(each.asked, Asked)]
    whole = Asked(
        operation=asked[0].operation,
        body=asked[0].body,
        prompts=tuple(prompt for each in asked for prompt in each.prompts),
        messages=tuple(messages for each in asked for messages in each.messages),
        format=asked[0].format,
        session=asked[0].session,
        details=asked[0].details,
    )
    return begin(whole, caller)


def rows_of(group: list[Ready], exchange: Exchange) -> list[dict[str, Any]]:
    """The rows of a group whose question is answered."""
    if len(group) == 1:
        choices = [exchange.made[index] for index in sorted(exchange.made)]
        return [_answered(group[0], exchange, choices)]
    return [_answered(each, _part(exchange, index), [exchange.made[index]]) for index, each in enumerate(group)]


def _part(exchange: Exchange, index: int) -> Exchange:
    """One line's share of an exchange of several."""
    part = Exchange(
        exchange.operation,
        exchange.model,
        exchange.caller,
        messages=(exchange.messages[index],),
        parameters=exchange.parameters,
        served=exchange.served,
        id=exchange.trace_id(index),
        created=exchange.created,
    )
    part.made[0] = exchange.made[index]
    return part


def _answered(each: Ready, exchange: Exchange, choices: list[Generation]) -> dict[str, Any]:
    assert isinstance(each.asked, Asked)
    return row_of(each.line, exchange.id, each.asked.format.whole(exchange, choices))


def row_of(line: Line, request_id: str, body: Mapping[str, Any], status: int = 200) -> dict[str, Any]:
    """A line's row in the output file, or with another status in the error file."""
    return {
        "id": new_id("batch_req"),
        "custom_id": line.custom_id,
        "response": {"status_code": status, "request_id": request_id, "body": body},
        "error": None,
    }


def failed_row(line: Line, error: LuthierError, request_id: str = "") -> dict[str, Any]:
    """The row of a line that was refused or failed."""
    hidden = isinstance(error, StoreError)  # says paths of this machine
    message = "the server could not use its store; the server's log says why" if hidden else error.message
    body = error_body(
        message, error.http_status, param=getattr(error, "param", None), code=getattr(error, "code", None)
    )
    return row_of(line, request_id, body, error.http_status)


def unasked_row(line: Line, code: str, message: str) -> dict[str, Any]:
    """The row of a line that was never asked: its batch ended before."""
    return {
        "id": new_id("batch_req"), "custom_id": line.custom_id, "response": None,
        "error": {"code": code, "message": message},
    }  # fmt: skip


def succeeded(row: Mapping[str, Any]) -> bool:
    """Whether a row belongs into the output file."""
    return row["error"] is None and row["response"]["status_code"] == 200
