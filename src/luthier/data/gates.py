"""What stands between feedback and a training set: copies, what is evaluated on, attacks, wrong labels, personal data, loud voices.

Each gate looks at all examples that the gates before it left, and says which go and why. The order matters: personal data are masked and
copies joined before neighbours are asked, so that saying the same thing a hundred times makes no neighbours; caps come last.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from luthier.core.errors import InputError
from luthier.data import pii
from luthier.data.dedupe import groups, jaccard, near_groups, normalise
from luthier.data.poisoning import (
    FEWEST,
    Embed,
    Labelled,
    agreement,
    contradicted,
    nearest,
    over_cap,
    triggers,
    untrustworthy,
    word_vectors,
)

Personal = Literal["mask", "drop", "keep"]
Suspicious = Callable[[str], str]
"""Why a text looks like an attack; "" for one that does not."""

_CLEAR = 0.7  # of the labels that neighbours agree on, below which the gate says that it sees little
_LABEL_SHARE = 2 / 3  # of the voices on one text that must agree


@dataclass(frozen=True)
class Gates:
    """Which gates are shut. ``near`` is the likeness (Jaccard, 0.5 to 1) from which texts count as copies; ``most_share`` of all examples may come
    from one source."""

    overlap: bool = True
    attacks: bool = True
    personal: Personal = "mask"
    duplicates: bool = True
    poisoning: bool = True
    caps: bool = True
    near: float = 0.8
    most_share: float = 0.2

    def __post_init__(self) -> None:
        if self.personal not in get_args(Personal):
            raise InputError(f"personal must be one of {', '.join(get_args(Personal))}; got {self.personal!r}")
        for name, low in (("near", 0.5), ("most_share", 0.01)):
            if not low <= getattr(self, name) <= 1.0:
                raise InputError(f"{name} must be between {low} and 1; got {getattr(self, name)}")

    @staticmethod
    def off() -> Gates:
        """All open."""
        closed = {each.name: False for each in fields(Gates) if each.type == "bool"}
        return Gates(**{**closed, "personal": "keep"})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Sight:
    """What gates may compare with: ``held_out`` texts by the name of their set, ``trusted`` (text, label) pairs as neighbours, an ``embed`` for
    likeness (without one, words count), and ``suspicious``, which knows attacks."""

    held_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    trusted: Sequence[tuple[str, str]] = ()
    embed: Embed | None = None
    suspicious: Suspicious | None = None


@dataclass(frozen=True)
class Candidate:
    """A row that may become an example. ``text`` is what was asked, ``answer`` what is to be learned, ``label`` that of labelled rows, ``source``
    who gave it ("" when nobody knows)."""

    id: str
    line: int
    row: Mapping[str, Any]
    text: str
    answer: str
    label: str | None = None
    source: str = ""


@dataclass(frozen=True)
class GateReport:
    """What a gate did: of ``seen`` candidates it dropped some (place in ``reasons`` -> why) and changed others. ``note`` says why it could not look."""

    name: str
    seen: int
    dropped: int = 0
    changed: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    note: str = ""


Left = list[Candidate]
Dropped = dict[str, str]


def pass_gates(candidates: Sequence[Candidate], gates: Gates, sight: Sight) -> tuple[Left, Dropped, list[GateReport]]:
    """(what is left, id -> reason of what is not, a report of each gate that is shut)."""
    order: tuple[tuple[str, bool, Callable[[Left, Gates, Sight], _Verdict]], ...] = (
        ("overlap", gates.overlap, _overlap),
        ("attacks", gates.attacks, _attacks),
        ("personal", gates.personal != "keep", _personal),
        ("duplicates", gates.duplicates, _duplicates),
        ("poisoning", gates.poisoning, _poisoning),
        ("caps", gates.caps, _caps),
    )
    left, gone, reports = list(candidates), Dropped(), list[GateReport]()
    for name, shut, gate in order:
        if not shut:
            continue
        verdict = gate(left, gates, sight)
        kinds = Counter(verdict.kinds.get(each, reason) for each, reason in verdict.dropped.items())
        reports.append(
            GateReport(
                name, len(left), len(verdict.dropped), len(verdict.changed), dict(kinds.most_common()), verdict.note
            )
        )
        gone |= {each: f"{name}: {reason}" for each, reason in verdict.dropped.items()}
        left = [verdict.changed.get(each.id, each) for each in left if each.id not in verdict.dropped]
    return left, gone, reports


@dataclass
class _Verdict:
    dropped: Dropped = field(default_factory=dict)
    changed: dict[str, Candidate] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)  # id -> short name of the reason, for counting
    note: str = ""

    def drop(self, candidate: Candidate, reason: str, kind: str) -> None:
        """One more goes."""
        self.dropped[candidate.id], self.kinds[candidate.id] = reason, kind


def _overlap(left: Left, gates: Gates, sight: Sight) -> _Verdict:
    """What is, or nearly is, among texts that models are evaluated on."""
    verdict = _Verdict()
    if not any(sight.held_out.values()):
        verdict.note = "no held-out set is known to compare with"
        return verdict
    where: dict[str, str] = {}
    for name, texts in sight.held_out.items():
        for text in texts:
            where.setdefault(normalise(text), name)
    held = list(where)
    asked = {normalise(each.text) for each in left}
    alike: dict[str, str] = {}
    joined = [*held, *(asked - where.keys())]
    for rows in near_groups(joined, gates.near):
        inside = [joined[row] for row in rows if row < len(held)]
        for row in rows:
            if row >= len(held):  # a group holds chains of likeness: the pair itself is compared
                near = next((text for text in inside if jaccard(joined[row], text) >= gates.near), None)
                if near is not None:
                    alike[joined[row]] = where[near]
    for each in left:
        text = normalise(each.text)
        if text in where:
            verdict.drop(each, f"it is in {where[text]}, which models are evaluated on", f"in {where[text]}")
        elif text in alike:
            verdict.drop(
                each, f"it is nearly in {alike[text]}, which models are evaluated on", f"nearly in {alike[text]}"
            )
    return verdict


def _attacks(left: Left, gates: Gates, sight: Sight) -> _Verdict:
    """Texts that try to tell a model what to do instead."""
    if sight.suspicious is None:
        return _Verdict(note="nothing that knows attacks was given")
    verdict = _Verdict()
    for each in left:
        reason = sight.suspicious(each.text) or sight.suspicious(each.answer)
        if reason:
            verdict.drop(each, reason, reason)
    return verdict


def _personal(left: Left, gates: Gates, sight: Sight) -> _Verdict:
    """Personal data and secrets, found by form."""
    verdict = _Verdict()
    for each in left:
        found = sorted({span.kind for text in _texts(each.row) for span in pii.find(text)})
        if not found:
            continue
        if gates.personal == "drop":
            verdict.drop(each, f"it holds {', '.join(found)}", ", ".join(found))
        else:
            verdict.changed[each.id] = replace(
                each, row=_masked(each.row), text=pii.redact(each.text), answer=pii.redact(each.answer)
            )
    return verdict


_OURS = frozenset({"label", "trace", "feedback", "model", "role", "implicit"})


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for key, each in value.items() if key not in _OURS for text in _texts(each)]
    return [text for each in value for text in _texts(each)] if isinstance(value, list | tuple) else []


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return pii.redact(value)
    if isinstance(value, Mapping):
        return {key: each if key in _OURS else _masked(each) for key, each in value.items()}
    return [_masked(each) for each in value] if isinstance(value, list | tuple) else value


def _duplicates(left: Left, gates: Gates, sight: Sight) -> _Verdict:
    """Copies: of one text with one answer the last one stays; of labels that disagree the one that two thirds of the voices give."""
    verdict = _Verdict()
    kept: Left = []
    for rows in groups(normalise(each.text) for each in left):
        same = [left[row] for row in rows]
        same = _agreed(same, verdict)
        for rivals in _by_answer(same):
            kept.append(rivals[-1])
            for each in rivals[:-1]:
                verdict.drop(each, f"a copy of {rivals[-1].id}", "copy")
    kept.sort(key=lambda each: each.line)
    by_text = {normalise(each.text): each for each in kept}
    distinct = list(by_text)
    for rows in near_groups(distinct, gates.near):
        alike = sorted((by_text[distinct[row]] for row in rows), key=lambda each: each.line)
        for same in _by_answer(alike):
            for each in same[:-1]:
                verdict.drop(each, f"nearly a copy of {same[-1].id}", "near copy")
    return verdict


def _agreed(same: Left, verdict: _Verdict) -> Left:
    """Candidates with one text: those whose label most voices give. Each source is one voice, on its latest label."""
    votes: dict[str, str] = {}
    for each in same:
        if each.label is not None:
            votes[each.source or each.id] = each.label
    counts = Counter(votes.values())
    if len(counts) < 2:
        return same
    label, most = counts.most_common(1)[0]
    agreed = most >= _LABEL_SHARE * sum(counts.values())
    said = ", ".join(f"{name!r} {count}" for name, count in counts.most_common())
    for each in same:
        if not agreed or each.label != label:
            verdict.drop(each, f"people disagree on its label: {said}", "contradiction")
    return [each for each in same if agreed and each.label == label]


def _by_answer(same: Left) -> list[Left]:
    out: dict[str, Left] = defaultdict(list)
    for each in same:
        out[normalise(each.answer)].append(each)
    return list(out.values())


def _poisoning(left: Left, gates: Gates, sight: Sight) -> _Verdict:
    """Labels that contradict texts like theirs, sources that mostly give such labels, phrases that turn labels."""
    verdict = _Verdict()
    judged = [each for each in left if each.label is not None]
    if not judged:
        verdict.note = "only labels can be compared with those of texts that are alike"
        return verdict
    if len(judged) + len(sight.trusted) < FEWEST:
        verdict.note = f"too few labels to compare: {len(judged) + len(sight.trusted)} of {FEWEST}"
        return verdict
    data = Labelled(
        [*(each.text for each in judged), *(text for text, _ in sight.trusted)],
        [*(str(each.label) for each in judged), *(label for _, label in sight.trusted)],
        [*(each.source for each in judged), *("" for _ in sight.trusted)],
        trusted=len(sight.trusted),
    )
    neighbours = nearest(data, (sight.embed or word_vectors)(data.texts))
    agreeing = agreement(data, neighbours)
    if agreeing < _CLEAR:
        verdict.note = f"texts that are alike agree on {agreeing:.0%} of the labels: much that is wrong cannot be seen"
        verdict.note += "" if sight.embed is not None else " (an embedder sees more)"
    for source, reason in untrustworthy(data, neighbours).items():
        for each in judged:
            if each.source == source:
                verdict.drop(each, reason, "source that contradicts the others")
    for phrase, (label, places) in triggers(data, neighbours).items():
        for at in places:
            reason = f"the phrase {phrase!r} goes with {label!r} in texts that otherwise look like other labels"
            verdict.drop(judged[at], reason, f"phrase {phrase!r}")
    for at, reason in contradicted(data, neighbours).items():
        if judged[at].id not in verdict.dropped:
            verdict.drop(judged[at], reason, "label against its neighbours")
    return verdict


def _caps(left: Left, gates: Gates, sight: Sight) -> _Verdict:
    """What one source gives beyond its share."""
    verdict = _Verdict()
    known = {each.source for each in left if each.source}
    if len(known) < 3:
        verdict.note = f"{len(known)} known sources: shares are bounded from three on"
        return verdict
    surplus = over_cap(
        [each.source for each in left],
        [each.label for each in left],
        [each.id for each in left],
        share=gates.most_share,
    )
    for at, reason in surplus.items():
        verdict.drop(left[at], reason, "beyond one source's share")
    return verdict
