"""Span corruption for encoder-decoders: spans of a document are taken out, and the decoder says what they were.

Raffel et al. 2020, section 3.1.4 (T5): 15% of the tokens are noise, in spans of 3 on average. In the source each span becomes one sentinel,
``<extra_id_0>`` on; the target is each sentinel followed by its span, then the end of text. Lengths of noise and of what is between it are
random partitions, so that every window of the same length costs the same. T5's own code always ends a window with noise; here text may stay
there too, else a short document, which has one span, would always lose its end. The spans are drawn anew each time a row is seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset
from luthier.core.errors import DataError, InputError, UnsupportedError
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel
from luthier.objectives import _documents, _seq2seq
from luthier.objectives._draws import generators
from luthier.objectives._language import token_loss
from luthier.objectives._loss import Loss
from luthier.objectives._rows import Limits
from luthier.objectives._seq2seq import PairRow

KINDS = _documents.KINDS
ARCHITECTURES = ("encoder-decoder",)
DEFAULT_FOR = ("text",)
DEFAULTS: Mapping[str, Mapping[str, Any]] = {}


class Config(EntryConfig):
    """``share``: part of the tokens that is taken out. ``mean_span``: mean length of a span in tokens. ``length``: tokens of a source after
    corruption; left out: 512, or the context where that is shorter. ``stride``: how far apart the windows of a longer document begin, in
    tokens before corruption; left out: as far as a window is long. ``sentinel``: the tokens that stand for spans, numbered from 0 at ``{}``."""

    share: float = Field(0.15, gt=0, lt=1)
    mean_span: float = Field(3.0, ge=1)
    length: int | None = Field(None, ge=8)
    stride: int | None = Field(None, ge=1)
    sentinel: str = Field("<extra_id_{}>", pattern=r"\{\}")


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around sources and targets, and the sentinels."""

    before: list[int]
    after: list[int]
    close: list[int]
    sentinels: tuple[int, ...]


@dataclass(slots=True)
class Row:
    """A window of a document, of which ``noise`` tokens in ``spans`` pieces will be taken out."""

    ids: list[int]
    noise: int
    spans: int
    source: str
    frame: Frame

    @property
    def length(self) -> int:
        """Tokens that it costs, in the encoder and in the decoder."""
        frame = self.frame
        return len(frame.before) + len(self.ids) - self.noise + self.spans + len(frame.after) + self.weight

    @property
    def weight(self) -> int:
        """Predicted tokens: the noise, its sentinels, the end."""
        return self.noise + self.spans + len(self.frame.close)


STREAMED = (Row, Frame)


def amounts(count: int, share: float, mean_span: float) -> tuple[int, int]:
    """(noise tokens, spans) of a window of ``count`` tokens, at least 2."""
    noise = min(max(round(count * share), 1), count - 1)
    return noise, min(max(round(noise / mean_span), 1), count - noise)


def prepare(dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits) -> list[Any]:
    """Tokenise and cut into windows. Raises UnsupportedError for other kinds of data or of models or a tokenizer without sentinels,
    DataError for documents of less than two tokens, InputError for a length over the context or too many spans."""
    encoder, tokens = _documents.encoded(dataset, model, "span_corruption", "encoder-decoder")
    length = _documents.row_length(config.length, limits, default=512, least=8)
    sentinels: list[int] = []
    while (found := encoder.token(config.sentinel.replace("{}", str(len(sentinels))))) is not None:
        sentinels.append(found)
    if not sentinels:
        raise UnsupportedError(
            f"span_corruption needs sentinel tokens; the tokenizer of {model.record.name} has no "
            f"{config.sentinel.replace('{}', '0')}",
            hint="use a T5, or say how this model's are called: objective.sentinel='<mask_{}>'",
        )
    close = encoder.after or [encoder.end()]
    frame = Frame(encoder.before, encoder.after, close, tuple(sentinels))
    size = _window(length - len(encoder.before) - len(encoder.after), length, len(close), config)
    short = [_documents.place(e) for e, t in zip(dataset.examples, tokens, strict=True) if len(t.ids) < 2]
    if short:
        raise DataError(
            f"{dataset.name}: {len(short)} documents are of one token, of which no span can be taken out "
            f"({', '.join(short[:5])}{' …' if len(short) > 5 else ''})",
            hint="remove them, or join short documents",
        )
    rows = []
    stride = _documents.stride(config.stride, size)
    for number, start, end in _documents.cut(dataset.examples, [len(t.ids) for t in tokens], size, stride, limits):
        noise, spans = amounts(end - start, config.share, config.mean_span)
        if spans > len(sentinels):
            raise InputError(
                f"a window of {end - start} tokens has {spans} spans, and the tokenizer {len(sentinels)} sentinels",
                hint="choose a smaller objective.length or a larger objective.mean_span",
            )
        source = _documents.place(dataset.examples[number])
        rows.append(Row(tokens[number].ids[start:end], noise, spans, source, frame))
    return rows


def _window(room: int, length: int, close: int, config: Config) -> int:
    """The most tokens of which the source fits into ``room`` and the target into ``length``."""
    count = 2
    while True:
        noise, spans = amounts(count + 1, config.share, config.mean_span)
        if count + 1 - noise + spans > room or noise + spans + close > length:
            return count
        count += 1


def corrupt(row: Row, generator: torch.Generator) -> PairRow:
    """Source and target of a row. Between two spans at least one token stays; before the first and after the last there may be none."""
    stays = _partition(len(row.ids) - row.noise + 2, row.spans + 1, generator)
    stays[0], stays[-1] = stays[0] - 1, stays[-1] - 1
    goes = _partition(row.noise, row.spans, generator)
    at = stays[0]
    source, target = row.frame.before + row.ids[:at], list[int]()
    for sentinel, taken, kept in zip(row.frame.sentinels, goes, stays[1:], strict=False):
        target += [sentinel, *row.ids[at : at + taken]]
        source += [sentinel, *row.ids[at + taken : at + taken + kept]]
        at += taken + kept
    return PairRow(source + row.frame.after, target + row.frame.close, row.source)


def _partition(total: int, parts: int, generator: torch.Generator) -> list[int]:
    """``parts`` lengths of at least 1 that sum to ``total``, every such list equally likely."""
    inner = torch.randperm(total - 1, generator=generator)[: parts - 1].sort().values + 1
    edges = [0, *inner.tolist(), total]
    return [after - before for before, after in itertools.pairwise(edges)]


def collate(rows: Sequence[Any], model: LoadedModel) -> _seq2seq.PairBatch:
    """Draw the spans and pad."""
    drawn = zip(rows, generators([row.ids for row in rows], model), strict=True)
    return _seq2seq.collate([corrupt(row, generator) for row, generator in drawn], model)


def loss(model: LoadedModel, batch: _seq2seq.PairBatch, config: Config) -> Loss:
    """Mean cross-entropy over the tokens of the targets, in nats."""
    return token_loss(model, _seq2seq.hidden_at_labels(model, batch), batch.targets)
