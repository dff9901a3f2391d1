"""A file of requests answered without a server: ``luthier batch run``."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson

from luthier.core.engine import EMBED, Engine, require
from luthier.core.errors import ConflictError, DataError, EngineError, InputError, LuthierError
from luthier.core.run import Progress, no_progress
from luthier.gateway.access.caller import Caller
from luthier.gateway.api.embeddings import EmbeddingRequest, count_tokens, embedding_content
from luthier.gateway.batch.lines import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    Line,
    Ready,
    failed_row,
    question_of,
    read_line,
    ready,
    row_of,
    rows_of,
)
from luthier.gateway.batch.results import Results
from luthier.gateway.batch.run import unanswered
from luthier.gateway.calls import generate
from luthier.gateway.targets.served import Price, Served, serve_as
from luthier.store.database import Store, open_store
from luthier.store.home import new_id, write_atomic

_GROUPS = 32
_SHOWN = 5


@dataclass
class BatchSummary:
    """What came of a batch: of ``total`` lines ``kept`` were answered by an earlier run, ``completed`` and ``failed`` by this one. Tokens are of this run."""

    total: int
    kept: int = 0
    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)


def run_batch(
    source: Path | str,
    output: Path | str,
    *,
    model: str | Engine,
    engine: str = "auto",
    options: Mapping[str, Any] | None = None,
    store: Store | None = None,
    rows: int = 32,
    defaults: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    progress: Progress = no_progress,
) -> BatchSummary:
    """Answer every line of ``source`` and append its row to ``output``, ``rows`` lines in one call of the engine where they agree in parameters.

    Lines are OpenAI's batch requests (``custom_id``, ``body``, perhaps ``url``), or rows with ``messages`` or ``prompt`` and perhaps an ``id``; ``model``
    answers whatever they name. ``defaults`` are fields of the body (``max_tokens``) for lines that do not say. An ``output`` that is there is gone on
    with; ``retry_failed`` asks its failed lines again.

    Raises DataError that names the broken lines before the model is loaded, ConflictError for an ``output`` of another input, EngineError when the
    engine is gone.
    """
    path, out = Path(source), Path(output)
    if rows < 1:
        raise InputError(f"rows must be >= 1; got {rows}")
    ids = _check(path)
    if overwrite:
        out.unlink(missing_ok=True)
    elif retry_failed and out.exists():
        _drop_failed(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with Results(out, mode=0o666) as results, ExitStack() as stack:
        strange = results.done - ids
        if strange:
            raise ConflictError(
                f"{out} holds answers to other lines ({', '.join(sorted(strange)[:3])}): it belongs to another input",
                hint="name another output, or say --overwrite",
            )
        summary = BatchSummary(total=len(ids), kept=len(results.done))
        if summary.kept == summary.total:
            return summary
        opened = store or open_store()
        if isinstance(model, str):
            from luthier.strategies._load import load

            made = load(model, engine=engine, store=opened, options=options)
            stack.callback(made.close)
            served = serve_as(model, made, opened, Price())
        else:
            served = serve_as(model.info.model, model, opened, Price())
        _Runner(served, results, rows, dict(defaults or {}), summary, progress).run(path)
    return summary


def _check(path: Path) -> set[str]:
    """The ids of all lines. Raises DataError, NotFoundError."""
    seen: set[str] = set()
    problems: list[str] = []
    try:
        for line in _lines(path):
            if not isinstance(line, Line):
                problems.append(f"line {line['line']}: {line['message']}")
            elif line.custom_id in seen:
                problems.append(f"line {line.number}: custom_id {line.custom_id!r} occurs twice")
            else:
                seen.add(line.custom_id)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if problems:
        more = f"; and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
        raise DataError(f"{path}: {'; '.join(problems[:_SHOWN])}{more}")
    if not seen:
        raise DataError(f"{path} has no lines")
    return seen


def _lines(path: Path) -> Iterator[Line | dict[str, Any]]:
    with path.open("rb") as file:
        for number, data in enumerate(file, 1):
            if data.strip():
                yield _line(number, data)


def _line(number: int, data: bytes) -> Line | dict[str, Any]:
    """A line in either form."""
    try:
        row = orjson.loads(data)
    except orjson.JSONDecodeError:
        row = None
    if not isinstance(row, dict) or "body" in row or not {"messages", "prompt"} & set(row):
        url = row.get("url", CHAT) if isinstance(row, dict) else CHAT
        if url not in (CHAT, COMPLETIONS, EMBEDDINGS):
            return {"line": number, "message": f"url must be {CHAT}, {COMPLETIONS} or {EMBEDDINGS}; got {url!r}"}
        return read_line(number, data, url)
    plain = {name: row[name] for name in ("messages", "prompt") if name in row}
    if len(plain) == 2:
        return {"line": number, "message": "a row has messages or a prompt, not both"}
    url = CHAT if "messages" in plain else COMPLETIONS
    return Line(number, str(row.get("custom_id", row.get("id", number))), plain, url, len(data))


def _drop_failed(out: Path) -> None:
    with Results(out) as results:
        good = b"".join(data for data, succeeded in results.rows() if succeeded)
    write_atomic(out, good)


@dataclass
class _Runner:
    served: Served
    results: Results
    rows: int
    defaults: dict[str, Any]
    summary: BatchSummary
    progress: Progress

    def run(self, path: Path) -> None:
        began = time.perf_counter()
        lines = _lines(path)
        self._say()
        while window := unanswered(lines, self.results.done, _GROUPS * self.rows):
            for group in self._groups(window):
                rows = self._answer(group)
                self.results.append(rows)
                self._count(rows)
                self.summary.seconds = time.perf_counter() - began
                self._say()

    def _say(self) -> None:
        self.progress("answer", len(self.results.done), self.summary.total)

    def _count(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            body = row["response"]["body"]
            if row["response"]["status_code"] == 200:
                self.summary.completed += 1
                self.summary.prompt_tokens += body["usage"]["prompt_tokens"]
                self.summary.completion_tokens += body["usage"].get("completion_tokens", 0)
            else:
                self.summary.failed += 1
                said = body["error"]["message"]
                self.summary.errors[said] = self.summary.errors.get(said, 0) + 1

    def _groups(self, window: list[Line]) -> Iterator[list[Ready]]:
        groups: dict[Any, list[list[Ready]]] = {}
        refused = []
        for line in window:
            defaults = {} if line.url == EMBEDDINGS else dict(self.defaults)
            if "max_completion_tokens" in line.body:
                defaults.pop("max_tokens", None)
            body = {**defaults, **line.body, "model": self.served.name}
            try:
                each = ready(replace(line, body=body))
            except LuthierError as error:
                refused.append(failed_row(line, error))
                continue
            key = (line.url, line.number if each.key is None else each.key)
            known = groups.setdefault(key, [[]])
            if len(known[-1]) == self.rows:
                known.append([])
            known[-1].append(each)
        if refused:
            self.results.append(refused)
            self._count(refused)
        for known in groups.values():
            yield from known

    def _answer(self, group: list[Ready]) -> list[dict[str, Any]]:
        """The rows of a group. One that fails is halved, until the line is found that takes the others with it."""
        try:
            return self._embed(group) if group[0].line.url == EMBEDDINGS else self._generate(group)
        except EngineError:
            raise  # it would fail for every line; what is written stays, and the next run goes on
        except LuthierError as error:
            if len(group) == 1:
                return [failed_row(group[0].line, error)]
        middle = len(group) // 2
        return [*self._answer(group[:middle]), *self._answer(group[middle:])]

    def _generate(self, group: list[Ready]) -> list[dict[str, Any]]:
        question = question_of(group, Caller()).to(self.served)
        never = threading.Event()
        for piece in generate(
            self.served.engine, question.prompts, question.sampling, question.n, pieces=False, stopped=never
        ):
            question.exchange.note(piece)
        return rows_of(group, question.exchange)

    def _embed(self, group: list[Ready]) -> list[dict[str, Any]]:
        require(self.served.engine, EMBED)
        bodies = [cast(EmbeddingRequest, each.asked) for each in group]
        vectors = np.asarray(self.served.engine.embed([text for body in bodies for text in body.input]))
        rows, start = [], 0
        for each, body in zip(group, bodies, strict=True):
            end = start + len(body.input)
            content = embedding_content(body, vectors[start:end], count_tokens(self.served, body.input))
            rows.append(row_of(each.line, new_id("trace"), content))
            start = end
        return rows
