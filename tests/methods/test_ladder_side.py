"""Ladder side-tuning against the paper's equations, and that nothing goes back through the base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods.tiny import HEAD, KINDS, LAYERS, D, F
from torch import Tensor
from transformers import BartConfig

from luthier.core.engine import Sampling
from luthier.core.errors import InputError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.methods import ladder_side
from luthier.models import cascade, rows, tuners
from luthier.models.adapters import inner_of
from luthier.models.decode import cache_layers
from luthier.models.generate import Answering
from luthier.models.load import LoadedModel, load_model
from luthier.models.merge import merge
from luthier.models.packed import Row, log_probs
from luthier.models.score import score_rows
from luthier.models.shapes import sketch_of
from luthier.store.database import open_store

OPTIONS = {"reduction": 4}
_W, _F, _KV = D // 4, F // 4, 16 // 4
_DOWN, _UP = (D + 1) * _W, (_W + 1) * D
_LLAMA = 2 * _W * _W + 2 * _W * _KV + 3 * _W * _F + 2 * _W
_GPT2 = 4 * (_W * _W + _W) + 2 * _W * _F + _F + _W + 4 * _W
_T5 = 4 * _W * _W + 2 * _W * _F + 2 * _W
COUNTS = {
    "llama": _DOWN + LAYERS * (_LLAMA + _DOWN + 1) + _W + _UP,
    "gpt2": _DOWN + LAYERS * (_GPT2 + _DOWN + 1) + 2 * _W + _UP,
    "bert": _DOWN + LAYERS * (_GPT2 + _DOWN + 1) + _UP + HEAD["bert"],
    # the encoder's side has no up-projection; the decoder's blocks also attend to it
    "t5": 2 * _DOWN + LAYERS * (2 * (_T5 + _DOWN + 1) + 4 * _W * _W + _W) + 2 * _W + _UP,
}
IDS = torch.tensor([[5, 9, 30, 7, 12], [8, 6, 40, 11, 3]])


def loaded(name: str) -> LoadedModel:
    torch.manual_seed(0)
    return load_model(open_store(), name, dtype="fp32", device="cpu")


@pytest.fixture
def decoder(tiny_decoder: str) -> LoadedModel:
    return loaded(tiny_decoder)


def randomised(model: LoadedModel) -> LoadedModel:
    """No gate at a half, no norm at one."""
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "ladder_side" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def llama_block(x: Tensor, w: dict[str, Tensor], heads: int, kv_heads: int, theta: float = 10000.0) -> Tensor:
    """A Llama block written out: RMSNorm, rotary attention with grouped heads, SwiGLU."""

    def norm(z: Tensor, weight: Tensor) -> Tensor:
        return weight * z / (z.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    length, width = x.shape[1], w["self_attn.q_proj.weight"].shape[0] // heads
    angles = torch.arange(length)[:, None] / theta ** (torch.arange(0, width, 2) / width)
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)

    def turned(z: Tensor) -> Tensor:
        left, right = z.chunk(2, -1)
        return z * cos + torch.cat([-right, left], -1) * sin

    z = norm(x, w["input_layernorm.weight"])
    q, k, v = (
        (z @ w[f"self_attn.{n}_proj.weight"].T).view(len(x), length, -1, width).transpose(1, 2) for n in ("q", "k", "v")
    )
    k, v = (each.repeat_interleave(heads // kv_heads, 1) for each in (turned(k), v))
    scores = turned(q) @ k.transpose(-1, -2) / width**0.5
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(len(x), length, -1)
    x = x + out @ w["self_attn.o_proj.weight"].T
    z = norm(x, w["post_attention_layernorm.weight"])
    gate = z @ w["mlp.gate_proj.weight"].T
    return x + (gate * gate.sigmoid() * (z @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T


@pytest.mark.parametrize("every", [1, 2])
def test_outputs_and_gradients_are_the_papers(decoder: LoadedModel, every: int) -> None:
    hidden = decoder.module(
        IDS, output_hidden_states=True
    ).hidden_states  # embeddings, after block 1, after the last norm
    embeddings, first = hidden[0].detach(), hidden[1].detach()
    with torch.no_grad():
        last = llama_block(first, dict(decoder.module.model.layers[1].named_parameters()), 4, 2)
    head = decoder.module.lm_head.weight.detach().clone()
    built = randomised(ladder_side.build(decoder, ladder_side.Config(reduction=4, every=every, temperature=0.5)))
    p = {n.replace("base_model.model.model.", ""): v for n, v in built.module.named_parameters() if v.requires_grad}

    def affine(name: str, x: Tensor) -> Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    state = affine("layers.0.ladder_side.default.bottom", embeddings)
    for number, below in enumerate((first, last)):
        if every == 2 and number == 0:
            continue
        rung = f"layers.{number}.ladder_side.default"
        mu = torch.sigmoid(p[f"{rung}.gate"] / 0.5)
        state = mu * state + (1 - mu) * affine(f"{rung}.down", below)
        block = {n.removeprefix(f"{rung}.block."): v for n, v in p.items() if n.startswith(f"{rung}.block.")}
        state = llama_block(state, block, 4, 2)
    state = p["norm.ladder_side.default.norm.weight"] * state / (state.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = affine("norm.ladder_side.default.up", state) @ head.T
    got = built.module(IDS).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(got)
    ours = torch.autograd.grad((got * weights).sum(), list(p.values()))
    theirs = torch.autograd.grad((expected * weights).sum(), list(p.values()))
    for name, one, other in zip(p, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)


def test_an_encoder_is_read_block_by_block(tiny_encoder: str) -> None:
    """BERT ends normalised: the up-projection reads the last side block itself."""
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    model = loaded(tiny_encoder)
    hidden = [each.detach() for each in model.module.body(IDS, output_hidden_states=True).hidden_states]
    built = randomised(ladder_side.build(model, ladder_side.Config(reduction=4)))
    built.module.eval()
    rungs = [layer.ladder_side["default"] for layer in built.module.body.base_model.model.encoder.layer]
    small = BertConfig(
        hidden_size=8, intermediate_size=16, num_attention_heads=4, hidden_act="gelu", attn_implementation="eager"
    )
    state = rungs[0].bottom(hidden[0])
    for rung, below in zip(rungs, hidden[1:], strict=True):
        block = BertLayer(small, layer_idx=0).eval()
        block.load_state_dict(rung.block.state_dict())
        mu = 1 / (1 + torch.exp(-rung.gate / 0.1))
        state = block(mu * state + (1 - mu) * rung.down(below))
    torch.testing.assert_close(built.module.body(IDS).last_hidden_state, rungs[1].up(state), rtol=1e-4, atol=1e-5)


def test_the_side_decoder_attends_to_the_side_encoder(tiny_t5: str) -> None:
    """What the side encoder says reaches the logits; what the backbone's decoder reads does not change."""
    built = randomised(ladder_side.build(loaded(tiny_t5), ladder_side.Config(reduction=4)))
    given: dict[str, Tensor] = {}
    decoder = built.module.base_model.model.decoder.block[1]
    decoder.base_layer.register_forward_hook(lambda m, a, out: given.__setitem__("hidden", out[0]))

    def answer() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = built.module(input_ids=IDS, decoder_input_ids=IDS[:, :3]).logits
        return logits, given["hidden"]

    logits, hidden = answer()
    encoder = built.module.base_model.model.encoder.final_layer_norm.ladder_side["default"].norm
    with torch.no_grad():
        encoder.weight.mul_(3.0)
    changed, same = answer()
    assert not torch.allclose(logits, changed)
    assert torch.equal(hidden, same)


@pytest.mark.parametrize("kind", KINDS)
def test_added_starts_as_the_base(kind: str, request: pytest.FixtureRequest) -> None:
    from tests.methods.tiny import FIXTURES

    model = loaded(request.getfixturevalue(FIXTURES[kind]))
    given = {"input_ids": IDS} | ({"decoder_input_ids": IDS[:, :3]} if kind == "t5" else {})
    with torch.no_grad():
        before = inner_of(model)(**given)[0]
        after = inner_of(ladder_side.build(model, ladder_side.Config(reduction=4, output="added")))(**given)[0]
        assert torch.equal(before, after)
        randomised(model)
        assert not torch.allclose(before, inner_of(model)(**given)[0])


def saved_for_backward(module: Any) -> int:
    """Bytes of activations that a training step keeps, the head's aside, which are the same for all methods."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        if (place := x.untyped_storage().data_ptr()) not in weights:
            kept[place] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = module.train().get_decoder()(IDS.repeat(4, 4)).last_hidden_state.square().sum()
        total = sum(kept.values())
        loss.backward()
    return total


def test_nothing_goes_back_through_the_base() -> None:
    """Blocks run without autograd; what is kept is a fraction of what LoRA of rank 1 keeps (here a quarter)."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=64, attn_implementation="sdpa", **sizes)
    side = get_peft_model(LlamaForCausalLM(config), tuners.tuner("ladder_side").CONFIG())
    seen: list[Any] = []
    for layer in side.base_model.model.model.layers:
        for part in layer.base_layer.modules():
            part.register_forward_hook(lambda m, a, out: seen.append((torch.is_grad_enabled(), out)))
    held = saved_for_backward(side)
    tensors = [x for _, out in seen for x in (out if isinstance(out, tuple) else (out,)) if torch.is_tensor(x)]
    assert len(tensors) > 30 and not any(x.requires_grad for x in tensors)
    assert not any(grad for grad, _ in seen)
    beside = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=1, target_modules="all-linear"))
    assert held < 0.3 * saved_for_backward(beside)


def test_engines_see_further_layers(decoder: LoadedModel) -> None:
    """Scoring in one flat sequence, masked rows and token-by-token generation with a cache agree with plain forwards."""
    module = randomised(ladder_side.build(decoder, ladder_side.Config(reduction=4))).module.eval()
    assert cache_layers(module) == 4
    with module.disable_adapter():
        assert cache_layers(module) == 2
    cpu = torch.device("cpu")
    assert cascade.supports(module, cpu)
    prompts = [[5, 9, 30, 7], [5, 9, 30], [5, 9, 8, 8, 21]]
    given = [Row(prompt, [[4, 17], [4, 18, 22], [33]]) for prompt in prompts]
    with torch.no_grad():
        alone = []
        for row in given:
            for continuation in row.continuations:
                ids = torch.tensor([[*row.prompt, *continuation]])
                logp = module(ids).logits.log_softmax(-1)[0, len(row.prompt) - 1 : -1]
                alone.append(logp.gather(-1, torch.tensor(continuation)[:, None]).sum())
        flat = torch.tensor([score for scores in score_rows(module, given, cpu) for score in scores])
        masked = torch.cat(log_probs(module, given, cpu, None, 0))
    torch.testing.assert_close(flat, torch.stack(alone), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(masked, torch.stack(alone), rtol=1e-4, atol=1e-4)
    answers = Answering(prompts, Sampling(temperature=0.0, max_new_tokens=6), cpu)
    drawn: list[list[int]] = [[] for _ in prompts]
    with torch.no_grad():
        for step in range(6):
            for row, token, logp in zip(*answers.step(module), strict=True):
                whole = module(torch.tensor([[*prompts[row], *drawn[row]]])).logits[0, -1].log_softmax(-1)
                assert abs(float(whole[token]) - logp) < 1e-4
                drawn[row].append(token)
            if step == 2:
                answers.finish([1])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_mixed_batch_are_answered_as_alone(kind: str, request: pytest.FixtureRequest) -> None:
    """Also by side networks of different widths, one of them with fewer blocks."""
    from peft.tuners.tuners_utils import BaseTuner
    from tests.methods.tiny import FIXTURES

    module = inner_of(
        ladder_side.build(loaded(request.getfixturevalue(FIXTURES[kind])), ladder_side.Config(reduction=4))
    )
    tuner = tuners.tuner("ladder_side")
    assert isinstance(module.base_model, BaseTuner) and module.base_model.per_row
    module.add_adapter("other", tuner.CONFIG(reduction=2, every=2))
    ids = torch.cat([IDS, IDS.flip(0)])
    given = {"input_ids": ids} | ({"decoder_input_ids": ids[:, :3]} if kind == "t5" else {})
    names = ["default", None, "other", "default"]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        module.eval()
        alone = {}
        for name in ("default", "other"):
            module.set_adapter(name)
            alone[name] = module(**given)[0]
        with module.disable_adapter():
            alone[None] = module(**given)[0]
        with rows.answering(names):
            mixed = module(**given)[0]
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], alone[name][row], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(mixed[0], alone["other"][0])


def test_bounds(decoder: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"method\.reduction must be one of 2, 4 for this model; got 3"):
        ladder_side.build(decoder, ladder_side.Config(reduction=3))
    with pytest.raises(InputError, match=r"got 8 .*does not divide"):
        ladder_side.build(decoder, ladder_side.Config(reduction=8))
    built = ladder_side.build(decoder, ladder_side.Config(reduction=4))
    with pytest.raises(UnsupportedError, match=r"cannot be merged into the weights.*a network beside"):
        merge(built)


def test_an_encoder_decoder_without_last_norms_is_refused() -> None:
    config = BartConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
    )
    sketch = sketch_of(ModelRecord("bart", "base", "encoder-decoder", "0" * 64), config)
    with pytest.raises(UnsupportedError, match="BartForConditionalGeneration has none"):
        ladder_side.build(sketch, ladder_side.Config(reduction=4))
