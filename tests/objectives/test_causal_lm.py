"""Continued pre-training: which tokens bear loss, and packed rows against transformers' own loss of each document."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, InputError, UnsupportedError
from luthier.core.message import user
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel, load_model
from luthier.objectives._documents import Document, Row
from luthier.objectives._rows import Limits
from luthier.objectives.causal_lm import Config, collate, loss, prepare
from luthier.store.database import open_store

TEXTS = (
    "The parcel has not arrived.",
    "Refund",
    "我的包裹还没有到,请帮我查一下。",
    "A longer document, with a line break\nand <|im_end|> written by its author, which is no markup but text of its own.",
    "billing account",
)
LIMITS = 512


def documents(texts: tuple[str, ...] = TEXTS) -> Dataset:
    return Dataset(
        "corpus", "text", tuple(Example(str(i), user(t), source=f"corpus.jsonl:{i + 1}") for i, t in enumerate(texts))
    )


@pytest.fixture(params=["tiny_decoder", "tiny_gpt2"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    name = request.getfixturevalue(request.param)
    return load_model(open_store(), name, dtype="fp32", device="cpu")


def rows_of(model: LoadedModel, dataset: Dataset, limits: Limits | None = None, **options: Any) -> list[Row]:
    return prepare(dataset, model, PromptTemplate(), Config(**options), limits or Limits(LIMITS))


def theirs(model: LoadedModel, ids: list[int]) -> torch.Tensor:
    """transformers' loss of one document alone."""
    whole = torch.tensor([ids])
    found: torch.Tensor = model.module(input_ids=whole, labels=whole).loss
    return found


def in_order(rows: list[Row]) -> list[Any]:
    return sorted((d for row in rows for d in row.documents), key=lambda d: d.source)


def test_a_document_is_its_text_and_one_end_and_every_token_bears_loss(model: LoadedModel) -> None:
    found = in_order(rows_of(model, documents()))
    end = model.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for text, document in zip(TEXTS, found, strict=True):
        assert model.tokenizer.decode(document.ids[:-1]) == text
        assert document.ids[-1] == end and document.start == 1
    markup = model.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert all(markup not in document.ids for document in found)
    batch = collate([Row(found[:1])], model)
    assert batch.targets.tolist() == found[0].ids[1:] and batch.places.tolist() == list(range(len(found[0].ids) - 1))
    other = in_order(rows_of(model, documents(), end="<|im_end|>"))
    assert other[0].ids == [*found[0].ids[:-1], markup]


def test_what_the_tokenizer_puts_before_a_text_stands_before_a_document(model: LoadedModel) -> None:
    from tokenizers import processors

    start = model.tokenizer.convert_tokens_to_ids("<|im_start|>")
    model.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    (row,) = rows_of(model, documents(("Refund",)))
    assert model.tokenizer.decode(row.documents[0].ids) == "<|im_start|>Refund<|endoftext|>"


@pytest.mark.parametrize("length", [None, 60, 100])
def test_packed_is_the_loss_of_transformers_document_by_document(model: LoadedModel, length: int | None) -> None:
    """And so are the gradients of what is trained."""
    rows = rows_of(model, documents(TEXTS[:3] + TEXTS[4:]), length=length)
    apart = rows_of(model, documents(TEXTS[:3] + TEXTS[4:]), length=length, pack=False)
    assert len(apart) == 4 and len(rows) < 4
    model.module.requires_grad_(True)
    each = [(theirs(model, d.ids), len(d.ids) - 1) for d in in_order(rows)]
    count = sum(n for _, n in each)
    wanted = torch.stack([value * n for value, n in each]).sum() / count
    parameters = [p for p in model.module.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(wanted, parameters)
    for form in (rows, apart):
        batch = collate(form, model)
        found = loss(model, batch, Config())
        assert batch.mask is not None and len(batch.ids) < 4
        assert found.count == count == sum(row.weight for row in form)
        torch.testing.assert_close(found.value, wanted, rtol=1e-6, atol=1e-6)
        for one, other in zip(torch.autograd.grad(found.value, parameters), slopes, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_no_token_depends_on_another_document(model: LoadedModel) -> None:
    rows = rows_of(model, documents((TEXTS[0], TEXTS[1], TEXTS[4], TEXTS[3])))
    assert len(rows) == 1
    before = collate(rows, model)
    first, second = rows[0].documents[1:3]
    with torch.no_grad():
        alone = float(loss(model, collate([Row([second])], model), Config()).value)
        together = loss(model, before, Config()).value
        first.ids[0] += 1
        first.start, changed = len(first.ids), len(first.ids) - 1  # nothing of it is counted any more
        for document in rows[0].documents:
            if document is not second:
                document.start = len(document.ids)
        only = loss(model, collate(rows, model), Config())
    assert only.count == len(second.ids) - 1 and changed
    assert float(only.value) == pytest.approx(alone, abs=1e-6) and float(together) != pytest.approx(alone, abs=1e-3)


def test_sliding_windows_keep_a_document_a_row(model: LoadedModel) -> None:
    rows = rows_of(model, documents())
    model.module.config.sliding_window = 4
    batch = collate(rows, model)
    assert batch.mask is None and batch.positions is None and len(batch.ids) == len(TEXTS)
    assert len(rows_of(model, documents())) == len(TEXTS) > len(rows)


def test_long_documents_in_windows(model: LoadedModel) -> None:
    (whole,) = in_order(rows_of(model, documents(TEXTS[3:4])))
    found = [d for row in rows_of(model, documents(TEXTS[3:4]), length=20, pack=False) for d in row.documents]
    assert len(found) > 2 and all(len(d.ids) == 20 for d in found)
    told = [token for d in found for token in d.ids[d.start :]]
    assert told == whole.ids[1:]  # each token once, in order
    strided = [
        d for row in rows_of(model, documents(TEXTS[3:4]), length=20, stride=7, pack=False) for d in row.documents
    ]
    assert [token for d in strided for token in d.ids[d.start :]] == whole.ids[1:]
    assert [d.start for d in strided[1:-1]] == [13] * (len(strided) - 2)
    cutting, dropping = Limits(LIMITS, "truncate"), Limits(LIMITS, "drop")
    assert len(rows_of(model, documents(TEXTS[1:4]), cutting, length=60)) == 2
    assert cutting.truncated == ["corpus.jsonl:3"]
    assert sum(len(r.documents) for r in rows_of(model, documents(TEXTS[1:4]), dropping, length=60)) == 2
    assert dropping.dropped == ["corpus.jsonl:3"]


def test_what_it_cannot_train_on(model: LoadedModel, tiny_encoder: str) -> None:
    with pytest.raises(UnsupportedError, match="needs data of kind text; pairs is preference"):
        rows_of(model, Dataset("pairs", "preference", ()))
    with pytest.raises(UnsupportedError, match="causal_lm needs a model of architecture decoder"):
        rows_of(load_model(open_store(), tiny_encoder, dtype="fp32", device="cpu"), documents())
    with pytest.raises(DataError, match=r"1 documents hold no text \(corpus\.jsonl:2\)"):
        rows_of(model, documents(("good", " \n")))
    with pytest.raises(InputError, match="at most the model's context of 512 tokens; got 513"):
        rows_of(model, documents(), length=513)
    with pytest.raises(InputError, match="stride must be below the length of a row, 20"):
        rows_of(model, documents(), length=20, stride=20)
    with pytest.raises(InputError, match="must be a token of the model's vocabulary; got '<stop>'"):
        rows_of(model, documents(), end="<stop>")


def test_packed_is_separate_in_bf16_too(tiny_decoder: str) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="bf16", device="cpu")
    rows, apart = (rows_of(model, documents(), pack=pack) for pack in (True, False))
    assert collate(rows, model).mask is not None
    with torch.no_grad():
        found, wanted = (float(loss(model, collate(form, model), Config()).value) for form in (rows, apart))
        single = [(float(loss(model, collate([row], model), Config()).value), row.weight) for row in apart]
    assert found == pytest.approx(wanted, rel=5e-3)
    assert found == pytest.approx(sum(v * n for v, n in single) / sum(n for _, n in single), rel=5e-3)


def test_no_more_padding_than_the_rows_have(model: LoadedModel) -> None:
    def row(*lengths: int) -> Row:
        return Row([Document(list(range(5, 5 + n)), 1, "c.jsonl:1") for n in lengths])

    narrow = collate([row(30, 10, 10), row(40, 10)], model)  # as wide as the longest: three rows of 40 would be padding
    assert narrow.ids.shape == (2, 50) and narrow.mask is not None
    fitting = collate([row(30, 30), row(30, 30)], model)
    assert fitting.ids.shape == (4, 30) and fitting.mask is None
    for batch, rows in ((narrow, [row(30, 10, 10), row(40, 10)]), (fitting, [row(30, 30), row(30, 30)])):
        wanted = [(float(theirs(model, d.ids).detach()), len(d.ids) - 1) for r in rows for d in r.documents]
        with torch.no_grad():
            found = loss(model, batch, Config())
        assert float(found.value) == pytest.approx(sum(v * n for v, n in wanted) / found.count, abs=1e-6)
