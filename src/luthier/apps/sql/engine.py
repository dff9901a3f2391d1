"""A database and a model that writes queries, as one engine: it answers in words, with the query and its rows."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from luthier.apps.sql.ask import Answer, Asking, Attempt, NoQueryError, asking
from luthier.apps.sql.connect import Database
from luthier.apps.sql.limits import Limits
from luthier.apps.sql.prompts import Turn, language_of
from luthier.apps.sql.table import json_rows, markdown_table
from luthier.core.digest import digest_json
from luthier.core.engine import (
    EMBED,
    GENERATE,
    SCORE,
    STREAM,
    ContinuationScore,
    Delta,
    Engine,
    EngineInfo,
    Generation,
    Sampling,
    ScoreRequest,
    Vectors,
    check_health,
    require,
)
from luthier.core.errors import InputError
from luthier.core.message import Prompt, last_user_text
from luthier.core.run import Progress, no_progress

PREFIX = "db:"
"""What names of models begin with that are databases."""

_DRAWING = frozenset({"top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"})
_FENCE = re.compile(r"```sql\n(.*?)\n```", re.DOTALL)
_SHOWN_ROWS = 50
_FAILED = {
    "en": "I could not write a query that answers this ({count} attempts). The last error: {error}",
    "zh": "未能写出可以回答这个问题的查询(共尝试{count}次)。最后的错误:{error}",
}


class SqlEngine:
    """``inner`` writes the queries, ``database`` runs them; both are closed with this one.

    An answer's ``text`` is the answer in words, the query in a block of code and the rows as a Markdown table. ``steps`` holds them
    as data: ``{"step": "sql", "sql", "columns", "rows", "cut", "seconds"}`` for the query that ran, after one with ``error`` for each that
    did not. Earlier turns with such blocks are what a follow-up question refers to.
    """

    def __init__(self, name: str, database: Database, inner: Engine, how: Asking, limits: Limits) -> None:
        require(inner, GENERATE)
        self.inner, self.database, self._how, self._limits = inner, database, how, limits
        own = inner.info
        decides = [
            name,
            own.prompt_digest,
            database.dialect,
            sorted(how.notes.items()),
            how.repairs,
            how.words,
            how.constrained,
        ]
        self._described = own.with_(
            model=f"{PREFIX}{name}",
            capabilities=frozenset({GENERATE, STREAM}),
            parameters=own.parameters & _DRAWING,
            prompt_digest=digest_json(["sql", *decides]),
            labels=(),
            meta=(*own.meta, ("database", name), ("writer", own.model), ("dialect", database.dialect)),
        )

    @property
    def info(self) -> EngineInfo:
        """The writing engine's under the database's name. ``version`` in ``meta`` is that of its files, so that answers of one are never taken
        for another's; what a server holds may change at any moment."""
        stamp = self.database.target.stamp()
        version = "-".join(map(str, chain(*stamp))) if stamp else str(time.monotonic_ns())
        return self._described.with_(meta=(*self._described.meta, ("version", version)))

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        """One answer a prompt, one after the other. Raises InputError for an empty question."""
        made = []
        for done, prompt in enumerate(prompts, 1):
            deltas = list(self.stream(prompt, sampling))
            assert deltas[-1].generation is not None
            made.append(deltas[-1].generation)
            progress("generate", done, len(prompts))
        return made

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """An empty piece before each step, so that it can be left; then the answer."""
        question, history = read_turns(prompt)
        if not question.strip():
            raise InputError("messages need a user turn with a question; got an empty one")
        return self._stream(question, history, sampling)

    def _stream(self, question: str, history: Sequence[Turn], sampling: Sampling) -> Iterator[Delta]:
        start = time.perf_counter()
        talk = asking(
            question, self.database, self.inner, self._how, history=history, limits=self._limits, sampling=sampling
        )
        try:
            answer = yield from _steps(talk)
        except NoQueryError as error:
            text = _FAILED[language_of(question)].format(count=len(error.attempts), error=error.attempts[-1].error)
            made = _generation(text, error.calls, [_failed(each) for each in error.attempts], start)
        else:
            made = _generation(answer_text(answer), answer.calls, answer_steps(answer), start)
        yield Delta(made.text)
        yield Delta("", made)

    def score(
        self, requests: Sequence[ScoreRequest], progress: Progress = no_progress
    ) -> list[tuple[ContinuationScore, ...]]:
        """Raises UnsupportedError."""
        require(self, SCORE)
        return []

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Vectors:
        """Raises UnsupportedError."""
        require(self, EMBED)
        return self.inner.embed(texts, progress)

    def healthy(self, timeout_s: float) -> None:
        """Raises EngineError when the model that writes is not well."""
        check_health(self.inner, timeout_s)

    def close(self) -> None:
        """Close the database and the model."""
        self.database.close()
        self.inner.close()


def _steps(talk: Generator[str, None, Answer]) -> Generator[Delta, None, Answer]:
    while True:
        try:
            next(talk)
        except StopIteration as end:
            answer: Answer = end.value
            return answer
        yield Delta("")


def read_turns(prompt: Prompt) -> tuple[str, list[Turn]]:
    """The question, and those before it whose answers hold a query."""
    question = last_user_text(prompt)
    turns: list[Turn] = []
    asked = ""
    for message in () if isinstance(prompt, str) else prompt:
        found = _FENCE.search(message.content) if message.role == "assistant" and asked else None
        if message.role == "user":
            asked = message.content
        elif found is not None:
            turns.append(Turn(asked, found.group(1).strip()))
    return question, turns


def answer_text(answer: Answer) -> str:
    """Words, the query in a block of code, the rows as a table."""
    parts = [answer.text, f"```sql\n{answer.sql}\n```"]
    return "\n\n".join([*parts, markdown_table(answer.result, _SHOWN_ROWS)] if answer.result.rows else parts)


def answer_steps(answer: Answer) -> list[Mapping[str, Any]]:
    """What was tried and what ran, as data."""
    result = answer.result
    ran = {
        "step": "sql",
        "sql": answer.sql,
        "columns": list(result.columns),
        "rows": json_rows(result.rows),
        "cut": result.cut,
        "seconds": round(result.took_s, 4),
        "tables": list(answer.tables),
    }
    return [*(_failed(each) for each in answer.attempts[:-1]), ran]


def _failed(attempt: Attempt) -> Mapping[str, Any]:
    return {"step": "sql", "sql": attempt.sql, "error": attempt.error}


def _generation(text: str, calls: Sequence[Generation], steps: Sequence[Mapping[str, Any]], start: float) -> Generation:
    took = time.perf_counter() - start
    return Generation(
        text=text,
        token_ids=(),
        prompt_token_ids=(),
        finish_reason="stop",
        first_token_s=took,
        latency_s=took,
        prompt_tokens=sum(each.prompt_tokens for each in calls),
        completion_tokens=sum(each.completion_tokens for each in calls),
        cached_tokens=sum(each.cached_tokens for each in calls),
        calls=len(calls),
        steps=tuple(steps),
    )
