"""Embedders against the equations, worked out row by row on separate plain forwards."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import luthier
from luthier.core.dataset import Dataset
from luthier.core.errors import DataError, InputError, UnsupportedError
from luthier.core.task import PromptTemplate
from luthier.data.read import examples_from_rows, write
from luthier.engines._open import open_engine
from luthier.models import embed
from luthier.models.embed import pooled
from luthier.models.load import LoadedModel, load_model
from luthier.objectives._rows import Limits
from luthier.objectives.similarity import Config, Row, collate, loss, prepare
from luthier.store.database import open_store
from luthier.training import checkpoint
from luthier.training.config import TrainConfig
from luthier.training.interrupt import Halt
from luthier.training.loop import train
from luthier.training.work import Work, mean_loss

PAIRS: list[dict[str, Any]] = [
    {
        "anchor": "refund the deposit",
        "positive": "billing refund deposit",
        "negative": "the violin lesson was cancelled",
    },
    {"anchor": "where is the parcel", "positive": "delivery courier parcel", "negative": "billing refund"},
    {"anchor": "who is the teacher", "positive": "lessons teacher violin", "negative": "account password"},
    {"anchor": "I cannot sign in", "positive": "account password code", "negative": "delivery courier parcel"},
    {"anchor": "我的包裹", "positive": "请帮我查一下。", "negative": "我的包裹还没有到,请帮我查一下。"},
]
SCORED: list[dict[str, Any]] = [
    {"sentence1": "refund the deposit", "sentence2": "refund the violin", "score": 4},
    {"sentence1": "where is the parcel", "sentence2": "the parcel has not arrived", "score": 3},
    {"sentence1": "where is the parcel", "sentence2": "who is the teacher", "score": 0.5},
    {"sentence1": "my password", "sentence2": "the code never comes and the courier does not answer", "score": 3},
]


def data(rows: list[dict[str, Any]]) -> Dataset:
    return examples_from_rows((("pairs.jsonl", n, row) for n, row in enumerate(rows, 1)), name="pairs")


def named(name: str) -> LoadedModel:
    model = load_model(open_store(), name, dtype="fp32", device="cpu")
    model.module.eval()
    return model


def rows_of(model: LoadedModel, rows: list[dict[str, Any]], config: Config | None = None) -> list[Row]:
    found: list[Row] = prepare(data(rows), model, PromptTemplate(), config or Config(), Limits(model.context_length))
    return found


def vector(model: LoadedModel, text: str) -> torch.Tensor:
    """The unit vector of one text from one plain forward of the Hugging Face module."""
    if model.architecture == "encoder":
        inputs = model.tokenizer(text, return_tensors="pt")
        hidden = model.module.body(**{k: inputs[k] for k in ("input_ids", "attention_mask")}).last_hidden_state
    elif model.architecture == "decoder":
        ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
        hidden = model.module.get_decoder()(input_ids=ids).last_hidden_state
    else:
        hidden = model.module.get_encoder()(input_ids=model.tokenizer(text, return_tensors="pt")["input_ids"])[0]
    return F.normalize(hidden[0].mean(0), dim=0)


@pytest.fixture(params=["tiny_encoder", "tiny_decoder", "tiny_t5"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return named(request.getfixturevalue(request.param))


@pytest.fixture
def encoder(tiny_encoder: str) -> LoadedModel:
    return named(tiny_encoder)


def ranking(vectors: Any, rows: list[dict[str, Any]], scale: float, *, symmetric: bool) -> torch.Tensor:
    """The equation of the module, a row at a time; no text here is right for two anchors."""
    candidates = dict.fromkeys(text for row in rows for text in (row["positive"], row["negative"]))
    terms = []
    for row in rows:
        every = [math.e ** (scale * (vectors(row["anchor"]) @ vectors(text))) for text in candidates]
        terms.append(-torch.log(math.e ** (scale * (vectors(row["anchor"]) @ vectors(row["positive"]))) / sum(every)))
        if symmetric:
            back = [math.e ** (scale * (vectors(other["anchor"]) @ vectors(row["positive"]))) for other in rows]
            own = math.e ** (scale * (vectors(row["anchor"]) @ vectors(row["positive"])))
            terms.append(-torch.log(own / sum(back)))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("max_tokens", [4096, 24, 1])
def test_in_batch_negatives_and_their_gradients_whatever_the_budget(
    model: LoadedModel, symmetric: bool, max_tokens: int
) -> None:
    model.module.requires_grad_(True)
    expected = ranking(lambda text: vector(model, text), PAIRS, 20.0, symmetric=symmetric)
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in model.module.named_parameters() if p.grad is not None}
    model.module.zero_grad()
    config = Config(symmetric=symmetric)
    found = loss(model, collate(rows_of(model, PAIRS), model, max_tokens), config)
    found.value.backward()
    assert found.count == len(PAIRS)
    torch.testing.assert_close(found.value, expected, rtol=1e-6, atol=1e-6)
    assert wanted
    for name, parameter in model.module.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-5)


def test_all_forwards_but_the_last_are_made_again(encoder: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the activations of one at a time are in memory."""
    calls: list[int] = []
    monkeypatch.setattr(embed, "pooled", lambda model, rows: (calls.append(len(rows)), pooled(model, rows))[1])
    encoder.module.requires_grad_(True)
    batch = collate(rows_of(encoder, PAIRS), encoder, 24)
    value = loss(encoder, batch, Config()).value
    made = list(calls)
    assert len(made) > 3 and sum(made) == len(batch.texts)
    value.backward()
    assert sorted(calls[len(made) :]) == sorted(made[:-1])
    with torch.no_grad():
        calls.clear()
        loss(encoder, batch, Config())
    assert calls == made


def test_accuracy_is_how_often_the_positive_is_nearest(encoder: LoadedModel) -> None:
    candidates = list(dict.fromkeys(text for row in PAIRS for text in (row["positive"], row["negative"])))
    with torch.no_grad():
        nearest = [
            max(candidates, key=lambda text: float(vector(encoder, row["anchor"]) @ vector(encoder, text)))
            for row in PAIRS
        ]
        found = loss(encoder, collate(rows_of(encoder, PAIRS), encoder, 64), Config())
    right = sum(text == row["positive"] for text, row in zip(nearest, PAIRS, strict=True))
    assert found.metrics["accuracy"] == pytest.approx(right / len(PAIRS))
    assert 0 < right < len(PAIRS)


@pytest.mark.parametrize("max_tokens", [4096, 16])
def test_cosent(model: LoadedModel, max_tokens: int) -> None:
    cosines = [vector(model, row["sentence1"]) @ vector(model, row["sentence2"]) for row in SCORED]
    inside: Any = 1.0
    for i, one in enumerate(SCORED):
        for j, other in enumerate(SCORED):
            if one["score"] > other["score"]:
                inside = inside + math.e ** (7.0 * (cosines[j] - cosines[i]))
    found = loss(model, collate(rows_of(model, SCORED), model, max_tokens), Config(scale=7.0))
    torch.testing.assert_close(found.value, torch.log(inside), rtol=1e-6, atol=1e-6)
    ordered = [
        bool(cosines[i] > cosines[j]) for i in range(4) for j in range(4) if SCORED[i]["score"] > SCORED[j]["score"]
    ]
    assert found.metrics["ordered"] == pytest.approx(sum(ordered) / len(ordered))


def test_scores_in_any_unit_give_one_loss(encoder: LoadedModel) -> None:
    other = [row | {"score": row["score"] * 10 - 3} for row in SCORED]
    values = [loss(encoder, collate(rows_of(encoder, rows), encoder, 64), Config()).value for rows in (SCORED, other)]
    assert torch.equal(values[0], values[1])


def test_what_is_right_for_an_anchor_is_never_its_negative(encoder: LoadedModel) -> None:
    rows = rows_of(
        encoder,
        [
            {"anchor": "a", "positive": ["p", "r"]},
            {"anchor": "a", "positive": "q"},
            {"anchor": "b", "positive": "p", "negative": "a"},
            {"anchor": "p", "positive": "s"},
        ],
    )
    assert [row.source for row in rows] == [
        "pairs.jsonl:1",
        "pairs.jsonl:1",
        "pairs.jsonl:2",
        "pairs.jsonl:3",
        "pairs.jsonl:4",
    ]
    batch = collate(rows, encoder, 64)
    # candidates in order: p r q a s; anchors: a b p. Rows: (a, p) (a, r) (a, q) (b, p) (p, s)
    assert batch.allowed.int().tolist() == [
        [1, 0, 0, 0, 1],  # of anchor a neither r nor q, which are right too, nor a itself
        [0, 1, 0, 0, 1],
        [0, 0, 1, 0, 1],
        [1, 1, 1, 1, 1],
        [0, 1, 1, 1, 1],  # anchor p is not its own negative
    ]
    assert batch.allowed_back.int().tolist() == [
        [1, 0, 0],  # positive p: anchor b has it too, and anchor p is that text
        [1, 1, 1],
        [1, 1, 1],
        [0, 1, 0],
        [1, 1, 1],
    ]
    assert len(batch.texts) == 3 + 5  # each text once, and a text apart where it is asked and where it is found


def test_a_positive_equal_to_its_anchor_gets_its_own_dropout(encoder: LoadedModel) -> None:
    """Unsupervised SimCSE (Gao et al. 2021): the two views of a text differ by dropout alone."""
    batch = collate(rows_of(encoder, [{"anchor": t, "positive": t} for t in ("one", "two", "three")]), encoder, 64)
    assert loss(encoder, batch, Config()).metrics["accuracy"] == 1.0
    still = float(loss(encoder, batch, Config()).value.detach())
    encoder.module.requires_grad_(True).train()
    torch.manual_seed(0)
    assert abs(float(loss(encoder, batch, Config()).value.detach()) - still) > 1e-4


def test_dropout_of_the_second_forward_is_that_of_the_first(
    encoder: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder.module.requires_grad_(True).train()
    batch = collate(rows_of(encoder, PAIRS), encoder, 24)
    gradients = []
    for again in (True, False):
        if not again:  # everything kept, nothing computed again
            monkeypatch.setattr(embed, "checkpoint", lambda f, *args, use_reentrant: f(*args))
        torch.manual_seed(3)
        encoder.module.zero_grad()
        loss(encoder, batch, Config()).value.backward()
        gradients.append([p.grad.clone() for p in encoder.module.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"anchor": "a", "positive": "p"}, {"anchor": "b", "positive": "p"}], "the same positive and no negative"),
        ([{"anchor": "a", "positive": "p", "negative": "a"}], r"pairs\.jsonl:1: the negative 'a' is the anchor itself"),
        (
            [{"anchor": "a", "positive": "p"}, {"anchor": "a", "positive": "q", "negative": "p"}],
            r"pairs\.jsonl:2: the negative 'p' is a positive of the same anchor in another row",
        ),
        ([{"sentence1": "a", "sentence2": "b", "score": 1}] * 2, "every row has the score 1; there is no order"),
        (
            [{"anchor": "a", "positive": "violin " * 200}, {"anchor": "b", "positive": "q"}],
            r"pairs\.jsonl:1: \d+ tokens",
        ),
    ],
)
def test_data_that_teaches_nothing_is_refused(encoder: LoadedModel, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(encoder, rows)


def test_other_kinds_and_a_side_that_scored_texts_do_not_have(encoder: LoadedModel) -> None:
    with pytest.raises(UnsupportedError, match="needs data of kind pairs or similarity; pairs is text"):
        rows_of(encoder, [{"text": "a"}])
    with pytest.raises(InputError, match=r"objective\.symmetric is for pairs"):
        rows_of(encoder, SCORED, Config(symmetric=True))


def test_overlong_texts_are_cut_as_the_engine_cuts_them(model: LoadedModel) -> None:
    limits = Limits(model.context_length, "truncate")
    long = "violin parcel " * 400
    rows = prepare(data([{"anchor": "a", "positive": long}, PAIRS[0]]), model, PromptTemplate(), Config(), limits)
    assert limits.truncated == ["pairs.jsonl:1"]
    ids = rows[0].candidates[0].ids
    assert len(ids) == model.context_length - (model.architecture == "decoder")
    if model.architecture != "decoder":
        assert ids[-1] == rows[0].anchor.ids[-1]  # the token that closes a text
    engine = open_engine(open_store(), model.record.name, "torch", {"dtype": "fp32"})
    with torch.no_grad():
        mine = F.normalize(pooled(model, [ids]))[0].numpy()
    if model.architecture == "encoder":  # the others' engines refuse such a text
        np.testing.assert_allclose(mine, engine.embed([long])[0], atol=1e-6)
    np.testing.assert_allclose(
        vector(model, "who is the teacher").detach().numpy(), engine.embed(["who is the teacher"])[0], atol=1e-6
    )
    engine.close()


def work_of(model: LoadedModel, rows: list[dict[str, Any]], max_tokens: int) -> Work:
    return Work(rows_of(model, rows), lambda r: collate(r, model, max_tokens), lambda b: loss(model, b, Config()), True)


def test_the_loop_gives_whole_steps(encoder: LoadedModel, tmp_path: Path) -> None:
    """The same weights whatever the budget of a forward: without dropout the sums differ by rounding alone."""
    ends = []
    for number, max_tokens in enumerate((4096, 10)):
        model = named(encoder.record.name)
        for module in model.module.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.module.body.config.attention_probs_dropout_prob = 0.0
        for layer in model.module.body.encoder.layer:
            layer.attention.self.dropout.p = 0.0
        model.module.requires_grad_(True)
        config = TrainConfig(
            epochs=3, batch_size=3, max_tokens_per_batch=max_tokens, learning_rate=1e-3, schedule="constant"
        )
        records: list[Any] = []
        train(
            model.module,
            work_of(model, PAIRS, max_tokens),
            config,
            folder=tmp_path / str(number),
            metrics=records.append,
        )
        ends.append((model.module.state_dict(), [r["loss"] for r in records]))
    assert len(ends[0][1]) == 6  # steps of 3 and 2 rows
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-4)
    for name, tensor in ends[0][0].items():
        torch.testing.assert_close(tensor, ends[1][0][name], rtol=1e-3, atol=1e-4)


def test_validation_is_the_same_whatever_the_budget(encoder: LoadedModel) -> None:
    found = [mean_loss(work_of(encoder, PAIRS, most), max_tokens=most) for most in (4096, 1)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_resume_is_bit_equal(encoder: LoadedModel, tmp_path: Path) -> None:
    def run(model: LoadedModel, folder: Path, stop_at: int = 0) -> None:
        model.module.requires_grad_(True)

        def watch(record: Any) -> None:
            if record["step"] == stop_at:
                raise Halt("enough")

        config = TrainConfig(epochs=4, batch_size=2, max_tokens_per_batch=16, learning_rate=1e-3, checkpoint_every=2)
        train(
            model.module,
            work_of(model, PAIRS, 16),
            config,
            folder=folder,
            metrics=watch,
            resume=checkpoint.latest(folder),
        )

    whole, parts = named(encoder.record.name), named(encoder.record.name)
    run(whole, tmp_path / "whole")
    with pytest.raises(Halt):
        run(parts, tmp_path / "parts", stop_at=5)
    again = named(encoder.record.name)
    run(again, tmp_path / "parts")
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name]), name


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("fixture", ["tiny_encoder", "tiny_decoder", "tiny_t5"])
def test_a_tuned_embedder_answers_through_the_engine(
    request: pytest.FixtureRequest, fixture: str, method: str, tmp_path: Path
) -> None:
    base = request.getfixturevalue(fixture)
    rows = data(PAIRS)
    path = tmp_path / "pairs.jsonl"
    write(rows, path)
    result = luthier.tune(
        {
            "name": "tuned",
            "model": base,
            "data": {"train": str(path)},
            "method": method,
            "train": {
                "epochs": 30,
                "batch_size": 5,
                "max_tokens_per_batch": 32,
                "learning_rate": 5e-3,
                "dtype": "fp32",
            },
        }
    )
    assert result.model.meta["objective"] == "similarity"
    margins = []
    for name in (base, "tuned"):
        engine = open_engine(open_store(), name, "torch", {"dtype": "fp32"})
        anchors, candidates = (engine.embed([row[key] for row in PAIRS]) for key in ("anchor", "positive"))
        engine.close()
        np.testing.assert_allclose(np.linalg.norm(anchors, axis=1), 1.0, rtol=1e-5)
        cosines = anchors @ candidates.T
        margins.append(float((np.diag(cosines) - cosines.mean(1)).mean()))
    assert margins[1] > margins[0] + 0.05


def test_a_head_alone_is_no_embedder(tiny_encoder: str, tmp_path: Path) -> None:
    write(data(PAIRS), tmp_path / "pairs.jsonl")
    with pytest.raises(UnsupportedError, match="linear_probe trains a head alone"):
        luthier.tune(
            {"model": tiny_encoder, "data": {"train": str(tmp_path / "pairs.jsonl")}, "method": "linear_probe"}
        )
