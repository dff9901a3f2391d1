"""One training in two processes: the same result as in one, and every failure in both."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState

from luthier.core.errors import InputError, TrainingError, UnsupportedError
from luthier.models.weights import read_tensors
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.training import processes
from luthier.training.tune import TuneResult, tune

ROWS = [
    {"messages": [{"role": "user", "content": f"Where is parcel {n}?"}, {"role": "assistant", "content": "Here. " * n}]}
    for n in range(1, 14)
]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def run(base: str, data: Path, name: str, *overrides: str, **told: Any) -> TuneResult:
    train = {"epochs": 2, "batch_size": 4, "dtype": "fp32", "device": "cpu", "learning_rate": 5e-3}
    split = {"train": str(data), "validation": str(data)}
    config = {"name": name, "model": base, "data": split, "method": "lora", "train": train}
    return tune(config, overrides, **told)


def tensors(result: TuneResult) -> dict[str, torch.Tensor]:
    store = open_store()
    return read_tensors(path_of(store, result.model.digest) / "adapter_model.safetensors")


def test_two_processes_train_what_one_does(tiny_decoder: str, chats: Path) -> None:
    assert PartialState().num_processes == 1  # who has asked before gets another answer afterwards
    one, two = ([], [])  # type: ignore[var-annotated]
    alone = run(tiny_decoder, chats, "alone", metrics=one.append)
    both = run(tiny_decoder, chats, "both", "train.processes=2", metrics=two.append)
    assert os.environ.get("WORLD_SIZE") is None
    mine, theirs = tensors(alone), tensors(both)
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-5)
    for first, second in zip(one, two, strict=True):
        for name in ("step", "tokens", "learning_rate"):
            assert first[name] == second[name]
        for name in ("loss", "grad_norm"):
            assert second[name] == pytest.approx(first[name], rel=1e-3)
    assert both.summary["validation_loss"] == pytest.approx(alone.summary["validation_loss"], rel=1e-3)


def test_a_helper_that_dies_ends_the_training_with_its_log(
    tiny_decoder: str, chats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    real = processes.subprocess.Popen

    def remember(*arguments: Any, **options: Any) -> Any:
        process = real(*arguments, **options)
        if "luthier.training.follow" in process.args:  # others start processes too
            started.append(process)
        return process

    monkeypatch.setattr(processes.subprocess, "Popen", remember)

    def kill(record: Mapping[str, Any]) -> None:
        if record["step"] == 2:
            started[0].send_signal(signal.SIGKILL)
            started[0].wait()

    with pytest.raises(TrainingError, match="process 1 of 2 has ended"):
        run(tiny_decoder, chats, "killed", "train.processes=2", metrics=kill)
    found = run(tiny_decoder, chats, "killed", "train.processes=2")
    assert found.summary["steps"] == 8


def test_what_one_process_finds_wrong_all_hear_of(tiny_decoder: str, chats: Path) -> None:
    with pytest.raises(TrainingError, match=r"the (loss|gradient) is (nan|inf) at step"):
        run(tiny_decoder, chats, "wild", "train.processes=2", "train.learning_rate=1e30", "train.clip=0")


def test_refusals(tiny_decoder: str, tiny_encoder: str, chats: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"anchor": f"a {n}", "positive": f"p {n}"}) + "\n" for n in range(8)))
    with pytest.raises(UnsupportedError, match="looks at all rows of a step together"):
        run(tiny_encoder, pairs, "x", "train.processes=2", "objective=similarity")
    with pytest.raises(InputError, match="processes"):
        run(tiny_decoder, chats, "x", "train.processes=0")


def test_auto_is_one_process_without_gpus() -> None:
    assert processes.wanted("auto", "cpu") == 1
    assert processes.wanted(3, "cpu") == 3


def test_each_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    processes.own_gpu()
    assert taken == [3]
