"""The torch engine on encoders."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import luthier
from luthier.core.engine import Engine, Reranker, Sampling, ScoreRequest
from luthier.core.errors import InputError, UnsupportedError
from luthier.core.message import Message, user
from luthier.core.model import ModelRecord
from luthier.engines._open import open_engine, open_many
from luthier.models import rerank
from luthier.models.attach import save_trained
from luthier.models.load import load_model
from luthier.models.rerank import load_reranker
from luthier.store.artifacts import put, staged
from luthier.store.database import open_store
from luthier.store.models import register

FP32 = {"dtype": "fp32", "device": "cpu"}
LABELS = ("billing", "delivery", "lessons")
TEXTS = ["Where is my parcel?", "refund " * 30, "My lesson was cancelled twice.", "ok"]


def make(base: str, name: str, seed: int, saves: str, labels: tuple[str, ...] = LABELS) -> None:
    store = open_store()
    model = load_model(store, base, dtype="fp32", labels=labels)
    torch.manual_seed(seed)
    if saves == "adapter":
        config = LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False)
        model.module.body = get_peft_model(model.module.body, config)
    torch.nn.init.normal_(model.module.head.weight)
    with staged(store) as folder:
        save_trained(model, folder, {"saves": saves})
        digest, size = put(store, folder)
    register(store, ModelRecord(name, "adapter", "encoder", digest, size, base=base))


def log_probs(name: str, text: str) -> list[float]:
    model = load_model(open_store(), name, dtype="fp32")
    ids = torch.tensor([model.tokenizer(text, truncation=True, max_length=128)["input_ids"]])
    with torch.no_grad():
        return model.module(ids, torch.ones_like(ids)).log_softmax(-1)[0].tolist()


@pytest.fixture
def family(tiny_encoder: str) -> dict[str, Engine]:
    make(tiny_encoder, "lora", 1, "adapter")
    make(tiny_encoder, "probe", 2, "head")
    make(tiny_encoder, "other", 3, "adapter", ("x", "y"))
    make(tiny_encoder, "full", 4, "weights")
    return open_many(open_store(), [tiny_encoder, "lora", "probe", "other", "full"], "torch", FP32)


@pytest.mark.parametrize("name", ["lora", "probe", "full"])
def test_scores_are_log_softmax_over_labels(family: dict[str, Engine], name: str) -> None:
    family["other"].score([ScoreRequest("warm", ("x",))])  # another head was selected before
    found = family[name].score([ScoreRequest(user(text), LABELS) for text in TEXTS])
    for text, scores in zip(TEXTS, found, strict=True):
        assert [s.logprob for s in scores] == pytest.approx(log_probs(name, text), abs=1e-4)
        assert sum(math.exp(s.logprob) for s in scores) == pytest.approx(1.0, abs=1e-5)
    for row in found:
        assert [one.greedy for one in row] == [one.logprob == max(each.logprob for each in row) for one in row]
    turned = family[name].score([ScoreRequest(TEXTS[0], LABELS[::-1])])
    assert [s.logprob for s in turned[0][::-1]] == pytest.approx([s.logprob for s in found[0]], abs=1e-5)


def test_the_answer_is_the_best_label(family: dict[str, Engine]) -> None:
    answers = family["lora"].generate([user(t) for t in TEXTS], Sampling())
    for text, answer in zip(TEXTS, answers, strict=True):
        expected = log_probs("lora", text)
        best = max(range(3), key=expected.__getitem__)
        assert (answer.text, answer.finish_reason) == (LABELS[best], "stop")
        assert answer.logprob == pytest.approx(expected[best], abs=1e-4)
    deltas = list(family["lora"].stream(user(TEXTS[0]), Sampling()))
    assert "".join(d.text for d in deltas) == answers[0].text == deltas[-1].generation.text  # type: ignore[union-attr]


def test_a_temperature_draws_labels(family: dict[str, Engine]) -> None:
    drawn = {family["lora"].generate([TEXTS[0]], Sampling(temperature=2.0, seed=s))[0].text for s in range(60)}
    assert drawn == set(LABELS)
    assert family["lora"].generate([TEXTS[0]], Sampling(stop=("l",)))[0].text in {"bi", "de", ""}


def test_what_chooses_among_labels_is_honoured_and_the_rest_is_named(
    family: dict[str, Engine], tiny_encoder: str
) -> None:
    name = next(name for name, engine in family.items() if engine.info.labels)
    engine = family[name]
    assert engine.info.parameters == {"top_k", "min_p"}
    likeliest = engine.generate(["refund"], Sampling())[0].text
    for sampling in (Sampling(temperature=2.0, top_k=1), Sampling(temperature=2.0, min_p=0.999)):
        assert {answer.text for answer in engine.generate(["refund"] * 40, sampling)} == {likeliest}
    for sampling, lacking in (
        (Sampling(repetition_penalty=1.2), "repetition_penalty"),
        (Sampling(logprobs=1), "logprobs"),
    ):
        with pytest.raises(UnsupportedError, match=lacking):
            engine.generate(["refund"], sampling)
    assert family[tiny_encoder].info.parameters == frozenset()


def test_only_labels_are_scored(family: dict[str, Engine]) -> None:
    with pytest.raises(InputError, match=r"got 'biling'. Did you mean 'billing'"):
        family["lora"].score([ScoreRequest("a", ("biling",))])


def test_the_prompt_is_the_last_user_turn(family: dict[str, Engine]) -> None:
    talk = (
        Message("system", "You sort."),
        Message("user", "hello"),
        Message("assistant", "hi"),
        Message("user", TEXTS[2]),
    )
    both = family["probe"].score([ScoreRequest(talk, LABELS), ScoreRequest(TEXTS[2], LABELS)])
    assert [s.logprob for s in both[0]] == pytest.approx([s.logprob for s in both[1]], abs=1e-6)


def test_a_bare_encoder_only_embeds(family: dict[str, Engine], tiny_encoder: str) -> None:
    bare = family[tiny_encoder]
    assert bare.info.capabilities == {"embed"}
    assert bare.info.labels == ()
    for call in (
        lambda: bare.generate(["a"], Sampling()),
        lambda: bare.stream("a", Sampling()),
        lambda: bare.score([ScoreRequest("a", ("b",))]),
    ):
        with pytest.raises(UnsupportedError, match="it can: embed"):
            call()


def test_vectors_are_unit_means_and_independent_of_the_batch(family: dict[str, Engine], tiny_encoder: str) -> None:
    vectors = family[tiny_encoder].embed(TEXTS)
    model = load_model(open_store(), tiny_encoder, dtype="fp32")
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            mean = model.module.body(input_ids=ids).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)
    small = open_engine(open_store(), tiny_encoder, "torch", {**FP32, "max_batch_tokens": 8})
    np.testing.assert_allclose(small.embed(TEXTS), vectors, atol=1e-5)
    np.testing.assert_allclose(family["probe"].embed(TEXTS), vectors, atol=1e-5)  # a probe leaves the body alone
    assert np.abs(family["lora"].embed(TEXTS) - vectors).max() > 1e-3


def test_long_texts_are_cut_at_the_context(family: dict[str, Engine], tiny_encoder: str) -> None:
    long, longer = "refund " * 200, "refund " * 400
    vectors = family[tiny_encoder].embed([long, longer])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert family["lora"].generate([longer], Sampling())[0].prompt_tokens == 128


def test_info(family: dict[str, Engine], tiny_encoder: str) -> None:
    info = family["lora"].info
    assert info.labels == LABELS
    assert info.capabilities == {"generate", "stream", "score", "embed"}
    assert info.base_digest == family[tiny_encoder].info.model_digest
    assert (info.template_digest, info.context_length) == ("", 128)
    assert family["other"].info.labels == ("x", "y")
    shared = {id(family[n]._base) for n in (tiny_encoder, "lora", "probe", "other")}  # type: ignore[attr-defined]
    assert len(shared) == 1


@pytest.mark.models
def test_the_real_encoder_knows_what_is_alike(real_home: Path) -> None:
    store = open_store(real_home)
    texts = ["A cat sits on the mat.", "The kitten is lying on a rug.", "Shares fell after the bank's report."]
    vectors = {
        d: open_engine(store, "minilm-l6", "torch", {"dtype": d, "device": "cpu"}).embed(texts)
        for d in ("bf16", "fp32")
    }
    alike = vectors["fp32"] @ vectors["fp32"].T
    assert alike[0, 1] > 0.5 > 0.2 > abs(alike[0, 2])
    assert (vectors["bf16"] * vectors["fp32"]).sum(1).min() > 0.999


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_reranker_scores_as_it_was_tuned(tiny_encoder: str, tmp_path: Path, method: str) -> None:
    """Through the engine (its base shared with another model) as through ``models.rerank``: the sigmoid of the same logits."""
    rows = [
        {"query": "refund the deposit", "pos": ["billing refund"], "neg": ["lesson", "where is the parcel"]},
        {"query": "where is the parcel", "pos": ["delivery courier parcel"], "neg": ["billing refund"]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    luthier.tune(
        {
            "name": "reranker", "model": tiny_encoder, "data": {"train": str(path)}, "method": method,
            "objective": {"name": "rank"}, "train": {"epochs": 2, "batch_size": 2, "dtype": "fp32"},
        }
    )  # fmt: skip
    documents = [f"document {number} {'parcel ' * (number % 9)}" for number in range(70)]
    logits = rerank.scores(
        load_reranker(open_store(), "reranker", dtype="fp32", device="cpu"), "where is it", documents
    )
    engines = open_many(open_store(), ["reranker", tiny_encoder], options=FP32)
    engine = engines["reranker"]
    try:
        assert engine.info.capabilities == {"embed", "rerank"}
        assert isinstance(engine, Reranker)
        engines[tiny_encoder].embed(["something else in between"])
        found = engine.rerank("where is it", documents)
        assert found == pytest.approx([1 / (1 + math.exp(-each)) for each in logits], abs=1e-5)
        with pytest.raises(InputError, match="query must not be empty"):
            engine.rerank(" ", documents)
        with pytest.raises(UnsupportedError, match="cannot rerank"):
            engines[tiny_encoder].rerank("where is it", documents)  # type: ignore[attr-defined]
    finally:
        for each in engines.values():
            each.close()
