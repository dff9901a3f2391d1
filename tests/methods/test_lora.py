"""LoRA against the paper's equation, and its bounds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tests.methods.tiny import each_linear

from luthier.core.catalog import load
from luthier.core.errors import DataError, InputError, LuthierError
from luthier.core.message import Message
from luthier.data.read import read
from luthier.methods._targets import linear_layers
from luthier.methods.lora import Config, build, trained_parameters
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel, load_model
from luthier.store.database import open_store

COUNTS = each_linear(lambda i, o: 8 * (i + o))


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")


@pytest.mark.parametrize("rslora", [False, True])
def test_each_target_computes_w_x_plus_scaled_b_a_x(model: LoadedModel, rslora: bool) -> None:
    config = Config(rank=4, alpha=10, rslora=rslora)
    layer = build(model, config).module.base_model.model.model.layers[0].mlp.down_proj
    base, a, b = layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert torch.count_nonzero(b) == 0
    with torch.no_grad():
        torch.nn.init.normal_(b)
        x = torch.randn(5, base.shape[1])
        scale = 10 / (math.sqrt(4) if rslora else 4)
        torch.testing.assert_close(layer(x), x @ base.T + scale * (x @ a.T) @ b.T, rtol=1e-5, atol=1e-5)


def test_parameter_count_is_rank_times_both_sides_of_every_linear_layer(model: LoadedModel) -> None:
    linear = [m for n, m in model.module.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    expected = sum(8 * (m.in_features + m.out_features) for m in linear)
    built = build(model, Config(rank=8)).module
    assert sum(p.numel() for p in built.parameters() if p.requires_grad) == expected
    assert len(linear) == 2 * 7


def test_targets_by_name_and_by_full_name(model: LoadedModel) -> None:
    built = build(model, Config(targets=["v_proj", "model.layers.1.mlp.up_proj"])).module
    found = {
        n.split(".lora_A")[0].removeprefix("base_model.model.model.")
        for n, _ in built.named_parameters()
        if "lora_A" in n
    }
    assert found == {"layers.0.self_attn.v_proj", "layers.1.self_attn.v_proj", "layers.1.mlp.up_proj"}


def test_adapter_weights_follow_the_base_dtype(tiny_decoder: str) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="bf16", device="cpu")
    kinds = {p.dtype for p in build(model, Config()).module.parameters() if p.requires_grad}
    assert kinds == {torch.bfloat16}


def test_a_target_that_matches_nothing_names_near_ones(model: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"got 'q_porj', which matches none\. Did you mean 'q_proj'"):
        build(model, Config(targets=["q_porj"]))


def test_a_rank_above_the_dimension_is_refused(model: LoadedModel) -> None:
    with pytest.raises(
        InputError, match=r"method\.rank must be at most 16, the smaller side of .*k_proj \(32 x 16\); got 17"
    ):
        build(model, Config(rank=17))
    assert build(model, Config(rank=17, targets=["q_proj"])).module is not None


@pytest.mark.parametrize(("layers", "width", "expected"), [(96, 12288, 18_874_368), (40, 5120, 3_276_800)])
def test_published_counts(layers: int, width: int, expected: int) -> None:
    """GPT-3 175B and Llama 2 13B, r = 2 on the four attention matrices: from shapes alone, nothing is allocated."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = LlamaConfig(
        vocab_size=8,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
    )
    with torch.device("meta"):
        module = LlamaForCausalLM(sizes)
    config = Config(rank=2, targets=["q_proj", "k_proj", "v_proj", "o_proj"])
    assert trained_parameters(module, config) == expected


def test_layers_with_ranks_of_their_own(model: LoadedModel) -> None:
    config = Config(rank=8, ranks={"down_proj": 4, "layers.1.mlp.down_proj": 2, "q_proj": 16}, alphas={"q_proj": 5})
    bare = trained_parameters(model.module, config)
    layers = build(model, config).module.base_model.model.model.layers
    found = {
        (number, name): (layer.lora_A["default"].weight.shape[0], layer.scaling["default"])
        for number, block in enumerate(layers)
        for name, layer in block.named_modules()
        if hasattr(layer, "lora_A")
    }
    assert found[0, "mlp.down_proj"] == (4, 2.0)  # a rank of its own keeps the factor alpha / r
    assert found[1, "mlp.down_proj"] == (2, 2.0)  # the more exact name counts
    assert found[0, "self_attn.q_proj"] == found[1, "self_attn.q_proj"] == (16, 5 / 16)
    assert found[1, "mlp.up_proj"] == (8, 2.0)
    assert bare == sum(p.numel() for p in layers.parameters() if p.requires_grad)


def test_ranks_of_layers_are_checked(model: LoadedModel) -> None:
    with pytest.raises(
        InputError, match=r"method\.ranks must name layers .* got 'dwon_proj'.*Did you mean 'down_proj'"
    ):
        build(model, Config(ranks={"dwon_proj": 4}))
    with pytest.raises(InputError, match=r"method\.ranks must be at most 16, the smaller side of .*v_proj .*; got 17"):
        build(model, Config(ranks={"v_proj": 17}))
    with pytest.raises(InputError, match=r"method\.ranks must be at least 1; got 0"):
        build(model, Config(ranks={"v_proj": 0}))
    assert build(model, Config(rank=17, ranks={"k_proj": 16, "v_proj": 16})).module is not None


def weights(model: LoadedModel) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.module.named_parameters() if "proj" in n}


@pytest.mark.parametrize("init", ["pissa", "pissa_fast"])
def test_pissa_trains_the_main_singular_directions(model: LoadedModel, init: str) -> None:
    """Meng, Wang and Zhang 2024."""
    before = weights(model)["model.layers.0.mlp.up_proj.weight"]
    layer = build(model, Config(rank=4, init=init)).module.base_model.model.model.layers[0].mlp.up_proj  # type: ignore[arg-type]
    u, s, vh = torch.linalg.svd(before)
    product = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    near = {"rtol": 1e-4, "atol": 1e-5}
    if init == "pissa":
        torch.testing.assert_close(product, u[:, :4] @ s[:4].diag() @ vh[:4], **near)
    else:  # random projections: of a matrix without a clear order of directions it finds others that hold nearly as much
        assert s[4:].norm() * 0.999 < (before - product).norm() < s[4:].norm() * 1.05
    torch.testing.assert_close(layer.base_layer.weight + product, before, rtol=1e-5, atol=1e-6)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(a @ a.T, b.T @ b, **near)  # the singular values are shared evenly


def test_olora_trains_the_first_directions_of_a_qr_decomposition(model: LoadedModel) -> None:
    before = weights(model)["model.layers.1.self_attn.q_proj.weight"]
    layer = build(model, Config(rank=4, init="olora")).module.base_model.model.model.layers[1].self_attn.q_proj
    q, r = torch.linalg.qr(before)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(b, q[:, :4])
    torch.testing.assert_close(a, r[:4])
    torch.testing.assert_close(layer.base_layer.weight + 2.0 * b @ a, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("init", ["kaiming", "gaussian", "orthogonal", "pissa", "pissa_fast", "olora"])
@pytest.mark.parametrize("base", ["tiny_decoder", "tiny_gpt2"])
def test_every_beginning_answers_as_the_base(init: str, dtype: str, base: str, request: pytest.FixtureRequest) -> None:
    name = request.getfixturevalue(base)
    model = load_model(open_store(), name, dtype=dtype, device="cpu")
    ids = torch.tensor([[5, 9, 30, 7]])
    before = model.module(ids).logits.float()
    built = build(model, Config(init=init, rank=4))  # type: ignore[arg-type]
    assert {p.dtype for p in built.module.parameters()} == {model.dtype}
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == "fp32" else {"rtol": 5e-2, "atol": 2e-2}
    torch.testing.assert_close(built.module.eval()(ids).logits.float(), before, **near)


def write_examples(path: Path) -> str:
    words = ["refund", "deposit", "pay", "invoice", "card", "parcel", "courier", "late", "address", "box"]
    rows = [{"text": f"{words[n % 10]} {words[n * 3 % 10]} number {n}", "label": words[n % 2]} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("base", ["tiny_decoder", "tiny_encoder", "tiny_gpt2", "tiny_t5"])
def test_eva_looks_where_the_inputs_spread(
    base: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paischer et al. 2024, against the singular vectors of all inputs of a layer, one below another."""
    name, data = request.getfixturevalue(base), write_examples(tmp_path / "rows.jsonl")
    model = load_model(open_store(), name, dtype="fp32", device="cpu")
    inner = inner_of(model)
    plain = {n: m for n, m in inner.named_modules() if n in linear_layers(inner)}
    seen: dict[str, list[torch.Tensor]] = {n: [] for n in plain}
    hooks = [
        layer.register_forward_pre_hook(lambda _, x, n=n: seen[n].append(x[0].flatten(0, -2).double()))
        for n, layer in plain.items()
    ]
    for example in read(data, limit=8).examples:
        ids = model.tokenizer(example.text).input_ids
        if model.architecture == "encoder-decoder":
            shown = [0, *model.tokenizer(example.target).input_ids[:-1]]
            inner(torch.tensor([ids]), decoder_input_ids=torch.tensor([shown]))
            continue
        if model.renderer is not None:
            ids = model.renderer.training_ids((*example.messages, Message("assistant", str(example.target)))).ids
        inner(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    monkeypatch.setattr("luthier.methods._eva._BYTES_A_PASS", 4 * 64**2)  # several passes
    built = build(model, Config(init="eva", data=data, samples=8, rank=3))
    wrapped = inner_of(built)
    for n, inputs in seen.items():
        layer = wrapped.base_model.model.get_submodule(n)
        a = layer.lora_A["default"].weight.detach().double()
        v = torch.linalg.svd(torch.cat(inputs)).Vh[:3]
        torch.testing.assert_close(a @ a.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-5)
        torch.testing.assert_close((a @ v.T).abs(), torch.eye(3, dtype=torch.float64), rtol=0, atol=2e-3)
        assert torch.count_nonzero(layer.lora_B["default"].weight) == 0


def test_eva_needs_examples(model: LoadedModel, tiny_encoder: str, tmp_path: Path) -> None:
    entry = load("methods", "lora")
    with pytest.raises(InputError, match="init eva needs data"):
        entry.configure({"init": "eva"})
    with pytest.raises(InputError, match="data and samples are for init eva; got init kaiming"):
        entry.configure({"data": "rows.jsonl"})
    with pytest.raises(LuthierError, match=r"nothing\.jsonl"):
        build(model, Config(init="eva", data=str(tmp_path / "nothing.jsonl")))
    data = write_examples(tmp_path / "rows.jsonl")
    encoder = load_model(open_store(), tiny_encoder, dtype="fp32", device="cpu")
    with pytest.raises(DataError, match=r"has \d+ tokens in its first 1 examples; rank 32 needs more"):
        build(encoder, Config(init="eva", data=data, samples=1, rank=32))


def test_orthogonal_needs_an_even_rank(model: LoadedModel) -> None:
    with pytest.raises(InputError, match="must be even with init orthogonal; got 3"):
        build(model, Config(init="orthogonal", rank=3))


def test_options_that_came_later_do_not_change_the_name_of_earlier_work() -> None:
    assert set(Config().model_dump()) == {"rank", "alpha", "dropout", "targets", "rslora"}
    assert Config(init="pissa", ranks={"q_proj": 4}).model_dump()["init"] == "pissa"


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"targets": "some"}])
def test_options_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Config(**options)  # type: ignore[arg-type]
