"""Which chunker, embedder and search suit some documents: all combinations measured on one half of the questions, the choice proved on the other.

    documents: handbook/
    questions: questions.jsonl
    chunkers: [recursive, {name: fixed, tokens: 200}]
    embedders: [minilm-l6]
    retrievers: [dense, hybrid, [mmr, hybrid], search.yaml]   # one step, a list of steps, or a file with the key retrieval

Each document is parsed once, each text embedded once an embedder. The bases are temporary; those of an interrupted sweep are found again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from luthier.core.catalog import EntryConfig
from luthier.core.config import Document as ConfigDocument
from luthier.core.config import from_mapping, read_yaml, validate
from luthier.core.dataset import Dataset
from luthier.core.digest import digest_json
from luthier.core.document import Document
from luthier.core.errors import ConflictError, InputError, LuthierError, NotFoundError
from luthier.core.run import Progress, Run, no_progress
from luthier.evaluation.compare import compare as compare_runs
from luthier.evaluation.result import EvalResult
from luthier.knowledge.base import KnowledgeBase, create_base, open_base, remove_base
from luthier.knowledge.measure import KS, checked_ks, measure, retrieval_scorers, task_of
from luthier.knowledge.parse import parse_file
from luthier.knowledge.questions import halves, read_questions
from luthier.knowledge.settings import chunker_of, entry_of, steps_of
from luthier.scorers._gold import Match
from luthier.store import runs
from luthier.store.database import Store, open_store
from luthier.store.home import now, write_atomic
from luthier.store.knowledge import check_new, folder_of
from luthier.store.lineage import Node, record_edge
from luthier.store.models import find
from luthier.tournament.board import BOARD_JSON, Board, Standing, compare_all, rank
from luthier.tournament.figures import interval, metric, probability, score, signed
from luthier.tournament.frontier import frontier, frontiers
from luthier.tournament.standing import about, environment, notes
from luthier.tournament.verdict import LEVEL, decide

if TYPE_CHECKING:
    from luthier.core.task import Task

HELD_OUT = "held_out.json"


class SweepConfig(EntryConfig):
    """See the module. The tuning half is the ``share`` of the questions (by documents, drawn with ``seed``) that chooses. ``index`` keeps the
    chunks; ``reranker`` and ``writer`` are models for steps that need one; ``k``, ``match`` and ``limit`` as in ``measure``."""

    name: str = Field(default="sweep", min_length=1, max_length=80)
    documents: tuple[str, ...] = Field(min_length=1)
    questions: str
    chunkers: tuple[Any, ...] = Field(default=("recursive",), min_length=1)
    embedders: tuple[str, ...] = Field(default=("minilm-l6",), min_length=1)
    retrievers: tuple[Any, ...] = Field(default=("hybrid",), min_length=1)
    index: Any = "lancedb"
    k: tuple[int, ...] = KS
    match: Match = "answer"
    share: float = Field(default=0.5, gt=0.0, lt=1.0)
    seed: int = 0
    limit: int | None = Field(default=None, ge=2)
    reranker: str = ""
    writer: str = ""

    @field_validator("documents", "chunkers", "embedders", "retrievers", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | dict) else value


@dataclass(frozen=True)
class Combination:
    """One way to make and search a base."""

    name: str
    chunker: Mapping[str, Any]
    embedder: str
    retrieval: Sequence[Mapping[str, Any]]

    @property
    def base(self) -> str:
        """What is equal for combinations that share a base."""
        return digest_json([dict(self.chunker), self.embedder])


@dataclass(frozen=True)
class Swept:
    """``board`` is of the tuning half. ``chosen`` is the combination to keep; ``proof`` its result on the held-out half, ``against`` the first
    listed one there (None when that is the chosen one). ``created``: the base that was made of it."""

    board: Board
    chosen: str
    proof: Mapping[str, Any]
    against: Mapping[str, Any] | None = None
    created: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        told = {"chosen": self.chosen, "held_out": dict(self.proof), "against": self.against, "created": self.created}
        return {**told, "board": self.board.as_dict()}


def read_sweep(source: str | Path | Mapping[str, Any]) -> SweepConfig:
    """The checked config of a YAML file, whose paths are relative to it, or of plain values. Raises InputError."""
    document: ConfigDocument = from_mapping(source) if isinstance(source, Mapping) else read_yaml(source)
    values = document.values
    if not isinstance(source, Mapping):
        values.setdefault("name", Path(source).stem)
    listed = values.get("documents")
    if listed is not None:
        listed = [listed] if isinstance(listed, str) else listed
        values["documents"] = [each if "://" in str(each) else str(document.path(str(each))) for each in listed]
    if isinstance(values.get("questions"), str):
        values["questions"] = str(document.path(values["questions"]))
    where = "sweep" if isinstance(source, Mapping) else Path(source).name
    config = validate(SweepConfig, values, where=where, origins=document.origins)
    read = [_from_file(each, document) for each in config.retrievers]
    return config.model_copy(update={"retrievers": tuple(read)})


def combinations_of(config: SweepConfig) -> list[Combination]:
    """All of them, the first of each list first. Raises InputError and NotFoundError for entries that cannot be, or that are there twice."""
    chunkers = [chunker_of(each) for each in config.chunkers]
    searches = [steps_of(each) for each in config.retrievers]
    out = []
    for chunker in chunkers:
        for embedder in config.embedders:
            for steps in searches:
                parts = (_called(chunker), embedder, " + ".join(map(_called, steps)) or "hybrid")
                out.append(Combination(" / ".join(parts), chunker, embedder, steps))
    names = [each.name for each in out]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"the combination {twice} is there twice")
    return out


def sweep(
    source: str | Path | Mapping[str, Any] | SweepConfig,
    *,
    create: str = "",
    store: Store | None = None,
    progress: Progress = no_progress,
) -> Swept:
    """Measure every combination on the tuning half, keep the one that the tournament's verdict keeps, and prove it on the held-out half, where
    nothing else is asked but the first listed combination. ``create`` makes a base of that name of it.

    Kept as a run of kind ``tournament``; the same command goes on where it stopped, and does nothing twice. A combination that fails is on
    the board with its reason. Raises InputError, NotFoundError or DataError for what cannot work, ConflictError for a name that is taken
    or the same sweep running elsewhere.
    """
    store = store or open_store()
    config = source if isinstance(source, SweepConfig) else read_sweep(source)
    if create:
        check_new(store, create)
    listed = combinations_of(config)
    ks = checked_ks(config.k)
    for embedder in config.embedders:
        _known(store, embedder)
    tuning, held_out = halves(read_questions(config.questions, limit=config.limit), config.share, config.seed)
    task = task_of(tuning, retrieval_scorers(tuning, ks, config.match), 1)
    work = _Sweep(store, config, listed, tuning, held_out, replace(task, name=config.name), progress)
    swept = work.run()
    if create:
        chosen = next(each for each in listed if each.name == swept.chosen)
        _create(store, config, chosen, create, progress)
        return replace(swept, created=create)
    return swept


@dataclass
class _Sweep:
    """One sweep, resolved."""

    store: Store
    config: SweepConfig
    combinations: Sequence[Combination]
    tuning: Dataset
    held_out: Dataset
    task: Task
    progress: Progress
    documents: dict[str, Document] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    indexes: dict[str, float] = field(default_factory=dict)

    def run(self) -> Swept:
        key = digest_json(
            [
                "sweep",
                self.config.model_dump(mode="json"),
                list(self.tuning.ids()),
                list(self.held_out.ids()),
                self._files(),
            ]
        )
        runs.recover(self.store)
        earlier = runs.by_key(self.store, key)
        if any(each.status == "running" for each in earlier):
            raise ConflictError("this sweep is running already", hint="wait until it ends")
        done = next((each for each in earlier if each.status == "done"), None)
        if done is not None and (runs.folder(self.store, done.id) / BOARD_JSON).is_file():
            return _swept(self.store, done)
        run = runs.resume(self.store, earlier[0].id) if earlier else self._start(key)
        try:
            swept = self._work(run, key)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            reason = error.message if isinstance(error, LuthierError) else str(error) or type(error).__name__
            runs.finish(self.store, run.id, "interrupted" if interrupted else "failed", {"error": reason})
            raise
        for name in self.made.values():
            remove_base(name, store=self.store)
        return swept

    def _start(self, key: str) -> Run:
        values = {
            "sweep": self.config.model_dump(mode="json"),
            "combinations": [each.name for each in self.combinations],
        }
        run = runs.start(self.store, "tournament", self.config.name, values, {}, key)
        record_edge(self.store, Node("task", self.task.digest, self.task.name), "decided in", Node("run", run.id))
        return run

    def _work(self, run: Run, key: str) -> Swept:
        results: dict[str, EvalResult] = {}
        failed: dict[str, str] = {}
        for number, each in enumerate(self.combinations, 1):
            stage = f"{number}/{len(self.combinations)} {each.name}"
            try:
                results[each.name] = self._measured(each, self.tuning, key, stage)
            except LuthierError as error:
                failed[each.name] = error.message
            else:
                record_edge(self.store, Node("run", results[each.name].run.id), "compared in", Node("run", run.id))
        if not results:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
            raise InputError(f"no combination could be measured: {reasons}")
        board = self._board(run, results, failed)
        return self._prove(run, board, key)

    def _measured(self, each: Combination, questions: Dataset, key: str, stage: str) -> EvalResult:
        def shown(part: str, done: int, total: int) -> None:
            self.progress(f"{stage}: {part}", done, total)

        with self._base(each, key, shown) as base:
            return measure(
                base,
                questions,
                k=self.config.k,
                retrieval=each.retrieval or [{"name": "hybrid"}],
                match=self.config.match,
                writer=self.config.writer,
                reranker=self.config.reranker,
                store=self.store,
                progress=shown,
            )

    def _base(self, each: Combination, key: str, progress: Progress) -> KnowledgeBase:
        """The temporary base of a combination with all documents in it."""
        name = f"sweep-{key[:10]}-{each.base[:6]}"
        try:
            base = open_base(name, store=self.store)
        except NotFoundError:
            base = create_base(
                name,
                embedder=each.embedder,
                chunker=each.chunker,
                index=entry_of("indexes", self.config.index),
                description=f"temporary, of the sweep {self.config.name}",
                store=self.store,
            )
        try:
            if each.base not in self.made:
                self.made[each.base] = name
                base.read = self._read
                report = base.add(self.config.documents, progress=progress)
                if report.failed and not base.index.count():
                    raise InputError(f"no document could be read; first: {report.failed[0][0]}: {report.failed[0][1]}")
                self.indexes[each.base] = _size_mb(folder_of(self.store, name))
        except BaseException:
            base.close()
            raise
        return base

    def _read(self, source: str, options: Mapping[str, Mapping[str, Any]]) -> Document:
        """A document, parsed at its first use."""
        if source not in self.documents:
            self.documents[source] = parse_file(source, options)
        return self.documents[source]

    def _files(self) -> list[Any]:
        """What the documents are now, without reading them. Raises InputError for one that is not there."""
        out: list[Any] = []
        for name in self.config.documents:
            place = Path(name).expanduser()
            if "://" not in name and not place.exists():
                raise InputError(f"documents: no such file or folder: {name}")
            found = sorted(place.rglob("*")) if place.is_dir() else [place]
            stats = [(str(each), each.stat()) for each in found if each.is_file()]
            out.append([name, [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]])
        return out

    def _board(self, run: Run, results: Mapping[str, EvalResult], failed: Mapping[str, str]) -> Board:
        lines = [self._standing(each, results.get(each.name), failed.get(each.name, "")) for each in self.combinations]
        standings = rank(lines)
        order = [each.name for each in standings if each.status == "done"]
        comparisons = compare_all(self.task, {name: [results[name]] for name in order})
        sizes = [(s.name, float(s.score["value"]), s.artifact_mb) for s in standings if s.status == "done"]
        edges = {**frontiers(standings), "index size": list(frontier(sizes))}
        primary = next(iter(results.values())).primary
        return Board(
            run=run.id,
            name=self.config.name,
            created_at=now(),
            task=about(self.task) | {"primary": primary, "command": [], "lower_is_better": [], "promotable": False},
            standings=standings,
            comparisons=comparisons,
            verdict=decide(standings, comparisons, primary, frontiers=edges).as_dict(),
            notes=tuple(notes(self.task)),
            environment=environment(),
            folder=str(runs.folder(self.store, run.id)),
            frontiers=edges,
        )

    def _standing(self, each: Combination, result: EvalResult | None, reason: str) -> Standing:
        settings = {
            "chunker": dict(each.chunker),
            "embedder": each.embedder,
            "retrieval": [dict(s) for s in each.retrieval],
        }
        embedder = _known(self.store, each.embedder)
        line = Standing(
            each.name, "search", each.embedder, "failed", reason=reason, settings=settings, base_mb=embedder
        )
        if result is None:
            return line
        return replace(
            line,
            status="done",
            score=result.scores[result.primary],
            scores=result.scores,
            counts=result.counts,
            latency_p50_s=result.latency.get("p50_s"),
            latency_p95_s=result.latency.get("p95_s"),
            weights_mb=embedder,
            artifact_mb=self.indexes.get(each.base),
            eval_run=result.run.id,
        )

    def _prove(self, run: Run, board: Board, key: str) -> Swept:
        """The choice, and what it is held against, on the half that nobody has looked at."""
        chosen = next(each for each in self.combinations if each.name == board.verdict["keep"])
        proof = self._measured(chosen, self.held_out, key, f"held out: {chosen.name}")
        record_edge(self.store, Node("run", proof.run.id), "proved", Node("run", run.id))
        first = self.combinations[0]
        against = None
        if first is not chosen:
            try:
                other = self._measured(first, self.held_out, key, f"held out: {first.name}")
                against = {"name": first.name, **compare_runs(proof.run.id, other.run.id, store=self.store).as_dict()}
            except LuthierError as error:  # it is on the board with the same reason
                against = {"name": first.name, "error": error.message}
        told: dict[str, Any] = {"chosen": chosen.name, "proof": _plain(proof), "against": against}
        board = replace(board, verdict={**board.verdict, "reasons": (*board.verdict["reasons"], _proved(told))})
        folder = runs.folder(self.store, run.id)
        board.save(folder)
        write_atomic(folder / HELD_OUT, json.dumps(told, ensure_ascii=False, indent=1) + "\n")
        entrants = {s.name: s.score.get("value") for s in board.standings}
        summary = {"board": str(folder / "board.html"), "verdict": dict(board.verdict), "entrants": entrants, **told}
        runs.finish(self.store, run.id, "done", summary)
        return Swept(board, chosen.name, told["proof"], against)


def _swept(store: Store, run: Run) -> Swept:
    """A finished sweep."""
    folder = runs.folder(store, run.id)
    told = json.loads((folder / HELD_OUT).read_text(encoding="utf-8"))
    return Swept(Board.load(folder), told["chosen"], told["proof"], told["against"])


def _plain(result: EvalResult) -> dict[str, Any]:
    scores = {name: dict(each) for name, each in result.scores.items()}
    return {"run": result.run.id, "primary": result.primary, "scores": scores, "questions": result.counts["examples"]}


def _proved(told: Mapping[str, Any]) -> str:
    """What the held-out half says, in a sentence."""
    proof, against = told["proof"], told["against"]
    own = proof["scores"][proof["primary"]]
    said = (
        f"Proved on {proof['questions']} held-out questions about other documents: {told['chosen']} has "
        f"{metric(proof['primary'])} {score(own['value'])} {interval(own['low'], own['high'])}"
    )
    if against is None or "error" in against:
        return said + "."
    real = "a real difference" if against["bootstrap_p"] < LEVEL else "no difference that can be told"
    gap = f"{signed(against['difference'])}, {probability(against['bootstrap_p'])}"
    return f"{said}; against {against['name']} there: {gap}, {real}."


def _create(store: Store, config: SweepConfig, chosen: Combination, name: str, progress: Progress) -> None:
    with create_base(
        name,
        embedder=chosen.embedder,
        chunker=chosen.chunker,
        index=entry_of("indexes", config.index),
        retrieval=chosen.retrieval,
        description=f"chosen by the sweep {config.name}",
        store=store,
    ) as base:
        base.add(config.documents, progress=progress)


def _known(store: Store, embedder: str) -> float | None:
    """The size of an embedder; None of one that is not in the store. Raises NotFoundError for a name that nothing can be opened by."""
    try:
        return find(store, embedder).size_bytes / 1e6
    except NotFoundError:
        if embedder.partition(":")[0] in ("fake", "openai"):
            return None
        raise


def _called(entry: Mapping[str, Any]) -> str:
    """``fixed(tokens=200)``."""
    options = ", ".join(f"{key}={value}" for key, value in entry.items() if key != "name")
    return f"{entry['name']}({options})" if options else str(entry["name"])


def _from_file(given: Any, document: ConfigDocument) -> Any:
    """The steps in a YAML file, or what was given."""
    if not isinstance(given, str) or not given.endswith((".yaml", ".yml")):
        return given
    found = read_yaml(document.path(given)).values.get("retrieval")
    if found is None:
        raise InputError(f"{given} has no key retrieval")
    return found


def _size_mb(folder: Path) -> float:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file()) / 1e6
