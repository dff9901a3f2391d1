"""How the Responses API writes an answer: as a response with its items, or as the events by which one comes to be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from luthier.core.engine import Generation, TokenLogprob
from luthier.core.errors import LuthierError
from luthier.core.message import ToolCall
from luthier.core.trace import Trace
from luthier.gateway.answer import event
from luthier.gateway.api.chat import call_id
from luthier.gateway.api.logprobs import listed
from luthier.gateway.calls import Piece
from luthier.gateway.exchange import Exchange
from luthier.gateway.knowledge.citations import extension, is_from_documents, response_annotations

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponseFormat:
    """Responses and their events. One for each request: it is the response as far as it was streamed.

    ``about``: what the response repeats of its request (``gateway.api.responses.about``).
    """

    def __init__(self, about: Mapping[str, Any], instructions: str | None, *, logprobs: bool) -> None:
        self._about = about
        self._instructions = instructions
        self._logprobs = logprobs
        self._number = -1
        self._items: list[dict[str, Any]] = []
        self._open = False
        self._place: dict[str, Any] = {}
        self._text: list[str] = []
        self._said: list[dict[str, Any]] = []
        self._calls = 0
        self._finish = ""

    def whole(self, exchange: Exchange, choices: list[Generation]) -> dict[str, Any]:
        """A ``response``."""
        answer = choices[0]
        said = listed(answer.tokens) if self._logprobs else []
        notes = response_annotations(answer)
        items = _items(exchange.id, answer.text, said, answer.tool_calls, answer.finish_reason, notes)
        if is_from_documents(answer):
            items[0]["luthier"] = extension(answer)
        return self._response(exchange, answer.finish_reason, items)

    def opening(self, exchange: Exchange, index: int) -> list[bytes]:
        """The response as it begins."""
        begun = self._response(exchange, "", []) | {"status": "in_progress", "usage": None}
        return [self._event(f"response.{name}", response=begun) for name in ("created", "in_progress")]

    def piece(self, exchange: Exchange, piece: Piece) -> list[bytes]:
        """A piece of the text, calls, and the end of the last item."""
        events: list[bytes] = []
        if piece.text or piece.tokens:
            events += self._more_text(exchange, piece.text, piece.tokens)
        calls = piece.tool_calls
        if piece.generation is not None:  # what an engine says only at the end
            calls = (*calls, *piece.generation.tool_calls[self._calls + len(calls) :])
        for call in calls:
            events += [*self._close("stop"), *self._call(exchange, call)]
        if piece.generation is not None:
            self._finish = piece.generation.finish_reason
            if not self._items and not self._open:
                events += self._begin_text(exchange)
            events += self._close(self._finish, piece.generation)
        return events

    def ending(self, exchange: Exchange) -> list[bytes]:
        """The whole response."""
        response = self._response(exchange, self._finish, self._items)
        return [self._event(f"response.{response['status']}", response=response)]

    def failure(self, exchange: Exchange, error: LuthierError) -> list[bytes]:
        """The response as far as it came, and what ended it."""
        said = {"code": "server_error", "message": error.message}
        response = self._response(exchange, "", self._items) | {"status": "failed", "error": said}
        return [self._event("response.failed", response=response)]

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number, **fields}, kind)

    def _response(self, exchange: Exchange, finish_reason: str, items: list[dict[str, Any]]) -> dict[str, Any]:
        return _response(
            exchange.id,
            exchange.created,
            finish_reason,
            items,
            exchange.usage,
            {**self._about, "instructions": self._instructions},
            exchange.parameters,
        )

    # ---- items

    def _more_text(self, exchange: Exchange, text: str, tokens: Sequence[TokenLogprob]) -> list[bytes]:
        events = [] if self._open else self._begin_text(exchange)
        said = listed(tokens) if self._logprobs else []
        self._text.append(text)
        self._said += said
        return [*events, self._event("response.output_text.delta", **self._place, delta=text, logprobs=said)]

    def _begin_text(self, exchange: Exchange) -> list[bytes]:
        item_id = _item_id("msg", exchange.id, len(self._items))
        self._place = {"item_id": item_id, "output_index": len(self._items), "content_index": 0}
        self._open, self._text, self._said = True, [], []
        return [
            self._event(
                "response.output_item.added",
                output_index=len(self._items),
                item=_message(item_id, None, [], "in_progress"),
            ),
            self._event("response.content_part.added", **self._place, part=_part("", [])),
        ]

    def _close(self, finish_reason: str, answer: Generation | None = None) -> list[bytes]:
        """The end of the text item that is open, if one is, with what ``answer`` rests on."""
        if not self._open:
            return []
        self._open = False
        text, said = "".join(self._text), self._said
        notes = [] if answer is None else response_annotations(answer)
        item = _message(self._place["item_id"], text, said, _status(finish_reason), notes)
        if answer is not None and is_from_documents(answer):
            item["luthier"] = extension(answer)
        self._items.append(item)
        added = [
            self._event(
                "response.output_text.annotation.added", **self._place, annotation_index=number, annotation=note
            )
            for number, note in enumerate(notes)
        ]
        return [
            *added,
            self._event("response.output_text.done", **self._place, text=text, logprobs=said),
            self._event("response.content_part.done", **self._place, part=_part(text, said, notes)),
            self._event("response.output_item.done", output_index=self._place["output_index"], item=item),
        ]

    def _call(self, exchange: Exchange, call: ToolCall) -> list[bytes]:
        index = len(self._items)
        item = _call(exchange.id, index, self._calls, call)
        self._calls += 1
        self._items.append(item)
        place = {"item_id": item["id"], "output_index": index}
        begun = item | {"arguments": "", "status": "in_progress"}
        return [
            self._event("response.output_item.added", output_index=index, item=begun),
            self._event("response.function_call_arguments.delta", **place, delta=call.arguments),
            self._event("response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments),
            self._event("response.output_item.done", output_index=index, item=item),
        ]


def retrieved(trace: Trace) -> dict[str, Any]:
    """A stored response."""
    about = trace.details["response"][0]
    calls = [ToolCall(call["name"], call["arguments"], call["id"]) for call in trace.details.get("tool_calls", ())]
    items = _items(trace.id, trace.answer, [], calls, trace.finish_reason)
    instructions = trace.messages[0]["content"] if about.get("instructions") else None
    created = int(datetime.fromisoformat(trace.created_at).timestamp())
    response = _response(
        trace.id, created, trace.finish_reason, items, (trace.prompt_tokens, trace.completion_tokens, 0),
        {**about, "instructions": instructions}, trace.parameters,
    )  # fmt: skip
    if trace.error:
        response |= {"status": "failed", "error": {"code": "server_error", "message": trace.error}}
    return response


def _response(
    response_id: str,
    created: int,
    finish_reason: str,
    items: list[dict[str, Any]],
    usage: tuple[int, int, int],
    about: Mapping[str, Any],
    parameters: Mapping[str, Any],
) -> dict[str, Any]:
    prompt, completion, cached = usage
    reason = _INCOMPLETE.get(finish_reason)
    return {
        "id": response_id,
        "object": "response",
        "created_at": created,
        "status": _status(finish_reason),
        "error": None,
        "incomplete_details": {"reason": reason} if reason else None,
        "output": items,
        **about,
        "parallel_tool_calls": parameters.get("parallel_tool_calls", True),
        "temperature": parameters.get("temperature"),
        "top_p": parameters.get("top_p", 1.0),
        "tools": [
            {"type": "function", **tool, "parameters": json.loads(tool["parameters"])}
            for tool in parameters.get("tools", ())
        ],
        "metadata": parameters.get("metadata", {}),
        "user": parameters.get("user"),
        "background": False,
        "truncation": "disabled",
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + completion,
        },
    }


def _items(
    response_id: str,
    text: str,
    said: list[dict[str, Any]],
    calls: Sequence[ToolCall],
    finish_reason: str,
    notes: Sequence[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    items = []
    if text or not calls:
        items.append(_message(_item_id("msg", response_id, 0), text, said, _status(finish_reason), notes))
    first = len(items)
    return [*items, *(_call(response_id, first + number, number, call) for number, call in enumerate(calls))]


def _message(
    item_id: str, text: str | None, said: list[dict[str, Any]], status: str, notes: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    content = [] if text is None else [_part(text, said, notes)]
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": content}


def _part(text: str, said: list[dict[str, Any]], notes: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": list(notes), "logprobs": said}


def _call(response_id: str, index: int, number: int, call: ToolCall) -> dict[str, Any]:
    return {
        "id": _item_id("fc", response_id, index), "type": "function_call", "status": "completed",
        "call_id": call_id(call.id, response_id, 0, number), "name": call.name, "arguments": call.arguments,
    }  # fmt: skip


def _item_id(kind: str, response_id: str, index: int) -> str:
    return f"{kind}_{response_id.rpartition('_')[2]}{index:02x}"


def _status(finish_reason: str) -> str:
    return "incomplete" if finish_reason in _INCOMPLETE else "completed"
