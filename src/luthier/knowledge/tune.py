"""The embedder of a base, tuned on questions about its documents, and whether searches are better for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.dataset import Dataset, Splits
from luthier.core.document import Hit
from luthier.core.engine import SCORE, Engine, ScoreRequest, require
from luthier.core.errors import InputError
from luthier.core.run import MetricSink, Progress, no_progress
from luthier.evaluation.statistics import Difference, Interval, paired_bootstrap, wilson_interval
from luthier.knowledge.gold import Asked, apart, locate
from luthier.knowledge.negatives import negatives_of
from luthier.knowledge.prompt import rag_prompt
from luthier.knowledge.synthesis import chunks_of

if TYPE_CHECKING:
    from luthier.knowledge.base import KnowledgeBase
    from luthier.knowledge.embed import Embedder
    from luthier.store.database import Store

KS = (1, 5, 10)
_TRAIN: Mapping[str, Mapping[str, Any]] = {"lora": {"learning_rate": 5e-4}, "full": {"learning_rate": 5e-5}}
"""Of the methods that were measured; another one has the training's own defaults."""
_VALIDATION = 0.1


@dataclass(frozen=True)
class Figure:
    """Recall at ``k``: the share of questions of which a right chunk is among the first ``k``; before, after, and what changed."""

    k: int
    before: Interval
    after: Interval
    change: Difference

    @property
    def verdict(self) -> str:
        """better, worse, or ``no better``: where the interval of the change holds 0."""
        return "better" if self.change.low > 0 else "worse" if self.change.high < 0 else "no better"

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        change = {"value": self.change.value, "low": self.change.low, "high": self.change.high, "p": self.change.p}
        return {
            "recall_at": self.k, "before": self.before.as_dict(), "after": self.after.as_dict(), "change": change,
            "verdict": self.verdict,
        }  # fmt: skip


@dataclass(frozen=True)
class TuneReport:
    """What was learned from (``trained`` questions), what it was proved by (``held_out`` others, about other documents where there are several)
    and how much it helped. ``unlocated`` questions have no chunk in the base. ``figures[1]`` of three decides."""

    base: str
    embedder: str
    model: str
    run: str
    trained: int
    held_out: int
    unlocated: int
    figures: tuple[Figure, ...]
    rebuilt: bool = False

    @property
    def verdict(self) -> str:
        """That of the middle k."""
        return self.figures[len(self.figures) // 2].verdict

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        plain = {
            name: getattr(self, name)
            for name in ("base", "embedder", "model", "run", "trained", "held_out", "unlocated", "rebuilt")
        }
        return {**plain, "verdict": self.verdict, "figures": [each.as_dict() for each in self.figures]}


def tune_base(
    name: str,
    questions: str | Path,
    *,
    held_out: str | Path | float = 0.3,
    method: str = "lora",
    overrides: Iterable[str] = (),
    negatives: int = 3,
    reader: str | Engine = "",
    candidates: int = 8,
    model_name: str = "",
    k: Sequence[int] = KS,
    rebuild: bool = False,
    seed: int = 0,
    store: Store | None = None,
    metrics: MetricSink | None = None,
    progress: Progress = no_progress,
) -> TuneReport:
    """Tune the embedder of a base on a file of questions and register the result as ``model_name``; the base stays as it is.

    Each question learns to find its chunk among those of the others of the step and ``negatives`` that a search finds in vain (objective
    similarity). With a ``reader``, a model that can score, it learns instead how likely that model makes the right answer with each of
    ``candidates`` chunks (objective lm_supervised: RA-DIT, Lin et al. 2023). ``held_out`` is a file of questions to prove by, or the share of
    these that is kept for it. ``overrides`` change the run (``train.epochs=2``). With ``rebuild`` the base is embedded anew by the result
    when that is better.

    Raises InputError for too few questions and what ``luthier.tune`` raises.
    """
    from luthier.knowledge.base import open_base, rebuild_base
    from luthier.knowledge.questions import read_questions
    from luthier.training.tune import tune

    ks = tuple(sorted(set(k)))
    if not ks or ks[0] < 1 or negatives < 0 or candidates < 2:
        raise InputError(
            f"k must be at least 1, negatives at least 0, candidates at least 2; got {k}, {negatives}, {candidates}"
        )
    with open_base(name, store=store) as base:
        chunks = chunks_of(base)
        asked = locate(base, read_questions(questions).examples, chunks)
        known = [each for each in asked if each.gold]
        learn, prove = _parts(base, known, held_out, seed, chunks, read_questions)
        rows = (
            _rows_by_reader(base, learn, reader, candidates, progress)
            if reader
            else _rows(base, learn, negatives, progress)
        )
        splits = _splits(f"questions-of-{name}", rows, seed)
        own = base.record.embedder
        config = {
            "name": model_name or f"{own}-{name}",
            "model": own,
            "method": method,
            "objective": "lm_supervised" if reader else "similarity",
            "data": {"overlong": "truncate"},
            "train": {"epochs": 1, "batch_size": 64, "seed": seed, **_TRAIN.get(method, {})},
        }
        made = tune(config, tuple(overrides), splits=splits, store=base.store, metrics=metrics, progress=progress)
        before = ranks(base.embedder, prove, chunks)
        after = _ranks_by(made.model.name, base, prove, chunks)
        figures = tuple(_figure(at, before, after, seed) for at in ks)
        report = TuneReport(
            name, own, made.model.name, made.run.id, len(learn), len(prove), len(asked) - len(known), figures
        )
        store = base.store
    if rebuild and report.verdict == "better":
        rebuild_base(name, embedder=report.model, store=store, progress=progress)
        return TuneReport(**{**report.__dict__, "rebuilt": True})
    return report


def ranks(embedder: Embedder, asked: Sequence[Asked], chunks: Sequence[Hit]) -> np.ndarray[Any, Any]:
    """Where each question's first right chunk stands among all that are searched, 1 the best, by exact cosine."""
    searched = [hit for hit in chunks if hit.chunk.searched]
    vectors = embedder.embed([hit.chunk.embedded for hit in searched])
    at = {hit.chunk.id: number for number, hit in enumerate(searched)}
    out = np.empty(len(asked), np.int64)
    wanted = embedder.embed_queries([each.question for each in asked])
    for number, each in enumerate(asked):
        scores = vectors @ wanted[number]
        best = max(scores[at[name]] for name in each.ids if name in at)
        out[number] = 1 + int((scores > best).sum())
    return out


def _parts(
    base: KnowledgeBase, known: list[Asked], held_out: str | Path | float, seed: int, chunks: Sequence[Hit], read: Any
) -> tuple[list[Asked], list[Asked]]:
    if isinstance(held_out, float | int):
        if not 0 < held_out < 1:
            raise InputError(f"held_out must be a file or a share between 0 and 1; got {held_out}")
        if len(known) < 4:
            raise InputError(
                f"{len(known)} questions have a chunk in {base.name}; it takes 4 at least",
                hint=f"luthier kb questions {base.name}",
            )
        return apart(known, held_out, seed)
    prove = [each for each in locate(base, read(held_out).examples, chunks) if each.gold]
    known_questions = {each.question for each in known}
    both = sum(each.question in known_questions for each in prove)
    if both:
        raise InputError(f"{both} questions of {held_out} are among those to learn from; they prove nothing")
    if not known or not prove:
        raise InputError(
            f"{len(known)} questions to learn from and {len(prove)} to prove by have a chunk in {base.name}"
        )
    return known, prove


def _rows(base: KnowledgeBase, asked: Sequence[Asked], negatives: int, progress: Progress) -> list[dict[str, Any]]:
    """A question, its chunk as it is embedded, and near ones that do not answer it."""
    prompts = base.embedder.prompts
    out = []
    for done, each in enumerate(asked, 1):
        right = list(dict.fromkeys(hit.chunk.embedded for hit in each.gold if not hit.chunk.question))
        near = [hit.chunk.embedded for hit in negatives_of(base, each.question, each.answers, each.ids, negatives)]
        wrong = [text for text in near if text not in right and text != each.question]
        if right and right[0] != each.question:
            row: dict[str, Any] = {"anchor": prompts.query + each.question, "positive": prompts.passage + right[0]}
            out.append(row | ({"negatives": [prompts.passage + text for text in wrong]} if wrong else {}))
        progress("negatives", done, len(asked))
    return out


def _rows_by_reader(
    base: KnowledgeBase, asked: Sequence[Asked], reader: str | Engine, candidates: int, progress: Progress
) -> list[dict[str, Any]]:
    """A question, its chunk and others that a search finds, and the log-likelihood of the answer with each of them alone, in serving's prompt."""
    from luthier.strategies._load import load

    engine = load(reader, store=base.store) if isinstance(reader, str) else reader
    prompts = base.embedder.prompts
    try:
        require(engine, SCORE)
        out = []
        for done, each in enumerate(asked, 1):
            found = base.search(each.question, candidates)
            hits = [each.gold[0], *(hit for hit in found if hit.chunk.id not in each.ids)][:candidates]
            texts = list({hit.chunk.embedded: hit for hit in hits}.items())
            if each.answers and len(texts) > 1:
                requests = [ScoreRequest(rag_prompt(each.question, [hit]), (each.answers[0],)) for _, hit in texts]
                scores = [score[0].logprob for score in engine.score(requests)]
                names = [prompts.passage + text for text, _ in texts]
                out.append(
                    {
                        "anchor": prompts.query + each.question,
                        "positive": names[0],
                        "negatives": names[1:],
                        "lm_scores": scores,
                    }
                )
            progress("likelihoods", done, len(asked))
    finally:
        if isinstance(reader, str):
            engine.close()
    return out


def _splits(name: str, rows: Sequence[Mapping[str, Any]], seed: int) -> Splits:
    """A tenth for the validation loss, where there are enough."""
    from luthier.data.read import examples_from_rows

    if len(rows) < 2:
        raise InputError(f"{len(rows)} questions to learn from are too few")
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    aside = int(_VALIDATION * len(rows)) if len(rows) >= 40 else 0

    def part(which: Sequence[int], what: str) -> Dataset:
        return examples_from_rows(((name, at + 1, rows[at]) for at in which), name=f"{name}-{what}")

    training = part(sorted(order[aside:]), "train")
    nothing = Dataset(f"{name}-none", training.kind, (), training.format)
    validation = part(sorted(order[:aside]), "validation") if aside else nothing
    return Splits(training, validation, nothing)


def _ranks_by(model: str, base: KnowledgeBase, asked: Sequence[Asked], chunks: Sequence[Hit]) -> np.ndarray[Any, Any]:
    from luthier.knowledge.base import open_embedder

    embedder = open_embedder(model, base.store)
    try:
        return ranks(embedder, asked, chunks)
    finally:
        embedder.close()
        embedder.engine.close()


def _figure(k: int, before: np.ndarray[Any, Any], after: np.ndarray[Any, Any], seed: int) -> Figure:
    found = [(each <= k).astype(np.float64) for each in (before, after)]

    def mean(values: np.ndarray[Any, Any]) -> Any:
        return lambda counts: counts @ values / counts.sum(1)

    total = len(before)
    shares = [wilson_interval(float(each.mean()), total) for each in found]
    return Figure(k, shares[0], shares[1], paired_bootstrap(mean(found[1]), mean(found[0]), total, seed=seed))
