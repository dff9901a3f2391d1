"""Traces with feedback become examples again: the last piece of the loop.

The rows hold what real users wrote, which may be personal data: look at them before they are kept or passed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from luthier.core.dataset import Dataset, RowProblem
from luthier.core.errors import DataError, InputError, NotFoundError
from luthier.core.trace import Feedback, Trace
from luthier.data.read import examples_from_rows
from luthier.store.database import Store
from luthier.store.feedback import list_feedback
from luthier.store.lineage import Node, record_edge
from luthier.store.models import find

FeedbackKind = Literal["labelled", "chat", "preference"]
KINDS = ("labelled", "chat", "preference")


def from_feedback(
    store: Store, *, model: str | None = None, kind: FeedbackKind | None = None, name: str = "feedback"
) -> Dataset:
    """Examples from what people said of answers, one a trace, in the order in which they were asked; of several statements on one trace the latest counts.

    The target is the corrected answer or the label; without either, an answer that was rated 1 is its own target. Where the model answers
    with labels (or a label was given) the example is ``labelled``: the last user turn and its label. Otherwise it is ``chat``: the
    conversation and the target. ``kind`` keeps one sort: ``labelled``; ``chat`` (labelled ones as conversations too); ``preference``
    (pairs of a corrected answer over the one that was given). What cannot be used is in ``problems`` with its reason. Each statement that
    was used becomes a lineage edge to the dataset.

    Raises DataError when nothing can be learned yet, InputError when there are both sorts and ``kind`` does not choose.
    """
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    latest = {trace.id: (trace, said) for trace, said in list_feedback(store, model)}
    whose = f" for {model}" if model else ""
    if not latest:
        raise DataError(
            f"there is no feedback{whose} yet", hint="luthier feedback TRACE --corrected '...', or POST /v1/feedback"
        )
    made: dict[str, list[tuple[str, int, dict[str, Any]]]] = {"labelled": [], "chat": []}
    problems = []
    known: dict[str, tuple[str, ...]] = {}
    for line, (trace, said) in enumerate(sorted(latest.values(), key=lambda pair: (pair[0].created_at, pair[0].id)), 1):
        if trace.model not in known:
            known[trace.model] = _labels_of(store, trace.model)
        sort, row = _pair(trace, said) if kind == "preference" else _row(trace, said, known[trace.model])
        if isinstance(row, str):
            problems.append(RowProblem(f"trace {trace.id}", line, row))
        else:
            meta = {"trace": trace.id, "feedback": said.id, "model": trace.model}
            made[sort].append((name, line, row | meta))
    rows = _chosen(made, kind)
    if not rows:
        reasons = "".join(f"\n  {problem}" for problem in problems[:5])
        raise DataError(f"none of {len(latest):,} statements{whose} can be learned from{reasons}")
    dataset = examples_from_rows(rows, name=name, skip_bad=True)
    dataset = replace(dataset, problems=(*problems, *dataset.problems))
    for example in dataset.examples:
        record_edge(store, Node("feedback", example.meta["feedback"]), "gave", Node("dataset", dataset.digest, name))
    return dataset


def _chosen(
    made: Mapping[str, list[tuple[str, int, dict[str, Any]]]], kind: FeedbackKind | None
) -> list[tuple[str, int, dict[str, Any]]]:
    if kind == "labelled":
        return made["labelled"]
    if kind == "chat":
        as_chat = [(file, line, _as_chat(row)) for file, line, row in made["labelled"]]
        return sorted(made["chat"] + as_chat, key=lambda row: row[1])
    if made["labelled"] and made["chat"]:
        raise InputError(
            f"the feedback holds {len(made['labelled']):,} labelled examples and {len(made['chat']):,} conversations, and a dataset "
            "holds one kind",
            hint="choose: --kind labelled, --kind chat, or --model NAME",
        )
    return made["labelled"] or made["chat"]


def _row(trace: Trace, said: Feedback, labels: tuple[str, ...]) -> tuple[str, dict[str, Any] | str]:
    """(labelled or chat, the row), or the reason why there is none."""
    problem = _unusable(trace)
    if problem:
        return "", problem
    target = said.corrected if said.corrected is not None else said.label
    if target is None:
        if said.rating != 1:
            return "", "no label or corrected answer, and not rated 1: nothing to learn from"
        target = trace.answer
    single = not any(m.get("role") == "assistant" for m in trace.messages)
    asked = [str(m.get("content", "")) for m in trace.messages if m.get("role") == "user"]
    if single and asked and (said.label is not None or target.strip() in labels):
        if said.label is not None and labels and said.label.strip() not in labels:
            return "", f"label {said.label!r} is not one of the model's: {', '.join(labels)}"
        return "labelled", {"text": asked[-1], "label": said.label if said.label is not None else target}
    if trace.operation != "chat":
        return "", f"a raw {trace.operation} without a label is no conversation"
    answer = {"role": "assistant", "content": target}
    return "chat", {"messages": [*map(dict, trace.messages), answer]}


def _pair(trace: Trace, said: Feedback) -> tuple[str, dict[str, Any] | str]:
    problem = _unusable(trace)
    if problem:
        return "", problem
    better = said.corrected if said.corrected is not None else said.label
    if better is None or not trace.answer.strip():
        return "", "no corrected answer beside the one that was given: no pair"
    if better == trace.answer:
        return "", "the corrected answer is the one that was given: no pair"
    return "chat", {"prompt": [*map(dict, trace.messages)], "chosen": better, "rejected": trace.answer}


def _unusable(trace: Trace) -> str:
    if trace.error:
        return f"the request failed: {trace.error}"
    return "" if trace.messages else f"the trace of this {trace.operation} keeps no text"


def _as_chat(row: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in row.items() if key not in ("text", "label")}
    turns = [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}]
    return {"messages": turns, **rest}


def _labels_of(store: Store, model: str) -> tuple[str, ...]:
    """The labels that a model answers with, its own or those of what it points at; () when it writes freely or is gone."""
    seen: set[str] = set()
    while model and model not in seen:
        seen.add(model)
        try:
            meta = find(store, model).meta
        except NotFoundError:
            return ()
        labels = meta.get("labels") or (meta.get("prompt") or {}).get("labels")
        if labels:
            return tuple(labels)
        model = str(meta.get("target") or "")
    return ()
