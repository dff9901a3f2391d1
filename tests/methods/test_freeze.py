"""Freeze: which parameters are trained, and that what is frozen gets no gradient but passes it on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.methods.tiny import ATTENTION, FORWARD, HEAD, LAYERS, D, F, weights

from luthier.core.engine import Engine, ScoreRequest
from luthier.core.errors import InputError
from luthier.engines._open import open_many
from luthier.methods.freeze import Config, build
from luthier.models.load import LoadedModel, load_model
from luthier.store.database import open_store
from luthier.training.tune import tune

COUNTS = {  # a quarter of the blocks, rounded up: one, and of a T5 one in each stack
    "llama": (weights(ATTENTION["llama"]) + weights(FORWARD["llama"])) // LAYERS + 2 * D,
    "gpt2": (weights(ATTENTION["gpt2"]) + weights(FORWARD["gpt2"])) // LAYERS + (3 * D + D + F + D) + 2 * 2 * D,
    "bert": (weights(ATTENTION["bert"]) + weights(FORWARD["bert"])) // LAYERS
    + (4 * D + F + D)
    + 2 * 2 * D
    + HEAD["bert"],
    "t5": (weights(ATTENTION["t5"]) + weights(FORWARD["t5"])) // LAYERS + (2 + 3) * D,
}

BLOCK = {
    *(f"self_attn.{part}_proj.weight" for part in "qkvo"),
    *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
}


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")


def trained(model: LoadedModel) -> set[str]:
    return {name for name, p in model.module.named_parameters() if p.requires_grad}


def test_the_last_blocks(model: LoadedModel) -> None:
    last = {f"model.layers.1.{name}" for name in BLOCK}
    assert trained(build(model, Config())) == last  # a quarter of two, rounded up
    assert trained(build(model, Config(last=2))) == last | {f"model.layers.0.{name}" for name in BLOCK}


def test_parts_by_name_end_of_name_and_parameter(model: LoadedModel) -> None:
    found = trained(build(model, Config(parts=["model.norm", "mlp.up_proj", "layers.0.self_attn.q_proj.weight"])))
    assert found == {
        "model.norm.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.0.self_attn.q_proj.weight",
    }
    both = trained(build(model, Config(last=1, parts=["norm"])))
    assert both == {f"model.layers.1.{name}" for name in BLOCK} | {"model.norm.weight"}


def test_a_tied_table_is_found_under_both_names(model: LoadedModel) -> None:
    for part in ("lm_head", "embed_tokens", "lm_head.weight"):
        assert trained(build(model, Config(parts=[part]))) == {"model.embed_tokens.weight"}
    assert model.module.lm_head.weight.requires_grad


def test_blocks_of_other_architectures(tiny_gpt2: str, tiny_encoder: str) -> None:
    store = open_store()
    gpt2 = build(load_model(store, tiny_gpt2, dtype="fp32"), Config())
    assert {name.rsplit(".h.", 1)[-1][:2] for name in trained(gpt2)} == {"1."}
    bert = build(load_model(store, tiny_encoder, dtype="fp32", labels=("a", "b")), Config())
    names = trained(bert)
    assert {"head.weight", "head.bias"} < names
    assert all(name.startswith(("head.", "body.encoder.layer.1.")) for name in names)


def test_the_last_blocks_of_both_stacks(tiny_t5: str) -> None:
    for last, blocks in ((None, {"1"}), (1, {"1"}), (2, {"0", "1"})):
        names = trained(build(load_model(open_store(), tiny_t5, dtype="fp32"), Config(last=last)))
        for stack in ("encoder", "decoder"):
            assert {name.split(".")[2] for name in names if name.startswith(f"{stack}.block.")} == blocks
        assert all(".block." in name for name in names)


def test_gradients_equal_those_of_full_training(model: LoadedModel) -> None:
    """Freezing what lies below or above does not change a trained parameter's gradient."""
    ids = torch.tensor([[5, 9, 30, 7]])
    model.module.requires_grad_(True)
    model.module(ids, labels=ids).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.module.named_parameters()}
    model.module.zero_grad()
    built = build(model, Config(parts=["layers.0.mlp"]))
    built.module(ids, labels=ids).loss.backward()
    for name, p in built.module.named_parameters():
        assert (p.grad is None) == (".0.mlp." not in name)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-6, atol=1e-8)


def test_more_blocks_than_there_are(model: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"method\.last must be at most 2, the number of blocks; got 3"):
        build(model, Config(last=3))


@pytest.mark.parametrize(
    ("part", "near"),
    [("up_porj", "Did you mean 'up_proj'"), ("", "got ''"), ("proj", "matches none"), ("layers.7", "got 'layers.7'")],
)
def test_a_part_that_matches_nothing_names_near_ones(model: LoadedModel, part: str, near: str) -> None:
    with pytest.raises(InputError, match=near):
        build(model, Config(parts=[part]))


def test_nothing_to_train(model: LoadedModel) -> None:
    with pytest.raises(InputError, match="trains nothing"):
        build(model, Config(last=0))


def test_tuned_served_and_tuned_on(tiny_decoder: str, tmp_path: Path) -> None:
    """Through the verbs: engines of one base answer as each does alone, and a delta is a base to tune on."""
    rows = [{"text": f"{word} {i}", "label": label} for i in range(4) for word, label in (("pay", "a"), ("van", "b"))]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = open_store()
    asked = [ScoreRequest("pay", ("a", "b")), ScoreRequest("van", ("a", "b"))]

    def tuned(base: str, method: str) -> str:
        values = {"epochs": 1, "learning_rate": 1e-2, "dtype": "fp32", "device": "cpu"}
        made = tune({"model": base, "data": {"path": str(data)}, "method": method, "train": values}, store=store).model
        assert made.base == base and made.meta["method"] == method
        return made.name

    def scores(engine: Engine) -> list[float]:
        return [score.logprob for row in engine.score(asked) for score in row]

    names = [tiny_decoder, *(tuned(tiny_decoder, method) for method in ("freeze", "layer_norm", "lora"))]
    names.append(tuned(names[1], "layer_norm"))
    together = open_many(store, names, "torch", {"dtype": "fp32"})
    found = {name: scores(engine) for name, engine in together.items()}
    assert len({tuple(each) for each in found.values()}) == len(names)
    for name in reversed(names):
        assert scores(together[name]) == pytest.approx(found[name], abs=1e-6)
        assert scores(open_many(store, [name], "torch", {"dtype": "fp32"})[name]) == pytest.approx(
            found[name], abs=1e-5
        )
