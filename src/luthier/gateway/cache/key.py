"""What must be equal for an answer to be used again, and which questions and answers a cache may keep at all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

import orjson

from luthier.core.engine import Generation, Sampling
from luthier.core.message import Message, Prompt
from luthier.gateway.layers import Question

_FORMAT = 1
_NOT = frozenset({"not", "no", "never", "none", "nobody", "nothing", "without", "neither", "nor", "cannot", "except"})
_SMALL = frozenset(
    [
        "a",
        "an",
        "the",
        "my",
        "our",
        "please",
        "kindly",
        "do",
        "does",
        "can",
        "could",
        "would",
        "is",
        "are",
        "am",
        "be",
        "s",
        "m",
        "re",
        "just",
        "also",
        "so",
        "then",
    ]
)
_ENDINGS = ("ies", "es", "s", "ing", "ed")
_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"\d+(?:[.,:/]\d+)*")


@dataclass(frozen=True, slots=True)
class Control:
    """What a request's ``Cache-Control`` says (RFC 9111, section 5.2.1), and ``sampled``: an answer that was drawn may be used again."""

    read: bool = True
    keep: bool = True
    max_age_s: float | None = None
    only_cached: bool = False
    sampled: bool = False

    @staticmethod
    def of(header: str) -> Control:
        """The directives of a header; those that are not known are left alone, as the RFC says."""
        if not header:
            return _PLAIN
        said = {
            name.strip().lower(): value.strip(' "')
            for name, _, value in (each.partition("=") for each in header.split(","))
        }
        age = said.get("max-age", "")
        return Control(
            read="no-cache" not in said and "no-store" not in said,
            keep="no-store" not in said,
            max_age_s=float(age) if age.isascii() and age.isdigit() else None,
            only_cached="only-if-cached" in said,
            sampled="sampled" in said,
        )


_PLAIN = Control()


def repeatable(sampling: Sampling) -> bool:
    """Whether the same question has the same answer: greedy, beams, or drawn with a seed."""
    return sampling.temperature == 0.0 or sampling.beams > 1 or sampling.seed is not None


def fixed(prompts: Sequence[Prompt]) -> bool:
    """Whether prompts hold all that they are about: a picture behind a web address may be another tomorrow."""
    return all(
        image.url.startswith("data:")
        for prompt in prompts
        if not isinstance(prompt, str)
        for message in prompt
        for image in message.images
    )


def key_of(question: Question) -> str:
    """The digest of everything that an answer depends on, the tenant first."""
    return _digest([*_common(question), [_plain(prompt) for prompt in question.prompts]])


def partition_of(question: Question, *, words: bool) -> tuple[str, str] | None:
    """(digest of everything but the wording of the last turn, that turn's text) of a question that may be answered by meaning; None of another.

    Numbers and whether something is denied are no matter of wording: an embedding hardly sees them. With ``words`` neither are the other words and
    their order: only endings and small words (the, my, do, can, is) may differ then.
    """
    if question.n != 1 or len(question.prompts) != 1 or isinstance(question.prompts[0], str):
        return None
    *before, last = question.prompts[0]
    if last.role != "user" or last.images or not last.content.strip():
        return None
    blank = [*before, replace(last, content="")]
    return _digest(
        [*_common(question), "meaning", _plain(tuple(blank)), *_literal(last.content, words=words)]
    ), last.content


def keepable(question: Question, answers: Sequence[Generation]) -> bool:
    """Whether answers may be used again: all are whole, none calls a tool, and each has the form that was asked for."""
    return all(each.finish_reason == "stop" and not each.tool_calls for each in answers) and all(
        _in_form(question.sampling, each.text) for each in answers
    )


def _in_form(sampling: Sampling, text: str) -> bool:
    constraint = sampling.constraint
    if constraint is None:
        return True
    if constraint.kind == "choice":
        return text in json.loads(constraint.value)
    if constraint.kind in ("json", "json_schema"):
        try:
            json.loads(text)
        except ValueError:
            return False
    return True


def _common(question: Question) -> list[Any]:
    exchange, served = question.exchange, question.served
    assert served is not None  # a route comes before
    info = served.engine.info
    return [
        _FORMAT,
        exchange.caller.tenant,
        exchange.operation,
        served.name,
        [info.engine, info.model, info.model_digest, info.base_digest, info.template_digest, info.prompt_digest],
        list(info.labels),
        sorted((name, str(value)) for name, value in info.meta),  # an index version, among others
        question.n,
        _sampling(question.sampling),
    ]


def _sampling(sampling: Sampling) -> Mapping[str, Any]:
    """All of it but what greedy decoding does not look at."""
    said = asdict(sampling)
    if sampling.temperature == 0.0:
        for name in ("top_p", "top_k", "min_p", "seed"):
            del said[name]
    return said


def _plain(prompt: Prompt) -> Any:
    return prompt if isinstance(prompt, str) else [_turn(message) for message in prompt]


def _turn(message: Message) -> Any:
    calls = [[call.name, call.arguments, call.id] for call in message.tool_calls]
    images = [[image.url, image.at, image.detail] for image in message.images]
    return [message.role, message.content, calls, message.tool_call_id, images]


def _digest(value: Any) -> str:
    try:
        data = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # half of a surrogate pair, a number beyond 64 bits
        data = json.dumps(value, sort_keys=True).encode("ascii")
    return sha256(data).hexdigest()


def _literal(text: str, *, words: bool) -> list[Any]:
    plain = text.lower().replace("n't", " not").replace("n’t", " not")
    found = _WORD.findall(plain)
    denied = sum(word in _NOT for word in found) % 2
    kept = [_stem(word) for word in found if word not in _SMALL] if words else []
    return [_NUMBER.findall(plain), denied, kept]


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
