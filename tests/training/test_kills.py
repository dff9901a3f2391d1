"""Killed at ten moments, one after another: the final weights are those of the run that nobody disturbed, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tests.training.test_tune import write_tickets

from luthier.models.weights import read_tensors
from luthier.store import runs
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.store.models import find

REPOSITORY = Path(__file__).parents[2]


def weights(name: str) -> dict[str, torch.Tensor]:
    store = open_store()
    folder = path_of(store, find(store, name).digest)
    return {
        f"{path.name}/{key}": each for path in folder.glob("*.safetensors") for key, each in read_tensors(path).items()
    }


def test_ten_kills(tiny_decoder: str, tiny_encoder: str, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    rows = [{"text": f"Please refund the deposit {number} for the violin."} for number in range(24)]
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tickets = write_tickets(tmp_path / "tickets.jsonl")
    train = {"max_steps": 26, "epochs": 99, "batch_size": 8, "dtype": "fp32", "device": "cpu", "checkpoint_every": 1}
    validated = {"validate_every": 3, **train}
    configs: dict[str, dict[str, Any]] = {
        "decoder": {
            "model": tiny_decoder,
            "data": {"path": str(tickets)},
            "method": {"name": "lora", "dropout": 0.2},
            "objective": "sft",
            "train": {**validated, "ema": 0.9},
        },
        "encoder": {
            "model": tiny_encoder,
            "data": {"path": str(text)},
            "method": "full",
            "objective": "masked_lm",
            "train": {**validated, "optimizer": "adafactor"},
        },
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.kills", json.dumps(configs), "5"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    store = open_store()
    logs = {
        run.name: runs.read_metrics(runs.folder(store, run.id) / runs.METRICS) for run in runs.list_runs(store, "tune")
    }
    for name in configs:
        straight, killed = weights(f"{name}-straight"), weights(f"{name}-killed")
        assert straight.keys() == killed.keys() and straight
        assert all(torch.equal(value, killed[key]) for key, value in straight.items()), name
        for records in (logs[f"{name}-straight"], logs[f"{name}-killed"]):
            assert [record["step"] for record in records] == list(range(1, 27))
        losses = [[record["loss"] for record in logs[f"{name}-{how}"]] for how in ("straight", "killed")]
        assert losses[0] == losses[1]
