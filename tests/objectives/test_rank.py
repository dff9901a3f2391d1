"""Rerankers against the papers' equations, on scores from one plain forward a pair."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.core.dataset import Dataset
from luthier.core.errors import DataError, InputError, UnsupportedError
from luthier.core.task import PromptTemplate
from luthier.data.read import examples_from_rows, write
from luthier.models.load import LoadedModel, load_model
from luthier.models.rerank import load_reranker, scores
from luthier.objectives._rows import Limits
from luthier.objectives.rank import Config, Row, collate, heads, loss, prepare
from luthier.store.database import open_store
from luthier.training import checkpoint
from luthier.training.config import TrainConfig
from luthier.training.interrupt import Halt
from luthier.training.loop import train
from luthier.training.work import Work

ROWS: list[dict[str, Any]] = [
    {"query": "refund the deposit", "pos": ["billing refund", "the deposit"], "neg": ["lesson", "where is the parcel"]},
    {"query": "where is the parcel", "pos": ["delivery courier parcel"], "neg": ["billing refund"]},
    {"query": "who is the teacher", "pos": ["lessons teacher violin"], "neg": ["account", "the password", "我的包裹"]},
]
SCORED = [
    {"sentence1": "refund the deposit", "sentence2": "billing refund", "score": 0.8},
    {"sentence1": "where is the parcel", "sentence2": "the password", "score": 0.0},
    {"sentence1": "who is the teacher", "sentence2": "the violin teacher", "score": 1},
]


def data(rows: list[dict[str, Any]]) -> Dataset:
    return examples_from_rows((("pairs.jsonl", n, row) for n, row in enumerate(rows, 1)), name="pairs")


def named(name: str) -> LoadedModel:
    model = load_model(open_store(), name, dtype="fp32", device="cpu")
    torch.manual_seed(7)
    heads(model, Config())
    model.module.eval()
    return model


@pytest.fixture
def encoder(tiny_encoder: str) -> LoadedModel:
    model = named(tiny_encoder)
    with torch.no_grad():
        model.module.head.weight.mul_(20)  # scores that differ
    return model


def rows_of(model: LoadedModel, rows: list[dict[str, Any]], config: Config | None = None) -> list[Row]:
    found: list[Row] = prepare(data(rows), model, PromptTemplate(), config or Config(), Limits(model.context_length))
    return found


def score(model: LoadedModel, query: str, document: str) -> torch.Tensor:
    """The head on the mean of the last hidden states of one unpadded pair, as transformers tokenises pairs."""
    inputs = model.tokenizer(query, document, return_tensors="pt", return_token_type_ids=True)
    assert inputs["token_type_ids"].max() == 1
    return model.module.head(model.module.body(**inputs).last_hidden_state[0].mean(0))[0]


def expected(model: LoadedModel, how: str) -> tuple[torch.Tensor, int]:
    """The mean of the equation, term by term, and the number of terms."""
    terms = []
    for row in ROWS:
        good, bad = ([score(model, row["query"], text) for text in row[part]] for part in ("pos", "neg"))
        if how == "listwise":
            every = sum(math.e**s for s in [*good, *bad])
            terms.append(-sum(torch.log(math.e**s / every) for s in good) / len(good))
        elif how == "pairwise":
            terms += [torch.log(1 + math.e ** (n - p)) for p in good for n in bad]
        else:
            terms += [-torch.log(1 / (1 + math.e**-s)) for s in good]
            terms += [-torch.log(1 - 1 / (1 + math.e**-s)) for s in bad]
    return torch.stack(terms).mean(), len(terms)


@pytest.mark.parametrize("how", ["listwise", "pairwise", "pointwise"])
def test_losses_and_gradients(encoder: LoadedModel, how: Any) -> None:
    encoder.module.requires_grad_(True)
    wanted, count = expected(encoder, how)
    wanted.backward()
    gradients = {name: p.grad.clone() for name, p in encoder.module.named_parameters() if p.grad is not None}
    encoder.module.zero_grad()
    config = Config(loss=how)
    rows = rows_of(encoder, ROWS, config)
    found = loss(encoder, collate(rows, encoder), config)
    found.value.backward()
    assert found.count == count == sum(row.weight for row in rows)
    torch.testing.assert_close(found.value, wanted, rtol=1e-6, atol=1e-6)
    assert "head.weight" in gradients and len(gradients) > 10
    for name, gradient in gradients.items():
        torch.testing.assert_close(encoder.module.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("how", ["listwise", "pairwise", "pointwise"])
def test_micro_batches_sum_to_the_step(encoder: LoadedModel, how: Any) -> None:
    config = Config(loss=how)
    rows = rows_of(encoder, ROWS, config)
    parts = [loss(encoder, collate([row], encoder), config) for row in rows]
    whole = loss(encoder, collate(rows, encoder), config)
    mean = sum(part.value * part.count for part in parts) / sum(row.weight for row in rows)
    torch.testing.assert_close(mean, whole.value, rtol=1e-6, atol=1e-6)
    together = sum(part.metrics["accuracy"] * part.count for part in parts) / whole.count
    assert whole.metrics["accuracy"] == pytest.approx(together)


def test_accuracy_says_what_is_in_order(encoder: LoadedModel) -> None:
    found = {}
    with torch.no_grad():
        for row in ROWS:
            each = [[float(score(encoder, row["query"], text)) for text in row[part]] for part in ("pos", "neg")]
            found[row["query"]] = (each[0], each[1])
    first = [max(good) > max(bad) for good, bad in found.values()]
    order = [p > n for good, bad in found.values() for p in good for n in bad]
    side = [p > 0 for good, _ in found.values() for p in good] + [n <= 0 for _, bad in found.values() for n in bad]
    for how, right in (("listwise", first), ("pairwise", order), ("pointwise", side)):
        config = Config(loss=how)  # type: ignore[arg-type]
        metrics = loss(encoder, collate(rows_of(encoder, ROWS, config), encoder), config).metrics
        assert metrics["accuracy"] == pytest.approx(sum(right) / len(right))


def test_scored_texts_are_probabilities(encoder: LoadedModel) -> None:
    terms = []
    for row in SCORED:
        share = torch.sigmoid(score(encoder, row["sentence1"], row["sentence2"]))
        terms.append(-row["score"] * torch.log(share) - (1 - row["score"]) * torch.log(1 - share))
    found = loss(encoder, collate(rows_of(encoder, SCORED), encoder), Config())
    torch.testing.assert_close(found.value, torch.stack(terms).mean(), rtol=1e-6, atol=1e-6)


def test_a_frozen_body_is_computed_once_with_the_same_loss(encoder: LoadedModel) -> None:
    encoder.module.requires_grad_(True)
    live = loss(encoder, collate(rows_of(encoder, ROWS), encoder), Config())
    encoder.module.body.requires_grad_(False)
    calls: list[int] = []
    encoder.module.body.register_forward_hook(lambda *_: calls.append(1))
    rows = rows_of(encoder, ROWS)
    computed = len(calls)
    found = loss(encoder, collate(rows, encoder), Config())
    assert computed and len(calls) == computed
    torch.testing.assert_close(found.value, live.value, rtol=1e-6, atol=1e-6)


def test_negatives_of_other_rows(encoder: LoadedModel) -> None:
    rows = [{"query": f"q{n // 2}", "positive": f"the parcel {n}"} for n in range(8)]
    config = Config(random_negatives=3)
    one, two = (rows_of(encoder, rows, config) for _ in range(2))
    texts = [[encoder.tokenizer.decode(p.ids, skip_special_tokens=True) for p in row.pairs] for row in one]
    assert texts == [[encoder.tokenizer.decode(p.ids, skip_special_tokens=True) for p in row.pairs] for row in two]
    for n, found in enumerate(texts):
        assert len(set(found)) == 4
        right = {f"the parcel {m}" for m in (n // 2 * 2, n // 2 * 2 + 1)}
        assert not any(text.endswith(tuple(right)) for text in found[1:])  # of the query's other row neither
    assert len({tuple(found[1:]) for found in texts}) > 2
    few = rows_of(encoder, ROWS[:2], Config(random_negatives=50))
    assert [len(row.pairs) for row in few] == [5, 4]  # all that there are; a query is no document of its own


@pytest.mark.parametrize(
    "rows, options, error, message",
    [
        ([{"query": "a", "positive": "p"}], {}, DataError, r"rows without a negative teach no order: pairs\.jsonl:1"),
        ([{"query": "a", "positive": "p"}], {"loss": "pointwise"}, DataError, "rows without a negative"),
        ([{"query": "a", "positive": "p", "negative": "a"}], {}, DataError, "the negative 'a' is the anchor itself"),
        ([SCORED[0] | {"score": 4}], {}, DataError, r"pairs\.jsonl:1: the score must be between 0 and 1 .* got 4"),
        (SCORED, {"loss": "listwise"}, InputError, "objective.loss of scored texts must be pointwise"),
        (SCORED, {"random_negatives": 2}, InputError, "objective.random_negatives is for pairs"),
        ([{"text": "a", "label": "b"}], {}, UnsupportedError, "objective rank needs data of kind pairs or similarity"),
        ([ROWS[1] | {"pos": ["violin " * 200]}], {}, DataError, r"pairs\.jsonl:1: \d+ tokens"),
    ],
)
def test_data_that_cannot_be_ranked(
    encoder: LoadedModel, rows: list[dict[str, Any]], options: Mapping[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        rows_of(encoder, rows, Config(**options))


def test_only_documents_are_cut(encoder: LoadedModel) -> None:
    query = "where is the parcel"
    long = ROWS[1] | {"pos": ["violin " * 200]}
    limits = Limits(40, "truncate")
    (row, *_) = prepare(data([long]), encoder, PromptTemplate(), Config(), limits)
    whole = encoder.tokenizer(query, "violin " * 200, return_token_type_ids=True)
    assert row.pairs[0].ids == [*whole["input_ids"][:39], whole["input_ids"][-1]]
    assert row.pairs[0].types == [*whole["token_type_ids"][:39], 1]
    assert (limits.truncated, len(row.pairs[1].ids) < 40) == (["pairs.jsonl:1"], True)
    asked = ROWS[1] | {"query": "violin " * 200}
    drop = Limits(40, "truncate")
    assert len(prepare(data([asked, ROWS[0]]), encoder, PromptTemplate(), Config(), drop)) == 1
    assert drop.dropped == ["pairs.jsonl:1"]


def test_a_decoder_is_refused(tiny_decoder: str, tmp_path: Path) -> None:
    path = write(data(ROWS), tmp_path / "rows.jsonl")
    with pytest.raises(
        UnsupportedError, match="objective rank needs an encoder; tiny-decoder is of architecture decoder"
    ):
        luthier.tune({"model": tiny_decoder, "data": {"train": str(path)}, "method": "lora", "objective": "rank"})


@pytest.mark.parametrize("method", ["lora", "full", "linear_probe", "bitfit"])
def test_a_tuned_reranker_orders_documents(tiny_encoder: str, tmp_path: Path, method: str) -> None:
    path = write(data(ROWS), tmp_path / "rows.jsonl")
    rate = 5e-2 if method in ("linear_probe", "bitfit") else 5e-3
    result = luthier.tune(
        {
            "name": "reranker",
            "model": tiny_encoder,
            "data": {"train": str(path)},
            "method": method,
            "objective": {"name": "rank", "loss": "pairwise"},
            "train": {"epochs": 60, "batch_size": 3, "learning_rate": rate, "dtype": "fp32"},
        }
    )
    assert result.model.meta["objective"] == "rank" and result.model.meta["labels"] == []
    model = load_reranker(open_store(), "reranker", dtype="fp32", device="cpu")
    for row in ROWS:
        documents = [*row["neg"], *row["pos"]]
        found = scores(model, row["query"], documents)
        if method in ("lora", "full"):  # what trains less need not find an order in a random body
            assert min(found[len(row["neg"]) :]) > max(found[: len(row["neg"])])
        for text, one in zip(documents, found, strict=True):  # and alone as together
            assert one == pytest.approx(float(score(model, row["query"], text).detach()), abs=1e-4)


def test_scores_of_odd_requests(encoder: LoadedModel) -> None:
    assert scores(encoder, "a", []) == []
    with pytest.raises(InputError, match="query must not be empty"):
        scores(encoder, " ", ["a"])
    with pytest.raises(InputError, match="the query leaves no room for a document"):
        scores(encoder, "violin " * 400, ["a"])
    with pytest.raises(InputError, match="half of a surrogate pair"):
        scores(encoder, "a", ["half \ud83d"])
    long, cut = "parcel " * 400, "parcel " * 100
    both = scores(encoder, "a", [long, cut, "parcel"])
    assert both[0] != both[1] and len(both) == 3
    kept = encoder.context_length - len(encoder.tokenizer("a", "")["input_ids"])
    assert both[0] == pytest.approx(scores(encoder, "a", ["parcel " * kept])[0], abs=1e-5)


def test_other_models_are_no_rerankers(tiny_encoder: str) -> None:
    with pytest.raises(UnsupportedError, match="tiny-encoder is no reranker"):
        load_reranker(open_store(), tiny_encoder)


def test_resume_is_bit_equal(tiny_encoder: str, tmp_path: Path) -> None:
    def run(folder: Path, stop_at: int = 0) -> LoadedModel:
        model = named(tiny_encoder)
        model.module.requires_grad_(True)
        rows = rows_of(model, ROWS)

        def watch(record: Any) -> None:
            if record["step"] == stop_at:
                raise Halt("enough")

        work = Work(rows, lambda r: collate(r, model), lambda b: loss(model, b, Config()))
        config = TrainConfig(epochs=4, batch_size=2, learning_rate=1e-3, checkpoint_every=2)
        train(model.module, work, config, folder=folder, metrics=watch, resume=checkpoint.latest(folder))
        return model

    whole = run(tmp_path / "whole")
    with pytest.raises(Halt):
        run(tmp_path / "parts", stop_at=5)
    again = run(tmp_path / "parts")
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name]), name
