"""The tuner of bottleneck adapters: several at once, one after the other, one a row; files; and what it leaves of the base."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from luthier.models import rows, tuners
from luthier.models.tuners._bottleneck import Bottleneck, Hypercomplex, new_rule
from luthier.models.tuners.bottleneck import BottleneckConfig, BottleneckLayer, width_of

tuners.register()
IDS = torch.tensor([[5, 9, 30, 7, 3], [8, 6, 40, 11, 2], [1, 2, 3, 4, 5]])
WAYS = {
    "sequential": {"target_modules": ["self_attn.o_proj", "mlp.down_proj"]},
    "norms": {"target_modules": ["mlp.down_proj", "model.norm"], "norms": ["model.norm"]},
    "parallel": {"placement": "parallel", "source": "mlp.gate_proj"},
    "residual": {"placement": "residual", "source": "post_attention_layernorm"},
    "hypercomplex": {"target_modules": ["self_attn.o_proj", "mlp.down_proj"], "hypercomplex": 4, "size": 8},
}


def llama(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    return LlamaForCausalLM(config).eval().to(dtype)


def bert() -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    return BertModel(config).eval()


def config(way: str, **more: object) -> BottleneckConfig:
    options = {"size": 6, **WAYS[way], **more}
    source = options.pop("source", None)
    if source is not None:
        options["sources"] = {f"layers.{n}.mlp.down_proj": f"layers.{n}.{source}" for n in (0, 1)}
        options["target_modules"] = ["mlp.down_proj", source]
    return BottleneckConfig(**options)


def random_values(model: PeftModel, name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if f".{name}." in key or key.endswith(f".{name}"):
                drawn = 0.3 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn + ("bottleneck_norms" in key))


def with_adapters(way: str, *names: str, base: PreTrainedModel | None = None) -> PeftModel:
    model = get_peft_model(base or llama(), config(way), names[0], autocast_adapter_dtype=False)
    for name in names[1:]:
        model.add_adapter(name, config(way), autocast_adapter_dtype=False)
    for seed, name in enumerate(names):
        random_values(model, name, seed)
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    return model(ids).logits


@pytest.mark.parametrize("way", WAYS)
def test_selecting_disabling_deleting_and_taking_out(way: str) -> None:
    bare = logits(llama())
    model = with_adapters(way, "one", "two")
    answers = {}
    for name in ("one", "two"):
        model.set_adapter(name)
        answers[name] = logits(model)
        trained = {key for key, p in model.named_parameters() if p.requires_grad}
        assert trained and all(f".{name}." in key or key.endswith(f".{name}") for key in trained)
        alone = get_peft_model(llama(), config(way), "only", autocast_adapter_dtype=False).eval()
        random_values(alone, "only", ("one", "two").index(name))
        assert torch.equal(answers[name], logits(alone))
    assert not torch.allclose(answers["one"], answers["two"])
    with model.disable_adapter():
        assert torch.equal(logits(model), bare)
    assert torch.equal(logits(model), answers["two"])
    model.set_adapter("one")
    model.delete_adapter("two")
    assert not any("two" in key for key, _ in model.named_parameters())
    layers = [part for part in model.modules() if isinstance(part, BottleneckLayer)]
    assert not any(
        "two" in held for part in layers for held in (part.placements, part.sources, part.feeds, part.owners)
    )
    assert torch.equal(logits(model), answers["one"])
    plain = model.unload()
    assert torch.equal(logits(plain), bare)
    assert plain.state_dict().keys() == llama().state_dict().keys()


def test_two_active_adapters_follow_each_other() -> None:
    """The second one reads what the first one wrote: language adapter, then task adapter."""
    model = with_adapters("sequential", "one", "two")
    layer = model.base_model.model.model.layers[0].mlp.down_proj
    x = torch.randn(3, 64)
    first, second = layer.bottleneck_adapters["one"], layer.bottleneck_adapters["two"]
    for order, (a, b) in {("one", "two"): (first, second), ("two", "one"): (second, first)}.items():
        model.base_model.set_adapter(list(order))
        y = layer.base_layer(x)
        z = y + a.added(y)
        torch.testing.assert_close(layer(x), z + b.added(z))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("selected", ["one", "two", None])
def test_each_row_is_answered_by_its_own_adapter(way: str, selected: str | None) -> None:
    bare = logits(llama())
    model = with_adapters(way, "one", "two")
    alone = {None: bare}
    for name in ("one", "two"):
        model.set_adapter(name)
        alone[name] = logits(model)
    if selected is None:
        model.base_model.disable_adapter_layers()
    else:
        model.set_adapter(selected)
    for names in (("two", None, "one"), ("one", "one", "two"), (None, None, None), ("two", "two", "two")):
        with rows.answering(names):
            got = logits(model)
        for row, name in enumerate(names):
            torch.testing.assert_close(got[row], alone[name][row], rtol=1e-5, atol=1e-6)
        if set(names) == {None}:
            assert torch.equal(got, bare)
    layers = [part for part in model.modules() if isinstance(part, BottleneckLayer)]
    assert not any(part._kept for part in layers), "an input is still held after the forward"


@pytest.mark.parametrize("way", WAYS)
def test_a_token_does_not_read_what_follows_and_the_cache_works(way: str) -> None:
    model = with_adapters(way, "one")
    whole = logits(model)
    torch.testing.assert_close(logits(model, IDS[:, :3]), whole[:, :3], rtol=1e-5, atol=1e-5)
    cache, steps = None, []
    for position in range(IDS.shape[1]):
        with torch.no_grad():
            out = model(IDS[:, position : position + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_checkpointed_activations_give_the_same_gradients(way: str) -> None:
    found = []
    for checkpointing in (False, True):
        model = with_adapters(way, "one").train()
        if checkpointing:
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        model(IDS).logits.square().sum().backward()
        found.append({key: p.grad for key, p in model.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][key], rtol=1e-4, atol=1e-5)


def test_threads_do_not_read_each_others_inputs() -> None:
    model = with_adapters("parallel", "one")
    inputs = [torch.randint(0, 50, (2, 5 + n), generator=torch.Generator().manual_seed(n)) for n in range(4)]
    expected = [logits(model, ids) for ids in inputs]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            if not torch.equal(logits(model, inputs[number]), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


SCRIPT = """
import sys, torch
from luthier.models import tuners
tuners.register()
from peft import PeftModel
from transformers import LlamaForCausalLM
ids = torch.tensor([[5, 9, 30, 7, 3], [8, 6, 40, 11, 2], [1, 2, 3, 4, 5]])
for folder in sys.argv[2:]:
    base = LlamaForCausalLM.from_pretrained(sys.argv[1], dtype="auto").eval()
    model = PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=False).eval()
    with torch.no_grad():
        torch.save(model(ids).logits, folder + "/logits.pt")
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pefts_files_read_in_another_process_answer_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    base = llama(dtype)
    base.save_pretrained(str(tmp_path / "base"))
    expected = {}
    for way in WAYS:
        model = with_adapters(way, "one", base=copy.deepcopy(base))
        model.save_pretrained(str(tmp_path / way), selected_adapters=["one"])
        folder = tmp_path / way / "one"
        expected[folder] = logits(model)
        held = load_file(folder / "adapter_model.safetensors")
        trained = [p for p in model.parameters() if p.requires_grad]
        assert sum(t.numel() for t in held.values()) == sum(p.numel() for p in trained)
        assert not any(".one" in key for key in held), "the file knows the adapter's name in memory"
        assert {t.dtype for t in held.values()} == {dtype}
    ran = [sys.executable, "-c", SCRIPT, str(tmp_path / "base"), *map(str, expected)]
    subprocess.run(ran, check=True, capture_output=True)
    for folder, answer in expected.items():
        assert torch.equal(torch.load(folder / "logits.pt", weights_only=True), answer), folder


def test_long_lists_of_targets_are_written_in_order(tmp_path: Path) -> None:
    """PEFT shortens lists of twenty names and more to a set of ends."""
    base = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=11, num_attention_heads=2)
    )
    names = [f"model.layers.{n}.{part}" for n in range(11) for part in ("mlp.gate_proj", "mlp.down_proj")]
    sources = dict(zip(names[1::2], names[::2], strict=True))
    settings = BottleneckConfig(target_modules=names, placement="parallel", sources=sources, size=2)
    model = get_peft_model(base, settings)
    model.save_pretrained(str(tmp_path))
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["target_modules"] == sorted(written["target_modules"])
    assert written["sources"] == sources
    assert sum(isinstance(part, Bottleneck) for part in model.modules()) == 11


def test_an_adapter_of_another_width_does_not_load(tmp_path: Path) -> None:
    with_adapters("sequential", "one").save_pretrained(str(tmp_path), selected_adapters=["one"])
    wider = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    )
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(wider, str(tmp_path / "one"))


def test_fp32_adapters_on_a_bf16_base_which_is_pefts_own_default() -> None:
    for way in WAYS:
        model = get_peft_model(llama(torch.bfloat16), config(way), "one").eval()
        random_values(model, "one", 0)
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        whole = logits(model)
        assert whole.dtype == torch.bfloat16 and whole.isfinite().all()
        with rows.answering(["one", None, "one"]):
            torch.testing.assert_close(logits(model)[0], whole[0], rtol=0.05, atol=0.05)


def test_adapters_of_different_placements_share_a_model() -> None:
    model = with_adapters("sequential", "one")
    expected = {"one": logits(model)}
    for seed, way in enumerate(("norms", "parallel", "residual", "hypercomplex")):
        model.add_adapter(way, config(way), autocast_adapter_dtype=False)
        random_values(model, way, seed)
        alone = get_peft_model(llama(), config(way), "only", autocast_adapter_dtype=False).eval()
        random_values(alone, "only", seed)
        expected[way] = logits(alone)
    for name, answer in expected.items():
        model.set_adapter(name)
        torch.testing.assert_close(logits(model), answer, rtol=0, atol=0)


def test_bert_normalises_with_the_adapter_inside() -> None:
    settings = BottleneckConfig(target_modules=["output.LayerNorm"], placement="norm", size=4)
    settings.target_modules = [f"encoder.layer.{n}.output.LayerNorm" for n in (0, 1)]
    bare = bert()(IDS).last_hidden_state
    model = get_peft_model(bert(), settings, "one").eval()
    assert torch.equal(model(IDS).last_hidden_state, bare)
    random_values(model, "one", 0)
    whole = model(IDS).last_hidden_state
    assert not torch.allclose(whole, bare)
    with rows.answering([None, "one", "one"]):
        mixed = model(IDS).last_hidden_state
    torch.testing.assert_close(mixed, torch.cat([bare[:1], whole[1:]]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placement": "before"}, "placement must be sequential"),
        ({"activation": "swish"}, "activation must be relu"),
        ({"norm": "both"}, "norm must be none"),
        ({"placement": "parallel"}, "sources are for the placements parallel and residual; got parallel"),
        ({"sources": {"a": "b"}}, "sources are for the placements parallel and residual; got sequential"),
    ],
)
def test_configurations_that_mean_nothing_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BottleneckConfig(**options)


def test_only_linear_layers_and_norms_take_an_adapter() -> None:
    with pytest.raises(TypeError, match="after linear layers and norms; got Embedding"):
        width_of(nn.Embedding(3, 4))
    with pytest.raises(TypeError, match="got LlamaMLP"):
        get_peft_model(llama(), BottleneckConfig(target_modules=["mlp"], size=4))


def test_nothing_is_merged() -> None:
    model = with_adapters("sequential", "one")
    with pytest.raises(NotImplementedError, match="nonlinear"):
        model.merge_and_unload()
    with pytest.raises(NotImplementedError, match="nonlinear"):
        model.base_model.unmerge_adapter()


def test_the_frozen_base_keeps_no_activations() -> None:
    """Of what the backward pass holds, only one tensor of the output's width is the adapter's: what its first matrix read."""
    layer = nn.Linear(64, 32).requires_grad_(False)
    tuned = BottleneckLayer(layer)
    tuned.update_layer("one", BottleneckConfig(target_modules=["x"], size=4), "x", owner=False)
    tuned.set_adapter("one")
    saved: list[tuple[int, ...]] = []
    x = torch.randn(7, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        tuned(x)
    tokens = [shape for shape in saved if shape[0] == 7]
    assert (7, 64) not in tokens
    assert tokens.count((7, 32)) == 1
    assert sum(shape[1] for shape in tokens) <= 32 + 2 * 4


@pytest.mark.parametrize(("inputs", "outputs", "n"), [(32, 8, 4), (8, 32, 4), (6, 9, 3), (4, 4, 1)])
def test_hypercomplex_layers_multiply_by_sums_of_kronecker_products(inputs: int, outputs: int, n: int) -> None:
    layer, rule = Hypercomplex(inputs, outputs, n), new_rule(n)
    expected = sum(torch.kron(rule[i], torch.outer(layer.left[i], layer.right[i])) for i in range(n))
    x = torch.randn(2, 3, inputs)
    torch.testing.assert_close(layer(x, rule), x @ expected + layer.bias)
