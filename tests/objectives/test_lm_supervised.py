"""LM-supervised retrieval against the paper's equations, a row and a candidate at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import luthier
from luthier.core.dataset import Dataset, Splits
from luthier.core.errors import DataError, UnsupportedError
from luthier.core.task import PromptTemplate
from luthier.data.read import examples_from_rows
from luthier.models.load import LoadedModel, load_model
from luthier.objectives._rows import Limits
from luthier.objectives.lm_supervised import Config, Row, collate, loss, prepare
from luthier.store.database import open_store

ROWS: list[dict[str, Any]] = [
    {"anchor": "refund the deposit", "positive": "billing refund deposit", "negatives": ["the violin lesson", "account"], "lm_scores": [-0.2, -3.0, -1.1]},
    {"anchor": "where is the parcel", "positive": "delivery courier parcel", "negatives": ["billing refund"], "lm_scores": [-2.0, -0.5]},
    {"anchor": "我的包裹", "positive": "请帮我查一下。", "negatives": ["billing refund deposit", "account", "lessons"], "lm_scores": [-0.1, -7.0, -0.4, -90.0]},
]  # fmt: skip


def data(rows: list[dict[str, Any]]) -> Dataset:
    return examples_from_rows((("rows.jsonl", n, row) for n, row in enumerate(rows, 1)), name="rows")


@pytest.fixture
def model(tiny_encoder: str) -> LoadedModel:
    made = load_model(open_store(), tiny_encoder, dtype="fp32", device="cpu")
    made.module.eval()
    return made


def rows_of(model: LoadedModel, rows: list[dict[str, Any]]) -> list[Row]:
    found: list[Row] = prepare(data(rows), model, PromptTemplate(), Config(), Limits(model.context_length))
    return found


def vector(model: LoadedModel, text: str) -> torch.Tensor:
    inputs = model.tokenizer(text, return_tensors="pt")
    hidden = model.module.body(**{k: inputs[k] for k in ("input_ids", "attention_mask")}).last_hidden_state
    return F.normalize(hidden[0].mean(0), dim=0)


@pytest.mark.parametrize(
    ("target", "temperature"), [("likelihood", 0.5), ("likelihood", 0.01), ("log_likelihood", 2.0)]
)
@pytest.mark.parametrize("max_tokens", [4096, 20])
def test_the_loss_is_that_of_the_paper_and_its_gradient_too(
    model: LoadedModel, target: Any, temperature: float, max_tokens: int
) -> None:
    model.module.requires_grad_(True)
    scale = 5.0
    terms = []
    for row in ROWS:
        texts = [row["positive"], *row["negatives"]]
        s = [scale * (vector(model, row["anchor"]) @ vector(model, text)) for text in texts]
        told = [math.exp(each) if target == "likelihood" else each for each in row["lm_scores"]]
        bottom = sum(math.exp(each / temperature) for each in told)
        p_lsr = [math.exp(each / temperature) / bottom for each in told]
        p_r = [each.exp() / torch.stack(s).exp().sum() for each in s]
        terms.append(torch.stack([r * (r.log() - math.log(lsr)) for r, lsr in zip(p_r, p_lsr, strict=True)]).sum())
    expected = torch.stack(terms).mean()
    expected.backward()  # type: ignore[no-untyped-call]
    wanted = {name: p.grad.clone() for name, p in model.module.named_parameters() if p.grad is not None}
    model.module.zero_grad()
    config = Config(scale=scale, temperature=temperature, target=target)
    found = loss(model, collate(rows_of(model, ROWS), model, max_tokens), config)
    found.value.backward()  # type: ignore[no-untyped-call]
    assert found.count == 3
    torch.testing.assert_close(found.value, expected, rtol=1e-4, atol=1e-5)
    assert wanted
    for name, parameter in model.module.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-4)


def test_the_paper_temperature_is_the_default() -> None:
    assert Config().temperature == 0.01 and Config().target == "likelihood"


@pytest.mark.parametrize(
    "change",
    [
        {"lm_scores": [-1.0]},
        {"lm_scores": None},
        {"lm_scores": [-1.0, 0.5, -1.0]},
        {"lm_scores": [-1.0, "a", -1.0]},
        {"negatives": [], "lm_scores": [-1.0]},
    ],
)
def test_rows_without_good_scores_are_refused(model: LoadedModel, change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"lm_scores must be a list.*rows\.jsonl:1"):
        rows_of(model, [{**ROWS[0], **change}, *ROWS[1:]])


def test_other_kinds_are_refused(model: LoadedModel) -> None:
    scored = data([{"sentence1": "a", "sentence2": "b", "score": 1}, {"sentence1": "a", "sentence2": "c", "score": 0}])
    with pytest.raises(UnsupportedError, match="lm_supervised needs data of kind pairs"):
        prepare(scored, model, PromptTemplate(), Config(), Limits(model.context_length))


def test_training_brings_the_retriever_to_what_the_reader_can_use(tiny_encoder: str) -> None:
    rows = [{**row, "lm_scores": [-5.0, *([-5.0] * (len(row["negatives"]) - 1)), -0.01]} for row in ROWS]
    nothing = Dataset("none", "pairs", ())
    made = luthier.tune(
        {
            "name": "tuned", "model": tiny_encoder, "method": "full", "objective": {"name": "lm_supervised", "temperature": 0.1},
            "train": {"epochs": 30, "batch_size": 3, "learning_rate": 3e-3, "warmup": 0},
        },
        splits=Splits(data(rows), nothing, nothing),
    )  # fmt: skip
    tuned = load_model(open_store(), made.model.name, dtype="fp32", device="cpu")
    tuned.module.eval()
    for row in rows:
        texts = [row["positive"], *row["negatives"]]
        cosines = [float(vector(tuned, row["anchor"]) @ vector(tuned, text)) for text in texts]
        assert cosines[-1] == max(cosines)
