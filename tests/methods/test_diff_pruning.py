"""Diff pruning against the paper's equations, and what is left of the differences at the end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.test_adalora import prepared
from tests.methods.tiny import HEAD, KINDS, LINEARS, each_linear, weights

from luthier.core.errors import InputError
from luthier.methods._difference import Difference, Pruning
from luthier.methods.diff_pruning import Config, build, steps
from luthier.models.load import LoadedModel, load_model
from luthier.models.weights import read_tensors
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.training import checkpoint
from luthier.training.config import TrainConfig
from luthier.training.interrupt import Halt
from luthier.training.loop import train
from luthier.training.tune import tune

OPTIONS = {"share": 0.1}  # of so few weights, half a percent is too little to see a loss fall
COUNTS = each_linear(lambda i, o: 2 * i * o)  # a difference and its gate
KEPT = {kind: round(0.1 * weights(LINEARS[kind])) + HEAD[kind] for kind in KINDS}

LABELS = ("billing", "delivery")


def loaded(name: str) -> LoadedModel:
    model = load_model(open_store(), name, dtype="fp32", device="cpu", labels=LABELS)
    model.labels = LABELS
    model.module.requires_grad_(False)
    return model


def test_gates_follow_the_hard_concrete_distribution() -> None:
    """Equations 10 to 12 of Louizos et al.: how often a gate is above zero, and its value without noise."""
    alphas = torch.tensor([-3.0, -1.0, 0.0, 2.0])
    part = Difference(torch.zeros(4), 10.0)
    torch.manual_seed(0)
    draws = torch.stack([part.openness(alphas / 10, draw=True) for _ in range(4000)])
    assert float(draws.min()) >= 0.0 and float(draws.max()) <= 1.0
    expected = torch.sigmoid(alphas - math.log(1.5 / 1.5))
    torch.testing.assert_close((draws > 0).float().mean(0), expected, atol=0.03, rtol=0)
    plain = (3.0 * torch.sigmoid(alphas) - 1.5).clamp(0, 1)
    torch.testing.assert_close(part.openness(alphas / 10, draw=False), plain)


def test_a_layer_computes_with_base_plus_gated_difference(tiny_decoder: str) -> None:
    model = loaded(tiny_decoder)
    layer = model.module.model.layers[0].mlp.up_proj
    base = layer.weight.detach().clone()
    build(model, Config(targets=["up_proj"]))
    part = layer.parametrizations.weight[0]
    assert torch.equal(layer.weight, base)  # a difference of zero
    with torch.no_grad():
        part.difference.normal_()
        part.gate.copy_(torch.randn_like(part.gate) / 100)
    model.module.eval()
    z = (3.0 * torch.sigmoid(100 * part.gate) - 1.5).clamp(0, 1)
    x = torch.randn(3, 32)
    torch.testing.assert_close(layer(x), x @ (base + z * part.difference).T, rtol=1e-5, atol=1e-5)
    model.module.train()
    assert not torch.equal(layer(x), layer(x))  # gates are drawn while training


def test_the_penalty_is_the_gradient_of_the_expected_number_of_open_gates() -> None:
    module = torch.nn.Module()
    module.part = Difference(torch.zeros(5, 3), 50.0)
    gate = (torch.randn(5, 3) / 50).requires_grad_(True)
    (0.3 * torch.sigmoid(50.0 * gate).sum()).backward()
    gradients = {"part.gate": torch.ones(5, 3)}
    pruning = Pruning(module, share=0.5, penalty=0.3, choose_at=0.5)
    pruning.before(1, 10, {"part.gate": gate.detach()}, gradients)
    assert gate.grad is not None
    torch.testing.assert_close(gradients["part.gate"], 1.0 + gate.grad)


def test_the_largest_differences_are_chosen_once() -> None:
    module = torch.nn.Module()
    module.one, module.other = Difference(torch.zeros(2, 2), 100.0), Difference(torch.zeros(1, 4), 100.0)
    weights = {
        "one.difference": torch.tensor([[0.1, -5.0], [0.2, 0.3]]),
        "other.difference": torch.tensor([[4.0, 1.0, -3.0, 0.0]]),
        "one.gate": torch.full((2, 2), 0.05),
        "other.gate": torch.tensor([[-0.05, 0.05, 0.05, 0.05]]),  # the 4.0 is behind a closed gate
    }
    pruning = Pruning(module, share=0.375, penalty=1.0, choose_at=0.5)
    pruning.after(4, 10, weights)
    assert float(weights["one.gate"][0, 0]) == pytest.approx(0.05)
    pruning.after(5, 10, weights)
    assert (weights["one.gate"] > 0).tolist() == [[False, True], [False, False]]
    assert (weights["other.gate"] > 0).tolist() == [[False, True, True, False]]
    assert weights["other.difference"].tolist() == [[0.0, 1.0, -3.0, 0.0]]
    for name in ("one", "other"):
        part, gate = getattr(module, name), weights[f"{name}.gate"]
        for draw in (True, False):
            assert torch.equal(part.openness(gate, draw=draw), (gate > 0).float())  # for good, whatever the noise
    again = {name: tensor.clone() for name, tensor in weights.items()}
    pruning.after(6, 10, weights)
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def trained(base: str, folder: Path, metrics: Any, *, resume: bool = False) -> dict[str, torch.Tensor]:
    model, config = loaded(base), Config(share=0.05)
    torch.manual_seed(0)
    model = build(model, config)
    train(
        model.module,
        prepared(model),
        TrainConfig(epochs=4, batch_size=4, learning_rate=1e-3, checkpoint_every=1),
        folder=folder,
        metrics=metrics,
        steps=steps(model, config),
        resume=checkpoint.latest(folder) if resume else None,
    )
    return {name: p.detach() for name, p in model.module.named_parameters()}


@pytest.mark.parametrize("at", [3, 9])
def test_a_resumed_training_goes_on_exactly(at: int, tiny_decoder: str, tmp_path: Path) -> None:
    def stop(record: Any) -> None:
        if record["step"] == at:
            raise Halt("enough")

    straight = trained(tiny_decoder, tmp_path / "straight", lambda record: None)
    with pytest.raises(Halt):
        trained(tiny_decoder, tmp_path / "again", stop)
    again = trained(tiny_decoder, tmp_path / "again", lambda record: None, resume=True)
    assert all(torch.equal(straight[name], again[name]) for name in straight)


@pytest.mark.parametrize(("base", "weights"), [("tiny_decoder", 2 * 9216), ("tiny_encoder", 2 * 8192)])
def test_tune_keeps_the_share(base: str, weights: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    rows = [{"text": f"refund parcel number {n}", "label": LABELS[n % 2]} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = tune(
        {
            "model": request.getfixturevalue(base),
            "data": {"path": str(tmp_path / "rows.jsonl")},
            "method": {"name": "diff_pruning", "share": 0.02},
            "train": {"epochs": 3, "batch_size": 4, "dtype": "fp32", "device": "cpu", "validate_every": 100},
        }
    )
    tensors = read_tensors(path_of(open_store(), result.model.digest) / "changed.safetensors")
    assert sum(t.numel() for name, t in tensors.items() if name.endswith("#values")) == round(0.02 * weights)
    plain = dict(
        load_model(open_store(), request.getfixturevalue(base), dtype="fp32", device="cpu").module.named_parameters()
    )
    tuned = dict(load_model(open_store(), result.model.name, dtype="fp32", device="cpu").module.named_parameters())
    moved = sum(int((tuned[name] != plain[name]).sum()) for name in plain if "head." not in name or "lm_head" in name)
    assert 0 < moved <= round(0.02 * weights)


def test_a_target_that_matches_nothing(tiny_decoder: str) -> None:
    with pytest.raises(InputError, match="Did you mean 'q_proj'"):
        build(loaded(tiny_decoder), Config(targets=["q_porj"]))
