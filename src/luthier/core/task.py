"""Tasks: what is asked, of which examples, and how answers are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from luthier.core.dataset import Dataset, Example, Splits
from luthier.core.digest import digest_json
from luthier.core.message import Conversation, Message


@dataclass(frozen=True)
class PromptTemplate:
    """How a raw input becomes a conversation.

    ``instruction`` becomes the system turn (``{labels}`` in it is replaced by the label list), ``input`` the user turn
    (``{input}`` in it is replaced by the raw text). Nothing else is interpreted, so braces in data are safe. The same record
    is used in training, evaluation and serving, and its digest is stored with each.

    ``source`` says which file of the prompt catalogue it came from (name, version, digest). It is kept with the record, but decides
    no answer, so it has no part in the digest.
    """

    instruction: str = ""
    input: str = "{input}"
    labels: tuple[str, ...] = ()
    source: str = field(default="", compare=False)

    def messages(self, text: str, shots: Sequence[tuple[str, str]] = ()) -> Conversation:
        """The conversation for ``text``, after ``shots`` (input, answer) as earlier turns.

        The instruction and the shots come first, so that all prompts of a task share a prefix.
        """
        out: list[Message] = []
        if self.instruction:
            out.append(Message("system", self.instruction.replace("{labels}", ", ".join(self.labels))))
        for shot_input, shot_answer in shots:
            out.append(Message("user", self.input.replace("{input}", shot_input)))
            out.append(Message("assistant", shot_answer))
        out.append(Message("user", self.input.replace("{input}", text)))
        return tuple(out)

    @cached_property
    def digest(self) -> str:
        """sha256 of what decides an answer."""
        return digest_json({"instruction": self.instruction, "input": self.input, "labels": self.labels})

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON; ``source`` only when there is one."""
        plain = {"instruction": self.instruction, "input": self.input, "labels": self.labels}
        return plain | ({"source": self.source} if self.source else {})

    @staticmethod
    def from_dict(data: dict[str, Any]) -> PromptTemplate:
        """Inverse of ``as_dict``."""
        instruction, text = data.get("instruction", ""), data.get("input", "{input}")
        return PromptTemplate(instruction, text, tuple(data.get("labels", ())), data.get("source", ""))


TaskKind = Literal["classify", "choice", "generate", "likelihood"]
"""classify: one label of a closed set. choice: one of the example's own choices. generate: free text.
likelihood: how likely ``target`` is after the prompt (language modelling)."""


@dataclass(frozen=True)
class Task:
    """A dataset in frozen splits, a prompt and scorers. The first scorer is the primary one, which rankings use.

    ``scorers`` are (name, options) pairs of the scorer catalogue. ``max_new_tokens`` bounds answers of kind ``generate``, ``stop``
    texts end them; ``samples`` above 1 asks that often at ``temperature`` (pass@k). ``slices`` are keys of the examples' ``meta``
    by whose values results are also shown. ``source`` says where the data and the prompt come from.
    """

    name: str
    kind: TaskKind
    splits: Splits
    prompt: PromptTemplate
    scorers: tuple[tuple[str, dict[str, Any]], ...]
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    samples: int = 1
    temperature: float = 0.0
    slices: tuple[str, ...] = ()
    source: str = ""

    @cached_property
    def digest(self) -> str:
        """sha256 over everything that decides a score."""
        asked = [self.max_new_tokens, self.stop, self.samples, self.temperature]
        return digest_json([self.kind, self.splits.digest, self.prompt.digest, self.scorers, asked])

    @property
    def labels(self) -> tuple[str, ...]:
        """The closed answer set of a ``classify`` task."""
        return self.prompt.labels

    def examples(self, split: str) -> tuple[Example, ...]:
        """Examples of ``train``, ``validation`` or ``test``."""
        dataset: Dataset = getattr(self.splits, split)
        return dataset.examples
