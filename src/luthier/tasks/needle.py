"""Needle in a haystack: find one sentence in a long text, by its place and the text's length (after RULER, Hsieh et al., 2024).

Prompt: a long text with "One of the special magic numbers for WORD is: NUMBER." at one place in it, and the question for that number; the
raw prompt ends with the beginning of the answer. Every length is asked at every position, several times with other words and numbers.
Scorer: contains; results are also shown by position and by length. The text is the user's own or one that comes with Luthier, repeated as
far as needed.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset, Splits
from luthier.core.errors import DataError
from luthier.core.task import PromptTemplate, Task
from luthier.tasks._benchmark import Benchmark, Item, item_example, with_ids
from luthier.tasks._fields import Fields, text
from luthier.tasks._haystack import TEXT, sentences
from luthier.tasks._source import Source

SOURCE = Source(
    paper="Hsieh et al. (2024), RULER: What's the Real Context Size of Your Long-Context Language Models?, arXiv:2404.06654",
    licence="Apache-2.0 (the shipped text is part of Luthier)",
    fields="none: data is a plain text file of your own, or is left out",
    matches="niah_single_2 (prompt and metric; another text, lengths in words instead of tokens)",
)
NEEDLE = "One of the special magic numbers for {key} is: {value}."
PROMPT = (
    "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the number "
    "afterwards.\n{context}\nWhat is the special magic number for {key} mentioned in the provided text?"
)
PREFIX = " The special magic number for {key} mentioned in the provided text is"
_FIRST = "amber brisk calm dusty eager faint gentle hollow icy jolly keen lucid mellow nimble opal plain"
_SECOND = "anchor basket candle dolphin engine feather garden hammer island jacket kettle ladder marble orchid pillow"
FIRST, SECOND = _FIRST.split(), _SECOND.split()


class Config(EntryConfig):
    """``lengths`` in words (in characters where a text has no spaces), ``positions`` in percent of the text, ``repeats`` of each cell of
    that grid, with words and numbers drawn by ``seed``. ``data``: a UTF-8 text file to hide the needles in."""

    data: str = ""
    lengths: tuple[Annotated[int, Field(ge=10)], ...] = (250, 500, 1000, 2000)
    positions: tuple[Annotated[float, Field(ge=0, le=100)], ...] = (0, 25, 50, 75, 100)
    repeats: int = Field(default=2, ge=1)
    seed: int = 0
    chat: bool = False


def define(config: Config) -> Benchmark:
    """How a cell of the grid becomes a question."""
    return Benchmark(
        name="needle",
        kind="generate",
        source=SOURCE,
        read=_read,
        scorers=(("contains", {}),),
        max_new_tokens=128,
        slices=("position", "length"),
    )


def build(config: Config) -> Task:
    """The task. Raises DataError when the text cannot be read or has no sentences."""
    benchmark = define(config)
    hay = sentences(_text(config.data))
    if not hay:
        raise DataError(f"{config.data}: the text is empty")
    examples = []
    draw = random.Random(config.seed)
    for length in config.lengths:
        for position in config.positions:
            for _ in range(config.repeats):
                row = _row(hay, length, position, draw)
                examples.append(
                    (f"needle:{length}:{position:g}", item_example(benchmark, _read(row), chat=config.chat))
                )
    test = Dataset("needle/test", "question", tuple(with_ids(examples)), "needle")
    nothing = Dataset("needle/train", "question", ())
    splits = Splits(nothing, Dataset("needle/validation", "question", ()), test)
    return Task(
        name=benchmark.name,
        kind=benchmark.kind,
        splits=splits,
        prompt=PromptTemplate(),
        scorers=benchmark.scorers,
        max_new_tokens=benchmark.max_new_tokens,
        slices=benchmark.slices,
        source=str(SOURCE),
    )


def _text(data: str) -> str:
    if not data:
        return TEXT
    try:
        return Path(data).expanduser().read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(
            f"no such file: {data}", hint="data is a plain text file for needle; leave it out for the shipped one"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {data} as UTF-8 text: {error}") from error


def _row(hay: list[str], length: int, position: float, draw: random.Random) -> dict[str, str]:
    """A text of about ``length`` words that begins anywhere in ``hay``, with a needle at ``position`` percent of its sentences."""
    key = f"{draw.choice(FIRST)}-{draw.choice(SECOND)}"
    value = str(draw.randrange(10**6, 10**7))
    needle = NEEDLE.format(key=key, value=value)
    chosen: list[str] = []
    words, at = _words(needle), draw.randrange(len(hay))
    while words < length:
        sentence = hay[at % len(hay)]
        words += _words(sentence)
        if words > length and chosen:
            break
        chosen.append(sentence)
        at += 1
    place = int(len(chosen) * position / 100)
    context = " ".join([*chosen[:place], needle, *chosen[place:]])
    return {"context": context, "key": key, "value": value, "position": f"{position:g}%", "length": f"{length} words"}


def _words(sentence: str) -> int:
    """Words, or characters where there are no spaces to tell words by."""
    words = sentence.split()
    return len(words) if sum(map(ord, sentence)) < 0x3000 * len(sentence) // 4 else len("".join(words))


def _read(row: Fields) -> Item:
    key, value = text(row, "key"), text(row, "value")
    asked = PROMPT.format(context=text(row, "context"), key=key)
    meta = {name: row[name] for name in ("key", "position", "length")}
    return Item(asked, value, target=value, prefix=PREFIX.format(key=key), meta=meta)
