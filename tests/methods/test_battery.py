"""The same behaviour asked of every method in the catalogue, on every architecture that it declares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.catalog import EntryConfig, load, names
from luthier.core.dataset import Dataset, Example
from luthier.core.errors import InputError
from luthier.core.message import user
from luthier.core.model import ModelRecord
from luthier.core.task import PromptTemplate
from luthier.models.attach import SAVES, save_trained
from luthier.models.load import LoadedModel, load_model
from luthier.objectives._rows import Limits
from luthier.store.artifacts import put, staged
from luthier.store.database import open_store
from luthier.store.models import register
from luthier.training.config import TrainConfig
from luthier.training.loop import Work, train

LABELS = ("billing", "delivery")
ROWS = [("refund the deposit", "billing"), ("where is the parcel", "delivery")] * 4
ENGINES = {"torch", "llamacpp"}
HOW = {"swap", "merge", "no"}
CASES = [(name, arch) for name in names("methods") for arch in sorted(load("methods", name).module.DEFAULTS)]


def fresh(home: Path, request: pytest.FixtureRequest, architecture: str) -> LoadedModel:
    name = request.getfixturevalue(f"tiny_{architecture}")
    model = load_model(open_store(), name, dtype="fp32", device="cpu", labels=LABELS)
    model.labels = LABELS
    model.module.requires_grad_(False)
    return model


def built(model: LoadedModel, method: str, seed: int = 0, **options: Any) -> LoadedModel:
    torch.manual_seed(seed)
    entry = load("methods", method)
    return entry(model, entry.configure(options))


def prepared(model: LoadedModel, *, dtype: torch.dtype = torch.float32) -> Work:
    objective = load("objectives", "classify")
    config = objective.configure()
    data = Dataset("tiny", "labelled", tuple(Example(str(i), user(t), label) for i, (t, label) in enumerate(ROWS)))
    rows = objective.module.prepare(data, model, PromptTemplate(labels=LABELS), config, Limits(128))
    return Work(rows, lambda r: objective.module.collate(r, model), lambda b: objective.module.loss(model, b, config))


def outputs(model: LoadedModel, work: Work) -> torch.Tensor:
    """What the model says about the rows: label scores or logits."""
    from luthier.models.score import packed_log_probs

    model.module.eval()
    batch = work.collate(work.rows)
    with torch.no_grad():
        if model.architecture == "decoder":
            return torch.stack(packed_log_probs(model.module, batch.rows, model.device))
        if batch.features is not None:
            return model.module.classify(batch.features)
        return model.module(batch.ids, batch.mask)


@pytest.mark.parametrize("method", names("methods"))
def test_declarations(method: str) -> None:
    module = load("methods", method).module
    assert issubclass(module.Config, EntryConfig)
    assert len(module.Config.model_fields) <= 15
    assert module.SAVES in SAVES
    assert module.DEFAULTS and set(module.DEFAULTS) <= {"decoder", "encoder"}
    assert set(module.SERVING) == set(module.DEFAULTS)
    for architecture, engines in module.SERVING.items():
        assert set(engines) == ENGINES and set(engines.values()) <= HOW, architecture
    for defaults in module.DEFAULTS.values():
        assert set(defaults) <= set(TrainConfig.model_fields)
        assert "learning_rate" in defaults


@pytest.mark.parametrize("method", names("methods"))
def test_unknown_options_are_refused(method: str) -> None:
    with pytest.raises(InputError, match="unknown key 'nothing'"):
        load("methods", method).configure({"nothing": 1})


@pytest.mark.parametrize(("method", "architecture"), CASES)
def test_trains_what_it_says_and_nothing_else(
    method: str, architecture: str, home: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = built(fresh(home, request, architecture), method)
    trained = {name for name, p in model.module.named_parameters() if p.requires_grad}
    assert trained
    if architecture == "encoder":
        assert {"head.weight", "head.bias"} <= trained
    work = prepared(model)
    before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    config = TrainConfig(epochs=20, batch_size=4, learning_rate=5e-3)
    records: list[Any] = []
    train(model.module, work, config, folder=tmp_path / "run", metrics=records.append)
    changed = {name for name, p in model.module.named_parameters() if not torch.equal(p, before[name])}
    assert changed <= trained
    unread = {name for name in trained if before[name].ndim == 2 and "position" not in name} - changed
    assert not unread, "declared trainable, never moved"
    losses = [record["loss"] for record in records]
    assert sum(losses[-4:]) < sum(losses[:4])


@pytest.mark.parametrize(("method", "architecture"), CASES)
def test_save_and_load_answer_alike(
    method: str, architecture: str, home: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = built(fresh(home, request, architecture), method)
    work = prepared(model)
    config = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2)
    untrained = outputs(model, work)
    train(model.module, work, config, folder=tmp_path / "run", metrics=lambda record: None)
    expected = outputs(model, work)
    assert not torch.allclose(expected, untrained)
    store = open_store()
    with staged(store) as folder:
        save_trained(model, folder, {"saves": load("methods", method).module.SAVES})
        digest, size = put(store, folder)
    record = register(store, ModelRecord("result", "adapter", model.architecture, digest, size, base=model.base.name))
    again = load_model(store, record, dtype="fp32", device="cpu")
    again.labels = LABELS
    torch.testing.assert_close(outputs(again, prepared(again)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("method", "architecture"), CASES)
def test_the_same_seed_builds_the_same_model(
    method: str, architecture: str, home: Path, request: pytest.FixtureRequest
) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        model = built(fresh(home, request, architecture), method, seed=3)
        states.append({n: p.detach().clone() for n, p in model.module.named_parameters() if "head" not in n})
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
