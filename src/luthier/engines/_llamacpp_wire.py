"""Requests to llama.cpp's server and answers read from it, token by token where something is said of tokens."""

from __future__ import annotations

import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from luthier.core.engine import Delta, Generation, Sampling, TokenLogprob
from luthier.core.errors import EngineError, UnsupportedError
from luthier.core.message import ToolCall
from luthier.data.call_form import call_form
from luthier.data.token_bytes import bytes_of_tokens
from luthier.engines._text import AnswerText
from luthier.engines._tools import ToolText, decoder, offered, wanted_form

if TYPE_CHECKING:
    from luthier.data.render import Renderer

Drawn = tuple[int, TokenLogprob | None]
"""A token of an answer, and what is said of it when that was asked."""

FIELDS = ("content", "stop", "tokens", "stop_type", "tokens_predicted", "timings/cache_n", "timings/predicted_ms")
_LONGEST = 8  # bytes of a character that tokens may share, with what stands before it in the same token


def request_body(ids: Sequence[int], sampling: Sampling, context_length: int) -> dict[str, Any]:
    """The request that draws an answer to ``ids``. Only samplers that do something are named: each costs time at every token.

    llama.cpp counts the prompt's tokens in all penalties; for the frequency penalty, which is of the answer alone, the logit bias gives
    back what the prompt's tokens would lose. Raises UnsupportedError where that cannot be done.
    """
    greedy = sampling.temperature == 0.0
    bias = dict(sampling.logit_bias)
    samplers = ["temperature"]
    body: dict[str, Any] = {
        "prompt": list(ids),
        "n_predict": min(sampling.max_new_tokens, context_length - len(ids)),
        "temperature": sampling.temperature,
        "stop": list(sampling.stop),
        "return_tokens": True,
        "cache_prompt": True,
        "response_fields": FIELDS,
    }
    if sampling.repetition_penalty != 1.0 or sampling.frequency_penalty:
        refuse_mixed_penalties(sampling)
        samplers.insert(0, "penalties")
        body |= {"repeat_penalty": sampling.repetition_penalty, "repeat_last_n": context_length}
        body["frequency_penalty"] = sampling.frequency_penalty
        if sampling.frequency_penalty:
            for token, count in Counter(ids).items():
                bias[token] = bias.get(token, 0.0) + sampling.frequency_penalty * count
    for name, off in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):  # transformers' order
        if not greedy and getattr(sampling, name) != off:
            samplers.append(name)
            body[name] = getattr(sampling, name)
    if not greedy:
        body["seed"] = secrets.randbits(31) if sampling.seed is None else sampling.seed % 2**31
    if bias:
        body["logit_bias"] = [[token, value] for token, value in bias.items()]
    if sampling.logprobs is not None:
        body["n_probs"] = max(1, sampling.logprobs)
        body["response_fields"] = [*FIELDS, "completion_probabilities"]
    return body | {"samplers": samplers}


def form_fields(renderer: Renderer, sampling: Sampling) -> dict[str, Any]:
    """The fields that hold an answer to its form, and keep the special tokens by which calls are known.

    llama.cpp takes a special token for its letters where a form allows them, and shows nothing of it, and reads bytes that are no UTF-8 as characters;
    so both are ruled out.

    Raises InputError for a form that cannot be read, UnsupportedError for one that cannot be held.
    """
    fields: dict[str, Any] = {}
    constraint = wanted_form(renderer, sampling)
    if constraint is not None:
        from luthier.models.gbnf import grammar

        if sampling.presence_penalty:
            raise UnsupportedError(
                "presence_penalty: engine llamacpp cannot combine it with a form of the answer or a tool that must be called",
                parameters=("presence_penalty", constraint.kind if constraint is sampling.constraint else "tools"),
            )
        kept = set(renderer.stop_ids)
        if offered(sampling):
            kept |= {renderer.tokenizer.convert_tokens_to_ids(token) for token in call_form(renderer).tokens}
        fields["grammar"] = grammar(constraint)
        ruled_out = (renderer.special_ids - kept) | _overlong(renderer, fields["grammar"])
        fields["logit_bias"] = [[token, False] for token in sorted(ruled_out)]
    if offered(sampling):
        fields["preserved_tokens"] = list(call_form(renderer).tokens)
    return fields


_NEVER = re.compile(rb"[\xc0\xc1\xf5-\xff]|\xe0[\x80-\x9f]|\xf0[\x80-\x8f]")
_LEADS = {b"\xe0": re.compile("[\u0800-\u0fff]"), b"\xf0": re.compile("[\U00010000-\U0010fffe]")}
_overlong_ids: WeakKeyDictionary[Renderer, dict[bytes, frozenset[int]]] = WeakKeyDictionary()


def _overlong(renderer: Renderer, grammar: str) -> frozenset[int]:
    """Tokens by which a character could get more bytes than UTF-8 gives it (RFC 3629, section 3): those that hold such bytes, and those that end
    with a first byte that begins such and right ones, unless the grammar names a character of its kind. Most characters of that kind can
    still be said in tokens that hold two of their bytes."""
    known = _overlong_ids.get(renderer)
    if known is None:
        tokens = list(enumerate(bytes_of_tokens(renderer)))
        found = {b"": frozenset(token for token, data in tokens if _NEVER.search(data))}
        found |= {lead: frozenset(token for token, data in tokens if data.endswith(lead)) for lead in _LEADS}
        known = _overlong_ids.setdefault(renderer, found)
    return known[b""].union(*(known[lead] for lead, needs in _LEADS.items() if not needs.search(grammar)))


def refuse_mixed_penalties(sampling: Sampling) -> None:
    """Raise UnsupportedError for penalties that llama.cpp cannot hold apart."""
    if sampling.repetition_penalty != 1.0 and (sampling.presence_penalty or sampling.frequency_penalty):
        named = "presence_penalty" if sampling.presence_penalty else "frequency_penalty"
        raise UnsupportedError(
            f"{named}: engine llamacpp cannot combine it with repetition_penalty; send one of them",
            parameters=(named, "repetition_penalty"),
        )


class Reader:
    """One answer. ``weigh`` gives a token's log-probability after other tokens; ``vocabulary`` gives each token's bytes."""

    def __init__(
        self,
        renderer: Renderer,
        prompt: Sequence[int],
        sampling: Sampling,
        weigh: Callable[[Sequence[int], int], TokenLogprob],
        vocabulary: Callable[[], Sequence[bytes]],
    ) -> None:
        self._renderer, self._prompt, self._sampling = renderer, prompt, sampling
        self._weigh, self._vocabulary = weigh, vocabulary
        self._decode = decoder(renderer, sampling)
        self._tools = ToolText(renderer, sampling) if offered(sampling) else None
        self._start = time.perf_counter()
        self._first_s = 0.0
        self._cached = 0
        self._ended = ""  # how llama.cpp says that it ended

    # ---- a whole answer

    def whole(self, answer: Mapping[str, Any]) -> Generation:
        """An answer that came at once."""
        self._note_end(answer)
        self._first_s = time.perf_counter() - self._start - float(answer.get("timings/predicted_ms") or 0.0) / 1000
        ids, ended = self._before_stop(answer["tokens"])
        stopped = False
        if self._sampling.stop:
            grown = AnswerText(self._decode, self._sampling.stop)
            for token in ids:
                grown.push(token)
            grown.finish()
            text, ids, stopped = grown.text, list(grown.ids), grown.stopped
        else:
            text = self._decode(ids)
        tokens = self._told(answer.get("completion_probabilities") or [], ids)
        if self._tools is not None:
            self._tools.finish(text)
        return self._generation(text, ids, tokens, "stop" if ended or stopped else "length")

    def _told(self, entries: Sequence[Mapping[str, Any]], ids: Sequence[int]) -> tuple[TokenLogprob, ...]:
        """What is said of each token: llama.cpp leaves out those after which a character is not complete."""
        if self._sampling.logprobs is None:
            return ()
        if [entry["id"] for entry in entries[: len(ids)]] == list(ids):
            return tuple(self._read(entry) for entry in entries[: len(ids)])
        out: list[TokenLogprob] = []
        left, text, vocabulary = iter(entries), b"", self._vocabulary()
        for place, token in enumerate(ids):
            text = (text + vocabulary[token])[-_LONGEST:]
            entry = None if _ends_inside(text) else next(left, None)
            said = entry is not None and entry["id"] == token
            out.append(self._read(entry) if said else self._weigh([*self._prompt, *ids[:place]], token))  # type: ignore[arg-type]
        return tuple(out)

    def _read(self, entry: Mapping[str, Any]) -> TokenLogprob:
        return read_entry(entry, self._sampling.logprobs or 0)

    # ---- a streamed answer

    def stream(self, events: Iterable[Mapping[str, Any]]) -> Iterator[Delta]:
        """An answer that comes in events. Raises EngineError when they end before the answer does."""
        if self._sampling.logprobs is not None:
            yield from self.grow(self._drawn(events))
            return
        text: list[str] = []
        tokens: list[int] = []
        count = 0
        for event in events:
            if event.get("stop"):
                self._note_end(event)
                count = int(event["tokens_predicted"])
            tokens += event["tokens"]
            if event["content"]:
                self._first_s = self._first_s or time.perf_counter() - self._start
                text.append(event["content"])
                delta = self._shown(event["content"])
                if delta is not None:
                    yield delta
        ids, ended = self._before_stop(tokens if len(tokens) == count else [])
        whole = "".join(text)
        if self._ended == "word" and ids:
            ids = self._until(ids, whole)
        last = self._finish()
        if last is not None:
            yield last
        finish = "stop" if ended or self._ended == "word" else "length"
        counted = len(ids) if ids else count - (self._ended == "eos")
        yield Delta("", self._generation(whole, ids, (), finish, counted))

    def _until(self, ids: list[int], text: str) -> list[int]:
        """The tokens that ``text`` needs."""
        grown = AnswerText(self._decode, self._sampling.stop)
        for token in ids:
            grown.push(token)
        grown.finish()
        return list(grown.ids) if grown.text == text else []

    def grow(self, drawn: Iterable[Drawn]) -> Iterator[Delta]:
        """An answer whose tokens are known one by one; its text ends here, not in llama.cpp."""
        grown = AnswerText(self._decode, self._sampling.stop)
        said: list[TokenLogprob] = []
        told = 0
        stopped = False
        for token, about in drawn:
            if token in self._renderer.stop_ids:
                stopped = True
                break
            self._first_s = self._first_s or time.perf_counter() - self._start
            said += [about] if about is not None else []
            text = grown.push(token)
            sure = max(told, grown.shown_tokens)
            delta = self._shown(text, tuple(said[told:sure]))
            told = sure
            if delta is not None:
                yield delta
            if grown.stopped:
                break
        rest = grown.finish()
        ids, tokens = list(grown.ids), tuple(said[: len(grown.ids)])
        for last in (self._shown(rest, tokens[told:]), self._finish()):
            if last is not None:
                yield last
        finish = "stop" if stopped or grown.stopped or self._ended == "eos" else "length"
        yield Delta("", self._generation(grown.text, ids, tokens, finish))

    def _drawn(self, events: Iterable[Mapping[str, Any]]) -> Iterator[Drawn]:
        """Tokens of a stream, those too that llama.cpp leaves out because a character is not complete after them."""
        ids: list[int] = []
        for event in events:
            if event.get("stop"):
                self._note_end(event)
                return
            (entry,) = event["completion_probabilities"][:1]
            missing = int(event["tokens_predicted"]) - len(ids) - 1
            if missing:
                written, last = event["content"].encode(), bytes(entry["bytes"])
                lost = written.removesuffix(last)
                for token in split_bytes(lost, missing, self._ids_by_bytes()):
                    yield token, self._weigh([*self._prompt, *ids], token)
                    ids.append(token)
            ids.append(int(entry["id"]))
            yield ids[-1], self._read(entry)
        raise EngineError("llama.cpp broke off in the middle of an answer", retryable=True)

    def _ids_by_bytes(self) -> dict[bytes, int]:
        return {data: token for token, data in reversed(list(enumerate(self._vocabulary()))) if data}

    # ---- both

    def _shown(self, text: str, tokens: tuple[TokenLogprob, ...] = ()) -> Delta | None:
        calls: tuple[ToolCall, ...] = ()
        if self._tools is not None:
            text, calls = self._tools.push(text)
        return Delta(text, tokens=tokens, tool_calls=calls) if text or tokens or calls else None

    def _finish(self) -> Delta | None:
        text, calls = self._tools.finish() if self._tools is not None else ("", ())
        return Delta(text, tool_calls=calls) if text or calls else None

    def _note_end(self, answer: Mapping[str, Any]) -> None:
        self._ended = str(answer["stop_type"])
        self._cached = int(answer.get("timings/cache_n") or 0)

    def note_cached(self, tokens: int) -> None:
        """So many tokens of the prompt were known already."""
        self._cached = tokens

    def _before_stop(self, tokens: list[int]) -> tuple[list[int], bool]:
        """The tokens before the one that ends the answer, and whether the model ended it."""
        if not self._ended:
            raise EngineError("llama.cpp broke off in the middle of an answer", retryable=True)
        for place, token in enumerate(tokens):
            if token in self._renderer.stop_ids:
                return tokens[:place], True
        if self._ended == "eos":
            return tokens[:-1], True
        return tokens, False

    def _check_bytes(self, ids: Sequence[int]) -> None:
        """Raise EngineError for bytes that are no text: llama.cpp counted them as characters of the form."""
        vocabulary = self._vocabulary()
        try:
            b"".join(vocabulary[token] for token in ids).decode()
        except UnicodeDecodeError as error:
            raise EngineError(
                "llama.cpp wrote bytes that are no UTF-8 into an answer with a form", retryable=True
            ) from error

    def _generation(
        self, text: str, ids: Sequence[int], tokens: tuple[TokenLogprob, ...], finish: str, count: int | None = None
    ) -> Generation:
        if self._sampling.constraint is not None and finish == "stop" and "\ufffd" in text:
            self._check_bytes(ids)
        calls = self._tools.calls if self._tools is not None else ()
        spent = time.perf_counter() - self._start
        return Generation(
            text=text if self._tools is None else self._tools.text,
            token_ids=tuple(ids),
            prompt_token_ids=tuple(self._prompt),
            finish_reason="tool_calls" if calls else finish,
            logprob=sum(token.logprob for token in tokens) if self._sampling.logprobs is not None else None,
            first_token_s=min(max(0.0, self._first_s), spent) or spent,
            latency_s=spent,
            prompt_tokens=len(self._prompt),
            completion_tokens=len(ids) if count is None else count,
            tokens=tokens,
            tool_calls=calls,
            cached_tokens=self._cached,
        )


def read_entry(entry: Mapping[str, Any], alternatives: int) -> TokenLogprob:
    """What llama.cpp says of a token."""
    top = tuple((bytes(each["bytes"]), float(each["logprob"])) for each in entry["top_logprobs"][:alternatives])
    return TokenLogprob(bytes(entry["bytes"]), float(entry["logprob"]), top)


def split_bytes(data: bytes, count: int, vocabulary: Mapping[bytes, int]) -> list[int]:
    """``count`` tokens whose bytes joined are ``data``; of several ways the one with the longest tokens first.

    Raises EngineError when there is none.
    """
    found = _split(data, count, vocabulary)
    if found is None:
        raise EngineError(f"llama.cpp wrote {data!r} with {count} tokens; the vocabulary has none such")
    return found


def _split(data: bytes, count: int, vocabulary: Mapping[bytes, int]) -> list[int] | None:
    if count == 0:
        return None if data else []
    for size in range(len(data) - count + 1, 0, -1):
        token = vocabulary.get(data[:size])
        rest = _split(data[size:], count - 1, vocabulary) if token is not None else None
        if token is not None and rest is not None:
            return [token, *rest]
    return None


def _ends_inside(data: bytes) -> bool:
    """Whether the last character of UTF-8 text is not complete."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:  # the byte that begins the last character
            return back < (2 if byte & 0xE0 == 0xC0 else 3 if byte & 0xF0 == 0xE0 else 4 if byte & 0xF8 == 0xF0 else 1)
    return False
