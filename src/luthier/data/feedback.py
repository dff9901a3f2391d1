"""Traces with feedback become examples again: the last piece of the loop.

The rows hold what real users wrote. Between them and a training set stand the gates of ``data.gates``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from luthier.core.dataset import Dataset, RowProblem
from luthier.core.errors import DataError, InputError, NotFoundError
from luthier.core.trace import Feedback, Trace, asked_last
from luthier.data.gates import Candidate, GateReport, Gates, Sight, pass_gates
from luthier.data.implicit import infer_feedback
from luthier.data.poisoning import source_names
from luthier.data.read import examples_from_rows
from luthier.store.database import Store
from luthier.store.feedback import list_feedback
from luthier.store.lineage import Node, record_edge
from luthier.store.models import find
from luthier.store.trace_query import TraceFilter
from luthier.store.traces import find_traces

FeedbackKind = Literal["labelled", "chat", "preference"]
KINDS = ("labelled", "chat", "preference")

Row = dict[str, Any]
_NOTHING = "no label or corrected answer, and not rated 1: nothing to learn from"


@dataclass(frozen=True)
class Learned:
    """The dataset, what each gate did, of how many statements, and whose traces they are on."""

    dataset: Dataset
    gates: tuple[GateReport, ...]
    statements: int
    tenants: tuple[str, ...]


def from_feedback(
    store: Store,
    *,
    model: str | None = None,
    kind: FeedbackKind | None = None,
    name: str = "feedback",
    tenant: str | None = None,
    implicit: bool = False,
    gates: Gates | None = None,
    sight: Sight | None = None,
) -> Dataset:
    """Examples from what people said of answers, one a trace, in the order in which they were asked; of several statements on one trace the
    latest that says what is right counts.

    The target is the corrected answer or the label; without either, an answer that was rated 1 is its own target. Where the model answers
    with labels (or a label was given) the example is ``labelled``: the last user turn and its label. Otherwise it is ``chat``: the
    conversation and the target. ``kind`` keeps one sort: ``labelled``; ``chat`` (labelled ones as conversations too); ``preference``
    (a corrected answer over the one that was given, the better of two answers over the other). ``implicit`` also takes what people did:
    answers that were copied, accepted or shared, and pairs of which the session went on with one; such rows say so in ``implicit``.

    What cannot be used, or does not pass ``gates`` (all shut when None), is in ``problems`` with its reason. Each statement that was used
    becomes a lineage edge to the dataset. Raises DataError when nothing can be learned, InputError when there are both sorts and ``kind``
    does not choose.
    """
    return learn_from(
        store, model=model, kind=kind, name=name, tenant=tenant, implicit=implicit, gates=gates, sight=sight
    ).dataset


def learn_from(
    store: Store,
    *,
    model: str | None = None,
    kind: FeedbackKind | None = None,
    name: str = "feedback",
    tenant: str | None = None,
    implicit: bool = False,
    gates: Gates | None = None,
    sight: Sight | None = None,
) -> Learned:
    """``from_feedback``, with what the gates did."""
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if implicit:
        infer_feedback(store, TraceFilter(model=model, tenant=tenant))
    said = list_feedback(store, model, kinds=("explicit", "implicit") if implicit else ("explicit",), tenant=tenant)
    whose = f" for {model}" if model else ""
    if not said:
        raise DataError(
            f"there is no feedback{whose} yet", hint="luthier feedback TRACE --corrected '...', or POST /v1/feedback"
        )
    candidates, problems = _pairs(store, said) if kind == "preference" else _targets(store, said, kind)
    if not candidates:
        raise DataError(f"none of {len(said):,} statements{whose} can be learned from{_first(problems)}")
    left, gone, reports = pass_gates(candidates, gates or Gates(), sight or Sight())
    problems += [RowProblem(f"trace {each.id}", each.line, gone[each.id]) for each in candidates if each.id in gone]
    problems.sort(key=lambda problem: problem.line)
    if not left:
        raise DataError(
            f"none of {len(candidates):,} examples{whose} passes the gates{_first(problems)}",
            hint="--without GATE opens one",
        )
    dataset = examples_from_rows([(name, each.line, dict(each.row)) for each in left], name=name, skip_bad=True)
    dataset = replace(dataset, problems=(*problems, *dataset.problems))
    for example in dataset.examples:
        record_edge(store, Node("feedback", example.meta["feedback"]), "gave", Node("dataset", dataset.digest, name))
    tenants = sorted({trace.tenant for trace, _ in said})
    return Learned(dataset, tuple(reports), len(said), tuple(tenants))


def _first(problems: Sequence[RowProblem]) -> str:
    return "".join(f"\n  {problem}" for problem in problems[:5])


# ---- what is right of an answer


def _targets(
    store: Store, said: Sequence[tuple[Trace, Feedback]], kind: FeedbackKind | None
) -> tuple[list[Candidate], list[RowProblem]]:
    by_trace: dict[str, tuple[Trace, list[Feedback]]] = {}
    for trace, each in said:
        by_trace.setdefault(trace.id, (trace, []))[1].append(each)
    made: dict[str, list[Candidate]] = {"labelled": [], "chat": []}
    problems: list[RowProblem] = []
    known: dict[str, tuple[str, ...]] = {}
    ordered = sorted(by_trace.values(), key=lambda found: (found[0].created_at, found[0].id))
    for line, (trace, statements) in enumerate(ordered, 1):
        if trace.model not in known:
            known[trace.model] = _labels_of(store, trace.model)
        chosen = _counts(statements)
        sort, row = _row(trace, chosen, known[trace.model])
        if isinstance(row, str):
            problems.append(RowProblem(f"trace {trace.id}", line, row))
        else:
            made[sort].append(_candidate(trace.id, line, row | _meta(trace, chosen), trace, chosen))
    return _chosen(made, kind), problems


def _counts(statements: Sequence[Feedback]) -> Feedback:
    """The statement that counts: the latest one that says what is right, or how good the answer is; what was said before what was done."""
    explicit = [each for each in statements if each.kind == "explicit"]
    telling = [
        each for each in explicit if each.label is not None or each.corrected is not None or each.rating is not None
    ]
    if telling or explicit:
        return (telling or explicit)[-1]
    verdicts = {each.verdict for each in statements if each.event != "preferred"}
    good = [each for each in statements if each.verdict == 1 and each.event != "preferred"]
    return good[-1] if good and verdicts == {1} else statements[-1]


def _row(trace: Trace, said: Feedback, labels: tuple[str, ...]) -> tuple[str, Row | str]:
    """(labelled or chat, the row), or the reason why there is none."""
    problem = _unusable(trace)
    if problem:
        return "", problem
    target = said.corrected if said.corrected is not None else said.label
    if target is None:
        good = said.rating == 1 or (said.kind == "implicit" and said.verdict == 1 and said.event != "preferred")
        if not good:
            return "", _why_nothing(said)
        target = trace.answer
    single = not any(m.get("role") == "assistant" for m in trace.messages)
    asked = asked_last(trace)
    if single and asked and (said.label is not None or target.strip() in labels):
        if said.label is not None and labels and said.label.strip() not in labels:
            return "", f"label {said.label!r} is not one of the model's: {', '.join(labels)}"
        return "labelled", {"text": asked, "label": said.label if said.label is not None else target}
    if trace.operation != "chat":
        return "", f"a raw {trace.operation} without a label is no conversation"
    answer = {"role": "assistant", "content": target}
    return "chat", {"messages": [*map(dict, trace.messages), answer]}


def _why_nothing(said: Feedback) -> str:
    if said.kind == "implicit":
        return f"the answer was {said.event}, which says nothing of what is right"
    if said.over and said.rating is None:
        return "it says which of two answers is better: a pair (--kind preference)"
    return _NOTHING


def _chosen(made: Mapping[str, list[Candidate]], kind: FeedbackKind | None) -> list[Candidate]:
    if kind == "labelled":
        return made["labelled"]
    if kind == "chat":
        as_chat = [replace(each, row=_as_chat(each.row)) for each in made["labelled"]]
        return sorted(made["chat"] + as_chat, key=lambda each: each.line)
    if made["labelled"] and made["chat"]:
        raise InputError(
            f"the feedback holds {len(made['labelled']):,} labelled examples and {len(made['chat']):,} conversations, and a dataset "
            "holds one kind",
            hint="choose: --kind labelled, --kind chat, or --model NAME",
        )
    return made["labelled"] or made["chat"]


def _as_chat(row: Mapping[str, Any]) -> Row:
    rest = {key: value for key, value in row.items() if key not in ("text", "label")}
    turns = [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}]
    return {"messages": turns, **rest}


# ---- which of two answers is better


def _pairs(store: Store, said: Sequence[tuple[Trace, Feedback]]) -> tuple[list[Candidate], list[RowProblem]]:
    worse = find_traces(store, {each.over for _, each in said if each.over})
    latest: dict[tuple[str, str], tuple[Trace, Feedback]] = {}
    explicit = {frozenset((each.trace_id, each.over)) for _, each in said if each.over and each.kind == "explicit"}
    for trace, each in said:
        if each.kind == "implicit" and (not each.over or frozenset((each.trace_id, each.over)) in explicit):
            continue  # what was said of these two counts
        latest[trace.id, each.over] = (trace, each)
    made, problems = list[Candidate](), list[RowProblem]()
    ordered = sorted(latest.values(), key=lambda found: (found[0].created_at, found[0].id, found[1].over))
    for line, (trace, each) in enumerate(ordered, 1):
        row = _pair(trace, each, worse.get(each.over))
        if isinstance(row, str):
            problems.append(RowProblem(f"trace {trace.id}", line, row))
        else:
            identity = f"{trace.id} over {each.over}" if each.over else trace.id
            made.append(_candidate(identity, line, row | _meta(trace, each), trace, each))
    return made, problems


def _pair(trace: Trace, said: Feedback, worse: Trace | None) -> Row | str:
    problem = _unusable(trace)
    if problem:
        return problem
    if said.over:
        if worse is None or worse.error or not worse.answer.strip() or not trace.answer.strip():
            return f"the other answer ({said.over}) is not there any more, or one of the two is empty: no pair"
        better, rejected = trace.answer, worse.answer
    else:
        corrected = said.corrected if said.corrected is not None else said.label
        if corrected is None or not trace.answer.strip():
            return "no corrected answer beside the one that was given: no pair"
        better, rejected = corrected, trace.answer
    if better == rejected:
        return (
            "the corrected answer is the one that was given: no pair"
            if not said.over
            else "both answers are the same: no pair"
        )
    return {"prompt": [*map(dict, trace.messages)], "chosen": better, "rejected": rejected}


# ---- what both share


def _candidate(identity: str, line: int, row: Row, trace: Trace, said: Feedback) -> Candidate:
    answer = "\n".join(str(row[key]) for key in ("label", "chosen", "rejected") if key in row)
    if "messages" in row:
        answer = str(row["messages"][-1]["content"])
    user = said.said_by or str(trace.parameters.get("user") or "")
    named = {"user": user, "key": said.key_id or trace.key_id, "session": trace.session}
    return Candidate(identity, line, row, asked_last(trace), answer, row.get("label"), source_names(named))


def _meta(trace: Trace, said: Feedback) -> Row:
    about = {"trace": trace.id, "feedback": said.id, "model": trace.model}
    return about | ({"implicit": said.event} if said.kind == "implicit" else {})


def _unusable(trace: Trace) -> str:
    if trace.error:
        return f"the request failed: {trace.error}"
    if not trace.messages or asked_last(trace).startswith("[REDACTED: "):
        return f"the trace of this {trace.operation} keeps no text"
    return ""


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
