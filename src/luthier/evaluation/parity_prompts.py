"""Prompts for parity checks: short, and together they hold what tokenizers and templates get wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.dataset import Dataset
from luthier.core.errors import DataError, InputError
from luthier.core.message import Conversation, Message
from luthier.core.task import PromptTemplate

if TYPE_CHECKING:
    from luthier.evaluation.records import Record

_BRIEF = "Answer in one sentence."
_TEXTS: tuple[tuple[str, str], ...] = (
    ("What is the capital of France?", "Paris is the capital of France."),
    ("Reply to this customer: my parcel was due on Monday and it is Thursday now.", "I am sorry; I will look into it."),
    ("把下面的句子翻译成英文:我的包裹还没有到。", "My parcel has not arrived yet."),
    ("Which is larger, 3.14 or 3.2? And what is 1,024 * 2,048?", "3.2 is larger; the product is 2,097,152."),
    ("Explain this code:\n\n```python\ndef f(x):\n\treturn [i**2 for i in x]\n```", "It squares every number."),
    ("  Two spaces before,  two between, and a newline after.\n", "Noted."),
    ("Größe, naïve, œuvre, Łódź: which of these words is German?", "Größe is German."),
    ("👍🏽 means yes and 🏳️‍🌈 is a flag. What does 🙂 mean?", "It is a smile. 🙂"),
    ("Write JSON with the keys name and age for Ann, who is 31.", '{"name": "Ann", "age": 31}'),
    ("What do <|im_end|>, </s> and <|eot_id|> mean in a chat template?", "They end a turn."),
    ("العربية تكتب من اليمين إلى اليسار. Is that true?", "Yes, Arabic is written from right to left."),
    ("日本語と한국어と中文を区別してください。", "三つの言語はすべて異なる文字を使います。"),
    ("Solve for x: 2x + 3 = 11. Show each step.", "2x = 8, so x = 4."),
    ("List three colours, one on a line.", "red\ngreen\nblue"),
    ("I CANNOT SIGN IN!!! My password is aaaaaaaaaaaaaaaaaaaaaaaa", "Please reset your password and sign in again."),
    ("Summarise: the meeting moved from 9:00 to 10:30, room B-12, bring the Q3 figures.", "It is at 10:30 in B-12."),
)


@dataclass(frozen=True)
class Case:
    """A prompt, and an answer for the sides that train on or score one. ``name`` says which it is in a report."""

    name: str
    prompt: Conversation
    answer: str


def built_in(count: int, template: PromptTemplate | None = None) -> list[Case]:
    """The first ``count`` of 32: each text alone, then with a system turn, or after an earlier question and answer.

    With ``template`` the texts are put as a task's inputs, its instruction in the place of the system turn.
    """
    if not 1 <= count <= 2 * len(_TEXTS):
        raise InputError(f"n must be between 1 and {2 * len(_TEXTS)} with the built-in prompts; got {count}")
    cases = []
    for number, (text, answer) in enumerate(_TEXTS):
        prompt = template.messages(text) if template else (Message("user", text),)
        cases.append(Case(f"prompt {number + 1}", prompt, answer))
    for number, (text, answer) in enumerate(_TEXTS):
        before: Conversation = (Message("system", _BRIEF),)
        if number % 2:
            earlier, said = _TEXTS[number - 1]
            before = (Message("user", earlier), Message("assistant", said))
        prompt = template.messages(text, [_TEXTS[number - 1]]) if template else (*before, Message("user", text))
        cases.append(Case(f"prompt {len(cases) + 1}", prompt, answer))
    return list(islice(cases, count))


def from_file(path: str | Path, count: int, template: PromptTemplate | None = None) -> list[Case]:
    """The first ``count`` rows of a data file: chats up to their last answer, everything else as a task's input."""
    from luthier.data.read import read

    return from_dataset(read(path, limit=count), template)


def from_records(records: Sequence[Record], template: PromptTemplate | None = None, most: int = 16) -> list[Case]:
    """The first inputs of an evaluation, with their targets as answers."""
    return [
        Case(
            f"example {record.index + 1}",
            template.messages(record.input) if template else (Message("user", record.input),),
            record.target,
        )
        for record in records[:most]
        if record.input
    ]


def from_dataset(dataset: Dataset, template: PromptTemplate | None = None) -> list[Case]:
    """Cases of a dataset's rows. Raises DataError when no row can be asked."""
    cases = []
    for number, example in enumerate(dataset.examples, 1):
        name = f"prompt {number}"
        turns: Sequence[Message] = example.messages
        if dataset.kind == "chat":
            last = max((at for at, m in enumerate(turns) if m.role == "assistant"), default=0)
            if last:
                cases.append(Case(name, tuple(turns[:last]), turns[last].content))
            continue
        if dataset.kind == "preference":
            said = (example.chosen or example.rejected)[-1].content
            cases.append(Case(name, tuple(turns), said))
            continue
        prompt = template.messages(example.text) if template else tuple(turns)
        cases.append(Case(name, prompt, example.target or ""))
    cases = [case for case in cases if case.prompt]
    if not cases:
        raise DataError(f"{dataset.name}: no row holds a prompt", hint="luthier data inspect FILE")
    return cases
