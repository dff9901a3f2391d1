"""What trainings share must not change what they give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.training.test_tune import equal, settings, tensors, write_tickets

from luthier.models import load as loading
from luthier.store.database import open_store
from luthier.store.models import find, remove
from luthier.training.preflight import look_ahead
from luthier.training.resolve import resolve
from luthier.training.shared import Shared
from luthier.training.tune import tune


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    return write_tickets(tmp_path / "tickets.jsonl")


@pytest.mark.parametrize(
    ("base", "method"),
    [("tiny_decoder", "lora"), ("tiny_decoder", "full"), ("tiny_encoder", "full"), ("tiny_encoder", "linear_probe")],
)
def test_the_result_is_that_of_a_command_of_its_own(
    base: str, method: str, tickets: Path, request: pytest.FixtureRequest
) -> None:
    name, store, shared = request.getfixturevalue(base), open_store(), Shared()
    tune(settings(name, tickets, method, seed=7), store=store, shared=shared)  # leaves the base and the rows behind
    alone = tune(settings(name, tickets, method), store=store)
    expected = tensors(alone)
    remove(store, alone.model.name)
    together = tune(settings(name, tickets, method), store=store, shared=shared)
    assert not together.reused
    assert equal(tensors(together), expected)
    assert shared.found == {"bases": 1, "rows": 2}


def test_a_copy_is_not_the_base(tiny_encoder: str) -> None:
    store, shared = open_store(), Shared()
    record = find(store, tiny_encoder)
    first = shared.load(store, record, dtype="fp32", device="cpu", labels=("a", "b"))
    with torch.no_grad():
        for parameter in first.module.parameters():
            parameter.zero_()
    second = shared.load(store, record, dtype="fp32", device="cpu", labels=("a", "b", "c"))
    assert any(p.any() for p in second.module.body.parameters())
    assert second.module.head.out_features == 3
    assert second.labels == ("a", "b", "c")


def test_a_base_whose_loading_draws_random_numbers_is_not_shared(
    tiny_encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loading.load_folder

    def draws(*args: object, **kwargs: object) -> object:
        torch.rand(1)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "load_folder", draws)
    store, shared = open_store(), Shared()
    record = find(store, tiny_encoder)
    heads = []
    for load in (shared.load, shared.load, loading.load_model):
        torch.manual_seed(0)
        heads.append(load(store, record, dtype="fp32", device="cpu", labels=("a", "b")).module.head.weight)
    assert torch.equal(heads[0], heads[2])
    assert torch.equal(heads[1], heads[2])
    assert shared.found["bases"] == 0


def test_a_large_base_is_not_kept_twice(tiny_encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.training.memory.free_mb", lambda device=None: 0.001)
    store, shared = open_store(), Shared()
    for _ in range(2):
        shared.load(store, find(store, tiny_encoder), dtype="fp32", device="cpu")
    assert shared.found["bases"] == 0


def test_clear_forgets() -> None:
    shared, made = Shared(), []

    def prepare() -> object:
        made.append(1)
        return object()

    for _ in range(2):
        shared.rows(["k"], prepare)  # type: ignore[arg-type]
    shared.clear()
    shared.rows(["k"], prepare)  # type: ignore[arg-type]
    assert len(made) == 2


def test_settings_that_only_the_loss_reads_share_rows(tiny_encoder: str, tickets: Path) -> None:
    shared, store = Shared(), open_store()
    plain = settings(tiny_encoder, tickets, "linear_probe", max_steps=1)
    tune(plain, store=store, shared=shared)
    tune({**plain, "objective": {"name": "classify", "label_smoothing": 0.1}}, store=store, shared=shared)
    assert shared.found["rows"] == 2


@pytest.mark.parametrize("method", ["linear_probe", "full"])
def test_a_prediction_leaves_rows_for_the_training_but_no_empty_features(
    tiny_encoder: str, tickets: Path, method: str
) -> None:
    shared, store = Shared(), open_store()
    config = settings(tiny_encoder, tickets, method, max_steps=2)
    alone = tensors(tune(config, store=store))
    remove(store, tune(config, store=store).model.name)
    look_ahead(store, resolve(config, (), store), shared)
    assert equal(tensors(tune(config, store=store, shared=shared)), alone)
    assert shared.found["rows"] == (0 if method == "linear_probe" else 2)
