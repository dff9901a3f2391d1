"""Run configurations: sections, shorthand, defaults by layers, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.config import from_mapping, read_yaml
from luthier.core.errors import InputError
from luthier.training.config import RunConfig, TrainConfig, read_run, with_defaults

RUN = """\
model: smollm2-135m
data: {path: tickets.jsonl}
method: lora
train:
  epochs: 2
  learning_rate: 2e-4
"""


def config(values: dict[str, Any], *overrides: str) -> RunConfig:
    return read_run(from_mapping({"model": "m", "method": "lora", "data": {"path": "x"}, **values}, overrides))


def test_yaml_with_shorthand_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    run = read_run(read_yaml(path, ["method.rank=32", "train.epochs=3", "name=mine"]))
    assert (run.model.base, run.method.name, run.method.options, run.name) == (
        "smollm2-135m",
        "lora",
        {"rank": 32},
        "mine",
    )
    assert (run.train.epochs, run.train.learning_rate) == (3, 2e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"epoch": 2}}, r"unknown key 'train\.epoch' \(python\)\. Did you mean 'epochs'\?"),
        ({"trian": {}}, r"unknown key 'trian'.*'train'"),
        ({"train": {"epochs": 0}}, r"train\.epochs: input should be greater than 0; got 0"),
        ({"train": {"learning_rate": -1}}, r"train\.learning_rate"),
        ({"train": {"schedule": "cosin"}}, r"train\.schedule.*'cosine'"),
        ({"train": {"power": 2}}, r"train: power is for schedule polynomial; the schedule is cosine"),
        ({"train": {"schedule": "linear", "cooldown": 0.2}}, r"cooldown is for schedule wsd; the schedule is linear"),
        ({"train": {"schedule": "constant", "min_rate": 0.2}}, r"min_rate is for schedules that fall"),
        ({"train": {"ema": 1}}, r"train\.ema: .*less than 1; got 1"),
        ({"train": {"optimizer": 3}}, r"train\.optimizer"),
        ({"train": {"dtype": "fp16"}}, r"train\.dtype.*'bf16'"),
        ({"data": {"path": "a", "train": "b"}}, r"either data\.path or data\.train"),
        ({"data": {"path": "a", "overlong": "cut"}}, r"data\.overlong.*'truncate'"),
        ({"prompt": {"input": "no place"}}, r"prompt\.input: must hold \{input\}"),
        ({"method": {}}, r"method\.name is required"),
        ({"model": {}}, "model: give either base"),
    ],
)
def test_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(values)


def test_an_error_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN.replace("epochs", "epohcs"))
    with pytest.raises(InputError, match=r"unknown key 'train\.epohcs' \(run\.yaml:5\)\. Did you mean 'epochs'"):
        read_run(read_yaml(path))


def test_defaults_fill_only_what_nobody_gave_and_later_layers_win() -> None:
    origins: dict[str, str] = {}
    run = config({"train": {"epochs": 2}})
    layers = {"objective": {"epochs": 9, "batch_size": 4, "clip": 2.0}, "method": {"batch_size": 8}}
    filled = with_defaults(run, origins, layers)
    assert (filled.train.epochs, filled.train.batch_size, filled.train.clip) == (2, 8, 2.0)
    assert filled.train.seed == TrainConfig().seed
    assert origins == {"train.batch_size": "method", "train.clip": "objective"}


def test_a_shorthand_and_an_option_together() -> None:
    assert config({}, "method=lora", "method.rank=4").method.options == {"rank": 4}


def test_switches_are_written_as_yaml_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\nmethod: lora\ntrain: {checkpointing: on, processes: 2}\n")
    train = read_run(read_yaml(path, ["train.shard=on"])).train
    assert (train.checkpointing, train.shard) == ("on", "on")
    train = read_run(read_yaml(path, ["train.checkpointing=off", "train.shard=off"])).train
    assert (train.checkpointing, train.shard) == ("off", "off")
