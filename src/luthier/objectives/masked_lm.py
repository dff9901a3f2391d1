"""Masked language modelling for encoders: some tokens are hidden, and the encoder says what they were.

Devlin et al. 2019, section 3.1 and appendix A.1 (BERT): 15% of the tokens are chosen; of these 80% become ``[MASK]``, 10% a random token and 10% stay as
they are; the loss is the cross-entropy of the chosen ones. Which are chosen is drawn anew each time a row is seen (Liu et al. 2019, section
4.1), from torch's generator, so that a resume draws the same. ``whole_word`` chooses words with all their tokens.

The logits are those of the base's own language-model head, or of a new one where its files have none (sentence encoders have lost theirs). The
head is only needed here: it is kept beside the weights for further masked_lm, and other objectives start from the encoder alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset
from luthier.core.errors import UnsupportedError
from luthier.core.task import PromptTemplate
from luthier.data.batch import pad
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel
from luthier.models.masked_head import masked_head
from luthier.objectives import _documents
from luthier.objectives._draws import generators
from luthier.objectives._language import states_at
from luthier.objectives._loss import Loss, linear_cross_entropy
from luthier.objectives._rows import Limits
from luthier.objectives._shown import Line, same_places

KINDS = _documents.KINDS
ARCHITECTURES = ("encoder",)
DEFAULT_FOR = ("text",)
DEFAULTS: Mapping[str, Mapping[str, Any]] = {}


class Config(EntryConfig):
    """``share``: part of the tokens that is chosen. ``mask``, ``random``: parts of those that become ``[MASK]`` and a random token; the rest stays.
    ``whole_word``: choose whole words. ``length``: tokens of a row; left out: as long as the model reads. ``stride``: how far apart the windows
    of a longer document begin; left out: as far as a window is long. ``train_head``: train the language-model head too; left out: when it is new. Method ``full`` trains it in any case."""

    share: float = Field(0.15, gt=0, lt=1)
    mask: float = Field(0.8, ge=0, le=1)
    random: float = Field(0.1, ge=0, le=1)
    whole_word: bool = False
    length: int | None = Field(None, ge=4)
    stride: int | None = Field(None, ge=1)
    train_head: bool | None = None

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        if self.mask + self.random > 1 + 1e-9:
            raise ValueError(f"mask and random must sum to at most 1; got {self.mask:g} and {self.random:g}")
        return self


@dataclass(frozen=True, slots=True)
class Recipe:
    """How rows are masked: shares as in Config, the mask token, how many tokens there are, and what stands around a text."""

    mask: float
    random: float
    mask_id: int
    vocabulary: int
    before: list[int]
    after: list[int]


@dataclass(slots=True)
class Row:
    """A window of a document, of which ``chosen`` tokens will be asked. ``words``: the first token of each word, when words are chosen whole."""

    ids: list[int]
    words: list[int] | None
    chosen: int
    source: str
    recipe: Recipe

    @property
    def length(self) -> int:
        """Tokens that it costs."""
        return len(self.ids) + len(self.recipe.before) + len(self.recipe.after)

    @property
    def weight(self) -> int:
        """Tokens asked. Of whole words there may be a few less, where no word is short enough for what is left."""
        return self.chosen


STREAMED = (Row, Recipe)


@dataclass(frozen=True, slots=True)
class Batch:
    """ids and mask (rows, length), padded on the right; ``places`` index the flattened positions asked, ``targets`` the ids wanted."""

    ids: Tensor
    mask: Tensor
    places: Tensor
    targets: Tensor

    def lines(self) -> list[Line]:
        """What is read and asked, token by token."""
        return same_places(self.ids, self.places, self.targets)


def prepare(dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits) -> list[Any]:
    """Tokenise and cut into windows. Raises UnsupportedError for other kinds of data or of models or a tokenizer without a mask token,
    InputError for a length over the context, DataError for documents without text."""
    encoder, tokens = _documents.encoded(dataset, model, "masked_lm", "encoder")
    mask_id = model.tokenizer.mask_token_id
    if mask_id is None:
        raise UnsupportedError(f"masked_lm needs a mask token; the tokenizer of {model.record.name} has none")
    length = _documents.row_length(config.length, limits, default=limits.context_length, least=4)
    size = length - len(encoder.before) - len(encoder.after)
    recipe = Recipe(config.mask, config.random, mask_id, len(model.tokenizer), encoder.before, encoder.after)
    stride, rows = _documents.stride(config.stride, size), []
    for number, start, end in _documents.cut(dataset.examples, [len(t.ids) for t in tokens], size, stride, limits):
        words = _starts(tokens[number].words[start:end]) if config.whole_word else None
        chosen = max(1, round((end - start) * config.share))
        source = _documents.place(dataset.examples[number])
        rows.append(Row(tokens[number].ids[start:end], words, chosen, source, recipe))
    return rows


def _starts(words: Sequence[int | None]) -> list[int]:
    return [at for at, word in enumerate(words) if at == 0 or word is None or word != words[at - 1]]


def heads(model: LoadedModel, config: Config) -> None:
    """Give the encoder its language-model head."""
    head = masked_head(model)
    head.requires_grad_(not head.own if config.train_head is None else config.train_head)
    model.module.lm_head = head


def choose(row: Row, generator: torch.Generator) -> list[int]:
    """Places of the tokens to ask for, ascending."""
    if row.words is None:
        return torch.randperm(len(row.ids), generator=generator)[: row.chosen].sort().values.tolist()
    spans = [range(*edges) for edges in itertools.pairwise([*row.words, len(row.ids)])]
    order = torch.randperm(len(spans), generator=generator).tolist()
    found: list[int] = []
    for number in order:
        if len(found) + len(spans[number]) <= row.chosen:
            found += spans[number]
    return sorted(found or spans[order[0]])


def masked(row: Row, generator: torch.Generator) -> tuple[list[int], list[int]]:
    """What the encoder reads of a row's text, and the places that it is asked for."""
    places, recipe = choose(row, generator), row.recipe
    fates = torch.rand(len(places), generator=generator).tolist()
    others = torch.randint(recipe.vocabulary, (len(places),), generator=generator).tolist()
    ids = list(row.ids)
    for at, fate, other in zip(places, fates, others, strict=True):
        if fate < recipe.mask:
            ids[at] = recipe.mask_id
        elif fate < recipe.mask + recipe.random:
            ids[at] = other
    return ids, places


def collate(rows: Sequence[Any], model: LoadedModel) -> Batch:
    """Draw the masks and pad."""
    shown: list[list[int]] = []
    places: list[list[int]] = []
    targets: list[int] = []
    for row, generator in zip(rows, generators([row.ids for row in rows], model), strict=True):
        ids, asked = masked(row, generator)
        shown.append([*row.recipe.before, *ids, *row.recipe.after])
        places.append([at + len(row.recipe.before) for at in asked])
        targets += [row.ids[at] for at in asked]
    batch, device = pad(shown, model.tokenizer.pad_token_id or 0), model.device
    width = batch.ids.shape[1]
    flat = [number * width + at for number, line in enumerate(places) for at in line]
    return Batch(
        batch.ids.to(device),
        batch.attention_mask.to(device),
        torch.tensor(flat, device=device),
        torch.tensor(targets, device=device),
    )


def loss(model: LoadedModel, batch: Batch, config: Config) -> Loss:
    """Mean cross-entropy over the tokens asked, in nats; metric ``accuracy``, the share whose likeliest token is the right one."""
    encoder = model.module
    hidden = encoder.body(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
    hidden = hidden[:, -batch.ids.shape[1] :]  # a soft prompt's come first
    hidden = states_at(hidden, batch.places)
    head, hits = encoder.lm_head, torch.zeros((), dtype=torch.long, device=hidden.device)
    total = linear_cross_entropy(head(hidden), head.weight(inner_of(model)), head.bias, batch.targets, hits)
    count = len(batch.targets)
    return Loss(total / count, count, {"accuracy": float(hits) / count})
