"""MAML and Reptile against their papers' updates, worked out with torch.func and with an optimizer's own steps on a copy; what they leave behind."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.objectives.test_distill import told
from tests.objectives.test_episodes import COUNTS, many, model  # noqa: F401
from tests.training.test_tune import tensors
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from luthier.core.catalog import load
from luthier.core.errors import UnsupportedError
from luthier.core.task import PromptTemplate
from luthier.models.fast import speed_up
from luthier.models.load import LoadedModel, load_model
from luthier.objectives import maml, reptile
from luthier.objectives._episodes import Episode, Part
from luthier.objectives._rows import Limits
from luthier.store.database import open_store
from luthier.training.interrupt import Halt
from luthier.training.tune import tune

SHAPE = {"ways": 3, "shots": 2, "queries": 4, "episodes": 5}
RATES = {"inner_rate": 0.5, "head_rate": 2.0}


@pytest.fixture
def learner(model: LoadedModel) -> LoadedModel:  # noqa: F811
    """The tiny encoder with LoRA whose B is not zero, as it is in training: with cheap forwards."""
    model.module.requires_grad_(False)
    maml.heads(model, maml.Config())
    lora = load("methods", "lora")
    built: LoadedModel = lora(model, lora.configure({"rank": 2}))
    torch.manual_seed(4)
    for name, parameter in built.module.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    speed_up(built.module)
    return built


def episodes(found: LoadedModel, objective: Any, config: Any, count: int = 2) -> list[Episode]:
    rows = objective.prepare(many(), found, PromptTemplate(), config, Limits(found.context_length))
    drawn: list[Episode] = objective.collate(rows[:count], found)
    return drawn


def trained(found: LoadedModel) -> dict[str, nn.Parameter]:
    return {name: each for name, each in found.module.body.named_parameters() if each.requires_grad}


def first_head(found: LoadedModel, episode: Episode) -> dict[str, Tensor]:
    """What an episode's head begins with."""
    drawn = torch.randn(3, found.module.width, generator=torch.Generator().manual_seed(episode.seed))
    return {"weight": drawn * 0.02, "bias": torch.zeros(3)}


def wrong(
    body: nn.Module, weights: dict[str, Tensor], head: dict[str, Tensor], part: Part, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy of a part: a forward of the body, the mean over real tokens, the head."""
    hidden = functional_call(body, weights, (), {"input_ids": part.ids, "attention_mask": part.mask}).last_hidden_state
    mask = part.mask[..., None].float()
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    return F.cross_entropy(pooled @ head["weight"].T + head["bias"], part.labels, reduction=reduction)


def written_out(
    found: LoadedModel, drawn: list[Episode], steps: int, *, first_order: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective and its gradient by torch.func: gradients of gradients unless ``first_order``."""
    body = copy.deepcopy(found.module.body)
    for layer in body.modules():
        vars(layer).pop("forward", None)  # PEFT's own

    def outer(theta: dict[str, Tensor]) -> Tensor:
        total = torch.zeros(())
        for episode in drawn:
            weights, head = theta, first_head(found, episode)
            for _ in range(steps):
                slopes, of_head = grad(lambda w, h, e=episode: wrong(body, w, h, e.support), argnums=(0, 1))(
                    weights, head
                )
                if first_order:
                    slopes = {name: each.detach() for name, each in slopes.items()}
                    of_head = {name: each.detach() for name, each in of_head.items()}
                weights = {name: each - RATES["inner_rate"] * slopes[name] for name, each in weights.items()}
                head = {name: each - RATES["head_rate"] * of_head[name] for name, each in head.items()}
            total = total + wrong(body, weights, head, episode.query, "sum")
        return total / sum(len(episode.query.labels) for episode in drawn)

    theta = {name: each.detach().clone() for name, each in trained(found).items()}
    with sdpa_kernel(SDPBackend.MATH):
        return outer(theta), grad(outer)(theta)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_maml_is_its_equation(learner: LoadedModel, first_order: bool, steps: int) -> None:
    config = maml.Config(**SHAPE, **RATES, inner_steps=steps, first_order=first_order)
    drawn = episodes(learner, maml, config)
    found = maml.loss(learner, drawn, config)
    value, slopes = written_out(learner, drawn, steps, first_order=first_order)
    torch.testing.assert_close(found.value, value, rtol=1e-6, atol=1e-6)
    found.value.backward()
    assert found.count == 24
    largest = max(float(each.abs().max()) for each in slopes.values())
    assert largest > 1e-4
    for name, parameter in trained(learner).items():
        torch.testing.assert_close(parameter.grad, slopes[name], rtol=1e-4, atol=1e-6 * max(1.0, largest), msg=name)


def test_second_order_is_not_first_order(learner: LoadedModel) -> None:
    found = {}
    for first_order in (False, True):
        config = maml.Config(**SHAPE, **RATES, inner_steps=3, first_order=first_order)
        drawn = episodes(learner, maml, config)
        value = maml.loss(learner, drawn, config).value
        found[first_order] = torch.autograd.grad(value, list(trained(learner).values()))
    apart = max(float((a - b).abs().max()) for a, b in zip(found[False], found[True], strict=True))
    assert apart > 1e-4


def test_reptile_is_its_interpolation(learner: LoadedModel) -> None:
    """Two steps of torch's own SGD on a copy for each episode; then plain gradient descent is theta + epsilon (theta_tilde - theta)."""
    config = reptile.Config(**SHAPE, **RATES, inner_steps=2)
    drawn = episodes(learner, reptile, config)
    before = {name: each.detach().clone() for name, each in trained(learner).items()}
    away = {name: torch.zeros_like(each) for name, each in before.items()}
    losses = []
    for episode in drawn:
        body = copy.deepcopy(learner.module.body)
        for layer in body.modules():
            vars(layer).pop("forward", None)
        head = {name: each.requires_grad_() for name, each in first_head(learner, episode).items()}
        own = {name: each for name, each in body.named_parameters() if each.requires_grad}
        groups = [{"params": list(own.values()), "lr": 0.5}, {"params": list(head.values()), "lr": 2.0}]
        optimizer = torch.optim.SGD(groups)
        for _ in range(2):
            optimizer.zero_grad()
            wrong(body, {}, head, episode.support).backward()
            optimizer.step()
        losses.append(float(wrong(body, {}, head, episode.query).detach()))
        for name, each in own.items():
            away[name] += (each.detach() - before[name]) / len(drawn)
    found = reptile.loss(learner, drawn, config)
    assert float(found.value.detach()) == pytest.approx(sum(losses) / 2, abs=1e-6)
    found.value.backward()
    epsilon = 0.3
    torch.optim.SGD(list(trained(learner).values()), lr=epsilon * RATES["inner_rate"]).step()
    assert max(float(each.abs().max()) for each in away.values()) > 1e-3
    for name, parameter in trained(learner).items():
        torch.testing.assert_close(parameter, before[name] + epsilon * away[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("objective", [maml, reptile])
def test_validation_adapts_too_and_changes_nothing(learner: LoadedModel, objective: Any) -> None:
    config = objective.Config(**SHAPE, **RATES, inner_steps=2)
    drawn = episodes(learner, objective, config)
    before = {name: each.detach().clone() for name, each in learner.module.state_dict().items()}
    wanted = objective.loss(learner, drawn, config)
    with torch.inference_mode():
        found = objective.loss(learner, episodes(learner, objective, config), config)
    assert float(found.value) == pytest.approx(float(wanted.value.detach()), abs=1e-6)
    assert found.metrics == wanted.metrics and not found.value.requires_grad
    assert all(torch.equal(before[name], each) for name, each in learner.module.state_dict().items())


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    path = tmp_path / "many.jsonl"
    rows = [{"text": f"{label} number {i} here", "label": label} for label in COUNTS for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("objective", "method"), [("maml", "lora"), ("reptile", "lora"), ("reptile", "full")])
def test_an_initialisation_that_a_new_task_begins_with(
    tiny_encoder: str, tickets: Path, objective: str, method: str
) -> None:
    options = {"name": objective, **SHAPE, "shots": 1, "queries": 2, "inner_steps": 2}
    train = {"epochs": 2, "batch_size": 2, "checkpoint_every": 1}

    def config(name: str) -> dict[str, Any]:
        return told(tiny_encoder, tickets, options, method, name=name, train=train)

    def stop(record: Any) -> None:
        if record["step"] == 3:
            raise Halt("enough")

    whole = tune(config("whole"))
    assert whole.model.meta["labels"] == [] and whole.summary["validation_accuracy"] >= 0
    with pytest.raises(Halt):
        tune(config("broken"), metrics=stop)
    one, other = tensors(whole), tensors(tune(config("broken")))
    assert one and one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert not any("head" in name for name in one)
    new = tickets.parent / "new.jsonl"
    new.write_text(
        "".join(json.dumps({"text": f"{x} {i}", "label": x}) + "\n" for x in ("violin", "deposit") for i in range(5))
    )
    made = tune(told("whole", new, "classify", "lora", name="new"))
    assert made.model.meta["labels"] == ["deposit", "violin"] and made.model.base == "whole"
    assert load_model(open_store(), "new", device="cpu").labels == ("deposit", "violin")


def test_what_cannot_learn_to_learn(tiny_encoder: str, tickets: Path) -> None:
    for objective in ("maml", "reptile"):
        with pytest.raises(UnsupportedError, match="tunes an encoder without one"):
            tune(told(tiny_encoder, tickets, objective, "linear_probe"))
