"""A question in words, answered from a database: schema, SQL, check, run, repair, words."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier.apps.sql.check import check
from luthier.apps.sql.connect import Database, connect
from luthier.apps.sql.grammar import grammar
from luthier.apps.sql.limits import Limits, QueryError, Result
from luthier.apps.sql.prompts import Turn, query_prompt, repair_turns, sql_of, words_prompt
from luthier.apps.sql.schema import MOST_CHARACTERS, Schema, link
from luthier.apps.sql.table import json_rows
from luthier.apps.sql.words import grounded, plain
from luthier.core.engine import EMBED, GENERATE, Constraint, Engine, Generation, Sampling, require
from luthier.core.errors import ContextLengthError, InputError
from luthier.core.message import Conversation, Prompt

MOST_REPAIRS = 10
_QUERY_TOKENS = 400
_WORDS_TOKENS = 200
_SPARE_TOKENS = 64
_REPEATED = 0.8
"""The temperature of what is written after the same wrong query was written twice."""

_BYTES_PER_TOKEN = 3


@dataclass(frozen=True)
class Attempt:
    """A query that was written, and why it was not the last (``error`` empty: it was)."""

    sql: str
    error: str = ""


@dataclass(frozen=True)
class Answer:
    """``text`` in words, the query as it was run, its rows, every attempt, and the tables that the model was shown.

    ``calls`` are what the model was asked for: its answers, in order.
    """

    question: str
    sql: str
    result: Result
    text: str = ""
    attempts: tuple[Attempt, ...] = ()
    tables: tuple[str, ...] = ()
    dialect: str = ""
    calls: tuple[Generation, ...] = field(default=(), repr=False)

    @property
    def turn(self) -> Turn:
        """What a follow-up question needs to know of it."""
        return Turn(self.question, self.sql)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "question": self.question,
            "answer": self.text,
            "sql": self.sql,
            "columns": list(self.result.columns),
            "rows": json_rows(self.result.rows),
            "cut": self.result.cut,
            "took_s": round(self.result.took_s, 4),
            "attempts": [{"sql": each.sql, "error": each.error} for each in self.attempts],
            "tables": list(self.tables),
            "dialect": self.dialect,
        }


class NoQueryError(InputError):
    """No query that was written could be run; ``attempts`` says why not, ``calls`` what the model said."""

    def __init__(self, message: str, attempts: Sequence[Attempt], calls: Sequence[Generation]) -> None:
        super().__init__(
            message, hint="ask with other words, describe the tables (--notes), or name a larger model (--model)"
        )
        self.attempts, self.calls = tuple(attempts), tuple(calls)


@dataclass(frozen=True)
class Asking:
    """How questions are asked. ``repairs``: how often a query that fails is shown to the model with its error. ``words``: the rows are put into
    words by the model. ``run``: the query is run (else only written and checked). ``constrained``: the model follows a grammar of the schema's
    names (None: where its engine can). ``notes`` describe tables and columns (``table``, ``table.column``). ``schema_characters``: of the
    schema the model is shown at most so much, less when its context is small. ``embedder`` finds tables by meaning beside their words.
    """

    notes: Mapping[str, str] = field(default_factory=dict)
    repairs: int = 2
    words: bool = True
    run: bool = True
    constrained: bool | None = None
    schema_characters: int = MOST_CHARACTERS
    embedder: Engine | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.repairs <= MOST_REPAIRS:
            raise InputError(f"repairs must be 0 to {MOST_REPAIRS}; got {self.repairs}")
        if self.schema_characters < 200:
            raise InputError(f"schema_characters must be at least 200; got {self.schema_characters}")


def ask(
    question: str,
    db: str | Path | Database,
    engine: Engine | str,
    *,
    history: Iterable[Answer | Turn] = (),
    limits: Limits | None = None,
    samples: int = 3,
    private: Sequence[str] = (),
    **options: Any,
) -> Answer:
    """Answer ``question`` from the database ``db`` (as ``connect`` takes it) with SQL that ``engine`` (or the model of that name) writes.

    ``history``: earlier answers, so that "and by month?" is understood. ``samples`` values of each column but the ``private`` ones are shown to
    the model. ``options`` are those of ``Asking``.

    Raises InputError for an empty question, wrong options and a database without tables, NoQueryError when no query could be run.
    """
    asking_ = _options(options)
    with_model = engine if not isinstance(engine, str) else _loaded(engine)
    try:
        opened = db if isinstance(db, Database) else connect(db, limits, samples=samples, private=private)
        try:
            turns = [each.turn if isinstance(each, Answer) else each for each in history]
            talk = asking(question, opened, with_model, asking_, history=turns, limits=limits)
            while True:
                try:
                    next(talk)
                except StopIteration as end:
                    answer: Answer = end.value
                    return answer
        finally:
            if opened is not db:
                opened.close()
    finally:
        if with_model is not engine:
            with_model.close()


def asking(
    question: str,
    db: Database,
    engine: Engine,
    how: Asking,
    *,
    history: Sequence[Turn] = (),
    limits: Limits | None = None,
    sampling: Sampling | None = None,
) -> Generator[str, None, Answer]:
    """``ask`` in steps: yields the name of each step before it is taken (``write``, ``run``, ``words``), so that a caller can leave."""
    require(engine, GENERATE)
    if not question.strip():
        raise InputError("question must not be empty")
    whole = db.schema().described(how.notes)
    if not whole.tables:
        raise InputError("the database has no tables")
    shown, conversation = _fitted(question, whole, db.dialect, engine, how, history)
    drawn = replace(
        sampling or Sampling(), max_new_tokens=_QUERY_TOKENS, constraint=_constraint(engine, shown, db.dialect, how)
    )
    attempts: list[Attempt] = []
    calls: list[Generation] = []
    for _ in range(how.repairs + 1):
        yield "write"
        calls.append(engine.generate([_within(conversation, engine, attempts)], drawn)[0])
        sql = sql_of(calls[-1].text)
        if any(sql == each.sql for each in attempts):  # a greedy model repeats itself: from now on it draws
            drawn = replace(drawn, temperature=max(drawn.temperature, _REPEATED), seed=len(attempts))
        try:
            if not sql:
                raise QueryError("no query was written")
            checked = check(sql, db.dialect, whole)
            yield "run"
            result = db.run(checked, limits) if how.run else Result(())
        except InputError as error:
            attempts.append(Attempt(sql, error.message))
            conversation = (*conversation, *repair_turns(sql or calls[-1].text, error.message, question))
            continue
        attempts.append(Attempt(checked))
        if how.run and how.words and result.rows:
            yield "words"
        text = _in_words(question, result, engine, how, calls) if how.run else ""
        tables = tuple(table.name for table in shown.tables)
        return Answer(question, checked, result, text, tuple(attempts), tables, db.dialect, tuple(calls))
    last = attempts[-1]
    tried = f"{last.sql[:200] or 'nothing was written'}: {last.error}"
    raise NoQueryError(f"no query could be run in {len(attempts)} attempts; the last: {tried}", attempts, calls)


def _options(options: Mapping[str, Any]) -> Asking:
    known = Asking.__dataclass_fields__
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(f"{unknown[0]} is not an option of ask; options: {', '.join(known)}")
    return Asking(**options)


def _loaded(name: str) -> Engine:
    from luthier.strategies._load import load

    return load(name, raw=True)


def _constraint(engine: Engine, shown: Schema, dialect: str, how: Asking) -> Constraint | None:
    able = "grammar" in engine.info.parameters
    if how.constrained and not able:
        raise InputError(f"constrained: {engine.info.model} on engine {engine.info.engine} does not follow grammars")
    return grammar(shown, dialect) if able and how.constrained is not False else None


def _fitted(
    question: str, whole: Schema, dialect: str, engine: Engine, how: Asking, history: Sequence[Turn]
) -> tuple[Schema, Conversation]:
    """The tables that are shown, as many as the model's context holds, and the prompt. Raises ContextLengthError when not one fits."""
    most = how.schema_characters
    similar = _similar(question, whole, how.embedder) if how.embedder is not None else {}
    room = _room(engine)
    words = " ".join([question, *(turn.question for turn in history)])
    while True:
        shown = link(whole, words, most_characters=most, similar=similar)
        prompt = query_prompt(question, shown, dialect, history)
        if room is None or _count(engine, prompt) <= room:
            return shown, prompt
        if most < 200:
            raise ContextLengthError(
                f"the question and one table have {_count(engine, prompt)} tokens; {engine.info.model} reads {room} beside its answer"
            )
        most = int(most * 0.7)


def _within(conversation: Conversation, engine: Engine, attempts: Sequence[Attempt]) -> Conversation:
    """The conversation without the oldest attempts that do not fit."""
    room = _room(engine)
    first = len(conversation) - 2 * len(attempts)
    kept = conversation
    while room is not None and len(kept) > first and _count(engine, kept) > room:
        kept = (*kept[:first], *kept[first + 2 :])
    return kept


def _room(engine: Engine) -> int | None:
    most = engine.info.context_length
    return most - _QUERY_TOKENS - _SPARE_TOKENS if most else None


def _count(engine: Engine, prompt: Prompt) -> int:
    own: Callable[[Prompt], int] | None = getattr(engine, "count_tokens", None)
    if own is not None:
        return own(prompt)
    texts = [prompt] if isinstance(prompt, str) else [turn.content for turn in prompt]
    return sum(8 + len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN for text in texts)


def _similar(question: str, schema: Schema, embedder: Engine) -> dict[str, float]:
    """Cosine of the question and each table's names and descriptions."""
    require(embedder, EMBED)
    vectors = embedder.embed([question, *(table.summary() for table in schema.tables)])
    return {table.name: float(vectors[at] @ vectors[0]) for at, table in enumerate(schema.tables, 1)}


def _in_words(question: str, result: Result, engine: Engine, how: Asking, calls: list[Generation]) -> str:
    """The model's sentences; a plain statement for an empty result, and where they hold a number that is nowhere in the rows."""
    if not how.words or not result.rows:
        return plain(question, result)
    prompt = words_prompt(question, result)
    room = _room(engine)
    if room is not None and _count(engine, prompt) > room:
        return plain(question, result)
    calls.append(engine.generate([prompt], Sampling(max_new_tokens=_WORDS_TOKENS))[0])
    text = calls[-1].text.strip()
    return text if text and grounded(text, question, result) else plain(question, result)
