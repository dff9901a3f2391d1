"""The arena: which of two answers is better, says a person or a judge; every vote is kept.

Answers are collected once a model, as an evaluation whose records stay (``collect``). A judge sees each pair in both orders, a person
in a random one and without the models' names. Votes are written as they come, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.dataset import Dataset, Example, RowProblem, Splits
from luthier.core.digest import digest_json
from luthier.core.errors import DataError, InputError, MismatchError
from luthier.core.message import user
from luthier.core.run import Progress, no_progress
from luthier.core.task import PromptTemplate, Task
from luthier.data.files import Broken, rows_of
from luthier.store.battles import (
    DEFAULT_ARENA,
    Battle,
    Source,
    Winner,
    arena_folder,
    known_keys,
    list_battles,
    pair_of,
    record_battles,
    vote_key,
)
from luthier.store.database import Store, open_store

if TYPE_CHECKING:
    from luthier.strategies._judge import Judge

Vote = Literal["a", "b", "tie", "skip"]
JUDGE_BLOCK = 16  # pairs that are judged before their votes are written
MAX_NEW_TOKENS = 256
_PROMPT_FIELDS = ("prompt", "question", "instruction", "input", "text")
_REFERENCE_FIELDS = ("reference", "answer", "output", "response")
_SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class Answers:
    """What one model said: prompt -> answer. ``digest`` is of the model, ``run`` the evaluation that holds the records."""

    model: str
    digest: str
    run: str
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, without a vote. The models are in the order of their names."""

    prompt: str
    model_a: str
    model_b: str
    answer_a: str
    answer_b: str
    digest_a: str = ""
    digest_b: str = ""
    reference: str = ""

    @property
    def identity(self) -> str:
        """See ``store.battles.pair_of``."""
        return pair_of(self.prompt, (self.model_a, self.answer_a), (self.model_b, self.answer_b))

    def battle(self, winner: Winner, source: Source, voter: str, arena: str, **more: Any) -> Battle:
        """This pair with a vote."""
        return Battle(
            prompt=self.prompt,
            model_a=self.model_a,
            model_b=self.model_b,
            answer_a=self.answer_a,
            answer_b=self.answer_b,
            digest_a=self.digest_a,
            digest_b=self.digest_b,
            winner=winner,
            source=source,
            voter=voter,
            arena=arena,
            **more,
        )


# ---- prompts and answers


def prompts_task(source: str | Path | Task, *, max_new_tokens: int = MAX_NEW_TOKENS, limit: int | None = None) -> Task:
    """The questions of an arena: a task of kind generate (file or benchmark), or a file of prompts.

    A text file has a prompt a line; rows of other files have one of prompt, question, instruction, input, text, and may have a
    reference. Raises DataError that names the rows without a prompt, InputError for a task whose answers are not free text.
    """
    from luthier.core import catalog
    from luthier.tasks._load import FILES, load_task

    if isinstance(source, Task) or Path(source).suffix.lower() in FILES or str(source) in catalog.names("tasks"):
        task = load_task(source)
        if task.kind != "generate":
            raise InputError(f"an arena compares free answers; task {task.name} is of kind {task.kind}")
        return replace(task, samples=1)
    path = Path(source).expanduser()
    examples = tuple(_read_prompts(path))[:limit]
    if not examples:
        raise DataError(f"{path}: there is no prompt in it")
    nothing = Dataset(path.stem, "question", ())
    splits = Splits(nothing, nothing, replace(nothing, examples=examples))
    return Task(path.stem, "generate", splits, PromptTemplate(), (("answered", {}),), max_new_tokens)


def _read_prompts(path: Path) -> Iterator[Example]:
    problems = []
    for line, row in _rows(path):
        if isinstance(row, Broken):
            problems.append(RowProblem(str(path), line, row.reason))
            continue
        text = next((str(row[name]) for name in _PROMPT_FIELDS if str(row.get(name) or "").strip()), "")
        if not text:
            problems.append(RowProblem(str(path), line, f"none of the fields {', '.join(_PROMPT_FIELDS)}"))
            continue
        reference = next((str(row[name]) for name in _REFERENCE_FIELDS if row.get(name)), None)
        yield Example(digest_json([text, reference])[:16], user(text), reference, source=f"{path}:{line}")
    _refuse(problems)


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    if path.suffix.lower() != ".txt":
        yield from rows_of(path)
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    yield from ((number, {"prompt": text}) for number, text in enumerate(lines, 1) if text.strip())


def _refuse(problems: Sequence[RowProblem]) -> None:
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:_SHOWN_PROBLEMS])
        raise DataError(f"{len(problems)} rows cannot be used:\n{shown}")


def collect(
    model: str,
    task: Task,
    *,
    limit: int | None = None,
    engine: str = "auto",
    store: Store | None = None,
    progress: Progress = no_progress,
) -> Answers:
    """A model's answers to the task's test questions, asked once: equal work is found again, interrupted work continued.

    Questions that the engine refused (too long) have no answer.
    """
    from luthier.evaluation.evaluate import evaluate

    result = evaluate(model, task, limit=limit, engine=engine, store=store, progress=progress)
    asked = {example.id: example.text for example in task.examples("test")}
    texts = {asked[r.id]: r.answer for r in result.records if not r.error}
    return Answers(model, _digest(store or open_store(), result.run.id), result.run.id, texts)


def _digest(store: Store, run: str) -> str:
    import json

    from luthier.store.runs import folder

    config = json.loads((folder(store, run) / "config.json").read_text(encoding="utf-8"))["values"]
    return str(config["engine"]["model_digest"])


def pairs_of(answers: Sequence[Answers], references: Mapping[str, str] | None = None) -> list[Pair]:
    """Every two models on every prompt that both answered, in the order of the prompts. Raises InputError for fewer than two models."""
    names = [each.model for each in answers]
    if len(set(names)) < 2:
        raise InputError(f"an arena needs at least two different models; got {', '.join(names) or 'none'}")
    ordered = sorted({each.model: each for each in answers}.values(), key=lambda each: each.model)
    prompts = dict.fromkeys(prompt for each in answers for prompt in each.texts)
    return [
        Pair(
            prompt,
            a.model,
            b.model,
            a.texts[prompt],
            b.texts[prompt],
            a.digest,
            b.digest,
            (references or {}).get(prompt, ""),
        )
        for prompt in prompts
        for a, b in combinations(ordered, 2)
        if prompt in a.texts and prompt in b.texts
    ]


def references_of(task: Task) -> dict[str, str]:
    """Prompt -> reference answer, where there is one."""
    return {e.text: e.target for e in task.examples("test") if e.target}


# ---- judges


@dataclass(frozen=True)
class Judged:
    """What a judge did: pairs with a vote now, of these ``new`` ones; ``inconsistent`` new ones on which the two orders disagreed (a
    tie); ``unparsable`` pairs without a vote, which the next run asks again. ``log`` has every reply."""

    arena: str
    voter: str
    votes: int
    new: int
    inconsistent: int
    unparsable: int
    log: str
    counts: Mapping[str, int] = field(default_factory=dict)


def judge_pairs(
    pairs: Sequence[Pair],
    judge: Judge,
    voter: str,
    *,
    arena: str = DEFAULT_ARENA,
    store: Store | None = None,
    progress: Progress = no_progress,
) -> Judged:
    """Let ``judge`` vote on pairs in both orders and keep the votes, block by block. What ``voter`` voted on before is left out.

    Equal answers are a tie and are not asked. ``voter`` says exactly who judges (see ``voter_of``).
    """
    from luthier.strategies._judge import Question

    store = store or open_store()
    known = known_keys(store, arena)
    keyed = {vote_key(arena, pair.identity, "judge", voter): pair for pair in pairs}
    left = [pair for key, pair in keyed.items() if key not in known]
    done = len(keyed) - len(left)
    new = inconsistent = unparsable = 0
    progress("judge", done, len(keyed))
    for start in range(0, len(left), JUDGE_BLOCK):
        block = left[start : start + JUDGE_BLOCK]
        same = [pair for pair in block if pair.answer_a.strip() == pair.answer_b.strip()]
        votes = [pair.battle("tie", "judge", voter, arena, detail={"reason": "equal answers"}) for pair in same]
        asked = [pair for pair in block if pair not in same]
        said = judge.compare([(Question(p.prompt, p.reference), p.answer_a, p.answer_b) for p in asked])
        for pair, preference in zip(asked, said, strict=True):
            if preference.winner is None:
                unparsable += 1
                continue
            inconsistent += not preference.consistent
            detail = {"reason": preference.reason, "forward": preference.forward, "backward": preference.backward}
            votes.append(pair.battle(_WINNERS[preference.winner], "judge", voter, arena, detail=detail))
        new += record_battles(store, votes)
        done += len(block)
        progress("judge", done, len(keyed))
    log = str(arena_folder(store, arena) / JUDGE_LOG)
    return Judged(arena, voter, len(keyed) - unparsable, new, inconsistent, unparsable, log, dict(judge.counts))


_WINNERS: Mapping[str, Winner] = {"first": "model_a", "second": "model_b", "tie": "tie"}
JUDGE_LOG = "judge.jsonl"


def open_judge(
    model: str,
    *,
    rubric: str | None = None,
    mode: Literal["write", "score"] = "write",
    engine: str = "auto",
    arena: str = DEFAULT_ARENA,
    store: Store | None = None,
) -> tuple[Judge, str, Any]:
    """The judge, its name as a voter, and its engine, which the caller closes. Every reply goes to ``judge.jsonl`` of the arena."""
    from luthier.store.database import to_json
    from luthier.strategies._judge import DEFAULT_RUBRIC, Judge
    from luthier.strategies._load import load

    store = store or open_store()
    log = arena_folder(store, arena) / JUDGE_LOG

    def keep(record: Mapping[str, Any]) -> None:
        with log.open("a", encoding="utf-8") as file:
            file.write(to_json(record) + "\n")

    opened = load(model, engine=engine, store=store)
    try:
        rubric = rubric or DEFAULT_RUBRIC
        judge = Judge(opened, rubric=rubric, mode=mode, log=keep, store=store)
    except BaseException:
        opened.close()
        raise
    return judge, voter_of(model, opened.info.model_digest, rubric, mode), opened


def voter_of(model: str, digest: str, rubric: str, mode: str) -> str:
    """A judge's name as a voter: another model, rubric or mode is another voter."""
    return f"{model} {digest_json([digest, rubric, mode])[:8]}"


# ---- people


@dataclass(frozen=True)
class Round:
    """What a person is shown: the prompt and two answers, called A and B. ``swapped`` says that A is the pair's second model."""

    pair: Pair
    swapped: bool

    @property
    def answers(self) -> tuple[str, str]:
        """What is shown as A and as B."""
        a, b = self.pair.answer_a, self.pair.answer_b
        return (b, a) if self.swapped else (a, b)

    def battle(self, vote: Vote, voter: str, arena: str = DEFAULT_ARENA) -> Battle:
        """The vote with the models' names back. Raises InputError for a vote that is none."""
        if vote not in ("a", "b", "tie", "skip"):
            raise InputError(f"vote must be a, b, tie or skip; got {vote!r}")
        winner: Winner = "tie" if vote == "tie" else "skip"
        if vote in ("a", "b"):
            winner = "model_a" if (vote == "a") != self.swapped else "model_b"
        return self.pair.battle(winner, "human", voter, arena, shown="ba" if self.swapped else "ab")


def rounds(
    pairs: Sequence[Pair], voter: str, *, arena: str = DEFAULT_ARENA, seed: int = 0, store: Store | None = None
) -> list[Round]:
    """The pairs that ``voter`` has not seen yet, in a random order, each with its answers in a random order. The same for the same
    seed."""
    known = known_keys(store or open_store(), arena)
    left = [pair for pair in pairs if vote_key(arena, pair.identity, "human", voter) not in known]
    draw = random.Random(digest_json([seed, voter]))
    draw.shuffle(left)
    return [Round(pair, draw.random() < 0.5) for pair in left]


# ---- votes from elsewhere


@dataclass(frozen=True)
class Imported:
    """What a file held: its good rows, of these new ones, and the problems of the others."""

    arena: str
    rows: int
    new: int
    problems: tuple[RowProblem, ...] = ()


def import_battles(
    path: str | Path,
    *,
    arena: str | None = None,
    source: Source = "human",
    skip_bad: bool = False,
    store: Store | None = None,
) -> Imported:
    """Read votes that were taken elsewhere, one a row: prompt, model_a, model_b, response_a, response_b, winner; optional id, votes.

    ``winner`` is model_a, model_b or tie (``tie (bothbad)`` is one). The arena is the file's name when it is not given. Rows that are
    there already are not counted twice. Raises DataError that lists the rows that cannot be used, unless ``skip_bad``.
    """
    path = Path(path).expanduser()
    arena = arena or path.name.partition(".")[0]
    store = store or open_store()
    arena_folder(store, arena)
    found, problems = [], []
    for line, row in rows_of(path):
        if isinstance(row, Broken):
            problems.append(RowProblem(str(path), line, row.reason))
            continue
        try:
            found.append(_imported(row, line, arena, source, path.name))
        except InputError as error:
            problems.append(RowProblem(str(path), line, error.message))
    if not skip_bad:
        _refuse(problems)
    if not found:
        raise DataError(f"{path}: there is no vote in it")
    return Imported(arena, len(found), record_battles(store, found), tuple(problems))


_IMPORTED: Mapping[str, Winner] = {
    "model_a": "model_a", "a": "model_a", "response_a": "model_a",
    "model_b": "model_b", "b": "model_b", "response_b": "model_b",
    "tie": "tie", "tie (bothbad)": "tie", "both_bad": "tie",
}  # fmt: skip


def _imported(row: Mapping[str, Any], line: int, arena: str, source: Source, file: str) -> Battle:
    needed = ("prompt", "model_a", "model_b", "response_a", "response_b", "winner")
    lacks = [name for name in needed if not isinstance(row.get(name), str)]
    if lacks:
        raise InputError(f"needs text in {', '.join(lacks)}")
    winner = _IMPORTED.get(row["winner"].strip().lower())
    if winner is None:
        raise InputError(f"winner must be model_a, model_b or tie; got {row['winner']!r}")
    detail = {name: row[name] for name in ("id", "votes") if row.get(name) is not None}
    identity = [arena, "import", str(row.get("id") or line), row["prompt"], row["model_a"], row["model_b"], winner]
    return Battle(
        prompt=row["prompt"],
        model_a=row["model_a"],
        model_b=row["model_b"],
        answer_a=row["response_a"],
        answer_b=row["response_b"],
        winner=winner,
        source=source,
        voter=file,
        arena=arena,
        detail=detail,
        key=digest_json(identity),
    )


def stored_pairs(store: Store, arena: str) -> list[Pair]:
    """The pairs of an arena that people voted on, each once: what a judge is compared with people on.

    Raises MismatchError when there are none.
    """
    found: dict[str, Pair] = {}
    for b in list_battles(store, arena, source="human"):
        pair = Pair(b.prompt, b.model_a, b.model_b, b.answer_a, b.answer_b, b.digest_a, b.digest_b)
        found.setdefault(pair.identity, pair)
    if not found:
        raise MismatchError(
            f"arena {arena!r} has no human votes to judge again",
            hint="luthier arena import FILE, or luthier arena play A B",
        )
    return list(found.values())
