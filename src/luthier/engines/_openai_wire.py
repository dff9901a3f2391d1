"""Requests in the OpenAI wire format, and answers read out of it."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.core.engine import Delta, Generation, Sampling, TokenLogprob
from luthier.core.errors import EngineError
from luthier.core.message import ToolCall
from luthier.engines._openai_dialect import Dialect, form_fields
from luthier.engines._tools import ToolText

_FINISH = {
    "function_call": "tool_calls",
    "max_tokens": "length",
    "": "stop",
    "stop_sequence": "stop",
    "end_turn": "stop",
}


def sampling_fields(sampling: Sampling, dialect: Dialect, *, chat: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fields of OpenAI's own API, fields beyond it); those that are off are left out where leaving out means off."""
    own, off = dialect.own_defaults, Sampling()
    arguments: dict[str, Any] = {"temperature": sampling.temperature}
    extra: dict[str, Any] = {}
    for name in ("top_p", "presence_penalty", "frequency_penalty"):
        if own or getattr(sampling, name) != getattr(off, name):
            arguments[name] = getattr(sampling, name)
    for name in ("top_k", "min_p", "repetition_penalty", *(("beams",) if sampling.beams > 1 else ())):
        if own or getattr(sampling, name) != getattr(off, name):
            extra[name] = getattr(sampling, name)
    if own and not sampling.top_k:
        extra["top_k"] = -1  # off in every version of vLLM
    if sampling.seed is not None:
        arguments["seed"] = sampling.seed
    if sampling.stop:
        arguments["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        arguments["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.logprobs is not None:
        arguments |= {"logprobs": True, "top_logprobs": sampling.logprobs} if chat else {"logprobs": sampling.logprobs}
    if sampling.constraint is not None:
        extra |= form_fields(sampling.constraint, dialect.structured, chat=chat)
    if chat and sampling.tools and "tools" in dialect.parameters:
        arguments |= tool_fields(sampling)
    return arguments, extra


def tool_fields(sampling: Sampling) -> dict[str, Any]:
    """``tools``, ``tool_choice`` and, where several calls are not wanted, ``parallel_tool_calls``."""
    choice: Any = sampling.tool_choice
    if choice not in ("none", "auto", "required"):
        choice = {"type": "function", "function": {"name": choice}}
    fields = {"tools": [tool.as_dict() for tool in sampling.tools], "tool_choice": choice}
    return fields if sampling.parallel_tool_calls else fields | {"parallel_tool_calls": False}


@dataclass
class Answer:
    """A choice while it is read: whole, or piece by piece."""

    ids: tuple[int, ...]
    chat: bool
    tools: ToolText | None = None  # where calls are read out of the text
    bytes_of: Sequence[bytes] = ()  # where tokens come as ids
    start: float = field(default_factory=time.perf_counter)
    text: str = ""
    reasoning: str = ""
    finish: str | None = None
    refused: bool = False
    tokens: list[TokenLogprob] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)
    first_s: float = 0.0

    def take(self, choice: Any) -> Delta:
        """One whole choice, or one piece of it; returns what is new."""
        self.finish = choice.finish_reason or self.finish
        said = getattr(choice, "message", None) or getattr(choice, "delta", None) if self.chat else choice
        if said is None:
            raise ValueError("a choice without a message")
        tokens = tuple(_tokens(getattr(choice, "logprobs", None), self._bytes, chat=self.chat))
        text = (said.content if self.chat else said.text) or ""
        finished: tuple[ToolCall, ...] = ()
        if self.chat:
            self.reasoning += getattr(said, "reasoning", None) or getattr(said, "reasoning_content", None) or ""
            if getattr(said, "refusal", None):
                self.refused, text = True, text + said.refusal
            finished = self._take_calls(said.tool_calls or ())
        if self.tools is not None:
            text, finished = self.tools.push(text)
        self.text += text
        self.tokens += tokens
        if (text or tokens or finished) and not self.first_s:
            self.first_s = time.perf_counter() - self.start
        return Delta(text, tokens=tokens, tool_calls=finished)

    def _take_calls(self, parts: Sequence[Any]) -> tuple[ToolCall, ...]:
        """Add calls or parts of calls; returns those that are complete because another one began."""
        finished = []
        for part in parts:
            index = getattr(part, "index", None)
            index = len(self.calls) if index is None else index
            place = self.places.get(index)
            if place is None or (part.id and part.id != self.calls[place].id):  # some servers number every call 0
                place = self.places[index] = len(self.calls)
                finished += self.calls[-1:]
                self.calls.append(ToolCall("", "", ""))
            old, new = self.calls[place], part.function
            name, arguments = (getattr(new, "name", None) or ""), (getattr(new, "arguments", None) or "")
            self.calls[place] = ToolCall(old.name + name, old.arguments + arguments, old.id or part.id or "")
        return tuple(finished)

    def rest(self) -> Delta:
        """What was held back; nothing more comes."""
        if self.tools is None:
            return Delta("", tool_calls=tuple(self.calls[-1:]))
        text, calls = self.tools.finish()
        self.text, self.calls = self.tools.text, list(self.tools.calls)
        return Delta(text, tool_calls=calls)

    def _bytes(self, token: str) -> bytes:
        found = token.removeprefix("token_id:")
        return self.bytes_of[int(found)] if found != token and self.bytes_of else token.encode()

    def generation(self, usage: Any, completion_tokens: int | None = None) -> Generation:
        """The whole answer; ``completion_tokens`` where ``usage`` is of several answers."""
        spent = time.perf_counter() - self.start
        finish = _FINISH.get(self.finish or "", self.finish or "stop")
        if finish == "error":
            raise EngineError("the endpoint failed while it answered", retryable=True)
        if self.calls and (finish == "stop" or self.tools is not None):  # a call by name ends so
            finish = "tool_calls"
        details = getattr(usage, "prompt_tokens_details", None)
        told = getattr(usage, "completion_tokens", None) or 0
        return Generation(
            text=self.text,
            token_ids=(),
            prompt_token_ids=self.ids,
            finish_reason="content_filter" if self.refused else finish,
            logprob=sum(token.logprob for token in self.tokens) if self.tokens else None,
            first_token_s=self.first_s or spent,
            latency_s=spent,
            prompt_tokens=getattr(usage, "prompt_tokens", None) or len(self.ids),
            completion_tokens=told if completion_tokens is None else completion_tokens,
            reasoning=self.reasoning,
            tokens=tuple(self.tokens),
            tool_calls=tuple(self.calls),
            cached_tokens=getattr(details, "cached_tokens", None) or 0,
        )


def shares(answers: Sequence[Answer], total: int) -> list[int]:
    """How many of ``total`` tokens each answer has: counted where log-probabilities came, else by the length of the texts."""
    if all(answer.tokens for answer in answers):
        return [len(answer.tokens) for answer in answers]
    sizes = [1 + len(answer.text) + sum(len(call.arguments) for call in answer.calls) for answer in answers]
    ends = [round(total * sum(sizes[: place + 1]) / sum(sizes)) for place in range(len(sizes))]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def _tokens(said: Any, encoded: Callable[[str], bytes], *, chat: bool) -> Iterator[TokenLogprob]:
    if said is None:
        return
    if chat:
        for each in said.content or ():
            top = tuple((_bytes(one.token, one.bytes), float(one.logprob)) for one in each.top_logprobs or ())
            yield TokenLogprob(_bytes(each.token, each.bytes), float(each.logprob), top)
        return
    tops = said.top_logprobs or [None] * len(said.tokens or ())
    for token, number, top in zip(said.tokens or (), said.token_logprobs or (), tops, strict=False):
        best = sorted((top or {}).items(), key=lambda item: -item[1])
        yield TokenLogprob(encoded(token), float(number or 0.0), tuple((encoded(text), float(p)) for text, p in best))


def _bytes(token: str, data: list[int] | None) -> bytes:
    return bytes(data) if data is not None else token.encode()


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``Retry-After`` (RFC 9110, section 10.2.3: seconds or a date) or ``retry-after-ms`` ask for."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) / unit)
        except (KeyError, ValueError):
            continue
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError):
        return None
