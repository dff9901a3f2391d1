"""Layer-wise distillation of decoders against the equations, with layers' outputs of transformers and attention scores worked out from the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.objectives.test_distill import CHATS, PROMPT, named, other_decoder, told
from tests.training.test_tune import tensors, write_chats
from torch import Tensor, nn

from luthier.core.dataset import Dataset, Example
from luthier.core.message import user
from luthier.core.run import no_progress
from luthier.models.load import LoadedModel, load_model
from luthier.models.weights import read_tensors
from luthier.objectives import distill_layers
from luthier.objectives._rows import Limits
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.training.interrupt import Halt
from luthier.training.tune import tune

DOCUMENTS = Dataset(
    "d",
    "text",
    tuple(Example(str(i), user(t), source=f"d:{i}") for i, t in enumerate(["it has arrived", "no courier answers"])),
)


def looked_at(model: LoadedModel, ids: list[int]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """What enters the first layer and what each one gives, the scores of each, and the logits, of one row."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    inner = model.module
    given: list[Tensor] = []
    entered: list[Tensor] = []

    def see(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        entered.append(args[0])
        given.append(out)

    hooks = [layer.register_forward_hook(see) for layer in inner.model.layers]
    logits = inner(input_ids=torch.tensor([ids])).logits[0]
    for hook in hooks:
        hook.remove()
    place = torch.arange(len(ids))[None]
    scores = []
    for layer, before in zip(inner.model.layers, entered, strict=True):
        own, normed = layer.self_attn, layer.input_layernorm(before)
        query, key = (
            part(normed).view(1, len(ids), -1, own.head_dim).transpose(1, 2) for part in (own.q_proj, own.k_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *inner.model.rotary_emb(before, place))
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores.append((query @ key.transpose(2, 3) / own.head_dim**0.5)[0])
    return [entered[0][0], *(each[0] for each in given)], scores, logits


@pytest.fixture
def teacher(tiny_decoder: str, tiny_decoder_path: Path, tmp_path: Path) -> str:
    """Three layers, wider than the student's two."""
    return other_decoder(tiny_decoder_path, tmp_path / "big")


def prepared(model: LoadedModel, dataset: Dataset, **options: Any) -> tuple[list[Any], distill_layers.Config]:
    config = distill_layers.Config(**options)
    distill_layers.heads(model, config)
    rows = distill_layers.prepare(dataset, model, PROMPT, config, Limits(model.context_length))
    with torch.no_grad():
        distill_layers.before(model, rows, config, no_progress)
    return rows, config


@pytest.mark.parametrize("dataset", [CHATS, DOCUMENTS])
def test_the_equations(tiny_decoder: str, teacher: str, dataset: Dataset) -> None:
    torch.manual_seed(0)
    student, whole = named(tiny_decoder, ()), named(teacher, ())
    student.module.requires_grad_(True)
    weights = {"embeddings": 0.5, "hidden": 2.0, "attention": 0.7, "prediction": 1.5}
    rows, config = prepared(student, dataset, teacher=teacher, temperature=2.0, **weights)
    projections = student.module.projections
    terms = dict.fromkeys(weights, torch.zeros(()))
    for row in rows:
        (hs, a_s, zs), (ht, at, zt) = looked_at(student, row.ids), looked_at(whole, row.ids)
        square, seen = nn.MSELoss(), torch.ones(len(row.ids), len(row.ids), dtype=torch.bool).tril()
        terms["embeddings"] = terms["embeddings"] + square(projections["embeddings"](hs[0]), ht[0].detach())
        for m, g in enumerate([0, 2]):
            terms["hidden"] = terms["hidden"] + square(projections["hidden"](hs[m + 1]), ht[g + 1].detach())
            terms["attention"] = terms["attention"] + square(a_s[m][:, seen], at[g][:, seen].detach())
        asked = list(row.places)
        soft = (zt[asked].detach() / 2).softmax(-1)
        terms["prediction"] = terms["prediction"] - (soft * (zs[asked] / 2).log_softmax(-1)).sum(-1).mean()
    wanted = sum(weights[name] * term for name, term in terms.items()) / len(rows)
    found = distill_layers.loss(student, distill_layers.collate(rows, student), config)
    assert float(found.value.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6, abs=1e-6)
    assert found.count == len(rows) == len(dataset)
    for name in weights:
        assert found.metrics[name] == pytest.approx(float(terms[name].detach()) / len(rows), rel=1e-4) and found.metrics[name] > 1e-4  # fmt: skip
    trained = dict(student.module.named_parameters())
    slopes = torch.autograd.grad(wanted, list(trained.values()), allow_unused=True)
    found.value.backward()
    for (name, parameter), slope in zip(trained.items(), slopes, strict=True):
        assert (parameter.grad is None) == (slope is None), name
        if slope is not None:
            torch.testing.assert_close(parameter.grad, slope, rtol=1e-3, atol=1e-5, msg=name)


def test_padding_and_what_comes_later_count_for_nothing(tiny_decoder: str, teacher: str) -> None:
    student = named(tiny_decoder, ())
    rows, config = prepared(student, CHATS, teacher=teacher)
    each = [
        float(distill_layers.loss(student, distill_layers.collate([row], student), config).value.detach())
        for row in rows
    ]
    together = distill_layers.loss(student, distill_layers.collate(rows, student), config)
    assert float(together.value.detach()) == pytest.approx(sum(each) / len(rows), rel=1e-4)
    assert len({row.length for row in rows}) > 1


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_verb_and_a_resume(tiny_decoder: str, teacher: str, tmp_path: Path, method: str) -> None:
    chats = write_chats(tmp_path / "chats.jsonl")
    objective = {"name": "distill_layers", "teacher": teacher}

    def config(name: str) -> dict[str, Any]:
        return told(tiny_decoder, chats, objective, method, name=name, train={"epochs": 3, "checkpoint_every": 1})

    def stop(record: Any) -> None:
        if record["step"] == 2:
            raise Halt("enough")

    losses: list[float] = []
    made = tune(config("whole"), metrics=lambda record: losses.append(record["loss"]))
    assert losses[-1] < losses[0]
    with pytest.raises(Halt):
        tune(config("broken"), metrics=stop)
    one, other = tensors(made), tensors(tune(config("broken")))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    held = [n for p in path_of(open_store(), made.model.digest).glob("*.safetensors") for n in read_tensors(p)]
    assert held and not [name for name in held if "projection" in name]
    assert not hasattr(load_model(open_store(), "whole", device="cpu").module, "projections")


def test_plain_text_without_a_prompt(tiny_decoder: str, teacher: str, tmp_path: Path) -> None:
    path = tmp_path / "plain.jsonl"
    path.write_text("".join(json.dumps({"text": f"parcel number {i} is here"}) + "\n" for i in range(8)))
    made = tune(told(tiny_decoder, path, {"name": "distill_layers", "teacher": teacher, "attention": 0}, "lora"))
    assert made.summary["validation_prediction"] > 0 and "validation_attention" not in made.summary
