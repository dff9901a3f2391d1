"""Span corruption against a reference written from the paper's code: amounts, lengths, sentinels, and transformers' loss."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, InputError, UnsupportedError
from luthier.core.message import user
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel, load_folder, load_model
from luthier.objectives import span_corruption
from luthier.objectives._rows import Limits
from luthier.objectives.span_corruption import Config, Row, collate, corrupt, loss, prepare
from luthier.store.database import open_store
from luthier.store.models import find

TEXTS = ("The parcel has not arrived and the courier does not answer.", "我的包裹还没有到,请帮我查一下。", "no 2")
SENTINELS = 20


def documents(texts: tuple[str, ...] = TEXTS) -> Dataset:
    return Dataset(
        "corpus", "text", tuple(Example(str(i), user(t), source=f"c.jsonl:{i + 1}") for i, t in enumerate(texts))
    )


@pytest.fixture
def folder(tiny_t5_path: Path, tmp_path: Path) -> Path:
    """The tiny T5 with sentinels in its vocabulary."""
    from transformers import AutoTokenizer, T5ForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_t5_path))
    tokenizer.add_tokens([f"<extra_id_{i}>" for i in range(SENTINELS)], special_tokens=True)
    torch.manual_seed(0)
    module = T5ForConditionalGeneration.from_pretrained(str(tiny_t5_path))
    module.resize_token_embeddings(len(tokenizer))
    module.save_pretrained(str(tmp_path / "t5"))
    tokenizer.save_pretrained(str(tmp_path / "t5"))
    return tmp_path / "t5"


@pytest.fixture
def model(folder: Path, tiny_t5: str) -> LoadedModel:
    record = find(open_store(), tiny_t5)
    return load_folder(folder, record, record, dtype="fp32", device="cpu")


def rows_of(model: LoadedModel, dataset: Dataset, limits: Limits | None = None, **options: Any) -> list[Row]:
    return prepare(dataset, model, PromptTemplate(), Config(**options), limits or Limits(512))


def reference_lengths(inputs_length: int, density: float, mean: float) -> tuple[int, int]:
    """``random_spans_helper`` of T5: how many tokens fit a source of this length, and how long the target is."""

    def lengths(tokens: int) -> tuple[int, int]:
        noise = round(tokens * density)
        spans = round(noise / mean)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = inputs_length
    while lengths(tokens + 1)[0] <= inputs_length:
        tokens += 1
    return tokens, lengths(tokens)[1]


def by_mask(ids: list[int], noise: list[bool], sentinels: tuple[int, ...]) -> list[int]:
    """``noise_span_to_unique_sentinel`` of T5: the tokens that are no noise, each run of noise as the next sentinel."""
    out, number = [], 0
    for at, token in enumerate(ids):
        if not noise[at]:
            out.append(token)
        elif at == 0 or not noise[at - 1]:
            out.append(sentinels[number])
            number += 1
    return out


def _between(target: list[int], sentinels: tuple[int, ...]) -> list[list[int]]:
    """What follows each sentinel."""
    out: list[list[int]] = []
    for token in target:
        if token in sentinels:
            out.append([])
        else:
            out[-1].append(token)
    return out


def noise_of(row: Row, source: list[int], target: list[int]) -> list[bool]:
    """Which tokens of the document were taken out, read off source and target."""
    told: dict[int, list[int]] = {}
    for token in target[: -len(row.frame.close)]:
        if token in row.frame.sentinels:
            told[token] = []
            last = token
        else:
            told[last].append(token)
    mask, whole = list[bool](), list[int]()
    for token in source[: -len(row.frame.after)]:
        part = told.get(token, [token])
        whole += part
        mask += [token in told] * len(part)
    assert whole == row.ids
    return mask


@pytest.mark.parametrize(("share", "mean"), [(0.15, 3.0), (0.3, 2.0), (0.9, 5.0)])
def test_source_and_target_are_those_of_the_reference_under_the_mask_drawn(
    model: LoadedModel, share: float, mean: float
) -> None:
    rows = rows_of(model, documents(), share=share, mean_span=mean)
    seen, ends = set(), set[tuple[bool, bool]]()
    for number in range(30):
        for row in rows:
            pair = corrupt(row, torch.Generator().manual_seed(number))
            mask = noise_of(row, pair.source_ids, pair.target_ids)
            assert pair.source_ids == [*by_mask(row.ids, mask, row.frame.sentinels), 1]
            said = _between(pair.target_ids[:-1], row.frame.sentinels)
            assert [token for span in said for token in span] == [t for t, m in zip(row.ids, mask, strict=True) if m]
            assert all(said) and [t for t in pair.target_ids if t in row.frame.sentinels] == list(
                row.frame.sentinels[: len(said)]
            )
            assert len(said) == row.spans and pair.target_ids[-1] == 1
            count = len(row.ids)
            assert sum(mask) == row.noise == min(max(round(count * share), 1), count - 1)
            ends |= {(mask[0], mask[-1])}
            assert row.length == len(pair.source_ids) + len(pair.target_ids) and row.weight == len(pair.target_ids)
            seen.add(tuple(pair.source_ids))
    assert len(seen) > 10 and {True, False} <= {end for _, end in ends}  # text may stay at the end, or not
    first = rows[0]
    if share == 0.15:
        assert first.spans == max(1, round(first.noise / 3))


def test_every_partition_is_equally_likely() -> None:
    draws = Counter(
        tuple(span_corruption._partition(5, 2, torch.Generator().manual_seed(seed))) for seed in range(4000)
    )
    assert set(draws) == {(1, 4), (2, 3), (3, 2), (4, 1)}
    assert all(900 < count < 1100 for count in draws.values())
    assert span_corruption._partition(3, 3, torch.Generator()) == [1, 1, 1]
    assert span_corruption._partition(4, 1, torch.Generator()) == [4]


@pytest.mark.parametrize(("length", "density", "mean"), [(64, 0.15, 3.0), (40, 0.15, 3.0), (100, 0.3, 4.0)])
def test_windows_fill_the_source_as_the_reference_says(
    model: LoadedModel, length: int, density: float, mean: float
) -> None:
    long = documents(("The parcel has not arrived. 我的包裹 0123456789 " * 40,))
    rows = rows_of(model, long, length=length, share=density, mean_span=mean)
    tokens, target = reference_lengths(length, density, mean)
    assert len(rows) > 3
    for row in rows:
        pair = corrupt(row, torch.Generator().manual_seed(0))
        assert (len(row.ids), len(pair.source_ids), len(pair.target_ids)) == (tokens, length, target)
    assert reference_lengths(512, 0.15, 3.0) == (568, 114)  # the figures of the paper's code
    assert span_corruption._window(511, 512, 1, Config()) == 568


def test_the_loss_is_that_of_transformers(model: LoadedModel) -> None:
    rows = rows_of(model, documents())
    batch = collate(rows, model)
    found = loss(model, batch, Config())
    pairs = [corrupt(row, generator) for row, generator in zip(rows, _fixed(rows, model), strict=True)]
    labels = torch.full((3, max(len(p.target_ids) for p in pairs)), -100)
    for line, pair in zip(labels, pairs, strict=True):
        line[: len(pair.target_ids)] = torch.tensor(pair.target_ids)
    theirs = model.module(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss
    torch.testing.assert_close(found.value, theirs, rtol=1e-6, atol=1e-6)
    assert found.count == sum(row.weight for row in rows)


def _fixed(rows: list[Row], model: LoadedModel) -> list[torch.Generator]:
    from luthier.objectives._draws import generators

    return generators([row.ids for row in rows], model)


def test_drawn_anew_in_training_and_the_same_in_every_validation(model: LoadedModel) -> None:
    rows = rows_of(model, documents(TEXTS[:2]))
    alone = collate(rows[:1], model)
    assert torch.equal(collate(rows, model).targets[: len(alone.targets)], alone.targets)  # whatever the batch
    assert torch.equal(collate(rows, model).ids, collate(rows, model).ids)
    model.module.train()
    torch.manual_seed(5)
    first, second = collate(rows, model), collate(rows, model)
    assert not torch.equal(first.ids, second.ids)
    torch.manual_seed(5)
    assert torch.equal(collate(rows, model).ids, first.ids)


def test_what_it_cannot_train_on(model: LoadedModel, tiny_t5: str, tiny_decoder: str) -> None:
    plain = load_model(open_store(), tiny_t5, dtype="fp32", device="cpu")
    with pytest.raises(UnsupportedError, match="needs sentinel tokens; the tokenizer of tiny-t5 has no <extra_id_0>"):
        rows_of(plain, documents())
    with pytest.raises(UnsupportedError, match="architecture encoder-decoder; tiny-decoder"):
        rows_of(load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu"), documents())
    with pytest.raises(InputError, match=r"has \d+ spans, and the tokenizer 20 sentinels"):
        rows_of(model, documents(("The parcel 我的包裹 0123456789 " * 40,)))
    with pytest.raises(DataError, match=r"1 documents are of one token.*c\.jsonl:2"):
        rows_of(model, documents((TEXTS[0], "a")))
    with pytest.raises(InputError, match="stride must be at most the length of a window"):
        rows_of(model, documents(), length=40, stride=100)
