from __future__ import annotations

from typing import Any

import pytest

from luthier.core.errors import InputError, NotFoundError
from luthier.tasks.own import Config, DataSection
from luthier.tournament.entrant import Entrant, choose_only, read_entrants


def read(
    entrants: list[Any] | None = None, kind: Any = "classify", engine: str = "auto", **more: Any
) -> tuple[Entrant, ...]:
    chosen = None if entrants is None else tuple(entrants)
    return read_entrants(Config(data=DataSection(path="x"), entrants=chosen, **more), kind, engine=engine)


def test_the_default_entrants_and_their_models() -> None:
    assert [(e.name, e.model, e.way) for e in read()] == [
        ("zero_shot", "smollm2-135m", "zero_shot"),
        ("few_shot", "smollm2-135m", "few_shot"),
        ("lora", "smollm2-135m", "lora"),
        ("full", "minilm-l6", "full"),
        ("linear_probe", "minilm-l6", "linear_probe"),
    ]
    assert [(e.name, e.model) for e in read(kind="generate")] == [
        ("zero_shot", "smollm2-135m"),
        ("few_shot", "smollm2-135m"),
        ("lora", "smollm2-135m"),
    ]


def test_models_sets_what_short_names_stand_for() -> None:
    chosen = read(["lora", "full", "zero_shot"], models={"decoder": "big", "encoder": "small"})
    assert [e.model for e in chosen] == ["big", "small", "big"]
    assert [e.model for e in read(["full"], kind="generate", models={"decoder": "big"})] == ["big"]


def test_any_mix_of_model_method_strategy_and_settings() -> None:
    chosen = read(
        [
            {"name": "r32", "model": "minilm-l6", "method": {"name": "lora", "rank": 32}, "train": {"epochs": 2}},
            {"method": "lora", "strategy": {"name": "few_shot", "shots": 4}, "objective": "sft", "engine": "llamacpp"},
            {"model": "openai:gpt@http://host/v1"},
        ],
        train={"epochs": 5, "seed": 1},
        engine="torch",
    )
    assert chosen[0] == Entrant(
        "r32", "minilm-l6", None, {"name": "lora", "rank": 32}, None, {"epochs": 2, "seed": 1}, "torch"
    )
    assert chosen[0].tune_config() == {
        "model": {"base": "minilm-l6"},
        "method": {"name": "lora", "rank": 32},
        "train": {"epochs": 2, "seed": 1},
    }
    assert (chosen[1].name, chosen[1].engine) == ("lora + few_shot", "llamacpp")
    assert chosen[1].tune_config()["objective"] == {"name": "sft"}
    assert (chosen[2].name, chosen[2].way, chosen[2].train) == ("openai:gpt@http://host/v1", "as it is", {})


def test_equal_short_names_are_told_apart_by_their_models() -> None:
    chosen = read(["lora", {"method": "lora", "model": "minilm-l6"}])
    assert [e.name for e in chosen] == ["lora smollm2-135m", "lora minilm-l6"]
    with pytest.raises(InputError, match="2 entrants are called 'lora smollm2-135m'"):
        read(["lora", {"method": {"name": "lora", "rank": 2}}])
    with pytest.raises(InputError, match="2 entrants are called 'a'"):
        read([{"name": "a", "method": "lora"}, {"name": "a", "method": "full"}])


@pytest.mark.parametrize(
    ("entrants", "error", "message"),
    [
        (["loar"], NotFoundError, "entrants.0: 'loar' is neither a strategy nor a method. Did you mean 'lora'"),
        ([{"methd": "lora"}], InputError, "Did you mean 'method'"),
        ([{"strategy": "fewshot"}], NotFoundError, "Did you mean 'few_shot'"),
        ([{"method": "lorra"}], NotFoundError, "Did you mean 'lora'"),
        ([{"method": {"rank": 2}}], InputError, "a mapping with a name"),
        ([{"strategy": "zero_shot", "train": {"epochs": 1}}], InputError, "train needs a method"),
        ([{"strategy": "zero_shot", "objective": "sft"}], InputError, "objective needs a method"),
        ([{"name": "x"}], InputError, "needs a model, a strategy or a method"),
        ([], InputError, "entrants is empty"),
    ],
)
def test_what_cannot_enter(entrants: list[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read(entrants)


def test_an_encoder_decoder_is_named_by_its_entrant() -> None:
    with pytest.raises(InputError, match=r"roles are decoder and encoder; no method tunes an encoder-decoder") as error:
        read(models={"encoder-decoder": "flan"})
    assert error.value.hint == "entrants: - {method: lora, model: flan}"


def test_an_unknown_role_is_named() -> None:
    with pytest.raises(InputError, match="Did you mean 'encoder'"):
        read(models={"encodr": "x"})


def test_only() -> None:
    chosen = read(["zero_shot", "lora"])
    assert [e.name for e in choose_only(chosen, ["lora"])] == ["lora"]
    assert choose_only(chosen, []) == chosen
    with pytest.raises(NotFoundError, match="Did you mean 'lora'"):
        choose_only(chosen, ["loora"])
