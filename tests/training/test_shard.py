"""Frozen weights in parts, in two processes: the result of one, half of the weights in each, and every refusal."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luthier.core.errors import InputError, TrainingError, UnsupportedError
from luthier.models.checkpointing import blocks
from luthier.models.weights import read_tensors
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.training import processes, shard
from luthier.training.processes import Processes
from luthier.training.tune import TuneResult, tune

part = Processes.part
SHARED = ("train.processes=2", "train.shard=on")


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Where is parcel {n}?"},
                {"role": "assistant", "content": "Here. " * n},
            ]
        }
        for n in range(1, 10)
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(base: str, data: Path, name: str, *overrides: str, **told: Any) -> TuneResult:
    # four rows of at most 64 tokens a process: the longest one is a micro-batch of its own, of which one process has nothing
    train = {"epochs": 2, "batch_size": 4, "dtype": "fp32", "device": "cpu", "learning_rate": 5e-3}
    split = {"train": str(data), "validation": str(data)}
    config = {"name": name, "model": base, "data": split, "method": "lora", "train": train}
    return tune(config, (*overrides, "train.max_tokens_per_batch=64"), **told)


def tensors(result: TuneResult, file: str = "adapter_model.safetensors") -> dict[str, torch.Tensor]:
    return read_tensors(path_of(open_store(), result.model.digest) / file)


def same(found: TuneResult, wanted: TuneResult, file: str = "adapter_model.safetensors") -> None:
    mine, theirs = tensors(wanted, file), tensors(found, file)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-4)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, int]]]:
    """Of each model that was cut in this process: elements of the blocks' frozen weights, before and in this process afterwards."""
    found: list[dict[str, int]] = []
    real = shard.Shards

    class Counting(real):  # type: ignore[misc, valid-type]
        def __init__(self, module: nn.Module, device: torch.device) -> None:
            frozen = [p for block in blocks(module) for p in block.parameters() if not p.requires_grad]
            before = sum(p.numel() for p in frozen)
            trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
            super().__init__(module, device)
            local = [p.to_local() for p in module.parameters() if hasattr(p, "to_local")]  # type: ignore[operator]
            assert all(p.untyped_storage().nbytes() <= 4 * (p.numel() + 64) for p in local), "a view of the whole"
            after = sum(p.numel() for p in local)
            kept = sum(p.numel() for p in module.parameters() if p.requires_grad and not hasattr(p, "to_local"))
            assert kept == trained
            found.append({"before": before, "after": after})

    monkeypatch.setattr(shard, "Shards", Counting)
    yield found


def test_two_processes_with_parts_train_what_one_does_killed_or_not(
    tiny_decoder: str, chats: Path, held: list[dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three, sizes = ([], [], [], [])  # type: ignore[var-annotated]
    told = ("train.max_steps=4", "train.validate_every=2")
    alone = run(tiny_decoder, chats, "alone", *told, metrics=one.append)
    assert not held
    told = (*told, *SHARED, "train.checkpoint_every=1")
    with monkeypatch.context() as patch:
        patch.setattr(Processes, "part", lambda self, rows: (sizes.append(len(rows)), part(self, rows))[1])
        both = run(tiny_decoder, chats, "both", *told, metrics=two.append)
    assert 1 in sizes, "a micro-batch of one row, of which the second process has none"
    same(both, alone)
    for first, second in zip(one, two, strict=True):
        assert second["tokens"] == first["tokens"]
        assert second.keys() == first.keys()
        for name in {"loss", "grad_norm", "validation_loss"} & first.keys():
            assert second[name] == pytest.approx(first[name], rel=1e-4)
    assert held == [{"before": held[0]["before"], "after": held[0]["before"] // 2}]

    started: list[Any] = []
    real = processes.subprocess.Popen

    def remember(*arguments: Any, **options: Any) -> Any:
        started.append(real(*arguments, **options))
        return started[-1]

    def kill(record: Mapping[str, Any]) -> None:
        if record["step"] == 2:
            started[0].send_signal(signal.SIGKILL)
            started[0].wait()

    with monkeypatch.context() as patch:
        patch.setattr(processes.subprocess, "Popen", remember)
        with pytest.raises(TrainingError, match="process 1 of 2 has ended"):
            run(tiny_decoder, chats, "killed", *told, metrics=kill)
    found = run(tiny_decoder, chats, "killed", *told, metrics=three.append)
    assert [record["step"] for record in three] == [2, 3, 4]
    mine, theirs = tensors(found), tensors(both)
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())


def test_trained_gains_within_the_blocks_with_checkpointing_and_an_average(tiny_decoder: str, chats: Path) -> None:
    told = ("method=layer_norm", "train.max_steps=3", "train.checkpointing=on", "train.ema=0.5")
    same(
        run(tiny_decoder, chats, "both", *told, *SHARED),
        run(tiny_decoder, chats, "alone", *told),
        "changed.safetensors",
    )


def test_what_one_process_finds_wrong_all_hear_of(tiny_decoder: str, chats: Path) -> None:
    with pytest.raises(TrainingError, match=r"the (loss|gradient) is (nan|inf) at step"):
        run(tiny_decoder, chats, "wild", *SHARED, "train.learning_rate=1e30", "train.clip=0")


class _Two:
    """Two processes, of which the other one says the same each time."""

    count = 2

    def __init__(self, other: int) -> None:
        self.other = other

    def sum(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer + self.other


@pytest.mark.parametrize("goes_on", [0, 1])
def test_a_forward_that_one_process_alone_would_make_ends_all(goes_on: int) -> None:
    shards = object.__new__(shard.Shards)
    shards._device = torch.device("cpu")
    shards._processes = _Two(goes_on)  # type: ignore[assignment]
    shards._agree(bool(goes_on))
    with pytest.raises(UnsupportedError, match="1 of 2 processes need another forward"):
        shards._agree(not goes_on)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("full", "method full trains the weights of the blocks themselves"),
        ("qlora", "method qlora holds its base in 4 bits"),
        ("diff_pruning", "computes weights of the blocks of frozen ones"),
        ("prompt", "their gradient comes back by keys and values alone"),
    ],
)
def test_methods_without_frozen_weights_to_cut_are_refused(
    tiny_decoder: str, chats: Path, method: str, said: str
) -> None:
    with pytest.raises(UnsupportedError, match=said):
        run(tiny_decoder, chats, "x", *SHARED, f"method={method}")


def test_refusals(tiny_decoder: str, chats: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shard is for more than one process"):
        run(tiny_decoder, chats, "x", "train.shard=on")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"train\.processes=auto is one here"):
            run(tiny_decoder, chats, "x", "train.shard=on", "train.processes=auto")
    with pytest.raises(UnsupportedError, match="a scorer runs in one process"):
        run(tiny_decoder, chats, "x", *SHARED, scorer=lambda model: {})
    pairs = tmp_path / "pairs.jsonl"
    row = {"prompt": "Hello?", "chosen": "Yes.", "rejected": "No."}
    pairs.write_text((json.dumps(row) + "\n") * 4)
    with pytest.raises(UnsupportedError, match="objective dpo runs the whole model before the first step"):
        run(tiny_decoder, pairs, "x", *SHARED, "objective=dpo")
