"""Whether statements cite passages that support them (citation recall), and whether those cited are needed (precision): ALCE, Gao et al., 2023."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.scorers._claims import cited, coverage, says_not_found
from luthier.scorers._gold import gold_of, plain
from luthier.scorers._score import Answer, Resources, Score, Target
from luthier.scorers._verdicts import judge, supported
from luthier.scorers._words import holds, reference_texts

Passages: TypeAlias = tuple[str, ...]


class Config(EntryConfig):
    """``measure``: recall is the share of statements that their cited passages together support; precision the share of citations that
    support their statement, alone or in part; gold whether a cited passage is one that the row says is right, or holds an accepted answer.

    ``judge`` names the model that says whether passages support a statement, ``engine`` how it is opened; left out, they do when they hold at
    least the share ``coverage`` of its words.
    """

    measure: Literal["recall", "precision", "gold"] = "recall"
    judge: str = ""
    engine: str = "auto"
    coverage: float = Field(default=0.8, gt=0.0, le=1.0)


def needs_target(config: Config) -> bool:
    """The row must say what is right, not necessarily a text."""
    return False


def score(answer: Answer, target: Target, config: Config) -> Score:
    """See ``score_many``."""
    resources = Resources()
    try:
        return score_many([answer], [target], config, resources)[0]
    finally:
        resources.close()


def score_many(
    answers: Sequence[Answer], targets: Sequence[Target], config: Config, resources: Resources
) -> list[Score]:
    """The measure of each answer (ALCE, section 3). None for answers that state nothing or say that the documents do not say, for precision
    also those without a citation; for ``gold`` questions without an answer."""
    if config.measure == "gold":
        return [_by_gold(answer, target) for answer, target in zip(answers, targets, strict=True)]
    rows = [[] if says_not_found(answer.text) else cited(answer) for answer in answers]
    said = [[_Said(text, hits) for text, hits in row] for row in rows]
    asked = [
        (each.text, part, target.input)
        for row, target in zip(said, targets, strict=True)
        for each in row
        for part in each.parts
    ]
    known = _Support(
        dict(zip(((text, part) for text, part, _ in asked), _judged(asked, config, resources), strict=True))
    )
    return [known.recall(row) if config.measure == "recall" else known.precision(row) for row in said]


@dataclass(frozen=True)
class _Said:
    """A statement and what it cites; None stands for a number that is no passage's."""

    text: str
    hits: Sequence[Hit | None]

    @property
    def passages(self) -> Passages:
        return tuple(hit.chunk.text for hit in self.hits if hit is not None)

    def without(self, number: int) -> Passages:
        return tuple(hit.chunk.text for i, hit in enumerate(self.hits) if hit is not None and i != number)

    @property
    def parts(self) -> list[Passages]:
        """All sets of passages that are asked about: all together, each alone, all but each."""
        alone = [(text,) for text in self.passages]
        rest = [self.without(i) for i, hit in enumerate(self.hits) if hit is not None]
        return list(dict.fromkeys(part for part in (self.passages, *alone, *rest) if part))


@dataclass(frozen=True)
class _Support:
    """Whether passages support a statement, of all that was asked."""

    said: Mapping[tuple[str, Passages], bool | None]

    def of(self, text: str, passages: Passages) -> bool:
        return bool(passages) and bool(self.said[text, passages])

    def recall(self, row: Sequence[_Said]) -> Score:
        if not row:
            return Score(None, {"reason": "the answer states nothing"})
        held = [self.of(each.text, each.passages) for each in row]
        return Score(sum(held) / len(held), {"statements": held})

    def precision(self, row: Sequence[_Said]) -> Score:
        """A citation is precise when its statement is supported and it supports it alone, or the others without it do not."""
        marks = []
        for each in row:
            whole = self.of(each.text, each.passages)
            for number, hit in enumerate(each.hits):
                if hit is None or not whole:
                    marks.append(False)
                    continue
                alone = self.of(each.text, (hit.chunk.text,))
                marks.append(alone or not self.of(each.text, each.without(number)))
        if not marks:
            return Score(None, {"reason": "the answer cites nothing"})
        return Score(sum(marks) / len(marks), {"citations": marks})


def _judged(asked: Sequence[tuple[str, Passages, str]], config: Config, resources: Resources) -> list[bool | None]:
    if config.judge:
        questions = [supported(text, passages, question) for text, passages, question in asked]
        return judge(resources, config.judge, config.engine, questions)
    return [coverage(text, "\n".join(passages)) >= config.coverage for text, passages, _ in asked]


def _by_gold(answer: Answer, target: Target) -> Score:
    gold = gold_of(target)
    if gold is None:
        return Score(None, {"reason": "the question has no answer"})
    if says_not_found(answer.text):
        return Score(None, {"reason": "the answer says that there is none"})
    accepted = [plain(text) for text in reference_texts(target.accepted)]
    for each in answer.citations:
        text = plain(each.hit.chunk.text)
        if gold.found_by(each.hit) or any(holds(text, one, whole_words=True) for one in accepted):
            return Score(1.0)
    return Score(0.0)
