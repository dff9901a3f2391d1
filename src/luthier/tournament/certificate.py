"""The export certificate: merging and quantizing must not cost quality, and the user's own evaluation says whether they do.

A non-inferiority test. Export and original answer the same test examples; the export passes when the one-sided 95% lower bound of its
difference to the original lies above minus the margin (International Conference on Harmonisation, E9 and E10, 1998). The bound is the paired
bootstrap's, or, where that is wider, that of the share of changed answers (Bonett and Price, 2012): a bootstrap of answers
that hardly differ has next to nothing to draw from, and would certify on twenty examples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from luthier.core.errors import InputError, MismatchError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.core.run import Progress, no_progress
from luthier.core.task import Task
from luthier.evaluation.evaluate import evaluate
from luthier.evaluation.loop import scorers_of
from luthier.evaluation.records import Record
from luthier.evaluation.result import EvalResult, statistic_of
from luthier.evaluation.statistics import TEST_RESAMPLES, bootstrap
from luthier.store.artifacts import verify
from luthier.store.database import Store, open_store
from luthier.store.home import now, write_atomic
from luthier.store.lineage import Node, record_edge
from luthier.store.models import find, register
from luthier.store.runs import folder
from luthier.tasks._load import load_task

Verdict = Literal["PASS", "FAIL", "inconclusive"]
MARGIN, LEVEL, POWER = 0.02, 0.95, 0.8
FILE = "certificate.json"


@dataclass(frozen=True)
class Certificate:
    """``difference`` is export minus original in ``scorer``, signed so that below 0 is worse; ``low`` and ``high`` are its one-sided 95% bounds.

    PASS: ``low`` is above minus ``margin``. FAIL: ``high`` is not. Otherwise inconclusive, and ``needed`` says how many examples would
    find an export that is truly as good in 80% of the cases (None when no number would).
    """

    verdict: Verdict
    export: str
    original: str
    scorer: str
    margin: float
    difference: float
    low: float
    high: float
    export_score: float
    original_score: float
    examples: int
    changed: int
    needed: int | None
    task: str
    split: str
    digests: Mapping[str, str]
    runs: Mapping[str, str]
    level: float = LEVEL
    made_at: str = ""

    @property
    def sentence(self) -> str:
        """What it says, in a sentence or two."""
        told = (
            f"{self.export} scores {self.export_score:.3f} and {self.original} {self.original_score:.3f} in {self.scorer} on {self.examples:,} "
            f"examples of {self.task}; {self.changed:,} answers changed. "
        )
        bound = f"The difference is {self.difference:+.3f}, with 95% confidence not below {self.low:+.3f}"
        if self.verdict == "PASS":
            return told + f"{bound}: within the margin of {self.margin:g}."
        if self.verdict == "FAIL":
            return (
                told
                + f"The difference is {self.difference:+.3f}, with 95% confidence not above {self.high:+.3f}: worse by more than the margin of {self.margin:g}."
            )
        more = f" About {self.needed:,} examples would tell." if self.needed else ""
        return told + f"{bound}, which the margin of {self.margin:g} does not cover, and not surely worse either.{more}"

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)


def certify(
    name: str,
    task: str | Path | Task,
    *,
    margin: float = MARGIN,
    split: Literal["validation", "test"] = "test",
    store: Store | None = None,
    progress: Progress = no_progress,
) -> Certificate:
    """Test the export ``name`` against the model that it was made of, and keep the certificate.

    It goes into the export's record and, as ``certificate.json``, into the folder of the export's evaluation; the lineage has both.

    Raises UnsupportedError for what is no export, InputError for a margin outside 0 to 1, MismatchError when the original has changed or the
    two were not asked alike.
    """
    if not 0.0 < margin < 1.0:
        raise InputError(f"margin must be above 0 and below 1, in units of the score; got {margin}")
    store = store or open_store()
    task = load_task(task)
    export, original = _pair(store, name)
    made = evaluate(export.name, task, split=split, store=store, progress=_named(progress, export.name))
    before = evaluate(original.name, task, split=split, store=store, progress=_named(progress, original.name))
    _require_alike(store, made, before)
    found = judge(
        task, made, before, margin=margin, export=export.name, original=original.name,
        digests={"export": export.digest, "original": original.digest, "task": task.digest},
    )  # fmt: skip
    _keep(store, export, task, found)
    return found


def judge(
    task: Task,
    made: EvalResult,
    before: EvalResult,
    *,
    margin: float,
    export: str,
    original: str,
    digests: Mapping[str, str] | None = None,
) -> Certificate:
    """The non-inferiority test of two results on the same examples."""
    scorer = scorers_of(task)[0]
    sign = -1.0 if scorer.lower_is_better else 1.0
    drawn = bootstrap(
        [statistic_of(scorer, made.records), statistic_of(scorer, before.records)], len(made.records), TEST_RESAMPLES
    )
    differences = sign * (drawn[0] - drawn[1])
    differences = differences[np.isfinite(differences)]
    value = sign * (made.score - before.score)
    changed = _changed(made.records, before.records)
    tail = 1.0 - LEVEL
    low, high = (float(q) for q in np.quantile(differences, [tail, 1.0 - tail]))
    least = _least_reach(made.records, before.records, scorer.label)
    low, high = min(low, value - least), max(high, value + least)
    verdict: Verdict = "PASS" if low > -margin else "FAIL" if high <= -margin else "inconclusive"
    examples = len(made.records)
    return Certificate(
        verdict=verdict,
        export=export,
        original=original,
        scorer=scorer.label,
        margin=margin,
        difference=value,
        low=low,
        high=high,
        export_score=made.score,
        original_score=before.score,
        examples=examples,
        changed=changed,
        needed=_needed(value - low, examples, margin) if verdict == "inconclusive" else None,
        task=task.name,
        split=made.split,
        digests=dict(digests or {}),
        runs={"export": made.run.id, "original": before.run.id},
        made_at=now(),
    )


def certificates(record: ModelRecord) -> dict[str, dict[str, Any]]:
    """An export's certificates by the digest of the task."""
    return dict(record.meta.get("certificates", {}))


def standing_of(record: ModelRecord, task: Mapping[str, Any], *, uncertified: bool = False) -> dict[str, Any]:
    """What an endpoint's record keeps of an export's certificate on ``task`` (name and digest): verdict, margin, bound.

    Raises MismatchError when the certificate says FAIL, unless ``uncertified``.
    """
    found = certificates(record).get(str(task["digest"]))
    if found is None:
        return {"verdict": "none", "task": task["name"]}
    if found["verdict"] == "FAIL" and not uncertified:
        raise MismatchError(
            f"{record.name} failed its certificate on {task['name']}: {found['difference']:+.3f} in {found['scorer']} against "
            f"{found['original']}, with 95% confidence not above {found['high']:+.3f} (margin {found['margin']:g})",
            hint=f"promote {found['original']} itself or an export of higher precision, or insist: --uncertified",
        )
    return {key: found[key] for key in ("verdict", "task", "margin", "difference", "low", "runs")}


def _pair(store: Store, name: str) -> tuple[ModelRecord, ModelRecord]:
    export = find(store, name)
    if export.kind != "export":
        raise UnsupportedError(
            f"a certificate is for exports; {name} is of kind {export.kind}",
            hint=f"luthier export {name} --certify TASK.yaml",
        )
    original = find(store, str(export.meta["target"]))
    for record in (export, original):
        verify(store, record.digest)
    if original.digest != export.meta["target_digest"]:
        raise MismatchError(
            f"{original.name} has changed since {name} was made of it: digest {str(export.meta['target_digest'])[:12]} then, "
            f"{original.digest[:12]} now",
            hint=f"export it again: luthier export {original.name}",
        )
    return export, original


def _require_alike(store: Store, made: EvalResult, before: EvalResult) -> None:
    """Both must have been asked with the same prompt: else a difference says nothing about the weights."""
    asked = [
        json.loads((folder(store, result.run.id) / "config.json").read_text(encoding="utf-8"))["values"]
        for result in (made, before)
    ]
    for key in ("template_digest", "prompt_digest"):
        one, other = (each["engine"][key] for each in asked)
        if one and other and one != other:
            raise MismatchError(
                f"{made.model} and {before.model} were asked differently: {key} {one[:12]} and {other[:12]}"
            )


def _changed(made: Sequence[Record], before: Sequence[Record]) -> int:
    return sum(a.answer != b.answer for a, b in zip(made, before, strict=True))


def _least_reach(made: Sequence[Record], before: Sequence[Record], label: str) -> float:
    """How far the bound lies from the difference at least, by the shares of examples that became worse and better, each with one
    more example of either kind (Bonett and Price, 2012, equation 10)."""
    gaps = [a.scores.get(label, 0.0) - b.scores.get(label, 0.0) for a, b in zip(made, before, strict=True)]
    largest = max((abs(s) for r in (*made, *before) for s in r.scores.values()), default=1.0)
    if largest > 1.0:  # scores of another scale than shares
        return 0.0
    count = len(gaps) + 2
    worse, better = ((sum(sign * g > 0 for g in gaps) + 1) / count for sign in (-1, 1))
    return _QUANTILE * math.sqrt((worse + better - (worse - better) ** 2) / count)


_QUANTILE = 1.6448536269514722  # one-sided 95%
_POWER_QUANTILE = 0.8416212335729143


def _needed(reach: float, examples: int, margin: float) -> int | None:
    """Examples with which an export that is truly as good passes in 80% of the cases; the bound shrinks with their square root."""
    if reach <= 0:
        return None
    error = reach / _QUANTILE * math.sqrt(examples)
    return math.ceil(((_QUANTILE + _POWER_QUANTILE) * error / margin) ** 2)


def _keep(store: Store, export: ModelRecord, task: Task, found: Certificate) -> None:
    write_atomic(folder(store, found.runs["export"]) / FILE, json.dumps(found.as_dict(), indent=1) + "\n")
    known = certificates(find(store, export.name)) | {task.digest: found.as_dict()}
    register(store, replace(export, meta={**export.meta, "certificates": known}))
    for run in found.runs.values():
        record_edge(store, Node("run", run), "certified", Node("model", export.name))


def _named(progress: Progress, name: str) -> Progress:
    def shown(stage: str, done: int, total: int) -> None:
        if stage == "evaluate":
            progress(f"{name}: {stage}", done, total)

    return shown
