"""Training the norms: which parameters, and the same steps as PEFT's LN tuning."""

from __future__ import annotations

import pytest
import torch
from peft import LNTuningConfig, TaskType, get_peft_model
from tests.methods.tiny import HEAD, NORMS, D

from luthier.core.errors import InputError
from luthier.methods.layer_norm import Config, build
from luthier.models.load import LoadedModel, load_model
from luthier.store.database import open_store

COUNTS = {
    "llama": NORMS["llama"] * D,
    "gpt2": NORMS["gpt2"] * 2 * D,
    "bert": NORMS["bert"] * 2 * D + HEAD["bert"],
    "t5": NORMS["t5"] * D,
}

IDS = torch.tensor([[5, 9, 30, 7, 12, 60]])


def loaded(name: str) -> LoadedModel:
    return load_model(open_store(), name, dtype="fp32", device="cpu", labels=("a", "b"))


def trained(name: str, **options: object) -> set[str]:
    model = build(loaded(name), Config(**options))  # type: ignore[arg-type]
    inner = model.module if model.architecture == "decoder" else model.module.body
    return {name for name, p in inner.named_parameters() if p.requires_grad}


def test_the_norms_of_three_architectures(tiny_decoder: str, tiny_gpt2: str, tiny_encoder: str) -> None:
    llama = {"model.norm.weight"}
    llama |= {f"model.layers.{i}.{n}_layernorm.weight" for i in range(2) for n in ("input", "post_attention")}
    assert trained(tiny_decoder) == llama
    of = [f"transformer.h.{i}.ln_{n}" for i in range(2) for n in (1, 2)] + ["transformer.ln_f"]
    assert trained(tiny_gpt2) == {f"{name}.{part}" for name in of for part in ("weight", "bias")}
    names = ["embeddings.LayerNorm"]
    names += [f"encoder.layer.{i}.{n}output.LayerNorm" for i in range(2) for n in ("attention.", "")]
    assert trained(tiny_encoder) == {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    assert trained(tiny_encoder, bias=False) == {f"{name}.weight" for name in names}
    assert trained(tiny_decoder, norms=["post_attention_layernorm"]) == {n for n in llama if "post_attention" in n}


def test_the_same_steps_as_peft(tiny_decoder: str) -> None:
    ours = build(loaded(tiny_decoder), Config()).module
    plain = loaded(tiny_decoder).module
    targets = ["input_layernorm", "post_attention_layernorm", "norm"]
    peft = get_peft_model(plain, LNTuningConfig(task_type=TaskType.CAUSAL_LM, target_modules=targets))
    losses = []
    for module in (ours, peft):
        module.train()
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.5)
        path = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = module(IDS, labels=IDS).loss
            loss.backward()
            optimizer.step()
            path.append(float(loss.detach()))
        losses.append(path)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][-1] < losses[0][0]
    gains = sorted(p.detach().sum().item() for p in ours.parameters() if p.requires_grad)
    theirs = sorted(p.detach().sum().item() for p in peft.parameters() if p.requires_grad)
    assert gains == pytest.approx(theirs, rel=1e-6)


def test_a_norm_that_is_not_there(tiny_decoder: str) -> None:
    with pytest.raises(InputError, match=r"method\.norms must be.*got 'input_norm'.*Did you mean 'input_layernorm'"):
        trained(tiny_decoder, norms=["input_norm"])
