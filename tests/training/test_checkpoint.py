"""Checkpoints appear whole or not at all, and keep what they refer to."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from luthier.core.errors import DataError, StoreError
from luthier.training import checkpoint
from luthier.training.checkpoint import Position


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"master.weight": torch.full((4, 3), value), "exp_avg.weight": torch.zeros(4, 3)}


def test_round_trip_with_random_state(tmp_path: Path) -> None:
    torch.manual_seed(5)
    position = Position(
        step=7, tokens=99, elapsed_s=1.5, best_step=4, best_value=-0.5, best_metrics={"validation_loss": 0.5}
    )
    checkpoint.save_best(tmp_path, 4, {"weight": torch.ones(2)})
    checkpoint.save(tmp_path, position, tensors(2.0))
    expected = torch.rand(3)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.position == position
    loaded = found.tensors()
    assert torch.equal(loaded["master.weight"], torch.full((4, 3), 2.0))
    checkpoint.restore_generators(loaded)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(checkpoint.load_best(tmp_path, 4)["weight"], torch.ones(2))


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None


def test_only_the_newest_stays_with_the_best_it_names(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        checkpoint.save_best(tmp_path, step, {"weight": torch.full((2,), float(step))})
    checkpoint.save(tmp_path, Position(step=6, best_step=4), tensors(0.0))
    checkpoint.save(tmp_path, Position(step=8, best_step=4), tensors(1.0))
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["best-00000004.safetensors", "step-00000008"]


def test_a_best_newer_than_the_checkpoint_leaves_the_older_best_in_place(tmp_path: Path) -> None:
    checkpoint.save_best(tmp_path, 4, {"weight": torch.zeros(1)})
    checkpoint.save(tmp_path, Position(step=5, best_step=4), tensors(0.0))
    checkpoint.save_best(tmp_path, 6, {"weight": torch.ones(1)})  # killed here: the checkpoint still counts on step 4
    found = checkpoint.latest(tmp_path)
    assert found is not None and found.position.best_step == 4
    assert torch.equal(checkpoint.load_best(tmp_path, 4)["weight"], torch.zeros(1))


@pytest.mark.parametrize("fails_at", ["write_tensors", "_flush", "sync_folder"])
def test_a_full_disk_is_a_store_error_and_the_previous_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    checkpoint.save(tmp_path, Position(step=1), tensors(1.0))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, fails_at, full)
    with pytest.raises(StoreError, match=r"disk is full.*checkpoints"):
        checkpoint.save(tmp_path, Position(step=2), tensors(2.0))
    monkeypatch.undo()
    found = checkpoint.latest(tmp_path)
    assert found is not None and found.position.step == 1
    assert torch.equal(found.tensors()["master.weight"], torch.full((4, 3), 1.0))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_leftover_of_a_killed_process_is_not_a_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, Position(step=3), tensors(1.0))
    (tmp_path / "checkpoints" / ".step-1.part").mkdir()
    found = checkpoint.latest(tmp_path)
    assert found is not None and found.position.step == 3


def test_a_damaged_checkpoint_names_its_file(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, Position(step=3), tensors(1.0))
    path = tmp_path / "checkpoints" / "step-00000003" / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    found = checkpoint.latest(tmp_path)
    assert found is not None
    with pytest.raises(DataError, match=r"tensors\.safetensors"):
        found.tensors()


def test_missing_best_weights_are_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="step 4"):
        checkpoint.load_best(tmp_path, 4)
