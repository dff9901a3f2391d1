"""Compacter against Kronecker products written out, its shared matrices, and its bounds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.methods.bottlenecks import (
    ATTENTION,
    FORWARD,
    Network,
    Weights,
    answer,
    compare,
    numbered,
    randomised,
    trained,
    untouched,
    weights_of,
)
from tests.methods.tiny import FIXTURES, HEAD, KINDS, LAYERS, NORMS, D
from torch import Tensor

from luthier.core.errors import InputError
from luthier.methods.compacter import Config, build, trained_parameters
from luthier.models.adapters import ADAPTER, inner_of, save_adapter
from luthier.models.load import LoadedModel, load_model
from luthier.models.weights import read_tensors
from luthier.store.database import open_store

N = 4
UNITS = N
ONE = 2 * (N * (D // N) + N * (UNITS // N)) + UNITS + D
COUNTS = {
    "llama": LAYERS * 2 * ONE + N**3 + NORMS["llama"] * D,
    "gpt2": LAYERS * 2 * ONE + N**3 + NORMS["gpt2"] * 2 * D,
    "bert": LAYERS * 2 * ONE + N**3 + NORMS["bert"] * 2 * D + HEAD["bert"],
    "t5": 2 * LAYERS * 2 * ONE + N**3 + NORMS["t5"] * D,
}


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")


def hypercomplex(weights: Weights, shared: Tensor) -> Network:
    """v W + b with W = sum_i A_i kron (s_i t_i^T), twice."""

    def times(v: Tensor, way: str) -> Tensor:
        left, right = weights[f"{way}.left"], weights[f"{way}.right"]
        matrix = sum(torch.kron(a, torch.outer(s, t)) for a, s, t in zip(shared, left, right, strict=True))
        return v @ matrix + weights[f"{way}.bias"]

    return lambda v: times(torch.nn.functional.gelu(times(v, "down"), approximate="tanh"), "up")


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_the_papers(kind: str, home: object, request: pytest.FixtureRequest) -> None:
    model = load_model(open_store(), request.getfixturevalue(FIXTURES[kind]), dtype="fp32", device="cpu")
    base = untouched(model, norms=True)
    start = answer(kind, base)
    model = build(model, Config(bottleneck=8))
    torch.testing.assert_close(answer(kind, inner_of(model).eval()), start, rtol=0, atol=0)
    weights = weights_of(randomised(model))
    assert set(weights) == {*numbered(ATTENTION[kind]), *numbered(FORWARD[kind])}
    (shared,) = [p.detach().clone().requires_grad_() for name, p in trained(model).items() if name.endswith(".rules")]
    assert shared.shape == (4, 4, 4)
    for target, own in weights.items():
        network = hypercomplex(own, shared)
        base.get_submodule(target).register_forward_hook(lambda _, __, y, network=network: y + network(y))
    compare(kind, model, base, weights, shared)


def test_compacter_plus_plus_and_sizes(model: LoadedModel) -> None:
    config = Config(places="feed_forward", n=2, bottleneck=6, train_norms=False)
    count = trained_parameters(model.module, config)
    assert count == LAYERS * 3 * (D + 6) + 2**3
    assert trained_parameters(model.module, Config(n=2, reduction=6, train_norms=False)) == 4 * 3 * (D + 4) + 2**3
    built = build(model, config)
    assert set(weights_of(built)) == set(numbered(FORWARD["llama"]))
    assert sum(p.numel() for p in trained(built).values()) == count


def test_the_file_holds_the_shared_matrices_once(model: LoadedModel, tmp_path: Path) -> None:
    save_adapter(randomised(build(model, Config(train_norms=False))).module, tmp_path, "base")
    tensors = read_tensors(tmp_path / ADAPTER)
    assert [name for name, tensor in tensors.items() if tensor.numel() == N**3 and "bottleneck_rules" in name] == [
        "base_model.model.model.layers.0.self_attn.o_proj.bottleneck_rules"
    ]
    assert sum(tensor.numel() for tensor in tensors.values()) == LAYERS * 2 * ONE + N**3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 5}, r"method\.n must divide the model's width, 32: one of 1, 2, 4, 8, 16, 32; got 5"),
        ({"bottleneck": 6}, r"method\.bottleneck must be a multiple of method\.n, 4; got 6"),
        ({"bottleneck": 36}, r"method\.bottleneck must be at most 32"),
    ],
)
def test_bad_input(options: dict[str, object], message: str, model: LoadedModel) -> None:
    with pytest.raises(InputError, match=message):
        build(model, Config(**options))


def test_options_that_contradict() -> None:
    with pytest.raises(ValueError, match="has none there"):
        Config(places="feed_forward", cross_attention=True)
    with pytest.raises(ValueError, match="say the same thing"):
        Config(bottleneck=4, reduction=8)
