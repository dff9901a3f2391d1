"""Fill in the middle: documents cut in three and told in another order, so that a decoder learns to write what belongs between.

Bavarian et al. 2022, section 3 ("FIM"): with probability ``rate`` a document is cut at two random characters into prefix, middle and suffix and
becomes PSM: ``<PRE>`` prefix ``<SUF>`` suffix ``<MID>`` middle ``<EOT>``, or SPM: ``<PRE>`` ``<SUF>`` suffix ``<MID>`` prefix middle ``<EOT>``; the others stay as they are. Loss at
every token, as in continued pre-training. A long document is cut into windows before (their "context-level FIM"). Where a document is cut
follows from its text and ``seed``: the same in every epoch.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset
from luthier.core.errors import InputError, UnsupportedError
from luthier.core.task import PromptTemplate
from luthier.data.documents import DocumentEncoder, inner_ids
from luthier.data.render import Renderer
from luthier.models.load import LoadedModel
from luthier.objectives import _documents
from luthier.objectives._documents import Document
from luthier.objectives._loss import Loss
from luthier.objectives._rows import Limits

KINDS = _documents.KINDS
ARCHITECTURES = ("decoder",)
DEFAULT_FOR: tuple[str, ...] = ()
DEFAULTS: Mapping[str, Mapping[str, Any]] = {}

_KNOWN = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
)


class Config(EntryConfig):
    """``rate``: share of documents that are cut. ``spm``: share of those told suffix first. ``prefix``, ``suffix``, ``middle``: the special
    tokens, all three or none; left out: those of StarCoder, Qwen, SantaCoder, Code Llama or DeepSeek, whichever the tokenizer has. ``seed``:
    another seed cuts elsewhere. ``length``: tokens of a row; left out: 1,024, or the context where that is shorter. ``stride``: how far apart the
    windows of a longer document begin; left out: as far as a window is long. ``pack``: several documents in a row, none of which sees another.
    ``end``: the token that ends a document, as in causal_lm."""

    rate: float = Field(0.5, ge=0, le=1)
    spm: float = Field(0.5, ge=0, le=1)
    prefix: str | None = None
    suffix: str | None = None
    middle: str | None = None
    seed: int = 0
    length: int | None = Field(None, ge=16)
    stride: int | None = Field(None, ge=1)
    pack: bool = True
    end: str | None = None


@dataclass(frozen=True)
class _Piece:
    """A document or a window of one, with its order: whether it is told as PSM, SPM or plainly, and the characters where it is cut."""

    text: str
    ids: list[int]
    opens: bool
    source: str
    order: str
    cuts: tuple[int, int]


def prepare(dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits) -> list[Any]:
    """Cut, tokenise and pack. Raises UnsupportedError for other kinds of data or of models or a tokenizer without the special tokens,
    InputError for tokens that it does not have or a length over the context, DataError for documents without text."""
    encoder, tokens = _documents.encoded(dataset, model, "infill", "decoder")
    length = _documents.row_length(config.length, limits, default=1024, least=16)
    marks, close = _marks(encoder, model, config), encoder.end(config.end)
    size = length - len(encoder.before) - 4  # the three marks and the end
    pieces = []
    stride = _documents.stride(config.stride, size)
    for number, start, end in _documents.cut(dataset.examples, [len(t.ids) for t in tokens], size, stride, limits):
        whole, text = tokens[number], dataset.examples[number].text
        first, last = whole.characters[start][0], whole.characters[end - 1][1]
        source = _documents.place(dataset.examples[number])
        pieces.append(_ordered(text[first:last], whole.ids[start:end], start == 0, source, start, config))
    assert model.renderer is not None  # decoders have one
    told = _told(pieces, encoder, model.renderer, marks, size)
    documents = [Document([*encoder.before, *ids, close], 1, p.source) for p, ids in zip(pieces, told, strict=True)]
    lengths = [each.length for each in documents]
    return list(_documents.packed(documents, lengths, length, model, together=config.pack))


def _marks(encoder: DocumentEncoder, model: LoadedModel, config: Config) -> tuple[int, int, int]:
    """Ids of prefix, suffix and middle."""
    named = (config.prefix, config.suffix, config.middle)
    if any(named):
        ids = tuple(encoder.token(name) if name else None for name in named)
        for key, name, found in zip(("prefix", "suffix", "middle"), named, ids, strict=True):
            if found is None:
                raise InputError(f"objective.{key} must be a token of the model's vocabulary; got {name!r}")
        return ids  # type: ignore[return-value]
    for names in _KNOWN:
        first, second, third = (encoder.token(name) for name in names)
        if first is not None and second is not None and third is not None:
            return first, second, third
    raise UnsupportedError(
        f"infill needs special tokens for prefix, suffix and middle; the tokenizer of {model.record.name} has none that are known",
        hint="use a model that was pre-trained with them, or name three tokens: objective.prefix=, objective.suffix=, objective.middle=",
    )


def _ordered(text: str, ids: list[int], opens: bool, source: str, start: int, config: Config) -> _Piece:
    draw = random.Random(f"{config.seed}/{start}/{text}")
    order = "plain" if draw.random() >= config.rate else "spm" if draw.random() < config.spm else "psm"
    first, second = sorted((draw.randint(0, len(text)), draw.randint(0, len(text))))
    return _Piece(text, ids, opens, source, order, (first, second))


def _told(
    pieces: Sequence[_Piece], encoder: DocumentEncoder, renderer: Renderer, marks: tuple[int, int, int], size: int
) -> list[list[int]]:
    """Ids of each piece in its order, at most ``size`` and the three marks. Cutting inside a word can make a few tokens more: then the suffix ends
    sooner, and where there is none the prefix begins later."""
    moved = [piece for piece in pieces if piece.order != "plain"]
    parts = [(p.text[: p.cuts[0]], p.text[p.cuts[0] : p.cuts[1]], p.text[p.cuts[1] :]) for p in moved]
    starts = iter(encoder.encode([first for first, _, _ in parts]))
    inner = iter(inner_ids(renderer, [text for three in parts for text in three]))
    out = []
    for piece in pieces:
        if piece.order == "plain":
            out.append(piece.ids)
            continue
        opening = next(starts).ids
        prefix, middle, suffix = next(inner), next(inner), next(inner)
        prefix = opening if piece.opens else prefix
        over = max(0, len(prefix) + len(middle) + len(suffix) - size)
        suffix, over = suffix[: max(0, len(suffix) - over)], max(0, over - len(suffix))
        prefix, over = prefix[over:], max(0, over - len(prefix))
        middle = middle[over:]
        before, after, between = marks
        if piece.order == "psm":
            out.append([before, *prefix, after, *suffix, between, *middle])
        else:
            out.append([before, after, *suffix, between, *prefix, *middle])
    return out


def collate(rows: Sequence[Any], model: LoadedModel) -> _documents.Batch:
    """The rows' documents as one batch."""
    return _documents.collate(rows, model)


def loss(model: LoadedModel, batch: _documents.Batch, config: Config) -> Loss:
    """Mean cross-entropy over all tokens but the first of a document, in nats."""
    return _documents.loss(model, batch)
