"""FISH mask: the estimate against the exact information, and that only the chosen entries ever move."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.methods.tiny import HEAD, KINDS, LINEARS, weights

from luthier.core.errors import DataError, InputError
from luthier.data.render_source import Pair
from luthier.methods.fish_mask import Config, build, information
from luthier.models.load import LoadedModel, load_model
from luthier.models.merge import merge
from luthier.store.database import open_store

OPTIONS = {"data": str(Path(__file__).parents[2] / "examples/support/tickets.jsonl"), "samples": 4}
COUNTS = {kind: round(0.005 * weights(LINEARS[kind])) + HEAD[kind] for kind in KINDS}

LABELS = ("billing", "delivery")


@pytest.fixture
def data(tmp_path: Path) -> str:
    rows = [{"text": f"parcel number {i}", "label": LABELS[i % 2]} for i in range(6)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def loaded(name: str, dtype: str = "fp32") -> LoadedModel:
    model = load_model(open_store(), name, dtype=dtype, device="cpu", labels=LABELS)
    model.labels = LABELS
    return model


def test_the_estimate_is_the_expected_squared_gradient(tiny_encoder: str) -> None:
    """With many draws it comes near sum_y p(y | x) (d log p(y | x) / d w)^2, worked out over both labels."""
    model = loaded(tiny_encoder)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.module.head.weight, std=0.1)
    model.module.eval()
    weight = model.module.body.encoder.layer[1].output.dense.weight
    ids = torch.tensor([[2, 7, 9, 30, 3]])
    model.module.requires_grad_(False)
    weight.requires_grad_(True)
    log_probs = model.module(ids, torch.ones_like(ids)).float().log_softmax(-1)[0]
    exact = torch.zeros_like(weight)
    for each in log_probs:
        (gradient,) = torch.autograd.grad(each, weight, retain_graph=True)
        exact += each.exp().detach() * gradient**2
    found = information(model, {"w": weight}, [(ids[0].tolist(), [True] * 5)] * 400)["w"]
    assert float((found - exact).norm() / exact.norm()) < 0.1


def test_of_a_decoder_the_answer_is_drawn(tiny_decoder: str) -> None:
    """One draw of the answer's two tokens, repeated by hand with the same random numbers."""
    model = loaded(tiny_decoder)
    weight = model.module.model.layers[0].mlp.up_proj.weight
    ids, mask = [5, 9, 30, 7], [False, False, True, True]
    torch.manual_seed(1)
    found = information(model, {"w": weight}, [(ids, mask)])["w"]
    torch.manual_seed(1)
    logits = model.module(torch.tensor([ids])).logits[0, [1, 2]]
    drawn = torch.multinomial(logits.detach().softmax(-1), 1)[:, 0]
    loss = torch.nn.functional.cross_entropy(logits, drawn, reduction="sum")
    torch.testing.assert_close(found, torch.autograd.grad(loss, weight)[0] ** 2, rtol=1e-4, atol=1e-12)


def test_of_an_encoder_decoder_the_answer_is_drawn(tiny_t5: str) -> None:
    model = loaded(tiny_t5)
    weight = model.module.encoder.block[0].layer[0].SelfAttention.v.weight
    torch.manual_seed(1)
    found = information(model, {"w": weight}, [Pair([5, 9, 30, 1], [7, 8, 1])])["w"]
    torch.manual_seed(1)
    logits = model.module(torch.tensor([[5, 9, 30, 1]]), decoder_input_ids=torch.tensor([[0, 7, 8]])).logits[0]
    drawn = torch.multinomial(logits.detach().softmax(-1), 1)[:, 0]
    loss = torch.nn.functional.cross_entropy(logits, drawn, reduction="sum")
    torch.testing.assert_close(found, torch.autograd.grad(loss, weight)[0] ** 2, rtol=1e-4, atol=1e-10)


def test_an_encoder_decoder_needs_answers(tiny_t5: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "no answer"}\n')
    with pytest.raises(DataError, match="no example with an answer"):
        build(loaded(tiny_t5), Config(data=str(tmp_path / "rows.jsonl")))


@pytest.mark.parametrize("base", ["tiny_decoder", "tiny_gpt2", "tiny_encoder"])
def test_the_largest_entries_of_all_targets_are_trained(base: str, data: str, request: pytest.FixtureRequest) -> None:
    model = loaded(request.getfixturevalue(base))
    inner = model.module if model.architecture == "decoder" else model.module.body
    targets = {"tiny_decoder": "down_proj", "tiny_gpt2": "c_fc", "tiny_encoder": "query"}[base]
    before = {name: p.detach().clone() for name, p in inner.named_parameters()}
    torch.manual_seed(0)
    built = build(model, Config(data=data, share=0.01, samples=4, targets=[targets]))
    trained = {name: p for name, p in inner.named_parameters() if p.requires_grad}
    weights = {name: p for name, p in before.items() if name.endswith(f"{targets}.weight")}
    assert sum(p.numel() for p in trained.values()) == round(0.01 * sum(p.numel() for p in weights.values()))
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(1.0)
    now = dict(merge_by_hand(built).named_parameters())
    moved = sum(int((now[name] != before[name]).sum()) for name in weights)
    assert moved == sum(p.numel() for p in trained.values())
    assert all(torch.equal(now[name], before[name]) for name in before if name not in weights)


def merge_by_hand(model: LoadedModel) -> torch.nn.Module:
    from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

    inner = model.module if model.architecture == "decoder" else model.module.body
    for layer in list(inner.modules()):
        if is_parametrized(layer, "weight"):
            remove_parametrizations(layer, "weight", leave_parametrized=True)
    return inner


def test_on_disk_it_is_places_and_values(tiny_decoder: str, data: str, tmp_path: Path) -> None:
    from luthier.core.model import ModelRecord
    from luthier.models.attach import attach, save_trained, select
    from luthier.models.weights import read_tensors

    model = build(loaded(tiny_decoder, "bf16"), Config(data=data, share=0.02))
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.mul_(3.0)
    save_trained(model, tmp_path / "out", {"saves": "delta"})
    tensors = read_tensors(tmp_path / "out" / "changed.safetensors")
    names = {name.partition("#")[0] for name in tensors}
    assert set(tensors) == {f"{name}#{part}" for name in names for part in ("places", "values")}
    assert sum(len(t) for name, t in tensors.items() if "#values" in name) == round(0.02 * 2 * 9216)
    base = loaded(tiny_decoder, "bf16")
    ids = torch.tensor([[5, 9, 30, 7]])
    with torch.no_grad():
        untouched = base.module(ids).logits
        attach(base, ModelRecord("m", "adapter", "decoder", ""), "m", folder=tmp_path / "out")
        select(base, "m")
        assert torch.equal(base.module(ids).logits, model.module(ids).logits)
        select(base, None)
        assert torch.equal(base.module(ids).logits, untouched)
        select(base, "m")
        assert torch.equal(merge(base).module(ids).logits, model.module(ids).logits)


def test_a_sketch_counts_alike(tiny_decoder: str, data: str) -> None:
    from luthier.models.shapes import load_shapes, parameter_counts
    from luthier.store.models import find

    store = open_store()
    for share in (0.005, 0.37, 1.0):
        config = Config(data=data, share=share)
        sketch = build(load_shapes(store, find(store, tiny_decoder)), config)
        assert parameter_counts(sketch)[0] == parameter_counts(build(loaded(tiny_decoder), config))[0]


def test_what_it_refuses(tiny_decoder: str, data: str, tmp_path: Path) -> None:
    model = loaded(tiny_decoder)
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        build(model, Config(data=str(tmp_path / "gone.jsonl")))
    with pytest.raises(InputError, match="matches none"):
        build(model, Config(data=data, targets=["q_porj"]))
    model.context_length = 2
    with pytest.raises(DataError, match="holds no example that fits"):
        build(model, Config(data=data))
