"""Examples and datasets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from luthier.core.digest import digest_json
from luthier.core.message import Conversation, last_user_text

Kind = Literal[
    "labelled", "number", "entities", "extraction", "chat", "preference", "question", "text", "pairs", "similarity"
]
"""labelled: text -> label. number: text -> number. entities: text -> stretches of it and
what they are. extraction: text -> relations and events (and entities). chat: whole conversations. preference: chosen against rejected. question: question -> answer.
text: plain text. pairs: a text, what belongs with it and what does not. similarity: two texts and how alike they are."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row in Luthier's own form.

    ``messages`` is the prompt, except for kind ``chat``, where it is the whole conversation with its assistant turns.
    ``target`` is the label (labelled), the number as text (number; its value is ``score``), JSON (entities: what
    ``core.entities.answer_text`` writes; extraction: an object of lists) or the reference answer (question). ``source`` is ``file:line`` of the row.

    ``references`` are all answers that count, ``target`` first (empty: only ``target``). A question with its own choices has them in
    ``choices``, and the places of the right ones in ``correct``; ``target`` is then the text of the first right one. ``raw`` is the
    whole prompt to the letter where a benchmark fixes it (no chat template is put around it): one text, or one for each choice
    where the choices differ in what comes before them.

    Of pairs, ``messages`` is the anchor (a question), ``positives`` are the texts that belong with it and ``negatives`` those that do not,
    though they may look so. Of similarity, ``positives`` is the one text that it is compared with, and ``score`` how alike they are.
    """

    id: str
    messages: Conversation
    target: str | None = None
    chosen: Conversation = ()
    rejected: Conversation = ()
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    correct: tuple[int, ...] = ()
    raw: tuple[str, ...] = ()
    positives: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    score: float | None = None

    @property
    def text(self) -> str:
        """The last user turn: the input of a labelled or question example."""
        return last_user_text(self.messages)


@dataclass(frozen=True, slots=True)
class RowProblem:
    """Why one row of a file cannot be used."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class Dataset:
    """Examples of one kind, in file order. ``format`` says how the rows were written (``text_label``, ``alpaca``, ...)."""

    name: str
    kind: Kind
    examples: tuple[Example, ...]
    format: str = ""
    problems: tuple[RowProblem, ...] = ()
    parts: tuple[Dataset, ...] = ()
    """The datasets that this one joins, named SOURCE/SPLIT, when it has several sources; its kind is then that of the first."""

    def __len__(self) -> int:
        return len(self.examples)

    def ids(self) -> Iterator[str]:
        """Ids of the examples, in order."""
        return (example.id for example in self.examples)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Distinct targets of a labelled dataset, sorted."""
        return (
            tuple(sorted({e.target for e in self.examples if e.target is not None})) if self.kind == "labelled" else ()
        )

    @cached_property
    def digest(self) -> str:
        """sha256 over the examples' ids, in order (an id is a digest of its row's content)."""
        return digest_json([self.kind, [e.id for e in self.examples]])

    def label_counts(self) -> Counter[str]:
        """How often each target occurs."""
        return Counter(e.target for e in self.examples if e.target is not None)


@dataclass(frozen=True)
class Splits:
    """A dataset cut in three that no example crosses. ``validation`` may be empty."""

    train: Dataset
    validation: Dataset
    test: Dataset

    @cached_property
    def digest(self) -> str:
        """One digest for the frozen cut."""
        return digest_json([self.train.digest, self.validation.digest, self.test.digest])
