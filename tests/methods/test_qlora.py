"""QLoRA: 4 bits against the paper's levels worked out here, and the same base in training and in answering."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.tiny import each_linear

from luthier.core.errors import InputError, MismatchError, MissingExtraError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.methods._targets import linear_layers
from luthier.methods.qlora import Config, build, quantization
from luthier.models.attach import attach, load_base, read_manifest, save_trained
from luthier.models.load import LoadedModel, load_model
from luthier.models.merge import merge
from luthier.models.quantize import Quantization, quantized_layers
from luthier.store.artifacts import path_of, put, staged
from luthier.store.database import open_store
from luthier.store.models import register

COUNTS = each_linear(lambda i, o: 8 * (i + o))
IDS = torch.tensor([[5, 9, 30, 7], [8, 6, 40, 11]])


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")


def trained(model: LoadedModel, config: Config, name: str) -> ModelRecord:
    """A stored adapter whose B is not zero."""
    torch.manual_seed(0)
    built = build(model, config)
    for parameter in built.module.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    store = open_store()
    with staged(store) as folder:
        save_trained(built, folder, {"saves": "adapter"})
        digest, size = put(store, folder)
    return register(store, ModelRecord(name, "adapter", model.architecture, digest, size, base=model.base.name))


def test_each_target_computes_dequantized_w_x_plus_scaled_b_a_x(model: LoadedModel) -> None:
    """Equation 5, and its gradient, which goes through the dequantized weights and stops there."""
    layer = build(model, Config(rank=4, alpha=10)).module.base_model.model.model.layers[1].mlp.down_proj
    a, b, base = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.base_layer
    assert torch.count_nonzero(b) == 0
    torch.nn.init.normal_(b)
    x = torch.randn(2, 5, base.in_features, requires_grad=True)
    got = layer(x)
    expected = x @ base.dequantized().T + 10 / 4 * (x @ a.T) @ b.T
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(got)
    ours = torch.autograd.grad((got * weights).sum(), [x, a, b])
    theirs = torch.autograd.grad((expected * weights).sum(), [x, a, b])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert not base.weight.requires_grad


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["tiny_decoder", "tiny_gpt2", "tiny_encoder", "tiny_t5"])
def test_the_base_that_answers_is_the_one_that_was_trained_on_to_the_bit(
    name: str, dtype: str, home: Path, request: pytest.FixtureRequest
) -> None:
    store = open_store()
    model = load_model(store, request.getfixturevalue(name), dtype="fp32", device="cpu")
    config = Config(quantization="nf4", blocksize=128)
    record = trained(model, config, "tuned")
    assert read_manifest(path_of(store, record.digest))["quantization"] == {
        "kind": "nf4",
        "double": True,
        "blocksize": 128,
    }
    for again in (
        load_model(store, record, dtype=dtype, device="cpu"),
        load_base(store, model.base, dtype=dtype, device="cpu", quantization=quantization(config)),
    ):
        assert again.quantization == quantization(config)
        ours, theirs = (dict(quantized_layers(each.module)) for each in (model, again))
        assert len(ours) == len(theirs) > 0
        for one, other in zip(ours.values(), theirs.values(), strict=True):
            assert torch.equal(one.weight, other.weight) and torch.equal(one.state.absmax, other.state.absmax)
            assert torch.equal(one.dequantized(), other.dequantized())
            assert one.bias is None or other.bias.dtype == again.dtype


def test_an_adapter_is_refused_on_a_base_that_is_held_in_another_way(model: LoadedModel) -> None:
    store = open_store()
    on_nf4 = trained(model, Config(), "on-nf4")
    plain = load_model(store, model.base, dtype="fp32", device="cpu")
    with pytest.raises(MismatchError, match=r"on-nf4 was trained on .*nf4.*plain weights"):
        attach(plain, on_nf4, "on-nf4", store=store)
    fp4 = load_base(store, model.base, dtype="fp32", device="cpu", quantization=Quantization("fp4"))
    with pytest.raises(MismatchError, match=r"nf4.*fp4"):
        attach(fp4, on_nf4, "on-nf4", store=store)
    with pytest.raises(MismatchError, match="method qlora"):
        build(fp4, Config())


@pytest.mark.parametrize("name", ["tiny_decoder", "tiny_gpt2", "tiny_encoder", "tiny_t5"])
def test_merged_into_plain_weights_of_the_models_own_kind(
    name: str, home: Path, request: pytest.FixtureRequest
) -> None:
    store = open_store()
    model = load_model(store, request.getfixturevalue(name), dtype="fp32", device="cpu")
    plain = {type(layer) for layer in model.module.modules()}
    record = trained(model, Config(), "tuned")
    ids = {"input_ids": IDS} | ({"decoder_input_ids": IDS} if name == "tiny_t5" else {})

    def said(loaded: LoadedModel) -> torch.Tensor:
        inner = loaded.module.body if loaded.architecture == "encoder" else loaded.module
        with torch.no_grad():
            return inner.eval()(**ids)[0]

    loaded = load_model(store, record, dtype="fp32", device="cpu")
    expected = said(loaded)
    merged = merge(loaded)
    assert merged.quantization is None and {type(layer) for layer in merged.module.modules()} == plain
    torch.testing.assert_close(said(merged), expected, rtol=1e-5, atol=1e-5)


def test_the_engine_answers_on_the_quantized_base_beside_the_plain_one(model: LoadedModel) -> None:
    from luthier.core.engine import ScoreRequest
    from luthier.core.message import user
    from luthier.engines._target import EngineTarget
    from luthier.engines.torch import Config as EngineConfig
    from luthier.engines.torch import open as open_engine

    store, shared = open_store(), {}
    base, record = model.base, trained(model, Config(), "tuned")
    options = EngineConfig(dtype="fp32", device="cpu")
    engines = [open_engine(EngineTarget(each.name, each, base, store, shared), options) for each in (base, record)]
    asked = [ScoreRequest(user("refund"), (" yes", " no"))]
    plain, tuned = (engine.score(asked)[0] for engine in engines)
    assert len(shared) == 2 and plain != tuned
    alone = load_model(store, record, dtype="fp32", device="cpu")
    prompt = alone.renderer.prompt_ids_batch([user("refund")])[0]
    assert engines[1].info.base_digest == base.digest
    from luthier.models.score import Row, packed_log_probs

    tails = [alone.renderer.continuation_ids(text, ends_turn=True) for text in (" yes", " no")]
    with torch.no_grad():
        (expected,) = packed_log_probs(alone.module, [Row(prompt, tails)], alone.device)
    torch.testing.assert_close(torch.tensor([s.logprob for s in tuned]), expected, rtol=1e-4, atol=1e-4)
    for engine in engines:
        engine.close()


def test_tuned_from_a_run_and_predicted_with_the_bytes_it_takes(model: LoadedModel) -> None:
    from luthier.models.shapes import load_shapes, parameter_counts
    from luthier.training.cost import shape_of

    plain = parameter_counts(model)[1]
    linear = sum(i * o for i, o in linear_layers(model.module).values())
    sketch = load_shapes(open_store(), model.base)
    for each in (model, sketch):
        before = shape_of(each)
        found = shape_of(build(each, Config(rank=4)))
        assert found.parameters == plain + found.trainable == parameter_counts(each)[1]
        others = found.parameters - linear
        assert found.weight_bytes == pytest.approx(others * each.dtype.itemsize + linear * Quantization().bits / 8)
        assert found.weights_mb < before.weights_mb


def test_on_top_of_a_tuned_model_the_merged_base_is_quantized_again_in_the_same_way(model: LoadedModel) -> None:
    from luthier.methods.lora import Config as LoraConfig
    from luthier.methods.lora import build as build_lora

    store = open_store()
    first = build_lora(model, LoraConfig(rank=4))
    torch.manual_seed(5)
    for parameter in first.module.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    with staged(store) as folder:
        save_trained(first, folder, {"saves": "adapter"})
        digest, size = put(store, folder)
    record = register(store, ModelRecord("first", "adapter", "decoder", digest, size, base=model.base.name))
    below = load_base(store, record, dtype="fp32", device="cpu")
    second = trained(below, Config(), "second")
    again = load_model(store, second, dtype="fp32", device="cpu")
    ours, theirs = (dict(quantized_layers(each.module)) for each in (below, again))
    assert len(ours) == len(theirs) == 14
    for one, other in zip(ours.values(), theirs.values(), strict=True):
        assert torch.equal(one.weight, other.weight) and torch.equal(one.dequantized(), other.dequantized())
    plain = dict(quantized_layers(load_base(store, model.base, dtype="fp32", quantization=Quantization()).module))
    assert not all(torch.equal(a.weight, b.weight) for a, b in zip(plain.values(), theirs.values(), strict=True))


def test_inspected_and_merged_from_the_store(model: LoadedModel) -> None:
    from luthier.models.combine import combine, merge_into_base
    from luthier.models.inspect_adapter import inspect_adapter

    store = open_store()
    trained(model, Config(), "tuned")
    found = {part.name: part for part in inspect_adapter(store, "tuned").parts}
    layer = model.module.model.layers[0].mlp.up_proj  # wrapped in place
    update = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    part = found["model.layers.0.mlp.up_proj"]
    assert part.update == pytest.approx(float(update.detach().norm()), rel=1e-4)
    assert part.weight == pytest.approx(float(layer.base_layer.dequantized().norm()), rel=1e-4)
    made = load_model(store, merge_into_base(store, "tuned", "plain"), dtype="fp32", device="cpu")
    expected = merge(load_model(store, "tuned", dtype="fp32", device="cpu"))
    with torch.no_grad():
        torch.testing.assert_close(made.module(IDS).logits, expected.module(IDS).logits, rtol=1e-4, atol=1e-4)
    again = load_model(store, model.base, dtype="fp32", device="cpu")
    trained(again, Config(quantization="fp4"), "other")
    with pytest.raises(MismatchError, match="in different forms"):
        combine(store, ["tuned", "other"], "both")
    twin = load_model(store, model.base, dtype="fp32", device="cpu")
    trained(twin, Config(rank=4), "third")
    both = load_model(store, combine(store, ["tuned", "third"], "both"), dtype="fp32", device="cpu")
    assert both.quantization == Quantization()


def test_a_lora_gguf_is_refused(model: LoadedModel, tmp_path: Path) -> None:
    from luthier.models.export import fits_lora
    from luthier.models.gguf import refuse_beyond_lora

    store, record = open_store(), trained(model, Config(), "tuned")
    assert not fits_lora(store, record)
    with pytest.raises(UnsupportedError, match="trained on it in nf4"):
        refuse_beyond_lora(path_of(store, record.digest))


def test_without_bitsandbytes_the_error_says_what_to_install(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("bitsandbytes"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtraError) as error:
        build(model, Config())
    assert error.value.hint == "pip install 'luthier[qlora]'"
    assert not list(quantized_layers(model.module))


def test_bounds(model: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"method\.rank must be at most 16"):
        build(model, Config(rank=17))
    with pytest.raises(InputError, match=r"got 'k_porj'.*Did you mean 'k_proj'"):
        build(model, Config(targets=["k_porj"]))
    assert not list(quantized_layers(model.module))
    with pytest.raises(UnsupportedError, match="int3"):
        Quantization.from_dict({"kind": "int3", "double": True, "blocksize": 64})


def test_the_manifest_of_another_method_says_nothing_of_it(model: LoadedModel, tmp_path: Path) -> None:
    from luthier.methods.lora import Config as LoraConfig
    from luthier.methods.lora import build as build_lora

    save_trained(build_lora(model, LoraConfig()), tmp_path / "lora", {"saves": "adapter"})
    assert "quantization" not in json.loads((tmp_path / "lora" / "luthier.json").read_text())
