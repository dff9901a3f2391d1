"""Continued pre-training: the cross-entropy of every token of plain documents given those before it.

-sum log p(token i | tokens before i), Radford et al. 2018, equation 1. A document is what the model met in its own pre-training: the
tokens that its tokenizer puts before a text, the text, one end-of-document token. Documents are packed into rows, as Raffel et al. 2020,
section 2.1, but none attends to another: positions restart and the mask is block-diagonal, so that packed and separate are the same loss. A
document over the length of a row is cut into windows. ``exp(loss)`` is the perplexity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset
from luthier.core.errors import InputError
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel
from luthier.objectives import _documents
from luthier.objectives._documents import Document
from luthier.objectives._loss import Loss
from luthier.objectives._rows import Limits

KINDS = _documents.KINDS
ARCHITECTURES = ("decoder",)
DEFAULT_FOR = ("text",)
DEFAULTS: Mapping[str, Mapping[str, Any]] = {}


class Config(EntryConfig):
    """``length``: tokens of a row; left out: 1,024, or the context where that is shorter. ``stride``: how far apart the windows of a longer
    document begin; left out: one token less than ``length``, so that each token is predicted once. What windows share is predicted in the
    first of them and only read in the next. ``pack``: several documents in a row, none of which sees another; else each is a row.
    ``end``: the token that ends a document; left out: ``<|endoftext|>`` or ``<|end_of_text|>`` where the tokenizer has it, else its end of
    text."""

    length: int | None = Field(None, ge=2)
    stride: int | None = Field(None, ge=1)
    pack: bool = True
    end: str | None = None


STREAMED = (Document,)


def prepare(dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits) -> list[Any]:
    """Tokenise, cut and pack. Raises what ``pieces`` raises."""
    documents = pieces(dataset, model, prompt, config, limits)
    return list(assemble(documents, [each.length for each in documents], model, config, limits))


def assemble(
    documents: Sequence[Document], lengths: Sequence[int], model: LoadedModel, config: Config, limits: Limits
) -> Sequence[Any]:
    """Rows of the documents, which have these lengths."""
    length = _documents.row_length(config.length, limits, default=1024, least=2)
    return _documents.packed(documents, lengths, length, model, together=config.pack)


def pieces(
    dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits
) -> list[Document]:
    """Tokenise and cut. Raises UnsupportedError for other kinds of data or of models, InputError for a length over the context, a
    stride that leaves tokens out or an unknown end token, DataError for documents without text."""
    encoder, tokens = _documents.encoded(dataset, model, "causal_lm", "decoder")
    length = _documents.row_length(config.length, limits, default=1024, least=2)
    stride = length - 1 if config.stride is None else config.stride
    if stride >= length:
        raise InputError(
            f"objective.stride must be below the length of a row, {length}: else the first token of a window is never predicted; got {stride}"
        )
    close = [encoder.end(config.end)]
    whole = [encoder.before + each.ids + close for each in tokens]
    documents, ends = [], [0] * len(whole)
    for number, start, end in _documents.cut(dataset.examples, [len(ids) for ids in whole], length, stride, limits):
        done = max(1, ends[number] - start)  # nothing comes before the first token of all
        documents.append(Document(whole[number][start:end], done, _documents.place(dataset.examples[number])))
        ends[number] = end
    return documents


def collate(rows: Sequence[Any], model: LoadedModel) -> _documents.Batch:
    """The rows' documents as one batch."""
    return _documents.collate(rows, model)


def loss(model: LoadedModel, batch: _documents.Batch, config: Config) -> Loss:
    """Mean cross-entropy over the predicted tokens, in nats."""
    return _documents.loss(model, batch)
