"""Pfeiffer adapters against the paper's equation, in models that normalise first and in BERT, which normalises last."""

from __future__ import annotations

import pytest
import torch
from tests.methods.bottlenecks import Network, answer, compare, plain, randomised, untouched, weights_of
from tests.methods.tiny import FIXTURES, HEAD, KINDS, LAYERS, D
from torch import Tensor

from luthier.core.errors import InputError, UnsupportedError
from luthier.methods.pfeiffer_adapter import Config, build, trained_parameters
from luthier.models.adapters import inner_of
from luthier.models.load import load_model
from luthier.store.database import open_store

UNITS = D // 16
ONE = 2 * D * UNITS + UNITS + D
COUNTS = {
    "llama": LAYERS * ONE,
    "gpt2": LAYERS * ONE,
    "bert": LAYERS * ONE + HEAD["bert"],
    "t5": 2 * LAYERS * ONE,
}


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_the_papers(kind: str, home: object, request: pytest.FixtureRequest) -> None:
    """The whole block's output h becomes h + A(h); BERT's LN(f + x) becomes LN(f + x + A(LN(f + x)))."""
    model = load_model(open_store(), request.getfixturevalue(FIXTURES[kind]), dtype="fp32", device="cpu")
    base = untouched(model, norms=False)
    start = answer(kind, base)
    model = build(model, Config(bottleneck=6))
    torch.testing.assert_close(answer(kind, inner_of(model).eval()), start, rtol=0, atol=0)
    weights = weights_of(randomised(model))
    assert len(weights) == LAYERS * (2 if kind == "t5" else 1)
    for target, own in weights.items():
        network = plain(own, torch.relu)
        if kind == "bert":
            block = base.get_submodule(target.rpartition(".")[0])  # BertOutput
            block.register_forward_hook(lambda part, args, _, a=network: normalised_last(part, *args, a))
        elif kind == "t5":
            part = base.get_submodule(target.partition(".DenseReluDense")[0])  # T5LayerFF, the end of a block
            part.register_forward_hook(lambda _, __, h, a=network: h + a(h))
        else:
            block = base.get_submodule(target.partition(".mlp")[0])
            block.register_forward_hook(lambda _, __, h, a=network: h + a(h))
    compare(kind, model, base, weights)


def normalised_last(part: torch.nn.Module, hidden: Tensor, x: Tensor, network: Network) -> Tensor:
    total = part.dense(hidden) + x
    return part.LayerNorm(total + network(part.LayerNorm(total)))


def test_blocks_and_bounds(tiny_decoder: str) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    assert trained_parameters(model.module, Config(blocks=[1], norm="after")) == ONE + 2 * D
    with pytest.raises(InputError, match=r"method\.blocks must be numbers from 0 to 1; got -1"):
        build(model, Config(blocks=[-1]))
    with pytest.raises(InputError, match=r"method\.bottleneck must be at most 32"):
        build(model, Config(bottleneck=64))
    model.module.config.use_parallel_residual = True  # blocks whose two halves are summed
    with pytest.raises(UnsupportedError, match="one norm for each sub-layer") as error:
        build(model, Config())
    assert "method.targets=[down_proj]" in (error.value.hint or "")
