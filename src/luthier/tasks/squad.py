"""SQuAD: questions whose answer is a piece of a paragraph, or that it cannot answer (Rajpurkar et al., 2016 and 2018).

Prompt: ``Title:``, ``Background:`` and ``Question:``, an empty line after each, then ``Answer:``; the answer ends with its line. No worked
examples unless asked for, then drawn from the train part. Scorers: token_f1 and squad_exact against the best of the published answers (the
harness's ``f1`` and ``exact`` of ``squadv2``); a question without an answer wants an empty one, as there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError
from luthier.core.task import Task
from luthier.data.files import Broken, Row, rows_of
from luthier.tasks._benchmark import Benchmark, Item, ShotsConfig, build_task
from luthier.tasks._fields import Fields, field, text, texts
from luthier.tasks._source import Source

SOURCE = Source(
    paper="Rajpurkar et al. (2018), Know What You Don't Know: Unanswerable Questions for SQuAD, arXiv:1806.03822",
    licence="CC BY-SA 4.0",
    fields="title, context, question, answers; or the published JSON; or context_id and corpus.jsonl (id, title, text) beside",
    hub="hub:lighteval/squad_v2",
    matches="squadv2 (without worked examples, which fail there, and without its no-answer threshold)",
)


class Config(ShotsConfig):
    """``accept_unanswerable`` also counts the word "unanswerable", which worked examples show where there is no answer."""

    accept_unanswerable: bool = False


def define(config: Config) -> Benchmark:
    """How rows become questions."""
    return Benchmark(
        name="squad",
        kind="generate",
        source=SOURCE,
        read=lambda row: _read(row, config.accept_unanswerable),
        scorers=(("token_f1", {}), ("squad_exact", {})),
        part="validation",
        pool="train",
        sampler="drawn_but_own",
        stop=("\n",),
        slices=("answerable",),
        expand=_expand,
    )


def build(config: Config) -> Task:
    """The task. Raises InputError or DataError."""
    return build_task(define(config), config)


def _read(row: Fields, accept_unanswerable: bool) -> Item:
    given = field(row, "answers")
    answers = texts(given.get("text") if isinstance(given, Mapping) else given, "answers", least=0)
    title = text(row, "title") if row.get("title") is not None else ""
    asked = f"Title: {title}\n\nBackground: {text(row, 'context')}\n\nQuestion: {text(row, 'question')}\n\nAnswer:"
    accepted = answers or (("", "unanswerable") if accept_unanswerable else ("",))
    shown = answers[0] if answers else "unanswerable"
    meta = {**row, "answerable": "yes" if answers else "no"}
    return Item(asked, shown, target=accepted[0], references=accepted, meta=meta)


def _expand(rows: Iterable[tuple[str, int, Row]]) -> Iterator[tuple[str, int, Row]]:
    """One row a question: articles of the published JSON are taken apart, paragraphs of a corpus put in."""
    corpora: dict[Path, dict[str, Mapping[str, Any]]] = {}
    for file, line, row in rows:
        if isinstance(row, Broken):
            yield file, line, row
        elif "paragraphs" in row:
            yield from ((file, line, one) for one in _questions(row))
        elif "context" not in row and row.get("context_id") is not None:
            folder = Path(file).parent
            if folder not in corpora:
                corpora[folder] = _corpus(folder)
            yield file, line, _with_context(row, corpora[folder])
        else:
            yield file, line, row


def _questions(article: Mapping[str, Any]) -> Iterator[Row]:
    paragraphs = article.get("paragraphs")
    for at, paragraph in enumerate(paragraphs if isinstance(paragraphs, list) else [paragraphs]):
        if not isinstance(paragraph, Mapping) or not isinstance(paragraph.get("qas"), list):
            yield Broken(f"paragraphs[{at}] must be an object with context and qas")
            continue
        for question in paragraph["qas"]:
            if not isinstance(question, Mapping) or not isinstance(question.get("answers"), list):
                yield Broken(f"paragraphs[{at}].qas: each needs question and answers")
                continue
            answers = [one.get("text") if isinstance(one, Mapping) else one for one in question["answers"]]
            told = {key: question[key] for key in ("id", "question") if key in question}
            yield {"title": article.get("title"), "context": paragraph.get("context"), **told, "answers": answers}


def _corpus(folder: Path) -> dict[str, Mapping[str, Any]]:
    files = sorted(folder.glob("corpus.*"))
    if not files:
        raise DataError(
            f"{folder}: its questions name a context_id, and there is no corpus.jsonl (id, title, text) beside them"
        )
    return {str(row["id"]): row for _, row in rows_of(files[0]) if isinstance(row, Mapping) and "id" in row}


def _with_context(row: Mapping[str, Any], corpus: Mapping[str, Mapping[str, Any]]) -> Row:
    found = corpus.get(str(row["context_id"]))
    if found is None:
        return Broken(f"context_id {row['context_id']!r} is not in the corpus")
    return {**row, "title": found.get("title"), "context": found.get("text")}
