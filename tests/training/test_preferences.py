"""Preference objectives through the whole verb: what they train, that the same run gives the same weights, stopped in the middle or not."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.errors import InputError
from luthier.models.load import load_model
from luthier.models.weights import read_tensors
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.training.tune import TuneResult, tune

ASKED = ["Where is my parcel?", "Refund the deposit.", "My violin?", "The courier?", "Billing?", "A harp?"]


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Friendly answers are chosen."""
    path = tmp_path / "answers.jsonl"
    rows = [{"prompt": p, "chosen": "Yes, gladly.", "rejected": f"No {n}."} for n, p in enumerate(ASKED)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(base: str, data: Path, objective: str | None, method: str, **train: Any) -> dict[str, Any]:
    return {
        "model": base,
        "data": {"train": str(data), "validation": str(data)},
        "method": method,
        **({"objective": objective} if objective else {}),
        "train": {"epochs": 2, "batch_size": 4, "dtype": "fp32", "device": "cpu", "learning_rate": 5e-3, **train},
    }


def tensors(result: TuneResult) -> dict[str, torch.Tensor]:
    folder = path_of(open_store(), result.model.digest)
    return {f"{p.name}/{k}": v for p in folder.glob("*.safetensors") for k, v in read_tensors(p).items()}


CASES = [
    ("dpo", "tiny_decoder", "lora"),
    ("dpo", "tiny_decoder", "full"),
    ("dpo", "tiny_decoder", "prompt"),
    ("dpo", "tiny_t5", "lora"),
    ("orpo", "tiny_decoder", "lora"),
    ("kto", "tiny_decoder", "lora"),
    ("reward", "tiny_decoder", "lora"),
    ("reward", "tiny_encoder", "lora"),
]


@pytest.mark.parametrize(("objective", "base", "method"), CASES)
def test_stopped_and_run_again_gives_the_same_weights(
    objective: str, base: str, method: str, answers: Path, request: pytest.FixtureRequest
) -> None:
    config = settings(
        request.getfixturevalue(base), answers, objective, method, checkpoint_every=1, max_tokens_per_batch=64
    )
    straight = tune(config, ["name=straight"])

    def interrupting(record: Mapping[str, Any]) -> None:
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tune(config, ["name=stopped"], metrics=interrupting)
    resumed: list[int] = []
    result = tune(config, ["name=stopped"], started=lambda start: resumed.append(start.resumed_at))
    assert resumed == [3]
    ours, theirs = tensors(result), tensors(straight)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(("objective", "base"), [(o, b) for o, b, m in CASES if m == "lora"])
def test_learns_what_is_preferred(objective: str, base: str, answers: Path, request: pytest.FixtureRequest) -> None:
    seen: list[Mapping[str, Any]] = []
    config = settings(
        request.getfixturevalue(base), answers, objective, "lora", epochs=25, batch_size=6, learning_rate=1e-2
    )
    result = tune(config, metrics=seen.append)
    assert result.summary["validation_accuracy"] > 0.9
    assert seen[-1]["loss"] < seen[0]["loss"]
    assert result.model.meta["objective"] == objective
    assert load_model(open_store(), result.model.name, device="cpu").record == result.model


def test_dpo_is_what_preferences_are_trained_with_and_no_prompt_goes_around_them(
    tiny_decoder: str, answers: Path
) -> None:
    config = settings(tiny_decoder, answers, None, "lora", max_steps=1)
    result = tune(config)
    assert result.model.meta["objective"] == "dpo"
    assert result.model.meta["prompt"] is None
    with pytest.raises(InputError, match="preference rows are trained on as they are"):
        tune(config | {"prompt": {"instruction": "Be kind."}})
