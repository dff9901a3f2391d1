"""What a configuration becomes before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import InputError, NotFoundError
from luthier.store.database import open_store
from luthier.training.resolve import Job, resolve

ROWS = [{"text": f"{word} {i}", "label": label} for i in range(10) for word, label in (("pay", "a"), ("box", "b"))]


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    path = tmp_path / "my tickets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def job(base: str, tickets: Path, *overrides: str, **sections: Any) -> Job:
    values = {"model": base, "data": {"path": str(tickets)}, "method": "lora", **sections}
    return resolve(values, overrides, open_store())


def test_equal_work_has_one_key_wherever_the_file_lies(tiny_decoder: str, tickets: Path, tmp_path: Path) -> None:
    first = job(tiny_decoder, tickets)
    (tmp_path / "deep").mkdir()
    moved = tmp_path / "deep" / tickets.name
    moved.write_bytes(tickets.read_bytes())
    assert job(tiny_decoder, moved).key == first.key
    assert first.name.startswith("tiny-decoder-lora-my-tickets-")
    assert job(tiny_decoder, tickets, "method.alpha=3").key != first.key
    assert job(tiny_decoder, tickets, "train.seed=3").key != first.key
    assert job(tiny_decoder, tickets, "name=x").key != first.key
    assert job(tiny_decoder, tickets, "data.split.seed=5").key != first.key
    assert job(tiny_decoder, tickets, "prompt.instruction=hello").key != first.key


def test_files_are_relative_to_the_configuration(
    tiny_decoder: str, tickets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tickets.parent / "run.yaml"
    run.write_text(f"model: {tiny_decoder}\ndata: {{path: {tickets.name}}}\nmethod: lora\n")
    monkeypatch.chdir("/")
    assert len(resolve(run, (), open_store()).splits.train) == 16


def test_defaults_come_from_method_and_architecture(tiny_decoder: str, tiny_encoder: str, tickets: Path) -> None:
    from luthier.methods import linear_probe, lora

    decoder, probe = job(tiny_decoder, tickets), job(tiny_encoder, tickets, "method=linear_probe")
    assert decoder.config.train.learning_rate == lora.DEFAULTS["decoder"]["learning_rate"]
    assert probe.config.train.learning_rate == linear_probe.DEFAULTS["encoder"]["learning_rate"]
    given = job(tiny_encoder, tickets, "method=linear_probe", "train.learning_rate=0.5")
    assert given.config.train.learning_rate == 0.5
    assert given.origins["train.learning_rate"] == "command line"


def test_an_objective_takes_a_part_of_the_methods_learning_rate(tiny_decoder: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{i}", "chosen": "a", "rejected": "b"}) + "\n" for i in range(9)))
    found = job(tiny_decoder, path, objective="dpo")
    usual = job(tiny_decoder, path, objective="reward").config.train.learning_rate
    assert found.config.train.learning_rate == pytest.approx(0.2 * usual)
    assert found.origins["train.learning_rate"] == "default of method lora, times 0.2 for objective dpo"
    given = job(tiny_decoder, path, "train.learning_rate=0.3", objective="dpo")
    assert given.config.train.learning_rate == 0.3


def test_what_it_can_be_served_with_is_known_before(tiny_decoder: str, tiny_encoder: str, tickets: Path) -> None:
    assert job(tiny_decoder, tickets).serving == {"torch": "swap", "llamacpp": "swap"}
    assert job(tiny_encoder, tickets).serving["llamacpp"] == "no"


def test_prompt_on_chats_is_refused(tiny_decoder: str, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": str(i)}]} for i in range(5)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="prompt is for data of texts with an answer"):
        job(tiny_decoder, path, "prompt.instruction=x")


def test_settings_that_came_later_count_only_when_they_are_not_the_default(tiny_decoder: str, tickets: Path) -> None:
    from luthier.training.config import TrainConfig
    from luthier.training.resolve import _FIRST, _told

    assert set(_told(TrainConfig())) == _FIRST
    assert {"epochs", "warmup", "device"} < _FIRST < set(TrainConfig.model_fields)
    first = job(tiny_decoder, tickets)
    assert job(tiny_decoder, tickets, "train.optimizer={name: adamw, beta1: 0.9}").key == first.key
    keys = [
        job(tiny_decoder, tickets, override).key
        for override in ("train.optimizer=lion", "train.optimizer.beta2=0.99", "train.max_tokens=999")
    ]
    assert len({first.key, *keys}) == 4


def test_the_optimizer_is_filled_in_and_checked(tiny_decoder: str, tickets: Path) -> None:
    plain = job(tiny_decoder, tickets)
    assert plain.values()["train"]["optimizer"] == {"name": "adamw", "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    chosen = job(tiny_decoder, tickets, "train.optimizer=galore", "train.optimizer.rank=4")
    assert chosen.config.train.optimizer.options["rank"] == 4
    assert chosen.origins["train.optimizer.rank"] == "command line"
    assert chosen.origins["train.optimizer.scale"] == "default"
    with pytest.raises(NotFoundError, match=r"optimizer 'adamv' is not known\. Did you mean 'adamw'"):
        job(tiny_decoder, tickets, "train.optimizer=adamv")
    with pytest.raises(InputError, match=r"optimizer galore: unknown key 'rnak'\. Did you mean 'rank'"):
        job(tiny_decoder, tickets, "train.optimizer={name: galore, rnak: 4}")
    with pytest.raises(InputError, match=r"optimizer adamw: beta1: .*less than 1; got 2"):
        job(tiny_decoder, tickets, "train.optimizer.beta1=2")
