"""Several sources in one training: what is drawn, what is reported, what resume gives, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.test_tune import write_chats, write_tickets
from tests.training.toy import toy_module, toy_rows, toy_work

from luthier.core.errors import DataError, InputError
from luthier.data.shares import Mixture
from luthier.objectives._loss import Loss
from luthier.store import runs
from luthier.store.database import open_store
from luthier.store.lineage import lineage
from luthier.training import checkpoint
from luthier.training.config import TrainConfig
from luthier.training.loop import Outcome, train
from luthier.training.preflight import look_ahead
from luthier.training.resolve import Job, resolve
from luthier.training.sources import Layout, leaked
from luthier.training.tune import tune
from luthier.training.work import Work, mean_loss

SIZES = (16, 8)


def toy_layout(sampling: str = "equal", **options: Any) -> Layout:
    return Layout(Mixture(("a", "b"), sampling, **options), SIZES)  # type: ignore[arg-type]


def toy_mix(module: torch.nn.Module, layout: Layout) -> Work:
    plain = toy_work(module, toy_rows(sum(SIZES)))
    return Work(plain.rows, plain.collate, plain.loss, layout=layout)


def run_mix(folder: Path, layout: Layout, records: list[Mapping[str, Any]], **given: Any) -> tuple[Outcome, Any]:
    module = toy_module()
    work = toy_mix(module, layout)
    config = TrainConfig(
        **{
            "epochs": 4,
            "batch_size": 8,
            "max_tokens_per_batch": 24,
            "learning_rate": 1e-2,
            "checkpoint_every": 2,
            **given,
        }
    )

    def validate() -> dict[str, float]:
        return mean_loss(work, max_tokens=64)

    done = train(
        module,
        work,
        config,
        folder=folder,
        metrics=records.append,
        validate=validate,
        resume=checkpoint.latest(folder),
    )
    return done, [p.tolist() for p in module.parameters()]


def test_a_micro_batch_has_rows_of_one_source_and_an_epoch_the_shares() -> None:
    work = toy_mix(toy_module(), toy_layout(epoch_rows=20))
    lengths = [row.length for row in work.rows]
    steps = work.plan(lengths, batch_size=8, max_tokens=24, seed=0, epoch=0)
    batches = [batch for step in steps for batch in step]
    assert all(len({row < 16 for row in batch}) == 1 for batch in batches)
    assert [len(step_rows) for step_rows in ([r for b in step for r in b] for step in steps)].count(8) == 2
    drawn = [row for batch in batches for row in batch]
    assert (len(drawn), sum(row < 16 for row in drawn)) == (20, 10)
    assert work.source_of(batches[0]) == ("a" if batches[0][0] < 16 else "b")


def test_losses_of_sources_are_means_over_their_own_rows(tmp_path: Path) -> None:
    module = toy_module(dropout=0.0)
    work = toy_mix(module, toy_layout("proportional"))
    module.eval()
    found = mean_loss(work, max_tokens=24)

    def mean(rows: Any) -> float:
        loss: Loss = work.loss(list(rows))
        return float(loss.value.detach())

    assert found["loss/a"] == pytest.approx(mean(work.rows[:16]), abs=1e-6)
    assert found["loss/b"] == pytest.approx(mean(work.rows[16:]), abs=1e-6)
    assert found["loss"] == pytest.approx(mean(work.rows), abs=1e-6)


def test_a_training_says_the_loss_of_every_source_in_a_step(tmp_path: Path) -> None:
    records: list[Mapping[str, Any]] = []
    run_mix(tmp_path, toy_layout(), records, epochs=1)
    for record in records:
        rows = {name for name in ("a", "b") if f"loss/{name}" in record}
        assert rows
        assert (
            min(record[f"loss/{n}"] for n in rows) - 1e-9
            <= record["loss"]
            <= max(record[f"loss/{n}"] for n in rows) + 1e-9
        )
    assert "validation_loss/a" in records[-1]
    assert "share/a" not in records[-1], "shares that never change are told once, at the start"


@pytest.mark.parametrize("sampling", ["equal", "annealed", "dynamic"])
@pytest.mark.parametrize("stop", [2, 3, 7])
def test_a_resumed_mixture_ends_bit_equal(tmp_path: Path, sampling: str, stop: int) -> None:
    layout = toy_layout(sampling, epochs=4)
    whole: list[Mapping[str, Any]] = []
    _, expected = run_mix(tmp_path / "whole", layout, whole)

    class Killed(Exception):
        pass

    class Falling(list[Mapping[str, Any]]):
        def append(self, record: Mapping[str, Any]) -> None:
            if record["step"] == stop + 1:
                raise Killed
            super().append(record)

    with pytest.raises(Killed):
        run_mix(tmp_path / "broken", layout, Falling())
    rest: list[Mapping[str, Any]] = []
    _, found = run_mix(tmp_path / "broken", layout, rest)
    assert found == expected
    by_step = {record["step"]: record for record in whole}
    for record in rest:
        same = {key for key in record if key.startswith(("loss", "share", "validation"))}
        assert {key: record[key] for key in same} == {key: by_step[record["step"]][key] for key in same}


def test_dynamic_shares_follow_the_validation_losses(tmp_path: Path) -> None:
    records: list[Mapping[str, Any]] = []
    layout = toy_layout("dynamic")
    run_mix(tmp_path, layout, records, validate_every=100)
    per_epoch = len(records) // 4
    heard = [records[n * per_epoch - 1] for n in (1, 2, 3)]
    losses = [{name: record[f"validation_loss/{name}"] for name in ("a", "b")} for record in heard]
    for epoch in range(4):
        a, _ = layout.mixture.shares(SIZES, epoch, losses)
        assert records[epoch * per_epoch]["share/a"] == pytest.approx(a, abs=1e-4)
    assert records[2 * per_epoch]["share/a"] != 0.5


# ---- from a configuration


@pytest.fixture
def two(tmp_path: Path) -> list[dict[str, Any]]:
    write_tickets(tmp_path / "tickets.jsonl")
    write_tickets(tmp_path / "more.jsonl", 4, {"account": "password login sign code name"})
    return [{"path": str(tmp_path / "tickets.jsonl")}, {"name": "extra", "path": str(tmp_path / "more.jsonl")}]


def settings(base: str, sources: Any, **data: Any) -> dict[str, Any]:
    return {
        "model": base,
        "data": {"sources": sources, **data},
        "method": {"name": "lora", "rank": 2} if "decoder" in base else "linear_probe",
        "train": {"epochs": 2, "batch_size": 8, "dtype": "fp32"},
    }


def job(base: str, sources: Any, *overrides: str, **data: Any) -> Job:
    return resolve(settings(base, sources, **data), overrides, open_store())


def test_sources_become_one_job(tiny_decoder: str, two: list[dict[str, Any]]) -> None:
    found = job(tiny_decoder, two)
    assert [source.name for source in found.sources] == ["tickets", "extra"]
    assert found.prompt.labels == ("account", "billing", "delivery")
    assert len(found.splits.train) == sum(len(d) for d in found.datasets("train"))
    assert found.name.startswith("tiny-decoder-lora-tickets-extra-")
    keys = {
        job(tiny_decoder, two, *change).key
        for change in (
            (),
            ("data.sampling=equal",),
            ("data.epoch_rows=7",),
            ("data.sources.0.weight=2",),
            ("data.split.seed=3",),
        )
    }
    assert len(keys) == 5


def test_a_source_may_have_its_own_validation_file(
    tiny_decoder: str, two: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_tickets(tmp_path / "held.jsonl", 3)
    mixed = [two[1], {"name": "x", "train": two[0]["path"], "validation": str(tmp_path / "held.jsonl")}]
    assert [len(d) for d in job(tiny_decoder, mixed).datasets("validation")] == [1, 6]


def test_tuning_tells_of_every_source(tiny_encoder: str, two: list[dict[str, Any]]) -> None:
    store = open_store()
    values = settings(tiny_encoder, two, sampling="temperature", temperature=2, epoch_rows=24)
    planned = look_ahead(store, resolve(values, (), store))
    result = tune(values, store=store)
    assert (planned.steps, result.summary["steps"]) == (6, 6)
    assert planned.tokens == result.summary["tokens"] == 48, "features of a frozen body count one token a row"
    told = result.summary["sources"]
    assert set(told) == {"tickets", "extra"}
    assert sum(each["share"] for each in told.values()) == pytest.approx(1, abs=1e-3)
    assert {"validation_loss/tickets", "validation_loss/extra", "validation_accuracy/extra"} <= set(result.summary)
    records = runs.read_metrics(runs.folder(store, result.run.id) / runs.METRICS)
    assert any("loss/extra" in record for record in records)
    edges = lineage(result.model.name, store=store).edges
    assert sum(edge.relation == "train" for edge in edges) == 2
    assert sum(edge.relation == "validation" for edge in edges) == 2
    assert tune(values, store=store).reused


def test_validation_rows_that_another_source_trains_on_are_counted(
    tiny_encoder: str, two: list[dict[str, Any]]
) -> None:
    assert leaked(job(tiny_encoder, two).sources) == 0
    sources = [two[0], {"name": "copy", "train": two[0]["path"]}]
    found = job(tiny_encoder, sources)
    held = len(found.datasets("validation")[0])
    assert held
    assert leaked(found.sources) == held
    assert tune(settings(tiny_encoder, sources)).summary["leaked_rows"] == held


def test_pretraining_mixes_documents(tiny_decoder: str, tmp_path: Path) -> None:
    sources = []
    for name in ("wiki", "code"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": f"{name} number {i} of some words"}) + "\n" for i in range(12)))
        sources.append({"path": str(path), "weight": 3 if name == "wiki" else 1})
    values = settings(tiny_decoder, sources) | {"objective": {"name": "causal_lm", "length": 32, "pack": False}}
    result = tune(values)
    assert result.summary["sources"]["wiki"]["share"] == 0.75
    assert "validation_loss/code" in result.summary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "x.jsonl"}, "either data.sources or files"),
        ({"sampling": "proportional", "temperature": 3}, "temperature is for sampling"),
        ({"sampling": "weights", "cap": 3}, "cap is for sampling"),
        ({"sampling": "hottest"}, "sampling"),
        ({"epoch_rows": 0}, "epoch_rows"),
    ],
)
def test_what_does_not_fit_is_refused(
    tiny_decoder: str, two: list[dict[str, Any]], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        job(tiny_decoder, two, **change)


def test_sources_that_cannot_be_mixed(tiny_decoder: str, two: list[dict[str, Any]], tmp_path: Path) -> None:
    chats = {"path": str(write_chats(tmp_path / "chats.jsonl"))}
    with pytest.raises(DataError, match="must be of one kind; tickets is labelled, chats is chat"):
        job(tiny_decoder, [two[0], chats])
    with pytest.raises(InputError, match="two sources are called 'tickets'"):
        job(tiny_decoder, [two[0], two[0]])
    with pytest.raises(InputError, match="weight of a source is for sampling weights"):
        job(tiny_decoder, [{**two[0], "weight": 2}, two[1]], sampling="equal")
    with pytest.raises(InputError, match="either path, or train"):
        job(tiny_decoder, [{"name": "x"}])
    with pytest.raises(InputError, match="tickets has no validation rows"):
        job(tiny_decoder, two, sampling="dynamic", split={"train": 1.0, "validation": 0})
    with pytest.raises(InputError, match="sampling is for data"):
        resolve(
            {"model": tiny_decoder, "data": {"path": two[0]["path"], "sampling": "equal"}, "method": "lora"},
            (),
            open_store(),
        )
    with pytest.raises(InputError, match="no place in a list of 2"):
        job(tiny_decoder, two, "data.sources.5.weight=2")


def test_a_source_whose_rows_are_all_left_out_is_named(
    tiny_decoder: str, two: list[dict[str, Any]], tmp_path: Path
) -> None:
    long = tmp_path / "long.jsonl"
    long.write_text("".join(json.dumps({"text": f"{i} " + "word " * 900, "label": "billing"}) + "\n" for i in range(4)))
    values = settings(tiny_decoder, [two[0], {"path": str(long)}], overlong="drop")
    with pytest.raises(DataError, match="no rows to train on in data source long"):
        tune(values)
