"""Objectives on encoder-decoders, against transformers' own loss and plain forwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, InputError
from luthier.core.message import Message, user
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel, load_model
from luthier.objectives import classify, sft
from luthier.objectives._rows import Limits
from luthier.store.database import open_store

LABELS = ("billing", "delivery", "lost violin")
PROMPT = PromptTemplate("Sort into {labels}.", "Message: {input}", LABELS)
PAIRS = [("refund me", "billing"), ("where is the parcel, and who is the courier", "delivery"), ("gone", "lost violin")]
LABELLED = Dataset(
    "t", "labelled", tuple(Example(str(i), user(t), a, source=f"t.jsonl:{i}") for i, (t, a) in enumerate(PAIRS))
)


@pytest.fixture
def model(tiny_t5: str) -> LoadedModel:
    found = load_model(open_store(), tiny_t5, dtype="fp32", device="cpu")
    found.labels = LABELS
    return found


def expected_loss(model: LoadedModel, pairs: Sequence[tuple[str, str]]) -> float:
    """transformers' own, of texts that its tokenizer has cut."""
    asked = model.tokenizer([text for text, _ in pairs], padding=True, return_tensors="pt")
    wanted = model.tokenizer([answer for _, answer in pairs], padding=True, return_tensors="pt")
    labels = wanted["input_ids"].masked_fill(wanted["attention_mask"] == 0, -100)
    module = model.module
    with torch.no_grad():
        return float(module(input_ids=asked["input_ids"], attention_mask=asked["attention_mask"], labels=labels).loss)


def prepared(objective: Any, model: LoadedModel, dataset: Dataset, **options: Any) -> tuple[list[Any], Any]:
    config = objective.Config(**options)
    return objective.prepare(dataset, model, PROMPT, config, Limits(model.context_length)), config


def test_sft_is_the_loss_of_transformers(model: LoadedModel) -> None:
    rows, config = prepared(sft, model, LABELLED)
    found = sft.loss(model, sft.collate(rows, model), config)
    texts = [(f"Sort into {', '.join(LABELS)}.\n\nMessage: {text}", answer) for text, answer in PAIRS]
    assert float(found.value) == pytest.approx(expected_loss(model, texts), abs=1e-6)
    assert found.count == sum(row.weight for row in rows) == sum(len(model.tokenizer(a)["input_ids"]) for _, a in PAIRS)
    assert [row.length for row in rows] == [sum(len(model.tokenizer(t)["input_ids"]) for t in pair) for pair in texts]


def test_sft_gradients_are_those_of_transformers(model: LoadedModel) -> None:
    rows, config = prepared(sft, model, LABELLED)
    batch = sft.collate(rows, model)
    weights = dict(model.module.named_parameters())
    ours = torch.autograd.grad(sft.loss(model, batch, config).value, list(weights.values()))
    labels = torch.full((3, max(len(r.target_ids) for r in rows)), -100)
    for line, row in zip(labels, rows, strict=True):
        line[: len(row.target_ids)] = torch.tensor(row.target_ids)
    theirs = torch.autograd.grad(
        model.module(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss, list(weights.values())
    )
    for name, one, other in zip(weights, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)


def test_sft_makes_a_row_of_every_answer(model: LoadedModel) -> None:
    turns = (
        Message("user", "one"),
        Message("assistant", "two"),
        Message("user", "three"),
        Message("assistant", "four"),
    )
    chat = Dataset("c", "chat", (Example("0", turns),))
    rows, config = prepared(sft, model, chat)
    assert [model.tokenizer.decode(row.source_ids) for row in rows] == ["one</s>", "one\n\ntwo\n\nthree</s>"]
    assert [model.tokenizer.decode(row.target_ids) for row in rows] == ["two</s>", "four</s>"]
    found = float(sft.loss(model, sft.collate(rows, model), config).value)
    assert found == pytest.approx(expected_loss(model, [("one", "two"), ("one\n\ntwo\n\nthree", "four")]), abs=1e-6)
    last, _ = prepared(sft, model, chat, turns="last")
    assert last == rows[1:]


def test_long_sources_and_targets(model: LoadedModel) -> None:
    long = Dataset("l", "labelled", (Example("0", user("x" * 300), "billing", source="l.jsonl:1"),))
    for objective in (sft, classify):
        with pytest.raises(DataError, match=r"l\.jsonl:1: \d+ tokens"):
            objective.prepare(long, model, PROMPT, objective.Config(), Limits(100))
    limits = Limits(100, "truncate")
    (row,) = sft.prepare(long, model, PROMPT, sft.Config(), limits)
    assert len(row.source_ids) == 100 and row.source_ids[-1] == 1 and limits.truncated == ["l.jsonl:1"]
    (cut,) = classify.prepare(long, model, PROMPT, classify.Config(), limits)
    assert len(cut.prompt) == 100 and cut.prompt[-1] == 1


def test_classify_scores_the_labels_texts(model: LoadedModel) -> None:
    rows, config = prepared(classify, model, LABELLED, label_smoothing=0.1, generative_weight=0.5)
    found = classify.loss(model, classify.collate(rows, model), config)
    total = right = 0.0
    for text, answer in PAIRS:
        source = model.tokenizer(f"Sort into {', '.join(LABELS)}.\n\nMessage: {text}", return_tensors="pt")["input_ids"]
        scores = []
        for label in LABELS:
            target = model.tokenizer(label, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                scores.append(-model.module(input_ids=source, labels=target).loss * target.shape[1])
        values, wanted = torch.stack(scores), torch.tensor(LABELS.index(answer))
        total += float(F.cross_entropy(values, wanted, label_smoothing=0.1) - 0.5 * values[wanted])
        right += float(values.argmax() == wanted)
    assert float(found.value) == pytest.approx(total / 3, abs=1e-5)
    assert found.metrics["accuracy"] == pytest.approx(right / 3)
    assert math.isfinite(found.metrics["ranking_loss"])


def test_an_empty_prompt_is_refused(model: LoadedModel) -> None:
    nothing = Dataset("n", "question", (Example("0", user(""), "billing"),))
    with pytest.raises(InputError, match="prompt must not be empty"):
        sft.prepare(nothing, model, PromptTemplate(), sft.Config(), Limits(100))
