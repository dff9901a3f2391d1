"""Parallel adapters against the equation of He et al."""

from __future__ import annotations

import pytest
import torch
from tests.methods.bottlenecks import (
    FORWARD,
    answer,
    compare,
    numbered,
    plain,
    randomised,
    trained,
    untouched,
    weights_of,
)
from tests.methods.tiny import FIXTURES, HEAD, KINDS, LAYERS, D

from luthier.core.errors import InputError
from luthier.methods.parallel_adapter import Config, build, trained_parameters
from luthier.models.adapters import inner_of
from luthier.models.load import load_model
from luthier.store.database import open_store

UNITS = D // 2
ONE = 2 * D * UNITS + UNITS + D
COUNTS = {
    "llama": LAYERS * ONE,
    "gpt2": LAYERS * ONE,
    "bert": LAYERS * ONE + HEAD["bert"],
    "t5": 2 * LAYERS * ONE,
}


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_the_papers(kind: str, home: object, request: pytest.FixtureRequest) -> None:
    """FFN(x) + 4 relu(x W_down + b) W_up + b, x the input of the feed-forward."""
    model = load_model(open_store(), request.getfixturevalue(FIXTURES[kind]), dtype="fp32", device="cpu")
    base = untouched(model, norms=False)
    start = answer(kind, base)
    model = build(model, Config(bottleneck=6))
    torch.testing.assert_close(answer(kind, inner_of(model).eval()), start, rtol=0, atol=0)
    weights = weights_of(randomised(model))
    assert set(weights) == set(numbered(FORWARD[kind]))
    for target, own in weights.items():
        network = plain(own, torch.relu, scale=4.0)
        if kind == "bert":  # its feed-forward is two modules; the first one's input is the second one's second argument
            whole = base.get_submodule(target.rpartition(".")[0])
            whole.register_forward_hook(
                lambda part, args, _, a=network: part.LayerNorm(part.dense(args[0]) + a(args[1]) + args[1])
            )
        else:
            whole = base.get_submodule(target.rpartition(".")[0])
            whole.register_forward_hook(lambda _, args, y, a=network: y + a(args[0]))
    compare(kind, model, base, weights)


def test_a_learned_scale(tiny_decoder: str) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    config = Config(learn_scale=True, scale=2.0, bottleneck=6, blocks=[0])
    count = trained_parameters(model.module, config)
    base = untouched(model, norms=False)
    model = build(model, config)
    scale = trained(model)["model.layers.0.mlp.down_proj.scale"]
    assert scale.item() == 2.0
    assert sum(p.numel() for p in trained(model).values()) == count == 2 * D * 6 + 6 + D + 1
    weights = weights_of(randomised(model))
    (target,) = weights
    weights[target]["scale"] = own = scale.detach().clone().requires_grad_()
    network = plain(weights[target], torch.relu)
    base.get_submodule(target.rpartition(".")[0]).register_forward_hook(lambda _, args, y: y + own * network(args[0]))
    compare("llama", model, base, weights)


def test_bounds(tiny_decoder: str) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    with pytest.raises(InputError, match=r"method\.bottleneck must be at most 32"):
        build(model, Config(bottleneck=40))
    with pytest.raises(InputError, match=r"method\.blocks must be numbers from 0 to 1; got 7"):
        build(model, Config(blocks=[7]))
