"""What the objectives on plain documents share: checks, windows of long documents, rows packed with several, and the causal loss."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, InputError, UnsupportedError
from luthier.data.documents import DocumentEncoder, Tokens, pack, windows
from luthier.models.decode import attends_fully, hidden_states
from luthier.models.load import LoadedModel
from luthier.objectives._language import states_at, token_loss
from luthier.objectives._loss import Loss
from luthier.objectives._rows import Limits, require_kind
from luthier.objectives._shown import Line, next_tokens

KINDS = ("text",)
_SHOWN = 5


@dataclass(slots=True)
class Document:
    """Token ids of a document or of a window of one. Those from ``start`` on bear loss; what comes before is only read."""

    ids: list[int]
    start: int
    source: str

    @property
    def length(self) -> int:
        """Tokens that it costs."""
        return len(self.ids)

    @property
    def weight(self) -> int:
        """Tokens that bear loss."""
        return len(self.ids) - self.start


@dataclass(slots=True)
class Row:
    """Documents that share a row; none of them sees another."""

    documents: list[Document]

    @property
    def length(self) -> int:
        """Tokens that it costs."""
        return sum(len(document.ids) for document in self.documents)

    @property
    def weight(self) -> int:
        """Predicted tokens."""
        return sum(len(document.ids) - document.start for document in self.documents)

    @property
    def source(self) -> str:
        """Where its documents are from."""
        names = list(dict.fromkeys(document.source for document in self.documents))
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass(frozen=True, slots=True)
class Batch:
    """ids (rows, width), padded on the right. Where a row holds several documents ``positions`` restarts in each, and ``mask`` is
    additive, (rows, 1, width, width). ``places`` index the flattened positions that predict, ``targets`` the ids wanted there."""

    ids: Tensor
    positions: Tensor | None
    mask: Tensor | None
    places: Tensor
    targets: Tensor

    def lines(self) -> list[Line]:
        """What is read and asked, token by token."""
        return next_tokens(self.ids, self.places, self.targets)


def encoded(
    dataset: Dataset, model: LoadedModel, objective: str, architecture: str
) -> tuple[DocumentEncoder, list[Tokens]]:
    """The documents of ``dataset`` as tokens. Raises UnsupportedError for another kind of data or model, DataError for documents
    without a token, with their sources."""
    require_kind(dataset, KINDS, objective)
    if model.architecture != architecture:
        raise UnsupportedError(
            f"objective {objective} needs a model of architecture {architecture}; {model.record.name} is of architecture {model.architecture}",
            hint="leave objective out: it follows from the data and the model",
        )
    encoder = DocumentEncoder(model.tokenizer)
    found = encoder.encode([example.text for example in dataset.examples])
    empty = [
        place(e) for e, tokens in zip(dataset.examples, found, strict=True) if not tokens.ids or not e.text.strip()
    ]
    if empty:
        more = " …" if len(empty) > _SHOWN else ""
        raise DataError(
            f"{dataset.name}: {len(empty)} documents hold no text ({', '.join(empty[:_SHOWN])}{more})",
            hint="remove them; data.skip_bad=true leaves out rows that cannot be read",
        )
    return encoder, found


def place(example: Example) -> str:
    """Where an example is from, for messages."""
    return example.source or example.id


def row_length(length: int | None, limits: Limits, *, default: int, least: int) -> int:
    """The longest row: ``length`` as configured, else ``default``, never over the context. Raises InputError where that is too short or long."""
    if length is not None and length > limits.context_length:
        raise InputError(
            f"objective.length must be at most the model's context of {limits.context_length} tokens; got {length}"
        )
    found = min(default, limits.context_length) if length is None else length
    if found < least:
        raise InputError(f"objective.length must be at least {least} tokens; got {found}")
    return found


def stride(given: int | None, window: int) -> int:
    """How far apart windows begin: as ``given``, else side by side. Raises InputError where that would leave tokens out."""
    if given is not None and given > window:
        raise InputError(
            f"objective.stride must be at most the length of a window, {window} tokens, else tokens between two are left out; got {given}"
        )
    return given or window


def cut(
    examples: Sequence[Example], counts: Sequence[int], length: int, stride: int, limits: Limits
) -> Iterator[tuple[int, int, int]]:
    """(document, start, end) of the windows of each document of ``counts`` tokens.

    ``limits.overlong`` speaks of documents over ``length``: error cuts all of them into windows, so that none is over; truncate keeps
    only the first window, drop leaves them out.
    """
    for number, (example, count) in enumerate(zip(examples, counts, strict=True)):
        found = windows(count, length, stride)
        if len(found) > 1 and limits.overlong == "drop":
            limits.dropped.append(place(example))
            continue
        if len(found) > 1 and limits.overlong == "truncate":
            limits.truncated.append(place(example))
            found = found[:1]
        for start, end in found:
            yield number, start, end


class PackedRows(Sequence[Row]):
    """Rows of several documents each, put together when they are asked for: the documents may lie on disk. ``bins``: which documents a row has."""

    def __init__(self, documents: Sequence[Document], lengths: Sequence[int], bins: Sequence[Sequence[int]]) -> None:
        self._documents, self._bins = documents, bins
        self.lengths = array("i", (sum(lengths[i] for i in each) for each in bins))

    def __len__(self) -> int:
        return len(self._bins)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> list[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | list[Row]:
        if isinstance(at, slice):
            return [Row([self._documents[i] for i in each]) for each in self._bins[at]]
        return Row([self._documents[i] for i in self._bins[at]])


def packed(
    documents: Sequence[Document], lengths: Sequence[int], length: int, model: LoadedModel, *, together: bool
) -> PackedRows:
    """Rows of at most ``length`` tokens, each as full as it gets; a document (they have ``lengths`` tokens) a row when not ``together``, or
    where one mask does not serve all layers of the model (sliding windows)."""
    if not together or not attends_fully(model.module):
        return PackedRows(documents, lengths, [[number] for number in range(len(documents))])
    return PackedRows(documents, lengths, pack(lengths, length))


def collate(rows: Sequence[Row], model: LoadedModel) -> Batch:
    """The rows' documents laid out anew, as wide as the longest of them, so that attention is computed over no more than that; or as they
    are in the rows, where that has less padding.

    A mask is made only where a row holds several. Where one mask does not serve all layers (sliding windows) a document is a row.
    """
    documents = [document for row in rows for document in row.documents]
    width = max(len(document.ids) for document in documents)
    lines, widest = pack([len(d.ids) for d in documents], width), max(row.length for row in rows)
    if not attends_fully(model.module):
        lines = [[i] for i in range(len(documents))]
    elif len(lines) * width > len(rows) * widest:  # more padding than in the rows as they are
        indices = iter(range(len(documents)))
        lines, width = [[next(indices) for _ in row.documents] for row in rows], widest
    assert model.renderer is not None  # decoders have one
    ids = torch.full((len(lines), width), model.renderer.pad_id, dtype=torch.long)
    positions, owners = torch.zeros_like(ids), torch.full_like(ids, -1)
    places: list[int] = []
    targets: list[int] = []
    for number, line in enumerate(lines):
        at = 0
        for index in line:
            document = documents[index]
            size = len(document.ids)
            ids[number, at : at + size] = torch.tensor(document.ids)
            positions[number, at : at + size] = torch.arange(size)
            owners[number, at : at + size] = index
            first = number * width + at
            places += range(first + document.start - 1, first + size - 1)
            targets += document.ids[document.start :]
            at += size
    alone = len(lines) == len(documents)
    device = model.device
    return Batch(
        ids.to(device),
        None if alone else positions.to(device),
        None if alone else _mask(owners, model.dtype).to(device),
        torch.tensor(places, device=device),
        torch.tensor(targets, device=device),
    )


def _mask(owners: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive: a token sees those of its own document up to itself."""
    width = owners.shape[1]
    seen = (owners[:, :, None] == owners[:, None, :]) & torch.ones(width, width, dtype=torch.bool).tril()
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)


def loss(model: LoadedModel, batch: Batch) -> Loss:
    """Mean cross-entropy over the predicted tokens, in nats."""
    hidden = hidden_states(model.module, batch.ids, position_ids=batch.positions, mask=batch.mask)
    return token_loss(model, states_at(hidden, batch.places), batch.targets)
