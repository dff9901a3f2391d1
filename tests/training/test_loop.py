"""The loop: against a plain loop written out, its ends, its faults, and exact resume after kill -9."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.toy import run_toy, toy_module, toy_rows, toy_work
from torch import nn

from luthier.core.errors import DataError, InputError, StoreError, TrainingError
from luthier.data.batch import plan
from luthier.objectives._loss import Loss
from luthier.store.runs import read_metrics
from luthier.training import checkpoint
from luthier.training.config import TrainConfig
from luthier.training.loop import train
from luthier.training.schedule import rate
from luthier.training.work import Work, mean_loss

SCRIPT = Path(__file__).parent / "toy.py"


def ignore(record: Mapping[str, Any]) -> None:
    """A metric sink that keeps nothing."""


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def test_equals_a_plain_loop_normalised_by_the_weight_of_the_whole_step(tmp_path: Path) -> None:
    rows = toy_rows()
    module, reference = toy_module(dropout=0.0), toy_module(dropout=0.0)
    config = TrainConfig(
        epochs=2, batch_size=8, max_tokens_per_batch=12, learning_rate=1e-2, clip=0.5, weight_decay=0.1
    )
    outcome = train(module, toy_work(module, rows), config, folder=tmp_path, metrics=ignore)
    matrices = [p for p in reference.parameters() if p.ndim >= 2]
    vectors = [p for p in reference.parameters() if p.ndim < 2]
    adam = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}])
    count = 0
    for epoch in range(2):
        steps = plan([r.length for r in rows], batch_size=8, max_tokens=12, seed=0, epoch=epoch)
        assert any(len(step) > 1 for step in steps)
        for step in steps:
            chosen = [rows[i] for batch in step for i in batch]
            adam.zero_grad()
            toy_work(reference, rows).loss(chosen).value.backward()  # one batch, one mean over all it counts
            nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
            for group in adam.param_groups:
                group["lr"] = rate(count, total=6, peak=1e-2, schedule="cosine", warmup=0.1)
            adam.step()
            count += 1
    assert (outcome.steps, outcome.ended) == (count, "epochs")
    for one, other in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


class Watch:
    """What a method might do around steps: sees gradients, keeps the first layer's bias at zero and a count for resumes."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.norms: list[float] = []
        self.count = torch.zeros(1)

    def before(self, step: int, total: int, weights: Mapping[str, Any], gradients: Mapping[str, Any]) -> None:
        assert weights.keys() == gradients.keys()
        self.seen.append((step, total))
        self.norms.append(float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients.values()]))))
        gradients["3.weight"].zero_()

    def after(self, step: int, total: int, weights: Mapping[str, Any]) -> None:
        self.count += step
        weights["0.bias"].zero_()

    def state(self) -> dict[str, torch.Tensor]:
        return {"count": self.count}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        self.count = state["count"].clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_method_acts_around_every_step(dtype: torch.dtype, tmp_path: Path) -> None:
    rows = toy_rows()
    config = TrainConfig(epochs=2, batch_size=8, max_tokens_per_batch=12, clip=0.0, checkpoint_every=2)
    plain: list[Mapping[str, Any]] = []
    module = toy_module(dropout=0.0, dtype=dtype)
    one_step = config.model_copy(update={"max_steps": 1})
    train(module, toy_work(module, rows), one_step, folder=tmp_path / "plain", metrics=plain.append)
    module, watch = toy_module(dropout=0.0, dtype=dtype), Watch()
    before = module[3].weight.detach().clone()  # type: ignore[index]
    train(module, toy_work(module, rows), config, folder=tmp_path / "a", metrics=ignore, steps=watch)
    assert watch.seen == [(step, 6) for step in range(1, 7)]
    assert watch.norms[0] == pytest.approx(plain[0]["grad_norm"], rel=1e-4)  # of all micro-batches, before clipping
    assert torch.equal(module[3].weight, before)  # type: ignore[index]
    assert torch.count_nonzero(module[0].bias) == 0  # type: ignore[index]
    assert torch.count_nonzero(module[3].bias)  # type: ignore[index]
    point = checkpoint.latest(tmp_path / "a")
    assert point is not None and point.position.step == 4
    again = Watch()
    resumed = toy_module(dropout=0.0, dtype=dtype)
    train(resumed, toy_work(resumed, rows), config, folder=tmp_path / "a", metrics=ignore, steps=again, resume=point)
    assert again.seen == [(5, 6), (6, 6)]
    assert float(again.count) == float(watch.count) == 21
    assert all(torch.equal(a, b) for a, b in zip(weights(module), weights(resumed), strict=True))


def test_the_same_seed_repeats_exactly_and_another_differs(tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        module = toy_module()
        run_toy(tmp_path / name, module, seed=seed)
        found.append(torch.cat([w.flatten() for w in weights(module)]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_records(tmp_path: Path) -> None:
    records: list[Mapping[str, Any]] = []
    outcome = run_toy(tmp_path, toy_module(), records.append)
    assert [r["step"] for r in records] == list(range(1, 13))
    expected = {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_s", "elapsed_s", "peak_mb"}
    assert all(expected <= set(r) for r in records)
    assert [r["step"] for r in records if "validation_loss" in r] == [3, 6, 9, 12]
    assert [records[i]["epoch"] for i in (2, 5, 11)] == [1, 2, 4]
    assert records[-1]["tokens"] == outcome.tokens == 4 * sum(r.length for r in toy_rows())
    assert records[-1]["loss"] < records[0]["loss"]


def test_the_best_weights_are_the_result(tmp_path: Path) -> None:
    module = toy_module()
    rows = toy_rows()
    seen: list[list[torch.Tensor]] = []
    losses = iter([3.0, 1.0, 2.0, 4.0])

    def validate() -> dict[str, float]:
        assert not module.training
        seen.append(weights(module))
        return {"loss": next(losses), "extra": 1.0}

    config = TrainConfig(epochs=4, batch_size=8, learning_rate=1e-2)
    outcome = train(module, toy_work(module, rows), config, folder=tmp_path, metrics=ignore, validate=validate)
    assert outcome.best_step == 6
    assert outcome.best == {"validation_loss": 1.0, "validation_extra": 1.0}
    for one, other in zip(module.parameters(), seen[1], strict=True):
        assert torch.equal(one, other)


def test_a_metric_that_should_rise_and_patience(tmp_path: Path) -> None:
    module = toy_module()
    scores = iter([0.5, 0.7, 0.6, 0.7, 0.9])
    config = TrainConfig(epochs=9, batch_size=8, metric="validation_macro_f1", patience=2, validate_every=2)
    outcome = train(
        module,
        toy_work(module, toy_rows()),
        config,
        folder=tmp_path,
        metrics=ignore,
        validate=lambda: {"macro_f1": next(scores)},
    )
    assert (outcome.ended, outcome.steps, outcome.best_step) == ("patience", 8, 4)


def test_an_unknown_metric_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.metric must be one of validation_loss; got 'accuracy'"):
        run_toy(tmp_path, toy_module(), metric="accuracy")


def test_ends_by_steps_and_by_time(tmp_path: Path) -> None:
    assert run_toy(tmp_path / "a", toy_module(), max_steps=5).ended == "max_steps"
    outcome = run_toy(tmp_path / "b", toy_module(), max_seconds=1e-9)
    assert (outcome.ended, outcome.steps) == ("max_seconds", 1)
    assert run_toy(tmp_path / "c", toy_module(), epochs=0.5).steps == 2


def test_a_token_budget_is_never_passed_and_the_schedule_ends_with_it(tmp_path: Path) -> None:
    lengths = [row.length for row in toy_rows()]
    budget = round(1.5 * sum(lengths))
    records: list[Mapping[str, Any]] = []
    outcome = run_toy(tmp_path / "a", toy_module(), records.append, max_tokens=budget)
    assert outcome.ended == "max_tokens"
    assert budget - sum(sorted(lengths)[-8:]) < outcome.tokens <= budget
    assert records[-1]["learning_rate"] < 0.5 * max(r["learning_rate"] for r in records)
    assert run_toy(tmp_path / "b", toy_module(), max_tokens=1).steps == 1, "one step in any case"
    assert run_toy(tmp_path / "c", toy_module(), max_tokens=10**9).ended == "epochs"


def test_the_schedule_follows_the_time_where_that_ends_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[Mapping[str, Any]] = []
    clock = iter(i * 0.5 for i in range(10**6))
    monkeypatch.setattr("luthier.training.loop.time.perf_counter", lambda: next(clock))
    outcome = run_toy(tmp_path, toy_module(), records.append, max_seconds=20.0, epochs=10**4, warmup=0)
    assert outcome.ended == "max_seconds"
    rates = [r["learning_rate"] for r in records]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.3 * rates[0], "without the limit in it, the rate would not have begun to fall"


def test_bf16_model(tmp_path: Path) -> None:
    records: list[Mapping[str, Any]] = []
    module = toy_module(dropout=0.0, dtype=torch.bfloat16)
    run_toy(tmp_path, module, records.append, epochs=20)
    validated = [r["validation_loss"] for r in records if "validation_loss" in r]
    assert validated[-1] < 0.2 * validated[0]
    assert all(p.dtype == torch.bfloat16 for p in module.parameters())


def test_loss_that_is_no_number_names_step_and_rows_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    module = toy_module()
    rows = toy_rows()
    work = toy_work(module, rows)

    def loss(batch: Any) -> Loss:
        found = work.loss(batch)
        return Loss(found.value * float("nan"), found.count) if any(r.source == "toy.jsonl:7" for r in batch) else found

    config = TrainConfig(epochs=1, batch_size=1, checkpoint_every=1)
    records: list[Mapping[str, Any]] = []
    with pytest.raises(TrainingError, match=r"loss is nan at step \d+ \(rows toy\.jsonl:7\)") as caught:
        train(module, Work(rows, list, loss), config, folder=tmp_path, metrics=records.append)
    kept = checkpoint.latest(tmp_path)
    assert kept is not None and kept.position.step == len(records)
    assert f"checkpoint of step {len(records)} is kept" in str(caught.value)
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())


def test_nothing_to_train_is_said(tmp_path: Path) -> None:
    module = toy_module()
    with pytest.raises(TrainingError, match="no rows"):
        train(module, toy_work(module, []), TrainConfig(), folder=tmp_path, metrics=ignore)
    module.requires_grad_(False)
    with pytest.raises(TrainingError, match="no parameter"):
        train(module, toy_work(module, toy_rows()), TrainConfig(), folder=tmp_path, metrics=ignore)


def test_a_full_disk_ends_training_with_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = checkpoint.write_tensors, []

    def filling(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        calls.append(path)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        real(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", filling)
    with pytest.raises(StoreError, match="disk is full"):
        run_toy(tmp_path, toy_module())
    monkeypatch.undo()
    straight, resumed = toy_module(), toy_module()
    run_toy(tmp_path / "other", straight)
    run_toy(tmp_path, resumed)
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))


def test_what_the_system_refuses_in_the_middle_of_a_checkpoint_leaves_the_one_before(tmp_path: Path) -> None:
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom tests.training.toy import run_toy, toy_module\n"
        "def sink(record):\n"
        "    if record['step'] == 3:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))\n"
        "run_toy(Path(sys.argv[1]), toy_module(), sink)\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(arguments, cwd=SCRIPT.parents[2], capture_output=True, text=True, timeout=120, check=False)
    assert "StoreError: cannot use" in done.stderr and "File too large" in done.stderr, done.stderr
    places = [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")]
    assert places == ["step-00000002"]
    straight, resumed = toy_module(), toy_module()
    run_toy(tmp_path / "straight", straight)
    run_toy(tmp_path / "run", resumed)
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_with_a_checkpoint_of_the_last_step(tmp_path: Path, number: signal.Signals) -> None:
    straight, stopped = toy_module(), toy_module()
    run_toy(tmp_path / "a", straight)

    def sink(record: Mapping[str, Any]) -> None:
        if record["step"] == 5:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path / "b", stopped, sink)
    assert signal.getsignal(number) is before
    kept = checkpoint.latest(tmp_path / "b")
    assert kept is not None and kept.position.step == 5
    resumed = toy_module()
    run_toy(tmp_path / "b", resumed)
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))


@pytest.mark.parametrize("kills", [(1,), (5, 8), (3, 7, 11)])
def test_killed_at_any_step_and_resumed_gives_the_same_weights_bit_for_bit(
    tmp_path: Path, kills: tuple[int, ...]
) -> None:
    def start(folder: Path, slow_down_at: int) -> subprocess.Popen[str]:
        folder.mkdir(exist_ok=True)
        arguments = [sys.executable, "-m", "tests.training.toy", str(folder), str(slow_down_at)]
        return subprocess.Popen(
            arguments, cwd=SCRIPT.parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    folder = tmp_path / "run"
    for step in kills:
        process = start(folder, step)
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=30) == -signal.SIGKILL
        assert read_metrics(folder / "metrics.jsonl")[-1]["step"] == step
    assert start(folder, 0).wait(timeout=60) == 0
    straight = toy_module()
    records: list[Mapping[str, Any]] = []
    torch.set_num_threads(threads := torch.get_num_threads())
    torch.set_num_threads(1)
    try:
        run_toy(tmp_path / "straight", straight, records.append)
    finally:
        torch.set_num_threads(threads)
    found = json.loads((folder / "weights.json").read_text())
    for name, value in straight.state_dict().items():
        assert value.tolist() == found[name], name
    logged = read_metrics(folder / "metrics.jsonl")
    assert [r["step"] for r in logged] == list(range(1, 13))
    timing = {"elapsed_s", "peak_mb", "tokens_per_s"}
    for one, other in zip(logged, records, strict=True):
        assert {k: v for k, v in one.items() if k not in timing} == {k: v for k, v in other.items() if k not in timing}


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom tests.training.toy import run_toy, toy_module\n"
        "torch.set_num_threads(1)\nmodule = toy_module(dropout=0.0)\nfolder = Path(sys.argv[1])\n"
        "run_toy(folder, module, epochs=2, max_tokens_per_batch=12)\n"
        "from accelerate import PartialState\nassert PartialState().num_processes == 2\n"
        "torch.save(module.state_dict(), folder / 'weights.pt')\n"
    )
    processes = []
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, **{k: str(v) for k, v in where.items()}, "ACCELERATE_USE_CPU": "true"}
        arguments = [sys.executable, "-c", code, str(tmp_path / str(rank))]
        processes.append(subprocess.Popen(arguments, cwd=SCRIPT.parents[2], env=environment))
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    alone = toy_module(dropout=0.0)
    run_toy(tmp_path / "alone", alone, epochs=2, max_tokens_per_batch=12)
    for rank in range(2):
        found = torch.load(tmp_path / str(rank) / "weights.pt", weights_only=True)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_mean_loss_is_the_mean_over_all_that_is_counted() -> None:
    module = toy_module().eval()
    rows = toy_rows()
    work = toy_work(module, rows)
    assert mean_loss(work, max_tokens=7)["loss"] == pytest.approx(float(work.loss(rows).value.detach()), rel=1e-5)


def test_rows_whose_labels_are_all_masked_are_refused_and_single_ones_left_out(tmp_path: Path) -> None:
    module, rows = toy_module(dropout=0.0), toy_rows()
    masked = [replace(row, weight=0) for row in rows]
    with pytest.raises(DataError, match=r"all labels of the 24 training rows are masked.*toy\.jsonl:1, ") as raised:
        train(module, toy_work(module, masked), TrainConfig(), folder=tmp_path, metrics=ignore)
    assert raised.value.hint is not None and "--mask" in raised.value.hint
    some = [replace(row, weight=0) if i % 2 else row for i, row in enumerate(rows)]
    config = TrainConfig(epochs=1, batch_size=1, learning_rate=1e-2)
    records: list[Mapping[str, Any]] = []
    train(module, toy_work(module, some), config, folder=tmp_path, metrics=records.append)
    assert len(records) == 24
    assert sum("loss" in record for record in records) == 12
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())
    whole = mean_loss(toy_work(module, some), max_tokens=7)["loss"]
    assert whole == pytest.approx(mean_loss(toy_work(module, some[::2]), max_tokens=7)["loss"], rel=1e-5)
