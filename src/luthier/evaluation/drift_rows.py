"""What drift is told by: a few figures of each trace, and the texts of an even sample."""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from luthier.core.digest import digest_json
from luthier.core.trace import Trace, asked_last
from luthier.data.implicit import found_in

MOST_TEXTS = 1000
_LANGUAGE_CHARACTERS = 400
_SHORTEST = 12  # characters below which nobody can tell the language

_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_REFUSAL = re.compile(
    r"^\W{0,3}(?:(?:i'?m|i am) (?:really |very |truly )?(?:sorry|afraid|unable)|sorry,? (?:but )?i|(?:unfortunately,? )?i (?:can(?:no|')t|cannot|could not"
    r"|couldn'?t|won'?t|will not|am not able|do not feel)|as an? (?:ai|language model|assistant)\b|(?:my )?apologies"
    r"|(?:很?抱歉|对不起|不好意思)|(?:我|作为[^，。]{0,12}，?我)?(?:无法|不能|没办法|不便))",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class DriftRow:
    """One request. ``who``: the user, else the session, else the request itself; figures are None where there are none."""

    id: str
    who: str
    session: str
    at: datetime
    digest: str
    words: int
    turns: int
    language: str
    answer_tokens: int | None
    logprob: float | None
    label: str
    refused: bool | None
    error: str
    finish_reason: str
    first_s: float | None
    latency_s: float


@dataclass
class DriftWindow:
    """A stretch of time: its requests, the prompts of an even sample of them (by id), ratings and events by trace."""

    name: str
    rows: list[DriftRow] = field(default_factory=list)
    prompts: dict[str, str] = field(default_factory=dict)
    ratings: dict[str, int] = field(default_factory=dict)
    events: dict[str, set[str]] = field(default_factory=dict)
    only_prompts: bool = False

    def digests(self) -> Counter[str]:
        """How many requests each model digest answered."""
        return Counter(row.digest for row in self.rows if row.digest)


def read_window(name: str, traces: Iterable[Trace], *, most_texts: int = MOST_TEXTS) -> DriftWindow:
    """The figures of traces (oldest first, read once). The sample is drawn by the digests of their ids: the same each time."""
    window = DriftWindow(name)
    heap: list[tuple[int, str, str]] = []

    def noted() -> Iterator[Trace]:
        for trace in traces:
            text = asked_last(trace)
            if text and not text.startswith("[REDACTED: "):
                drawn = -int(digest_json(trace.id)[:15], 16)
                entry = (drawn, trace.id, text)
                if len(heap) < most_texts:
                    heapq.heappush(heap, entry)
                else:
                    heapq.heappushpop(heap, entry)
            window.rows.append(_row(trace, text))
            yield trace

    for given in found_in(noted()):
        window.events.setdefault(given.trace_id, set()).add(given.event)
    window.prompts = {trace_id: text for _, trace_id, text in sorted(heap, key=lambda entry: entry[1])}
    return window


def texts_window(name: str, texts: Sequence[str]) -> DriftWindow:
    """A window of texts without requests around them: those of a dataset, to compare prompts with."""
    epoch = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    window = DriftWindow(name, only_prompts=True)
    for number, text in enumerate(texts):
        identity = f"{name}:{number}"
        window.prompts[identity] = text
        window.rows.append(
            DriftRow(
                identity,
                identity,
                "",
                epoch,
                "",
                len(_WORDS.findall(text)),
                1,
                language_of(text),
                None,
                None,
                "",
                None,
                "",
                "",
                None,
                0.0,
            )
        )
    chosen = sorted(window.prompts, key=digest_json)[:MOST_TEXTS]
    window.prompts = {identity: window.prompts[identity] for identity in sorted(chosen)}
    return window


def language_of(text: str) -> str:
    """ISO 639-1 code of a text; ``?`` for one that is too short to tell."""
    import py3langid

    return str(py3langid.classify(text[:_LANGUAGE_CHARACTERS].lower())[0]) if len(text) >= _SHORTEST else "?"


def refuses(answer: str) -> bool:
    """Whether an answer begins as refusals do, in English or Chinese."""
    return _REFUSAL.match(answer) is not None


def _row(trace: Trace, text: str) -> DriftRow:
    user = str(trace.parameters.get("user") or "")
    session = f"{trace.tenant}/{trace.key_id}/{trace.session or user}" if trace.session or user else ""
    whose = f"{trace.tenant}/{trace.key_id}/{user or trace.session}" if user or trace.session else trace.id
    said: Any = next(iter(trace.details.get("answer", ())), {})
    logprob = said.get("logprob") if isinstance(said, dict) else None
    answered = bool(trace.answer.strip()) and not trace.error and not trace.answer.startswith("[REDACTED: ")
    kind = next((str(each.get("kind", "")) for each in trace.details.get("error", ()) if isinstance(each, dict)), "")
    return DriftRow(
        id=trace.id,
        who=whose,
        session=session,
        at=datetime.fromisoformat(trace.created_at),
        digest=trace.model_digest,
        words=len(_WORDS.findall(text)),
        turns=sum(each.get("role") == "user" for each in trace.messages),
        language=language_of(text) if text else "",
        answer_tokens=trace.completion_tokens or (len(_WORDS.findall(trace.answer)) if answered else None),
        logprob=logprob / trace.completion_tokens if logprob is not None and trace.completion_tokens else None,
        label=trace.answer.strip() if answered and len(trace.answer) <= 64 else "",
        refused=refuses(trace.answer) if answered else None,
        error=(kind or "error") if trace.error else "",
        finish_reason=trace.finish_reason,
        first_s=trace.first_token_s,
        latency_s=trace.latency_s,
    )
