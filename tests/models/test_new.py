from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.dataset import Dataset
from luthier.core.errors import ConflictError, InputError, UnsupportedError
from luthier.data.read import examples_from_rows
from luthier.models.adapters import inner_of
from luthier.models.load import load_model
from luthier.models.masked_head import masked_head
from luthier.models.new import SIZES, NewModel, new
from luthier.store.database import open_store
from luthier.store.lineage import lineage

SMALL: dict[str, Any] = {"layers": 2, "width": 32, "heads": 4, "context_length": 64}
TRAIN = {"train": {"vocabulary": 300}}


@pytest.fixture
def texts() -> Dataset:
    said = ["The parcel has not arrived.", "Please refund the deposit for the violin.", "Who is the teacher now? 12:30"]
    return examples_from_rows((("t.jsonl", n, {"text": text}) for n, text in enumerate(said, 1)), name="t")


def test_a_llama_by_hand(home: Path, texts: Dataset) -> None:
    record = new(
        "mine", data=texts, architecture="llama", kv_heads=2, inner=48, rope_theta=5e4, tokenizer=TRAIN, **SMALL
    )
    model = load_model(open_store(), record, dtype="fp32")
    inner, vocabulary = inner_of(model), len(model.tokenizer)
    block = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48 + 2 * 32  # q, k and v, o, gate and up and down, two norms
    assert record.meta["without_embeddings"] == 2 * block + 32
    assert record.meta["parameters"] == 2 * block + 32 + vocabulary * 32 == sum(p.numel() for p in inner.parameters())
    assert (record.kind, record.architecture, model.context_length) == ("base", "decoder", 64)
    assert inner.config.rope_parameters["rope_theta"] == 5e4 and inner.config.num_key_value_heads == 2
    assert inner.config.hidden_act == "silu" and inner.lm_head.weight is inner.model.embed_tokens.weight
    assert model.renderer is not None and model.renderer.stop_ids == {0, 2}  # the end of a document, the end of a turn


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_random_weights_begin_as_their_paper_says(home: Path, texts: Dataset, architecture: str) -> None:
    shape = {"layers": 8, "width": 128, "heads": 4, "context_length": 64}
    record = new(data=texts, architecture=architecture, tokenizer=TRAIN, seed=3, **shape)
    body = inner_of(load_model(open_store(), record, dtype="fp32"))
    residual = ("o_proj.weight", "down_proj.weight", "c_proj.weight")
    for name, parameter in body.named_parameters():
        if parameter.ndim == 1:  # norms scale by one; a bias is nothing
            expected = 1.0 if "norm" in name.lower() or "ln_" in name else 0.0
            assert torch.all(parameter == (0.0 if name.endswith("bias") else expected)), name
            continue
        std = 0.02 / math.sqrt(2 * 8) if name.endswith(residual) else 0.02
        table = parameter[1:] if "word_embeddings" in name else parameter  # BERT's [PAD] is zero
        table = table[torch.arange(len(table)) != 3] if "embed_tokens" in name else table  # so is the decoder's
        assert abs(float(table.detach().std()) / std - 1) < 0.12, name
    again = new(data=texts, architecture=architecture, tokenizer=TRAIN, seed=3, **shape)
    other = new(data=texts, architecture=architecture, tokenizer=TRAIN, seed=4, **shape)
    assert again == record and other.name != record.name and other.digest != record.digest


def test_the_same_work_gives_the_same_bytes(home: Path, texts: Dataset, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    first, second = (
        new("mine", data=texts, store=open_store(tmp_path / place), architecture="gpt2", tokenizer=TRAIN, **SMALL)
        for place in ("a", "b")
    )
    assert first.digest == second.digest
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's own random numbers go on


def test_bert_has_its_language_model_head(home: Path, texts: Dataset) -> None:
    record = new(data=texts, architecture="bert", tokenizer=TRAIN, **SMALL)
    model = load_model(open_store(), record, dtype="fp32", labels=("a", "b"))
    assert (model.architecture, model.labels, model.context_length) == ("encoder", ("a", "b"), 64)
    assert masked_head(model).own


def test_the_tokenizer_of_a_stored_model(tiny_decoder: str, tiny_encoder: str) -> None:
    store = open_store()
    record = new(architecture="gpt2", tokenizer=tiny_decoder, **SMALL)
    made, old = load_model(store, record, dtype="fp32"), load_model(store, tiny_decoder, dtype="fp32")
    assert made.tokenizer.get_vocab() == old.tokenizer.get_vocab()
    assert made.renderer is not None and old.renderer is not None
    assert made.renderer.template == old.renderer.template and 2 in made.renderer.stop_ids
    graph = lineage(record.name, store=store)
    assert [(e.source.id, e.relation, e.target.id) for e in graph.edges] == [
        (tiny_decoder, "tokenizer of", record.name)
    ]
    with pytest.raises(UnsupportedError, match="bert cannot take the tokenizer of tiny-decoder: it has no mask token"):
        new(architecture="bert", tokenizer=tiny_decoder, **SMALL)
    with pytest.raises(UnsupportedError, match="llama cannot take the tokenizer of tiny-encoder: it has no eos token"):
        new(architecture="llama", tokenizer=tiny_encoder, **SMALL)
    with pytest.raises(InputError, match=r"vocabulary must be at least the tokenizer's \d+ tokens; got 100"):
        new(architecture="llama", tokenizer=tiny_decoder, vocabulary=100, **SMALL)
    wide = new(architecture="llama", tokenizer=tiny_decoder, vocabulary=512, **SMALL)
    assert inner_of(load_model(store, wide)).config.vocab_size == 512


def test_a_taken_name(tiny_decoder: str) -> None:
    new("mine", architecture="llama", tokenizer=tiny_decoder, **SMALL)
    with pytest.raises(ConflictError, match="'mine' is taken by another base"):
        new("mine", architecture="llama", tokenizer=tiny_decoder, **(SMALL | {"layers": 1}))
    with pytest.raises(ConflictError, match="'tiny-decoder' is taken"):
        new(tiny_decoder, architecture="llama", tokenizer=tiny_decoder, **SMALL)


@pytest.mark.parametrize(
    "shape, message",
    [
        ({"architecture": "llama"}, r"new: give size \(1m, .*\), or layers, width and heads"),
        ({"architecture": "llama", **SMALL, "heads": 5}, "heads must divide width, 32; got 5"),
        ({"architecture": "llama", **SMALL, "kv_heads": 3}, "kv_heads must divide heads, 4; got 3"),
        (
            {"architecture": "llama", **SMALL, "heads": 32},
            "width / heads must be even, for rotary positions; got 32 / 32 = 1",
        ),
        ({"architecture": "gpt2", **SMALL, "kv_heads": 2}, "kv_heads is for architecture llama; gpt2 has none"),
        ({"architecture": "bert", **SMALL, "rope_theta": 1e4}, "rope_theta is for architecture llama"),
        (
            {"architecture": "llama", **SMALL, "context_length": 8},
            "context_length: .*greater than or equal to 16; got 8",
        ),
        ({"architecture": "lama", **SMALL}, "architecture: .*'llama', 'gpt2' or 'bert'; got 'lama'"),
        ({"architecture": "llama", **SMALL, "width_": 3}, "unknown key 'width_'. Did you mean 'width'"),
        (
            {"architecture": "llama", **SMALL, "tokenizer": {}},
            "tokenizer: must be the name of a stored model, or {train",
        ),
        (
            {"architecture": "llama", **SMALL, "tokenizer": {"train": {"lowercase": True}}},
            "lowercase is for architecture bert",
        ),
        ({"architecture": "llama", **SMALL}, "needs a tokenizer: name a stored model"),
        ({"architecture": "llama", **SMALL, "name": "a b"}, "model name must be"),
    ],
)
def test_shapes_that_cannot_be(home: Path, shape: dict[str, Any], message: str) -> None:
    if "name" in shape:
        shape = {**shape, "data": examples_from_rows([("f", 1, {"text": "some text"})], name="d")}
    with pytest.raises(InputError, match=message):
        new(**shape)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_about_what_they_say(size: str) -> None:
    shape = NewModel.model_validate({"architecture": "gpt2", "size": size}).shape()
    said = float(size.removesuffix("m")) * 1e6
    assert 0.75 < 12 * shape["layers"] * shape["width"] ** 2 / said < 1.25
    assert NewModel.model_validate({"architecture": "llama", "size": size, "layers": 3}).shape()["layers"] == 3
