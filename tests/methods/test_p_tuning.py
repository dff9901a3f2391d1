"""P-tuning: the prompt encoder's equations, its size, and that only its output is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.methods.tiny import HEAD, D

from luthier.methods.p_tuning import Config, build, trained_parameters
from luthier.models.attach import save_trained
from luthier.models.load import LoadedModel, load_model
from luthier.models.soft_prompt import keys_values
from luthier.models.weights import read_tensors
from luthier.store.database import open_store

KINDS = ("llama", "gpt2", "bert", "t5")
COUNTS = {kind: 20 * D + 3 * (D + 1) * D + HEAD[kind] for kind in KINDS}
KEPT = {kind: 20 * D + HEAD[kind] for kind in KINDS}


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")


def lstm(x: torch.Tensor, weights: dict[str, torch.Tensor], ending: str) -> torch.Tensor:
    """Hochreiter and Schmidhuber 1997 as PyTorch orders its gates: input, forget, cell, output."""
    h = c = torch.zeros(weights[f"weight_hh_{ending}"].shape[1])
    out = []
    for row in x:
        gates = weights[f"weight_ih_{ending}"] @ row + weights[f"bias_ih_{ending}"]
        i, f, g, o = (gates + weights[f"weight_hh_{ending}"] @ h + weights[f"bias_hh_{ending}"]).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        out.append(h)
    return torch.stack(out)


def test_the_lstm_reads_both_ways_and_an_mlp_follows(model: LoadedModel) -> None:
    """Section 3.2 of the paper: h_i = MLP([forward h_i : backward h_i])."""
    built = build(model, Config(tokens=4, encoder="lstm", hidden=8, layers=1)).module
    encoder = built.prompt_encoder["default"]
    weights = dict(encoder.lstm_head.named_parameters())
    x = encoder.embedding.weight
    both = torch.cat([lstm(x, weights, "l0"), lstm(x.flip(0), weights, "l0_reverse").flip(0)], dim=1)
    first, _, second = encoder.mlp_head
    expected = (both @ first.weight.T + first.bias).relu() @ second.weight.T + second.bias
    torch.testing.assert_close(built.get_prompt(1)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Config(tokens=7, hidden=12), 7 * D + (D * 12 + 12) + (12 * 12 + 12) + (12 * D + D)),
        (
            Config(tokens=7, encoder="lstm", hidden=12, layers=2),
            7 * D
            + 2 * (4 * 12 * D + 4 * 12 * 12 + 2 * 4 * 12)
            + 2 * (4 * 12 * 24 + 4 * 12 * 12 + 2 * 4 * 12)
            + (24 * 24 + 24)
            + (24 * D + D),
        ),
    ],
    ids=["mlp", "lstm"],
)
def test_sizes_are_those_of_its_matrices(model: LoadedModel, config: Config, expected: int) -> None:
    assert trained_parameters(model.module, config) == expected
    built = build(model, config).module
    assert sum(p.numel() for p in built.parameters() if p.requires_grad) == expected


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_only_what_the_encoder_makes_is_kept(model: LoadedModel, encoder: str, tmp_path: Path) -> None:
    built = build(model, Config(tokens=5, encoder=encoder))  # type: ignore[arg-type]
    built.module.eval()
    save_trained(built, tmp_path, {"saves": "adapter"})
    held = read_tensors(tmp_path / "adapter_model.safetensors")
    assert held.keys() == {"prompt_embeddings"}
    assert torch.equal(held["prompt_embeddings"], built.module.get_prompt(1)[0].detach())
    assert keys_values(built.module)[0][0].shape == (1, 2, 5, 8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": 3}, "layers and dropout are for encoder lstm; got encoder mlp"),
        ({"dropout": 0.1}, "layers and dropout are for encoder lstm"),
        ({"encoder": "lstm", "layers": 1, "dropout": 0.1}, "dropout is between the layers of the LSTM; got layers 1"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config(**options)  # type: ignore[arg-type]
