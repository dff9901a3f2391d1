"""The same behaviour asked of every method in the catalogue, on every kind of model that it declares.

A method's own test file says what is particular to it: ``COUNTS`` (kind of tiny model -> how many parameters it trains, worked out from the
sizes in ``tiny.py``), ``OPTIONS`` (what it needs, and no more), ``KEPT`` (kind -> how many of them its file holds, where it lets go of
some), ``CANNOT`` (kind -> what the refusal says, for a kind whose architecture it declares but that it cannot take) and ``prepare``
(store, base: puts into the store what ``OPTIONS`` names).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.tiny import FIXTURES, HEAD, KINDS, LAYERS, D
from torch import Tensor

from luthier.core.catalog import EntryConfig, load, names
from luthier.core.dataset import Dataset, Example
from luthier.core.errors import InputError, UnsupportedError
from luthier.core.message import user
from luthier.core.model import ModelRecord
from luthier.core.task import PromptTemplate
from luthier.models.adapters import inner_of
from luthier.models.attach import SAVES, attach, detach, save_trained, select
from luthier.models.fast import speed_up
from luthier.models.load import LoadedModel, load_model
from luthier.models.merge import merge
from luthier.models.weights import read_tensors
from luthier.objectives._label_texts import label_log_probs
from luthier.objectives._rows import Limits
from luthier.store.artifacts import put, staged
from luthier.store.database import open_store
from luthier.store.models import register
from luthier.training import checkpoint
from luthier.training.config import TrainConfig
from luthier.training.interrupt import Halt
from luthier.training.loop import train
from luthier.training.work import Work

LABELS = ("billing", "delivery")
ROWS = [("refund the deposit", "billing"), ("where is the parcel", "delivery")] * 4
ARCHITECTURES = {"decoder", "encoder", "encoder-decoder"}
ENGINES = {"torch", "llamacpp"}
HOW = {"swap", "merge", "no"}


def said(method: str, what: str) -> Mapping[str, Any]:
    """What the method's own test file says under this name; nothing where there is no such file."""
    if not (Path(__file__).parent / f"test_{method}.py").exists():
        return {}
    found: Mapping[str, Any] = getattr(import_module(f"tests.methods.test_{method}"), what, {})
    return found


DECLARED = [(m, kind) for m in names("methods") for kind in KINDS if KINDS[kind] in load("methods", m).module.DEFAULTS]
REFUSED = [(method, kind) for method, kind in DECLARED if kind in said(method, "CANNOT")]
CASES = [case for case in DECLARED if case not in REFUSED]


def fresh(request: pytest.FixtureRequest, kind: str, method: str, dtype: str = "fp32") -> LoadedModel:
    """The tiny model of a kind, in the form that the method wants its base in."""
    name, entry = request.getfixturevalue(FIXTURES[kind]), load("methods", method)
    wants = entry.optional("quantization")
    form = None if wants is None else wants(entry.configure(said(method, "OPTIONS")))
    model = load_model(open_store(), name, dtype=dtype, device="cpu", labels=LABELS, quantization=form)
    model.labels = LABELS
    model.module.requires_grad_(False)
    return model


def built(model: LoadedModel, method: str, seed: int = 0) -> LoadedModel:
    if prepare := said(method, "prepare"):
        prepare(open_store(), model.base)  # type: ignore[operator]
    torch.manual_seed(seed)
    entry = load("methods", method)
    return entry(model, entry.configure(said(method, "OPTIONS")))


def prepared(model: LoadedModel) -> Work:
    objective = load("objectives", "classify")
    config = objective.configure()
    data = Dataset("tiny", "labelled", tuple(Example(str(i), user(t), label) for i, (t, label) in enumerate(ROWS)))
    rows = objective.module.prepare(data, model, PromptTemplate(labels=LABELS), config, Limits(128))
    return Work(rows, lambda r: objective.module.collate(r, model), lambda b: objective.module.loss(model, b, config))


def run(
    model: LoadedModel, method: str, config: TrainConfig, folder: Path, *, stop_at: int = 0
) -> list[Mapping[str, Any]]:
    """Train, from the last checkpoint in ``folder`` if there is one; ``stop_at``: give up after that step. Returns what was recorded."""
    records: list[Mapping[str, Any]] = []
    entry = load("methods", method)
    steps = entry.optional("steps")

    def watch(record: Mapping[str, Any]) -> None:
        records.append(record)
        if record["step"] == stop_at:
            raise Halt("enough")

    train(
        model.module,
        prepared(model),
        config,
        folder=folder,
        metrics=watch,
        steps=None if steps is None else steps(model, entry.configure(said(method, "OPTIONS"))),
        resume=checkpoint.latest(folder),
    )
    return records


def outputs(model: LoadedModel) -> Tensor:
    """What the model says about the rows: log-likelihoods of labels, or label scores."""
    speed_up(model.module.eval())
    work = prepared(model)
    batch = work.collate(work.rows)
    with torch.no_grad():
        if model.architecture != "encoder":
            return torch.stack(label_log_probs(model, batch.rows))
        if batch.features is not None:
            return model.module.classify(batch.features)
        return model.module(batch.ids, batch.mask)


def body_output(model: LoadedModel) -> Tensor:
    """What the model makes of some tokens, its head and labels aside."""
    ids = torch.tensor([[5, 9, 30, 7], [8, 6, 40, 11]])
    inner = inner_of(model).eval()
    with torch.no_grad():
        if model.architecture == "encoder":
            return inner(ids).last_hidden_state
        return inner(ids, **({"decoder_input_ids": ids} if model.architecture == "encoder-decoder" else {})).logits


def distinct(files: list[dict[str, Tensor]]) -> int:
    """How many values files hold. PEFT's layout holds a matrix that layers share for each of them."""
    kept: list[Tensor] = []
    for tensors in files:
        for name, tensor in tensors.items():
            twice = tensor.numel() > 1000 and any(tensor.shape == k.shape and torch.equal(tensor, k) for k in kept)
            if "#places" not in name and not twice:
                kept.append(tensor)
    return sum(tensor.numel() for tensor in kept)


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def copied(model: LoadedModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.module.named_parameters()}


@pytest.mark.parametrize("method", names("methods"))
def test_declarations(method: str) -> None:
    module = load("methods", method).module
    assert issubclass(module.Config, EntryConfig)
    assert len(module.Config.model_fields) <= 15
    assert module.SAVES in SAVES
    assert module.DEFAULTS and set(module.DEFAULTS) <= ARCHITECTURES
    assert set(module.SERVING) == set(module.DEFAULTS)
    for architecture, engines in module.SERVING.items():
        assert set(engines) == ENGINES and set(engines.values()) <= HOW, architecture
    for defaults in module.DEFAULTS.values():
        assert set(defaults) <= set(TrainConfig.model_fields)
        assert "learning_rate" in defaults
    kinds = {kind for name, kind in CASES if name == method}
    assert kinds and kinds <= set(said(method, "COUNTS"))


@pytest.mark.parametrize("method", names("methods"))
def test_unknown_options_are_refused(method: str) -> None:
    with pytest.raises(InputError, match="unknown key 'nothing'"):
        load("methods", method).configure({"nothing": 1})


@pytest.mark.parametrize(("method", "kind"), REFUSED)
def test_what_a_method_cannot_take_is_refused_with_what_can_be_done(
    method: str, kind: str, home: Path, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(UnsupportedError, match=said(method, "CANNOT")[kind]) as error:
        built(fresh(request, kind, method), method)
    assert error.value.hint


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_trains_what_it_says_and_nothing_else(
    method: str, kind: str, home: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = fresh(request, kind, method)
    inner = inner_of(model)
    assert (inner.config.num_hidden_layers, inner.config.hidden_size) == (LAYERS, D)
    entry = load("methods", method)
    formula = entry.optional("trained_parameters")
    told = None if formula is None else formula(inner, entry.configure(said(method, "OPTIONS"))) + HEAD[kind]
    model = built(model, method)
    trained = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
    count = sum(p.numel() for p in trained.values())
    assert count == said(method, "COUNTS")[kind]
    assert told in (None, count)
    if kind == "bert":
        assert {"head.weight", "head.bias"} <= set(trained)

    work = prepared(model)
    model.module.train()
    work.loss(work.collate(work.rows)).value.backward()
    assert {name for name, p in model.module.named_parameters() if p.grad is not None} == set(trained)
    model.module.zero_grad()

    before = copied(model)
    records = run(model, method, TrainConfig(epochs=20, batch_size=4, learning_rate=5e-3), tmp_path / "run")
    changed = {name for name, p in model.module.named_parameters() if not torch.equal(p, before[name])}
    assert changed <= set(trained)
    unread = {name for name in trained if before[name].ndim == 2 and "position" not in name} - changed
    assert not unread, "declared trainable, never moved"
    losses = [record["loss"] for record in records]
    assert sum(losses[-4:]) < sum(losses[:4])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("method", "kind"), CASES)
def test_saved_loaded_taken_off_and_merged(
    method: str, kind: str, dtype: str, home: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """What comes back answers as what was trained, bit for bit; the file holds nothing else; the base under it stays what it was."""
    store, saves = open_store(), load("methods", method).module.SAVES
    model = built(fresh(request, kind, method, dtype), method)
    untrained = outputs(model)
    run(model, method, TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2), tmp_path / "run")
    expected = outputs(model)
    assert not torch.allclose(expected, untrained)
    with staged(store) as folder:
        save_trained(model, folder, {"saves": saves})
        held = [read_tensors(path) for path in folder.glob("*.safetensors")]
        digest, size = put(store, folder)
    trained = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    assert distinct(held) == said(method, "KEPT").get(kind, trained)
    record = register(store, ModelRecord("result", "adapter", model.architecture, digest, size, base=model.base.name))
    again = load_model(store, record, dtype=dtype, device="cpu")
    again.labels = LABELS
    torch.testing.assert_close(outputs(again), expected, rtol=0, atol=0)
    if saves == "weights":
        return
    bare = load_model(store, model.base, dtype=dtype, device="cpu", quantization=model.quantization)
    base = load_model(store, model.base, dtype=dtype, device="cpu", quantization=model.quantization)
    attach(base, record, "result")
    for _ in range(2):
        torch.testing.assert_close(body_output(base), body_output(bare), rtol=0, atol=0)
        select(base, "result")
        torch.testing.assert_close(body_output(base), body_output(again), rtol=0, atol=0)
        select(base, None)
    detach(base, "result")
    assert equal(base.module.state_dict(), bare.module.state_dict())
    of_decoders = load("methods", method).module.SERVING.get("decoder", {"llamacpp": "no"})
    if dtype == "fp32" and of_decoders["llamacpp"] != "no":  # what can be merged can be on every architecture
        torch.testing.assert_close(body_output(merge(again)), body_output(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_the_same_seed_gives_the_same_model_also_when_resumed(
    method: str, kind: str, home: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    config = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2, checkpoint_every=1)
    states = []
    for stops in ((0,), (3, 0)):  # straight, and given up after a checkpoint
        for stop_at in stops:
            torch.manual_seed(3)
            model = built(fresh(request, kind, method), method, seed=3)
            try:
                run(model, method, config, tmp_path / str(len(stops)), stop_at=stop_at)
            except Halt:
                assert stop_at
        states.append(copied(model))
    assert equal(states[0], states[1])
