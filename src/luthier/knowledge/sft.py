"""Training rows for a model that answers from documents: retrieval-aware fine-tuning (RAFT, Zhang et al. 2024, https://arxiv.org/abs/2403.10131).

The prompt is the one that ``knowledge.rag`` sends (its builder, its passages as a search returns them), so that what is learned is what is
asked in serving.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.document import Hit
from luthier.core.errors import InputError
from luthier.core.message import Message
from luthier.core.run import Progress, no_progress
from luthier.core.score import target_of
from luthier.knowledge.cite import quote
from luthier.knowledge.gold import Asked, locate
from luthier.knowledge.negatives import holds_answer, negatives_of
from luthier.knowledge.prompt import NOT_FOUND, question_of, rag_prompt
from luthier.knowledge.synthesis import chunks_of, write_rows
from luthier.scorers._gold import unanswerable

if TYPE_CHECKING:
    from luthier.core.dataset import Example
    from luthier.knowledge.base import KnowledgeBase


@dataclass
class SftReport:
    """What was written: ``answered`` rows whose passages hold the answer, ``not_in_documents`` rows whose passages do not; ``left_out`` questions
    by why."""

    path: Path
    answered: int = 0
    not_in_documents: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        counts = {"answered": self.answered, "not_in_documents": self.not_in_documents}
        return {"file": str(self.path), "rows": sum(counts.values()), **counts, "left_out": dict(self.left_out)}


def write_sft_rows(
    base: KnowledgeBase,
    questions: str | Path,
    path: str | Path,
    *,
    distractors: int = 3,
    drop_gold: float = 0.2,
    instruction: str = "",
    seed: int = 0,
    progress: Progress = no_progress,
) -> SftReport:
    """Write a conversation for each question of a file: its chunk among ``distractors`` that a search finds and that do not answer it, in a random
    order, and the answer with the sentence's citation.

    A share ``drop_gold`` of the questions is shown the distractors alone, and is answered, as in serving, that it is not in the documents; so
    are questions that have no answer. ``instruction`` as in the options of the answering mode that the model will serve.

    Raises InputError for wrong options and when no question can be used.
    """
    from luthier.knowledge.questions import read_questions

    if distractors < 1 or not 0 <= drop_gold < 1:
        raise InputError(
            f"distractors must be at least 1, drop_gold at least 0 and below 1; got {distractors}, {drop_gold}"
        )
    examples = read_questions(questions).examples
    asked = locate(base, examples, chunks_of(base))
    report = SftReport(Path(path).expanduser())
    draw = random.Random(seed)
    rows = []
    for done, (example, each) in enumerate(zip(examples, asked, strict=True), 1):
        row = _row(base, example, each, distractors, drop_gold, instruction, draw, report)
        rows += [row] if row is not None else []
        progress("rows", done, len(examples))
    if not rows:
        raise InputError(f"no question of {questions} has its chunk in {base.name}: {dict(report.left_out)}")
    write_rows(report.path, rows)
    return report


def _row(
    base: KnowledgeBase,
    example: Example,
    asked: Asked,
    distractors: int,
    drop_gold: float,
    instruction: str,
    draw: random.Random,
    report: SftReport,
) -> dict[str, Any] | None:
    none = unanswerable(target_of(example))
    reason = "" if none else "no_answer" if not asked.answers else "not_in_the_base" if not asked.gold else ""
    if reason:
        report.left_out[reason] += 1
        return None
    others = negatives_of(base, asked.question, asked.answers, asked.ids, distractors)
    dropped = draw.random() < drop_gold  # drawn for every question: the rows of one do not depend on those of another
    place = draw.randrange(len(others) + 1)
    if not none and not dropped:
        gold = asked.gold[0]
        hits = [*others[:place], gold, *others[place:]]
        answer = cited_answer(asked, gold, place + 1)
        report.answered += 1
    else:
        if not others:
            report.left_out["no_distractors"] += 1
            return None
        hits, answer = others, NOT_FOUND[question_of(asked.question).language]
        report.not_in_documents += 1
    messages = [*rag_prompt(asked.question, hits, instruction=instruction), Message("assistant", answer)]
    return {
        "messages": [each.as_dict() for each in messages],
        "meta": {"gold": _place(hits, asked), "passages": len(hits)},
    }


def cited_answer(asked: Asked, gold: Hit, number: int) -> str:
    """The answer as the model should write it: the passage's sentence that says it, where that is short enough, else its words; and the mark."""
    answer = next((each for each in asked.answers if holds_answer(gold.chunk.text, [each])), asked.answers[0])
    sentence = quote(gold.chunk.text, f"{asked.question} {answer}")
    said = sentence.strip() if sentence and holds_answer(sentence, [answer]) and len(sentence) < _LONGEST else answer
    end = said[-1:] if said[-1:] in ".!?。!?" else ""
    return f"{said[: len(said) - len(end)]}{' ' if _spaced(said) else ''}[{number}]{end or ('。' if not _spaced(said) else '.')}"


_LONGEST = 300


def _spaced(text: str) -> bool:
    """Whether words of the text stand apart."""
    from luthier.scorers._words import is_unspaced

    return not is_unspaced(text[-3:])


def _place(hits: Sequence[Hit], asked: Asked) -> int:
    """The number of the gold passage; 0 when it is not shown."""
    return next((number for number, hit in enumerate(hits, 1) if hit.chunk.id in asked.ids), 0)
