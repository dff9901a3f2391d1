"""Predictions: exact where arithmetic is exact, corrected by earlier runs, and kept beside what happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.test_tune import settings, write_tickets

from luthier.core.errors import InputError
from luthier.data.batch import plan
from luthier.models.adapters import ADAPTER
from luthier.models.weights import read_tensors
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.store.runs import finish, list_runs, start
from luthier.training import cost, preflight
from luthier.training.config import TrainConfig
from luthier.training.cost import Shape, amount_of
from luthier.training.preflight import look_ahead, outcome, predict, sketch
from luthier.training.resolve import Job, resolve
from luthier.training.tune import Start, tune


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    return write_tickets(tmp_path / "tickets.jsonl")


def test_steps_and_tokens_are_those_of_the_loop() -> None:
    lengths, validation = [10] * 30 + [20] * 10, [5] * 4
    config = TrainConfig(epochs=2, batch_size=8, max_tokens_per_batch=64)
    amount = amount_of(lengths, validation, config)
    assert amount.steps == 10
    assert amount.tokens == 2 * 500
    assert amount.validation_tokens == 2 * 20, "one an epoch"
    assert amount.largest <= 64
    fewer = amount_of(lengths, validation, config.model_copy(update={"max_tokens": 500}))
    assert (fewer.steps, fewer.tokens) == (5, 500)
    assert amount_of(lengths, validation, config.model_copy(update={"max_steps": 3})).steps == 3


def test_memory_is_the_arithmetic_of_the_optimizer() -> None:
    amount = cost.Amount(1, 1, 0, 100)
    trained = Shape(1_000_000, 1_000_000, True, 0, 8, 16, 2, 0, 2)
    assert cost.memory(trained, amount)["optimizer"] == pytest.approx(2 + 4 + 4 + 8 + 4)
    exact = Shape(1_000_000, 1_000_000, True, 0, 8, 16, 2, 0, 4)
    assert cost.memory(exact, amount)["optimizer"] == pytest.approx(4 + 8 + 4)
    frozen = Shape(1_000_000, 10, False, 0, 8, 16, 2, 0, 4)
    assert cost.memory(frozen, amount)["activations"] == 0


def test_parts_of_the_frozen_weights_and_two_blocks_are_what_a_process_holds(tiny_decoder: str, tickets: Path) -> None:
    store = open_store()
    shared = resolve(settings(tiny_decoder, tickets, processes=4, shard="on"), (), store)
    model = preflight.outline(store, shared)
    shape = cost.shape_of(model, shared.config.train)
    blocks = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32)
    found = cost.divided(shape, model, 4).weights_mb * 1e6 / shape.bytes_each
    assert found == pytest.approx(shape.parameters - blocks + blocks / 4 + blocks)  # it has two blocks
    assert look_ahead(store, shared).fits


def test_memory_and_operations_are_those_of_the_chosen_optimizer(tiny_decoder: str) -> None:
    from luthier.models.load import load_model
    from luthier.training.optimizer import cost as cost_of
    from luthier.training.optimizer import trained

    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    model.module.requires_grad_(True)
    amount, found = cost.Amount(1, 1, 0, 1), {}
    for name in ("adamw", "sgd", "adafactor", "muon"):
        config = TrainConfig(optimizer=name)
        shape = cost.shape_of(model, config)
        told = cost_of(config.optimizer, list(trained(model.module).values()))
        assert shape.update == told
        memory = cost.memory(shape, amount)
        hidden = memory["activations"] + memory["logits"]
        expected = 8 * shape.trainable + told.state_bytes + max(told.working_bytes - 1e6 * hidden, 0)
        assert memory["optimizer"] == pytest.approx(expected / 1e6)
        found[name] = (told.state_bytes, cost.operations(shape, amount))
    assert found["adamw"][0] == 8 * shape.trainable == 2 * found["sgd"][0]
    assert found["adafactor"][0] < 0.2 * found["adamw"][0]
    assert found["muon"][1] > found["adamw"][1]
    averaged = cost.memory(cost.shape_of(model, TrainConfig(ema=0.9)), amount)["optimizer"]
    plain = cost.memory(cost.shape_of(model, TrainConfig()), amount)["optimizer"]
    assert averaged - plain == pytest.approx(4e-6 * shape.trainable)
    without = cost.operations(cost.shape_of(model), amount)
    assert found["adamw"][1] == pytest.approx(without), "the default"


def test_an_optimizer_for_other_parameters_is_refused_before_training(tiny_encoder: str, tickets: Path) -> None:
    with pytest.raises(InputError, match="optimizer muon is for the matrices of hidden layers"):
        tune(settings(tiny_encoder, tickets, "linear_probe", optimizer="muon"))
    assert not list_runs(open_store())


def test_flops_follow_what_is_trained() -> None:
    amount = cost.Amount(0, 10, 0, 10)
    whole = cost.operations(Shape(100, 100, True, 0, 8, 16, 2, 0, 2), amount)
    adapter = cost.operations(Shape(100, 1, True, 0, 8, 16, 2, 0, 2), amount)
    head = cost.operations(Shape(100, 1, False, 0, 8, 16, 2, 0, 2), amount)
    assert (whole, adapter, head) == (6 * 100 * 10, (4 * 100 + 2) * 10, 6 * 10)


def test_a_token_goes_through_one_stack_of_an_encoder_decoder(tiny_t5: str) -> None:
    from luthier.models.load import load_model

    shape = cost.shape_of(load_model(open_store(), tiny_t5, dtype="fp32", device="cpu"))
    assert (shape.stacks, shape.layers, shape.width, shape.inner, shape.vocabulary) == (2, 2, 32, 64, 384)
    assert cost.body(shape) == (shape.parameters - 384 * 32) // 2


@pytest.mark.parametrize(
    ("base", "method"),
    [
        ("tiny_t5", "lora"),
        ("tiny_t5", "full"),
        ("tiny_decoder", "lora"),
        ("tiny_decoder", "qlora"),
        ("tiny_decoder", "full"),
        ("tiny_encoder", "lora"),
        ("tiny_encoder", "linear_probe"),
    ],
)
def test_a_sketch_counts_what_the_loaded_model_has(
    base: str, method: str, tickets: Path, request: pytest.FixtureRequest
) -> None:
    name, store = request.getfixturevalue(base), open_store()
    seen: list[Start] = []
    tuned = tune(settings(name, tickets, method, max_steps=1), started=seen.append)
    job = resolve(settings(name, tickets, method, max_steps=1), (), store)
    model, lengths, validation, _ = sketch(store, job)
    shape = cost.shape_of(model)
    assert shape.trainable == seen[0].trainable_parameters == tuned.summary["trainable_parameters"]
    assert shape.parameters == seen[0].total_parameters
    assert (len(lengths), len(validation)) == (seen[0].rows, seen[0].validation_rows)
    assert next(iter(model.module.parameters())).device.type == "meta", "no weights are read"


def test_a_run_keeps_prediction_and_outcome_and_the_next_one_learns(tiny_decoder: str, tickets: Path) -> None:
    store = open_store()
    job = resolve(settings(tiny_decoder, tickets, max_steps=4), (), store)
    first = look_ahead(store, job)
    assert first.errors is None
    assert first.based_on == "a short calibration"
    kept = tune(settings(tiny_decoder, tickets, max_steps=4), store=store).summary
    assert kept["predicted"]["base"] == tiny_decoder
    assert kept["predicted"]["seconds"] == kept["train_s"]
    assert kept["predicted"]["took_mb"] >= 0
    second = look_ahead(store, job)
    assert second.errors is not None
    assert (second.errors.runs, second.errors.same) == (1, True)
    assert second.based_on == "1 earlier run of lora on tiny-decoder"
    assert second.train_s == pytest.approx(kept["train_s"], rel=0.01), "the same work takes the same time"
    other = look_ahead(store, resolve(settings(tiny_decoder, tickets, "full", max_steps=4), (), store))
    assert other.errors is not None
    assert not other.errors.same


def _past(job: Job, **changes: Any) -> dict[str, Any]:
    told = {
        "base": job.base.name,
        "method": "lora",
        "peak_mb": 100.0,
        "train_s": 1.0,
        "raw_mb": 50.0,
        "took_mb": 100.0,
        "flops": 1e12,
        "worked": 1e12,
        "memory_error": 0.2,
        "time_error": 0.5,
        "seconds": 2.0,
    }
    return told | changes


def test_earlier_runs_correct_memory_and_time(tiny_decoder: str, tickets: Path) -> None:
    store = open_store()
    job = resolve(settings(tiny_decoder, tickets), (), store)
    model, lengths, validation, _ = sketch(store, job)
    plain = predict(store, job, model, lengths, validation, loaded=False)
    for error in (0.1, 0.2, 0.6):
        run = start(store, "tune", "past", {}, {})
        finish(store, run.id, "done", {"predicted": _past(job, memory_error=error)})
    corrected = predict(store, job, model, lengths, validation, loaded=False)
    assert corrected.raw_mb == plain.raw_mb
    assert corrected.peak_mb - plain.peak_mb == pytest.approx(corrected.raw_mb, abs=5), "twice as much was taken"
    assert corrected.train_s == pytest.approx(corrected.flops / 5e11)
    assert corrected.errors == preflight.Errors(3, 0.2, 0.5, True)


def test_runs_that_were_mostly_overhead_say_nothing_of_other_methods(tiny_decoder: str, tickets: Path) -> None:
    store = open_store()
    job = resolve(settings(tiny_decoder, tickets), (), store)
    for worked, expected in ((0.0, "a short calibration"), (1e12, "1 earlier run of other methods or models")):
        run = start(store, "tune", "past", {}, {})
        finish(store, run.id, "done", {"predicted": _past(job, method="other", worked=worked)})
        assert look_ahead(store, job).based_on == expected


def test_runs_in_another_dtype_say_nothing_of_the_speed(tiny_decoder: str, tickets: Path) -> None:
    store = open_store()
    job = resolve(settings(tiny_decoder, tickets, dtype="fp32"), (), store)
    for dtype, expected in (("torch.bfloat16", "a short calibration"), ("torch.float32", "1 earlier run of other")):
        run = start(store, "tune", "past", {}, {})
        finish(store, run.id, "done", {"predicted": _past(job, method="other", worked=1e12) | {"dtype": dtype}})
        assert look_ahead(store, job).based_on.startswith(expected)


def test_a_time_limit_bounds_the_prediction(tiny_decoder: str, tickets: Path) -> None:
    store = open_store()
    told = look_ahead(store, resolve(settings(tiny_decoder, tickets, max_seconds=1e-4), (), store))
    assert told.train_s <= 1e-4
    assert told.seconds <= 1e-4


def test_fits_compares_with_what_is_free(tiny_decoder: str, tickets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store()
    job = resolve(settings(tiny_decoder, tickets), (), store)
    assert look_ahead(store, job).fits
    monkeypatch.setattr("luthier.training.memory.free_mb", lambda device=None: 0.01)
    assert not look_ahead(store, job).fits


def test_an_early_end_is_compared_over_the_steps_made(tiny_decoder: str, tickets: Path) -> None:
    store = open_store()
    job = resolve(settings(tiny_decoder, tickets), (), store)
    told = look_ahead(store, job)
    half = outcome(told, job, peak_mb=told.peak_mb, train_s=told.train_s / 2, steps=told.steps // 2)
    assert half["time_error"] == pytest.approx(0.0, abs=0.01)
    assert half["memory_error"] == 0


def test_calibration_is_a_speed() -> None:
    assert calibrated() > 1e8


def calibrated() -> float:
    return preflight.calibrate(torch.float32, torch.device("cpu"), seconds=0.01)


def test_activations_are_computed_again_only_where_memory_needs_it(
    tiny_decoder: str, tickets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    job = resolve(settings(tiny_decoder, tickets), (), store)
    plain = look_ahead(store, job)
    asked = look_ahead(store, resolve(settings(tiny_decoder, tickets, checkpointing="on"), (), store))
    assert (plain.checkpointing, asked.checkpointing) == (False, True)
    assert asked.parts["activations"] < plain.parts["activations"]
    assert asked.flops > plain.flops
    monkeypatch.setattr("luthier.training.memory.free_mb", lambda device=None: 0.01)
    assert look_ahead(store, job).checkpointing
    off = resolve(settings(tiny_decoder, tickets, checkpointing="off"), (), store)
    assert not look_ahead(store, off).checkpointing
    assert job.key == off.key, "the result is the same"


def test_a_training_that_needs_it_computes_again_and_says_so(
    tiny_decoder: str, tickets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.models import checkpointing

    seen: list[int] = []
    inner = checkpointing.checkpoint

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        return inner(*args, **kwargs)

    monkeypatch.setattr(checkpointing, "checkpoint", watched)
    plain = tune(settings(tiny_decoder, tickets, max_steps=3, checkpointing="off"))
    assert not seen
    assert plain.summary["checkpointing"] is False
    first = read_tensors(path_of(open_store(), plain.model.digest) / ADAPTER)
    monkeypatch.setattr("luthier.training.memory.free_mb", lambda device=None: 0.01)
    again = tune(settings(tiny_decoder, tickets, max_steps=3), resume=False, replace=True)
    assert seen
    assert again.summary["checkpointing"] is True
    second = read_tensors(path_of(open_store(), again.model.digest) / ADAPTER)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first), "the same weights, bit for bit"


def test_only_steps_that_are_made_count() -> None:
    lengths = [4] * 64 + [100]
    config = TrainConfig(epochs=1, batch_size=4, max_tokens_per_batch=256)
    assert amount_of(lengths, (), config).largest == 100
    with_long = next(
        number
        for number, step in enumerate(plan(lengths, batch_size=4, max_tokens=256, seed=0, epoch=0))
        if any(64 in rows for rows in step)
    )
    few = amount_of(lengths, (), config.model_copy(update={"max_steps": with_long}))
    assert (few.largest, few.rows) == (16, 4), "training never comes to the long row"


def test_steps_that_are_taken_whole_are_as_large_as_the_budget() -> None:
    config = TrainConfig(epochs=1, batch_size=8, max_tokens_per_batch=64)
    apart, whole = (amount_of([10] * 32, (), config, whole=whole) for whole in (False, True))
    assert (apart.largest, apart.rows) == (60, 6)
    assert (whole.largest, whole.rows) == (64, 8)


def test_logits_of_label_texts_are_counted_as_they_are_read(
    tiny_decoder: str, tiny_t5: str, tickets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.models import packed, seq2seq
    from luthier.objectives import classify

    seen: list[int] = []
    for module in (packed, seq2seq):
        inner = module.logits
        monkeypatch.setattr(
            module, "logits", lambda m, hidden, inner=inner: (seen.append(len(hidden)), inner(m, hidden))[1]
        )
    for base in (tiny_decoder, tiny_t5):
        seen.clear()
        job = resolve(settings(base, tickets, max_steps=1, batch_size=4), (), open_store())
        model, lengths, validation, _ = sketch(open_store(), job)
        tune(settings(base, tickets, max_steps=1, batch_size=4))
        rows = amount_of(lengths, validation, job.config.train).rows
        assert rows * classify.kept_logits(model, job.objective.config) == seen[0]


def test_models_that_the_objective_reads_are_counted(tiny_decoder: str, tickets: Path) -> None:
    store = open_store()
    values = settings(tiny_decoder, tickets) | {"objective": {"name": "distill", "teacher": tiny_decoder}}
    told = look_ahead(store, resolve(values, (), store))
    assert told.parts["other models"] == pytest.approx(told.parts["weights"], rel=0.2, abs=0.1)
