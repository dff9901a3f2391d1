"""How good a knowledge base's searches and answers are: its questions asked, scored, and kept as a run of kind ``eval``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from luthier.core.dataset import Dataset
from luthier.core.digest import digest_json
from luthier.core.engine import (
    GENERATE,
    ContinuationScore,
    Delta,
    Engine,
    EngineInfo,
    Generation,
    Sampling,
    ScoreRequest,
    Vectors,
    require,
)
from luthier.core.errors import InputError
from luthier.core.message import Prompt, last_user_text
from luthier.core.run import Progress, no_progress
from luthier.core.task import PromptTemplate, Task
from luthier.evaluation.evaluate import evaluate
from luthier.evaluation.latency import weights_mb
from luthier.evaluation.result import EvalResult
from luthier.knowledge.base import KnowledgeBase, open_base
from luthier.knowledge.questions import locatable, read_questions, splits_of, without_answer
from luthier.knowledge.search import DEFAULT, MOST, check_retrieval, resolved
from luthier.scorers._gold import NAMES, Match

if TYPE_CHECKING:
    from luthier.knowledge.rag import RagEngine
    from luthier.store.database import Store

KS = (1, 5, 10)
ANSWER_TOKENS = 128


@dataclass(frozen=True)
class Asking:
    """How questions are answered: ``model`` writes (a name, or an open engine) in ``mode`` from ``passages`` passages. ``judge`` names the model
    that says whether the answers are faithful; without one, what needs no judge is measured."""

    model: str | Engine
    mode: str = "stuff"
    options: Mapping[str, Any] = field(default_factory=dict)
    passages: int = 5
    judge: str = ""
    max_new_tokens: int = ANSWER_TOKENS


def measure(
    base: str | KnowledgeBase,
    questions: str | Path | Dataset,
    *,
    k: Sequence[int] = KS,
    retrieval: Sequence[Mapping[str, Any]] | None = None,
    match: Match = "answer",
    asking: Asking | None = None,
    writer: str = "",
    reranker: str | Engine = "",
    limit: int | None = None,
    store: Store | None = None,
    progress: Progress = no_progress,
    fresh: bool = False,
) -> EvalResult:
    """Search ``base`` for every question (or answer it, with ``asking``) and score what was found; each question is kept.

    ``questions`` is a file (``read_questions``). Recall, precision, nDCG and the rest are of the first ``k`` passages; the middle one of ``k``
    gives the primary figure. ``retrieval``, ``writer`` (a model for steps that write) and ``reranker`` as in a search. ``match`` document counts
    every chunk of the right document, answer only those that hold an accepted answer. Equal work on an unchanged base is not done twice
    unless ``fresh``; what was interrupted goes on.

    Raises NotFoundError and InputError for what is not there or cannot be measured.
    """
    ks = checked_ks(k)
    rows = read_questions(questions, limit=limit) if isinstance(questions, str | Path) else questions
    if asking is None and not locatable(rows.examples):
        raise InputError(
            f"{rows.name}: no question says what a search should find: answers, or context_id, document, source, chunk or context",
            hint="add one of these fields, or measure the answers: --answers --model MODEL --judge MODEL",
        )
    with ExitStack() as opened:
        found = opened.enter_context(
            _kept_open(base) if isinstance(base, KnowledgeBase) else open_base(base, store=store)
        )
        if writer:
            found = replace(found, ask=opened.enter_context(_opened(writer, found.store)))
        reranking = None
        if reranker:
            reranking = opened.enter_context(_opened(reranker, found.store)) if isinstance(reranker, str) else reranker
        if retrieval is not None:
            check_retrieval(retrieval)
        engine: Engine
        if asking is None:
            engine = SearchEngine(found, max(ks), retrieval, reranking)
            engine.search(rows.examples[0].text)  # what no question could be searched with is said once, before all
            task = task_of(rows, retrieval_scorers(rows, ks, match), ANSWER_TOKENS)
        else:
            model = asking.model
            written = opened.enter_context(_opened(model, found.store)) if isinstance(model, str) else model
            engine = answering(found, written, asking, retrieval, reranking)
            task = task_of(rows, answer_scorers(rows, ks, match, asking), asking.max_new_tokens)
        return evaluate(engine, task, store=store or found.store, progress=progress, fresh=fresh)


def checked_ks(k: Sequence[int]) -> tuple[int, ...]:
    """In order, each once. Raises InputError for none, or one out of range."""
    ks = tuple(sorted(set(k)))
    if not ks or ks[0] < 1 or ks[-1] > MOST:
        raise InputError(f"k must be numbers from 1 to {MOST}; got {', '.join(map(str, k)) or 'none'}")
    return ks


def retrieval_scorers(questions: Dataset, ks: Sequence[int], match: Match) -> list[tuple[str, dict[str, Any]]]:
    """Scorers of searches, the primary one (recall at the middle ``k``) first."""
    middle, most = ks[len(ks) // 2], ks[-1]
    listed = [("recall", middle), *(("recall", each) for each in ks if each != middle)]
    if any(_several(example.meta) for example in questions.examples):
        listed += [("hit_rate", each) for each in ks]
    listed += [("mrr", most), ("ndcg", most), ("map", most), ("precision", middle)]
    out = [("retrieval", {"measure": name, "k": at, "match": match, "as": f"{name}@{at}"}) for name, at in listed]
    out.append(("context_precision", {"k": most, "match": match, "as": f"context_precision@{most}"}))
    if any(example.references for example in questions.examples):
        out.append(("context_recall", {"k": most, "as": f"context_recall@{most}"}))
    return out


def answer_scorers(
    questions: Dataset, ks: Sequence[int], match: Match, asking: Asking
) -> list[tuple[str, dict[str, Any]]]:
    """Scorers of answers, the primary one first: the words of the right answer where it is known, else what the judge says."""
    out: list[tuple[str, dict[str, Any]]] = []
    told = any(example.references for example in questions.examples)
    if told:
        out += [("token_f1", {"from_documents": True}), ("squad_exact", {"from_documents": True})]
    if asking.judge:
        judged = {"judge": asking.judge}
        out += [("faithfulness", judged), ("answer_relevance", {**judged, "mode": "verdict"})]
        if told:
            out += [
                ("context_precision", {**judged, "k": asking.passages}),
                ("context_recall", {**judged, "k": asking.passages}),
            ]
    out += [
        ("citation", {"measure": each, "judge": asking.judge, "as": f"citation_{each}"})
        for each in ("recall", "precision")
    ]
    out.append(("lexical_support", {}))
    if locatable(questions.examples):
        out.append(("citation", {"measure": "gold", "as": "citation_gold"}))
        within = [each for each in ks if each <= asking.passages] or [asking.passages]
        out += [retrieval for retrieval in retrieval_scorers(questions, within, match) if retrieval[0] == "retrieval"]
    if without_answer(questions.examples):
        out += [("abstention", {"of": each, "as": f"abstention_{each}"}) for each in _parts(questions)]
    return out


def task_of(questions: Dataset, scorers: Sequence[tuple[str, dict[str, Any]]], max_new_tokens: int) -> Task:
    """The questions as a task whose prompt is the question alone."""
    return Task(
        name=questions.name,
        kind="generate",
        splits=splits_of(questions),
        prompt=PromptTemplate(),
        scorers=tuple(scorers),
        max_new_tokens=max_new_tokens,
        source="questions of a knowledge base",
    )


class SearchEngine:
    """A search as an engine: an answer's ``hits`` are what it found, its text says where the first of them is.

    Questions are searched one after the other, so that the time that each takes is its own.
    """

    def __init__(
        self,
        base: KnowledgeBase,
        k: int,
        retrieval: Sequence[Mapping[str, Any]] | None = None,
        reranker: Engine | None = None,
    ) -> None:
        self._base = base
        self._k, self._retrieval, self._reranker = k, retrieval, reranker
        steps = [dict(step) for step in (retrieval if retrieval is not None else base.record.retrieval) or DEFAULT]
        helpers = [each.info.model_digest or each.info.model for each in (base.ask, reranker) if each is not None]
        self._info = EngineInfo(
            model=f"kb:{base.name}",
            engine="search",
            capabilities=frozenset({GENERATE}),
            model_digest=state_digest(base),
            prompt_digest=digest_json(["search", resolved(steps), k, helpers]),
            meta=(
                ("one_by_one", True),
                ("retrieval", steps),
                ("weights_mb", weights_mb(base.store, base.embedder.engine.info) or 0.0),
            ),
        )

    @property
    def info(self) -> EngineInfo:
        """What is searched, and how."""
        return self._info

    def search(self, question: str) -> Generation:
        """One question. Raises what the search raises."""
        start = time.perf_counter()
        hits = self._base.search(question, self._k, retrieval=self._retrieval, reranker=self._reranker)
        taken = time.perf_counter() - start
        where = hits[0].cited if hits else ""
        return Generation(where, (), (), "stop", latency_s=taken, hits=tuple(hits))

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        """One search a prompt: for its last question."""
        out = []
        for done, prompt in enumerate(prompts, 1):
            out.append(self.search(last_user_text(prompt)))
            progress("search", done, len(prompts))
        return out

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The whole at once."""
        found = self.search(last_user_text(prompt))
        yield Delta(found.text, found)

    def score(
        self, requests: Sequence[ScoreRequest], progress: Progress = no_progress
    ) -> list[tuple[ContinuationScore, ...]]:
        """Raises UnsupportedError."""
        require(self, "score")
        return []

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Vectors:
        """The base's vectors."""
        return self._base.embedder.embed(texts, progress)

    def close(self) -> None:
        """The base stays open."""


def state_digest(base: KnowledgeBase) -> str:
    """Equal exactly for the same base with the same documents."""
    from luthier.store.knowledge import find_base

    record = find_base(base.store, base.name)
    parts = [
        record.name,
        record.created_at,
        record.version,
        record.embedder_digest,
        dict(record.chunker),
        dict(record.index),
    ]
    return digest_json(parts)


def answering(
    base: KnowledgeBase,
    model: Engine,
    asking: Asking,
    retrieval: Sequence[Mapping[str, Any]] | None,
    reranker: Engine | None,
) -> Engine:
    """``base`` answered by ``model``. What it says of itself tells the state of the base, and the memory of both models."""
    from luthier.knowledge.rag import rag

    made: RagEngine = rag(
        base,
        model,
        mode=asking.mode,
        options=asking.options,
        k=asking.passages,
        retrieval=retrieval,
        reranker=reranker,
    )
    held = [weights_mb(base.store, each) for each in (model.info, base.embedder.engine.info)]
    memory = None if held[0] is None else held[0] + (held[1] or 0.0)
    return cast(Engine, _Dated(made, state_digest(base), memory))


class _Dated:
    """An engine whose info also says which state of the base it answers from, so that answers are not taken for those of another state."""

    def __init__(self, inner: RagEngine, state: str, weights: float | None) -> None:
        self._inner = inner
        meta = (*inner.info.meta, ("weights_mb", weights)) if weights is not None else inner.info.meta
        self.info = inner.info.with_(prompt_digest=digest_json([inner.info.prompt_digest, state]), meta=meta)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@contextmanager
def _kept_open(base: KnowledgeBase) -> Iterator[KnowledgeBase]:
    """A base that belongs to the caller."""
    yield base


@contextmanager
def _opened(model: str, store: Store) -> Iterator[Engine]:
    from luthier.strategies._load import load

    engine = load(model, store=store)
    try:
        yield engine
    finally:
        engine.close()


def _several(meta: Mapping[str, Any]) -> bool:
    """Whether a row names more than one passage."""
    return sum(1 if isinstance(meta[name], str | int) else len(meta[name]) for name in NAMES if meta.get(name)) > 1


def _parts(questions: Dataset) -> tuple[str, ...]:
    """Which parts of the questions have a share of refusals of their own."""
    none = without_answer(questions.examples)
    return ("all", "unanswerable", "answerable") if none < len(questions) else ("unanswerable",)
