"""The whole verb on tiny models: what it stores, when it does nothing, what it refuses, and what survives a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.dataset import Splits
from luthier.core.errors import (
    ConflictError,
    DataError,
    InputError,
    LuthierError,
    NotFoundError,
    StoreError,
    UnsupportedError,
)
from luthier.core.task import PromptTemplate
from luthier.data.read import read
from luthier.models.load import load_model
from luthier.models.weights import read_tensors
from luthier.store import runs
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.store.lineage import lineage
from luthier.store.models import find
from luthier.training import checkpoint
from luthier.training.interrupt import Halt
from luthier.training.tune import Start, TuneResult, tune

WORDS = {"billing": "refund deposit pay invoice card", "delivery": "parcel courier late address box"}


def write_tickets(path: Path, count: int = 12, labels: Mapping[str, str] = WORDS) -> Path:
    rows = [
        {"text": f"{words.split()[(i + j) % 5]} number {i} {words.split()[i % 5]}", "label": label}
        for i in range(count)
        for j, (label, words) in enumerate(labels.items())
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_chats(path: Path) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"number {i}?"}, {"role": "assistant", "content": f"it is {i}"}]}
        for i in range(10)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    return write_tickets(tmp_path / "tickets.jsonl")


def settings(base: str, data: Path, method: str = "lora", **train: Any) -> dict[str, Any]:
    return {
        "model": base,
        "data": {"path": str(data)},
        "method": method,
        "train": {"epochs": 2, "batch_size": 8, "dtype": "fp32", "device": "cpu", **train},
    }


def tensors(result: TuneResult) -> dict[str, torch.Tensor]:
    folder = path_of(open_store(), result.model.digest)
    return {f"{p.name}/{k}": v for p in folder.glob("*.safetensors") for k, v in read_tensors(p).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_what_a_run_leaves_behind(tiny_decoder: str, tickets: Path) -> None:
    seen: list[Mapping[str, Any]] = []
    starts: list[Start] = []
    store = open_store()
    config = settings(tiny_decoder, tickets) | {"name": "router", "prompt": {"instruction": "One of {labels}"}}
    result = tune(config, ["method.rank=4"], metrics=seen.append, started=starts.append)
    record = find(store, "router")
    assert record == result.model
    assert (record.kind, record.base, record.architecture, record.run_id) == (
        "adapter",
        tiny_decoder,
        "decoder",
        result.run.id,
    )
    meta = record.meta
    assert (meta["method"], meta["objective"], meta["labels"]) == ("lora", "classify", ["billing", "delivery"])
    assert PromptTemplate.from_dict(meta["prompt"]) == PromptTemplate(
        "One of {labels}", "{input}", ("billing", "delivery")
    )
    assert meta["serving"] == {"torch": "swap", "llamacpp": "swap"}
    assert result.run.status == "done" and not result.reused
    summary = result.summary
    assert summary["trainable_parameters"] == meta["trainable_parameters"] == starts[0].trainable_parameters > 0
    assert summary["total_parameters"] > summary["trainable_parameters"]
    assert {"train_s", "tokens_per_s", "peak_mb", "validation_loss", "validation_accuracy", "best_step"} <= set(summary)
    folder = runs.folder(store, result.run.id)
    assert runs.read_metrics(folder / "metrics.jsonl") == [dict(r) for r in seen]
    assert (folder / "curve.png").stat().st_size > 1000
    assert not (folder / "checkpoints").exists()
    stored = json.loads((folder / "config.json").read_text())
    assert stored["values"]["method"] == {
        "name": "lora", "rank": 4, "alpha": None, "dropout": 0.0, "targets": "all_linear", "rslora": False
    }  # fmt: skip
    assert stored["origins"]["method.rank"] == "command line"
    assert stored["origins"]["train.epochs"] == "python"
    assert stored["origins"]["train.learning_rate"] == "default of method lora"
    assert stored["origins"]["train.clip"] == "default"
    made_of = {(e.source.kind, e.relation, e.target.kind) for e in lineage("router", store).edges}
    assert {("model", "base", "run"), ("dataset", "train", "run"), ("dataset", "validation", "run")} <= made_of
    assert any(source == "run" and target == "model" for source, _, target in made_of)
    loaded = load_model(store, "router", device="cpu")
    assert loaded.record.name == "router"


@pytest.mark.parametrize(
    ("base", "method"), [("tiny_decoder", "full"), ("tiny_encoder", "lora"), ("tiny_encoder", "full")]
)
def test_every_pair_trains_and_loads(base: str, method: str, tickets: Path, request: pytest.FixtureRequest) -> None:
    result = tune(settings(request.getfixturevalue(base), tickets, method))
    assert load_model(open_store(), result.model.name, device="cpu").labels == ("billing", "delivery")
    assert result.model.name.startswith(f"{result.model.base}-{method}-tickets-")


def test_linear_probe_learns_an_easy_task(tiny_encoder: str, tickets: Path) -> None:
    result = tune(settings(tiny_encoder, tickets, "linear_probe", epochs=60, learning_rate=5e-2))
    assert result.summary["validation_accuracy"] >= 0.75


def test_objective_follows_from_the_data(tiny_decoder: str, tickets: Path, tmp_path: Path) -> None:
    chats = write_chats(tmp_path / "chats.jsonl")
    assert tune(settings(tiny_decoder, chats)).model.meta["objective"] == "sft"
    assert tune(settings(tiny_decoder, tickets)).model.meta["objective"] == "classify"
    as_sft = tune(settings(tiny_decoder, tickets) | {"objective": "sft"})
    assert as_sft.model.meta["objective"] == "sft" and as_sft.model.meta["prompt"]["labels"] == ["billing", "delivery"]


def test_the_same_work_is_done_once(tiny_decoder: str, tickets: Path) -> None:
    first = tune(settings(tiny_decoder, tickets))
    trained: list[Mapping[str, Any]] = []
    again = tune(settings(tiny_decoder, tickets), metrics=trained.append)
    assert again.reused and again.run.id == first.run.id and again.model == first.model and not trained
    named = settings(tiny_decoder, tickets) | {"name": first.model.name}
    with pytest.raises(ConflictError, match="taken by another adapter"):
        tune(named, ["train.seed=1"])
    other = tune(settings(tiny_decoder, tickets), ["train.seed=1"])
    assert other.run.id != first.run.id and other.model.name != first.model.name
    before = tensors(first)
    forced = tune(settings(tiny_decoder, tickets), resume=False, replace=True)
    assert forced.run.id != first.run.id and equal(tensors(forced), before)


def test_splits_prompt_and_scorer_from_outside(tiny_decoder: str, tickets: Path) -> None:
    rows = read(tickets)
    splits = Splits(rows, rows, rows)
    prompt = PromptTemplate("Labels: {labels}", "{input}", rows.labels)
    config = settings(tiny_decoder, tickets, metric="validation_macro_f1")
    del config["data"]
    scores = iter([0.5, 0.25, 0.125])
    result = tune(config, splits=splits, prompt=prompt, scorer=lambda model: {"macro_f1": next(scores)})
    assert result.summary["validation_macro_f1"] == 0.5
    assert result.summary["best_step"] == 3
    assert PromptTemplate.from_dict(result.model.meta["prompt"]) == prompt
    with pytest.raises(InputError, match="not both"):
        tune(settings(tiny_decoder, tickets), splits=splits)


class Stop(LuthierError):
    """Raised by a test's sink."""


def test_interrupted_or_failed_and_run_again_goes_on_to_the_same_weights(tiny_decoder: str, tickets: Path) -> None:
    config = settings(tiny_decoder, tickets, checkpoint_every=1)
    straight = tune(config, ["name=straight"])

    def interrupting(record: Mapping[str, Any]) -> None:
        if record["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    def failing(record: Mapping[str, Any]) -> None:
        if record["step"] == 4:
            raise StoreError("the disk is full")

    with pytest.raises(KeyboardInterrupt):
        tune(config, ["name=stopped"], metrics=interrupting)
    store = open_store()
    [run] = [r for r in runs.list_runs(store) if r.name == "stopped"]
    assert run.status == "interrupted"
    with pytest.raises(StoreError):
        tune(config, ["name=stopped"], metrics=failing)
    assert runs.find_run(store, run.id).status == "failed"
    assert runs.find_run(store, run.id).summary["error"] == "the disk is full"
    starts: list[Start] = []
    result = tune(config, ["name=stopped"], started=starts.append)
    assert result.run.id == run.id and starts[0].resumed_at == 3
    assert equal(tensors(result), tensors(straight))
    logged = runs.read_metrics(runs.folder(store, run.id) / "metrics.jsonl")
    assert [r["step"] for r in logged] == list(range(1, straight.summary["steps"] + 1))


CHILD = """
import json, sys
from luthier.training.tune import tune
def sink(record):
    if record["step"] == {step}:
        print("there", flush=True)
        sys.stdin.readline()
tune(json.loads({config!r}), metrics=sink)
"""


def child(config: Mapping[str, Any], step: int) -> subprocess.Popen[str]:
    """``tune`` in another process, which stops at ``step`` until a line comes."""
    code = CHILD.format(config=json.dumps(config), step=step)
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_at_once_then_kill_and_go_on(tiny_decoder: str, tickets: Path) -> None:
    config = settings(tiny_decoder, tickets, checkpoint_every=1)
    process = child(config | {"name": "killed"}, 3)
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    with pytest.raises(ConflictError, match=rf"'killed' is being tuned by process {process.pid}"):
        tune(config, ["name=killed"])
    beside = tune(config, ["name=beside"])  # another name on the same store goes through meanwhile
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    store = open_store()
    [left] = [r for r in runs.list_runs(store) if r.name == "killed"]
    assert left.status == "running"
    starts: list[Start] = []
    result = tune(config, ["name=killed"], started=starts.append)
    assert result.run.id == left.id and starts[0].resumed_at == 2
    assert equal(tensors(result), tensors(beside))


def test_a_full_disk_is_said_and_the_run_can_go_on(tiny_decoder: str, tickets: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoreError, match="disk is full"):
        patch.setattr(checkpoint, "write_tensors", full)
        tune(settings(tiny_decoder, tickets, checkpoint_every=1))
    assert tune(settings(tiny_decoder, tickets, checkpoint_every=1)).run.status == "done"


def test_a_disk_too_full_for_a_note_does_not_hide_why(
    tiny_decoder: str, tickets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def no_note(*_: object) -> None:
        raise StoreError("the database takes nothing")

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(StoreError, match=r"disk is full: cannot write .*checkpoints"),
    ):
        patch.setattr(checkpoint, "write_tensors", full)
        patch.setattr(runs, "finish", no_note)
        tune(settings(tiny_decoder, tickets, checkpoint_every=1))


def test_bad_input(tiny_decoder: str, tiny_encoder: str, tickets: Path, tmp_path: Path) -> None:
    def refused(config: dict[str, Any], error: type[LuthierError], message: str, *overrides: str) -> None:
        with pytest.raises(error, match=message):
            tune(config, overrides)

    good = settings(tiny_decoder, tickets)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    one = write_tickets(tmp_path / "one.jsonl", labels={"billing": "a b c d e"})
    more = write_tickets(tmp_path / "more.jsonl", labels={**WORDS, "lessons": "teacher piano hour room bow"})
    refused(good, DataError, "missing|no such file", f"data.path={tmp_path / 'nothing.jsonl'}")
    refused(good, DataError, r"empty\.jsonl", f"data.path={empty}")
    refused(good, DataError, "at least two labels.*'billing'", f"data.path={one}")
    unseen = {**good, "data": {"train": str(tickets), "validation": str(more)}}
    refused(unseen, DataError, "label 'lessons' occurs in validation .* never in train")
    refused({**unseen, "data": {"train": str(tickets), "test": str(more)}}, DataError, "'lessons' occurs in test")
    refused(
        good, NotFoundError, "(?s)'smollm2-135m' is not here yet.*luthier pull smollm2-135m", "model.base=smollm2-135m"
    )
    refused(good, NotFoundError, r"method 'lroa' is not known\. Did you mean 'lora'", "method=lroa")
    refused(good, NotFoundError, "objective 'sfft' is not known.*'sft'", "objective=sfft")
    refused(good, InputError, r"method lora: unknown key 'rnak'\. Did you mean 'rank'", "method.rnak=3")
    refused(good, InputError, r"unknown key 'train\.lr'", "train.lr=3")
    refused(good, InputError, "expected key=value", "train.epochs")
    refused(good, InputError, "model name must be", "name=a b")
    refused(
        good,
        UnsupportedError,
        "(?s)linear_probe needs a model of architecture encoder.*method=full",
        "method=linear_probe",
    )
    encoder = settings(tiny_encoder, tickets)
    refused(encoder, InputError, "prompt is for decoders", "prompt.instruction=Sort")
    refused(
        encoder,
        UnsupportedError,
        "no objective fits data of kind chat",
        f"data.path={write_chats(tmp_path / 'c.jsonl')}",
    )
    refused(encoder, UnsupportedError, "sft needs a decoder", "objective=sft")
    refused({**good, "data": {}}, InputError, r"data.path, data.train or data.sources is required")
    refused(
        good,
        DataError,
        "(?s)longer than the model's context of 512.*data.overlong=truncate",
        f"data.path={_long(tmp_path)}",
    )


def test_processes_that_others_started_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnsupportedError, match="starts its processes itself; the environment says WORLD_SIZE=2"):
        tune({"model": "m", "method": "lora"})


def _long(folder: Path) -> Path:
    path = write_tickets(folder / "long.jsonl", 4)
    with path.open("a") as file:
        file.write(json.dumps({"text": "0123456789 " * 200, "label": "billing"}) + "\n")
    return path


def test_overlong_rows_are_counted(tiny_decoder: str, tmp_path: Path) -> None:
    data = {"train": str(_long(tmp_path)), "overlong": "drop"}
    result = tune({**settings(tiny_decoder, tmp_path), "data": data})
    assert (result.summary["dropped_rows"], result.summary["truncated_rows"], result.summary["rows"]) == (1, 0, 8)
    cut = tune({**settings(tiny_decoder, tmp_path), "data": {**data, "overlong": "truncate"}})
    assert (cut.summary["dropped_rows"], cut.summary["truncated_rows"], cut.summary["rows"]) == (0, 1, 9)


def test_tuning_goes_on_from_an_adapter(tiny_decoder: str, tickets: Path) -> None:
    first = tune(settings(tiny_decoder, tickets) | {"name": "first"})
    second = tune(settings("first", tickets) | {"name": "second"})
    assert second.model.base == "first"
    assert load_model(open_store(), "second", device="cpu").record.name == "second"
    assert first.model.digest != second.model.digest


def test_a_sink_may_halt_a_run_which_can_be_begun_again(tiny_decoder: str, tickets: Path) -> None:
    def enough(record: Mapping[str, Any]) -> None:
        if record["step"] == 2:
            raise Halt("worse than the others")

    with pytest.raises(Halt):
        tune(settings(tiny_decoder, tickets), metrics=enough)
    store = open_store()
    run = runs.list_runs(store, "tune")[0]
    assert (run.status, run.summary) == ("interrupted", {"error": "given up: worse than the others"})
    again = tune(settings(tiny_decoder, tickets))
    assert again.run.id == run.id
    assert again.summary["ended"] == "epochs"


def test_a_token_budget_is_other_work_and_its_absence_is_not(tiny_decoder: str, tickets: Path) -> None:
    first = tune(settings(tiny_decoder, tickets))
    assert tune(settings(tiny_decoder, tickets, max_tokens=None)).reused
    limited = tune(settings(tiny_decoder, tickets, max_tokens=200))
    assert limited.model.name != first.model.name
    assert limited.summary["tokens"] <= 200


@pytest.mark.parametrize("kind", ["labelled", "chat"])
def test_an_encoder_decoder_learns_and_answers(tiny_t5: str, tmp_path: Path, kind: str) -> None:
    """Tuned, kept with its prompt, and asked in serving as it was taught."""
    from luthier.core.engine import Sampling
    from luthier.core.message import user
    from luthier.engines._open import open_engine

    data = write_tickets(tmp_path / "t.jsonl") if kind == "labelled" else write_chats(tmp_path / "c.jsonl")
    result = tune(settings(tiny_t5, data, "full", epochs=30, learning_rate=5e-3) | {"name": "made"})
    assert result.model.architecture == "encoder-decoder"
    assert dict(result.model.meta["serving"]) == {"torch": "merge", "llamacpp": "no"}
    assert result.model.meta["template_digest"]
    assert (result.model.meta["prompt"] is not None) == (kind == "labelled")
    assert result.model.meta["objective"] == ("classify" if kind == "labelled" else "sft")
    engine = open_engine(open_store(), "made", "torch", {"dtype": "fp32", "device": "cpu"})
    asked, told = ("parcel number 3 late", "delivery") if kind == "labelled" else ("number 7?", "it is 7")
    (answer,) = engine.generate([user(asked)], Sampling(max_new_tokens=8))
    assert answer.finish_reason == "stop"
    assert answer.text == told or (kind == "chat" and answer.text.startswith("it is "))
    engine.close()
