"""What people did with answers, found in the traces: asked again, put it otherwise, left in the middle, went on with one of two.

This is weaker than what people say, and of another kind: it is recorded as ``implicit`` with the source ``inferred``, and never counts where
feedback that somebody gave does.

- ``regenerated``: the same conversation was asked again in the session within ``AGAIN_S``.
- ``preferred``: of several answers to the same conversation the session went on with this one; ``over`` is each of the others.
- ``rephrased``: the next question of the session, within ``SOON_S``, says nearly the same as the last one, without a new name or number in it.
- ``stopped``: the client left while the answer was being written.

Requests that failed are no statement on an answer, and neither are several choices of one request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rapidfuzz import fuzz
from rapidfuzz.distance import Levenshtein

from luthier.core.digest import digest_json
from luthier.core.trace import Feedback, Trace, asked_last, text_of
from luthier.data.dedupe import normalise
from luthier.store.database import Store
from luthier.store.feedback import record_inferred
from luthier.store.trace_query import TraceFilter, iterate_traces

AGAIN_S = 1800.0
SOON_S = 300.0
ALIKE, ALIKE_UNSPACED = 75.0, 65.0
"""Least likeness of a question that is put otherwise, 0 to 100: rapidfuzz's token set ratio, in scripts without spaces its ratio of characters."""

GONE = "client_gone"
_LEAST_CHARACTERS = 8
_MISTYPED = 65.0
_LATELY = 20  # requests of a session that a new one is compared with
_SESSIONS = 10_000  # sessions whose last requests are in memory
_NAMED = re.compile(r"\d+|(?<=[a-z,;:] )[A-Z]\w+")
_CHOICE = re.compile(r"\.\d+$")

Turns = tuple[tuple[str, str], ...]


def infer_feedback(store: Store, wanted: TraceFilter | None = None) -> dict[str, int]:
    """Find implicit feedback in the traces that ``wanted`` fits and record what is new. Returns how much of each event was new."""
    counts: dict[str, int] = {}
    batch: list[Feedback] = []
    for given in found_in(iterate_traces(store, wanted or TraceFilter())):
        batch.append(given)
        if len(batch) == 1000:
            _record(store, batch, counts)
            batch = []
    _record(store, batch, counts)
    return counts


def _record(store: Store, batch: Sequence[Feedback], counts: dict[str, int]) -> None:
    for event in sorted({given.event for given in batch}):
        counts[event] = counts.get(event, 0) + record_inferred(store, [each for each in batch if each.event == event])


def found_in(traces: Iterable[Trace]) -> Iterator[Feedback]:
    """Implicit feedback in ``traces``, which come oldest first. Memory is bounded by ``_SESSIONS`` sessions of ``_LATELY`` requests."""
    sessions: dict[tuple[str, ...], list[Trace]] = {}
    for trace in traces:
        if trace.operation != "chat" or not trace.messages or _CHOICE.search(trace.id):
            continue
        if trace.answer and any(said.get("kind") == GONE for said in trace.details.get("error", ())):
            yield _given(trace, "stopped")
        user = str(trace.parameters.get("user") or "")
        if not (trace.session or user):
            continue
        whose = (trace.tenant, trace.key_id, trace.session, user)
        before = sessions.pop(whose, [])
        yield from _compared(before, trace)
        sessions[whose] = [*before, trace][-_LATELY:]  # popped and set: the last one used is the last one
        if len(sessions) > _SESSIONS:
            del sessions[next(iter(sessions))]


def _compared(before: Sequence[Trace], new: Trace) -> Iterator[Feedback]:
    turns = turns_of(new.messages)
    answered = [old for old in before if not old.error and old.answer.strip()]
    same = [old for old in answered if turns_of(old.messages) == turns]
    if same and _seconds(same[-1], new) <= AGAIN_S:
        yield _given(same[-1], "regenerated")
        return
    yield from _preferred(answered, turns)
    last = answered[-1] if answered else None
    if last is not None and _seconds(last, new) <= SOON_S and _put_otherwise(last, new, turns):
        yield _given(last, "rephrased")


def _preferred(answered: Sequence[Trace], turns: Turns) -> Iterator[Feedback]:
    """Where ``turns`` go on from one of several answers to the same conversation."""
    groups: dict[Turns, list[Trace]] = {}
    for old in answered:
        groups.setdefault(turns_of(old.messages), []).append(old)
    for asked, rivals in groups.items():
        if len(rivals) < 2 or len(turns) <= len(asked) or turns[: len(asked)] != asked:
            continue
        taken = [old for old in rivals if turns[len(asked)] == ("assistant", normalise(old.answer))]
        others = [old for old in rivals if taken and normalise(old.answer) != normalise(taken[-1].answer)]
        for other in others:
            yield _given(taken[-1], "preferred", over=other.id)


def _put_otherwise(last: Trace, new: Trace, turns: Turns) -> bool:
    """Whether ``new`` asks nearly the same as ``last``: after its answer, or instead of its question."""
    asked = turns_of(last.messages)
    follows = turns[: len(asked)] == asked and turns[len(asked) : -1] == (("assistant", normalise(last.answer)),)
    instead = turns[:-1] == asked[:-1]
    return (follows or instead) and alike(asked_last(last), asked_last(new))


def alike(one: str, other: str) -> bool:
    """Whether two different texts say nearly the same: most words in common, and not the same sentence about something else ("the capital of
    france", "the capital of spain"; other numbers or names)."""
    first, second = normalise(one), normalise(other)
    if first == second or min(len(first), len(second)) < _LEAST_CHARACTERS:
        return False
    if set(_NAMED.findall(one)) != set(_NAMED.findall(other)):
        return False
    spaced = " " in first and " " in second
    if _only_something_else(*((text.split() if spaced else list(text)) for text in (first, second))):
        return False
    if spaced:
        return bool(fuzz.token_set_ratio(first, second) >= ALIKE)
    return bool(fuzz.ratio(first, second) >= ALIKE_UNSPACED)


def _only_something_else(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether all that differs is a word or two (or characters, in scripts without spaces) in the place of others that are not alike."""
    edits = Levenshtein.editops(first, second)
    if any(edit.tag != "replace" for edit in edits):
        return False
    pairs = [(first[edit.src_pos], second[edit.dest_pos]) for edit in edits]
    return len(pairs) <= 3 and any(fuzz.ratio(*pair) < _MISTYPED for pair in pairs)


def turns_of(messages: Sequence[Mapping[str, Any]]) -> Turns:
    """Role and normalised text of each turn."""
    return tuple((str(each.get("role", "")), normalise(text_of(each))) for each in messages)


def _seconds(old: Trace, new: Trace) -> float:
    """From the end of one request to the arrival of the next."""
    begin, end = datetime.fromisoformat(new.created_at), datetime.fromisoformat(old.created_at)
    return (begin - end).total_seconds() - old.latency_s


def _given(trace: Trace, event: str, over: str = "") -> Feedback:
    return Feedback(
        id=f"fb_{digest_json([trace.id, event, over])[:24]}",
        trace_id=trace.id,
        created_at=trace.created_at,
        kind="implicit",
        event=event,
        source="inferred",
        over=over,
        tenant=trace.tenant,
        key_id=trace.key_id,
        said_by=str(trace.parameters.get("user") or "")[:512],
    )
