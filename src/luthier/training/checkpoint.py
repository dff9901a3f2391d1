"""Checkpoints: everything that exact resume needs, each in a folder that appears whole or not at all.

    checkpoints/step-00000042/state.json          position, best so far, RNG of the CPU
                              tensors.safetensors fp32 masters, optimizer moments
    checkpoints/best-00000030.safetensors         fp32 masters of the best validation so far

A checkpoint names the best file that it counts on; older checkpoints and other best files are removed only after the new one
is on the disk. So a process killed at any instruction leaves at least the last checkpoint, and all that it refers to.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from luthier.core.errors import StoreError
from luthier.models.weights import read_tensors, write_tensors
from luthier.store.home import disk_errors, sync_folder


@dataclass
class Position:
    """Where training stands. ``step`` counts finished optimizer steps; ``elapsed_s``
    is time spent in all its processes, ``train_s`` the part of it in steps. ``source_losses`` is the validation loss of each source at the end of
    every epoch, where the shares of sources follow them."""

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    train_s: float = 0.0
    best_step: int | None = None
    best_value: float | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    without_gain: int = 0
    first_losses: list[float] = field(default_factory=list)
    last_losses: list[float] = field(default_factory=list)
    suspect_step: int = 0
    suspect_rows: list[str] = field(default_factory=list)
    source_losses: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk."""

    folder: Path
    position: Position

    def tensors(self) -> dict[str, Tensor]:
        """Masters and moments. Raises DataError when the file is damaged."""
        return read_tensors(self.folder / _TENSORS)


_TENSORS = "tensors.safetensors"
_STATE = "state.json"


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint below ``folder`` (a run's folder), None when there is none."""
    for place in sorted((folder / "checkpoints").glob("step-*"), reverse=True):
        state = json.loads((place / _STATE).read_text(encoding="utf-8"))
        return Checkpoint(place, Position(**state["position"]))
    return None


def save(folder: Path, position: Position, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint, then remove what it replaces. Raises StoreError (full disk); the previous one is then untouched."""
    root = folder / "checkpoints"
    aside = root / f".step-{os.getpid()}.part"
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    try:
        with disk_errors(root, size):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            write_tensors(aside / _TENSORS, {**tensors, **_generators()})
            _flush(aside / _TENSORS)
            (aside / _STATE).write_text(json.dumps({"position": asdict(position)}), encoding="utf-8")
            _flush(aside / _STATE)
            sync_folder(aside)
            target = root / f"step-{position.step:08d}"
            shutil.rmtree(target, ignore_errors=True)
            aside.rename(target)
            sync_folder(root)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for old in root.glob("step-*"):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)
    for old in root.glob("best-*"):
        if old != best_path(folder, position.best_step):
            old.unlink(missing_ok=True)


def best_path(folder: Path, step: int | None) -> Path | None:
    """Where the weights of the best validation, at ``step``, are kept."""
    return None if step is None else folder / "checkpoints" / f"best-{step:08d}.safetensors"


def save_best(folder: Path, step: int, masters: Mapping[str, Tensor]) -> None:
    """Keep the weights of ``step``. Raises StoreError."""
    path = best_path(folder, step)
    assert path is not None
    aside = path.with_suffix(".part")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(aside, dict(masters))
            _flush(aside)
            aside.replace(path)
            sync_folder(path.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def load_best(folder: Path, step: int) -> dict[str, Tensor]:
    """The weights of ``save_best``. Raises StoreError when they are gone."""
    path = best_path(folder, step)
    if path is None or not path.is_file():
        raise StoreError(f"the best weights of step {step} are missing: {path}", hint="start again with --force")
    return read_tensors(path)


def clear(folder: Path) -> None:
    """Remove all checkpoints of a run; its result is in the store."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _generators() -> dict[str, Tensor]:
    """States of torch's random generators: the only randomness in a step (dropout)."""
    states = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"rng.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_generators(tensors: Mapping[str, Tensor]) -> None:
    """Set torch's random generators as they were."""
    torch.set_rng_state(tensors["rng.cpu"])
    for index in range(torch.cuda.device_count()):
        if f"rng.cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"rng.cuda.{index}"], index)
