"""Prototypical networks against the paper's equations, the head that says the same, and the baseline that trains nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.objectives.test_distill import told
from tests.objectives.test_episodes import COUNTS, many, model  # noqa: F401
from tests.training.test_tune import tensors

from luthier.core.errors import DataError
from luthier.core.run import no_progress
from luthier.core.task import PromptTemplate
from luthier.evaluation.evaluate import evaluate
from luthier.models.load import LoadedModel, load_model
from luthier.objectives import prototype
from luthier.objectives._rows import Limits
from luthier.objectives.prototype import Config
from luthier.store.database import open_store
from luthier.tournament.continual import continual
from luthier.training.interrupt import Halt
from luthier.training.tune import tune

EPISODES = {"ways": 3, "shots": 2, "queries": 4, "episodes": 5}


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    """Labels that a word tells apart."""
    path = tmp_path / "many.jsonl"
    rows = [{"text": f"{label} number {i} here", "label": label} for label in COUNTS for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def vector(found: LoadedModel, text: str) -> torch.Tensor:
    """The mean of the last hidden states of one text, from a plain forward."""
    inputs = found.tokenizer(text, return_tensors="pt")
    body = found.module.body
    return body(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state[0].mean(0)


def test_the_equations(model: LoadedModel) -> None:  # noqa: F811
    """Each mean, each distance and each softmax by itself."""
    model.module.requires_grad_(True)
    config = Config(**EPISODES)
    rows = prototype.prepare(many(), model, PromptTemplate(), config, Limits(model.context_length))
    batch = prototype.collate(rows[:2], model)
    found = prototype.loss(model, batch, config)
    terms, hits = [], 0
    for episode in batch:
        parts = []
        for part in (episode.support, episode.query):
            hidden = [model.module.body(input_ids=ids[mask.bool()][None]).last_hidden_state[0].mean(0) for ids, mask in zip(part.ids, part.mask, strict=True)]  # fmt: skip
            parts.append(torch.stack(hidden))
        means = [torch.stack([parts[0][2 * k], parts[0][2 * k + 1]]).mean(0) for k in range(3)]
        for at, asked in enumerate(parts[1]):
            away = torch.stack([torch.dist(asked, mean) ** 2 for mean in means])
            terms.append(-(-away).log_softmax(-1)[at // 4])
            hits += int(away.argmin()) == at // 4
    wanted = torch.stack(terms).mean()
    torch.testing.assert_close(found.value, wanted, rtol=1e-6, atol=1e-6)
    assert found.count == 24 and found.metrics["accuracy"] == pytest.approx(hits / 24)
    weights = list(model.module.body.parameters())
    for got, want in zip(
        torch.autograd.grad(found.value, weights, allow_unused=True),
        torch.autograd.grad(wanted, weights, allow_unused=True),
        strict=True,
    ):
        assert (got is None) == (want is None)
        if got is not None:
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_head_says_what_the_distances_say(model: LoadedModel, frozen: bool) -> None:  # noqa: F811
    model.module.body.requires_grad_(not frozen)
    config = Config(**EPISODES)
    dataset = many({**COUNTS, "delivery": 1})  # one example is enough for a mean, though not for an episode
    rows = prototype.prepare(dataset, model, PromptTemplate(), config, Limits(model.context_length))
    prototype.before(model, rows, config, no_progress)
    prototype.after(model, rows, config, no_progress)
    with torch.no_grad():
        means = torch.stack(
            [
                torch.stack([vector(model, e.text) for e in dataset.examples if e.target == label]).mean(0)
                for label in model.labels
            ]
        )
        asked = vector(model, "the courier of delivery number 3")
        wanted = (-(asked - means).square().sum(-1)).softmax(-1)
        inputs = model.tokenizer("the courier of delivery number 3", return_tensors="pt")
        found = model.module(inputs["input_ids"], inputs["attention_mask"]).softmax(-1)[0]
    torch.testing.assert_close(model.module.head.weight, 2 * means, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_baseline_trains_nothing(tiny_encoder: str, tickets: Path) -> None:
    """Six examples a label, no step; the result is a classifier like any other, and better than chance."""
    seen: list[Any] = []
    config = told(tiny_encoder, tickets, "prototype", "linear_probe", name="nearest")
    made = tune(config, metrics=seen.append)
    assert not seen and made.summary["steps"] == 0 and made.summary["ended"] == "nothing to train"
    assert made.summary["trainable_parameters"] == 0
    assert set(made.model.meta["labels"]) == set(COUNTS) and made.model.meta["objective"] == "prototype"
    task = tickets.parent / "task.yaml"
    task.write_text(f"data: {{path: {tickets.name}}}\nscorers: [accuracy]\n")
    result = evaluate("nearest", task)
    assert result.score > 0.4  # of five labels
    assert made.summary["validation_accuracy"] > 0.4
    assert tune(config).reused
    before = load_model(open_store(), tiny_encoder, dtype="fp32", device="cpu")
    again = load_model(open_store(), "nearest", dtype="fp32", device="cpu")
    for name, parameter in before.module.body.named_parameters():
        assert torch.equal(parameter, dict(again.module.body.named_parameters())[name])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_on_episodes_and_a_resume(tiny_encoder: str, tickets: Path, method: str) -> None:
    objective = {"name": "prototype", **EPISODES, "queries": 2, "shots": 1}

    def config(name: str) -> dict[str, Any]:
        train = {"epochs": 10, "batch_size": 2, "checkpoint_every": 1, "learning_rate": 2e-2}
        return told(tiny_encoder, tickets, objective, method, name=name, train=train)

    def stop(record: Any) -> None:
        if record["step"] == 4:
            raise Halt("enough")

    losses: list[float] = []
    whole = tune(config("whole"), metrics=lambda record: losses.append(record["loss"]))
    assert sum(losses[-10:]) < sum(losses[:10])
    with pytest.raises(Halt):
        tune(config("broken"), metrics=stop)
    one, other = tensors(whole), tensors(tune(config("broken")))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert any("head" in name for name in one)


def test_what_is_too_little(tiny_encoder: str, tmp_path: Path) -> None:
    path = tmp_path / "few.jsonl"
    rows = [{"text": f"{label} {i}", "label": label} for label in ("a", "b") for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = {"data": {"path": str(path), "split": {"train": 1.0, "validation": 0.0}}}
    with pytest.raises(DataError, match="needs 5 labels with 10 examples each; 0 of 2"):
        tune(told(tiny_encoder, path, "prototype", "lora") | more)
    assert tune(told(tiny_encoder, path, "prototype", "linear_probe") | more).summary["rows"] == 6


def test_means_and_distances() -> None:
    torch.manual_seed(0)
    vectors, labels = torch.randn(7, 3), torch.tensor([3, 0, 2, 2, 2, 0, 3])
    found, places = prototype.means(vectors, labels)
    assert places.tolist() == [0, 2, 3]
    torch.testing.assert_close(
        found, torch.stack([vectors[[1, 5]].mean(0), vectors[2:5].mean(0), vectors[[0, 6]].mean(0)])
    )
    torch.testing.assert_close(prototype.distances(vectors, found), torch.cdist(vectors, found) ** 2)


def test_labels_come_one_after_another_and_none_is_forgotten(tiny_encoder: str, tmp_path: Path) -> None:
    """The encoder stays as it is, and earlier means stay in the head."""
    paths = []
    for name, labels in (("first", ("billing", "courier")), ("second", ("lessons", "refund"))):
        path = tmp_path / f"{name}.jsonl"
        rows = [{"text": f"{label} number {i} here", "label": label} for label in labels for i in range(12)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths.append(str(path))
    found = continual(
        {
            "name": "grow",
            "model": tiny_encoder,
            "stream": paths,
            "method": "linear_probe",
            "objective": "prototype",
            "replay": 0,
            "train": {"dtype": "fp32", "device": "cpu"},
        }
    )
    first, second = (load_model(open_store(), step.model, dtype="fp32", device="cpu") for step in found.steps)
    assert second.labels == ("billing", "courier", "lessons", "refund")
    assert torch.equal(second.module.head.weight[:2], first.module.head.weight)
    assert torch.equal(second.module.head.bias[:2], first.module.head.bias)
